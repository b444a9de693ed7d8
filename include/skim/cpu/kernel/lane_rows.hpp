// SPDX-License-Identifier: Apache-2.0
/// \file Products of a few rows in the lanes with many that are broadcast: queries and keys of a selection.
#pragma once

#include <skim/cpu/kernel/multiply_tile.hpp>
#include <skim/cpu/simd/transpose.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// A vector of rows of `count` steps, `row_stride` apart, into lanes: step i of all of them at target + i * width.
template <class Step>
SKIM_INLINE void store_columns(const Step* rows, std::int64_t row_stride, std::int64_t count, Step* target,
                               std::int64_t width) {
  std::int64_t i = 0;
  for (; i + simd::lanes <= count; i += simd::lanes) {
    simd::store_transposed(rows + i, row_stride, target + i * width, width);
  }
  for (; i < count; ++i) {
    for (std::int64_t lane = 0; lane < simd::lanes; ++lane) target[i * width + lane] = rows[lane * row_stride + i];
  }
}

/// And back: a vector of lanes, `count` numbers each, as rows.
SKIM_INLINE void load_columns(const float* source, std::int64_t width, std::int64_t count, float* rows,
                              std::int64_t row_stride) {
  std::int64_t i = 0;
  for (; i + simd::lanes <= count; i += simd::lanes) {
    simd::store_transposed(source + i * width, width, rows + i, row_stride);
  }
  for (; i < count; ++i) {
    for (std::int64_t lane = 0; lane < simd::lanes; ++lane) rows[lane * row_stride + i] = source[i * width + lane];
  }
}

/// Rows of other memory in the lanes.
template <class Math>
struct lane_rows {
  using step = typename Math::step;
  step* data;  // [steps of D, stride], block by block
  std::int64_t D, stride;

  SKIM_INLINE std::int64_t steps() const { return (D + Math::values - 1) / Math::values; }

  /// The block that a lane lies in. Blocks are two vectors wide; of an odd number of vectors the last is three wide, one
  /// broadcast being hardly worth one multiplication, or one where there are no registers for three.
  SKIM_INLINE row_lanes block(std::int64_t lane) const {
    constexpr std::int64_t wide = row_vectors * simd::lanes;
    const std::int64_t odd = stride % wide, joined = simd::registers >= 32 && stride > wide ? wide : 0;
    const std::int64_t last = stride - odd - (odd > 0 ? joined : 0);
    if (odd > 0 && lane >= last) return {last, stride - last};
    return {lane / wide * wide, wide};
  }

  /// Null: zeros.
  SKIM_INLINE void put(std::int64_t lane, const float* row) const {
    const row_lanes place = block(lane);
    step* const target = data + place.offset(lane, steps(), 0);
    if (row) return Math::pack_lane(row, D, 1.0f, target, place.width);
    for (std::int64_t i = 0; i < steps(); ++i) target[i * place.width] = 0;
  }

  /// A vector of lanes from `lane` on, of rows of steps that are `row_stride` apart.
  SKIM_INLINE void put_vector(std::int64_t lane, const step* rows, std::int64_t row_stride) const {
    const row_lanes place = block(lane);
    store_columns(rows, row_stride, steps(), data + place.offset(lane, steps(), 0), place.width);
  }
};

/// Calls `body(vectors, begin)` for all blocks of lanes.
template <class Math, class Body>
SKIM_INLINE void each_block(const lane_rows<Math>& lanes, const Body& body) {
  constexpr int most = simd::registers >= 32 ? 3 : 2;
  for (std::int64_t begin = 0, width = 0; begin < lanes.stride; begin += width) {
    width = lanes.block(begin).width;
    if (width == simd::lanes) {
      body(std::integral_constant<int, 1>{}, begin);
    } else if (width == 2 * simd::lanes) {
      body(std::integral_constant<int, 2>{}, begin);
    } else {
      body(std::integral_constant<int, most>{}, begin);
    }
  }
}

/// Calls `take(i, v, sums)`, v the first lane of a vector, with the products of `broadcasts` rows from `rows` on and the
/// lanes [begin, begin + Vectors * lanes), a block. `between`: see `multiply_tile`.
template <class Math, int Vectors, class Take, class Between = nothing_between>
SKIM_INLINE void multiply_lanes(const typename Math::step* rows, std::int64_t row_stride, const lane_rows<Math>& lanes,
                                std::int64_t begin, const Take& take, const Between& between = {}) {
  simd::vectors<Vectors> acc[broadcasts];
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { acc[i][v] = simd::floats(0.0f); });
  });
  multiply_tile<Math, Vectors>(rows, row_stride, unit_stride{}, lanes.data + begin * lanes.steps(),
                               width_constant<Vectors>{}, lanes.steps(), acc, between);
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { take(i, begin + v * simd::lanes, acc[i][v]); });
  });
}

/// The products with all lanes.
template <class Math, class Take>
SKIM_INLINE void multiply_all_lanes(const typename Math::step* rows, std::int64_t row_stride,
                                    const lane_rows<Math>& lanes, const Take& take) {
  each_block(lanes, [&](auto vectors, std::int64_t begin)
                        SKIM_LAMBDA_INLINE { multiply_lanes<Math, vectors>(rows, row_stride, lanes, begin, take); });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
