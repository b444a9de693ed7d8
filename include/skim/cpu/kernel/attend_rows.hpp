// SPDX-License-Identifier: Apache-2.0
/// \file One work unit of attention: a strip of query rows against a piece of the keys.
///
/// Keys are taken in logical order (listed past slots, then the block's own) and cut into tiles of 64 at fixed places, so
/// that every cache layout gives the same bits.
#pragma once

#include <skim/cpu/kernel/attend_tile.hpp>
#include <skim/cpu/kernel/lane_rows.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/workspace.hpp>

#include <type_traits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// What a strip's rows leave behind: unnormalised output, running maxima and denominators.
struct strip_sums {
  float *out = nullptr, *largest = nullptr, *sum = nullptr;  // [round_up(Dv, 8), stride] by `row_lanes`, [stride] each

  strip_sums() = default;
  strip_sums(arena& arena, std::int64_t Dv, std::int64_t stride) {
    out = arena.take<float>(round_up(Dv, padded_to) * stride);
    largest = arena.take<float>(stride);
    sum = arena.take<float>(stride);
  }

  SKIM_INLINE void clear(std::int64_t Dv, std::int64_t stride) const {
    for (std::int64_t i = 0; i < round_up(Dv, padded_to) * stride; ++i) out[i] = 0;
    for (std::int64_t r = 0; r < stride; ++r) {
      largest[r] = minus_infinity;
      sum[r] = 0;
    }
  }
};

/// One strip of query rows of one KV head.
struct attend_job {
  const attention_args* args;
  const index_lists* lists;     // null: all keys
  attention_sequence sequence;  // or block of its rows
  std::int64_t list_row;        // of the sequence's KV head 0
  std::int64_t head, G, row, rows, stride;
  std::int64_t key_begin, key_end;  // in logical order

  std::int64_t past() const { return sequence.past(head); }
  std::int64_t listed() const { return lists ? lists->counts[list_row + head] : past(); }
  /// Row r of the strip is query head `head * G + r % G` of token `(row + r) / G`: tokens ascend, so that tiles of a
  /// causal chunk end where the mask does.
  std::int64_t token(std::int64_t r) const { return (row + r) / G; }
  std::int64_t query_head(std::int64_t r) const { return head * G + (row + r) % G; }

  row_bias bias() const { return {args->bias, sequence.first_row, head, G, row, rows}; }
};

SKIM_INLINE std::int32_t clamp_position(std::int64_t position) {
  constexpr std::int64_t most = largest_index;
  return static_cast<std::int32_t>(position > most ? most : position < -most ? -most : position);
}

/// Which positions each row sees, its own, and its slope.
struct row_sight {
  std::int32_t *first = nullptr, *last = nullptr, *positions = nullptr;
  float* slopes = nullptr;

  row_sight() = default;
  row_sight(arena& arena, std::int64_t stride)
      : first(arena.take<std::int32_t>(stride)),
        last(arena.take<std::int32_t>(stride)),
        positions(arena.take<std::int32_t>(stride)),
        slopes(arena.take<float>(stride)) {}

  /// Of row r; one there is not sees nothing.
  SKIM_INLINE void set(const attend_job& job, std::int64_t r) const {
    const attention_args& args = *job.args;
    slopes[r] = 0;
    positions[r] = 0;
    first[r] = largest_index;
    last[r] = -largest_index;
    if (r >= job.rows) return;
    const std::int64_t position = job.sequence.kv.position(job.head, job.past() + job.token(r));
    first[r] = clamp_position(position - args.mask.left);
    last[r] = clamp_position(position + args.mask.right);
    positions[r] = static_cast<std::int32_t>(position);
    if (args.alibi_slopes) slopes[r] = args.alibi_slopes[job.query_head(r)] * static_cast<float>(log2_e);
  }

  /// The rows as tiles meet them. `bias` lives as long as they do.
  template <class Step>
  SKIM_INLINE row_block<Step> rows(const attend_job& job, const row_bias& bias) const {
    row_block<Step> rows{};
    rows.first = first;
    rows.last = last;
    rows.stride = job.stride;
    rows.slopes = job.args->alibi_slopes ? slopes : nullptr;
    rows.positions = positions;
    rows.bias = has_bias(*job.args) ? &bias : nullptr;
    return rows;
  }
};

/// Scratch of one worker.
template <class Math>
struct attend_scratch {
  using step = typename Math::step;
  step *qt, *k, *v, *weights;
  float *scores, *rows;     // rows: a vector of output rows in f32, or one query
  row_sight sight;          // [stride] each
  std::int32_t* positions;  // [64]: of a tile's keys
  float* value;             // one V row in f32

  attend_scratch(arena& arena, std::int64_t D, std::int64_t Dv, std::int64_t stride) {
    constexpr std::int64_t width = row_vectors * simd::lanes;
    const std::int64_t steps = (D + Math::values - 1) / Math::values, padded = round_up(Dv, padded_to);
    qt = arena.take<step>(steps * stride);
    k = arena.take<step>(tile_keys * steps);
    v = arena.take<step>(tile_keys * padded);
    weights = arena.take<step>(tile_keys * width);
    scores = arena.take<float>(tile_keys * width);
    rows = arena.take<float>(greater(D, simd::lanes * padded));
    sight = row_sight(arena, stride);
    positions = arena.take<std::int32_t>(tile_keys);
    value = arena.take<float>(padded);
  }
};

/// Packs the strip's queries and sets their bounds; lanes beyond the last row hold zeros and see nothing.
template <class Math>
SKIM_INLINE void load_queries(const attend_job& job, const attend_scratch<Math>& scratch, float scale) {
  const attention_args& args = *job.args;
  const std::int64_t D = args.q.extents[2], steps = (D + Math::values - 1) / Math::values;
  for (std::int64_t r = 0; r < job.stride; ++r) {
    typename Math::step* const packed = scratch.k + r % simd::lanes * steps;  // there are no keys yet
    scratch.sight.set(job, r);
    if (r < job.rows) {
      widen({args.q.at(job.sequence.first_row + job.token(r), job.query_head(r)), args.q.type}, D, scratch.rows);
      scale_row(scale, D, scratch.rows);
      Math::round_row(scratch.rows, D, packed);
    } else {
      for (std::int64_t i = 0; i < steps; ++i) packed[i] = 0;
    }
    if ((r + 1) % simd::lanes != 0) continue;
    const std::int64_t first = r + 1 - simd::lanes;
    const row_lanes place = row_lanes::of(first, job.stride);
    store_columns(scratch.k, steps, steps, scratch.qt + place.offset(first, steps, 0), place.width);
  }
}

/// The strip's rows as tiles meet them. `bias` lives as long as they do.
template <class Math>
SKIM_INLINE row_block<typename Math::step> rows_of(const attend_job& job, const attend_scratch<Math>& scratch,
                                                   const row_bias& bias) {
  row_block<typename Math::step> rows = scratch.sight.template rows<typename Math::step>(job, bias);
  rows.qt = scratch.qt;
  return rows;
}

/// The keys of one tile where they are stored: found once, for all that reads them.
struct stored_tile {
  std::int64_t keys;
  std::int64_t slot_ids[tile_keys];
  stored_row k[tile_keys], v[tile_keys];
  position_range range;  // of their positions
};

/// Where logical index i of the job's keys lies in the cache.
struct key_order {
  const std::int32_t* list;
  std::int64_t listed, past;

  explicit key_order(const attend_job& job)
      : list(job.lists ? job.lists->row(job.list_row + job.head) : nullptr), listed(job.listed()), past(job.past()) {}
  SKIM_INLINE std::int64_t slot(std::int64_t i) const { return i >= listed ? past + i - listed : list ? list[i] : i; }
};

/// Fetches keys and values from logical index `begin` on that are read next, while others are attended.
SKIM_INLINE void fetch_keys(const attend_job& job, std::int64_t begin, std::int64_t end) {
  const kv_view& kv = job.sequence.kv;
  const key_order order(job);
  const head_rows k(kv, kv.k, job.head), v(kv, kv.v, job.head);
  const std::int64_t of_k = bytes_of(kv.k.type, kv.k.dim), of_v = kv.values_in_keys ? 0 : bytes_of(kv.v.type, kv.v.dim);
  for (std::int64_t i = begin; i < end; ++i) {
    const kv_place place = kv.place(order.slot(i));
    simd::prefetch(k.at(place).data, of_k);
    simd::prefetch(v.at(place).data, of_v);
  }
}

/// Finds the `count` keys from logical index `begin` on, and, if wanted, their values. `positions [64]`: theirs.
SKIM_INLINE void find_tile(const attend_job& job, std::int64_t begin, std::int64_t count, bool values,
                           std::int32_t* positions, stored_tile& tile) {
  const kv_view& kv = job.sequence.kv;
  const key_order order(job);
  const head_rows k(kv, kv.k, job.head), v(kv, kv.v, job.head);
  tile.keys = count;
  tile.range = {largest_index, -1};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t slot = order.slot(begin + i);
    const kv_place place = kv.place(slot);
    const std::int64_t position = kv.position(job.head, slot);
    tile.slot_ids[i] = slot;
    tile.k[i] = k.at(place);
    if (values) tile.v[i] = v.at(place);
    positions[i] = static_cast<std::int32_t>(position);
    tile.range.begin = smaller(tile.range.begin, position);
    tile.range.end = greater(tile.range.end, position + 1);
  }
}

/// Zeroes the infinities and NaNs of V row `key` in the tile; true if there were any.
template <class Math>
SKIM_INLINE bool clear_nonfinite(const stored_tile& stored, std::int64_t Dv, std::int64_t key,
                                 const attend_scratch<Math>& scratch, std::int64_t v_stride) {
  widen(stored.v[key], Dv, scratch.value);
  if (all_finite(scratch.value, Dv)) return false;
  bool found = false;
  for (std::int64_t d = 0; d < Dv; ++d) {
    if (is_finite(scratch.value[d])) continue;
    typename Math::step& step = scratch.v[key / Math::values * v_stride + d];
    step = Math::without(step, key % Math::values);
    found = true;
  }
  return found;
}

/// Widens the tile's keys.
template <class Math>
SKIM_INLINE void load_tile_keys(const attend_job& job, const stored_tile& stored, const attend_scratch<Math>& scratch,
                                key_tile<typename Math::step>& tile) {
  const std::int64_t D = job.sequence.kv.k.dim, keys = stored.keys;
  tile.keys = keys;
  tile.k_steps = tile.k_stride = (D + Math::values - 1) / Math::values;
  tile.k = scratch.k;
  tile.positions = scratch.positions;
  tile.slot_ids = stored.slot_ids;
  for (std::int64_t i = 0; i < keys; ++i) load_row<Math>(stored.k[i], D, scratch.k + i * tile.k_stride);
  for (std::int64_t at = keys * tile.k_stride; at < round_up(keys, padded_to) * tile.k_stride; ++at) scratch.k[at] = 0;
}

/// Widens the tile's keys and values. With `guard`, infinities and NaNs in V become zeros and bit i of the answer says that
/// row i had some: where some row must not see a key, its weight 0 times infinity would poison that row.
template <class Math>
SKIM_INLINE std::uint64_t load_tile(const attend_job& job, const stored_tile& stored, bool guard,
                                    const attend_scratch<Math>& scratch, key_tile<typename Math::step>& tile) {
  const kv_view& kv = job.sequence.kv;
  const std::int64_t Dv = kv.v.dim, keys = stored.keys;
  load_tile_keys<Math>(job, stored, scratch, tile);
  tile.v_steps = (keys + Math::values - 1) / Math::values;
  tile.v_stride = round_up(Dv, padded_to);
  tile.v = scratch.v;
  for (std::int64_t i = 0; i < keys; i += Math::values) {
    typename Math::step* const row = scratch.v + i / Math::values * tile.v_stride;
    if (kv.values_in_keys && Math::values == 1) {  // the key is at hand, widened
      std::memcpy(row, scratch.k + i * tile.k_stride, static_cast<std::size_t>(Dv) * sizeof *row);
    } else {
      load_row_pair<Math>(stored.v[i], i + 1 < keys ? stored.v[i + 1] : stored_row{nullptr, kv.v.type}, Dv, row);
    }
    for (std::int64_t d = Dv; d < tile.v_stride; ++d) row[d] = 0;
  }
  std::uint64_t nonfinite = 0;
  for (std::int64_t i = 0; guard && i < keys; ++i) {
    if (clear_nonfinite(stored, Dv, i, scratch, tile.v_stride)) nonfinite |= std::uint64_t{1} << i;
  }
  return nonfinite;
}

/// Gives the rows that see them the infinities and NaNs that `load_tile` took out.
template <class Math>
SKIM_INLINE void add_nonfinite(const row_block<typename Math::step>& rows, std::int64_t count, std::int64_t Dv,
                               const stored_tile& stored, std::uint64_t nonfinite,
                               const attend_scratch<Math>& scratch) {
  const std::int64_t dims = round_up(Dv, padded_to);
  for (std::int64_t i = 0; i < stored.keys; ++i) {
    if ((nonfinite >> i & 1) == 0) continue;
    widen(stored.v[i], Dv, scratch.value);
    for (std::int64_t r = 0; r < count; ++r) {
      if (scratch.positions[i] < rows.first[r] || rows.last[r] < scratch.positions[i]) continue;
      if (rows.bias && rows.bias->at(r, stored.slot_ids[i]) == minus_infinity) continue;
      for (std::int64_t d = 0; d < Dv; ++d) {
        if (!is_finite(scratch.value[d]))
          rows.out[row_lanes::of(r, rows.stride).offset(r, dims, d)] += scratch.value[d];
      }
    }
  }
}

/// Positions of the queries in rows [begin, end) of the strip: the range that `mask::keys` and `covers` take.
SKIM_INLINE position_range query_range(const attend_job& job, std::int64_t begin, std::int64_t end) {
  const kv_view& kv = job.sequence.kv;
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

/// The tile up to the last key that is seen: half of a causal chunk's own keys are not, and change no bit.
template <class Step>
SKIM_INLINE key_tile<Step> seen_by(position_range seen, key_tile<Step> tile, std::int64_t values) {
  const auto hidden = [&](std::int64_t position)
                          SKIM_LAMBDA_INLINE { return position < seen.begin || position >= seen.end; };
  while (tile.keys > 0 && hidden(tile.positions[tile.keys - 1])) --tile.keys;
  tile.v_steps = (tile.keys + values - 1) / values;
  return tile;
}

/// Attends the job's rows, which are loaded, to its keys: leaves what they give in `sums`.
template <class Math>
inline void attend_rows(const attend_job& job, const attend_scratch<Math>& scratch, const logit_rule& rule,
                        const strip_sums& sums) {
  using step = typename Math::step;
  const mask& see = job.args->mask;
  const std::int64_t Dv = job.sequence.kv.v.dim;
  const row_bias bias = job.bias();
  row_block<step> rows = rows_of<Math>(job, scratch, bias);
  rows.out = sums.out;
  rows.largest = sums.largest;
  rows.sum = sums.sum;
  sums.clear(Dv, job.stride);
  const position_range queries = query_range(job, 0, job.rows);
  const std::int64_t end = smaller(job.key_end, job.listed() + job.sequence.Tq);
  step* const weights = std::is_same_v<step, float> ? reinterpret_cast<step*>(scratch.scores) : scratch.weights;
  stored_tile stored;
  for (std::int64_t begin = job.key_begin; begin < end; begin += tile_keys) {
    find_tile(job, begin, smaller(tile_keys, end - begin), true, scratch.positions, stored);
    if (disjoint(see.keys(queries), stored.range)) continue;
    const bool partly = !see.covers(queries, stored.range);
    key_tile<step> tile;
    const std::uint64_t nonfinite = load_tile<Math>(job, stored, partly || rows.bias, scratch, tile);
    std::int64_t fetched = begin + tile_keys;
    for (std::int64_t r = 0; r < job.rows;) {
      const bool wide = job.stride - r >= row_vectors * simd::lanes;
      const std::int64_t next = r + (wide ? row_vectors : 1) * simd::lanes;
      const std::int64_t wanted = smaller(begin + tile_keys + tile_keys * next / job.stride, end);
      fetch_keys(job, fetched, wanted);
      fetched = wanted;
      const position_range block = partly ? query_range(job, r, smaller(next, job.rows)) : queries;
      if (!partly || !disjoint(see.keys(block), stored.range)) {
        const bool masked = partly && !see.covers(block, stored.range);
        const key_tile<step> met = masked ? seen_by(see.keys(block), tile, Math::values) : tile;
        if (wide) {
          attend_tile<Math, row_vectors>(rows, r, met, rule, masked, scratch.scores, weights);
        } else {
          attend_tile<Math, 1>(rows, r, met, rule, masked, scratch.scores, weights);
        }
      }
      r = next;
    }
    if (nonfinite) add_nonfinite<Math>(rows, job.rows, Dv, stored, nonfinite, scratch);
  }
}

/// Normalises and stores the job's rows: out = sum of weighted values / denominator, lse = log of the denominator.
inline void store_rows(const attend_job& job, const strip_sums& sums,
                       float* rows) {  // rows [lanes, padded Dv]: scratch
  const attention_args& args = *job.args;
  const std::int64_t Dv = args.out.extents[2], dims = round_up(Dv, padded_to);
  for (std::int64_t r = 0; r < job.rows; ++r) {
    const std::int64_t t = job.sequence.first_row + job.token(r), h = job.query_head(r);
    float total = sums.sum[r], most = sums.largest[r], shrink = 1;
    if (args.sink_logits) {
      const float sink = static_cast<float>(static_cast<double>(args.sink_logits[h]) * log2_e);
      const float base = sink > most ? sink : most;
      if (base != minus_infinity) {
        shrink = std::exp2(most - base);
        total = total * shrink + std::exp2(sink - base);
        most = base;
      }
    }
    if (r % simd::lanes == 0) {
      const row_lanes place = row_lanes::of(r, job.stride);
      load_columns(sums.out + place.offset(r, dims, 0), place.width, dims, rows, dims);
    }
    float* const row = rows + r % simd::lanes * dims;
    scale_row(total == 0 ? 0 : shrink / total, dims, row);
    narrow(row, Dv, args.out.at(t, h), args.out.type);
    if (args.lse.data) {
      const double log_sum = (static_cast<double>(most) + std::log2(static_cast<double>(total))) / log2_e;
      *args.lse.at(t, h) = total == 0 ? minus_infinity : static_cast<float>(log_sum);
    }
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
