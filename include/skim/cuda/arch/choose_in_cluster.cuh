// SPDX-License-Identifier: Apache-2.0
/// \file The slots of highest score on Hopper: as kernel/choose.cuh, by a cluster of blocks that hold all scores in registers
/// and smooth them as they read them.
#pragma once

#include <skim/cuda/arch/cluster.cuh>
#include <skim/cuda/kernel/choose.cuh>
#include <skim/cuda/selector/quoka_score.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct cluster_choosing {
  static constexpr int threads = 1024, warps = threads / 32, bins = 2 * threads, bin_bits = 11;

  /// Blocks of a cluster for so many slots, of which a thread holds 16 of four blocks, 20 of eight; 0 where that are too many.
  static int blocks(std::int64_t slots) { return slots <= 4 * 16 * threads ? 4 : slots <= 8 * 20 * threads ? 8 : 0; }
};

/// Of the sum of `own` over the block's threads what comes before each; the whole is left in `*all`. `of_warps [warps]`.
SKIM_DEVICE unsigned sum_before_thread(unsigned own, unsigned* of_warps, unsigned* all) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned through = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(all_lanes, through, step);
    if (lane >= step) through += other;
  }
  if (lane == 31) of_warps[warp] = through;
  __syncthreads();
  if (warp == 0) {
    unsigned sum = of_warps[lane];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const unsigned other = __shfl_up_sync(all_lanes, sum, step);
      if (lane >= step) sum += other;
    }
    of_warps[lane] = sum;
    if (lane == 31) *all = sum;
  }
  __syncthreads();
  return through - own + (warp > 0 ? of_warps[warp - 1] : 0);
}

/// Writes the list of each block and KV head from raw scores. A cluster for each list; `Each` slots of a thread lie together.
template <int Each, int Blocks>
__global__ void __launch_bounds__(cluster_choosing::threads, 1)
    choose_in_cluster(const quoka_call call, const index_lists lists, int first_list) {
#if SKIM_CUDA_SM90
  using choosing = cluster_choosing;
  __shared__ __align__(16) unsigned histograms[2][choosing::bins], merged[choosing::bins / Blocks];
  __shared__ unsigned of_warps[choosing::warps], found[3], ends[2], totals;
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, rank = rank_in_cluster();
  if (block.reads_all) {
    return list_all(quoka_rows{call, lists, first_list}.row(blockIdx.y), rank * choosing::threads + thread,
                    Blocks * choosing::threads);
  }
  const retention keep = call.keep.among(block.past);
  const int sinks = block.first + static_cast<int>(keep.sinks), recent = block.past - static_cast<int>(keep.recent);
  const int first = block.first / 4 * 4 + (rank * choosing::threads + thread) * Each;

  // Ranks of the thread's slots: 0 of what is no candidate, the highest of what is kept whatever it scores.
  unsigned own[Each];
  {
    const float* const raw = raw_scores(call, block.list);
    const int last = static_cast<int>(call.score_stride) - 1;
    constexpr int at_once = Each < 16 ? Each : Each < 20 ? 16 : 4;
#pragma unroll
    for (int part = 0; part < Each; part += at_once) {
      asm volatile("" ::: "memory");  // no loads of later parts before: there are no registers for them
      const int from = first + part;
      float scores[at_once + 2];  // and a neighbour on either side
      scores[0] = raw[min(max(from - 1, 0), last)];
      scores[at_once + 1] = raw[min(from + at_once, last)];
      if constexpr (at_once % 4 == 0) {
#pragma unroll
        for (int i = 0; i < at_once; i += 4) {
          const float4 four = load_4(raw + min(from + i, last - 3));
          scores[i + 1] = four.x;
          scores[i + 2] = four.y;
          scores[i + 3] = four.z;
          scores[i + 4] = four.w;
        }
      } else {
#pragma unroll
        for (int i = 0; i < at_once; ++i) scores[i + 1] = raw[min(from + i, last)];
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int slot = from + i;
        float score = scores[i + 1];
        if (call.smooth == 3) {
          score = smoothed(block, 3, slot, [&](int at) {
            return at < slot ? scores[i] : at > slot ? scores[i + 2] : scores[i + 1];
          });
        } else if (slot >= block.first && slot < block.past) {
          score = smoothed(block, call.smooth, slot, [&](int at) { return raw[at]; });
        }
        own[part + i] = slot < block.first || slot >= block.past ? 0
                        : slot < sinks || slot >= recent         ? ~0u
                                                                 : rank_bits(score);
      }
    }
  }

  // The ends of what is to be ranked spread it over the bins.
  unsigned low = ~0u, high = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    if (own[i] == 0 || own[i] == ~0u) continue;
    low = min(low, own[i]);
    high = max(high, own[i]);
  }
  low = __reduce_min_sync(all_lanes, low);
  high = __reduce_max_sync(all_lanes, high);
  if (lane == 0) {
    histograms[0][warp] = low;
    histograms[0][32 + warp] = high;
  }
  __syncthreads();
  if (warp == 0) {
    low = __reduce_min_sync(all_lanes, histograms[0][lane]);
    high = __reduce_max_sync(all_lanes, histograms[0][32 + lane]);
    if (lane == 0) {
      ends[0] = low;
      ends[1] = high;
    }
  }
  await_cluster();
  low = ~0u;
  high = 0;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
    const uint2 its =
        make_uint2(load_from(address_in(shared_address(ends), i)), load_from(address_in(shared_address(ends + 1), i)));
    low = min(low, its.x);
    high = max(high, its.y);
  }
#pragma unroll
  for (int i = thread; i < choosing::bins; i += choosing::threads) histograms[0][i] = histograms[1][i] = 0;
  __syncthreads();

  // Of the ranks in [low, last] so many are taken, in the order of slots, and all above.
  unsigned wanted = static_cast<unsigned>(keep.keys(block.past) - keep.sinks - keep.recent), last = high;
  if (wanted == 0) low = last = ~0u - 1;
  for (int shift = max(0, 32 - __clz(high - low) - choosing::bin_bits), pass = 0; wanted > 0; ++pass) {
    unsigned* const histogram = histograms[pass % 2];
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      if (own[i] >= low && own[i] <= last) atomicAdd(&histogram[(own[i] - low) >> shift], 1u);
    }
    await_cluster();
    // Each block adds up its share of the bins, then fetches all sums, the highest bins first.
    constexpr int share = choosing::bins / Blocks;
    if (thread < share / 2) {
      uint2 sum = make_uint2(0, 0);
#pragma unroll
      for (int i = 0; i < Blocks; ++i) {
        const uint2 its = load_2_from(address_in(shared_address(histogram + rank * share + 2 * thread), i));
        sum.x += its.x;
        sum.y += its.y;
      }
      *reinterpret_cast<uint2*>(merged + 2 * thread) = sum;
    }
    await_cluster();
    const int bin = choosing::bins - 2 - 2 * thread;
    const uint2 both = load_2_from(address_in(shared_address(merged + bin % share), bin / share));
    const unsigned above = sum_before_thread(both.x + both.y, of_warps, &totals);
    if (above < wanted && wanted <= above + both.x + both.y) {
      const bool lower = wanted > above + both.y;
      found[0] = static_cast<unsigned>(bin + (lower ? 0 : 1));
      found[1] = wanted - above - (lower ? both.y : 0);
      found[2] = lower ? both.x : both.y;
    }
    for (int i = thread; i < choosing::bins; i += choosing::threads) histograms[(pass + 1) % 2][i] = 0;
    __syncthreads();
    low += found[0] << shift;
    last = low + ((1u << shift) - 1);
    wanted = found[1];
    if (found[2] == wanted || shift == 0) break;
    shift = max(0, shift - choosing::bin_bits);
    __syncthreads();
  }

  // Ascending: counts of both kinds share a number, each below 2^16.
  unsigned kinds = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) kinds += own[i] > last ? 1u << 16 : own[i] >= low ? 1u : 0u;
  const unsigned before = sum_before_thread(kinds, of_warps, &totals);
  await_cluster();
  unsigned above = before >> 16, equal = before & 0xffffu;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
    const unsigned its = load_from(address_in(shared_address(&totals), i));
    above += i < rank ? its >> 16 : 0;
    equal += i < rank ? its & 0xffffu : 0;
  }
  std::int32_t* const list = lists.row(first_list + block.list);
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    const bool is_above = own[i] > last, is_equal = !is_above && own[i] >= low && own[i] != 0;
    if (is_above || (is_equal && equal < wanted)) list[above + min(equal, wanted)] = first + i;
    above += is_above ? 1 : 0;
    equal += is_equal ? 1 : 0;
  }
  if (rank == 0 && thread == 0) {
    lists.counts[first_list + block.list] = static_cast<std::int32_t>(keep.keys(block.past));
  }
  await_cluster();  // others may still read this block's shared memory
#endif
}

/// Launches it. Says whether it could.
inline bool choose_by_clusters(const quoka_call& call, const index_lists& lists, int first_list, launcher& launch) {
  using choosing = cluster_choosing;
  const int blocks = launch.hopper() ? choosing::blocks(call.score_stride) : 0;
  if (blocks == 0) return false;
  const std::int64_t each = pieces(call.score_stride, std::int64_t{blocks} * choosing::threads);
  const auto with = [&](auto of_thread, auto cluster) {
    launch.in_clusters(cluster.value, &choose_in_cluster<of_thread.value, cluster.value>, cluster.value,
                       std::int64_t{call.blocks} * call.heads, choosing::threads, 0, call, lists, first_list);
  };
  constexpr std::integral_constant<int, 4> four{};
  constexpr std::integral_constant<int, 8> eight{};
  if (blocks == 8) {
    if (each <= 16) {
      with(std::integral_constant<int, 16>{}, eight);
    } else {
      with(std::integral_constant<int, 20>{}, eight);
    }
  } else if (each <= 1) {
    with(std::integral_constant<int, 1>{}, four);
  } else if (each <= 2) {
    with(std::integral_constant<int, 2>{}, four);
  } else if (each <= 4) {
    with(std::integral_constant<int, 4>{}, four);
  } else if (each <= 8) {
    with(std::integral_constant<int, 8>{}, four);
  } else {
    with(std::integral_constant<int, 16>{}, four);
  }
  return true;
}

}}}}  // namespace skim::v0_2::cuda::detail
