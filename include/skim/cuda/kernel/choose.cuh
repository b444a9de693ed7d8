// SPDX-License-Identifier: Apache-2.0
/// \file The slots of highest score, ascending: a radix select, equal scores by the earlier slot.
#pragma once

#include <skim/cuda/selector/quoka_call.cuh>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct choosing {
  static constexpr int threads = 1024, warps = threads / 32, digits = 2048;
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
  __shared__ int histogram[choosing::digits];
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
  const auto rank_of = [&](int slot) {
    return slot < sinks || slot >= recent ? 0xffffffffu : rank_bits(scores[slot]);
  };
  // The rank that the last one taken has, eleven bits at a time, and how many of that rank are taken.
  unsigned rank = 0, known = 0;
  int left = budget;
  for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift == 10 ? 0 : -1) {
    const unsigned digit_mask = shift == 0 ? 1023u : 2047u;
    for (int i = thread; i < choosing::digits; i += Threads) histogram[i] = 0;
    __syncthreads();
    for (int slot = block.first + thread; slot < block.past; slot += Threads) {
      const unsigned own = rank_of(slot);
      if ((own & known) == rank) atomicAdd(&histogram[own >> shift & digit_mask], 1);
    }
    __syncthreads();
    // Two digits a thread, the highest first.
    const int high = choosing::digits - 1 - 2 * thread;
    const int pair = histogram[high] + histogram[high - 1];
    int before = pair;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(all_lanes, before, step);
      if (lane >= step) before += other;
    }
    int all;
    const int of_warp = __shfl_sync(all_lanes, before, 31);
    before += sum_before(of_warp, counts, all) - pair;
    if (before < left && before + pair >= left) {
      const bool second = before + histogram[high] < left;
      found[0] = static_cast<unsigned>(second ? high - 1 : high);
      found[1] = static_cast<unsigned>(left - before - (second ? histogram[high] : 0));
    }
    __syncthreads();
    rank |= found[0] << shift;
    left = static_cast<int>(found[1]);
    known |= digit_mask << shift;
    __syncthreads();
  }

  // Each warp takes a run of slots: counts first, then writes.
  const int each = (block.count + choosing::warps - 1) / choosing::warps;
  const int begin = block.first + warp * each, end = min(block.past, begin + each);
  int above = 0, equal = 0, all;
  for (int slot = begin + lane; slot - lane < end; slot += 32) {
    const unsigned own = slot < end ? rank_of(slot) : 0;
    above += __popc(__ballot_sync(all_lanes, own > rank));
    equal += __popc(__ballot_sync(all_lanes, slot < end && own == rank));
  }
  const int equal_before = sum_before(equal, counts, all);
  const int taken = above + max(0, min(left - equal_before, equal));
  int at = sum_before(taken, counts, all), ties = left - equal_before;
  const unsigned lower = (1u << lane) - 1;
  for (int slot = begin + lane; slot - lane < end; slot += 32) {
    const unsigned own = slot < end ? rank_of(slot) : 0;
    const unsigned equals = __ballot_sync(all_lanes, slot < end && own == rank);
    const bool mine = own > rank || (slot < end && own == rank && __popc(equals & lower) < ties);
    const unsigned takes = __ballot_sync(all_lanes, mine);
    if (mine) list[at + __popc(takes & lower)] = slot;
    at += __popc(takes);
    ties -= __popc(equals);
  }
  if (thread == 0) lists.counts[first_list + block.list] = budget;
}

}}}}  // namespace skim::v0_2::cuda::detail
