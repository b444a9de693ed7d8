// SPDX-License-Identifier: Apache-2.0
/// \file Products of a few rows in the lanes with many that are broadcast: queries and keys of a selection.
#pragma once

#include <skim/cpu/kernel/multiply_tile.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Rows of other memory in the lanes: blocks of two vectors, see `row_lanes`.
template <class Math>
struct lane_rows {
  using step = typename Math::step;
  step* data;  // [steps of D, stride] by `row_lanes`
  std::int64_t D, stride;

  SKIM_INLINE std::int64_t steps() const { return (D + Math::values - 1) / Math::values; }

  /// Null: zeros.
  SKIM_INLINE void put(std::int64_t lane, const float* row) const {
    const row_lanes place = row_lanes::of(lane, stride);
    step* const target = data + place.offset(lane, steps(), 0);
    if (row) return Math::pack_lane(row, D, 1.0f, target, place.width);
    for (std::int64_t i = 0; i < steps(); ++i) target[i * place.width] = 0;
  }
};

/// Calls `take(i, v, sums)`, v the first lane of a vector, with the products of `broadcasts` rows from `rows` on and the
/// lanes [begin, begin + Vectors * lanes).
template <class Math, int Vectors, class Take>
SKIM_INLINE void multiply_lanes(const typename Math::step* rows, std::int64_t row_stride, const lane_rows<Math>& lanes,
                                std::int64_t begin, const Take& take) {
  simd::vectors<Vectors> acc[broadcasts];
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { acc[i][v] = simd::floats(0.0f); });
  });
  multiply_tile<Math, Vectors>(rows, row_stride, unit_stride{}, lanes.data + begin * lanes.steps(),
                               width_constant<Vectors>{}, lanes.steps(), acc);
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { take(i, begin + v * simd::lanes, acc[i][v]); });
  });
}
template <class Math, class Take>
SKIM_INLINE void multiply_all_lanes(const typename Math::step* rows, std::int64_t row_stride,
                                    const lane_rows<Math>& lanes, std::int64_t begin, std::int64_t end,
                                    const Take& take) {
  constexpr std::int64_t wide = row_vectors * simd::lanes;
  for (; begin + wide <= end; begin += wide) multiply_lanes<Math, row_vectors>(rows, row_stride, lanes, begin, take);
  for (; begin < end; begin += simd::lanes) multiply_lanes<Math, 1>(rows, row_stride, lanes, begin, take);
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
