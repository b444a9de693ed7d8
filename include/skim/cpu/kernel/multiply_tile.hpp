// SPDX-License-Identifier: Apache-2.0
/// \file The register tile that attention and FFN share: broadcast elements of gathered rows (keys, values, weights)
/// against SIMD lanes of tokens.
#pragma once

#include <skim/cpu/simd/tile_math.hpp>

#include <type_traits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Broadcast elements times row vectors are the accumulators: 8 x 2 of 32 registers, 4 x 2 of 16. Either hides the
/// latency of two 4-cycle multiply-add units, and needs fewer loads than multiply-adds.
inline constexpr int broadcasts = simd::registers >= 32 ? 8 : 4;
inline constexpr int row_vectors = 2;

/// Where nothing is done between steps.
struct nothing_between {};

/// Steps between which a tile does a little of something else.
inline constexpr std::int64_t steps_between = 16 / broadcasts;

/// acc[i][v] += sum over steps of broadcast(i, step) * packed[step][v]. `broadcast(i, step)` is at broadcast + i * across + step * along.
/// `between(step)` is called every `steps_between` steps.
template <class Math, int Vectors, class Between = nothing_between, class Across, class Along, class Stride>
SKIM_INLINE void multiply_tile(const typename Math::step* SKIM_RESTRICT broadcast, Across across, Along along,
                               const typename Math::step* SKIM_RESTRICT packed, Stride packed_stride,
                               std::int64_t steps, simd::vectors<Vectors> (&acc)[broadcasts],
                               const Between& between = {}) {
  simd::vectors<Vectors> sum[broadcasts];  // a local that never escapes stays in registers
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { sum[i][v] = acc[i][v]; });
  });
  for (std::int64_t step = 0; step < steps; ++step) {
    if constexpr (!std::is_same_v<Between, nothing_between>) {
      if (step % steps_between == 0) between(step);
    }
    simd::vectors<Vectors> row;
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { row[v] = Math::load_steps(packed + v * simd::lanes); });
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      const typename Math::step factor = Math::load_step(broadcast + i * across);
      simd::unroll<Vectors>([&](auto v)
                                SKIM_LAMBDA_INLINE { sum[i][v] = Math::multiply_add(row[v], factor, sum[i][v]); });
    });
    broadcast += along;
    packed += packed_stride;
  }
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { acc[i][v] = sum[i][v]; });
  });
}

using unit_stride = std::integral_constant<std::int64_t, 1>;
template <int Vectors>
using width_constant = std::integral_constant<std::int64_t, Vectors * simd::lanes>;

/// Where the rows of a work unit lie in `[dims, rows]` scratch. Blocks of two vectors of rows (the last may be one) follow
/// each other, each `[dims, width]`: the tile loops then walk memory in order. Plain `[dims, rows]` strides by powers of
/// two would put a block's lines into a few L1 sets.
struct row_lanes {
  std::int64_t begin;  // first row of the block
  std::int64_t width;  // rows of the block

  SKIM_INLINE static row_lanes of(std::int64_t row, std::int64_t stride) {
    constexpr std::int64_t wide = row_vectors * simd::lanes;
    const std::int64_t begin = row / wide * wide;
    if (stride - begin >= wide) return {begin, wide};
    return {row / simd::lanes * simd::lanes, simd::lanes};
  }
  /// Offset of `row` in dimension `d` of `dims`.
  SKIM_INLINE std::int64_t offset(std::int64_t row, std::int64_t dims, std::int64_t d) const {
    return begin * dims + d * width + row - begin;
  }
};

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
