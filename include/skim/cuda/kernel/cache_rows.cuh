// SPDX-License-Identifier: Apache-2.0
/// \file A KV cache as kernels read it: what `kv_view` says of one sequence, flat.
#pragma once

#include <skim/cuda/kernel/ptx.cuh>
#include <skim/kv_view.hpp>

#include <type_traits>

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
  SKIM_DEVICE int length(int head) const { return lengths ? static_cast<int>(lengths[head] - lengths_ahead) : tokens; }
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
  /// Where there are scales.
  SKIM_DEVICE const float* scale_at(const stored_rows& of, int head, int slot) const {
    if (!table) return of.scales + metadata_row(slot) * of.scale_row + head * of.scale_head;
    const int page = slot / page_size;
    return of.scales + table[page] * of.scale_page + (slot - page * page_size) * of.scale_row + head * of.scale_head;
  }
  SKIM_DEVICE float scale(const stored_rows& of, int head, int slot) const {
    return of.scales ? *scale_at(of, head, slot) : 1;
  }
};

/// Addresses of a head's rows, from byte `first` of each on; slot i is `base` + i where there is a table. Where slots are rows
/// of storage they cost one multiplication: loops over tiles of keys wait for this.
class row_addresses {
 public:
  SKIM_DEVICE row_addresses(const cache_rows& kv, const stored_rows& of, int head, int first, int base = 0)
      : kv_(kv), of_(of), slot_base_(base) {
    const std::int64_t bytes = of.row * of.element_bytes;
    plain_ = !kv.table && kv.ring_size == 0 && bytes >= 0 && bytes <= 0xffffffff;
    step_ = static_cast<std::uint32_t>(bytes);
    base_ = of.data + of.head * head * of.element_bytes + first;
  }
  SKIM_DEVICE bool plain() const { return plain_; }
  /// Where `plain`.
  SKIM_DEVICE const char* plain_row(int slot) const {
    return base_ + static_cast<std::uint64_t>(static_cast<std::uint32_t>(slot)) * step_;
  }
  SKIM_DEVICE const char* row(int slot) const {
    return plain_ ? plain_row(slot) : base_ + kv_.offset(of_, 0, slot_base_ + slot) * of_.element_bytes;
  }

 private:
  const cache_rows& kv_;
  const stored_rows& of_;
  const char* base_;
  std::uint32_t step_;
  int slot_base_;
  bool plain_;
};

/// Part of a row of 16-bit numbers that one lane has.
template <int Dims>
struct alignas(Dims / 2) row_piece {
  std::uint32_t words[Dims / 8];
};
SKIM_DEVICE void load_piece(row_piece<32>& to, const char* from) {
  const uint4 four = load_once(from);
  to = {{four.x, four.y, four.z, four.w}};
}
SKIM_DEVICE void load_piece(row_piece<16>& to, const char* from) {
  const uint2 two = *reinterpret_cast<const uint2*>(from);
  to = {{two.x, two.y}};
}

/// Length of rows that are read four numbers at a time, zeros behind them; and what rows in shared memory lie apart.
SKIM_HD SKIM_INLINE constexpr std::int64_t padded(std::int64_t D) {
  return (D + 3) / 4 * 4;
}
SKIM_HD SKIM_INLINE constexpr std::int64_t shared_pitch(std::int64_t D) {
  return padded(D) + 4;  // an odd number of 16 bytes for most D, so that lanes meet all banks
}

/// `count` rows as f32, sixteen numbers of a lane under way at a time. `at(i)`: elements to row i, negative for
/// a row of zeros; `scale(i)`: its factor. Says in `finite [count]`, if given, whether all of a row is.
template <int Threads, class T, class At, class Scale>
SKIM_DEVICE void load_rows(const T* data, int D, int count, float* to, bool* finite, const At& at, const Scale& scale) {
  constexpr int rows = 4, parts = 4;
  const int lane = threadIdx.x % 32, pitch = static_cast<int>(shared_pitch(D)), length = static_cast<int>(padded(D));
  for (int first = threadIdx.x / 32 * rows; first < count; first += Threads / 32 * rows) {
    std::int64_t from[rows];
    float factor[rows];
    bool all_finite[rows];
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const std::int64_t own = at(min(first + i, count - 1));
      factor[i] = own < 0 ? 0 : scale(min(first + i, count - 1));
      from[i] = own < 0 ? 0 : own;
      all_finite[i] = true;
    }
    for (int begin = lane; begin - lane < length; begin += 32 * parts) {
      float values[rows][parts];  // loads first, without conditions: else they wait for each other
#pragma unroll
      for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int j = 0; j < parts; ++j) values[i][j] = load(data, from[i] + min(begin + 32 * j, D - 1));
      }
#pragma unroll
      for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int j = 0; j < parts; ++j) {
          const int d = begin + 32 * j;
          const float value = d < D && factor[i] != 0 ? values[i][j] * factor[i] : 0;
          all_finite[i] &= isfinite(value);
          if (d < length && first + i < count) to[(first + i) * pitch + d] = value;
        }
      }
    }
    if (!finite) continue;
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const bool all = __all_sync(all_lanes, all_finite[i]);
      if (lane == 0 && first + i < count) finite[first + i] = all;
    }
  }
}

/// Keys or values of the slots `slot(i)`; negative ones are zeros.
template <int Threads, class Slot>
SKIM_DEVICE void load_slots(const cache_rows& kv, const stored_rows& of, int head, int count, float* to, bool* finite,
                            const Slot& slot) {
  with_type(of.data, of.type, [&](auto* data) {
    load_rows<Threads>(
        data, of.dim, count, to, finite,
        [&](int i) {
          const int own = slot(i);
          return own < 0 ? std::int64_t{-1} : kv.offset(of, head, own);
        },
        [&](int i) { return of.scales ? kv.scale(of, head, slot(i)) : 1.0f; });
  });
}

SKIM_DEVICE float dot_4(float4 a, float4 b, float sum) {
  return sum + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}
SKIM_DEVICE float4 load_4(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

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

/// Whether every row begins at a multiple of 16 bytes.
inline bool rows_of_16(const stored_rows& of) {
  const std::int64_t bytes = of.element_bytes;
  return reinterpret_cast<std::uintptr_t>(of.data) % 16 == 0 && of.row * bytes % 16 == 0 && of.head * bytes % 16 == 0 &&
         of.page * bytes % 16 == 0;
}

/// Calls `body(T{}, D)`, D a constant, for the type and head dimension that tensor cores take.
template <class T, class Body>
bool with_dim(std::int64_t D, const Body& body) {
  switch (D) {
    case 64:
      return body(T{}, std::integral_constant<int, 64>{}), true;
    case 80:
      return body(T{}, std::integral_constant<int, 80>{}), true;
    case 96:
      return body(T{}, std::integral_constant<int, 96>{}), true;
    case 128:
      return body(T{}, std::integral_constant<int, 128>{}), true;
    case 192:
      return body(T{}, std::integral_constant<int, 192>{}), true;
    case 256:
      return body(T{}, std::integral_constant<int, 256>{}), true;
    default:
      return false;
  }
}

/// The same for a cache whose keys and values they take.
template <class Body>
bool with_tensor_cores(const kv_view& kv, const Body& body) {
  const kv_tensor &k = kv.k, &v = kv.v;
  if (k.type != v.type || k.dim != v.dim || k.scales || v.scales || !rows_of_16(rows_of(k)) || !rows_of_16(rows_of(v)))
    return false;
  if (k.type == element::bf16) return with_dim<bf16>(k.dim, body);
  if (k.type == element::f16) return with_dim<f16>(k.dim, body);
  return false;
}

}}}}  // namespace skim::v0_2::cuda::detail
