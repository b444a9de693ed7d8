// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA in plain double loops, one function per stage of Algorithm 1 (arXiv 2602.08722), so that a kernel can be
/// compared stage by stage. One sequence, one KV head at a time. Allocates.
#pragma once

#include <skim/attention.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/selector/queries.hpp>
#include <skim/selector/quoka.hpp>
#include <skim/retention.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/view.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

namespace skim {
inline namespace v0_2 {
namespace reference {

/// The chunk's queries of one query head, `[Tq][D]`.
inline vector_list queries_of(const attention_args& args, const attention_sequence& sequence, std::int64_t h) {
  vector_list rows(static_cast<std::size_t>(sequence.Tq));
  for (std::int64_t t = 0; t < sequence.Tq; ++t) {
    for (std::int64_t d = 0; d < args.q.extents[2]; ++d) {
      rows[static_cast<std::size_t>(t)].push_back(
          static_cast<double>(load_element(args.q.data, args.q.type, args.q.offset(sequence.first_row + t, h, d))));
    }
  }
  return rows;
}

/// The `n` rows of lowest cosine to the rows' mean, by ascending cosine, ties to the lower row.
inline std::vector<std::int64_t> lowest_cosine_rows(const vector_list& rows, std::int64_t n) {
  const std::vector<double> center = mean(rows);
  std::vector<double> score;
  for (const auto& row : rows) score.push_back(cosine(row, center));
  std::vector<std::int64_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return score[static_cast<std::size_t>(a)] < score[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(n));
  return order;
}

/// Greedy k-center in L2 from the row of lowest cosine; in the order of choice, ties to the lower row.
inline std::vector<std::int64_t> farthest_point_rows(const vector_list& rows, std::int64_t n) {
  std::vector<std::int64_t> chosen = lowest_cosine_rows(rows, 1);
  std::vector<double> nearest(rows.size(), std::numeric_limits<double>::infinity());
  while (static_cast<std::int64_t>(chosen.size()) < n) {
    const auto& newest = rows[static_cast<std::size_t>(chosen.back())];
    for (std::size_t t = 0; t < rows.size(); ++t) {
      nearest[t] = std::min(nearest[t], squared_distance(rows[t], newest));
    }
    for (const std::int64_t t : chosen) nearest[static_cast<std::size_t>(t)] = -1;  // never twice
    chosen.push_back(std::max_element(nearest.begin(), nearest.end()) - nearest.begin());
  }
  return chosen;
}

/// Tokens that a rule keeps, per row group: `rows` are one query head's queries (`lowest_cosine`) or the group's mean
/// unit queries (all others). Call it only where the chunk has more tokens than the rule keeps.
inline std::vector<std::int64_t> choose_rows(const queries::lowest_cosine& rule, const vector_list& rows,
                                             std::int64_t) {
  return lowest_cosine_rows(rows, rule.n);
}
inline std::vector<std::int64_t> choose_rows(const queries::group_lowest_cosine& rule, const vector_list& rows,
                                             std::int64_t) {
  return lowest_cosine_rows(rows, rule.n);
}
inline std::vector<std::int64_t> choose_rows(const queries::farthest_point& rule, const vector_list& rows,
                                             std::int64_t) {
  return farthest_point_rows(rows, rule.n);
}
inline std::vector<std::int64_t> choose_rows(const queries::random& rule, const vector_list& rows, std::int64_t Tk) {
  std::vector<std::int32_t> tokens(rows.size());
  queries::choose(rule, static_cast<std::int64_t>(rows.size()), Tk, tokens.data());
  return {tokens.begin(), tokens.begin() + rule.n};
}
inline std::vector<std::int64_t> choose_rows(const queries::newest& rule, const vector_list& rows, std::int64_t) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(rule.n));
  std::iota(tokens.begin(), tokens.end(), static_cast<std::int64_t>(rows.size()) - rule.n);
  return tokens;
}
inline std::vector<std::int64_t> choose_rows(const queries::all&, const vector_list& rows, std::int64_t) {
  std::vector<std::int64_t> tokens(rows.size());
  std::iota(tokens.begin(), tokens.end(), std::int64_t{0});
  return tokens;
}

/// Steps 1 to 3: `qbar [n][D]` of one KV head.
template <class Queries>
vector_list choose_queries(const Queries& rule, const attention_args& args, const attention_sequence& sequence,
                           std::int64_t head) {
  const std::int64_t G = group_size(args), kept = queries::kept(rule, sequence.Tq);
  const bool choose = kept < sequence.Tq;
  std::vector<vector_list> units;  // [G][n or Tq][D]
  for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
    const vector_list raw = queries_of(args, sequence, h);
    vector_list rows;
    if (choose && queries::per_query_head<Queries>) {
      for (const std::int64_t t : choose_rows(rule, raw, sequence.Tk()))
        rows.push_back(unit(raw[static_cast<std::size_t>(t)]));
    } else {
      for (const auto& row : raw) rows.push_back(unit(row));
    }
    units.push_back(rows);
  }
  vector_list qbar;
  for (std::size_t slot = 0; slot < units.front().size(); ++slot) {
    vector_list group;
    for (const auto& rows : units) group.push_back(rows[slot]);
    qbar.push_back(mean(group));
  }
  if (!choose || queries::per_query_head<Queries>) return qbar;
  vector_list chosen;
  for (const std::int64_t t : choose_rows(rule, qbar, sequence.Tk()))
    chosen.push_back(qbar[static_cast<std::size_t>(t)]);
  return chosen;
}

inline double combine(reduce::max, const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}
inline double combine(reduce::mean, const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Step 4: the score of the key in `slot`.
template <class Queries, class Similarity, class Reduce>
double score_key(const quoka<Queries, Similarity, Reduce>& policy, const attention_sequence& sequence,
                 std::int64_t head, std::int64_t slot, const vector_list& qbar) {
  const kv_view& kv = *sequence.kv;
  std::vector<double> key;
  const std::int64_t row = kv.row_offset(kv.k, head, slot);
  for (std::int64_t d = 0; d < kv.k.dim; ++d) {
    key.push_back(static_cast<double>(load_element(kv.k.data, kv.k.type, row + d)));
  }
  if (std::is_same_v<Similarity, similarity::cosine>) key = unit(key);
  std::vector<double> values;
  for (const auto& query : qbar) values.push_back(dot(query, key));
  return combine(policy.reduce, values);
}

/// Past slots of one head that some query of the chunk may see.
inline std::vector<std::int64_t> candidates(const attention_args& args, const attention_sequence& sequence,
                                            std::int64_t head) {
  const kv_view& kv = *sequence.kv;
  const std::int64_t past = kv.length(head) - sequence.Tq;
  std::vector<std::int64_t> slots;
  for (std::int64_t slot = 0; slot < past; ++slot) {
    bool seen = false;
    for (std::int64_t t = 0; t < sequence.Tq && !seen; ++t) {
      seen = args.mask.visible(kv.position(head, past + t), kv.position(head, slot));
    }
    if (seen) slots.push_back(slot);
  }
  return slots;
}

/// Step 5: of `slots`, the sinks (lowest positions), the recent (highest) and the highest scores, `keep.keys(Tk)` in all;
/// ascending by slot. `scores [slots.size()]`.
inline std::vector<std::int64_t> top_k(const retention& keep, const attention_sequence& sequence, std::int64_t head,
                                       const std::vector<std::int64_t>& slots, const std::vector<double>& scores) {
  const kv_view& kv = *sequence.kv;
  const std::size_t budget = static_cast<std::size_t>(keep.keys(kv.length(head) - sequence.Tq));
  if (slots.size() <= budget) return slots;
  std::vector<std::size_t> order(slots.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return kv.position(head, slots[a]) < kv.position(head, slots[b]);
  });
  std::vector<int> tier(slots.size(), 0);  // 1: kept whatever its score
  for (std::size_t i = 0; i < static_cast<std::size_t>(keep.sinks); ++i) tier[order[i]] = 1;
  for (std::size_t i = 0; i < static_cast<std::size_t>(keep.recent); ++i) tier[order[order.size() - 1 - i]] = 1;
  const auto above = [](double a, double b) { return std::isnan(b) ? !std::isnan(a) : a > b; };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {  // keeps equals by position
    return tier[a] != tier[b] ? tier[a] > tier[b] : above(scores[a], scores[b]);
  });
  std::vector<std::int64_t> kept;
  for (std::size_t i = 0; i < budget; ++i) kept.push_back(slots[order[i]]);
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// All stages for one KV head: the past slots that the chunk reads, ascending.
template <class Queries, class Similarity, class Reduce>
std::vector<std::int64_t> select(const quoka<Queries, Similarity, Reduce>& policy, const attention_args& args,
                                 const attention_sequence& sequence, std::int64_t head) {
  const auto slots = candidates(args, sequence, head);
  if (sequence.Tq == 0) return slots;
  const vector_list qbar = choose_queries(policy.queries, args, sequence, head);
  std::vector<double> scores;
  for (const std::int64_t slot : slots) scores.push_back(score_key(policy, sequence, head, slot, qbar));
  return top_k(policy.keep, sequence, head, slots, scores);
}

/// `sink_window`: equal scores, everything beyond the sinks recent.
inline std::vector<std::int64_t> select(const sink_window& policy, const attention_args& args,
                                        const attention_sequence& sequence, std::int64_t head) {
  const auto slots = candidates(args, sequence, head);
  retention keep = policy.keep;
  keep.recent = keep.keys(sequence.kv->length(head) - sequence.Tq) - keep.sinks;
  return top_k(keep, sequence, head, slots, std::vector<double>(slots.size(), 0.0));
}

}  // namespace reference
}  // namespace v0_2
}  // namespace skim
