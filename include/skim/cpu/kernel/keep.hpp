// SPDX-License-Identifier: Apache-2.0
/// \file The step of an eviction that chooses: from scores to the slots that stay. The same for all evictors.
#pragma once

#include <skim/cpu/pool_scores.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// What an evictor says of it.
struct keep_rule {
  retention keep;
  bool prefers_later;  // of equal scores
};

/// Scratch: pooled scores, then what each worker needs to choose.
struct keep_scratch {
  float *pooled, *by_page;  // [n] each, with `share_heads`

  keep_scratch(skim::detail::arena& arena, const eviction_args& args) {
    const std::int64_t n = args.share_heads ? args.attended.kv.tokens : 0;
    pooled = arena.take<float>(n);
    by_page = arena.take<float>(n);
  }
};

inline std::size_t choose_bytes(const eviction_args& args) {
  skim::detail::arena arena;
  top_k_scratch(arena, args.attended.kv.tokens);
  return arena.used();
}

inline std::size_t keep_bytes(const eviction_args& args, unsigned workers) {
  skim::detail::arena arena;
  keep_scratch(arena, args);
  return arena.used() + choose_bytes(args) * workers;
}

/// No head is over its budget.
inline bool fits(const eviction_args& args, const retention& keep) {
  const kv_view& kv = args.attended.kv;
  for (std::int64_t head = 0; head < kv.heads; ++head) {
    if (kv.length(head) > kept_by(keep, args, head).count) return false;
  }
  return true;
}

/// The list of one row. `by_page`: scratch.
SKIM_NOINLINE inline std::int64_t keep_row(const eviction_args& args, const keep_rule& rule, std::int64_t row,
                                           const float* scores, const top_k_scratch& scratch, float* by_page,
                                           std::int32_t* list) {
  const kv_view& kv = args.attended.kv;
  const retention keep = kept_by(rule.keep, args, row);
  if (args.how == compaction::pages) return keep_pages(kv, keep, scores, by_page, rule.prefers_later, scratch, list);
  const std::int64_t n = kv.length(row);
  for (std::int64_t slot = 0; slot < n; ++slot) scratch.ranks[slot] = rank_bits(scores[slot]);
  return keep_ranked(kv, row, n, n, keep, keep.count, rule.prefers_later, scratch, list);
}

template <class Executor>
void keep_highest(const eviction_args& args, const keep_rule& rule, tensor_view<const float, 2> scores,
                  const index_lists& lists, memory workspace, const Executor& executor) {
  const kv_view& kv = args.attended.kv;
  skim::detail::arena arena(workspace.data);
  const keep_scratch shared(arena, args);
  char* const workers = static_cast<char*>(workspace.data) + arena.used();
  if (args.share_heads && scores.extents[0] > 1) {
    const tensor_view<float, 2> pooled(shared.pooled, {1, kv.tokens});
    pool_rows(scores, pooled, executor);
    scores = pooled;
  }
  executor.parallel_for(list_rows(args), [&](std::int64_t row, unsigned worker) {
    skim::detail::arena piece(workers + choose_bytes(args) * worker);
    const top_k_scratch scratch(piece, kv.tokens);
    lists.counts[row] =
        static_cast<std::int32_t>(keep_row(args, rule, row, scores.at(row), scratch, shared.by_page, lists.row(row)));
  });
}

/// Lists every token.
template <class Executor>
void keep_everything(const eviction_args& args, const index_lists& lists, const Executor& executor) {
  executor.parallel_for(list_rows(args), [&](std::int64_t row, unsigned) {
    const std::int64_t n = args.attended.kv.length(row);
    for (std::int64_t slot = 0; slot < n; ++slot) lists.row(row)[slot] = static_cast<std::int32_t>(slot);
    lists.counts[row] = static_cast<std::int32_t>(n);
  });
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
