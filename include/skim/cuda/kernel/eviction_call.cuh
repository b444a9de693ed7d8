// SPDX-License-Identifier: Apache-2.0
/// \file What the kernels of an eviction share: the cache that they move, lists of what stays, slots that leave.
#pragma once

#include <skim/cuda/kernel/choose.cuh>
#include <skim/cuda/launch.cuh>
#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct eviction_call {
  cache_rows kv;
  char *k_data, *v_data;  // the same, to be written
  std::int32_t* positions;
  float* inverse_norms;
  std::int64_t inverse_norms_stride;
  float* weights;  // [Hk, weights_stride], by metadata row: what an evictor keeps of each token; null: nothing
  std::int64_t weights_stride;
  const std::int32_t* budgets;
  retention keep;
  int heads, new_tokens;
  bool share_heads, refill, values_in_keys;
  std::int32_t* left_out;  // [rows of lists, left_out_stride]: slots that leave, where choosing writes them; or null
  std::int64_t left_out_stride;

  SKIM_DEVICE std::int32_t* left_out_of(int row) const { return left_out ? left_out + row * left_out_stride : nullptr; }
  SKIM_DEVICE int list(int head) const { return share_heads ? 0 : head; }
  /// What a head keeps: with its own budget, within which the ends are.
  SKIM_DEVICE retention kept(int head) const {
    retention own = keep;
    if (!budgets) return own;
    own.count = budgets[head];
    own.sinks = own.sinks < own.count ? own.sinks : own.count;
    own.recent = own.recent < own.count - own.sinks ? own.recent : own.count - own.sinks;
    return own;
  }
  SKIM_DEVICE float* norm(int head, int slot) const {
    return inverse_norms + head * inverse_norms_stride + kv.metadata_row(slot);
  }
  SKIM_DEVICE float* weight(int head, int slot) const {
    return weights + head * weights_stride + kv.metadata_row(slot);
  }
};

inline eviction_call call_of(const eviction_args& args, const retention& keep) {
  eviction_call call{};
  call.kv = rows_of(kv_view(args.kv));
  call.k_data = static_cast<char*>(args.kv.k.data);
  call.v_data = static_cast<char*>(args.kv.v.data);
  call.positions = args.kv.positions;
  call.inverse_norms = args.kv.inverse_norms;
  call.inverse_norms_stride = args.kv.inverse_norms_stride;
  call.budgets = args.budgets;
  call.keep = keep;
  call.heads = static_cast<int>(args.kv.heads);
  call.new_tokens = static_cast<int>(args.new_tokens);
  call.share_heads = args.share_heads;
  call.refill = args.how == compaction::refill;
  call.values_in_keys = args.kv.values_in_keys;
  return call;
}

/// The first i in [low, high) that `holds(i)`, which then holds for all behind it; else `high`. By a warp, 128 places at a
/// time: each load waits for the one before.
template <class Holds>
SKIM_DEVICE int first_that(int low, int high, const Holds& holds) {
  constexpr int each = 4;
  const int lane = threadIdx.x % 32;
  while (low < high) {
    const int step = (high - low + 32 * each - 1) / (32 * each);
    int before = 0;  // steps that end before it
#pragma unroll
    for (int i = 0; i < each; ++i) before += holds(min(low + (lane * each + i + 1) * step, high) - 1) ? 0 : 1;
    low += __reduce_add_sync(all_lanes, before) * step;
    if (low >= high) return high;
    high = min(low + step, high) - 1;
  }
  return low;
}

/// Slots of a head that stay, ascending. Members are for warps.
struct kept_slots {
  const std::int32_t *list, *left_out;
  int count, evicted;

  SKIM_DEVICE kept_slots(const eviction_call& call, const index_lists& lists, int head)
      : list(lists.row(call.list(head))),
        left_out(call.left_out_of(call.list(head))),
        count(lists.counts[call.list(head)]),
        evicted(call.kv.length(head) - count) {}

  /// How many of the listed slots lie before `slot`, which is one of the head's or follows them.
  SKIM_DEVICE int below(int slot) const {
    return first_that(max(slot - evicted, 0), min(slot, count), [&](int i) { return list[i] >= slot; });
  }
  /// The i-th slot that is not listed, of all from 0 on.
  SKIM_DEVICE int missing(int i) const {
    if (left_out) return left_out[i];
    return i + first_that(0, count, [&](int j) { return list[j] - j > i; });
  }
};

/// The lists of an eviction, as `choose_highest` wants them.
struct token_rows {
  static constexpr bool by_position = true;

  eviction_call call;
  index_lists lists;
  const float* scores;
  std::int64_t score_stride;
  int columns;  // of a row of scores
  bool by_four, later;

  SKIM_DEVICE score_row row(int list) const {
    const retention keep = call.kept(list);
    score_row row{};
    row.scores = scores + list * score_stride;
    row.stride = columns;
    row.by_four = by_four;
    row.end = call.kv.length(list);
    row.count = static_cast<int>(keep.count);
    row.lowest = static_cast<int>(keep.sinks);
    row.newest = static_cast<int>(keep.recent);
    row.later = later;
    row.list = lists.row(list);
    row.length = lists.counts + list;
    return row;
  }
  SKIM_DEVICE int position(int list, int slot) const { return static_cast<int>(call.kv.position(list, slot)); }
  SKIM_DEVICE std::int32_t* left_out(int list) const { return call.left_out_of(list); }

  template <int Each>
  SKIM_DEVICE void load_ranks(int list, const score_row& row, int first, const unsigned (&ages)[2],
                              unsigned (&ranks)[Each]) const {
    const bool has_ends = row.lowest + row.newest > 0;
    using slots = slots_of_lane<Each>;
#pragma unroll
    for (int part = 0; part < Each; part += slots::wide) {  // all loads are under way before one is waited for
      float scores[slots::wide];
      load_scores(row.scores, row.stride, row.by_four, slots::at(first, part), scores);
#pragma unroll
      for (int i = 0; i < slots::wide; ++i) ranks[part + i] = __float_as_uint(scores[i]);
    }
    if (!has_ends) {
#pragma unroll
      for (int i = 0; i < Each; ++i) {
        const int slot = slots::at(first, i);
        ranks[i] = slot >= row.begin && slot < row.end ? rank_bits(__uint_as_float(ranks[i])) : 0;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      if (i % slots::wide == 0) asm volatile("" ::: "memory");  // but of positions few: there are no registers for them
      const int slot = slots::at(first, i);
      const bool exists = slot >= row.begin && slot < row.end;
      const float score = __uint_as_float(ranks[i]);
      ranks[i] = exists ? rank_of(score, position(list, slot), ages) : 0;
    }
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
