// SPDX-License-Identifier: Apache-2.0
/// \file The slots of highest score, ascending: a radix select. One kernel for keys, tokens and neurons.
#pragma once

#include <skim/cuda/kernel/cache_rows.cuh>
#include <skim/cuda/launch.cuh>
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

/// A row of scores, and which of its slots are wanted.
struct score_row {
  const float* scores;         ///< [stride]; all of it may be read
  int stride;                  ///< where `by_four`, a multiple of 4
  bool by_four;                ///< scores are read four at a time: they begin at a multiple of 16 bytes
  int begin, end, count;       ///< so many of the slots [begin, end) are listed, all where there are no more
  int lowest = 0, newest = 0;  ///< so many of lowest and of highest position are among them, whatever they score
  bool later = false;          ///< of equal scores the later position, else the earlier
  std::int32_t *list, *length;
};

/// The rank of the last slot that is taken, how many of that rank are, and how many there are.
struct rank_cut {
  unsigned rank;
  int taken, equals;
};

struct choosing_memory {
  int histogram[choosing::digits * 32], totals[choosing::digits], counts[choosing::warps];
  unsigned digit, left, equals;
};

/// Finds the rank of the last of the `count` highest, eight bits at a time. `ranks_of(ranks, slot, step)` gives those of slots
/// [slot, slot + 4) and [slot + step, slot + step + 4): 0 of one that may not be taken.
template <int Threads, class Ranks>
SKIM_DEVICE rank_cut find_cut(const Ranks& ranks_of, int aligned, int end, int count, choosing_memory& memory) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  unsigned rank = 0, known = 0;
  int left = count;
  for (int shift = 24; shift >= 0; shift -= 8) {
    // Each lane counts for itself, so that equal digits, of which there are many, do not wait for each other.
    for (int i = thread; i < choosing::digits * 32; i += Threads) memory.histogram[i] = 0;
    __syncthreads();
    for (int begin = aligned; begin < end; begin += 8 * Threads) {
      unsigned own[8];
      ranks_of(own, begin + 4 * thread, 4 * Threads);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (own[i] != 0 && (own[i] & known) == rank) {
          atomicAdd(&memory.histogram[(own[i] >> shift & 255u) * 32 + lane], 1);
        }
      }
    }
    __syncthreads();
    // A warp sums eight digits, the highest first.
    for (int i = 0; i < choosing::digits / choosing::warps; ++i) {
      const int digit = warp * (choosing::digits / choosing::warps) + i;
      const int sum = __reduce_add_sync(all_lanes, memory.histogram[digit * 32 + lane]);
      if (lane == 0) memory.totals[digit] = sum;
    }
    __syncthreads();
    if (warp == 0) {
      int before = 0;
      for (int high = choosing::digits - 32; high >= 0; high -= 32) {
        const int digit = high + 31 - lane, own = memory.totals[digit];
        int through = own;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int other = __shfl_up_sync(all_lanes, through, step);
          if (lane >= step) through += other;
        }
        through += before;
        if (through - own < left && through >= left) {
          memory.digit = static_cast<unsigned>(digit);
          memory.left = static_cast<unsigned>(left - (through - own));
          memory.equals = static_cast<unsigned>(own);
        }
        before = __shfl_sync(all_lanes, through, 31);
      }
    }
    __syncthreads();
    rank |= memory.digit << shift;
    left = static_cast<int>(memory.left);
    known |= 255u << shift;
    __syncthreads();
  }
  return {rank, left, static_cast<int>(memory.equals)};
}

/// Positions, which differ, as ranks: the newest highest, or the oldest.
SKIM_DEVICE unsigned age_of(int position, bool newest) {
  const unsigned age = static_cast<unsigned>(position) + 1;
  return newest ? age : ~age;
}
/// The rank of a slot: the highest of one that is kept whatever it scores, since it is at least so old or so new.
SKIM_DEVICE unsigned rank_of(float score, int position, const unsigned (&ages)[2]) {
  return age_of(position, false) >= ages[0] || age_of(position, true) >= ages[1] ? ~0u : rank_bits(score);
}

/// The `Each` slots of a thread where a warp holds 32 Each of them: `wide` lie together, so that loads are, and then come those
/// of other lanes. `first` is its first.
template <int Each>
struct slots_of_lane {
  static constexpr int wide = Each % 4 == 0 ? 4 : Each;
  static SKIM_DEVICE int first(int of_warp) { return of_warp + static_cast<int>(threadIdx.x) % 32 * wide; }
  static SKIM_DEVICE int at(int first, int i) { return first + i / wide * 32 * wide + i % wide; }
};

/// Scores of `wide` slots from `slot` on, of which those beyond the row are any.
template <int Wide>
SKIM_DEVICE void load_scores(const float* scores, int stride, bool by_four, int slot, float (&to)[Wide]) {
  if (Wide == 4 && by_four) {
    const float4 four = load_4(scores + min(slot, stride - 4));
    const float all[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < Wide; ++i) to[i] = all[i];
  } else {
#pragma unroll
    for (int i = 0; i < Wide; ++i) to[i] = scores[min(slot + i, stride - 1)];
  }
}

/// The list of a row that has nothing to choose.
SKIM_DEVICE void list_all(const score_row& row, int thread, int threads) {
  for (int i = thread; i < row.end - row.begin; i += threads) row.list[i] = row.begin + i;
  if (thread == 0) *row.length = row.end - row.begin;
}

/// Writes the list of each row: `rows.row(i)`, with `rows.position(i, slot)`; where those are the slots themselves
/// `rows.by_position` is false. A block for each.
template <int Threads, class Rows>
__global__ void __launch_bounds__(Threads) choose_highest(const Rows rows) {
  static_assert(Threads == choosing::threads, "one digit sums over all warps");
  __shared__ choosing_memory memory;
  start_in_chain();
  const int at = blockIdx.y, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const score_row row = rows.row(at);
  if (row.count >= row.end - row.begin) return list_all(row, thread, Threads);

  const int aligned = row.begin / 4 * 4, last = row.stride - (row.by_four ? 4 : 1);
  // 0 outside [from, to). Loads without conditions, which would wait for each other.
  const auto for_slots = [&](unsigned(&ranks)[8], int slot, int step, int from, int to, const auto& rank) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int own = slot + (i < 4 ? i : step + i - 4);
      ranks[i] = own < from || own >= to ? 0 : rank(i, own);
    }
  };
  const auto age = [&](int slot, bool newest) { return age_of(rows.position(at, slot), newest); };
  const auto cut_by_age = [&](bool newest, int count, const auto& admitted) {
    const auto ages = [&](unsigned(&ranks)[8], int slot, int step) {
      for_slots(ranks, slot, step, row.begin, row.end,
                [&](int, int own) { return admitted(own) ? age(own, newest) : 0; });
    };
    return find_cut<Threads>(ages, aligned, row.end, count, memory).rank;
  };
  const auto age_of_end = [&](bool newest, int count) {
    if (count == 0) return ~0u;
    if (!rows.by_position) return age(newest ? row.end - count : row.begin + count - 1, newest);
    return cut_by_age(newest, count, [](int) { return true; });
  };
  const unsigned ages[2] = {age_of_end(false, row.lowest), age_of_end(true, row.newest)};
  const bool has_ends = row.lowest + row.newest > 0;
  const auto rank = [&](int slot, float score) {
    return has_ends ? rank_of(score, rows.position(at, slot), ages) : rank_bits(score);
  };
  const auto ranks_within = [&](unsigned(&ranks)[8], int slot, int step, int from, int to) {
    float values[8];
    if (row.by_four) {
      const float4 first = load_4(row.scores + min(slot, last)), second = load_4(row.scores + min(slot + step, last));
      const float both[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = both[i];
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = row.scores[min(slot + (i < 4 ? i : step + i - 4), last)];
    }
    for_slots(ranks, slot, step, from, to, [&](int i, int own) { return rank(own, values[i]); });
  };
  const auto ranks_of = [&](unsigned(&ranks)[8], int slot, int step) {
    ranks_within(ranks, slot, step, row.begin, row.end);
  };
  const rank_cut cut = find_cut<Threads>(ranks_of, aligned, row.end, row.count, memory);
  // Of several equals the first slots would be taken: where those are not the wanted positions, these are settled first.
  int ties = cut.taken;
  unsigned tied = 0;  // the age of the last of them that is taken
  if ((rows.by_position || row.later) && cut.taken < cut.equals) {
    const auto equal = [&](int slot) { return rank(slot, row.scores[slot]) == cut.rank; };
    tied = cut_by_age(row.later, cut.taken, equal);
    ties = cut.equals;
  }

  // Each warp takes a run of slots, 256 at a time: counts first, then writes. Lane l has slots 4 l to 4 l + 3 of either half.
  const int each = ((row.end - aligned + choosing::warps - 1) / choosing::warps + 3) / 4 * 4;
  const int begin = aligned + warp * each, end = min(row.end, begin + each), from = max(begin, row.begin);
  // Ranks among which ties are those that may be taken.
  const auto candidates = [&](unsigned(&own)[8], int first) {
    ranks_within(own, first + 4 * lane, 128, from, end);
    if (tied == 0) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int slot = first + 4 * lane + (i < 4 ? i : 128 + i - 4);
      if (own[i] == cut.rank && age(slot, row.later) < tied) own[i] = 0;
    }
  };
  int above = 0, equal = 0, sum;
  for (int first = begin; first < end; first += 256) {
    unsigned own[8];
    candidates(own, first);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      above += own[i] > cut.rank;
      equal += own[i] == cut.rank;
    }
  }
  above = __reduce_add_sync(all_lanes, above);
  equal = __reduce_add_sync(all_lanes, equal);
  const int equal_before = sum_before(equal, memory.counts, sum);
  const int taken = above + max(0, min(ties - equal_before, equal));
  int place_of_warp = sum_before(taken, memory.counts, sum);
  ties -= equal_before;
  const unsigned lower = (1u << lane) - 1;
  for (int first = begin; first < end; first += 256) {
    unsigned own[8];
    candidates(own, first);
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
      int equals_before = 0, equals = 0;
#pragma unroll
      for (int i = half; i < half + 4; ++i) {
        const unsigned alike = __ballot_sync(all_lanes, own[i] == cut.rank);
        equals_before += __popc(alike & lower);
        equals += __popc(alike);
      }
      bool mine[4];
      int before = 0, takes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mine[i] = own[half + i] > cut.rank || (own[half + i] == cut.rank && equals_before < ties);
        equals_before += own[half + i] == cut.rank ? 1 : 0;
        const unsigned takers = __ballot_sync(all_lanes, mine[i]);
        before += __popc(takers & lower);
        takes += __popc(takers);
      }
      int place = place_of_warp + before;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Positions that repeat, which a cache should not have, may ask for more ends than there is room for.
        if (mine[i] && place < row.count) row.list[place++] = first + 32 * half + 4 * lane + i;
      }
      place_of_warp += takes;
      ties -= equals;
    }
  }
  if (thread == 0) *row.length = row.count;
}

template <class Rows>
void choose_by_blocks(const Rows& rows, std::int64_t count, launcher& launch) {
  launch(&choose_highest<choosing::threads, Rows>, 1, count, choosing::threads, 0, rows);
}

}}}}  // namespace skim::v0_2::cuda::detail
