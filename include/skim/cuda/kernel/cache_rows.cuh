// SPDX-License-Identifier: Apache-2.0
/// \file A KV cache as kernels read it: what `kv_view` says of one sequence, flat.
#pragma once

#include <skim/cuda/kernel/ptx.cuh>
#include <skim/kv_view.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Rows of keys or of values; strides in elements.
struct stored_rows {
  const char* data;
  std::int64_t row, head, page;
  const float* scales;
  std::int64_t scale_row, scale_head, scale_page;
  element type;
  int dim, element_bytes;
};

struct cache_rows {
  stored_rows k, v;
  const std::int32_t *table, *lengths, *positions;
  std::int64_t positions_stride, first_position;
  std::int64_t lengths_ahead;  // what `lengths` count beyond the call
  int tokens, page_size, ring_start, ring_size;

  /// Tokens of a KV head, the call's own included.
  SKIM_DEVICE int length(int head) const {
    return lengths ? static_cast<int>(lengths[head] - lengths_ahead) : tokens;
  }
  SKIM_DEVICE int metadata_row(int slot) const {
    if (ring_size == 0) return slot;
    const int row = ring_start + slot;
    return row < ring_size ? row : row - ring_size;
  }
  SKIM_DEVICE std::int64_t position(int head, int slot) const {
    return positions ? positions[head * positions_stride + metadata_row(slot)] : first_position + slot;
  }
  /// Elements from `of.data` to a token's row.
  SKIM_DEVICE std::int64_t offset(const stored_rows& of, int head, int slot) const {
    if (!table) return metadata_row(slot) * of.row + head * of.head;
    const int page = slot / page_size;
    return table[page] * of.page + (slot - page * page_size) * of.row + head * of.head;
  }
  SKIM_DEVICE const char* row(const stored_rows& of, int head, int slot) const {
    return of.data + offset(of, head, slot) * of.element_bytes;
  }
  SKIM_DEVICE float scale(const stored_rows& of, int head, int slot) const {
    if (!of.scales) return 1;
    if (!table) return of.scales[metadata_row(slot) * of.scale_row + head * of.scale_head];
    const int page = slot / page_size;
    return of.scales[table[page] * of.scale_page + (slot - page * page_size) * of.scale_row + head * of.scale_head];
  }
};

inline stored_rows rows_of(const kv_tensor& tensor) {
  return {static_cast<const char*>(tensor.data),
          tensor.row_stride,
          tensor.head_stride,
          tensor.page_stride,
          tensor.scales,
          tensor.scale_row_stride,
          tensor.scale_head_stride,
          tensor.scale_page_stride,
          tensor.type,
          static_cast<int>(tensor.dim),
          static_cast<int>(bytes_of(tensor.type, 1))};
}

inline cache_rows rows_of(const kv_view& kv) {
  cache_rows rows{};
  rows.k = rows_of(kv.k);
  rows.v = rows_of(kv.v);
  rows.table = kv.layout == kv_layout::paged ? kv.block_table : nullptr;
  rows.lengths = kv.lengths;
  rows.positions = kv.positions;
  rows.positions_stride = kv.positions_stride;
  rows.first_position = kv.first_position;
  rows.lengths_ahead = kv.lengths_ahead;
  rows.tokens = static_cast<int>(kv.tokens);
  rows.page_size = static_cast<int>(kv.page_size);
  if (kv.layout == kv_layout::ring) {
    rows.ring_start = static_cast<int>(kv.ring_start);
    rows.ring_size = static_cast<int>(kv.capacity);
  }
  return rows;
}

}}}}  // namespace skim::v0_2::cuda::detail
