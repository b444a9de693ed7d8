// SPDX-License-Identifier: Apache-2.0
/// \file The steps of an eviction that are the same for all evictors: smoothing scores, and choosing the slots that stay.
#pragma once

#include <skim/cpu/kernel/position_order.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/eviction.hpp>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// pooled [1, n] = mean over the rows of scores [rows, n].
SKIM_NOINLINE inline void pool_rows(tensor_view<const float, 2> scores, tensor_view<float, 2> pooled,
                                    executor_ref executor) {
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
SKIM_INLINE std::int64_t choose_pages(const kv_view& kv, const retention& keep, const float* scores, float* by_page,
                                      bool later, const rank_scratch& scratch, std::int32_t* list) {
  const std::int64_t n = kv.tokens, pages = pages_of(n, kv.page_size);
  pool_pages(scores, n, kv.page_size, by_page);
  rank_scores(by_page, pages, scratch.ranks);
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

/// What an evictor says of it.
struct choice_rule {
  retention keep;
  bool prefers_later;  // of equal scores
};

/// Scratch: pooled scores, then what each worker needs to choose.
struct choice_scratch {
  float *pooled, *by_page;  // [n] each, with `share_heads`
  char* workers;            // [workers]: pieces of `piece_bytes`
  std::size_t piece_bytes;

  choice_scratch(arena& arena, const eviction_args& args, unsigned count) {
    const std::int64_t n = args.share_heads ? args.kv.tokens : 0;
    pooled = arena.take<float>(n);
    by_page = arena.take<float>(n);
    detail::arena piece;
    rank_scratch(piece, args.kv.tokens);
    piece_bytes = piece.used();
    workers = arena.take<char>(saturated(static_cast<std::int64_t>(piece_bytes), count));
  }
};

inline std::size_t choice_bytes(const eviction_args& args, unsigned workers) {
  arena arena;
  choice_scratch(arena, args, workers);
  return arena.used();
}

/// No head is over its budget.
inline bool fits(const eviction_args& args, const retention& keep) {
  for (std::int64_t head = 0; head < args.kv.heads; ++head) {
    if (args.kv.length(head) > kept_of_head(keep, args, head).count) return false;
  }
  return true;
}

/// The list of one row. `by_page`: scratch.
SKIM_NOINLINE inline std::int64_t choose_row(const eviction_args& args, const choice_rule& rule, std::int64_t row,
                                             const float* scores, const rank_scratch& scratch, float* by_page,
                                             std::int32_t* list) {
  const kv_view kv = args.kv;
  const retention keep = kept_of_head(rule.keep, args, row);
  if (args.how == compaction::pages) return choose_pages(kv, keep, scores, by_page, rule.prefers_later, scratch, list);
  const std::int64_t n = kv.length(row);
  rank_scores(scores, n, scratch.ranks);
  return keep_ranked(kv, row, n, n, keep, keep.count, rule.prefers_later, scratch, list);
}

inline void choose_highest(const eviction_args& args, const choice_rule& rule, tensor_view<const float, 2> scores,
                           const index_lists& lists, memory workspace, executor_ref executor) {
  arena arena(workspace.data);
  const choice_scratch shared(arena, args, executor.concurrency());
  if (args.share_heads && scores.extents[0] > 1) {
    const tensor_view<float, 2> pooled(shared.pooled, {1, args.kv.tokens});
    pool_rows(scores, pooled, executor);
    scores = pooled;
  }
  executor.parallel_for(list_rows(args), [&](std::int64_t row, unsigned worker) {
    detail::arena piece(worker_piece(shared.workers, shared.piece_bytes, worker));
    const rank_scratch scratch(piece, args.kv.tokens);
    lists.counts[row] =
        static_cast<std::int32_t>(choose_row(args, rule, row, scores.at(row), scratch, shared.by_page, lists.row(row)));
  });
}

/// The scores of a policy that tells no token from another.
inline void score_alike(const eviction_args& args, const tensor_view<float, 2>& scores, executor_ref executor) {
  executor.parallel_for(args.kv.heads, [&](std::int64_t head, unsigned) {
    for (std::int64_t slot = 0; slot < args.kv.length(head); ++slot) *scores.at(head, slot) = 0;
  });
}

/// Lists every token.
inline void choose_everything(const eviction_args& args, const index_lists& lists, executor_ref executor) {
  executor.parallel_for(list_rows(args), [&](std::int64_t row, unsigned) {
    const std::int64_t n = args.kv.length(row);
    for (std::int64_t slot = 0; slot < n; ++slot) lists.row(row)[slot] = static_cast<std::int32_t>(slot);
    lists.counts[row] = static_cast<std::int32_t>(n);
  });
}

/// Scratch of `smooth_tokens`.
inline std::size_t smooth_bytes(const eviction_args& args, unsigned workers) {
  arena arena;
  arena.take<char>(saturated(static_cast<std::int64_t>(order_bytes(args.kv.tokens)), workers));
  return arena.used();
}

/// Smooths an evictor's scores [Hk, n], head by head in order of position.
inline void smooth_tokens(const eviction_args& args, std::int64_t width, const tensor_view<float, 2>& scores,
                          void* workspace, executor_ref executor) {
  const kv_view kv = args.kv;
  const std::size_t bytes = order_bytes(kv.tokens);
  executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
    smooth_scores(order_tokens(kv, head, worker_piece(workspace, bytes, worker)), width, scores.at(head));
  });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
