// SPDX-License-Identifier: Apache-2.0
/// \file Reading keys or values once, row by row, for sums over each: KeyDiff's cosines, CAOTE's distances.
#pragma once

#include <skim/cuda/kernel/eviction_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct streaming {
  static constexpr int threads = 256, rows = 4;  // of each group of lanes, under way at a time
  /// Of a block.
  SKIM_HD SKIM_INLINE static constexpr int slots(int lanes) { return threads / lanes * rows * 4; }
};

/// What a lane loads of a row at once: 16 bytes, or one number.
template <class T, bool Wide>
struct stored_piece {
  static constexpr int count = 16 / static_cast<int>(sizeof(T));
  uint4 all;

  SKIM_DEVICE explicit stored_piece(const T* from) : all(*reinterpret_cast<const uint4*>(from)) {}
  SKIM_DEVICE void widen(float (&to)[count]) const {
    const std::uint32_t words[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        to[i] = __uint_as_float(words[i]);
      } else {
        to[2 * i] = tensor_type<T>::low(words[i]);
        to[2 * i + 1] = tensor_type<T>::high(words[i]);
      }
    }
  }
};
template <class T>
struct stored_piece<T, false> {
  static constexpr int count = 1;
  float one;

  SKIM_DEVICE explicit stored_piece(const T* from) : one(load(from, 0)) {}
  SKIM_DEVICE void widen(float (&to)[count]) const { to[0] = one; }
};

/// For each row of `op.rows_of()`: sums of `op.add(sums, x, scale, other)` over its numbers and those of `op.other(head)` [D],
/// then, where `op.usual(head, slot, scale, sums)` says so, `op.put(head, slot, scale, sums)`; other rows the warp takes
/// together, by `op.put_unusual(head, slot)`. Groups of `Lanes` lanes share a row. Blocks of one piece of slots follow each
/// other, so that rows of all heads, which often lie side by side, are read together.
template <class T, bool Wide, int Lanes, class Op>
__global__ void __launch_bounds__(streaming::threads, 3) stream_rows(const Op op) {
  using piece_type = stored_piece<T, Wide>;
  constexpr int count = piece_type::count, groups = streaming::threads / Lanes, rows = streaming::rows;
  start_in_chain();
  const cache_rows& kv = op.call.kv;
  const stored_rows& of = op.rows_of();
  const int head = static_cast<int>(blockIdx.x) % op.call.heads, n = kv.length(head), lane = threadIdx.x % Lanes;
  const int first = static_cast<int>(blockIdx.x) / op.call.heads * streaming::slots(Lanes);
  const row_addresses addresses(kv, of, head, 0);
  const float* const other = op.other(head);
  const int end = min(first + streaming::slots(Lanes), n);
  for (int begin = first; begin < end; begin += groups * rows) {
    const int own = begin + static_cast<int>(threadIdx.x) / Lanes;
    const T* from[rows];
    float sums[rows][Op::sums] = {}, scales[rows];
    unsigned unusual = 0;  // bit r: row r
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const int slot = min(own + r * groups, n - 1);
      from[r] = reinterpret_cast<const T*>(addresses.row(slot));
      scales[r] = kv.scale(of, head, slot);
    }
#pragma unroll 1
    for (int d = lane * count; d < of.dim; d += Lanes * count) {
      const piece_type stored[rows] = {piece_type(from[0] + d), piece_type(from[1] + d), piece_type(from[2] + d),
                                       piece_type(from[3] + d)};
      float others[count];
      if constexpr (count == 1) {
        others[0] = other[d];
      } else {
#pragma unroll
        for (int i = 0; i < count; i += 4) {
          const float4 four = load_4(other + d + i);
          others[i] = four.x;
          others[i + 1] = four.y;
          others[i + 2] = four.z;
          others[i + 3] = four.w;
        }
      }
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        float values[count];
        stored[r].widen(values);
#pragma unroll
        for (int i = 0; i < count; ++i) op.add(sums[r], values[i], scales[r], others[i]);
      }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
      for (int step = Lanes / 2; step > 0; step /= 2) {
#pragma unroll
        for (int i = 0; i < Op::sums; ++i) sums[r][i] += __shfl_xor_sync(all_lanes, sums[r][i], step);
      }
      const int slot = own + r * groups;
      const bool mine = slot < n && lane == 0, usual = !mine || op.usual(head, slot, scales[r], sums[r]);
      if (mine && usual) op.put(head, slot, scales[r], sums[r]);
      unusual |= usual ? 0u : 1u << r;
    }
#pragma unroll 1
    for (int r = 0; r < rows && __any_sync(all_lanes, unusual != 0); ++r) {
      for (unsigned left = __ballot_sync(all_lanes, unusual >> r & 1u); left != 0; left &= left - 1) {
        op.put_unusual(head, __shfl_sync(all_lanes, own + r * groups, __ffs(static_cast<int>(left)) - 1));
      }
    }
  }
}

/// Launches it with as many lanes a row as fit.
template <class Op>
void stream(const Op& op, launcher& launch) {
  const stored_rows& of = op.rows_of();
  const auto with = [&](auto type, auto wide) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const std::int64_t lanes = pieces(of.dim, stored_piece<T, wide.value>::count);
    const auto launch_with = [&](auto group) {
      const std::int64_t slots = streaming::slots(group.value);
      launch(&stream_rows<T, wide.value, group.value, Op>, pieces(op.call.kv.tokens, slots) * op.call.heads, 1,
             streaming::threads, 0, op);
    };
    if constexpr (wide.value) {
      if (lanes <= 8) return launch_with(std::integral_constant<int, 8>{});
      if (lanes <= 16) return launch_with(std::integral_constant<int, 16>{});
    }
    launch_with(std::integral_constant<int, 32>{});
  };
  const auto with_width = [&](auto type) {
    if (moves_by_16(of)) {
      with(type, std::true_type{});
    } else {
      with(type, std::false_type{});
    }
  };
  if (of.type == element::f32) {
    with_width(static_cast<const float*>(nullptr));
  } else if (of.type == element::f16) {
    with_width(static_cast<const f16*>(nullptr));
  } else {
    with_width(static_cast<const bf16*>(nullptr));
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
