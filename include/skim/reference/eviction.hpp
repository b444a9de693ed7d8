// SPDX-License-Identifier: Apache-2.0
/// \file Which tokens stay, and where they stand afterwards, in plain double loops. The scores are in a file per method.
/// Allocates.
#pragma once

#include <skim/eviction.hpp>
#include <skim/reference/vectors.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// Slots of a head by ascending position.
inline std::vector<std::size_t> by_position(const kv_view& kv, std::int64_t head) {
  std::vector<std::size_t> order(static_cast<std::size_t>(kv.length(head)));
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return kv.position(head, static_cast<std::int64_t>(a)) < kv.position(head, static_cast<std::int64_t>(b));
  });
  return order;
}

/// `smoothed` in order of position. `scores [n]`, by slot.
inline std::vector<double> smoothed_by_position(const kv_view& kv, std::int64_t head, const std::vector<double>& scores,
                                                std::int64_t width) {
  const std::vector<std::size_t> order = by_position(kv, head);
  std::vector<double> ordered, answer(scores.size());
  for (const std::size_t slot : order) ordered.push_back(scores[slot]);
  ordered = smoothed(ordered, width);
  for (std::size_t i = 0; i < order.size(); ++i) answer[order[i]] = ordered[i];
  return answer;
}

/// Tokens that stay whatever their score: the `sinks` lowest positions and the `recent` highest.
inline std::vector<bool> protected_tokens(const kv_view& kv, std::int64_t head, const retention& keep) {
  const std::vector<std::size_t> order = by_position(kv, head);
  const std::int64_t n = static_cast<std::int64_t>(order.size());
  std::vector<bool> stays(order.size(), false);
  for (std::int64_t i = 0; i < n; ++i) {
    if (i < keep.sinks || i >= n - keep.recent) stays[order[static_cast<std::size_t>(i)]] = true;
  }
  return stays;
}

/// True where the first of two scores ranks higher: NaN below everything, -0 = +0.
inline bool ranks_above(double a, double b) {
  return std::isnan(b) ? !std::isnan(a) : a > b;
}

enum class ties { earlier, later };  ///< which of equal scores stays, by position

/// The slots of one head that stay, ascending: `keep.sinks` lowest and `keep.recent` highest positions, and of the others
/// the highest scores, `keep.count` in all; everything where there is no more. `scores [n]`.
inline std::vector<std::int64_t> keep_tokens(const kv_view& kv, std::int64_t head, const retention& keep,
                                             const std::vector<double>& scores, ties prefer) {
  std::vector<std::size_t> order = by_position(kv, head);
  if (prefer == ties::later) std::reverse(order.begin(), order.end());
  if (static_cast<std::int64_t>(order.size()) > keep.count) {
    const std::vector<bool> stays = protected_tokens(kv, head, keep);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return stays[a] != stays[b] ? stays[a] > stays[b] : !stays[a] && ranks_above(scores[a], scores[b]);
    });
    order.resize(static_cast<std::size_t>(keep.count));
  }
  std::vector<std::int64_t> kept(order.begin(), order.end());
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// As `keep_tokens` for whole pages of a cache whose heads hold the same tokens: a page scores the mean of its tokens.
/// Pages with one of the first `keep.sinks` or last `keep.recent` slots stay, and a last page that is not full.
inline std::vector<std::int64_t> keep_pages(const kv_view& kv, const retention& keep, const std::vector<double>& scores,
                                            ties prefer) {
  const std::int64_t n = kv.tokens, pages = (n + kv.page_size - 1) / kv.page_size;
  std::vector<double> means(static_cast<std::size_t>(pages), 0.0);
  std::vector<bool> stays(means.size(), false);
  for (std::int64_t slot = 0; slot < n; ++slot) {
    const std::size_t page = static_cast<std::size_t>(slot / kv.page_size);
    const std::int64_t begin = slot / kv.page_size * kv.page_size, size = (std::min)(kv.page_size, n - begin);
    means[page] += scores[static_cast<std::size_t>(slot)] / static_cast<double>(size);
    if (slot < keep.sinks || slot >= n - keep.recent || size < kv.page_size) stays[page] = true;
  }
  std::vector<std::size_t> order(means.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (prefer == ties::later) std::reverse(order.begin(), order.end());
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return stays[a] != stays[b] ? stays[a] > stays[b] : !stays[a] && ranks_above(means[a], means[b]);
  });
  order.resize(static_cast<std::size_t>((std::min)(keep.count / kv.page_size, pages)));
  std::sort(order.begin(), order.end());
  std::vector<std::int64_t> kept;
  for (const std::size_t page : order) {
    const std::int64_t begin = static_cast<std::int64_t>(page) * kv.page_size;
    for (std::int64_t slot = begin; slot < (std::min)(begin + kv.page_size, n); ++slot) kept.push_back(slot);
  }
  return kept;
}

/// `[n]`: (rank / n)^16 of each score, its rank being how many of them are not above it; NaN is lowest.
inline std::vector<double> sharpened_ranks(const std::vector<double>& scores) {
  std::vector<double> ranks(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    double rank = 0;
    for (const double other : scores) rank += std::isnan(other) || other <= scores[i];
    ranks[i] = std::pow(rank / static_cast<double>(scores.size()), 16);
  }
  return ranks;
}

/// `[n]`: the mean over rows `[heads][n]`.
inline std::vector<double> pool_heads(const vector_list& scores) {
  return mean(scores);
}

/// After compaction the token in slot `i` is the one that stood in slot `answer[i]` of `kept`, ascending. `refill`: those
/// behind the new length fill the holes before it, in order.
inline std::vector<std::int64_t> slots_after(compaction how, const std::vector<std::int64_t>& kept) {
  if (how != compaction::refill) return kept;
  const std::int64_t count = static_cast<std::int64_t>(kept.size());
  std::vector<std::int64_t> sources(kept.size(), -1), movers;
  for (const std::int64_t slot : kept) {
    if (slot < count) sources[static_cast<std::size_t>(slot)] = slot;
    if (slot >= count) movers.push_back(slot);
  }
  std::size_t next = 0;
  for (std::int64_t& slot : sources) {
    if (slot < 0) slot = movers[next++];
  }
  return sources;
}

}}}  // namespace skim::v0_2::reference
