// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's selection, each stage of the kernel compared with the reference on what its own previous stage left: the
/// queries that the kernel chooses, the scores that `score` gives, the lists of `choose` and of `select`.
#pragma once

#include "attention_case.hpp"
#include "rule_stages.hpp"
#include "values.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/reference/quoka.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/testing/matchers.hpp>

#include <gtest/gtest.h>

namespace skim_test {

namespace reference = skim::reference;

/// The block's rows among which a rule chooses, with the kernel's error bounds.
struct choice {
  reference::vector_list rows;
  double row_error = 0;  // of a row's length, relative to 1

  /// How far the kernel's cosine of a row and the mean row may be off. The mean is a sum of Tq rows: where they cancel,
  /// what is left of it carries their rounding.
  double cosine_error() const {
    std::vector<double> sum(rows.front().size(), 0.0);
    double lengths = 0;
    for (const auto& row : rows) {
      if (!reference::is_finite(row)) continue;
      for (std::size_t d = 0; d < row.size(); ++d) sum[d] += row[d];
      lengths += reference::length(row);
    }
    const double D = static_cast<double>(sum.size()), left = reference::length(sum);
    if (left == 0) return f32_roundoff * D;
    const double cancelled = (f32_roundoff * static_cast<double>(rows.size()) + row_error) * lengths / left;
    return f32_roundoff * (D / 2 + 16) + row_error + cancelled;
  }
};

/// The chosen rows are the lowest cosines, ascending, within the bounds.
inline void expect_lowest_cosines(const choice& from, const std::vector<std::int64_t>& chosen) {
  const std::vector<double> center = reference::finite_mean(from.rows);
  std::vector<double> cosines, bounds;  // a row that nearly cancelled has any direction
  for (const auto& row : from.rows) {
    const double size = reference::is_finite(row) ? reference::length(row) : 1;
    const double own = from.row_error == 0 ? 0 : size > 0 ? from.row_error / size : 2;
    bounds.push_back(2 * (from.cosine_error() + own));
  }
  for (const auto& row : from.rows) {
    cosines.push_back(reference::is_finite(row) ? reference::cosine(row, center)
                                                : std::numeric_limits<double>::infinity());
  }
  double largest = -2;
  std::vector<bool> is_chosen(cosines.size(), false);
  for (const std::int64_t t : chosen) {
    ASSERT_TRUE(t >= 0 && t < static_cast<std::int64_t>(cosines.size())) << t;
    const std::size_t at = static_cast<std::size_t>(t);
    ASSERT_FALSE(is_chosen[at]) << "token " << t << " twice";
    is_chosen[at] = true;
    ASSERT_GE(cosines[at] + bounds[at], largest) << "token " << t << " is out of order";
    largest = std::max(largest, cosines[at] - bounds[at]);
  }
  for (std::size_t t = 0; t < cosines.size(); ++t) {
    ASSERT_TRUE(is_chosen[t] || cosines[t] + bounds[t] >= largest) << "token " << t << " was left out";
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
      const bool finite = reference::is_finite(from.rows[t]);
      nearest[t] = finite ? std::min(nearest[t], reference::squared_distance(from.rows[t], latest)) : -0.5;
    }
    for (std::size_t before = 0; before < i; ++before) {
      ASSERT_NE(chosen[before], chosen[i]) << "step " << i;
      nearest[static_cast<std::size_t>(chosen[before])] = -1;
    }
    const double farthest = *std::max_element(nearest.begin(), nearest.end());
    ASSERT_GE(nearest[static_cast<std::size_t>(chosen[i])], farthest - bound) << "step " << i;
  }
}

inline void expect_choice(const skim::query_rule& rule, const choice& from, std::int64_t Tk,
                          const std::vector<std::int64_t>& chosen) {
  switch (rule.choice) {
    case skim::query_choice::lowest_cosine:
    case skim::query_choice::group_lowest_cosine:
      return expect_lowest_cosines(from, chosen);
    case skim::query_choice::farthest_point:
      return expect_farthest_points(from, chosen);
    default:  // rules that look at no query: the same tokens exactly
      EXPECT_EQ(chosen, reference::choose_rows(rule, from.rows, Tk));
  }
}

/// What the kernel chooses for one block and KV head.
struct chosen_queries {
  std::vector<std::int64_t> tokens;  // the rule's last choice: of the only query head, or of the group
  reference::vector_list qbar;       // [kept][D]

  chosen_queries(const skim::query_rule& rule, const skim::attention_args& args, const skim::attention_sequence& block,
                 std::int64_t head) {
    using namespace skim::cpu::detail;
    const std::int64_t D = args.q.extents[2], kept = rule.kept(block.Tq, skim::group_size(args)),
                       length = padded_row(D);
    skim::detail::arena measure;
    choose_scratch(measure, block.Tq, D);
    aligned_memory memory(measure.used()), rows(static_cast<std::size_t>(kept * length) * sizeof(float));
    skim::detail::arena arena(memory.data());
    const choose_scratch scratch(arena, block.Tq, D);
    float* const row = static_cast<float*>(rows.data());
    skim::cpu::detail::choose_queries(rule, args, block, head, scratch, row);
    EXPECT_TRUE(memory.guards_intact() && rows.guards_intact());
    for (std::int64_t i = 0; i < kept; ++i) {
      qbar.emplace_back(row + i * length, row + i * length + D);
      tokens.push_back(kept < block.Tq ? scratch.chosen[i] : i);
    }
  }
};

/// One block and KV head of a selection.
struct stage_check {
  const skim::quoka& policy;
  const skim::attention_args& args;
  const skim::attention_sequence& block;
  std::int64_t head;

  double additions = 0.125;  // on the way of a number into a sum over D, for each of D

  bool chooses() const { return policy.queries.kept(block.Tq, G()) < policy.queries.all(block.Tq, G()); }
  bool by_query_head() const { return policy.queries.per_query_head() && chooses(); }
  std::int64_t G() const { return skim::group_size(args); }
  double unit_error() const {
    return f32_roundoff * (static_cast<double>(args.q.extents[2]) * additions + static_cast<double>(G()) + 8);
  }

  /// What the kernel chooses for one query head: a group of one shows its choice.
  std::vector<std::int64_t> tokens_of_query_head(std::int64_t h) const {
    skim::attention_args alone = args;
    alone.q.data = args.q.at(0, h);
    alone.q.extents[1] = 1;
    skim::attention_sequence one = block;
    alone.sequences = &one.kv;
    alone.sequence_count = 1;
    one.kv.heads = 1;
    return chosen_queries(policy.queries, alone, one, 0).tokens;
  }

  reference::vector_list units(std::int64_t g) const {
    reference::vector_list rows;
    for (const auto& row : reference::queries_of(args, block, head * G() + g)) rows.push_back(reference::unit(row));
    return rows;
  }

  /// The tokens that the rule chose, [G or 1][kept].
  std::vector<std::vector<std::int64_t>> expect_tokens(const chosen_queries& chosen) const {
    std::vector<std::vector<std::int64_t>> tokens;
    for (std::int64_t g = 0; by_query_head() && g < G(); ++g) {
      tokens.push_back(tokens_of_query_head(head * G() + g));
      expect_choice(policy.queries, {reference::queries_of(args, block, head * G() + g), 0}, block.Tk(), tokens.back());
    }
    if (by_query_head()) return tokens;
    if (chooses()) {
      choice means;
      means.row_error = unit_error();
      std::vector<reference::vector_list> heads;
      for (std::int64_t g = 0; g < G(); ++g) heads.push_back(units(g));
      for (std::size_t t = 0; t < static_cast<std::size_t>(block.Tq); ++t) {
        reference::vector_list group;
        for (const auto& rows : heads) group.push_back(rows[t]);
        means.rows.push_back(reference::group_mean(group));
      }
      expect_choice(policy.queries, means, block.Tk(), chosen.tokens);
    }
    return {chosen.tokens};
  }

  /// The group mean of the unit queries of those tokens, rounded by `rounding` and, near 0, by `least`.
  void expect_qbar(const reference::vector_list& qbar, const std::vector<std::vector<std::int64_t>>& tokens,
                   double rounding = 0, double least = 0) const {
    std::vector<reference::vector_list> heads;
    for (std::int64_t g = 0; g < G(); ++g) heads.push_back(units(g));
    for (std::size_t i = 0; i < qbar.size(); ++i) {
      reference::vector_list group;
      for (std::size_t g = 0; g < heads.size(); ++g) {
        group.push_back(heads[g][static_cast<std::size_t>(tokens[by_query_head() ? g : 0][i])]);
      }
      const std::vector<double> mean = reference::group_mean(group);
      ASSERT_EQ(reference::is_finite(mean), reference::is_finite(qbar[i])) << "query " << i;
      if (!reference::is_finite(mean)) continue;
      for (std::size_t d = 0; d < mean.size(); ++d) {
        const double bound = unit_error() * (1 + rounding) + rounding * std::fabs(mean[d]) + least;
        ASSERT_NEAR(qbar[i][d], mean[d], bound) << "query " << i << ", element " << d;
      }
    }
  }

  /// The queries of a head's own rows, as they score: what the kernel left, with its own stages checked.
  reference::vector_list expect_own_queries(const std::vector<std::int64_t>& slot_ids) const {
    const own_stages stages(policy.queries, args, block, head);
    if (!stages.needs.empty()) {
      own_rule_check{policy.queries, args, block, head}.expect_stages(stages, slot_ids);
    } else {
      const auto exact = reference::choose_own_queries(policy.queries, args, block, head, slot_ids);
      EXPECT_EQ(stages.queries.size(), exact.size());
      for (std::size_t i = 0; i < std::min(exact.size(), stages.queries.size()); ++i) {
        for (std::size_t d = 0; d < exact[i].size(); ++d) {
          EXPECT_NEAR(stages.queries[i][d], exact[i][d], 2 * f32_roundoff * std::fabs(exact[i][d]) + 0x1p-149);
        }
      }
    }
    reference::vector_list queries = stages.queries;
    if (policy.similarity == skim::similarity::cosine) {
      for (auto& query : queries) query = reference::unit(query);
    }
    return queries;
  }

  /// How far the kernel's score of each candidate may be off, before it is smoothed.
  std::vector<double> raw_bounds(const reference::vector_list& queries, const std::vector<double>& raw,
                                 const std::vector<std::int64_t>& slot_ids) const {
    if (policy.similarity == skim::similarity::standardised) return standardised_bounds(queries, raw, slot_ids);
    std::vector<double> bounds;
    double longest = 1;
    for (const auto& query : queries) {
      if (reference::is_finite(query)) longest = std::max(longest, reference::length(query));
    }
    const double bound = (unit_error() + 4 * f32_roundoff) * longest;
    for (const std::int64_t slot : slot_ids) {
      const bool cosine = policy.similarity == skim::similarity::cosine;
      bounds.push_back(cosine ? bound
                              : bound * reference::length(reference::row_of(block.kv, block.kv.k, head, slot)) +
                                    0x1p-149 * static_cast<double>(block.kv.k.dim));
    }
    return bounds;
  }

  /// Of (p - m) / s: the products' own error E, that of m, at most as large, and of s, at most 1.5 as large (a deviation is
  /// no further off than its numbers are, but for its divisor). Infinite where s is so near its limit that E decides.
  std::vector<double> standardised_bounds(const reference::vector_list& queries, const std::vector<double>& raw,
                                          const std::vector<std::int64_t>& slot_ids) const {
    const double sums = f32_roundoff * (static_cast<double>(block.kv.k.dim) + 40);
    std::vector<reference::vector_list> keys(1);
    for (const std::int64_t slot : slot_ids) keys[0].push_back(reference::row_of(block.kv, block.kv.k, head, slot));
    const auto places = reference::moment_places(static_cast<std::int64_t>(slot_ids.size()));
    std::vector<double> bounds(slot_ids.size(), 0.0);
    for (const auto& query : queries) {
      if (!reference::is_finite(query)) continue;
      const auto size = [&](const std::vector<double>& key) {
        double sum = 0;
        for (std::size_t d = 0; d < key.size(); ++d) sum += std::fabs(query[d] * key[d]);
        return std::isfinite(sum) ? sum : 0;
      };
      double sampled = 0, root = 0;
      std::vector<double> products;
      for (const std::int64_t place : places) {
        const auto& key = keys[0][static_cast<std::size_t>(place)];
        sampled = std::max(sampled, size(key));
        products.push_back(reference::dot(query, key));
        if (std::isfinite(products.back())) root = std::max(root, std::fabs(products.back()));
      }
      const double s = reference::moments_of(products).deviation, near_limit = 1e-6 * root + 4 * sums * sampled;
      if (s > 0 && s <= 2 * near_limit)
        return std::vector<double>(slot_ids.size(), std::numeric_limits<double>::infinity());
      if (s == 0 && sampled > 0 && products.size() > 1 && ambiguous(products, near_limit)) {
        return std::vector<double>(slot_ids.size(), std::numeric_limits<double>::infinity());
      }
      for (std::size_t i = 0; s > 0 && i < bounds.size(); ++i) {
        const double error = sums * std::max(sampled, size(keys[0][i])),
                     z = std::isfinite(raw[i]) ? std::fabs(raw[i]) : 0;
        bounds[i] = std::max(bounds[i], error * (4 + 2 * z) / s + 8 * f32_roundoff * z);
      }
    }
    return bounds;
  }

  /// Whether numbers that count as all alike are not quite.
  static bool ambiguous(const std::vector<double>& products, double limit) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const double p : products) {
      if (!std::isfinite(p)) continue;
      low = std::min(low, p);
      high = std::max(high, p);
    }
    return high > low && limit > 0;
  }

  /// Candidates by slot, their exact scores for the kernel's queries, and the documented bounds.
  skim::testing::scored_slots exact_scores(const reference::vector_list& queries) const {
    const auto ordered = reference::candidates_in_order(args, block, head);
    const bool rounds = policy.similarity == skim::similarity::standardised;
    const auto scoring = rounds ? reference::rounded_for(block.kv.k.type, queries) : queries;
    const auto raw = reference::raw_scores(policy, block, head, scoring, ordered);
    const auto final = reference::final_scores(policy, raw);
    std::vector<double> bounds = raw_bounds(scoring, raw, ordered);
    if (policy.smooth > 1) {  // a mean is no further off than what it is of, and its own sum
      const std::vector<double> before = bounds;
      const std::int64_t n = static_cast<std::int64_t>(bounds.size()), half = policy.smooth / 2;
      for (std::int64_t i = 0; i < n; ++i) {
        double& bound = bounds[static_cast<std::size_t>(i)];
        for (std::int64_t j = std::max(i - half, std::int64_t{0}); j <= std::min(i + half, n - 1); ++j) {
          const std::size_t at = static_cast<std::size_t>(j);
          const double size = std::isfinite(raw[at]) ? std::fabs(raw[at]) : 0;
          bound = std::max(bound, before[at] + static_cast<double>(policy.smooth) * f32_roundoff * size);
        }
      }
    }
    std::vector<std::size_t> by_slot(ordered.size());
    std::iota(by_slot.begin(), by_slot.end(), std::size_t{0});
    std::sort(by_slot.begin(), by_slot.end(), [&](std::size_t a, std::size_t b) { return ordered[a] < ordered[b]; });
    skim::testing::scored_slots exact;
    for (const std::size_t i : by_slot) {
      exact.candidates.push_back(ordered[i]);
      exact.scores.push_back(final[i]);
      exact.bounds.push_back(bounds[i]);
    }
    return exact;
  }

  /// The scores of those queries and, from the scores, the list.
  void expect_scores_and_list(const reference::vector_list& queries, const float* scores,
                              const std::vector<std::int64_t>& list) const {
    const skim::testing::scored_slots exact = exact_scores(queries);
    std::vector<double> own;
    for (std::size_t i = 0; i < exact.candidates.size(); ++i) {
      own.push_back(static_cast<double>(scores[exact.candidates[i]]));
      if (std::isnan(exact.scores[i]) || std::isinf(exact.bounds[i])) continue;
      ASSERT_NEAR(own.back(), exact.scores[i], exact.bounds[i]) << "slot " << exact.candidates[i];
    }
    EXPECT_EQ(list, reference::top_k(policy.keep, block, head, exact.candidates, own));
    if (!exact.bounds.empty() && std::isinf(exact.bounds.front())) return;
    const skim::retention keep = policy.keep.among(block.past(head));
    EXPECT_TRUE(skim::testing::satisfies(list, skim::testing::matches_top_k(keep, block, head, exact)));
  }

  void expect_stages(const float* scores, const std::vector<std::int64_t>& list) const {
    const std::int64_t past = block.past(head);
    if (reference::lists_all(policy.keep, block, skim::cpu::detail::crossing_of(policy.keep, block.Tk()))) {
      EXPECT_EQ(list, reference::all_past(block, head));
      return;
    }
    if (block.Tq == 0 || past <= policy.keep.keys(past)) {
      EXPECT_EQ(list, reference::candidates(args, block, head));
      return;
    }
    if (policy.queries.rows == skim::query_rows::own) {
      const auto queries = expect_own_queries(reference::candidates_in_order(args, block, head));
      if (testing::Test::HasFatalFailure()) return;
      return expect_scores_and_list(queries, scores, list);
    }
    const chosen_queries chosen(policy.queries, args, block, head);
    const auto tokens = expect_tokens(chosen);
    if (testing::Test::HasFatalFailure()) return;
    expect_qbar(chosen.qbar, tokens);
    expect_scores_and_list(chosen.qbar, scores, list);
  }
};

/// Lists with memory of their own, and an entry behind it.
struct selected_lists {
  std::vector<std::int32_t> indices, counts;
  skim::index_lists lists;

  selected_lists(std::int64_t rows, std::int64_t capacity, std::int64_t block_rows)
      : indices(static_cast<std::size_t>(rows * capacity + 1), -7), counts(static_cast<std::size_t>(rows + 1), -7) {
    lists.indices = indices.data();
    lists.counts = counts.data();
    lists.rows = rows;
    lists.capacity = capacity;
    lists.block_rows = block_rows;
  }
  selected_lists(const selected_lists&) = delete;
  selected_lists& operator=(const selected_lists&) = delete;

  template <class Operation>
  selected_lists(const Operation& op, const skim::attention_args& args)
      : selected_lists(skim::list_rows(args, op.block_rows()), op.list_capacity(args), op.block_rows()) {}

  bool outside_intact() const { return indices.back() == -7 && counts.back() == -7; }
  std::vector<std::int64_t> row(std::int64_t r) const {
    return {lists.row(r), lists.row(r) + counts[static_cast<std::size_t>(r)]};
  }
};

/// Selects, once as a whole and once step by step, and checks every stage of every block and head.
inline void expect_selection(const skim::quoka& policy, const skim::attention_args& args) {
  const skim::cpu::attention<skim::quoka> op{policy};
  const skim::serial_executor serial;
  ASSERT_TRUE(op.check(args).ok());
  const std::int64_t heads = skim::first_view(args).heads, every = op.block_rows();
  selected_lists whole(op, args), stepped(op, args);
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.select(args, whole.lists, {}, workspace.get(), serial).ok());
  ASSERT_TRUE(check_indices(args, &whole.lists).ok());
  EXPECT_TRUE(workspace.guards_intact() && whole.outside_intact());

  const std::int64_t sequences = skim::sequence_count(args), longest = skim::longest_past(args, every);
  const std::int64_t rounds = skim::block_count(skim::most_rows(args), every);
  std::vector<float> all_scores;  // [rounds, sequences * heads, longest]
  for (std::int64_t round = 0; round < rounds; ++round) {
    std::vector<float> scores(static_cast<std::size_t>(sequences * heads * longest + 1), -7.0f);
    const skim::tensor_view<float, 2> view(scores.data(), {sequences * heads, longest});
    ASSERT_TRUE(op.score(args, view, {}, workspace.get(), serial, round).ok());
    ASSERT_TRUE(op.choose(args, view, stepped.lists, workspace.get(), serial, round).ok());
    EXPECT_TRUE(workspace.guards_intact());
    EXPECT_EQ(scores.back(), -7.0f);
    all_scores.insert(all_scores.end(), scores.begin(), scores.end() - 1);
  }
  EXPECT_TRUE(stepped.outside_intact());

  std::int64_t index = 0;
  for (std::int64_t s = 0; s < sequences; ++s) {
    const skim::attention_sequence sequence = skim::sequence_at(args, s);
    for (std::int64_t b = 0; b < skim::block_count(sequence.Tq, every); ++b, ++index) {
      const skim::attention_sequence block = skim::block_of(sequence, b, every);
      for (std::int64_t head = 0; head < heads; ++head) {
        SCOPED_TRACE(testing::Message() << "sequence " << s << ", block " << b << ", head " << head);
        const std::int64_t r = index * heads + head;
        ASSERT_EQ(stepped.row(r), whole.row(r));
        const float* const scores = all_scores.data() + ((b * sequences + s) * heads + head) * longest;
        stage_check{policy, args, block, head}.expect_stages(scores, whole.row(r));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace skim_test
