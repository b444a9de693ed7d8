// SPDX-License-Identifier: Apache-2.0
/// \file The slots of highest score on Hopper: as kernel/choose.cuh, by a cluster of blocks that hold all ranks in registers.
#pragma once

#include <skim/cuda/arch/cluster.cuh>
#include <skim/cuda/kernel/choose.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct cluster_choosing {
  static constexpr int threads = 1024, warps = threads / 32, bins = 2 * threads, bin_bits = 11;

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

/// The same for numbers that all lanes of a warp have, over the block's warps.
SKIM_DEVICE unsigned sum_before_warp(unsigned own, unsigned* of_warps, unsigned* all) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) of_warps[warp] = own;
  __syncthreads();
  const unsigned its = of_warps[lane];
  const unsigned before = __reduce_add_sync(all_lanes, lane < warp ? its : 0), sum = __reduce_add_sync(all_lanes, its);
  __syncthreads();
  if (threadIdx.x == 0) *all = sum;
  return before;
}

/// What the blocks of a cluster share.
struct cluster_memory {
  using own = cluster_choosing;
  unsigned histograms[2][own::bins], of_warps[own::warps], found[3], ends[2], totals;
};

/// Of the ranks in [low, last] `taken` are, and all above; there are `equals` of them, which differ only where all are taken.
struct cluster_cut {
  unsigned low, last;
  int taken, equals;
};

#if SKIM_CUDA_SM90

/// Finds the cut below the `wanted` highest of the cluster's ranks, 0 and the highest number aside.
template <int Blocks, int Each>
SKIM_DEVICE cluster_cut cut_in_cluster(const unsigned (&own)[Each], unsigned wanted, cluster_memory& memory,
                                       unsigned* merged) {
  using choosing = cluster_choosing;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, rank = rank_in_cluster();
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
    memory.histograms[0][warp] = low;
    memory.histograms[0][32 + warp] = high;
  }
  __syncthreads();
  if (warp == 0) {
    low = __reduce_min_sync(all_lanes, memory.histograms[0][lane]);
    high = __reduce_max_sync(all_lanes, memory.histograms[0][32 + lane]);
    if (lane == 0) {
      memory.ends[0] = low;
      memory.ends[1] = high;
    }
  }
  await_cluster<Blocks>();
  low = ~0u;
  high = 0;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
    const std::uint32_t ends = shared_address(memory.ends);
    low = min(low, load_from(address_in(ends, i)));
    high = max(high, load_from(address_in(ends + 4, i)));
  }
#pragma unroll
  for (int i = thread; i < choosing::bins; i += choosing::threads)
    memory.histograms[0][i] = memory.histograms[1][i] = 0;
  __syncthreads();

  unsigned last = high;
  if (wanted == 0) low = last = ~0u - 1;
  for (int shift = max(0, 32 - __clz(high - low) - choosing::bin_bits), pass = 0; wanted > 0; ++pass) {
    unsigned* const histogram = memory.histograms[pass % 2];
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      if (own[i] >= low && own[i] <= last) atomicAdd(&histogram[(own[i] - low) >> shift], 1u);
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
    const uint2 both = load_2_from(address_in(shared_address(sums + bin % share), bin / share));
    const unsigned above = sum_before_thread(both.x + both.y, memory.of_warps, &memory.totals);
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

#endif  // SKIM_CUDA_SM90

/// Writes the list of each row: `rows.row(i)`, as `choose_highest`. A cluster for each; a thread has `Each` slots from `first`
/// on, as `slots_of_lane` says, whose ranks `rows.load_ranks(i, row, first, ages, ranks)` gives: 0 of what is no candidate, the
/// highest number of what is kept whatever it scores, because its age (`age_of`) is at least ages[0] counted from the oldest,
/// ages[1] from the newest.
template <int Each, int Blocks, class Rows>
__global__ void __launch_bounds__(cluster_choosing::threads, 1) choose_in_cluster(const Rows rows) {
#if SKIM_CUDA_SM90
  using choosing = cluster_choosing;
  __shared__ __align__(16) cluster_memory memory;
  __shared__ __align__(16) unsigned merged[Blocks > 1 ? choosing::bins / Blocks : 4];
  start_in_chain();
  const int at = blockIdx.y, thread = threadIdx.x, rank = rank_in_cluster();
  const score_row row = rows.row(at);
  if (row.count >= row.end - row.begin) {
    return list_all(row, rank * choosing::threads + thread, Blocks * choosing::threads);
  }
  using slots = slots_of_lane<Each>;
  const int first = slots::first(row.begin / 4 * 4 + (rank * choosing::warps + thread / 32) * 32 * Each);
  unsigned own[Each];
  // Ranks by age of the slots that `admitted(i)`.
  const auto load_ages = [&](bool newest, const auto& admitted) {
    const score_row row = rows.row(at);  // found again, as below: in between there are no registers for it
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      if (i % 4 == 0) asm volatile("" ::: "memory");  // no more loads before: there are no registers for them
      const int slot = slots::at(first, i);
      const bool exists = slot >= row.begin && slot < row.end && admitted(i);
      own[i] = exists ? age_of(rows.position(at, slot), newest) : 0;
    }
  };
  unsigned ages[2] = {~0u, ~0u};
  if constexpr (Rows::by_position) {
#pragma unroll 1
    for (int newest = 0; newest < 2; ++newest) {
      const int count = newest ? row.newest : row.lowest;
      if (count == 0) continue;
      load_ages(newest != 0, [](int) { return true; });
      const unsigned age = cut_in_cluster<Blocks>(own, static_cast<unsigned>(count), memory, merged).low;
      (newest ? ages[1] : ages[0]) = age;
      await_cluster<Blocks>();
    }
  } else {
    if (row.lowest > 0) ages[0] = age_of(rows.position(at, row.begin + row.lowest - 1), false);
    if (row.newest > 0) ages[1] = age_of(rows.position(at, row.end - row.newest), true);
  }
  rows.load_ranks(at, row, first, ages, own);
  cluster_cut cut =
      cut_in_cluster<Blocks>(own, static_cast<unsigned>(row.count - row.lowest - row.newest), memory, merged);
  // Of several equals the first slots would be taken: where those are not the wanted positions, these are settled first.
  if ((Rows::by_position || rows.row(at).later) && cut.taken < cut.equals) {
    unsigned above = 0;
#pragma unroll
    for (int i = 0; i < Each; ++i) above |= own[i] > cut.last ? 1u << i : 0;
    load_ages(rows.row(at).later, [&](int i) { return own[i] >= cut.low && own[i] <= cut.last; });
    await_cluster<Blocks>();
    const unsigned age = cut_in_cluster<Blocks>(own, static_cast<unsigned>(cut.taken), memory, merged).low;
#pragma unroll
    for (int i = 0; i < Each; ++i) own[i] = (above >> i & 1u) != 0 || (own[i] != 0 && own[i] >= age) ? ~0u : 0;
    cut = {~0u - 1, ~0u - 1, 0, 0};
  }

  // Ascending, warp by warp: counts of both kinds share a number, each below 2^16 in a block.
  unsigned kinds = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    asm volatile("");  // one after another: there are no registers for all
    const unsigned above = __ballot_sync(all_lanes, own[i] > cut.last);
    const unsigned equal = __ballot_sync(all_lanes, own[i] >= cut.low && own[i] <= cut.last);
    kinds += static_cast<unsigned>(__popc(above)) << 16 | static_cast<unsigned>(__popc(equal));
  }
  const unsigned before = sum_before_warp(kinds, memory.of_warps, &memory.totals);
  await_cluster<Blocks>();
  int place = static_cast<int>(before >> 16), equals = static_cast<int>(before & 0xffffu);
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
    const unsigned its = load_from(address_in(shared_address(&memory.totals), i));
    place += i < rank ? static_cast<int>(its >> 16) : 0;
    equals += i < rank ? static_cast<int>(its & 0xffffu) : 0;
  }
  place += min(equals, cut.taken);
  const score_row again = rows.row(at);
  const unsigned lower = (1u << thread % 32) - 1;
#pragma unroll
  for (int part = 0; part < Each; part += slots::wide) {
    asm volatile("");
    bool some = false;
#pragma unroll
    for (int i = 0; i < slots::wide; ++i) some |= own[part + i] >= cut.low;
    if (!__any_sync(all_lanes, some)) continue;  // most parts have none
    bool mine[slots::wide];
    int equals_before = equals, all_equal = 0;
#pragma unroll
    for (int i = 0; i < slots::wide; ++i) {
      mine[i] = own[part + i] >= cut.low && own[part + i] <= cut.last;
      const unsigned alike = __ballot_sync(all_lanes, mine[i]);
      equals_before += __popc(alike & lower);
      all_equal += __popc(alike);
    }
    int own_place = place;
#pragma unroll
    for (int i = 0; i < slots::wide; ++i) {
      const bool is_equal = mine[i];
      mine[i] = own[part + i] > cut.last || (is_equal && equals_before < cut.taken);
      equals_before += is_equal ? 1 : 0;
      const unsigned takers = __ballot_sync(all_lanes, mine[i]);
      own_place += __popc(takers & lower);
      place += __popc(takers);
    }
#pragma unroll
    for (int i = 0; i < slots::wide; ++i) {
      // As in `choose_highest`, where positions repeat.
      if (mine[i] && own_place < again.count) again.list[own_place++] = slots::at(first, part + i);
    }
    equals += all_equal;
  }
  if (rank == 0 && thread == 0) *again.length = again.count;
  await_cluster<Blocks>();  // others may still read this block's shared memory
#endif
}

/// Launches it for `count` rows of at most so many slots. Says whether it could.
template <class Rows>
bool choose_by_clusters(const Rows& rows, std::int64_t slots, std::int64_t count, launcher& launch) {
  using choosing = cluster_choosing;
  const int blocks = launch.hopper() ? choosing::blocks(slots, Rows::by_position, count) : 0;
  if (blocks == 0) return false;
  const std::int64_t each = pieces(slots, std::int64_t{blocks} * choosing::threads);
  const auto with = [&](auto of_thread, auto cluster) {
    launch.in_clusters(cluster.value, &choose_in_cluster<of_thread.value, cluster.value, Rows>, cluster.value, count,
                       choosing::threads, 0, rows);
  };
  constexpr std::integral_constant<int, 1> one{};
  constexpr std::integral_constant<int, 2> two{};
  constexpr std::integral_constant<int, 4> four{};
  constexpr std::integral_constant<int, 8> eight{};
  if (blocks == 8) {
    if (each <= 16) return with(std::integral_constant<int, 16>{}, eight), true;
    if constexpr (!Rows::by_position) with(std::integral_constant<int, 20>{}, eight);
  } else if (blocks == 2) {
    if (each <= 8) return with(std::integral_constant<int, 8>{}, two), true;
    if (each <= 16) return with(std::integral_constant<int, 16>{}, two), true;
    if constexpr (!Rows::by_position) with(std::integral_constant<int, 20>{}, two);
  } else if (blocks == 1) {
    if (each <= 4) return with(std::integral_constant<int, 4>{}, one), true;
    with(std::integral_constant<int, 8>{}, one);
  } else if (each <= 4) {
    with(std::integral_constant<int, 4>{}, four);
  } else if (each <= 8) {
    with(std::integral_constant<int, 8>{}, four);
  } else if (each <= 16) {
    with(std::integral_constant<int, 16>{}, four);
  } else {
    if constexpr (!Rows::by_position) with(std::integral_constant<int, 20>{}, four);
  }
  return true;
}

}}}}  // namespace skim::v0_2::cuda::detail
