// SPDX-License-Identifier: Apache-2.0
/// \file Attention of few rows, as in generation: what limits it is reading the cache.
///
/// Rows in the SIMD lanes would leave most of them idle. So D lies in the lanes: keys and values are widened on their way
/// from memory, once for all rows of a group, and a tile's logits are rows within keys, all lanes in use. In token-major
/// storage several heads take turns tile by tile, so that memory is read in order. Multiplies in f32, whatever is stored;
/// what is left behind is what `attend_rows` leaves.
#pragma once

#include <skim/cpu/kernel/attend_rows.hpp>
#include <skim/cpu/simd/sums.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t few_rows = smaller(8, simd::lanes);  // of a block: up to which this kernel is the faster
inline constexpr std::int64_t few_keys = 16;                       // of a tile: they and the next ones stay in L1
inline constexpr std::int64_t few_heads = 16;                      // that take turns, at most

/// Vectors of an output row that are summed at once, beside `rows` others.
inline constexpr int few_vectors(int rows) {
  return simd::registers / 2 / rows > 4 ? 4 : simd::registers / 2 / rows < 1 ? 1 : simd::registers / 2 / rows;
}

/// Whether that many rows are few, and of numbers that fill vectors.
SKIM_INLINE bool suits_few_rows(std::int64_t rows, std::int64_t D, std::int64_t Dv) {
  return rows <= few_rows && D % simd::lanes == 0 && Dv >= 4 * simd::lanes;
}

/// One KV head on its way through the keys.
struct few_head {
  attend_job job;
  row_bias bias;
  row_sight sight;
  row_block<float> rows;
  position_range queries;
  std::int64_t end;  // of its keys, in logical order
  float* q;          // [few_rows, D]
  float* out;        // [few_rows, runs of Dv]: the last run ends with the last number, and repeats some before it

  few_head() = default;
  few_head(arena& arena, std::int64_t D, std::int64_t Dv)
      : sight(arena, simd::lanes),
        q(arena.take<float>(few_rows * D)),
        out(arena.take<float>(few_rows * round_up(Dv, 4 * simd::lanes))) {}

  /// Queries in f32, and what they see.
  void load(const attend_job& given, float scale) {
    job = given;
    bias = job.bias();
    const attention_args& args = *job.args;
    const std::int64_t D = args.q.extents[2];
    for (std::int64_t r = 0; r < simd::lanes; ++r) sight.set(job, r);
    rows = sight.rows<float>(job, bias);
    queries = query_range(job, 0, job.rows);
    end = job.listed() + job.sequence.Tq;
    for (std::int64_t i = job.rows * D; i < few_rows * D; ++i) q[i] = 0;
    for (std::int64_t r = 0; r < job.rows; ++r) {
      widen({args.q.at(job.sequence.first_row + job.token(r), job.query_head(r)), args.q.type}, D, q + r * D);
      scale_row(scale, D, q + r * D);
    }
  }
};

/// Scratch of one worker.
struct few_scratch {
  float *scores, *wide;     // [few_keys, few_rows], [few_keys, lanes]
  float* row;               // one of V, or a vector of output rows
  stored_tile* clean;       // where some values are not finite
  float* values;            // [few_keys, Dv]: its own
  std::int32_t* positions;  // [few_keys]
  few_head* heads;
  std::int64_t count;

  few_scratch(arena& arena, std::int64_t D, std::int64_t Dv, std::int64_t heads_together)
      : scores(arena.take<float>(few_keys * few_rows)),
        wide(arena.take<float>(few_keys * simd::lanes)),
        row(arena.take<float>(simd::lanes * round_up(Dv, padded_to))),
        clean(arena.take<stored_tile>(1)),
        values(arena.take<float>(few_keys * Dv)),
        positions(arena.take<std::int32_t>(few_keys)),
        heads(arena.take<few_head>(heads_together)),
        count(heads_together) {
    for (std::int64_t i = 0; i < count; ++i) {
      const few_head made(arena, D, Dv);
      if (heads) heads[i] = made;
    }
  }
};

/// Rows that are asked for while a tile is attended.
struct coming_rows {
  const void *k[few_keys], *v[few_keys];
};

/// Asks for `Bytes` bytes of a row. Nothing is looked at: the row may be one there is not.
template <std::int64_t Bytes>
SKIM_INLINE void fetch_bytes(const void* row, std::int64_t begin) {
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(row) + static_cast<std::uintptr_t>(begin);
  simd::unroll<static_cast<int>((Bytes + 63) / 64)>([&](auto line) SKIM_LAMBDA_INLINE {
    simd::prefetch_line(reinterpret_cast<const void*>(first + 64 * static_cast<std::uintptr_t>(line.value)));
  });
}

/// scores [keys, Rows] = q . k for a tile. Asks for the keys of the next, a little at every step: what is asked for
/// together waits for each other.
template <int Rows, class Type>
SKIM_NOINLINE void score_few(const float* SKIM_RESTRICT q, std::int64_t D, const stored_tile& stored, bool scaled,
                             const coming_rows& next, float* SKIM_RESTRICT scores) {
  constexpr int together = static_cast<int>(simd::lanes) / Rows;  // keys
  constexpr std::int64_t step_bytes = simd::lanes * static_cast<std::int64_t>(sizeof(Type)) / block_values<Type>;
  constexpr std::int64_t steps = step_bytes < 64 ? 64 / step_bytes : 1;  // that a line takes
  for (std::int64_t key = 0; key < stored.keys; key += together) {
    decltype(row_at<Type>(nullptr)) keys[static_cast<std::size_t>(together)];
    simd::unroll<together>(
        [&](auto i) SKIM_LAMBDA_INLINE { keys[i] = row_at<Type>(stored.k[smaller(key + i, stored.keys - 1)].data); });
    simd::vectors<Rows * together> sums;
    simd::unroll<Rows * together>([&](auto i) SKIM_LAMBDA_INLINE { sums[i] = simd::floats(0.0f); });
    for (std::int64_t d = 0; d < D; d += simd::lanes) {
      if (d / simd::lanes % steps == 0) {
        const std::int64_t fetched = d / simd::lanes * step_bytes;
        simd::unroll<together>([&](auto i) SKIM_LAMBDA_INLINE { fetch_bytes<step_bytes>(next.k[key + i], fetched); });
      }
      simd::vectors<Rows> row;
      simd::unroll<Rows>([&](auto r) SKIM_LAMBDA_INLINE { row[r] = simd::load(q + r * D + d); });
      simd::unroll<together>([&](auto i) SKIM_LAMBDA_INLINE {
        const simd::floats k = simd::load(keys[i] + d);
        simd::unroll<Rows>([&](auto r)
                               SKIM_LAMBDA_INLINE { sums[i * Rows + r] = simd::fma(k, row[r], sums[i * Rows + r]); });
      });
    }
    simd::floats products = simd::sums_of(sums);
    if (scaled) {
      float factors[simd::lanes];
      for (std::int64_t i = 0; i < simd::lanes; ++i) {
        factors[i] = stored.k[smaller(key + i / Rows, stored.keys - 1)].scale;
      }
      products = products * simd::load(static_cast<const float*>(factors));
    }
    simd::store(scores + key * Rows, products);
  }
}

/// What `finish_scores` does, for scores [keys, Rows], -inf behind them up to a whole vector; by way of rows in lanes where
/// it is more than a soft cap.
template <int Rows>
SKIM_INLINE void finish_few(const few_head& head, const stored_tile& stored, const std::int32_t* positions, bool masked,
                            logit_rule rule, float* scores, float* wide) {
  for (std::int64_t i = 0; rule.soft_cap > 0 && i < stored.keys * Rows; i += simd::lanes) {
    simd::store(scores + i,
                simd::soft_cap(simd::load(scores + i), simd::floats(rule.soft_cap), simd::floats(rule.soft_cap_input)));
  }
  for (std::int64_t i = stored.keys * Rows; i < round_up(stored.keys * Rows, simd::lanes); ++i)
    scores[i] = minus_infinity;
  if (!masked && !head.rows.slopes && !head.rows.bias) return;
  for (std::int64_t i = 0; i < stored.keys; ++i) {
    for (std::int64_t r = 0; r < simd::lanes; ++r) wide[i * simd::lanes + r] = r < Rows ? scores[i * Rows + r] : 0.0f;
  }
  key_tile<float> tile{};
  tile.keys = stored.keys;
  tile.positions = positions;
  tile.slot_ids = stored.slot_ids;
  rule.soft_cap = 0;
  finish_scores<1>(head.rows, 0, tile, rule, masked, wide);
  for (std::int64_t i = 0; i < stored.keys; ++i) {
    for (std::int64_t r = 0; r < Rows; ++r) scores[i * Rows + r] = wide[i * simd::lanes + r];
  }
}

/// `weigh_tile` for scores [keys, Rows]. `largest [Rows]`, `sum [Rows]`.
template <int Rows>
SKIM_NOINLINE void weigh_few(std::int64_t keys, float* scores, float* largest, float* sum, float* shrink) {
  const std::int64_t count = round_up(keys * Rows, simd::lanes);
  simd::floats most(minus_infinity);
  for (std::int64_t i = 0; i < count; i += simd::lanes) most = simd::larger(simd::load(scores + i), most);
  float lane[simd::lanes], base[simd::lanes];
  simd::store(static_cast<float*>(lane), most);
  for (int r = 0; r < Rows; ++r) {
    const float before = largest[r];
    for (std::int64_t i = r; i < simd::lanes; i += Rows) largest[r] = lane[i] > largest[r] ? lane[i] : largest[r];
    base[r] = largest[r] == minus_infinity ? 0.0f : largest[r];
    shrink[r] = before - base[r];
  }
  for (std::int64_t i = Rows; i < simd::lanes; ++i) base[i] = base[i - Rows], shrink[i] = 0;
  simd::store(shrink, simd::exp2_nonpositive(simd::load(static_cast<const float*>(shrink))));
  const simd::floats bases = simd::load(static_cast<const float*>(base));
  simd::floats total(0.0f);
  for (std::int64_t i = 0; i < count; i += simd::lanes) {
    const simd::floats weight = simd::exp2_nonpositive(simd::load(scores + i) - bases);
    simd::store(scores + i, weight);
    total = total + weight;
  }
  simd::store(static_cast<float*>(lane), total);
  for (int r = 0; r < Rows; ++r) {
    float sums = 0;
    for (std::int64_t i = r; i < simd::lanes; i += Rows) sums += lane[i];
    sum[r] = sum[r] * shrink[r] + sums;
  }
}

/// out [Rows, runs of Dv] = out * shrink + the tile's values times weights [keys, Rows]. Asks for the
/// values of the next tile.
template <int Rows, class Type>
SKIM_NOINLINE void accumulate_few(const stored_tile& stored, std::int64_t Dv, const float* weights, const float* shrink,
                                  const coming_rows& next, float* out) {
  constexpr int vectors = few_vectors(Rows);
  constexpr std::int64_t width = vectors * simd::lanes;
  constexpr std::int64_t run_bytes = width * static_cast<std::int64_t>(sizeof(Type)) / block_values<Type>;
  const std::int64_t length = round_up(Dv, width);
  for (std::int64_t at = 0; at < length; at += width) {
    const std::int64_t fetched = at / width * run_bytes;
    const std::int64_t begin = smaller(at, Dv - width);
    simd::vectors<vectors> sums[static_cast<std::size_t>(Rows)];
    simd::unroll<Rows>([&](auto r) SKIM_LAMBDA_INLINE {
      simd::unroll<vectors>([&](auto j) SKIM_LAMBDA_INLINE {
        sums[r][j] = simd::load(out + r * length + at + j * simd::lanes) * simd::floats(shrink[r]);
      });
    });
    for (std::int64_t key = 0; key < stored.keys; ++key) {
      fetch_bytes<run_bytes>(next.v[key], fetched);
      const auto row = row_at<Type>(stored.v[key].data) + begin;
      simd::vectors<vectors> values;
      simd::unroll<vectors>([&](auto j) SKIM_LAMBDA_INLINE { values[j] = simd::load(row + j * simd::lanes); });
      simd::unroll<Rows>([&](auto r) SKIM_LAMBDA_INLINE {
        const simd::floats weight(weights[key * Rows + r]);
        simd::unroll<vectors>([&](auto j)
                                  SKIM_LAMBDA_INLINE { sums[r][j] = simd::fma(values[j], weight, sums[r][j]); });
      });
    }
    simd::unroll<Rows>([&](auto r) SKIM_LAMBDA_INLINE {
      simd::unroll<vectors>(
          [&](auto j) SKIM_LAMBDA_INLINE { simd::store(out + r * length + at + j * simd::lanes, sums[r][j]); });
    });
  }
}

/// Bit i says that row i of V has an infinity or NaN, or such a scale.
SKIM_NOINLINE inline std::uint64_t find_nonfinite(const stored_tile& stored, std::int64_t Dv, float* row) {
  std::uint64_t found = 0;
  for (std::int64_t i = 0; i < stored.keys; ++i) {
    widen(stored.v[i], Dv, row);
    if (!all_finite(row, Dv)) found |= std::uint64_t{1} << i;
  }
  return found;
}

/// The tile with its values in f32, `values [keys, Dv]`, without their scales: a weight of 0 times what is not finite would
/// poison rows that must not see it, so zeros stand in its place.
SKIM_NOINLINE inline stored_tile without_nonfinite(stored_tile tile, std::int64_t Dv, float* values) {
  for (std::int64_t i = 0; i < tile.keys; ++i) {
    float* const row = values + i * Dv;
    widen({tile.v[i].data, tile.v[i].type}, Dv, row);
    for (std::int64_t d = 0; d < Dv; ++d) row[d] = is_finite(row[d]) && is_finite(tile.v[i].scale) ? row[d] : 0.0f;
    tile.v[i] = {row, element::f32, is_finite(tile.v[i].scale) ? tile.v[i].scale : 0.0f};
  }
  return tile;
}

/// Of the rows of `count` heads' keys from logical index `first` on, in the order of memory, the `part`th tile. Those behind
/// `end` are the last again.
SKIM_INLINE void find_coming(const attend_job& job, std::int64_t count, std::int64_t first, std::int64_t end,
                             std::int64_t part, coming_rows& next) {
  const kv_view& kv = job.sequence.kv;
  const key_order order(job);
  const head_rows k(kv, kv.k, job.head), v(kv, kv.v, job.head);
  std::int64_t token = first + part * few_keys / count, head = part * few_keys % count;
  for (std::int64_t i = 0; i < few_keys; ++i) {
    const kv_place place = kv.place(order.slot(smaller(token, end - 1)));
    next.k[i] = k.at(place, head).data;
    next.v[i] = v.at(place, head).data;
    if (++head < count) continue;
    head = 0;
    ++token;
  }
}

/// Calls `take(d, i)` for the numbers of an output row: number d is at i.
template <int Rows, class Take>
SKIM_INLINE void each_number(std::int64_t Dv, const Take& take) {
  constexpr std::int64_t width = few_vectors(Rows) * simd::lanes;
  for (std::int64_t at = 0; at < Dv; at += width) {
    const std::int64_t ahead = at - smaller(at, Dv - width);
    for (std::int64_t i = ahead; i < width; ++i) take(at - ahead + i, at + i);
  }
}

/// Gives the rows that see them the infinities and NaNs of those keys' values.
template <int Rows>
SKIM_NOINLINE void add_nonfinite_few(const few_head& head, std::int64_t Dv, const stored_tile& stored,
                                     const std::int32_t* positions, std::uint64_t nonfinite, float* row) {
  const std::int64_t length = round_up(Dv, few_vectors(Rows) * simd::lanes);
  for (std::int64_t key = 0; key < stored.keys; ++key) {
    if ((nonfinite >> key & 1) == 0) continue;
    widen(stored.v[key], Dv, row);
    for (std::int64_t r = 0; r < head.job.rows; ++r) {
      if (positions[key] < head.rows.first[r] || head.rows.last[r] < positions[key]) continue;
      if (head.rows.bias && head.rows.bias->at(r, stored.slot_ids[key]) == minus_infinity) continue;
      each_number<Rows>(Dv, [&](std::int64_t d, std::int64_t i) {
        if (!is_finite(row[d])) head.out[r * length + i] += row[d];
      });
    }
  }
}

/// One tile of a head. `next`: what is asked for meanwhile.
template <int Rows>
SKIM_INLINE void attend_few_tile(const few_head& head, const stored_tile& stored, const std::int32_t* positions,
                                 const coming_rows& next, const logit_rule& rule, const few_scratch& scratch) {
  const kv_view& kv = head.job.sequence.kv;
  const std::int64_t D = kv.k.dim, Dv = kv.v.dim;
  const mask& see = head.job.args->mask;
  if (disjoint(see.keys(head.queries), stored.range)) return;
  const bool masked = !see.covers(head.queries, stored.range);
  const std::uint64_t nonfinite = masked || head.rows.bias ? find_nonfinite(stored, Dv, scratch.row) : 0;
  float* const scores = scratch.scores;
  with_stored_type(kv.k.type, stored_types{}, [&](auto type) SKIM_LAMBDA_INLINE {
    score_few<Rows, decltype(type)>(head.q, D, stored, kv.k.scales != nullptr, next, scores);
  });
  finish_few<Rows>(head, stored, positions, masked, rule, scores, scratch.wide);
  float shrink[simd::lanes];
  weigh_few<Rows>(stored.keys, scores, head.rows.largest, head.rows.sum, shrink);
  if (nonfinite) *scratch.clean = without_nonfinite(stored, Dv, scratch.values);
  const stored_tile& met = nonfinite ? *scratch.clean : stored;
  float* weights = scores;
  if (kv.v.scales) {
    weights = scratch.wide;
    for (std::int64_t i = 0; i < stored.keys * Rows; ++i) weights[i] = scores[i] * met.v[i / Rows].scale;
  }
  with_stored_type(met.v[0].type, stored_types{}, [&](auto type) SKIM_LAMBDA_INLINE {
    accumulate_few<Rows, decltype(type)>(met, Dv, weights, shrink, next, head.out);
  });
  if (nonfinite) add_nonfinite_few<Rows>(head, Dv, stored, positions, nonfinite, scratch.row);
}

/// Attends the heads' rows to keys [begin, end) and leaves what they give in `sums(head)`, each of one vector of rows.
template <int Rows, class Sums>
SKIM_INLINE void attend_few(const few_scratch& scratch, std::int64_t count, std::int64_t begin, std::int64_t end,
                            const logit_rule& rule, const Sums& sums) {
  const std::int64_t Dv = scratch.heads[0].job.sequence.kv.v.dim;
  const std::int64_t length = round_up(Dv, few_vectors(Rows) * simd::lanes);
  for (std::int64_t h = 0; h < count; ++h) {
    few_head& head = scratch.heads[h];
    const strip_sums own = sums(h);
    own.clear(Dv, simd::lanes);
    head.rows.largest = own.largest;
    head.rows.sum = own.sum;
    for (std::int64_t i = 0; i < Rows * length; ++i) head.out[i] = 0;
  }
  stored_tile found;
  coming_rows next;
  for (std::int64_t first = begin; first < end; first += few_keys) {
    for (std::int64_t h = 0; h < count; ++h) {
      const few_head& head = scratch.heads[h];
      const std::int64_t keys = smaller(few_keys, smaller(end, head.end) - first);
      if (keys <= 0) continue;
      find_tile(head.job, first, keys, true, scratch.positions, found);
      find_coming(scratch.heads[0].job, count, first + few_keys, smaller(end, scratch.heads[0].end), h, next);
      attend_few_tile<Rows>(head, found, scratch.positions, next, rule, scratch);
    }
  }
  for (std::int64_t h = 0; h < count; ++h) {
    const few_head& head = scratch.heads[h];
    const strip_sums own = sums(h);
    for (std::int64_t r = 0; r < head.job.rows; ++r) {
      each_number<Rows>(
          Dv, [&](std::int64_t d, std::int64_t i) { own.out[d * simd::lanes + r] = head.out[r * length + i]; });
    }
  }
}

/// Calls `body(integral_constant<int, Rows>)` for a block of so many rows.
template <class Body>
SKIM_INLINE void with_few_rows(std::int64_t rows, const Body& body) {
  if (rows <= 4) return body(std::integral_constant<int, 4>{});
  body(std::integral_constant<int, static_cast<int>(few_rows)>{});
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
