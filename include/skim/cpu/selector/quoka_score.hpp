// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's step 4 on the CPU: one score per key, streaming K once.
///
/// The chosen queries lie in the SIMD lanes and keys are broadcast against them, as in attend_tile.hpp, with a running
/// maximum instead of a `[n, Tk]` matrix. One to three queries (decode, or the mean) leave most lanes idle; then D lies in
/// the lanes instead.
#pragma once

#include <skim/cpu/kernel/multiply_tile.hpp>
#include <skim/cpu/selector/quoka_queries.hpp>
#include <skim/selector/quoka.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t fewest_packed_queries = 4;
inline constexpr std::int64_t keys_of_tile = 64;  // widened together: within the first-level cache up to D = 128
inline constexpr std::int64_t score_keys = 2048;  // keys of a work unit: packing the queries costs under 2 % of it

/// Whether `is_usable` holds for the factors of a tile: one answer, which a loop over its keys does not have to wait for.
SKIM_INLINE bool all_usable(const float* factors) {
  bool all = true;
  for (std::int64_t i = 0; i < keys_of_tile; i += simd::lanes) {
    const simd::floats factor = simd::load(factors + i);
    all &= xsimd::all(factor > simd::floats(least_inverse) && factor < simd::floats(most_inverse));
  }
  return all;
}

/// Scratch for scoring, one a worker.
struct score_scratch {
  float* packed;  // [D, queries rounded up to lanes], or [queries, padded D] for fewer than four
  float* keys;    // [64, padded D]

  score_scratch(arena& arena, std::int64_t n, std::int64_t D) {
    packed = arena.take<float>(padded_row(greater(n, fewest_packed_queries)) * padded_row(D));
    keys = arena.take<float>(keys_of_tile * padded_row(D));
  }
};

/// Queries ready to meet keys.
struct packed_queries {
  const float* data;
  std::int64_t n;  // as few as 1; rounded up to lanes where they are packed
  std::int64_t D;
  bool in_lanes;
};

/// Of the `n` rows of qbar those that have a say; a row of zeros if none has.
inline packed_queries pack_queries(reduction reduce, const float* qbar, std::int64_t n, std::int64_t D, float* target) {
  const std::int64_t length = padded_row(D);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) count += is_silent(qbar + i * length) ? 0 : 1;
  if (count == 0 || reduce == reduction::mean) {  // the mean of dot products is the dot product with the mean
    clear_row(target, length);
    for (std::int64_t i = 0; i < n; ++i) {
      const float* const row = qbar + i * length;
      if (!is_silent(row)) add_scaled_of(row, 1.0f / static_cast<float>(count), target, length);
    }
    return {target, 1, D, false};
  }
  if (count < fewest_packed_queries) {
    float* row = target;
    for (std::int64_t i = 0; i < n; ++i) {
      if (is_silent(qbar + i * length)) continue;
      std::memcpy(row, qbar + i * length, static_cast<std::size_t>(length) * sizeof(float));
      row += length;
    }
    return {target, count, D, false};
  }
  const std::int64_t width = padded_row(count);
  const float* row = qbar;
  for (std::int64_t lane = 0, i = 0; lane < width; ++lane) {
    while (i < n && is_silent(qbar + i * length)) ++i;
    if (i < n) row = qbar + i++ * length;  // lanes beyond the last query repeat it, which no maximum notices
    for (std::int64_t d = 0; d < D; ++d) target[d * width + lane] = row[d];
  }
  return {target, width, D, true};
}

/// best[i] = max over the packed queries of q . keys[i], for `broadcasts` keys. A NaN key makes every product NaN, and the
/// maximum with them.
template <int Vectors>
SKIM_INLINE void score_packed(const packed_queries& queries, std::int64_t first, const float* keys,
                              std::int64_t key_stride, simd::floats (&best)[broadcasts]) {
  simd::vectors<Vectors> acc[broadcasts];
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { acc[i][v] = simd::floats(0.0f); });
  });
  multiply_tile<simd::tile_math<accumulate::widen_fma>, Vectors>(keys, key_stride, unit_stride{}, queries.data + first,
                                                                 queries.n, queries.D, acc);
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { best[i] = simd::larger(best[i], acc[i][v]); });
  });
}

/// dots [round_up(count, broadcasts)] = max over queries of q . key for a tile of widened keys.
SKIM_NOINLINE inline void score_keys_of_tile(const packed_queries& queries, const float* keys, std::int64_t count,
                                             float* dots) {
  const std::int64_t stride = padded_row(queries.D);
  if (!queries.in_lanes) {
    for (std::int64_t i = 0; i < count; ++i) {
      float best = dot_of(queries.data, keys + i * stride, stride);
      for (std::int64_t j = 1; j < queries.n; ++j) {
        const float dot = dot_of(queries.data + j * stride, keys + i * stride, stride);
        best = dot > best ? dot : best;
      }
      dots[i] = best;
    }
    return;
  }
  for (std::int64_t i = 0; i < count; i += broadcasts) {
    simd::floats best[broadcasts];
    simd::unroll<broadcasts>([&](auto j) SKIM_LAMBDA_INLINE { best[j] = simd::floats(minus_infinity); });
    std::int64_t first = 0;
    for (; first + row_vectors * simd::lanes <= queries.n; first += row_vectors * simd::lanes) {
      score_packed<row_vectors>(queries, first, keys + i * stride, stride, best);
    }
    for (; first < queries.n; first += simd::lanes) score_packed<1>(queries, first, keys + i * stride, stride, best);
    simd::unroll<broadcasts>([&](auto j) SKIM_LAMBDA_INLINE { dots[i + j] = simd::max_lane(best[j]); });
  }
}

/// Past keys of one head that a unit scores, and what the whole chunk sees.
struct score_job {
  const kv_view* kv;
  std::int64_t head, begin, end;
  position_range seen;
  bool windowed;  // some past keys may lie outside every query's window
};

SKIM_INLINE bool out_of_sight(const score_job& job, std::int64_t begin, std::int64_t end) {
  if (!job.windowed) return false;
  bool out = true;
  for (std::int64_t slot = begin; slot < end; ++slot) {
    const std::int64_t position = job.kv->position(job.head, slot);
    out &= position < job.seen.begin || position >= job.seen.end;
  }
  return out;
}

/// factors [64] = what turns q . k into the similarity for a tile's widened keys: 1 / |k|, or 1. Keys of unusual size are
/// scaled for that, whatever norm is stored for them.
SKIM_NOINLINE inline void find_factors(const score_job& job, similarity measure, std::int64_t begin, std::int64_t count,
                                       float* keys, float* factors) {
  const kv_view& kv = *job.kv;
  const std::int64_t stride = padded_row(kv.k.dim);
  for (std::int64_t i = 0; i < keys_of_tile; i += simd::lanes) simd::store(factors + i, simd::floats(1.0f));
  if (measure == similarity::dot) return;
  const float* const stored = kv.inverse_norms ? kv.inverse_norms + job.head * kv.inverse_norms_stride : nullptr;
  for (std::int64_t i = 0; i < count; ++i) {
    factors[i] = stored ? stored[kv.metadata_row(begin + i)] : inverse_length(keys + i * stride, stride);
  }
  if (all_usable(factors)) return;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!is_usable(factors[i])) factors[i] = scale_to_one(keys + i * stride, stride);
  }
}

/// scores [slot] for the job's slots; -inf, unread, where a whole tile lies outside every window.
SKIM_NOINLINE inline void score_slots(const score_job& job, similarity measure, const packed_queries& queries,
                                      const score_scratch& scratch, float* scores) {
  const kv_view& kv = *job.kv;
  const std::int64_t D = kv.k.dim, stride = padded_row(D);
  const head_rows rows(kv, kv.k, job.head);
  float dots[keys_of_tile], factors[keys_of_tile];
  for (std::int64_t begin = job.begin; begin < job.end; begin += keys_of_tile) {
    const std::int64_t count = smaller(keys_of_tile, job.end - begin);
    if (out_of_sight(job, begin, begin + count)) {
      for (std::int64_t i = 0; i < count; ++i) scores[begin + i] = minus_infinity;
      continue;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      float* const key = scratch.keys + i * stride;
      simd::store(key + stride - simd::lanes, simd::floats(0.0f));
      widen_here(rows.at(kv.place(begin + i)), D, key);
    }
    for (std::int64_t i = count; i < round_up(count, broadcasts); ++i) clear_row(scratch.keys + i * stride, stride);
    find_factors(job, measure, begin, count, scratch.keys, factors);
    score_keys_of_tile(queries, scratch.keys, count, dots);
    for (std::int64_t i = 0; i < count; ++i) scores[begin + i] = dots[i] * factors[i];
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
