// SPDX-License-Identifier: Apache-2.0
/// \file One work unit of attention: the rows of a row block against a piece of the keys.
///
/// Keys are taken in logical order (listed past slots, then the chunk's own) and cut into tiles of 64 at fixed places, so
/// that every cache layout gives the same bits.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/attend_tile.hpp>
#include <skim/cpu/kernel/multiply_tile.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/convert.hpp>
#include <skim/index_lists.hpp>
#include <skim/math/mask.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <cmath>
#include <limits>
#include <type_traits>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// Scratch of one worker.
template <class Math>
struct attend_scratch {
  using step = typename Math::step;
  step *qt, *k, *v, *weights;
  float *scores, *out, *largest, *sum, *row;  // row: a query or output row in f32
  std::int32_t *first, *last, *positions;
  float* value;  // one V row in f32

  attend_scratch(arena& arena, std::int64_t D, std::int64_t Dv, std::int64_t stride) {
    constexpr std::int64_t width = row_vectors * simd::lanes;
    const std::int64_t steps = (D + Math::values - 1) / Math::values, padded = round_up(Dv, padded_to);
    qt = arena.take<step>(steps * stride);
    k = arena.take<step>(tile_keys * steps);
    v = arena.take<step>(tile_keys * padded);
    weights = arena.take<step>(tile_keys * width);
    scores = arena.take<float>(tile_keys * width);
    out = arena.take<float>(padded * stride);
    largest = arena.take<float>(stride);
    sum = arena.take<float>(stride);
    row = arena.take<float>(greater(D, padded));
    first = arena.take<std::int32_t>(stride);
    last = arena.take<std::int32_t>(stride);
    positions = arena.take<std::int32_t>(tile_keys);
    value = arena.take<float>(padded);
  }
};

/// One row block of one KV head: who its rows are and where their results go.
struct attend_job {
  const attention_args* args;
  const index_lists* lists;  // null: all keys
  attention_sequence sequence;
  std::int64_t s, head, G, row, rows, stride;
  std::int64_t key_begin, key_end;  // in logical order

  std::int64_t past() const { return sequence.kv->length(head) - sequence.Tq; }
  std::int64_t listed() const { return lists ? lists->counts[s * sequence.kv->heads + head] : past(); }
  /// Row r of the block is query head `head * G + r % G` of token `(row + r) / G`: tokens ascend, so that tiles of a
  /// causal chunk end where the mask does.
  std::int64_t token(std::int64_t r) const { return (row + r) / G; }
  std::int64_t query_head(std::int64_t r) const { return head * G + (row + r) % G; }
};

SKIM_INLINE std::int32_t clamp_position(std::int64_t position) {
  constexpr std::int64_t most = largest_index;
  return static_cast<std::int32_t>(position > most ? most : position < -most ? -most : position);
}

/// Packs the block's queries and sets their bounds and empty sums; lanes beyond the last row hold zeros and see nothing.
template <class Math>
SKIM_INLINE void load_queries(const attend_job& job, const attend_scratch<Math>& scratch, float scale) {
  const attention_args& args = *job.args;
  const kv_view& kv = *job.sequence.kv;
  const std::int64_t D = args.q.extents[2], steps = (D + Math::values - 1) / Math::values;
  for (std::int64_t r = 0; r < job.stride; ++r) {
    const row_lanes place = row_lanes::of(r, job.stride);
    scratch.largest[r] = minus_infinity;
    scratch.sum[r] = 0;
    if (r < job.rows) {
      const std::int64_t t = job.token(r), position = kv.position(job.head, job.past() + t);
      simd::widen_row(args.q.at(job.sequence.first_row + t, job.query_head(r)), args.q.type, D, scratch.row);
      scratch.first[r] = clamp_position(position - args.mask.left);
      scratch.last[r] = clamp_position(position + args.mask.right);
    } else {
      for (std::int64_t d = 0; d < D; ++d) scratch.row[d] = 0;
      scratch.first[r] = largest_index;
      scratch.last[r] = -largest_index;
    }
    Math::pack_lane(scratch.row, D, scale, scratch.qt + place.offset(r, steps, 0), place.width);
  }
}

/// The slots and positions of `count` keys from logical index `begin` on; returns the range of their positions.
SKIM_INLINE position_range list_tile(const attend_job& job, std::int64_t begin, std::int64_t count, std::int64_t* slots,
                                     std::int32_t* positions) {
  const kv_view& kv = *job.sequence.kv;
  const std::int64_t listed = job.listed(), past = job.past();
  const std::int32_t* const list = job.lists ? job.lists->row(job.s * kv.heads + job.head) : nullptr;
  position_range range{largest_index, -1};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t at = begin + i;
    slots[i] = at >= listed ? past + at - listed : list ? list[at] : at;
    const std::int64_t position = kv.position(job.head, slots[i]);
    positions[i] = static_cast<std::int32_t>(position);
    range.begin = smaller(range.begin, position);
    range.end = greater(range.end, position + 1);
  }
  return range;
}

SKIM_INLINE bool is_finite(float x) {
  return std::fabs(x) <= std::numeric_limits<float>::max();
}

/// Zeroes the infinities and NaNs of V row `key` in the tile; true if there were any.
template <class Math>
SKIM_INLINE bool clear_nonfinite(const attend_job& job, std::int64_t slot, std::int64_t key,
                                 const attend_scratch<Math>& scratch, std::int64_t v_stride) {
  const kv_view& kv = *job.sequence.kv;
  simd::widen_row(row_address(kv, kv.v, job.head, slot), kv.v.type, kv.v.dim, scratch.value);
  bool found = false;
  for (std::int64_t d = 0; d < kv.v.dim; ++d) {
    if (is_finite(scratch.value[d])) continue;
    typename Math::step& stored = scratch.v[key / Math::values * v_stride + d];
    stored = Math::without(stored, key % Math::values);
    found = true;
  }
  return found;
}

/// Widens the tile's keys.
template <class Math>
SKIM_INLINE void load_tile_keys(const attend_job& job, const std::int64_t* slots, std::int64_t keys,
                                const attend_scratch<Math>& scratch, key_tile<typename Math::step>& tile) {
  const kv_view& kv = *job.sequence.kv;
  const std::int64_t D = kv.k.dim;
  tile.keys = keys;
  tile.k_steps = tile.k_stride = (D + Math::values - 1) / Math::values;
  tile.k = scratch.k;
  tile.positions = scratch.positions;
  for (std::int64_t i = 0; i < keys; ++i) {
    Math::load_row(row_address(kv, kv.k, job.head, slots[i]), kv.k.type, D, scratch.k + i * tile.k_stride);
  }
  for (std::int64_t at = keys * tile.k_stride; at < round_up(keys, padded_to) * tile.k_stride; ++at) scratch.k[at] = 0;
}

/// Widens the tile's keys and values. With `guard`, infinities and NaNs in V become zeros and bit i of the answer says that
/// row i had some: where some row must not see a key, its weight 0 times infinity would poison that row.
template <class Math>
SKIM_INLINE std::uint64_t load_tile(const attend_job& job, const std::int64_t* slots, std::int64_t keys, bool guard,
                                    const attend_scratch<Math>& scratch, key_tile<typename Math::step>& tile) {
  const kv_view& kv = *job.sequence.kv;
  const std::int64_t Dv = kv.v.dim;
  load_tile_keys<Math>(job, slots, keys, scratch, tile);
  tile.v_steps = (keys + Math::values - 1) / Math::values;
  tile.v_stride = round_up(Dv, padded_to);
  tile.v = scratch.v;
  for (std::int64_t i = 0; i < keys; i += Math::values) {
    const char* const next = i + 1 < keys ? row_address(kv, kv.v, job.head, slots[i + 1]) : nullptr;
    typename Math::step* const row = scratch.v + i / Math::values * tile.v_stride;
    Math::load_row_pair(row_address(kv, kv.v, job.head, slots[i]), next, kv.v.type, Dv, row);
    for (std::int64_t d = Dv; d < tile.v_stride; ++d) row[d] = 0;
  }
  std::uint64_t nonfinite = 0;
  for (std::int64_t i = 0; guard && i < keys; ++i) {
    if (clear_nonfinite(job, slots[i], i, scratch, tile.v_stride)) nonfinite |= std::uint64_t{1} << i;
  }
  return nonfinite;
}

/// Gives the rows that see them the infinities and NaNs that `load_tile` took out.
template <class Math>
SKIM_INLINE void add_nonfinite(const attend_job& job, const std::int64_t* slots, std::uint64_t nonfinite,
                               const attend_scratch<Math>& scratch, float* out) {
  const kv_view& kv = *job.sequence.kv;
  const std::int64_t dims = round_up(kv.v.dim, padded_to);
  for (std::int64_t i = 0; i < tile_keys; ++i) {
    if ((nonfinite >> i & 1) == 0) continue;
    simd::widen_row(row_address(kv, kv.v, job.head, slots[i]), kv.v.type, kv.v.dim, scratch.value);
    for (std::int64_t d = 0; d < kv.v.dim; ++d) {
      if (is_finite(scratch.value[d])) continue;
      for (std::int64_t r = 0; r < job.rows; ++r) {
        if (scratch.first[r] <= scratch.positions[i] && scratch.positions[i] <= scratch.last[r]) {
          out[row_lanes::of(r, job.stride).offset(r, dims, d)] += scratch.value[d];
        }
      }
    }
  }
}

/// Positions of the queries in rows [begin, end) of the block: the range that `mask::keys` and `covers` take.
SKIM_INLINE position_range query_range(const attend_job& job, std::int64_t begin, std::int64_t end) {
  const kv_view& kv = *job.sequence.kv;
  position_range range{largest_index, -1};
  for (std::int64_t t = job.token(begin); t <= job.token(end - 1); ++t) {
    const std::int64_t position = kv.position(job.head, job.past() + t);
    range.begin = smaller(range.begin, position);
    range.end = greater(range.end, position + 1);
  }
  return range;
}

SKIM_INLINE bool disjoint(position_range a, position_range b) {
  return a.end <= b.begin || b.end <= a.begin;
}

/// Attends the job's rows to its keys: leaves unnormalised output, maxima and denominators in `out`, `largest`, `sum`.
template <class Math>
inline void attend_rows(const attend_job& job, const attend_scratch<Math>& scratch, const logit_rule& rule) {
  using step = typename Math::step;
  const mask& see = job.args->mask;
  const row_block<step> rows{scratch.qt,    scratch.out,  scratch.largest, scratch.sum,
                             scratch.first, scratch.last, job.stride};
  for (std::int64_t i = 0; i < round_up(job.sequence.kv->v.dim, padded_to) * job.stride; ++i) scratch.out[i] = 0;
  const position_range queries = query_range(job, 0, job.rows);
  const std::int64_t end = smaller(job.key_end, job.listed() + job.sequence.Tq);
  step* const weights = std::is_same_v<step, float> ? reinterpret_cast<step*>(scratch.scores) : scratch.weights;
  std::int64_t slots[tile_keys];
  for (std::int64_t begin = job.key_begin; begin < end; begin += tile_keys) {
    const std::int64_t keys = smaller(tile_keys, end - begin);
    const position_range range = list_tile(job, begin, keys, slots, scratch.positions);
    if (disjoint(see.keys(queries), range)) continue;
    const bool guard = !see.covers(queries, range);
    key_tile<step> tile;
    const std::uint64_t nonfinite = load_tile<Math>(job, slots, keys, guard, scratch, tile);
    for (std::int64_t r = 0; r < job.rows;) {
      const bool wide = job.stride - r >= row_vectors * simd::lanes;
      const std::int64_t next = r + (wide ? row_vectors : 1) * simd::lanes;
      const position_range block = guard ? query_range(job, r, smaller(next, job.rows)) : queries;
      if (!guard || !disjoint(see.keys(block), range)) {
        const bool masked = guard && !see.covers(block, range);
        if (wide) {
          attend_tile<Math, row_vectors>(rows, r, tile, rule, masked, scratch.scores, weights);
        } else {
          attend_tile<Math, 1>(rows, r, tile, rule, masked, scratch.scores, weights);
        }
      }
      r = next;
    }
    if (nonfinite) add_nonfinite<Math>(job, slots, nonfinite, scratch, scratch.out);
  }
}

/// Normalises and stores the job's rows: out = sum of weighted values / denominator, lse = log of the denominator.
inline void store_rows(const attend_job& job, const float* out, const float* largest, const float* sum,
                       float* row) {  // row [Dv]: scratch
  const attention_args& args = *job.args;
  const std::int64_t Dv = args.out.extents[2], dims = round_up(Dv, padded_to);
  for (std::int64_t r = 0; r < job.rows; ++r) {
    const std::int64_t t = job.sequence.first_row + job.token(r), h = job.query_head(r);
    float total = sum[r], most = largest[r], shrink = 1;
    if (args.sink_logits) {
      const float sink = static_cast<float>(static_cast<double>(args.sink_logits[h]) * log2_e);
      const float base = sink > most ? sink : most;
      if (base != minus_infinity) {
        shrink = std::exp2(most - base);
        total = total * shrink + std::exp2(sink - base);
        most = base;
      }
    }
    const float inverse = total == 0 ? 0 : shrink / total;
    const row_lanes place = row_lanes::of(r, job.stride);
    for (std::int64_t d = 0; d < Dv; ++d) row[d] = out[place.offset(r, dims, d)] * inverse;
    simd::narrow_row(row, Dv, args.out.at(t, h), args.out.type);
    if (args.lse.data) {
      const double log_sum = (static_cast<double>(most) + std::log2(static_cast<double>(total))) / log2_e;
      *args.lse.at(t, h) = total == 0 ? minus_infinity : static_cast<float>(log_sum);
    }
  }
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
