// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA in plain double loops, one function per stage, so that a kernel can be compared stage by stage: Algorithm 1 of
/// the paper (arXiv 2602.08722) and what our rule shares with it; the rest of ours is in needed_queries.hpp. One block of
/// rows (see `index_lists`), one KV head at a time. Allocates.
#pragma once

#include <skim/attention.hpp>
#include <skim/reference/attention.hpp>
#include <skim/reference/needed_queries.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/retention.hpp>
#include <skim/selector/queries.hpp>
#include <skim/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/view.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// The block's queries of one query head, `[Tq][D]`.
inline vector_list queries_of(const attention_args& args, const attention_sequence& block, std::int64_t h) {
  vector_list rows;
  for (std::int64_t t = 0; t < block.Tq; ++t) rows.push_back(query_of(args, block, t, h));
  return rows;
}

/// The `n` rows of lowest cosine to the rows' mean, by ascending cosine, ties to the lower row; those with an infinity or
/// NaN last.
inline std::vector<std::int64_t> lowest_cosine_rows(const vector_list& rows, std::int64_t n) {
  const std::vector<double> center = finite_mean(rows);
  std::vector<double> score;
  for (const auto& row : rows) {
    score.push_back(is_finite(row) ? cosine(row, center) : std::numeric_limits<double>::infinity());
  }
  std::vector<std::int64_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return score[static_cast<std::size_t>(a)] < score[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(n));
  return order;
}

/// Greedy k-center in L2 from the row of lowest cosine; in the order of choice, ties to the lower row, rows with an infinity
/// or NaN last.
inline std::vector<std::int64_t> farthest_point_rows(const vector_list& rows, std::int64_t n) {
  std::vector<std::int64_t> chosen = lowest_cosine_rows(rows, 1);
  std::vector<double> nearest(rows.size(), std::numeric_limits<double>::infinity());
  while (static_cast<std::int64_t>(chosen.size()) < n) {
    const auto& newest = rows[static_cast<std::size_t>(chosen.back())];
    for (std::size_t t = 0; t < rows.size(); ++t) {
      nearest[t] = is_finite(rows[t]) ? (std::min)(nearest[t], squared_distance(rows[t], newest)) : -0.5;
    }
    for (const std::int64_t t : chosen) nearest[static_cast<std::size_t>(t)] = -1;  // never twice
    chosen.push_back(std::max_element(nearest.begin(), nearest.end()) - nearest.begin());
  }
  return chosen;
}

/// Tokens that a rule keeps: `rows` are one query head's queries (`lowest_cosine`) or the group's mean unit queries (all
/// others). Call it only where the block has more tokens than the rule keeps.
inline std::vector<std::int64_t> choose_rows(const query_rule& rule, const vector_list& rows, std::int64_t Tk) {
  const std::int64_t Tq = static_cast<std::int64_t>(rows.size());
  std::vector<std::int64_t> tokens(rows.size());
  std::iota(tokens.begin(), tokens.end(), std::int64_t{0});
  switch (rule.choice) {
    case query_choice::lowest_cosine:
    case query_choice::group_lowest_cosine:
      return lowest_cosine_rows(rows, rule.n);
    case query_choice::farthest_point:
      return farthest_point_rows(rows, rule.n);
    case query_choice::random: {
      std::vector<std::int32_t> drawn(rows.size());
      queries::draw_rows(rule, Tq, Tk, drawn.data());
      return {drawn.begin(), drawn.begin() + rule.n};
    }
    case query_choice::newest:
      return {tokens.end() - rule.n, tokens.end()};
    case query_choice::all:
    case query_choice::needed:  // not a choice among means
      break;
  }
  return tokens;
}

/// The mean of a group's unit queries, those with an infinity or NaN counting as zeros; NaN if all are such.
inline std::vector<double> group_mean(const vector_list& units) {
  return std::any_of(units.begin(), units.end(), is_finite) ? finite_mean(units) : mean(units);
}

/// Steps 1 to 3: `qbar [n][D]` of one KV head.
inline vector_list choose_queries(const query_rule& rule, const attention_args& args, const attention_sequence& block,
                                  std::int64_t head) {
  const std::int64_t G = group_size(args);
  const bool choose = rule.kept(block.Tq, G) < block.Tq;
  std::vector<vector_list> units;  // [G][n or Tq][D]
  for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
    const vector_list raw = queries_of(args, block, h);
    vector_list rows;
    if (choose && rule.per_query_head()) {
      for (const std::int64_t t : choose_rows(rule, raw, block.Tk()))
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
    qbar.push_back(group_mean(group));
  }
  if (!choose || rule.per_query_head()) return qbar;
  vector_list chosen;
  for (const std::int64_t t : choose_rows(rule, qbar, block.Tk())) chosen.push_back(qbar[static_cast<std::size_t>(t)]);
  return chosen;
}

/// Past slots of one head that the mask lets some query of the block see.
inline std::vector<std::int64_t> candidates(const attention_args& args, const attention_sequence& block,
                                            std::int64_t head) {
  std::vector<std::int64_t> slot_ids;
  for (std::int64_t slot = 0; slot < block.past(head); ++slot) {
    bool seen = false;
    for (std::int64_t t = 0; t < block.Tq && !seen; ++t) {
      seen = args.mask.visible(query_position(block, head, t), block.kv.position(head, slot));
    }
    if (seen) slot_ids.push_back(slot);
  }
  return slot_ids;
}

/// The same by ascending position.
inline std::vector<std::int64_t> candidates_in_order(const attention_args& args, const attention_sequence& block,
                                                     std::int64_t head) {
  std::vector<std::int64_t> slot_ids = candidates(args, block, head);
  std::stable_sort(slot_ids.begin(), slot_ids.end(), [&](std::int64_t a, std::int64_t b) {
    return block.kv.position(head, a) < block.kv.position(head, b);
  });
  return slot_ids;
}

/// Steps 1 to 3 of any rule: the queries that score. `slot_ids`: the candidates, in order of position.
inline vector_list scoring_queries(const quoka& policy, const attention_args& args, const attention_sequence& block,
                                   std::int64_t head, const std::vector<std::int64_t>& slot_ids) {
  vector_list queries = policy.queries.rows == query_rows::own
                            ? choose_own_queries(policy.queries, args, block, head, slot_ids)
                            : choose_queries(policy.queries, args, block, head);
  if (policy.similarity == similarity::standardised) return rounded_for(block.kv.k.type, queries);
  if (policy.queries.rows != query_rows::own || policy.similarity != similarity::cosine) return queries;
  for (auto& query : queries) query = unit(query);
  return queries;
}

/// Step 4: the score of the key in `slot`.
inline double score_key(const quoka& policy, const attention_sequence& block, std::int64_t head, std::int64_t slot,
                        const vector_list& qbar) {
  std::vector<double> key = row_of(block.kv, block.kv.k, head, slot);
  if (policy.similarity == similarity::cosine) key = unit(key);
  std::vector<double> values;
  for (const auto& query : qbar) {
    if (is_finite(query)) values.push_back(dot(query, key));
  }
  if (values.empty()) values.push_back(dot(std::vector<double>(key.size(), 0.0), key));
  if (policy.reduce == reduction::max) return *std::max_element(values.begin(), values.end());
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Step 4 and what follows it: the scores of the candidates, in order of position, before they are smoothed. Standardised
/// ones where no query scores: by age, the newest 0.
inline std::vector<double> raw_scores(const quoka& policy, const attention_sequence& block, std::int64_t head,
                                      const vector_list& queries, const std::vector<std::int64_t>& slot_ids) {
  std::vector<double> scores;
  if (policy.similarity != similarity::standardised) {
    for (const std::int64_t slot : slot_ids) scores.push_back(score_key(policy, block, head, slot, queries));
    return scores;
  }
  vector_list finite;
  for (const auto& query : queries) {
    if (is_finite(query)) finite.push_back(query);
  }
  const std::vector<moments> of = moments_of_queries(block, head, finite, slot_ids);
  const bool some = std::any_of(of.begin(), of.end(), [](const moments& m) { return m.deviation > 0; });
  for (std::size_t i = 0; i < slot_ids.size(); ++i) {
    const auto key = row_of(block.kv, block.kv.k, head, slot_ids[i]);
    scores.push_back(some ? standardised_score(key, finite, of)
                          : static_cast<double>(i + 1) - static_cast<double>(slot_ids.size()));
  }
  return scores;
}

/// The scores as they rank.
inline std::vector<double> final_scores(const quoka& policy, const std::vector<double>& raw) {
  return policy.smooth > 1 ? smoothed(raw, policy.smooth) : raw;
}

/// Step 5: of `slots`, the sinks (lowest positions), the recent (highest) and the highest scores, `keep.keys(Tk)` in all;
/// ascending by slot. `scores [slots.size()]`.
inline std::vector<std::int64_t> top_k(const retention& given, const attention_sequence& block, std::int64_t head,
                                       const std::vector<std::int64_t>& slot_ids, const std::vector<double>& scores) {
  const kv_view& kv = block.kv;
  const retention keep = given.among(block.past(head));
  const std::size_t budget = static_cast<std::size_t>(keep.keys(block.past(head)));
  if (slot_ids.size() <= budget) return slot_ids;
  std::vector<std::size_t> order(slot_ids.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return kv.position(head, slot_ids[a]) < kv.position(head, slot_ids[b]);
  });
  std::vector<int> tier(slot_ids.size(), 0);  // 1: kept whatever its score
  for (std::size_t i = 0; i < static_cast<std::size_t>(keep.sinks); ++i) tier[order[i]] = 1;
  for (std::size_t i = 0; i < static_cast<std::size_t>(keep.recent); ++i) tier[order[order.size() - 1 - i]] = 1;
  const auto above = [](double a, double b) { return std::isnan(b) ? !std::isnan(a) : a > b; };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {  // keeps equals by position
    return tier[a] != tier[b] ? tier[a] > tier[b] : above(scores[a], scores[b]);
  });
  std::vector<std::int64_t> kept;
  for (std::size_t i = 0; i < budget; ++i) kept.push_back(slot_ids[order[i]]);
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// Whether a block reads everything behind it, also what its mask hides. `measured`: a back-end's crossing.
inline bool lists_all(const retention& keep, const attention_sequence& block, dense_crossing measured) {
  return block.Tq > 0 && runs_dense(keep, block.Tk(), block.Tq, measured);
}

inline std::vector<std::int64_t> all_past(const attention_sequence& block, std::int64_t head) {
  std::vector<std::int64_t> slot_ids(static_cast<std::size_t>(block.past(head)));
  std::iota(slot_ids.begin(), slot_ids.end(), std::int64_t{0});
  return slot_ids;
}

/// All stages for one KV head: the past slots that the block reads, ascending.
inline std::vector<std::int64_t> select(const quoka& policy, const attention_args& args,
                                        const attention_sequence& block, std::int64_t head,
                                        dense_crossing measured = {}) {
  if (lists_all(policy.keep, block, measured)) return all_past(block, head);
  if (block.Tq == 0) return candidates(args, block, head);
  const auto slot_ids = candidates_in_order(args, block, head);
  const vector_list queries = scoring_queries(policy, args, block, head, slot_ids);
  const auto scores = final_scores(policy, raw_scores(policy, block, head, queries, slot_ids));
  return top_k(policy.keep, block, head, slot_ids, scores);
}

/// `sink_window`: equal scores, everything beyond the sinks recent.
inline std::vector<std::int64_t> select(const sink_window& policy, const attention_args& args,
                                        const attention_sequence& block, std::int64_t head,
                                        dense_crossing measured = {}) {
  if (lists_all(policy.keep, block, measured)) return all_past(block, head);
  const auto slot_ids = candidates(args, block, head);
  retention keep = policy.keep.among(block.past(head));
  keep.recent = keep.keys(block.past(head)) - keep.sinks;
  return top_k(keep, block, head, slot_ids, std::vector<double>(slot_ids.size(), 0.0));
}

}}}  // namespace skim::v0_2::reference
