// SPDX-License-Identifier: Apache-2.0
/// \file The slots of highest score on Hopper: as kernel/choose.cuh, by a cluster of blocks that hold all ranks in registers.
#pragma once

#include <skim/cuda/arch/cut_in_cluster.cuh>
#include <skim/cuda/kernel/choose.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Of the sum of `own`, which all lanes of a warp have, over the block's warps what comes before each; the whole is left in
/// `*all`. `of_warps [warps]`.
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

/// Writes the list of each row: `rows.row(i)`, as `choose_highest`, and, where `rows.left_out(i)` is a place, what it leaves
/// out. A cluster for each; a thread has `Each` slots from `first` on, as `slots_of_lane` says, whose ranks
/// `rows.load_ranks(i, row, first, ages, ranks)` gives: 0 of what is no candidate, the highest number of what is kept whatever
/// it scores, because its age (`age_of`) is at least ages[0] counted from the oldest, ages[1] from the newest.
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
      const unsigned age = cut_in_cluster<Blocks>(own, static_cast<unsigned>(count), 0, memory, merged).low;
      (newest ? ages[1] : ages[0]) = age;
      await_cluster<Blocks>();
    }
  } else {
    if (row.lowest > 0) ages[0] = age_of(rows.position(at, row.begin + row.lowest - 1), false);
    if (row.newest > 0) ages[1] = age_of(rows.position(at, row.end - row.newest), true);
  }
  rows.load_ranks(at, row, first, ages, own);
  // Groups of lanes, of which there are to be more than are taken, or left out.
  const int scored = row.count - row.lowest - row.newest, few = min(scored, row.end - row.begin - row.count);
  int lanes = 32;
  while (lanes > 4 && (row.end - row.begin) / (Each * lanes) <= few) lanes /= 2;
  cluster_cut cut = cut_in_cluster<Blocks>(own, static_cast<unsigned>(scored), lanes, memory, merged);
  // Of several equals the first slots would be taken: where those are not the wanted positions, these are settled first.
  if ((Rows::by_position || rows.row(at).later) && cut.taken < cut.equals) {
    unsigned above = 0;
#pragma unroll
    for (int i = 0; i < Each; ++i) above |= own[i] > cut.last ? 1u << i : 0;
    load_ages(rows.row(at).later, [&](int i) { return own[i] >= cut.low && own[i] <= cut.last; });
    await_cluster<Blocks>();
    const unsigned age = cut_in_cluster<Blocks>(own, static_cast<unsigned>(cut.taken), 0, memory, merged).low;
#pragma unroll
    for (int i = 0; i < Each; ++i) own[i] = (above >> i & 1u) != 0 || (own[i] != 0 && own[i] >= age) ? ~0u : 0;
    cut = {~0u - 1, ~0u - 1, 0, 0};
  }

  // Ascending, warp by warp: counts of both kinds share a number, each below 2^16 in a block.
  unsigned kinds = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) kinds += own[i] > cut.last ? 1u << 16 : own[i] >= cut.low ? 1u : 0u;
  kinds = __reduce_add_sync(all_lanes, kinds);
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
    bool some = false, every = true;
#pragma unroll
    for (int i = 0; i < slots::wide; ++i) {
      some |= own[part + i] >= cut.low;
      every &= own[part + i] > cut.last;
    }
    std::int32_t* left_out = nullptr;
    if constexpr (Rows::by_position && Blocks != 2) left_out = rows.left_out(at);  // two have no registers for it
    if (!left_out && !__any_sync(all_lanes, some)) continue;  // where few are taken most parts have none
    if (__all_sync(all_lanes, every) &&
        place + 32 * slots::wide <= again.count) {  // where most are most parts have all: lanes write side by side
      const int lane = thread % 32, begin = slots::at(first, part) - lane * slots::wide;
#pragma unroll
      for (int i = 0; i < slots::wide; ++i) {
        const int at = 32 * i + lane;
        again.list[place + at] = begin + at;
      }
      place += 32 * slots::wide;
      continue;
    }
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
      const int slot = slots::at(first, part + i);
      if (mine[i] && own_place < again.count) {
        again.list[own_place++] = slot;
      } else if (left_out && slot < again.end) {
        left_out[slot - own_place] = slot;
      }
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
