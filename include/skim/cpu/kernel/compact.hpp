// SPDX-License-Identifier: Apache-2.0
/// \file Moving what stays of a cache together: keys, values, scales, positions, inverse norms, or whole pages.
#pragma once

#include <skim/cpu/kernel/rows.hpp>
#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// The end of the run of slots that begins at list[first]: the first index behind it whose slot does not follow on its
/// predecessor's. `list` ascends; looks at O(log(length of the run)) entries.
SKIM_INLINE std::int64_t end_of_run(const std::int32_t* list, std::int64_t first, std::int64_t count) {
  const std::int64_t ahead = list[first] - first;  // list[i] - i never falls
  std::int64_t inside = first, step = 1;
  while (inside + step < count && list[inside + step] - (inside + step) == ahead) {
    inside += step;
    step *= 2;
  }
  for (; step > 0; step /= 2) {
    if (inside + step < count && list[inside + step] - (inside + step) == ahead) inside += step;
  }
  return inside + 1;
}

/// Calls `visit(slot)` for the slots of [0, n) that are not listed, ascending.
template <class Visit>
SKIM_INLINE void for_each_evicted(const std::int32_t* list, std::int64_t count, std::int64_t n, const Visit& visit) {
  std::int64_t slot = 0;
  for (std::int64_t next = 0; next < count;) {
    for (; slot < list[next]; ++slot) visit(slot);
    next = end_of_run(list, next, count);
    slot = list[next - 1] + 1;
  }
  for (; slot < n; ++slot) visit(slot);
}

/// Calls `move(source, target)`, in an order that is safe in place, for every token that compaction brings to another slot.
/// `list` holds the `count` slots that stay, ascending.
template <class Move>
SKIM_INLINE void for_each_move(compaction how, const std::int32_t* list, std::int64_t count, const Move& move) {
  if (how != compaction::refill) {
    const std::int64_t first = count > 0 && list[0] == 0 ? end_of_run(list, 0, count) : 0;
    for (std::int64_t target = first; target < count; ++target) move(std::int64_t{list[target]}, target);
    return;
  }
  std::int64_t staying = count;  // the survivors behind slot `count` are as many as the holes before it
  while (staying > 0 && list[staying - 1] >= count) --staying;
  const std::int32_t* mover = list + staying;
  for_each_evicted(list, staying, count,
                   [&](std::int64_t target) SKIM_LAMBDA_INLINE { move(std::int64_t{*mover++}, target); });
}

/// The list that a head goes by.
SKIM_INLINE std::int64_t list_row(const eviction_args& args, std::int64_t head) {
  return args.share_heads ? 0 : head;
}

SKIM_INLINE void move_metadata(const kv_cache& kv, std::int64_t head, std::int64_t source_slot,
                               std::int64_t target_slot) {
  const std::int64_t source = kv.metadata_row(source_slot), target = kv.metadata_row(target_slot);
  if (head == 0 || kv.positions_stride != 0) {  // a row that all heads share moves once
    std::int32_t* const positions = kv.positions + head * kv.positions_stride;
    positions[target] = positions[source];
  }
  if (kv.inverse_norms) {
    float* const norms = kv.inverse_norms + head * kv.inverse_norms_stride;
    norms[target] = norms[source];
  }
}

/// Turns [begin, end) so that `middle` comes first.
SKIM_INLINE void rotate_pages(std::int32_t* table, std::int64_t begin, std::int64_t middle, std::int64_t end) {
  const auto reverse = [table](std::int64_t first, std::int64_t last) SKIM_LAMBDA_INLINE {
    for (--last; first < last; ++first, --last) {
      const std::int32_t swapped = table[first];
      table[first] = table[last];
      table[last] = swapped;
    }
  };
  reverse(begin, middle);
  reverse(middle, end);
  reverse(begin, end);
}

/// Closes up the pages of the listed slots; those that leave stand behind them, in order. In place: runs that have their
/// kept pages in front are joined in pairs, n log n moves for n pages.
SKIM_NOINLINE inline void close_up_pages(const eviction_args& args, const std::int32_t* list, std::int64_t count) {
  const std::int64_t page_size = args.kv.page_size, pages = (args.kv.tokens + page_size - 1) / page_size;
  const auto kept_before = [&](std::int64_t page) {  // of the pages that stay all slots are listed
    const std::int64_t first_slot = page * page_size;
    std::int64_t low = 0, high = count;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (list[middle] < first_slot) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return (low + page_size - 1) / page_size;
  };
  for (std::int64_t width = 1; width < pages; width *= 2) {
    std::int64_t before = 0;
    for (std::int64_t begin = 0; begin + width < pages; begin += 2 * width) {
      const std::int64_t middle = begin + width, end = smaller(middle + width, pages);
      const std::int64_t at_middle = kept_before(middle), at_end = kept_before(end);
      rotate_pages(args.block_table, begin + at_middle - before, middle, middle + at_end - at_middle);
      before = at_end;
    }
  }
}

/// Moves what belongs to the listed tokens. Work unit = (KV head, one of K, V and metadata); values inside keys move with
/// these.
inline void compact_cache(const eviction_args& args, const index_lists& lists, executor_ref executor) {
  const kv_cache& kv = args.kv;
  enum : std::int64_t { keys, values, metadata, parts };
  executor.parallel_for(kv.heads * parts + 1, [&](std::int64_t work, unsigned) {
    const bool pages = args.how == compaction::pages;
    if (work == kv.heads * parts) {
      if (pages) close_up_pages(args, lists.row(0), lists.counts[0]);
      return;
    }
    const std::int64_t head = work / parts, which = work % parts, row = list_row(args, head);
    if (pages && which != metadata) return;
    if (kv.values_in_keys && which == values) return;
    for_each_move(args.how, lists.row(row), lists.counts[row],
                  [&](std::int64_t source, std::int64_t target) SKIM_LAMBDA_INLINE {
                    if (which == keys) move_row(kv, kv.k, head, source, target);
                    if (which == values) move_row(kv, kv.v, head, source, target);
                    if (which == metadata) move_metadata(kv, head, source, target);
                  });
  });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
