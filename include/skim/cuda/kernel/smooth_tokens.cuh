// SPDX-License-Identifier: Apache-2.0
/// \file Tokens by position, and scores averaged over neighbours.
#pragma once

#include <skim/cuda/kernel/eviction_call.cuh>
#include <skim/view.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Slots of each head in order of position, and scores that are set aside: [Hk, stride]. A radix sort by eleven bits at a time,
/// which leaves equal positions in order of slots; as many passes as a head's highest position has digits.
struct token_order {
  static constexpr int threads = 512, warps = threads / 32, each = 16, tile = threads * each;  // tokens of a block
  static constexpr int digit_bits = 11, digits = 1 << digit_bits, passes = 3;
  static constexpr std::size_t shared_bytes = (warps + 3) * digits * sizeof(std::uint16_t);

  std::int32_t *slots, *ranks;    // slots by rank where scores are set aside, else ranks by slot
  float* scores;                  // by rank
  unsigned long long* sorted[2];  // after the first pass, the second: positions, and slots in their lower half
  std::uint16_t* counts;          // [Hk, tiles, digits]: of each digit of a pass
  std::uint32_t* highest;         // [Hk, tiles]: position
  std::int64_t stride, tiles;

  static_assert(warps * digits * sizeof(std::uint16_t) >= tile * sizeof(unsigned long long),
                "a tile's tokens fit there");

  token_order() = default;
  token_order(skim::detail::arena& arena, std::int64_t heads, std::int64_t row)
      : slots(arena.take<std::int32_t>(heads * row)),
        ranks(arena.take<std::int32_t>(heads * row)),
        scores(arena.take<float>(heads * row)),
        stride(row),
        tiles(pieces(row, tile)) {
    for (unsigned long long*& keys : sorted) keys = arena.take<unsigned long long>(heads * row);
    counts = arena.take<std::uint16_t>(tiles > 1 ? heads * tiles * digits : 0);
    highest = arena.take<std::uint32_t>(tiles > 1 ? heads * tiles : 0);
  }
  SKIM_DEVICE unsigned long long* after(int pass, int head) const {
    return (pass % 2 == 0 ? sorted[0] : sorted[1]) + head * stride;
  }
  /// The tokens at places `first`, `first` + `step` ... before a pass.
  template <int Count>
  SKIM_DEVICE void load(const eviction_call& call, int head, int pass, int first, int step,
                        unsigned long long (&keys)[Count]) const {
    const int n = call.kv.length(head);
    if (pass > 0) {
      const unsigned long long* const from = after(pass - 1, head);
#pragma unroll
      for (int i = 0; i < Count; ++i) keys[i] = from[min(first + i * step, n - 1)];
      return;
    }
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int slot = min(first + i * step, n - 1);
      const auto position = static_cast<std::uint32_t>(call.kv.position(head, slot));
      keys[i] = static_cast<unsigned long long>(position) << 32 | static_cast<unsigned>(slot);
    }
  }
  static SKIM_DEVICE int digit(unsigned long long key, int pass) {
    return static_cast<int>(key >> (32 + digit_bits * pass)) & (digits - 1);
  }
  /// Whether this is the last of the passes that positions up to `top` ask for, or comes after it.
  static SKIM_DEVICE bool is_last(std::uint32_t top, int pass) {
    return pass + 1 == passes || top >> digit_bits * (pass + 1) == 0;
  }
  /// The highest position, by a warp.
  SKIM_DEVICE std::uint32_t top(int head, int tiles_of_head) const {
    std::uint32_t most = 0;
    for (int t = static_cast<int>(threadIdx.x) % 32; t < tiles_of_head; t += 32)
      most = max(most, highest[head * tiles + t]);
    return __reduce_max_sync(all_lanes, most);
  }
};

/// How often each digit of a pass comes in each tile.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_digits(const eviction_call call, const token_order order, int pass) {
  using own = token_order;
  __shared__ std::uint32_t counts[own::digits];
  __shared__ std::uint32_t most;
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), first = blockIdx.x * own::tile, thread = threadIdx.x;
  if (first >= n) return;
  if (pass > 0 && own::is_last(order.top(head, (n + own::tile - 1) / own::tile), pass - 1)) return;
  for (int d = thread; d < own::digits; d += Threads) counts[d] = 0;
  if (thread == 0) most = 0;
  unsigned long long keys[own::tile / Threads];
  order.load(call, head, pass, first + thread, Threads, keys);
  __syncthreads();
  std::uint32_t highest = 0;
#pragma unroll
  for (int i = 0; i < own::tile / Threads; ++i) {
    highest = max(highest, static_cast<std::uint32_t>(keys[i] >> 32));
    if (first + i * Threads + thread < n) atomicAdd(&counts[own::digit(keys[i], pass)], 1u);
  }
  if (pass == 0) {
    highest = __reduce_max_sync(all_lanes, highest);
    if (thread % 32 == 0) atomicMax(&most, highest);
  }
  __syncthreads();
  const std::int64_t row = head * order.tiles + blockIdx.x;
  for (int d = thread; d < own::digits; d += Threads) order.counts[row * own::digits + d] = counts[d];
  if (pass == 0 && thread == 0) order.highest[row] = most;
}

/// The sums of `own` over the threads before this one. `of_warps [Threads / 32]` is shared.
template <int Threads>
SKIM_DEVICE int sum_of_threads_before(int own, int* of_warps) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int through = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(all_lanes, through, step);
    if (lane >= step) through += other;
  }
  if (lane == 31) of_warps[warp] = through;
  __syncthreads();
  const int its = lane < Threads / 32 && lane < warp ? of_warps[lane] : 0;
  return __reduce_add_sync(all_lanes, its) + through - own;
}

/// Moves each token to its place by a digit, those of equal digits in the order in which they were. `scores`, if given, are set
/// aside in order with the last pass. `Whole`: a block has all of a head, and does every pass.
template <bool Whole>
__global__ void __launch_bounds__(token_order::threads)
    sort_by_digit(const eviction_call call, const float* scores, std::int64_t score_stride, const token_order order,
                  int pass) {
  using own = token_order;
  extern __shared__ uint4 digit_counts[];
  __shared__ int of_warps[own::warps];
  __shared__ std::uint32_t tops[own::warps];
  std::uint16_t* const counters = reinterpret_cast<std::uint16_t*>(digit_counts);  // [warps, digits]
  int* const ahead =
      reinterpret_cast<int*>(counters + own::warps * own::digits);          // [digits]: of their places in the tile
  std::uint16_t* const begins = counters + (own::warps + 2) * own::digits;  // [digits]: these places
  unsigned long long* const staged =
      reinterpret_cast<unsigned long long*>(digit_counts);  // [tile], where counters were
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), first = blockIdx.x * own::tile;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  if (first >= n) return;
  const int tiles = (n + own::tile - 1) / own::tile;
  std::uint32_t top = 0;
  if constexpr (!Whole) {
    top = order.top(head, tiles);
    if (pass > 0 && own::is_last(top, pass - 1)) return;
  }
  std::uint16_t* const of_warp = counters + warp * own::digits;
  do {
    unsigned long long keys[own::each];
    const int begin = first + warp * 32 * own::each + lane;
    order.load(call, head, pass, begin, 32, keys);
    for (int i = thread; i < own::warps * own::digits / 8; i += own::threads) digit_counts[i] = make_uint4(0, 0, 0, 0);
    if (Whole && pass == 0) {
      std::uint32_t most = 0;
#pragma unroll
      for (int i = 0; i < own::each; ++i) most = max(most, static_cast<std::uint32_t>(keys[i] >> 32));
      most = __reduce_max_sync(all_lanes, most);
      if (lane == 0) tops[warp] = most;
    }
    __syncthreads();
    if (Whole && pass == 0) top = __reduce_max_sync(all_lanes, tops[lane % own::warps]);

    unsigned before[own::each / 2] = {};  // of its warp, with the same digit: two numbers in one, as registers are few
#pragma unroll
    for (int i = 0; i < own::each; ++i) {
      const int digit = own::digit(keys[i], pass);
      const unsigned alike = __match_any_sync(all_lanes, begin + 32 * i < n ? digit : own::digits);
      const int known = of_warp[digit], lower = __popc(alike & ((1u << lane) - 1));
      before[i / 2] |= static_cast<unsigned>(known + lower) << 16 * (i % 2);
      __syncwarp();
      if (begin + 32 * i < n && lower == 0) of_warp[digit] = static_cast<std::uint16_t>(known + __popc(alike));
      __syncwarp();
    }
    __syncthreads();

    // A thread has four digits: what warps before have of each, then tiles before, then all that is of lower digits.
    constexpr int wide = own::digits / own::threads;
    static_assert(wide == 4, "four counts are loaded together");
    const auto unpacked = [](uint2 both, int j) {
      return static_cast<int>((j < 2 ? both.x : both.y) >> 16 * (j % 2) & 0xffffu);
    };
    int of_tile[wide] = {}, all[wide] = {}, earlier[wide] = {};
#pragma unroll 4
    for (int w = 0; w < own::warps; ++w) {
      uint2& at = *reinterpret_cast<uint2*>(counters + w * own::digits + wide * thread);
      const uint2 its = at;
      at = make_uint2(static_cast<unsigned>(of_tile[0] | of_tile[1] << 16),
                      static_cast<unsigned>(of_tile[2] | of_tile[3] << 16));
#pragma unroll
      for (int j = 0; j < wide; ++j) of_tile[j] += unpacked(its, j);
    }
    if constexpr (Whole) {
#pragma unroll
      for (int j = 0; j < wide; ++j) all[j] = of_tile[j];
    } else {
      const std::uint16_t* const counts = order.counts + head * order.tiles * own::digits + wide * thread;
#pragma unroll 8
      for (int t = 0; t < tiles; ++t) {
        const uint2 its = *reinterpret_cast<const uint2*>(counts + std::int64_t{t} * own::digits);
#pragma unroll
        for (int j = 0; j < wide; ++j) {
          all[j] += unpacked(its, j);
          earlier[j] += t < static_cast<int>(blockIdx.x) ? unpacked(its, j) : 0;
        }
      }
    }
    int place = sum_of_threads_before<own::threads>(all[0] + all[1] + all[2] + all[3], of_warps), begin_of = place;
    if constexpr (!Whole) {
      __syncthreads();
      begin_of = sum_of_threads_before<own::threads>(of_tile[0] + of_tile[1] + of_tile[2] + of_tile[3], of_warps);
    }
#pragma unroll
    for (int j = 0; j < wide; ++j) {
      begins[wide * thread + j] = static_cast<std::uint16_t>(begin_of);
      ahead[wide * thread + j] = place + earlier[j] - begin_of;
      place += all[j];
      begin_of += of_tile[j];
    }
    __syncthreads();

    // In order in shared memory first, so that neighbours in it are written together.
#pragma unroll
    for (int i = 0; i < own::each; ++i) {
      const int digit = own::digit(keys[i], pass);
      before[i / 2] += static_cast<unsigned>(begins[digit] + of_warp[digit]) << 16 * (i % 2);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < own::each; ++i) {
      if (begin + 32 * i < n) staged[before[i / 2] >> 16 * (i % 2) & 0xffffu] = keys[i];
    }
    __syncthreads();
    const bool last = own::is_last(top, pass);
#pragma unroll
    for (int i = 0; i < own::each; ++i) {
      const int at = i * own::threads + thread;
      if (first + at >= n) continue;
      const unsigned long long key = staged[at];
      const int rank = at + ahead[own::digit(key, pass)], slot = static_cast<int>(key & 0xffffffffu);
      if (!last) {
        order.after(pass, head)[rank] = key;
      } else if (scores) {
        order.slots[head * order.stride + rank] = slot;
        order.scores[head * order.stride + rank] = scores[head * score_stride + slot];
      } else {
        order.ranks[head * order.stride + slot] = rank;
      }
    }
    __syncthreads();
  } while (Whole && !own::is_last(top, pass++));
}

/// Each score becomes the mean of those of the `width` tokens around it that exist and are finite, or, with `zeros`, as if
/// there were zeros beyond the ends; one that is not finite becomes NaN.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    smooth_scores_by_position(const eviction_call call, int width, bool zeros, float* scores, std::int64_t stride,
                              const token_order order) {
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), rank = blockIdx.x * Threads + threadIdx.x;
  if (rank >= n) return;
  const float* const sorted = order.scores + head * order.stride;
  float sum = 0, count = 0;
  for (int at = max(rank - width / 2, 0); at <= min(rank + width / 2, n - 1); ++at) {
    if (!isfinite(sorted[at])) continue;
    sum += sorted[at];
    count += 1;
  }
  scores[head * stride + order.slots[head * order.stride + rank]] =
      isfinite(sorted[rank]) ? sum / (zeros ? static_cast<float>(width) : count) : __int_as_float(0x7fc00000);
}

/// Ranks of all tokens by position, or, of given `scores` [Hk, stride], these and their slots in that order.
inline void find_order(const eviction_call& call, const token_order& order, const float* scores,
                       std::int64_t score_stride, launcher& launch) {
  using own = token_order;
  const std::int64_t tiles = pieces(call.kv.tokens, own::tile);
  if (tiles <= 1) {
    return launch(&sort_by_digit<true>, tiles, call.heads, own::threads, own::shared_bytes, call, scores, score_stride,
                  order, 0);
  }
  for (int pass = 0; pass < own::passes; ++pass) {
    launch(&count_digits<own::threads>, tiles, call.heads, own::threads, 0, call, order, pass);
    launch(&sort_by_digit<false>, tiles, call.heads, own::threads, own::shared_bytes, call, scores, score_stride, order,
           pass);
  }
}

/// Smooths an evictor's scores [Hk, n], head by head in order of position: see `smooth_scores_by_position`.
inline void smooth_tokens(const eviction_call& call, std::int64_t width, bool zeros,
                          const tensor_view<float, 2>& scores, const token_order& order, launcher& launch) {
  find_order(call, order, scores.data, scores.strides[0], launch);
  launch(&smooth_scores_by_position<256>, pieces(call.kv.tokens, 256), call.heads, 256, 0, call,
         static_cast<int>(width), zeros, scores.data, scores.strides[0], order);
}

}}}}  // namespace skim::v0_2::cuda::detail
