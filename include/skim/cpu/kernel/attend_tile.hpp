// SPDX-License-Identifier: Apache-2.0
/// \file One tile of online-softmax attention: up to 64 keys against the query rows of one KV head.
///
/// Query rows lie in the SIMD lanes. The `M = G * Tq` rows that share a KV head are packed once as `qt [D, M]`; keys and
/// values keep their row layout and are broadcast, one element at a time, against vectors of rows. So nothing is
/// transposed per key, a gathered row costs what a contiguous one does, maxima and sums of the softmax need no
/// horizontal step, and all query heads of a group share each widened key.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/multiply_tile.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/math.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t tile_keys = 64;
inline constexpr std::int64_t padded_to = 8;  // K rows of a tile and Dv are padded to this: a multiple of `broadcasts`
static_assert(padded_to % broadcasts == 0 && tile_keys % padded_to == 0, "padding must leave whole broadcast blocks");

inline constexpr double log2_e = 1.4426950408889634074;

/// The bias of the query rows of one work unit: row r is query head `head * G + r % G` of the token in row
/// `first_row + r / G` of q, r counted from `begin`.
struct row_bias {
  tensor_view<const void, 3> values;  // [1 or Hq, Tq, tokens]
  std::int64_t first_row = 0, head = 0, G = 1, begin = 0, rows = 0;

  SKIM_INLINE float at(std::int64_t r, std::int64_t slot) const {
    const std::int64_t query_head = values.extents[0] == 1 ? 0 : head * G + (begin + r) % G;
    return load_element(values.data, values.type, values.offset(query_head, first_row + (begin + r) / G, slot));
  }
};

/// The query rows of one work unit: packed once, then met by every tile.
template <class Step>
struct row_block {
  const Step* qt;                 // [steps of D, rows] by `row_lanes`, scaled unless that would round them
  float* out;                     // [round_up(Dv, 8), rows] by `row_lanes`, unnormalised
  float* largest;                 // [stride], running maximum of the logits, base 2
  float* sum;                     // [stride], running denominator
  const std::int32_t* first;      // [stride], lowest visible position
  const std::int32_t* last;       // [stride], highest visible position
  std::int64_t stride;            // rows, rounded up to the lane count
  const float* slopes;            // [stride], base 2; null: none
  const std::int32_t* positions;  // [stride], where there are slopes
  const row_bias* bias;           // null: none
};

/// The keys of one tile, widened once for all rows of the group.
template <class Step>
struct key_tile {
  const Step* k;                  // [round_up(keys, 8), k_stride]
  const Step* v;                  // [steps of keys, v_stride]
  const std::int32_t* positions;  // [keys]
  const std::int64_t* slot_ids;   // [keys]
  std::int64_t keys, k_stride, v_stride, k_steps, v_steps;
};

struct logit_rule {
  float scale = 1;           // of q.k, where the queries do not have it already
  float soft_cap = 0;        // base 2 (times log2 e); 0 = none
  float soft_cap_input = 0;  // 1 / soft_cap in the units in which q.k arrives

  /// Logits are scaled to base 2, or, where the soft cap's tanh comes first, to its units.
  static logit_rule of(const attention_args& args) {
    logit_rule rule;
    rule.scale = static_cast<float>(static_cast<double>(logit_scale(args)) * log2_e);
    if (args.soft_cap > 0) {
      rule.scale = logit_scale(args);
      rule.soft_cap = static_cast<float>(static_cast<double>(args.soft_cap) * log2_e);
      rule.soft_cap_input = 1 / args.soft_cap;
    }
    return rule;
  }
};

/// scores [keys, width] -= slope * distance of positions, for the rows from `row` on.
template <class Step>
SKIM_NOINLINE void add_slopes(const row_block<Step>& rows, std::int64_t row, const key_tile<Step>& tile,
                              std::int64_t width, float* scores) {
  for (std::int64_t lane = 0; lane < width; lane += simd::lanes) {
    const simd::floats slope = simd::load(rows.slopes + row + lane);
    const simd::ints query = simd::load(rows.positions + row + lane);
    for (std::int64_t key = 0; key < tile.keys; ++key) {
      float* const at = scores + key * width + lane;
      const simd::floats distance = xsimd::abs(xsimd::to_float(query - simd::ints(tile.positions[key])));
      simd::store(at, simd::fma(distance, simd::floats(0.0f) - slope, simd::load(at)));
    }
  }
}

/// scores [keys, width] += bias, for the rows from `row` on; where that is -inf, what stands there is hidden, NaN too.
template <class Step>
SKIM_NOINLINE void add_bias(const row_block<Step>& rows, std::int64_t row, const key_tile<Step>& tile,
                            std::int64_t width, float* scores) {
  for (std::int64_t r = row; r < smaller(row + width, rows.bias->rows); ++r) {
    for (std::int64_t key = 0; key < tile.keys; ++key) {
      float& score = scores[key * width + r - row];
      const float bias = rows.bias->at(r, tile.slot_ids[key]);
      score = bias == minus_infinity ? minus_infinity : score + bias * static_cast<float>(log2_e);
    }
  }
}

/// From scores [keys, Vectors * lanes] = scale * q.k to logits: soft cap, slopes, bias; masked entries -inf.
template <int Vectors, class Step>
SKIM_INLINE void finish_scores(const row_block<Step>& rows, std::int64_t row, const key_tile<Step>& tile,
                               const logit_rule& rule, bool masked, float* SKIM_RESTRICT scores) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  if (rule.soft_cap > 0) {
    for (std::int64_t i = 0; i < tile.keys * width; i += simd::lanes) {
      simd::store(scores + i, simd::soft_cap(simd::load(scores + i), simd::floats(rule.soft_cap),
                                             simd::floats(rule.soft_cap_input)));
    }
  }
  if (rows.slopes) add_slopes(rows, row, tile, width, scores);
  if (rows.bias) add_bias(rows, row, tile, width, scores);
  if (!masked) return;
  for (std::int64_t v = 0; v < Vectors; ++v) {
    const simd::ints first = simd::load(rows.first + row + v * simd::lanes);
    const simd::ints last = simd::load(rows.last + row + v * simd::lanes);
    for (std::int64_t key = 0; key < tile.keys; ++key) {
      float* at = scores + key * width + v * simd::lanes;
      const simd::ints position(tile.positions[key]);
      const simd::float_mask seen = simd::as_float_mask((first <= position) & (position <= last));
      simd::store(at, xsimd::select(seen, simd::load(at), simd::floats(minus_infinity)));
    }
  }
}

/// scores [keys, Vectors * lanes] = logits of a block of rows, base 2; masked entries -inf.
template <class Math, int Vectors>
SKIM_INLINE void score_tile(const row_block<typename Math::step>& rows, std::int64_t row,
                            const key_tile<typename Math::step>& tile, const logit_rule& rule, bool masked,
                            float* SKIM_RESTRICT scores) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  for (std::int64_t key = 0; key < tile.keys; key += broadcasts) {
    simd::vectors<Vectors> acc[broadcasts];
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { acc[i][v] = simd::floats(0.0f); });
    });
    multiply_tile<Math, Vectors>(tile.k + key * tile.k_stride, tile.k_stride, unit_stride{},
                                 rows.qt + row * tile.k_steps, width_constant<Vectors>{}, tile.k_steps, acc);
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
        if constexpr (Math::rounds_lanes) acc[i][v] = acc[i][v] * simd::floats(rule.scale);
        simd::store(scores + (key + i) * width + v * simd::lanes, acc[i][v]);
      });
    });
  }
  finish_scores<Vectors>(rows, row, tile, rule, masked, scores);
}

/// Replaces the scores by weights 2^(score - maximum), packed as steps, and updates the rows' maximum and denominator.
/// Returns in `shrink` what the rows' accumulated output must be multiplied by.
template <class Math, int Vectors>
SKIM_INLINE void weigh_tile(const row_block<typename Math::step>& rows, std::int64_t row, std::int64_t keys,
                            float* scores, typename Math::step* weights, simd::vectors<Vectors>& shrink) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
    float* const column = scores + v * simd::lanes;
    float* const largest = rows.largest + row + v * simd::lanes;
    float* const sum = rows.sum + row + v * simd::lanes;
    const simd::floats before = simd::load(largest);
    simd::floats most = before;
    for (std::int64_t key = 0; key < keys; ++key) most = simd::larger(simd::load(column + key * width), most);
    simd::store(largest, most);
    // A row that has seen no key yet has maximum -inf; 0 in its place makes every weight 2^-inf = 0 instead of NaN.
    const simd::floats base = xsimd::select(most == simd::floats(minus_infinity), simd::floats(0.0f), most);
    shrink[v] = simd::exp2_nonpositive(before - base);
    simd::floats total(0.0f);
    for (std::int64_t key = 0; key < keys; key += Math::values) {
      const simd::floats even = simd::exp2_nonpositive(simd::load(column + key * width) - base);
      simd::floats odd(0.0f);
      if constexpr (Math::values == 2) {
        if (key + 1 < keys) odd = simd::exp2_nonpositive(simd::load(column + (key + 1) * width) - base);
        total = total + odd;
      }
      total = total + even;
      Math::pack(weights + key / Math::values * width + v * simd::lanes, even, odd);
    }
    simd::store(sum, simd::fma(simd::load(sum), shrink[v], total));
  });
}

/// out [Dv, rows] = out * shrink + V^T weights.
template <class Math, int Vectors>
SKIM_INLINE void accumulate_tile(const row_block<typename Math::step>& rows, std::int64_t row,
                                 const key_tile<typename Math::step>& tile,
                                 const typename Math::step* SKIM_RESTRICT weights,
                                 const simd::vectors<Vectors>& shrink) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  float* const out = rows.out + row * tile.v_stride;
  for (std::int64_t d = 0; d < tile.v_stride; d += broadcasts) {
    simd::vectors<Vectors> acc[broadcasts];
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
        acc[i][v] = simd::load(out + (d + i) * width + v * simd::lanes) * shrink[v];
      });
    });
    multiply_tile<Math, Vectors>(tile.v + d, unit_stride{}, tile.v_stride, weights, width_constant<Vectors>{},
                                 tile.v_steps, acc);
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>(
          [&](auto v) SKIM_LAMBDA_INLINE { simd::store(out + (d + i) * width + v * simd::lanes, acc[i][v]); });
    });
  }
}

/// One tile against the block of `Vectors * lanes` rows from `row` on. Not inlined: the two widths and two masks would
/// otherwise be copied into every caller.
template <class Math, int Vectors>
SKIM_NOINLINE void attend_tile(const row_block<typename Math::step>& rows, std::int64_t row,
                               const key_tile<typename Math::step>& tile, const logit_rule& rule, bool masked,
                               float* scores, typename Math::step* weights) {
  simd::vectors<Vectors> shrink;
  score_tile<Math, Vectors>(rows, row, tile, rule, masked, scores);
  weigh_tile<Math, Vectors>(rows, row, tile.keys, scores, weights, shrink);
  accumulate_tile<Math, Vectors>(rows, row, tile, weights, shrink);
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
