// SPDX-License-Identifier: Apache-2.0
/// \file Scores for engines whose caches cannot differ per KV head or per token: means over heads, layers and pages.
#pragma once

#include <skim/cpu/evictor.hpp>
#include <skim/cpu/kernel/attend_tile.hpp>
#include <skim/cpu/kernel/top_k.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// pooled [1, n] = mean over the rows of scores [rows, n].
template <class Executor>
void pool_rows(tensor_view<const float, 2> scores, tensor_view<float, 2> pooled, const Executor& executor) {
  constexpr std::int64_t piece = 4096;
  const std::int64_t n = pooled.extents[1], rows = scores.extents[0];
  const float share = 1 / static_cast<float>(greater(rows, 1));
  executor.parallel_for((n + piece - 1) / piece, [&](std::int64_t unit, unsigned) {
    for (std::int64_t slot = unit * piece; slot < smaller(n, (unit + 1) * piece); ++slot) {
      float sum = 0;
      for (std::int64_t row = 0; row < rows; ++row) sum += *scores.at(row, slot);
      *pooled.at(0, slot) = sum * share;
    }
  });
}

/// by_page [ceil(n / page_size)] = mean of the scores [n] of each page's tokens.
SKIM_INLINE void pool_pages(const float* scores, std::int64_t n, std::int64_t page_size, float* by_page) {
  for (std::int64_t page = 0; page * page_size < n; ++page) {
    const std::int64_t end = smaller((page + 1) * page_size, n);
    float sum = 0;
    for (std::int64_t slot = page * page_size; slot < end; ++slot) sum += scores[slot];
    by_page[page] = sum / static_cast<float>(end - page * page_size);
  }
}

SKIM_INLINE std::int64_t pages_of(std::int64_t tokens, std::int64_t page_size) {
  return (tokens + page_size - 1) / page_size;
}

/// The last pages that hold the `recent` newest of n tokens and, if there is one, the page that is not full.
SKIM_INLINE std::int64_t recent_pages(std::int64_t recent, std::int64_t n, std::int64_t page_size) {
  const std::int64_t unfilled = n % page_size;
  return unfilled == 0 ? pages_of(recent, page_size) : 1 + pages_of(greater(recent - unfilled, 0), page_size);
}

/// Writes the slots of the pages that stay: as many as the budget holds, those that hold sinks and recent tokens (in slot
/// order) and a last one that is not full among them. Returns the number of slots.
SKIM_INLINE std::int64_t keep_pages(const kv_view& kv, const retention& keep, const float* scores, float* by_page,
                                    bool later, const top_k_scratch& scratch, std::int32_t* list) {
  const std::int64_t n = kv.tokens, pages = pages_of(n, kv.page_size);
  pool_pages(scores, n, kv.page_size, by_page);
  for (std::int64_t page = 0; page < pages; ++page) scratch.ranks[page] = rank_bits(by_page[page]);
  const retention of_pages = retention::budget(keep.count / kv.page_size, pages_of(keep.sinks, kv.page_size),
                                               recent_pages(keep.recent, n, kv.page_size));
  kv_view in_order;  // pages know no positions: they age in the order of slots
  const std::int64_t kept = keep_ranked(in_order, 0, pages, pages, of_pages, of_pages.count, later, scratch, list);
  // From the last page on, so that a page's number is read before slots take its place.
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < kept; ++i) count += smaller(kv.page_size, n - list[i] * kv.page_size);
  for (std::int64_t i = kept - 1, end = count; i >= 0; --i) {
    const std::int64_t first = list[i] * kv.page_size, tokens = smaller(kv.page_size, n - first);
    end -= tokens;
    for (std::int64_t t = tokens - 1; t >= 0; --t) list[end + t] = static_cast<std::int32_t>(first + t);
  }
  return count;
}

}  // namespace detail

/// pooled [1, n] = mean over all rows of scores [rows, n]: of a layer's heads, or of all heads of several layers whose
/// scores stand one after another. For `eviction::keep` with `share_heads`.
template <class Executor>
report pool_scores(tensor_view<const float, 2> scores, tensor_view<float, 2> pooled, const Executor& executor) {
  if (report r =
          detail::check_tensor(scores, {"scores.extents[0]", "scores.extents[1]", "scores.strides[1]", "scores.data"});
      !r) {
    return r;
  }
  if (report r =
          detail::check_tensor(pooled, {"pooled.extents[0]", "pooled.extents[1]", "pooled.strides[1]", "pooled.data"});
      !r) {
    return r;
  }
  if (pooled.extents[0] != 1) return detail::fault(status::bad_extent, "pooled.extents[0]", pooled.extents[0], 1);
  if (pooled.extents[1] != scores.extents[1]) {
    return detail::fault(status::bad_extent, "pooled.extents[1]", pooled.extents[1], scores.extents[1]);
  }
  if (scores.extents[0] == 0) return detail::fault(status::bad_extent, "scores.extents[0]", 0, 1, "at least");
  detail::pool_rows(scores, pooled, executor);
  return {};
}

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
