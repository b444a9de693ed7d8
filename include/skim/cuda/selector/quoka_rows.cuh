// SPDX-License-Identifier: Apache-2.0
/// \file The lists of a QUOKA call as the kernels that choose want them, smoothed scores and all.
#pragma once

#include <skim/cuda/kernel/choose.cuh>
#include <skim/cuda/selector/quoka_score.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// The mean of a score and its neighbours, where there are such, to the bit as `smoothed`; not finite where one is not.
SKIM_DEVICE float mean_of_three(float left, float own, float right, bool has_left, bool has_right) {
  const float sum = (has_left ? left + own : own) + (has_right ? right : 0);
  if (has_left != has_right) return sum * 0.5f;
  if (!has_left) return sum;
  constexpr float third = 1.0f / 3;
  const float near = sum * third;  // within an ulp of the quotient, which a Newton step makes exact
  return fmaf(fmaf(-3, near, sum), third, near);
}

/// The lists of a call, as `choose_highest` and `choose_in_cluster` want them: this one smooths raw scores as it reads them.
struct quoka_rows {
  static constexpr bool by_position = false;

  quoka_call call;
  index_lists lists;
  int first_list;

  SKIM_DEVICE score_row row(int list) const {
    const quoka_block block(call, list);
    const retention keep = call.keep.among(block.past);
    score_row row{};
    row.scores = call.scores + list * call.score_stride;
    row.stride = static_cast<int>(call.score_stride);
    row.by_four = true;
    row.begin = block.dense ? 0 : block.first;
    row.end = block.past;
    row.count = block.reads_all ? block.past : static_cast<int>(keep.keys(block.past));
    row.lowest = static_cast<int>(keep.sinks);
    row.newest = static_cast<int>(keep.recent);
    row.list = lists.row(first_list + list);
    row.length = lists.counts + first_list + list;
    return row;
  }
  SKIM_DEVICE int position(int, int slot) const { return slot; }

  template <int Each>
  SKIM_DEVICE void load_ranks(int list, const score_row& row, int first, const unsigned (&ages)[2],
                              unsigned (&ranks)[Each]) const {
    const quoka_block block(call, list);
    const float* const raw = raw_scores(call, list);
    using slots = slots_of_lane<Each>;
    constexpr int wide = slots::wide;
    const int lane = static_cast<int>(threadIdx.x) % 32, last = row.stride - 1;
    constexpr int together = Each % 16 == 0 ? 4 : 1;  // so many loads are under way
    unsigned unusual = 0;                             // bit i: slot i is to be smoothed number by number
#pragma unroll
    for (int part = 0; part < Each; part += together * wide) {
      asm volatile("" ::: "memory");              // no loads of later parts before: there are no registers for them
      float all[together][wide], ends[together];  // and of the first and the last lane the neighbour that no lane has
#pragma unroll
      for (int t = 0; t < together; ++t) {
        const int from = slots::at(first, part + t * wide);
        load_scores(raw, row.stride, true, from, all[t]);
        ends[t] = lane == 0 ? raw[max(min(from - 1, last), 0)] : lane == 31 ? raw[min(from + wide, last)] : 0;
      }
#pragma unroll
      for (int t = 0; t < together; ++t) {
        const int from = slots::at(first, part + t * wide);
        const float(&scores)[wide] = all[t];
        const float up = __shfl_up_sync(all_lanes, scores[wide - 1], 1),
                    down = __shfl_down_sync(all_lanes, scores[0], 1);
        const float before = lane == 0 ? ends[t] : up, behind = lane == 31 ? ends[t] : down;
#pragma unroll
        for (int i = 0; i < wide; ++i) {
          const int slot = from + i;
          const float left = i == 0 ? before : scores[i > 0 ? i - 1 : 0];
          const float right = i == wide - 1 ? behind : scores[i < wide - 1 ? i + 1 : 0];
          const bool exists = slot >= row.begin && slot < row.end;
          float score = scores[i];
          if (call.smooth == 3) score = mean_of_three(left, score, right, slot > row.begin, slot + 1 < row.end);
          if (exists && !isfinite(score)) unusual |= 1u << (part + t * wide + i);
          ranks[part + t * wide + i] = exists ? rank_of(score, slot, ages) : 0;
        }
      }
    }
    if (call.smooth > 3) unusual = ~0u;
    if (unusual == 0) return;
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      asm volatile("" ::: "memory");
      const int slot = slots::at(first, i);
      if ((unusual >> i & 1u) == 0 || slot < row.begin || slot >= row.end) continue;
      const float score = smoothed(block, call.smooth, slot, [&](int at) { return raw[at]; });
      ranks[i] = rank_of(score, slot, ages);
    }
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
