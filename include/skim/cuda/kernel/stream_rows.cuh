// SPDX-License-Identifier: Apache-2.0
/// \file Reading keys or values once, row by row, for sums over each: KeyDiff's cosines, CAOTE's distances.
#pragma once

#include <skim/cuda/kernel/compact.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct streaming {
  static constexpr int threads = 256, rows = 4;  // of each group of lanes, under way at a time
  static constexpr int blocks_at_once = 1024;  // so many have all rows, where these are many: few enough to read ahead

  /// Of a block that has `at_once` under way.
  SKIM_HD SKIM_INLINE static int slots(int tokens, int heads, int at_once) {
    const int of_head = (blocks_at_once + heads - 1) / heads, steps = (tokens + at_once - 1) / at_once;
    return (steps + of_head - 1) / of_head * at_once;
  }
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

template <class Piece>
struct pieces_of_rows {
  Piece rows[streaming::rows];
};

/// For each row of `op.rows_of()`: sums of `op.add(sums, x, scale, other)` over its numbers and those of `op.other(head)` [D],
/// then, where `op.usual(known, scale, sums)` says so, `op.put(head, slot, known, scale, sums)`, `known` being what
/// `op.known(head, slot)` has loaded; other rows the warp takes together, by `op.put_unusual(head, slot)`. Groups of `Lanes`
/// lanes share a row, and the first numbers of their next rows are on their way while these are added up. Blocks of one piece
/// of slots follow each other, so that rows of all heads, which often lie side by side, are read together.
template <class T, bool Wide, int Lanes, class Op>
__global__ void __launch_bounds__(streaming::threads, 2) stream_rows(const Op op) {
  using piece_type = stored_piece<T, Wide>;
  constexpr int count = piece_type::count, groups = streaming::threads / Lanes, rows = streaming::rows;
  start_in_chain();
  const cache_rows& kv = op.call.kv;
  const stored_rows& of = op.rows_of();
  const int head = static_cast<int>(blockIdx.x) % op.call.heads, n = kv.length(head), lane = threadIdx.x % Lanes;
  const int slots = streaming::slots(kv.tokens, op.call.heads, groups * rows);
  const int first = static_cast<int>(blockIdx.x) / op.call.heads * slots;
  const row_addresses addresses(kv, of, head, 0);
  const float* const other = op.other(head);
  const int end = min(first + slots, n), own_first = first + static_cast<int>(threadIdx.x) / Lanes;
  const auto row = [&](int slot) { return reinterpret_cast<const T*>(addresses.row(min(slot, n - 1))); };
  const int its_row = lane / (Lanes / 4);  // of those under way, the one that a lane adds up in the end
  const int d_first = min(lane * count, of.dim - count);
  const auto first_pieces = [&](int own) {
    return pieces_of_rows<piece_type>{{piece_type(row(own) + d_first), piece_type(row(own + groups) + d_first),
                                       piece_type(row(own + 2 * groups) + d_first),
                                       piece_type(row(own + 3 * groups) + d_first)}};
  };
  if (first >= end) return;
  pieces_of_rows<piece_type> next = first_pieces(own_first);
  for (int begin = first; begin < end; begin += groups * rows) {
    const int own = begin + static_cast<int>(threadIdx.x) / Lanes;
    const int slot = own + its_row * groups;
    float sums[rows][Op::sums] = {}, scales[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) scales[r] = kv.scale(of, head, min(own + r * groups, n - 1));
    const float known = op.known(head, min(slot, n - 1));
    pieces_of_rows<piece_type> stored = next;
    if (begin + groups * rows < end) next = first_pieces(own + groups * rows);
#pragma unroll 1
    for (int d = lane * count; d < of.dim; d += Lanes * count) {
      if (d != lane * count) {
        stored = {{piece_type(row(own) + d), piece_type(row(own + groups) + d), piece_type(row(own + 2 * groups) + d),
                   piece_type(row(own + 3 * groups) + d)}};
      }
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
        stored.rows[r].widen(values);
#pragma unroll
        for (int i = 0; i < count; ++i) op.add(sums[r], values[i], scales[r], others[i]);
      }
    }
    // Each quarter of the lanes adds up one of the rows: halves take two from each other, quarters one.
    float found[Op::sums], its_scale = scales[0];
#pragma unroll
    for (int i = 0; i < Op::sums; ++i) {
      float two[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float others = __shfl_xor_sync(all_lanes, its_row < 2 ? sums[r + 2][i] : sums[r][i], Lanes / 2);
        two[r] = (its_row < 2 ? sums[r][i] : sums[r + 2][i]) + others;
      }
      const float others = __shfl_xor_sync(all_lanes, its_row % 2 == 0 ? two[1] : two[0], Lanes / 4);
      found[i] = (its_row % 2 == 0 ? two[0] : two[1]) + others;
#pragma unroll
      for (int step = Lanes / 8; step > 0; step /= 2) found[i] += __shfl_xor_sync(all_lanes, found[i], step);
    }
#pragma unroll
    for (int r = 1; r < rows; ++r) its_scale = its_row == r ? scales[r] : its_scale;
    const bool mine = slot < n && lane % (Lanes / 4) == 0, usual = !mine || op.usual(known, its_scale, found);
    if (mine && usual) op.put(head, slot, known, its_scale, found);
    for (unsigned left = __ballot_sync(all_lanes, !usual); left != 0; left &= left - 1) {
      op.put_unusual(head, __shfl_sync(all_lanes, slot, __ffs(static_cast<int>(left)) - 1));
    }
  }
}

/// Calls `body(type, wide, lanes)` with what rows are read by: as many lanes a row as fit.
template <class Body>
void with_lanes(const stored_rows& of, const Body& body) {
  const auto with = [&](auto type, auto wide) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    if constexpr (wide.value) {
      const std::int64_t lanes = pieces(of.dim, stored_piece<T, wide.value>::count);
      if (lanes <= 8) return body(type, wide, std::integral_constant<int, 8>{});
      if (lanes <= 16) return body(type, wide, std::integral_constant<int, 16>{});
    }
    body(type, wide, std::integral_constant<int, 32>{});
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

template <class Op>
void stream(const Op& op, launcher& launch) {
  with_lanes(op.rows_of(), [&](auto type, auto wide, auto lanes) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const eviction_call& call = op.call;
    const std::int64_t slots =
        streaming::slots(call.kv.tokens, call.heads, streaming::threads / lanes.value * streaming::rows);
    launch(&stream_rows<T, wide.value, lanes.value, Op>, pieces(call.kv.tokens, greater(slots, 1)) * call.heads, 1,
           streaming::threads, 0, op);
  });
}

}}}}  // namespace skim::v0_2::cuda::detail
