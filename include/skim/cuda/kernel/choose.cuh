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

/// Writes the list of each block and KV head. A block for each list.
template <int Threads>
__global__ void __launch_bounds__(Threads) choose_highest(const quoka_call call, const index_lists lists, int first_list) {
  static_assert(Threads == choosing::threads, "one digit sums over all warps");
  __shared__ int histogram[choosing::digits * 32], totals[choosing::digits];
  __shared__ int counts[choosing::warps];
  __shared__ unsigned found[2];
  const quoka_block block(call, blockIdx.y);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  std::int32_t* const list = lists.row(first_list + block.list);
  const retention keep = call.keep.among(block.past);
  const int budget = static_cast<int>(keep.keys(block.past));
  const bool dense = (call.dense_blocks >> (block.list / call.heads) & 1u) != 0;
  if (block.reads_all) {
    const int begin = dense ? 0 : block.first;
    for (int i = thread; i < block.past - begin; i += Threads) list[i] = begin + i;
    if (thread == 0) lists.counts[first_list + block.list] = block.past - begin;
    return;
  }

  const float* const scores = call.scores + block.list * call.score_stride;
  const int sinks = block.first + static_cast<int>(keep.sinks), recent = block.past - static_cast<int>(keep.recent);
  // Of slots first, first + step, ...; 0 from `end` on. Loads without conditions, which would wait for each other.
  const auto ranks_of = [&](unsigned(&ranks)[8], int first, int step, int end) {
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = scores[min(first + i * step, block.past - 1)];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int slot = first + i * step;
      ranks[i] = slot >= end ? 0 : slot < sinks || slot >= recent ? 0xffffffffu : rank_bits(values[i]);
    }
  };
  // The rank that the last one taken has, eight bits at a time, and how many of that rank are taken. Each lane counts for
  // itself, so that equal digits, of which there are many, do not wait for each other.
  unsigned rank = 0, known = 0;
  int left = budget;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = thread; i < choosing::digits * 32; i += Threads) histogram[i] = 0;
    __syncthreads();
    for (int begin = block.first + warp * 32; begin < block.past; begin += 8 * Threads) {
      unsigned own[8];
      ranks_of(own, begin + lane, Threads, block.past);
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

  // Each warp takes a run of slots: counts first, then writes.
  const int each = (block.count + choosing::warps - 1) / choosing::warps;
  const int begin = block.first + warp * each, end = min(block.past, begin + each);
  int above = 0, equal = 0, all;
  for (int first = begin; first < end; first += 256) {
    unsigned own[8];
    ranks_of(own, first + lane, 32, end);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      above += __popc(__ballot_sync(all_lanes, own[i] > rank));
      equal += __popc(__ballot_sync(all_lanes, own[i] == rank));
    }
  }
  const int equal_before = sum_before(equal, counts, all);
  const int taken = above + max(0, min(left - equal_before, equal));
  int at = sum_before(taken, counts, all), ties = left - equal_before;
  const unsigned lower = (1u << lane) - 1;
  for (int first = begin; first < end; first += 256) {
    unsigned own[8];
    ranks_of(own, first + lane, 32, end);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned equals = __ballot_sync(all_lanes, own[i] == rank);
      const bool mine = own[i] > rank || (own[i] == rank && __popc(equals & lower) < ties);
      const unsigned takes = __ballot_sync(all_lanes, mine);
      if (mine) list[at + __popc(takes & lower)] = first + 32 * i + lane;
      at += __popc(takes);
      ties -= __popc(equals);
    }
  }
  if (thread == 0) lists.counts[first_list + block.list] = budget;
}

}}}}  // namespace skim::v0_2::cuda::detail
