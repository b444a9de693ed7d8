// SPDX-License-Identifier: Apache-2.0
/// \file Where the highest ranks of a cluster of blocks end, which hold them in registers.
#pragma once

#include <skim/cuda/arch/cluster.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct cluster_choosing {
  static constexpr int threads = 1024, warps = threads / 32, bins = 2 * threads, bin_bits = 11, most_blocks = 8;

  /// Slots of a thread at most; clusters of four at a time on 132 processors, whose groups do not divide by four.
  static constexpr int most_each(bool by_position) { return by_position ? 16 : 20; }
  static constexpr int fours_at_once = 30;

  /// Blocks of a cluster for each of `rows` rows of so many slots; 0 where those are too many. Of one block a thread holds
  /// at most 8: four finish sooner.
  static int blocks(std::int64_t slots, bool by_position, std::int64_t rows = 1) {
    return slots <= 8 * threads                                                    ? 1
           : rows > fours_at_once && slots <= 2 * most_each(by_position) * threads ? 2
           : slots <= 4 * most_each(by_position) * threads                         ? 4
           : slots <= 8 * most_each(by_position) * threads                         ? 8
                                                                                   : 0;
  }
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

/// What the ranks of a block lie between, and the ends of groups of lanes: since each group that has ranks has one of at most
/// `most_low`, and one of at least `least_high`, a cut that leaves fewer out, or takes no more, than there are groups lies on
/// that side of it.
struct cluster_ends {
  unsigned low, high, most_low, least_high, groups, ranks;

  static SKIM_DEVICE cluster_ends none() { return {~0u, 0, 0, ~0u, 0, 0}; }

#if SKIM_CUDA_SM90
  /// From the shared memory of a block of the cluster.
  SKIM_DEVICE void load(std::uint32_t address) {
    low = load_from(address);
    high = load_from(address + 4);
    most_low = load_from(address + 8);
    least_high = load_from(address + 12);
    groups = load_from(address + 16);
    ranks = load_from(address + 20);
  }
#endif
  /// From those of the lanes, whose `low`, `high` and `ranks` are known, for groups of `lanes`: what they have together.
  SKIM_DEVICE void join_lanes(int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) {
      low = min(low, __shfl_xor_sync(all_lanes, low, step));
      high = max(high, __shfl_xor_sync(all_lanes, high, step));
    }
    const bool some = high != 0;
    groups = some && lanes > 0 && threadIdx.x % static_cast<unsigned>(max(lanes, 1)) == 0 ? 1 : 0;
    most_low = some ? low : 0;
    least_high = some ? high : ~0u;
    join_warp();
  }
  /// From those of a warp's lanes.
  SKIM_DEVICE void join_warp() {
    low = __reduce_min_sync(all_lanes, low);
    high = __reduce_max_sync(all_lanes, high);
    most_low = __reduce_max_sync(all_lanes, most_low);
    least_high = __reduce_min_sync(all_lanes, least_high);
    groups = __reduce_add_sync(all_lanes, groups);
    ranks = __reduce_add_sync(all_lanes, ranks);
  }
};

/// What the blocks of a cluster share.
struct cluster_memory {
  using own = cluster_choosing;
  unsigned histograms[2][own::bins], of_warps[own::warps], found[3], totals;
  unsigned low, last, counted;  // what the cut lies between; ranks up to `last` and beyond it, if some are
  bool narrow;                  // few ranks lie there
  unsigned listed, list[own::bins],
      begins[own::most_blocks + 1];  // ranks between them; where those of each block begin
  cluster_ends ends;
};

/// Of the ranks in [low, last] `taken` are, and all above; there are `equals` of them, which differ only where all are taken.
struct cluster_cut {
  unsigned low, last;
  int taken, equals;
};

#if SKIM_CUDA_SM90

inline constexpr int gathered_ranks = 4;  // of a thread, at most

/// Gathers the cluster's ranks in [low, last], where `memory` says, in each of its blocks, zeros behind them. Says whether they
/// are few enough. A cut among them then needs no other block.
template <int Blocks, int Each, int Most>
SKIM_DEVICE bool gather_ranks(const unsigned (&own)[Each], cluster_memory& memory, unsigned (&gathered)[Most]) {
  using choosing = cluster_choosing;
  const int thread = threadIdx.x, lane = thread % 32;
  const unsigned low = memory.low, last = memory.last;
  unsigned mine = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) mine += own[i] >= low && own[i] <= last ? 1u : 0u;
  if (__any_sync(all_lanes, mine != 0)) {
    unsigned place = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const unsigned other = __shfl_up_sync(all_lanes, place, step);
      if (lane >= step) place += other;
    }
    unsigned begin = lane == 31 ? atomicAdd(&memory.listed, place) : 0;
    begin = __shfl_sync(all_lanes, begin, 31);
    place += begin - mine;
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      if (own[i] < low || own[i] > last) continue;
      if (place < choosing::bins) memory.list[place] = own[i];
      ++place;
    }
  }
  await_cluster<Blocks>();
  if (thread < 32) {
    const unsigned its = lane < Blocks ? load_from(address_in(shared_address(&memory.listed), lane)) : 0;
    unsigned through = its;
#pragma unroll
    for (int step = 1; step <= Blocks; step *= 2) {
      const unsigned other = __shfl_up_sync(all_lanes, through, step);
      if (lane >= step) through += other;
    }
    const bool fits = __all_sync(all_lanes, its <= choosing::bins && through <= Most * choosing::threads);
    if (lane <= Blocks) memory.begins[lane] = fits ? through - its : 0;
  }
  __syncthreads();
  const unsigned count = memory.begins[Blocks];
#pragma unroll
  for (int i = 0; i < Most; ++i) {
    const unsigned at = static_cast<unsigned>(i * choosing::threads + thread);
    int block = 0;
#pragma unroll
    for (int b = 1; b < Blocks; ++b) block += at >= memory.begins[b] ? 1 : 0;
    gathered[i] =
        at < count ? load_from(address_in(shared_address(memory.list + at - memory.begins[block]), block)) : 0;
  }
  return count > 0;
}

/// Finds the cut below the `wanted` highest of the ranks of `Blocks` blocks, where `memory` says.
template <int Blocks, int Each>
SKIM_DEVICE cluster_cut cut_between(const unsigned (&own)[Each], unsigned wanted, cluster_memory& memory,
                                    unsigned* merged) {
  using choosing = cluster_choosing;
  const int thread = threadIdx.x, rank = rank_in_cluster();
  unsigned low = memory.low, last = memory.last;
  if (wanted == 0) low = last = ~0u - 1;
  for (int shift = max(0, 32 - __clz(last - low) - choosing::bin_bits), pass = 0; wanted > 0; ++pass) {
    unsigned* const histogram = memory.histograms[pass % 2];
    if (low == last) {  // equals would wait for each other
      unsigned alike = 0;
#pragma unroll
      for (int i = 0; i < Each; ++i) alike += own[i] == low ? 1u : 0u;
      if (alike != 0) atomicAdd(&histogram[0], alike);
    } else {
#pragma unroll
      for (int i = 0; i < Each; ++i) {
        if (own[i] >= low && own[i] <= last) atomicAdd(&histogram[(own[i] - low) >> shift], 1u);
      }
    }
    await_cluster<Blocks>();
    // Each block adds up its share of the bins, then fetches all sums, the highest bins first.
    constexpr int share = choosing::bins / Blocks;
    if (Blocks > 1 && thread < share / 2) {
      uint2 sum = make_uint2(0, 0);
#pragma unroll
      for (int i = 0; i < Blocks; ++i) {
        const uint2 its = load_2_from(address_in(shared_address(histogram + rank * share + 2 * thread), i));
        sum.x += its.x;
        sum.y += its.y;
      }
      *reinterpret_cast<uint2*>(merged + 2 * thread) = sum;
    }
    if (Blocks > 1) await_cluster<Blocks>();
    const int bin = choosing::bins - 2 - 2 * thread;
    const unsigned* const sums = Blocks > 1 ? merged : histogram;
    const uint2 both = load_2_from(address_in(shared_address(sums + bin % share), Blocks > 1 ? bin / share : rank));
    const unsigned above = sum_before_thread(both.x + both.y, memory.of_warps, &memory.totals);
    if (pass == 0 && memory.counted != 0) wanted -= memory.counted - memory.totals;  // those above the bins are taken
    if (above < wanted && wanted <= above + both.x + both.y) {
      const bool lower = wanted > above + both.y;
      memory.found[0] = static_cast<unsigned>(bin + (lower ? 0 : 1));
      memory.found[1] = wanted - above - (lower ? both.y : 0);
      memory.found[2] = lower ? both.x : both.y;
    }
    for (int i = thread; i < choosing::bins; i += choosing::threads) memory.histograms[(pass + 1) % 2][i] = 0;
    __syncthreads();
    low += memory.found[0] << shift;
    last = low + min((1u << shift) - 1, ~0u - 1 - low);  // ages come close to the highest number
    wanted = memory.found[1];
    const unsigned equals = memory.found[2];
    if (equals == wanted || shift == 0) return {low, last, static_cast<int>(wanted), static_cast<int>(equals)};
    shift = max(0, shift - choosing::bin_bits);
    __syncthreads();
  }
  return {low, last, 0, 0};
}

/// Finds the cut below the `wanted` highest of the cluster's ranks, 0 and the highest number aside. Groups of `lanes` should
/// be more than those taken, or left out; 0 where the ends of groups say nothing.
template <int Blocks, int Each>
SKIM_DEVICE cluster_cut cut_in_cluster(const unsigned (&own)[Each], unsigned wanted, int lanes, cluster_memory& memory,
                                       unsigned* merged) {
  using choosing = cluster_choosing;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, rank = rank_in_cluster();
  // The ends of what is to be ranked, which spread it over the bins, and what the cut lies between.
  cluster_ends ends = cluster_ends::none();
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    if (own[i] == 0 || own[i] == ~0u) continue;
    ends.low = min(ends.low, own[i]);
    ends.high = max(ends.high, own[i]);
    ++ends.ranks;
  }
  ends.join_lanes(lanes);
  cluster_ends* const of_warps = reinterpret_cast<cluster_ends*>(memory.histograms[0]);
  if (lane == 0) of_warps[warp] = ends;
  __syncthreads();
  if (warp == 0) {
    ends = of_warps[lane];
    ends.join_warp();
    if (lane == 0) memory.ends = ends;
  }
  await_cluster<Blocks>();
  if (warp == 0) {
    ends = cluster_ends::none();
    if (lane < Blocks) ends.load(address_in(shared_address(&memory.ends), Blocks > 1 ? lane : rank));
    ends.join_warp();
    const bool few_leave = ends.ranks - wanted < ends.groups, few_stay = !few_leave && wanted <= ends.groups;
    if (lane == 0) {
      memory.low = few_stay ? ends.least_high : ends.low;
      memory.last = few_leave ? ends.most_low : ends.high;
      memory.counted = few_leave ? ends.ranks : 0;
      // Of n groups whose ends lie anywhere some n log n ranks lie in between.
      memory.narrow = (few_leave || few_stay) && 8 * ends.groups <= gathered_ranks * choosing::threads;
      if (Blocks > 1) memory.listed = 0;  // else other blocks may still ask for it
    }
  }
#pragma unroll
  for (int i = thread; i < choosing::bins; i += choosing::threads)
    memory.histograms[0][i] = memory.histograms[1][i] = 0;
  __syncthreads();

  if constexpr (Blocks > 2) {  // two have no registers for it, and wait for each other less
    if (memory.narrow && wanted > 0) {
      unsigned gathered[gathered_ranks];
      if (gather_ranks<Blocks>(own, memory, gathered)) return cut_between<1>(gathered, wanted, memory, merged);
    }
  }
  return cut_between<Blocks>(own, wanted, memory, merged);
}

#endif  // SKIM_CUDA_SM90

}}}}  // namespace skim::v0_2::cuda::detail
