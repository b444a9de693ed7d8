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

  SKIM_INLINE std::int64_t steps() const {
    if constexpr (Math::values == 4) return Math::steps_in_lanes(D);
    return (D + Math::values - 1) / Math::values;
  }

  /// The block that a lane lies in. Blocks are two vectors wide; of an odd number of vectors the last is three wide, one
  /// broadcast being hardly worth one multiplication, or one where there are no registers for three.
  SKIM_INLINE row_lanes block(std::int64_t lane) const {
    constexpr std::int64_t wide = row_vectors * simd::lanes;
    const std::int64_t odd = stride % wide, joined = simd::registers >= 32 && stride > wide ? wide : 0;
    const std::int64_t last = stride - odd - (odd > 0 ? joined : 0);
    if (odd > 0 && lane >= last) return {last, stride - last};
    return {lane / wide * wide, wide};
  }

  SKIM_INLINE void put(std::int64_t lane, const float* row) const {
    const row_lanes place = block(lane);
    Math::pack_lane(row, D, data + place.offset(lane, steps(), 0), place.width);
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

/// `broadcasts` rows that meet lanes: steps, a row's behind one another, rows `stride` steps apart.
template <class Step>
struct step_rows {
  const Step* first;
  std::int64_t stride;
};

/// And as 8-bit integers where they are stored, a block of 32 behind the other, with the blocks' scales.
struct integer_rows {
  const char* rows[broadcasts];
  std::int64_t block_bytes;
  const float* scales;  // [broadcasts, blocks]
};

template <class Math, int Vectors, class Between>
SKIM_INLINE void multiply_rows(const step_rows<typename Math::step>& rows, const typename Math::step* packed,
                               std::int64_t D, simd::vectors<Vectors> (&products)[broadcasts], const Between& between) {
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { products[i][v] = simd::floats(0.0f); });
  });
  multiply_tile<Math, Vectors>(rows.first, rows.stride, unit_stride{}, packed, width_constant<Vectors>{},
                               (D + Math::values - 1) / Math::values, products, between);
}

/// A block's sums of integers are exact; the blocks' follow each other in f32, in memory: the registers are the integers'.
/// `between(step)` is called at every step. Not inlined, and its steps only half unrolled: it takes compilers long.
template <class Math, int Vectors, class Between>
SKIM_NOINLINE void multiply_rows(const integer_rows& rows, const typename Math::step* packed, std::int64_t D,
                                 simd::vectors<Vectors> (&products)[broadcasts], const Between& between) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  constexpr int block_steps = Math::block_steps, unrolled = block_steps / 2;
  const std::int64_t blocks = Math::blocks_of(D);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const typename Math::step* const steps = packed + block * block_steps * width;
    const typename Math::step* const scales = packed + (blocks * block_steps + block) * width;
    const typename Math::step* const begins = scales + blocks * width;
    const std::int64_t at = block * rows.block_bytes;
    simd::vectors_of<simd::ints, Vectors> sums[broadcasts];
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v)
                                SKIM_LAMBDA_INLINE { sums[i][v] = Math::load_steps(begins + v * simd::lanes); });
    });
    for (std::int64_t half = 0; half < block_steps; half += unrolled) {
      simd::unroll<unrolled>([&](auto step) SKIM_LAMBDA_INLINE {
        between(block * block_steps + half + step);
        simd::vectors_of<simd::ints, Vectors> lane;
        simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
          lane[v] = Math::load_steps(steps + (half + step) * width + v * simd::lanes);
        });
        simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
          const simd::ints key = Math::broadcast(rows.rows[i] + at + 4 * (half + step));
          simd::unroll<Vectors>([&](auto v)
                                    SKIM_LAMBDA_INLINE { sums[i][v] = Math::multiply_add(lane[v], key, sums[i][v]); });
        });
      });
    }
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
      const simd::floats of_lanes = simd::as_floats(Math::load_steps(scales + v * simd::lanes));
      simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
        const simd::floats of_key(rows.scales[i * blocks + block]);
        const simd::floats more = xsimd::to_float(sums[i][v]) * of_lanes;
        products[i][v] = simd::fma(more, of_key, block == 0 ? simd::floats(0.0f) : products[i][v]);
      });
    });
  }
}

/// Calls `take(i, v, sums)`, v the first lane of a vector, with the products of `broadcasts` rows and the lanes
/// [begin, begin + Vectors * lanes), a block. `between`: see `multiply_tile`.
template <class Math, int Vectors, class Rows, class Take, class Between = nothing_between>
SKIM_INLINE void multiply_lanes(const Rows& rows, const lane_rows<Math>& lanes, std::int64_t begin, const Take& take,
                                const Between& between = {}) {
  simd::vectors<Vectors> products[broadcasts];
  multiply_rows<Math, Vectors>(rows, lanes.data + begin * lanes.steps(), lanes.D, products, between);
  simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
    simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE { take(i, begin + v * simd::lanes, products[i][v]); });
  });
}

/// The products with all lanes.
template <class Math, class Rows, class Take, class Between = nothing_between>
SKIM_INLINE void multiply_all_lanes(const Rows& rows, const lane_rows<Math>& lanes, const Take& take,
                                    const Between& between = {}) {
  each_block(lanes, [&](auto vectors, std::int64_t begin)
                        SKIM_LAMBDA_INLINE { multiply_lanes<Math, vectors>(rows, lanes, begin, take, between); });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
