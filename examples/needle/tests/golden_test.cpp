// SPDX-License-Identifier: Apache-2.0
/// \file The engine against logits that PyTorch computed in f32 from the same weights.
#include "../engine.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>

namespace {

using needle::executor;
using needle::method;
using needle::row;
using needle::session;

std::filesystem::path directory_of(const std::string& model) {
  return std::filesystem::path(NEEDLE_MODELS) / model;
}

nlohmann::json read_json(const std::filesystem::path& path) {
  return nlohmann::json::parse(std::ifstream(path));
}

class golden : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(golden, logits_agree) {
  const auto& [name, file] = GetParam();
  const nlohmann::json expected = read_json(directory_of(name) / file);
  const needle::model weights = needle::read_model(directory_of(name));
  std::vector<std::int32_t> tokens = expected["tokens"];
  tokens.pop_back();  // the last one is only a target

  const method how = needle::parse_method("dense");
  const std::int64_t fed = static_cast<std::int64_t>(tokens.size());
  session run(weights, how, {fed, 128, skim::element::f32, 0}, executor());
  needle::matrix all(fed, weights.config.vocabulary);
  run.feed(tokens,
           [&](std::int64_t first, std::int64_t count) { all.middleRows(first, count) = run.logits(first, count); });

  constexpr double tolerance = 5e-4;
  for (std::size_t i = 0; i < expected["answer_positions"].size(); ++i) {
    const row logits = all.row(expected["answer_positions"][i].get<std::int64_t>());
    Eigen::Index likeliest = 0;
    EXPECT_NEAR(logits.maxCoeff(&likeliest), expected["max_logit"][i].get<double>(), tolerance) << "answer token " << i;
    EXPECT_EQ(likeliest, expected["argmax"][i].get<std::int64_t>()) << "answer token " << i;
    EXPECT_EQ(likeliest, expected["answers"][i].get<std::int64_t>()) << "answer token " << i;
  }
  const row last = all.row(fed - 1);
  const std::vector<float> wanted = expected["last_logits"];
  ASSERT_EQ(wanted.size(), static_cast<std::size_t>(last.size()));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(last(static_cast<Eigen::Index>(i)), wanted[i], tolerance) << "token " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(both, golden,
                         testing::Combine(testing::Values("qwen2", "llama"),
                                          testing::Values("golden_640.json", "golden_2048.json")),
                         [](const auto& test) {
                           const std::string file = std::get<1>(test.param);
                           return std::get<0>(test.param) + "_" + file.substr(7, file.size() - 12);
                         });

}  // namespace
