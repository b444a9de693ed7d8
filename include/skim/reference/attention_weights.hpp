// SPDX-License-Identifier: Apache-2.0
/// \file The attention weights that H2O, TOVA and SnapKV sum, in plain double loops, one function per stage. One KV head at a
/// time; vectors over tokens are in the order of slots. Allocates.
#pragma once

#include <skim/evictor/h2o.hpp>
#include <skim/evictor/snapkv.hpp>
#include <skim/evictor/tova.hpp>
#include <skim/reference/attention.hpp>
#include <skim/reference/eviction.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// The softmax weights `[n]` that query `t`, head `h` gives to its KV head's tokens, by the row's log-sum-exp. Keys that
/// are masked or were not read, by the list of the query's block, have weight 0, as have all keys of a row that saw none, or that is lost to a NaN.
inline std::vector<double> attention_weights(const attention_args& args, const index_lists* read, std::int64_t t,
                                             std::int64_t h, double lse) {
  const attention_sequence sequence = sequence_at(args, 0);
  const kv_view& kv = sequence.kv;
  const std::int64_t head = h / group_size(args);
  std::vector<double> weights(static_cast<std::size_t>(kv.length(head)), 0.0);
  if (!std::isfinite(lse)) return weights;
  const std::int64_t block_rows = read ? read->block_rows : 0, b = block_rows > 0 ? t / block_rows : 0;
  for (const std::int64_t slot : slots_read(block_of(sequence, b, block_rows), b, head, read)) {
    if (!sees(args, sequence, t, h, slot)) continue;
    const double logit = reference::logit(args, sequence, t, h, slot);
    const bool nothing = logit == -std::numeric_limits<double>::infinity();
    weights[static_cast<std::size_t>(slot)] = nothing ? 0 : std::exp(logit - lse);
  }
  return weights;
}

/// Weights `[n]` from the queries `first` to the last, summed over them, meaned over the group's query heads.
inline std::vector<double> group_weights(const eviction_args& args, std::int64_t head, std::int64_t first) {
  const attention_args call = attended_call(args);
  const std::int64_t G = group_size(call);
  std::vector<double> sums(static_cast<std::size_t>(call.kv.length(head)), 0.0);
  for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
    for (std::int64_t t = first; t < args.new_tokens; ++t) {
      const double lse = static_cast<double>(*call.lse.at(t, h));
      const std::vector<double> row = attention_weights(call, args.read, t, h, lse);
      for (std::size_t slot = 0; slot < sums.size(); ++slot) sums[slot] += row[slot] / static_cast<double>(G);
    }
  }
  return sums;
}

/// What a policy knows of a head's tokens `[n]` after the chunk; `before [n - Tq]`: what it knew. An empty chunk changes
/// nothing.
inline std::vector<double> observe(const h2o&, const eviction_args& args, std::int64_t head,
                                   std::vector<double> before) {
  std::vector<double> sums = group_weights(args, head, 0);
  for (std::size_t slot = 0; slot < before.size(); ++slot) sums[slot] += before[slot];
  return sums;
}

inline std::vector<double> observe(const tova&, const eviction_args& args, std::int64_t head,
                                   std::vector<double> before) {
  return args.new_tokens == 0 ? before : group_weights(args, head, args.new_tokens - 1);
}

inline std::vector<double> observe(const snapkv& policy, const eviction_args& args, std::int64_t head,
                                   std::vector<double> before) {
  if (args.new_tokens == 0) return before;
  const std::int64_t rows = (std::min)(policy.window, args.new_tokens);
  std::vector<double> weights = group_weights(args, head, args.new_tokens - rows);
  for (double& weight : weights) weight /= static_cast<double>(rows);
  return weights;
}

inline std::vector<double> score(const h2o&, const kv_view&, std::int64_t, const std::vector<double>& sums) {
  return sums;
}
inline std::vector<double> score(const tova&, const kv_view&, std::int64_t, const std::vector<double>& weights) {
  return weights;
}
/// Average-pooled in the order of positions, zeros beyond the ends.
inline std::vector<double> score(const snapkv& policy, const kv_view& kv, std::int64_t head,
                                 const std::vector<double>& weights) {
  const std::vector<std::size_t> order = by_position(kv, head);
  const std::int64_t n = static_cast<std::int64_t>(order.size()), reach = policy.pool / 2;
  std::vector<double> pooled(order.size(), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (std::int64_t j = std::max<std::int64_t>(i - reach, 0); j <= (std::min)(i + reach, n - 1); ++j) {
      sum += weights[order[static_cast<std::size_t>(j)]];
    }
    pooled[order[static_cast<std::size_t>(i)]] = sum / static_cast<double>(policy.pool);
  }
  return pooled;
}

}}}  // namespace skim::v0_2::reference
