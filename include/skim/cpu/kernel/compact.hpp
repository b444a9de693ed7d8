// SPDX-License-Identifier: Apache-2.0
/// \file Moving what stays of a cache together: keys, values, positions, inverse norms, or whole pages.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/eviction.hpp>
#include <skim/index_lists.hpp>
#include <skim/view.hpp>

#include <cstring>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

SKIM_INLINE void move_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t from_slot,
                          std::int64_t to_slot) {
  const std::int64_t size = element_bytes(tensor.type);
  char* const bytes = static_cast<char*>(tensor.data);
  std::memcpy(bytes + kv.row_offset(tensor, head, to_slot) * size,
              bytes + kv.row_offset(tensor, head, from_slot) * size, static_cast<std::size_t>(tensor.dim * size));
}

SKIM_INLINE void move_metadata(const kv_view& kv, std::int64_t head, std::int64_t from_slot, std::int64_t to_slot) {
  const std::int64_t source = kv.metadata_row(from_slot), target = kv.metadata_row(to_slot);
  if (head == 0 || kv.positions_stride != 0) {  // a row that all heads share moves once
    std::int32_t* const positions = kv.positions + head * kv.positions_stride;
    positions[target] = positions[source];
  }
  if (kv.inverse_norms) {
    float* const norms = kv.inverse_norms + head * kv.inverse_norms_stride;
    norms[target] = norms[source];
  }
}

/// Closes up the pages of the listed slots; those that leave stand behind them, in order.
SKIM_INLINE void close_up_pages(const eviction_args& args, const std::int32_t* list, std::int64_t count) {
  const std::int64_t page_size = args.attended.kv.page_size;
  std::int32_t* const table = args.block_table;
  std::int64_t kept = 0;
  for (std::int64_t i = 0, last = -1; i < count; ++i) {
    const std::int64_t page = list[i] / page_size;
    if (page == last) continue;
    last = page;
    const std::int32_t number = table[page];
    for (std::int64_t at = page; at > kept; --at) table[at] = table[at - 1];
    table[kept++] = number;
  }
}

/// Moves what belongs to the listed tokens. Work unit = (KV head, one of K, V and metadata).
void compact_cache(const eviction_args& args, const index_lists& lists, executor_ref executor) {
  const kv_view& kv = args.attended.kv;
  constexpr std::int64_t parts = 3;
  executor.parallel_for(kv.heads * parts + 1, [&](std::int64_t unit, unsigned) {
    const bool pages = args.how == compaction::pages;
    if (unit == kv.heads * parts) {
      if (pages) close_up_pages(args, lists.row(0), lists.counts[0]);
      return;
    }
    const std::int64_t head = unit / parts, part = unit % parts, row = args.share_heads ? 0 : head;
    if (pages && part < 2) return;
    for_each_move(args.how, lists.row(row), lists.counts[row],
                  [&](std::int64_t from_slot, std::int64_t to_slot) SKIM_LAMBDA_INLINE {
                    if (part == 0) move_row(kv, kv.k, head, from_slot, to_slot);
                    if (part == 1) move_row(kv, kv.v, head, from_slot, to_slot);
                    if (part == 2) move_metadata(kv, head, from_slot, to_slot);
                  });
  });
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
