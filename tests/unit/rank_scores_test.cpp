// SPDX-License-Identifier: Apache-2.0
// Scores as sharpened ranks: the reference's values, bad arguments, and the same bits for any number of workers.
#include "support/executors.hpp"
#include "support/faults.hpp"

#include <skim/buffer.hpp>
#include <skim/cpu/eviction.hpp>
#include <skim/reference/eviction.hpp>

#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace {

using namespace skim_test;
using skim::status;

TEST(RankScores, NamesItsArguments) {
  std::vector<float> values(12, 1.0f);
  using view = skim::tensor_view<float, 2>;
  skim::buffer scratch(skim::cpu::rank_scores_bytes(6, 1));
  const auto expect_fault = [&](const view& scores, skim::memory workspace, const expectation& expected) {
    expect_report(skim::cpu::rank_scores(scores, workspace, skim::serial_executor{}), expected);
    EXPECT_EQ(values, std::vector<float>(12, 1.0f));
  };
  const view good(values.data(), {2, 6});
  expect_fault(view(nullptr, {2, 6}), scratch, {status::null_pointer, "scores.data", ""});
  expect_fault(view(values.data(), {2, -6}), scratch, {status::bad_extent, "scores.extents[1]", "-6"});
  expect_fault(view(values.data(), {2, 6}, {3, 1}), scratch, {status::bad_stride, "scores.strides[0]", "3"});
  expect_fault(good, {scratch.data(), 64}, {status::short_workspace, "workspace.bytes", "64"});
  EXPECT_EQ(skim::cpu::rank_scores_bytes(-1, 1), 0u);
  EXPECT_TRUE(skim::cpu::rank_scores(view(values.data(), {2, 0}), scratch, skim::serial_executor{}).ok());
  EXPECT_TRUE(skim::cpu::rank_scores(view(values.data(), {0, 6}), scratch, skim::serial_executor{}).ok());
  EXPECT_EQ(values, std::vector<float>(12, 1.0f));
}

TEST(RankScores, AreThoseOfTheReference) {
  std::mt19937 draw(7);
  for (const std::int64_t n : {1, 2, 3, 31, 64, 257, 2500}) {
    for (const std::int64_t rows : {1, 5}) {
      const std::int64_t stride = n + 3;
      std::vector<float> values(static_cast<std::size_t>(rows * stride), -7.0f);
      const skim::tensor_view<float, 2> scores(values.data(), {rows, n}, {stride, 1});
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t i = 0; i < n; ++i) {
          const std::uint32_t kind = draw() % 16;
          float& score = *scores.at(row, i);
          score = static_cast<float>(static_cast<int>(draw() % 2001) - 1000) / (kind < 8 ? 1000.0f : 1.0f);
          if (kind == 0) score = std::numeric_limits<float>::infinity();
          if (kind == 1) score = -std::numeric_limits<float>::infinity();
          if (kind == 2) score = std::numeric_limits<float>::quiet_NaN();
          if (kind == 3) score = draw() % 2 == 0 ? 0.0f : -0.0f;
        }
      }
      std::vector<std::vector<double>> expected;
      for (std::int64_t row = 0; row < rows; ++row) {
        expected.push_back(skim::reference::sharpened_ranks({scores.at(row, 0), scores.at(row, 0) + n}));
      }
      std::vector<float> again = values;
      thread_pool threads(3);
      skim::buffer scratch(skim::cpu::rank_scores_bytes(n, 3));
      ASSERT_TRUE(skim::cpu::rank_scores(scores, scratch, threads.executor()).ok());
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t i = 0; i < n; ++i) {
          EXPECT_NEAR(*scores.at(row, i), expected[static_cast<std::size_t>(row)][static_cast<std::size_t>(i)], 1e-7);
        }
        for (std::int64_t i = n; i < stride; ++i) EXPECT_EQ(values[static_cast<std::size_t>(row * stride + i)], -7.0f);
      }
      skim::tensor_view<float, 2> alone(again.data(), {rows, n}, {stride, 1});
      ASSERT_TRUE(skim::cpu::rank_scores(alone, scratch, skim::serial_executor{}).ok());
      EXPECT_EQ(again, values) << "another number of workers";
    }
  }
}

}  // namespace
