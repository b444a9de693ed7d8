// SPDX-License-Identifier: Apache-2.0
/// \file The softmax weights that queries give to cached tokens, summed over queries: recomputed from q, K and the
/// log-sum-exp that attention left, tile by tile; no [Tq, Tk] matrix is stored. H2O, TOVA and SnapKV differ in the rows.
#pragma once

#include <skim/cpu/kernel/attend_rows.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t weight_rows = 512;  // packed at a time: 256 KiB of D = 128

/// Scratch of one worker.
struct weight_scratch {
  using math = simd::tile_math<accumulate::widen_fma>;
  attend_scratch<math> tile;
  float* lse;      // [stride], base 2; +inf where a row saw nothing or is NaN, so that its weights are 0
  float* columns;  // [64, lanes]

  weight_scratch(arena& arena, std::int64_t D, std::int64_t stride) : tile(arena, D, 1, stride) {
    lse = arena.take<float>(stride);
    columns = arena.take<float>(tile_keys * simd::lanes);
  }
};

inline std::int64_t weight_stride(const attention_args& call, std::int64_t first) {
  return round_up(smaller((call.q.extents[0] - first) * group_size(call), weight_rows), simd::lanes);
}

inline std::size_t weight_scratch_bytes(const attention_args& call, std::int64_t first) {
  arena arena;
  weight_scratch(arena, call.q.extents[2], weight_stride(call, first));
  return arena.used();
}

/// columns [keys, lanes] += the weights of a block of rows. A key that is masked or of logit -inf has weight 0 whatever the
/// row's log-sum-exp, as has every key of a row that saw none or whose log-sum-exp is NaN, or of a lane beyond the last row.
template <int Vectors>
SKIM_NOINLINE void add_weights(const row_block<float>& rows, std::int64_t row, const key_tile<float>& tile,
                               const logit_rule& rule, bool masked, const weight_scratch& scratch) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  score_tile<weight_scratch::math, Vectors>(rows, row, tile, rule, masked, scratch.tile.scores);
  simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
    const simd::floats total = simd::load(scratch.lse + row + v * simd::lanes);
    for (std::int64_t key = 0; key < tile.keys; ++key) {
      const simd::floats logit = simd::load(scratch.tile.scores + key * width + v * simd::lanes);
      const simd::float_mask none = logit == simd::floats(minus_infinity) || total == simd::floats(-minus_infinity);
      // Rounding may bring the difference above 0, where a weight would be above 1.
      const simd::floats power = simd::smaller(simd::floats(0.0f), logit - total);
      const simd::floats weight = xsimd::select(none, simd::floats(0.0f), simd::exp2_nonpositive(power));
      float* const column = scratch.columns + key * simd::lanes;
      simd::store(column, simd::load(column) + weight);
    }
  });
}

/// The job's rows and the log of their denominators.
SKIM_INLINE void load_weight_rows(const attend_job& job, const logit_rule& rule, const weight_scratch& scratch) {
  load_queries<weight_scratch::math>(job, scratch.tile, rule.scale);
  for (std::int64_t r = 0; r < job.stride; ++r) {
    const float lse =
        r < job.rows ? *job.args->lse.at(job.sequence.first_row + job.token(r), job.query_head(r)) : minus_infinity;
    const bool none = lse == minus_infinity || std::isnan(lse);  // a row that saw nothing, or is lost, has no say
    scratch.lse[r] = none ? -minus_infinity : static_cast<float>(static_cast<double>(lse) * log2_e);
  }
}

/// Calls `add(slot, weight)` with what the job's rows together give to each of its keys that stand at positions of
/// `wanted`; of other keys it may call it or not.
template <class Add>
inline void sum_job_weights(const attend_job& job, const logit_rule& rule, position_range wanted,
                            const weight_scratch& scratch, const Add& add) {
  const mask see = job.args->mask;
  const row_bias bias = job.bias();
  const row_block<float> rows = rows_of(job, scratch.tile, bias);
  const position_range queries = query_range(job, 0, job.rows);
  stored_tile stored;
  for (std::int64_t begin = job.key_begin; begin < job.key_end; begin += tile_keys) {
    const std::int64_t keys = smaller(tile_keys, job.key_end - begin);
    find_tile(job, begin, keys, false, scratch.tile.positions, stored);
    if (disjoint(see.keys(queries), stored.range) || disjoint(wanted, stored.range)) continue;
    const bool masked = !see.covers(queries, stored.range);
    key_tile<float> tile{};
    load_tile_keys<weight_scratch::math>(job, stored, scratch.tile, tile);
    for (std::int64_t i = 0; i < keys * simd::lanes; ++i) scratch.columns[i] = 0;
    for (std::int64_t r = 0; r < job.rows;) {
      const bool wide = job.stride - r >= row_vectors * simd::lanes;
      if (wide) {
        add_weights<row_vectors>(rows, r, tile, rule, masked, scratch);
      } else {
        add_weights<1>(rows, r, tile, rule, masked, scratch);
      }
      r += (wide ? row_vectors : 1) * simd::lanes;
    }
    for (std::int64_t i = 0; i < keys; ++i) {
      add(stored.slot_ids[i], simd::sum(simd::load(scratch.columns + i * simd::lanes)));
    }
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
