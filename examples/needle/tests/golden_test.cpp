// SPDX-License-Identifier: Apache-2.0
/// \file The engine against logits that PyTorch computed in f32 from the same weights: trained models, and random ones of each
/// architecture.
#include "../engine.hpp"
#include "../gguf_model.hpp"

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

/// Each token's logits, of chunks of 7: windows and turned positions go on from chunk to chunk.
void expect_logits(const needle::model& weights, const nlohmann::json& expected) {
  const std::vector<std::int32_t> tokens = expected["tokens"];
  const method how = needle::parse_method("dense");
  session run(weights, how, {static_cast<std::int64_t>(tokens.size()), 7, skim::element::f32, 0}, executor());
  run.feed(tokens, [&](std::int64_t first, std::int64_t count) {
    const needle::matrix logits = run.logits(first, count);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::vector<float> wanted = expected["logits"][static_cast<std::size_t>(first + i)];
      ASSERT_EQ(wanted.size(), static_cast<std::size_t>(logits.cols()));
      for (std::size_t token = 0; token < wanted.size(); ++token) {
        EXPECT_NEAR(logits(i, static_cast<Eigen::Index>(token)), wanted[token], 1e-4) << "token " << first + i;
      }
    }
  });
}

class architecture : public testing::TestWithParam<std::string> {
 protected:
  static std::filesystem::path directory() { return std::filesystem::path(NEEDLE_GOLDENS) / GetParam(); }
  static std::string text(const char* file) {
    std::ifstream stream(directory() / file);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  }
  static nlohmann::json expected() { return read_json(directory() / "golden.json"); }
};

TEST_P(architecture, gives_the_logits_of_transformers) {
  expect_logits(needle::read_model(directory()), expected());
}

/// The same settings under the names that files have from before.
TEST_P(architecture, is_read_from_an_older_config) {
  needle::model weights = needle::read_model(directory());
  weights.config = needle::parse_config(text("config_4.json"));
  expect_logits(weights, expected());
}

class gguf_architecture : public architecture {};
TEST_P(gguf_architecture, gives_the_logits_of_transformers) {
  expect_logits(
      needle::read_model(std::make_shared<const skim::gguf::file>(skim::gguf::file::read(directory() / "model.gguf"))),
      expected());
}

INSTANTIATE_TEST_SUITE_P(each, architecture, testing::Values("llama", "llama3", "qwen2", "qwen3", "gemma3"),
                         [](const auto& test) { return test.param; });
INSTANTIATE_TEST_SUITE_P(each, gguf_architecture, testing::Values("llama3", "qwen3", "gemma3"),
                         [](const auto& test) { return test.param; });

}  // namespace
