// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's own rule, stage by stage: what the kernel leaves after each, and whether it is what the stage before implies.
/// Bounds follow from f32 sums over D elements (`unit_error`) and grow with the sizes of what is summed.
#pragma once

#include "values.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/reference/quoka.hpp>
#include <skim/testing/attention_truth.hpp>

#include <gtest/gtest.h>

namespace skim_test {

namespace reference = skim::reference;

/// What the kernel's first loop finds for one block and KV head.
struct own_stages {
  std::vector<double> needs;          // [R]
  reference::vector_list features;    // [R][D]
  std::vector<std::int64_t> picked;   // in order
  std::vector<std::int64_t> nearest;  // [R]: place among the picked
  reference::vector_list queries;     // before they are rounded; those without a say left out

  own_stages() = default;  // for another back-end to fill
  own_stages(const skim::query_rule& rule, const skim::attention_args& args, const skim::attention_sequence& block,
             std::int64_t head) {
    namespace kernel = skim::cpu::detail;
    const std::int64_t D = args.q.extents[2], G = skim::group_size(args), R = block.Tq * G;
    const std::int64_t kept = rule.kept(block.Tq, G), length = kernel::padded_row(D), past = block.past(head);
    skim::detail::arena measure;
    kernel::needed_scratch(measure, rule, block.Tq, G, D);
    kernel::order_scratch(measure, past);
    measure.take<std::int32_t>(past);
    aligned_memory memory(measure.used()), rows(static_cast<std::size_t>(kept * length) * sizeof(float));
    skim::detail::arena arena(memory.data());
    const kernel::needed_scratch scratch(arena, rule, block.Tq, G, D);
    const kernel::order_scratch ordering(arena, past);
    const kernel::slot_order order =
        kernel::order_candidates(args, block, head, arena.take<std::int32_t>(past), ordering);
    float* const row = static_cast<float*>(rows.data());
    kernel::choose_own_queries(rule, args, block, head, order, scratch, row);
    EXPECT_TRUE(memory.guards_intact() && rows.guards_intact());
    for (std::int64_t i = 0; i < kept; ++i) {
      if (!kernel::is_silent(row + i * length)) queries.emplace_back(row + i * length, row + i * length + D);
    }
    if (kept == R || rule.choice != skim::query_choice::needed) return;
    for (std::int64_t r = 0; r < R; ++r) {
      needs.push_back(scratch.need[r]);
      const bool silent = kernel::is_silent(scratch.x + r * length);
      const float* const feature =
          (silent ? scratch.x : scratch.y) + r * length;  // the reference's are not finite then
      features.emplace_back(feature, feature + D);
      nearest.push_back(silent ? -1 : scratch.owner[r]);
    }
    picked.assign(scratch.picked, scratch.picked + queries.size());
  }
};

/// The stages up to the queries, each against the reference's answer to what the kernel left before it.
struct own_rule_check {
  const skim::query_rule& rule;
  const skim::attention_args& args;
  const skim::attention_sequence& block;
  std::int64_t head;
  skim::element query_type = skim::element::none;  ///< that the means were rounded to, where another back-end does so
  /// Where means are taken from products of rows rather than from rows: the largest squared length of a row, of those of
  /// features, before its head's mean was taken away. What is left of such products carries their rounding.
  double common = 0;

  std::int64_t D() const { return args.q.extents[2]; }
  double sum_error() const { return f32_roundoff * (static_cast<double>(D()) / 8 + 16); }

  /// How far a need may be off: its logits' error, four times (two sums, each of largest and others), that of exp, and the
  /// roundings of 1 + x and of the quotient.
  void expect_needs(const std::vector<double>& needs, const std::vector<std::int64_t>& slot_ids) const {
    const auto exact = reference::needs_of_rows(rule, args, block, head, slot_ids);
    const reference::vector_list rows = reference::own_rows(args, block, head);
    double longest = 0;
    for (std::int64_t slot = 0; slot < block.kv.length(head); ++slot) {
      const auto key = reference::row_of(block.kv, block.kv.k, head, slot);
      if (reference::is_finite(key)) longest = std::max(longest, reference::length(key));
    }
    ASSERT_EQ(exact.size(), needs.size());
    for (std::size_t r = 0; r < exact.size(); ++r) {
      if (!reference::is_finite(rows[r])) {
        ASSERT_EQ(needs[r], 0) << "row " << r;
        continue;
      }
      const double logits = 4 * sum_error() * longest * reference::length(rows[r]) + 32 * f32_roundoff;
      const double moved = exact[r] * (1 - exact[r]) * std::expm1(std::min(logits, 50.0));
      ASSERT_NEAR(needs[r], exact[r], std::min(1.0, moved + 2 * f32_roundoff)) << "row " << r;
    }
  }

  /// Of a row's length 1 (they are scaled), with the common part that was taken away.
  void expect_features(const reference::vector_list& features) const {
    const reference::vector_list rows = reference::own_rows(args, block, head);
    const reference::vector_list exact = reference::features_of_rows(rows, block.Tq);
    for (std::size_t r = 0; r < exact.size(); ++r) {
      if (!reference::is_finite(rows[r])) continue;
      const double spread = spread_of(rows, r / static_cast<std::size_t>(block.Tq));
      const double largest =
          std::max(1.0, spread > 0 ? size_of(rows, r / static_cast<std::size_t>(block.Tq)) / spread : 1.0);
      const double near_flat = spread > 0 ? 0 : 1;
      for (std::size_t d = 0; d < exact[r].size(); ++d) {
        const double bound = sum_error() * (std::fabs(exact[r][d]) + 8 * largest) * (1 - near_flat);
        ASSERT_NEAR(features[r][d], exact[r][d], bound) << "row " << r << ", element " << d;
      }
    }
  }

  /// Root of the mean squared length of a head's rows about their mean, and of the largest row; 0 where they are all alike.
  double spread_of(const reference::vector_list& rows, std::size_t g) const {
    const reference::vector_list own = finite_of(rows, g);
    if (own.empty() || block.Tq == 1) return own.empty() ? 0 : reference::length(own.front());
    const std::vector<double> center = reference::mean(own);
    double spread = 0, size = 0;
    for (const auto& row : own) {
      spread += reference::squared_distance(row, center) / static_cast<double>(own.size());
      size += reference::dot(row, row) / static_cast<double>(own.size());
    }
    return std::sqrt(spread) <= 1e-6 * std::sqrt(size) ? 0 : std::sqrt(spread);
  }
  double size_of(const reference::vector_list& rows, std::size_t g) const {
    double largest = 0;
    for (const auto& row : finite_of(rows, g)) largest = std::max(largest, reference::length(row));
    return largest;
  }
  reference::vector_list finite_of(const reference::vector_list& rows, std::size_t g) const {
    reference::vector_list own;
    const std::size_t Tq = static_cast<std::size_t>(block.Tq);
    for (std::size_t r = g * Tq; r < (g + 1) * Tq; ++r) {
      if (reference::is_finite(rows[r])) own.push_back(rows[r]);
    }
    return own;
  }

  /// `common` of the block's rows.
  double common_part() const {
    const reference::vector_list rows = reference::own_rows(args, block, head);
    double most = 0;
    for (std::size_t g = 0; g < rows.size() / static_cast<std::size_t>(block.Tq); ++g) {
      const double spread = spread_of(rows, g), ratio = spread > 0 ? size_of(rows, g) / spread : 0;
      most = std::max(most, ratio * ratio);
    }
    return most;
  }

  /// The error of a squared distance between two rows' features.
  double distance_error(const reference::vector_list& features, std::size_t a, std::size_t b) const {
    const double lengths = reference::length(features[a]) + reference::length(features[b]);
    return 4 * sum_error() * (lengths * lengths + 4 * common);
  }

  /// In each round the rows of largest gain, by descending gain, given the rows of the rounds before.
  void expect_picked(const own_stages& stages) const {
    const auto& y = stages.features;
    std::size_t finite = 0;
    for (const auto& row : y) finite += reference::is_finite(row);
    const std::size_t n = std::min(static_cast<std::size_t>(rule.n), finite);
    ASSERT_EQ(stages.picked.size(), n);
    for (std::size_t first = 0; first < n;) {
      const std::size_t count = std::min(static_cast<std::size_t>(reference::round_rows(rule.n)), n - first);
      const std::vector<std::int64_t> before(stages.picked.begin(),
                                             stages.picked.begin() + static_cast<std::ptrdiff_t>(first));
      const std::vector<double> gain = reference::gains(stages.needs, y, before);
      const auto bound = [&](std::size_t r) {
        double error = 0;
        for (const std::int64_t c : before) error = std::max(error, distance_error(y, r, static_cast<std::size_t>(c)));
        return before.empty() ? 4 * sum_error() * (gain[r] + common * stages.needs[r])
                              : error * stages.needs[r] + 4 * f32_roundoff * gain[r];
      };
      std::vector<bool> now(y.size(), false);
      double least = std::numeric_limits<double>::infinity(), least_error = 0;
      for (std::size_t i = first; i < first + count; ++i) {
        const std::size_t r = static_cast<std::size_t>(stages.picked[i]);
        ASSERT_LT(r, y.size());
        ASSERT_FALSE(now[r]) << "row " << r << " twice";
        ASSERT_GE(gain[r], 0) << "row " << r << " was picked before, or is not finite";
        ASSERT_LE(gain[r], least + least_error + bound(r)) << "place " << i << " is out of order";
        now[r] = true;
        if (gain[r] < least) {
          least = gain[r];
          least_error = bound(r);
        }
      }
      for (std::size_t r = 0; r < y.size(); ++r) {
        ASSERT_TRUE(now[r] || gain[r] <= least + least_error + bound(r))
            << "row " << r << " was left out before place " << first + count;
      }
      first += count;
    }
  }

  /// Every row joined a picked row that is nearest, within the bounds.
  void expect_nearest(const own_stages& stages) const {
    const auto& y = stages.features;
    for (std::size_t r = 0; r < y.size(); ++r) {
      if (!reference::is_finite(y[r])) {
        ASSERT_EQ(stages.nearest[r], -1);
        continue;
      }
      ASSERT_GE(stages.nearest[r], 0);
      const auto to = [&](std::size_t i) { return static_cast<std::size_t>(stages.picked[i]); };
      const std::size_t own = static_cast<std::size_t>(stages.nearest[r]);
      const double distance = reference::squared_distance(y[r], y[to(own)]);
      for (std::size_t i = 0; i < stages.picked.size(); ++i) {
        const double error = distance_error(y, r, to(i)) + distance_error(y, r, to(own));
        ASSERT_LE(distance, reference::squared_distance(y[r], y[to(i)]) + error) << "row " << r << ", place " << i;
      }
    }
  }

  void expect_means(const own_stages& stages) const {
    const reference::vector_list rows = reference::own_rows(args, block, head);
    const auto exact = reference::average_members(rows, stages.needs, stages.picked, stages.nearest);
    ASSERT_EQ(stages.queries.size(), exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i) {
      double largest = 0;
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const bool picked = static_cast<std::int64_t>(r) == stages.picked[i];
        if (stages.nearest[r] != static_cast<std::int64_t>(i) && !picked) continue;
        for (const double value : rows[r]) largest = std::max(largest, std::fabs(value));
      }
      const double rounded = query_type == skim::element::none ? 0 : skim::testing::roundoff(query_type);
      const double bound = (f32_roundoff * (static_cast<double>(rows.size()) + 8) + rounded) * largest + 0x1p-148;
      for (std::size_t d = 0; d < exact[i].size(); ++d)
        ASSERT_NEAR(stages.queries[i][d], exact[i][d], bound) << "query " << i;
    }
  }

  void expect_stages(const own_stages& stages, const std::vector<std::int64_t>& slot_ids) const {
    expect_needs(stages.needs, slot_ids);
    if (testing::Test::HasFatalFailure()) return;
    expect_features(stages.features);
    if (testing::Test::HasFatalFailure()) return;
    expect_picked(stages);
    if (testing::Test::HasFatalFailure()) return;
    expect_nearest(stages);
    if (testing::Test::HasFatalFailure()) return;
    expect_means(stages);
  }
};

}  // namespace skim_test
