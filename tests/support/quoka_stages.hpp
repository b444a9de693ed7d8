// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's selection, each stage of the kernel compared with the reference on what its own previous stage left.
#pragma once

#include "attention_case.hpp"
#include "values.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/reference/quoka.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/testing/matchers.hpp>

#include <gtest/gtest.h>

namespace skim_test {

namespace reference = skim::reference;

inline double length_of(const std::vector<double>& row) {
  return std::sqrt(reference::dot(row, row));
}

/// The chunk's rows among which a rule chooses, with the kernel's error bounds.
struct choice {
  reference::vector_list rows;
  double row_error = 0;  // of a row's length, relative to 1

  /// How far the kernel's cosine of a row and the mean row may be off. The mean is a sum of Tq rows: where they cancel,
  /// what is left of it carries their rounding.
  double cosine_error() const {
    std::vector<double> sum(rows.front().size(), 0.0);
    double lengths = 0;
    for (const auto& row : rows) {
      for (std::size_t d = 0; d < row.size(); ++d) sum[d] += row[d];
      lengths += length_of(row);
    }
    const double D = static_cast<double>(sum.size()), left = length_of(sum);
    if (left == 0) return f32_roundoff * D;
    const double cancelled = (f32_roundoff * static_cast<double>(rows.size()) + row_error) * lengths / left;
    return f32_roundoff * (D / 2 + 16) + row_error + cancelled;
  }
};

/// The chosen rows are the lowest cosines, ascending, within the bounds.
inline void expect_lowest_cosines(const choice& from, const std::vector<std::int64_t>& chosen) {
  const std::vector<double> center = reference::mean(from.rows);
  const double bound = 2 * from.cosine_error();
  std::vector<double> cosines;
  for (const auto& row : from.rows) cosines.push_back(reference::cosine(row, center));
  double largest = -2;
  std::vector<bool> is_chosen(cosines.size(), false);
  for (const std::int64_t t : chosen) {
    ASSERT_TRUE(t >= 0 && t < static_cast<std::int64_t>(cosines.size())) << t;
    const std::size_t at = static_cast<std::size_t>(t);
    ASSERT_FALSE(is_chosen[at]) << "token " << t << " twice";
    is_chosen[at] = true;
    ASSERT_GE(cosines[at], largest - bound) << "token " << t << " is out of order";
    largest = std::max(largest, cosines[at]);
  }
  for (std::size_t t = 0; t < cosines.size(); ++t) {
    ASSERT_TRUE(is_chosen[t] || cosines[t] >= largest - bound) << "token " << t << " was left out";
  }
}

/// Every step of the greedy choice takes a row whose distance to those chosen before is the largest, within the bounds.
inline void expect_farthest_points(const choice& from, const std::vector<std::int64_t>& chosen) {
  expect_lowest_cosines(from, {chosen.front()});
  const double D = static_cast<double>(from.rows.front().size());
  const double bound = 8 * (f32_roundoff * (D / 8 + 8) + from.row_error);
  std::vector<double> nearest(from.rows.size(), std::numeric_limits<double>::infinity());
  for (std::size_t i = 1; i < chosen.size(); ++i) {
    const auto& latest = from.rows[static_cast<std::size_t>(chosen[i - 1])];
    for (std::size_t t = 0; t < nearest.size(); ++t) {
      nearest[t] = std::min(nearest[t], reference::squared_distance(from.rows[t], latest));
    }
    for (std::size_t before = 0; before < i; ++before) {
      ASSERT_NE(chosen[before], chosen[i]) << "step " << i;
      nearest[static_cast<std::size_t>(chosen[before])] = -1;
    }
    const double farthest = *std::max_element(nearest.begin(), nearest.end());
    ASSERT_GE(nearest[static_cast<std::size_t>(chosen[i])], farthest - bound) << "step " << i;
  }
}

inline void expect_choice(const skim::queries::lowest_cosine&, const choice& from, std::int64_t,
                          const std::vector<std::int64_t>& chosen) {
  expect_lowest_cosines(from, chosen);
}
inline void expect_choice(const skim::queries::group_lowest_cosine&, const choice& from, std::int64_t,
                          const std::vector<std::int64_t>& chosen) {
  expect_lowest_cosines(from, chosen);
}
inline void expect_choice(const skim::queries::farthest_point&, const choice& from, std::int64_t,
                          const std::vector<std::int64_t>& chosen) {
  expect_farthest_points(from, chosen);
}
/// The rules that look at no query: the same tokens exactly.
template <class Rule>
void expect_choice(const Rule& rule, const choice& from, std::int64_t Tk, const std::vector<std::int64_t>& chosen) {
  EXPECT_EQ(chosen, reference::choose_rows(rule, from.rows, Tk));
}

/// A selection that has run, seen from one sequence and KV head.
template <class Policy>
struct stage_check {
  const Policy& policy;
  const skim::attention_args& args;
  skim::attention_sequence sequence;
  std::int64_t head;
  const std::int32_t* tokens;  // [G or 1, kept]
  const float* qbar;           // [kept, qbar_stride]
  std::int64_t qbar_stride;
  const float* scores;  // [past]

  using rule_type = decltype(policy.queries);

  std::int64_t kept() const { return skim::queries::kept(policy.queries, sequence.Tq); }
  bool chooses() const { return kept() < sequence.Tq; }
  bool by_query_head() const { return skim::queries::per_query_head<std::remove_const_t<rule_type>> && chooses(); }

  std::vector<std::int64_t> tokens_of(std::int64_t g) const { return {tokens + g * kept(), tokens + (g + 1) * kept()}; }

  reference::vector_list units(std::int64_t g) const {
    reference::vector_list rows;
    for (const auto& row : reference::queries_of(args, sequence, head * skim::group_size(args) + g)) {
      rows.push_back(reference::unit(row));
    }
    return rows;
  }

  /// The tokens that the rule chose.
  void expect_tokens() const {
    const std::int64_t G = skim::group_size(args), D = args.q.extents[2];
    if (!chooses()) {
      std::vector<std::int64_t> every(static_cast<std::size_t>(kept()));
      std::iota(every.begin(), every.end(), std::int64_t{0});
      EXPECT_EQ(tokens_of(0), every);
      return;
    }
    for (std::int64_t g = 0; by_query_head() && g < G; ++g) {
      expect_choice(policy.queries, {reference::queries_of(args, sequence, head * G + g), 0}, sequence.Tk(),
                    tokens_of(g));
    }
    if (by_query_head()) return;
    choice means;
    means.row_error = f32_roundoff * (static_cast<double>(D) / 8 + static_cast<double>(G) + 8);
    for (std::int64_t t = 0; t < sequence.Tq; ++t) {
      reference::vector_list group;
      for (std::int64_t g = 0; g < G; ++g) group.push_back(units(g)[static_cast<std::size_t>(t)]);
      means.rows.push_back(reference::mean(group));
    }
    expect_choice(policy.queries, means, sequence.Tk(), tokens_of(0));
  }

  /// The group mean of the unit queries of those tokens.
  void expect_qbar() const {
    const std::int64_t G = skim::group_size(args), D = args.q.extents[2];
    const double bound = f32_roundoff * (static_cast<double>(D) / 8 + static_cast<double>(G) + 8);
    std::vector<reference::vector_list> heads;
    for (std::int64_t g = 0; g < G; ++g) heads.push_back(units(g));
    for (std::int64_t i = 0; i < kept(); ++i) {
      reference::vector_list group;
      for (std::int64_t g = 0; g < G; ++g) {
        const std::int64_t t = tokens[by_query_head() ? g * kept() + i : i];
        group.push_back(heads[static_cast<std::size_t>(g)][static_cast<std::size_t>(t)]);
      }
      const std::vector<double> mean = reference::mean(group);
      for (std::int64_t d = 0; d < D; ++d) {
        ASSERT_NEAR(static_cast<double>(qbar[i * qbar_stride + d]), mean[static_cast<std::size_t>(d)], bound)
            << "query " << i << ", element " << d;
      }
    }
  }

  /// Candidates, their exact scores for the kernel's qbar, and the documented bounds.
  skim::testing::scored_slots exact_scores() const {
    const std::int64_t D = args.q.extents[2];
    skim::testing::scored_slots exact;
    exact.slots = reference::candidates(args, sequence, head);
    reference::vector_list rows;
    for (std::int64_t i = 0; i < kept(); ++i) {
      rows.emplace_back(qbar + i * qbar_stride, qbar + i * qbar_stride + D);
    }
    const double bound = f32_roundoff * (static_cast<double>(D) / 8 + static_cast<double>(skim::group_size(args)) + 12);
    for (const std::int64_t slot : exact.slots) {
      exact.scores.push_back(reference::score_key(policy, sequence, head, slot, rows));
      const bool cosine = std::is_same_v<std::decay_t<decltype(policy.similarity)>, skim::similarity::cosine>;
      exact.bounds.push_back(cosine ? bound : bound * key_length(slot));
    }
    return exact;
  }

  double key_length(std::int64_t slot) const {
    const skim::kv_view& kv = *sequence.kv;
    double squares = 0;
    for (std::int64_t d = 0; d < kv.k.dim; ++d) {
      const double x =
          static_cast<double>(skim::load_element(kv.k.data, kv.k.type, kv.row_offset(kv.k, head, slot) + d));
      squares += x * x;
    }
    return std::sqrt(squares);
  }

  /// The scores of those queries and, from the scores, the list.
  void expect_scores_and_list(const std::vector<std::int64_t>& list) const {
    const skim::testing::scored_slots exact = exact_scores();
    std::vector<double> own;
    for (std::size_t i = 0; i < exact.slots.size(); ++i) {
      own.push_back(static_cast<double>(scores[exact.slots[i]]));
      if (std::isnan(exact.scores[i])) continue;
      ASSERT_NEAR(own.back(), exact.scores[i], exact.bounds[i]) << "slot " << exact.slots[i];
    }
    EXPECT_EQ(list, reference::top_k(policy.keep, sequence, head, exact.slots, own));
    EXPECT_TRUE(skim::testing::satisfies(list, skim::testing::matches_top_k(policy.keep, sequence, head, exact)));
  }
};

/// Selects, and checks every stage of every sequence and head.
template <class Policy>
void expect_selection(const Policy& policy, const skim::attention_args& args) {
  const skim::cpu::attention<Policy> op{policy};
  ASSERT_TRUE(op.check(args).ok());
  const std::int64_t heads = skim::first_view(args).heads, capacity = op.list_capacity(args);
  const std::int64_t rows = skim::sequence_count(args) * heads;
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity + 1), -7);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(rows), -7);
  const skim::index_lists lists{indices.data(), counts.data(), rows, capacity};
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.select(args, lists, {}, workspace.get(), skim::serial_executor{}).ok());
  ASSERT_TRUE(check_indices(args, &lists).ok());
  EXPECT_TRUE(workspace.guards_intact());
  EXPECT_EQ(indices.back(), -7);

  const auto stages = skim::cpu::selector_kernel<Policy>::stages(policy, args, workspace.get());
  for (std::int64_t r = 0; r < rows; ++r) {
    SCOPED_TRACE(testing::Message() << "row " << r);
    const skim::attention_sequence sequence = skim::sequence_at(args, r / heads);
    const std::vector<std::int64_t> list(lists.row(r), lists.row(r) + counts[static_cast<std::size_t>(r)]);
    const std::int64_t past = sequence.kv->length(r % heads) - sequence.Tq;
    if (sequence.Tq == 0 || past <= policy.keep.keys(past)) {
      EXPECT_EQ(list, reference::candidates(args, sequence, r % heads));
      continue;
    }
    const stage_check<Policy> check{
        policy, args, sequence, r % heads, stages.tokens_of(r), stages.qbar_of(r), stages.row, stages.scores_of(r)};
    check.expect_tokens();
    if (testing::Test::HasFatalFailure()) return;
    check.expect_qbar();
    check.expect_scores_and_list(list);
  }
}

}  // namespace skim_test
