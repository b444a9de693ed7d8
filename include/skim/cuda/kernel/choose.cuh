// SPDX-License-Identifier: Apache-2.0
/// \file The slots of highest score, ascending: a radix select, equal scores by the earlier slot.
#pragma once

#include <skim/cuda/selector/quoka_call.cuh>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct choosing {
  static constexpr int threads = 1024, warps = threads / 32, digits = 256;
};

/// Sums over the warps before this one, and over all. `counts [warps]` is shared.
SKIM_DEVICE int sum_before(int count_of_warp, int* counts, int& all) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  if (lane == 0) counts[warp] = count_of_warp;
  __syncthreads();
  int sum = lane < choosing::warps ? counts[lane] : 0;
  const int before = __reduce_add_sync(all_lanes, lane < warp ? sum : 0);
  all = __reduce_add_sync(all_lanes, sum);
  return before;
}

/// The list of a block that has nothing to choose.
template <int Threads>
SKIM_DEVICE void list_all(const quoka_call& call, const quoka_block& block, const index_lists& lists, int first_list,
                          int first_thread = 0, int threads = Threads) {
  const bool dense = (call.dense_blocks >> (block.list / call.heads) & 1u) != 0;
  const int begin = dense ? 0 : block.first, thread = first_thread + static_cast<int>(threadIdx.x);
  std::int32_t* const list = lists.row(first_list + block.list);
  for (int i = thread; i < block.past - begin; i += threads) list[i] = begin + i;
  if (thread == 0) lists.counts[first_list + block.list] = block.past - begin;
}

/// Writes the list of each block and KV head. A block for each list.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    choose_highest(const quoka_call call, const index_lists lists, int first_list) {
  static_assert(Threads == choosing::threads, "one digit sums over all warps");
  __shared__ int histogram[choosing::digits * 32], totals[choosing::digits];
  __shared__ int counts[choosing::warps];
  __shared__ unsigned found[2];
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  std::int32_t* const list = lists.row(first_list + block.list);
  const retention keep = call.keep.among(block.past);
  const int budget = static_cast<int>(keep.keys(block.past));
  if (block.reads_all) return list_all<Threads>(call, block, lists, first_list);

  const float* const scores = call.scores + block.list * call.score_stride;
  const int sinks = block.first + static_cast<int>(keep.sinks), recent = block.past - static_cast<int>(keep.recent);
  // Of slots [slot, slot + 4) and [slot + step, slot + step + 4), both a multiple of 4; 0 outside [begin, end). Loads without
  // conditions, which would wait for each other.
  const auto ranks_of = [&](unsigned(&ranks)[8], int slot, int step, int begin, int end) {
    const int last = static_cast<int>(call.score_stride) - 4;
    const float4 first = load_4(scores + min(slot, last)), second = load_4(scores + min(slot + step, last));
    const float values[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int own = slot + (i < 4 ? i : step + i - 4);
      ranks[i] = own < begin || own >= end ? 0 : own < sinks || own >= recent ? 0xffffffffu : rank_bits(values[i]);
    }
  };
  // The rank that the last one taken has, eight bits at a time, and how many of that rank are taken. Each lane counts for
  // itself, so that equal digits, of which there are many, do not wait for each other.
  const int aligned = block.first / 4 * 4;
  unsigned rank = 0, known = 0;
  int left = budget;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = thread; i < choosing::digits * 32; i += Threads) histogram[i] = 0;
    __syncthreads();
    for (int begin = aligned; begin < block.past; begin += 8 * Threads) {
      unsigned own[8];
      ranks_of(own, begin + 4 * thread, 4 * Threads, block.first, block.past);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (own[i] != 0 && (own[i] & known) == rank) atomicAdd(&histogram[(own[i] >> shift & 255u) * 32 + lane], 1);
      }
    }
    __syncthreads();
    // A warp sums eight digits, the highest first.
    for (int i = 0; i < choosing::digits / choosing::warps; ++i) {
      const int digit = warp * (choosing::digits / choosing::warps) + i;
      const int sum = __reduce_add_sync(all_lanes, histogram[digit * 32 + lane]);
      if (lane == 0) totals[digit] = sum;
    }
    __syncthreads();
    if (warp == 0) {
      int before = 0;
      for (int high = choosing::digits - 32; high >= 0; high -= 32) {
        const int digit = high + 31 - lane, own = totals[digit];
        int through = own;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int other = __shfl_up_sync(all_lanes, through, step);
          if (lane >= step) through += other;
        }
        through += before;
        if (through - own < left && through >= left) {
          found[0] = static_cast<unsigned>(digit);
          found[1] = static_cast<unsigned>(left - (through - own));
        }
        before = __shfl_sync(all_lanes, through, 31);
      }
    }
    __syncthreads();
    rank |= found[0] << shift;
    left = static_cast<int>(found[1]);
    known |= 255u << shift;
    __syncthreads();
  }

  // Each warp takes a run of slots, 256 at a time: counts first, then writes. Lane l has slots 4 l to 4 l + 3 of either half.
  const int each = ((block.past - aligned + choosing::warps - 1) / choosing::warps + 3) / 4 * 4;
  const int begin = aligned + warp * each, end = min(block.past, begin + each), from = max(begin, block.first);
  int above = 0, equal = 0, all;
  for (int first = begin; first < end; first += 256) {
    unsigned own[8];
    ranks_of(own, first + 4 * lane, 128, from, end);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      above += own[i] > rank;
      equal += own[i] == rank;
    }
  }
  above = __reduce_add_sync(all_lanes, above);
  equal = __reduce_add_sync(all_lanes, equal);
  const int equal_before = sum_before(equal, counts, all);
  const int taken = above + max(0, min(left - equal_before, equal));
  int at = sum_before(taken, counts, all), ties = left - equal_before;
  const unsigned lower = (1u << lane) - 1;
  for (int first = begin; first < end; first += 256) {
    unsigned own[8];
    ranks_of(own, first + 4 * lane, 128, from, end);
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
      int equals_before = 0, equals = 0;
#pragma unroll
      for (int i = half; i < half + 4; ++i) {
        const unsigned alike = __ballot_sync(all_lanes, own[i] == rank);
        equals_before += __popc(alike & lower);
        equals += __popc(alike);
      }
      bool mine[4];
      int before = 0, takes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mine[i] = own[half + i] > rank || (own[half + i] == rank && equals_before < ties);
        equals_before += own[half + i] == rank ? 1 : 0;
        const unsigned takers = __ballot_sync(all_lanes, mine[i]);
        before += __popc(takers & lower);
        takes += __popc(takers);
      }
      int place = at + before;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (mine[i]) list[place++] = first + 32 * half + 4 * lane + i;
      }
      at += takes;
      ties -= equals;
    }
  }
  if (thread == 0) lists.counts[first_list + block.list] = budget;
}

}}}}  // namespace skim::v0_2::cuda::detail
