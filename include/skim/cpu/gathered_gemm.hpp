// SPDX-License-Identifier: Apache-2.0
/// \file The FFN's matrix product: rows of weights, gathered by a list, against the tokens of a block.
///
/// Tokens lie in the SIMD lanes, weights are broadcast from a tile that is widened once per 128 tokens. A row found
/// through a list costs what the next row costs: nothing is copied first, and dense and sparse are one kernel.
///
/// A weight's rows are used in two ways. In the gate and up projections a row is an *output*: its dot product with every
/// token. In the down projection, stored [f, d], and in a compensator's matrices a row is a *step*: its multiple is added
/// to every token's output.
#pragma once

#include <skim/cpu/multiply_tile.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

// Sizes of a work unit, in L1 and L2 terms for f32: 256 steps of 32 tokens are 32 KiB and meet 8 tile rows of 1 KiB each.
inline constexpr std::int64_t gemm_rows = 128;     // tokens: widening a weight once then costs a few percent
inline constexpr std::int64_t gemm_outputs = 32;   // rows, where rows are outputs
inline constexpr std::int64_t gemm_columns = 256;  // columns, where rows are steps
inline constexpr std::int64_t output_depth = 256;  // steps at a time, where rows are outputs
inline constexpr std::int64_t column_depth = 128;  // steps at a time, where rows are steps
inline constexpr std::int64_t gemm_padding = 16;   // behind each tile row: power-of-two strides share few L1 sets
static_assert(gemm_outputs % broadcasts == 0 && gemm_columns % broadcasts == 0, "tiles hold whole broadcast blocks");

/// Rows of a stored matrix, by a list or, where that is null, in order.
struct gathered_rows {
  const char* data;
  element type;
  std::int64_t row_bytes;
  const std::int32_t* list;
  std::int64_t count;  // rows

  static gathered_rows of(const tensor_view<const void, 2>& matrix, const std::int32_t* list, std::int64_t count) {
    return {static_cast<const char*>(matrix.data), matrix.type, matrix.strides[0] * element_bytes(matrix.type), list,
            count};
  }
  SKIM_INLINE const char* at(std::int64_t i, std::int64_t column) const {
    return data + (list ? list[i] : i) * row_bytes + column * element_bytes(type);
  }
};

/// The tokens of one work unit: [steps, stride] by `row_lanes`.
template <class Unit>
struct packed_tokens {
  Unit* data;
  std::int64_t steps;
  std::int64_t stride;  // tokens, rounded up to the lane count

  SKIM_INLINE Unit* at(std::int64_t row, std::int64_t step) const {
    return data + row_lanes::of(row, stride).offset(row, steps, step);
  }
};

template <class Math>
SKIM_INLINE constexpr std::int64_t steps_of(std::int64_t values) {
  return (values + Math::values - 1) / Math::values;
}

/// Scratch of one worker.
template <class Math>
struct gemm_scratch {
  using unit = typename Math::unit;
  static constexpr std::int64_t output_stride = output_depth + gemm_padding;  // of a tile row that is an output
  static constexpr std::int64_t column_stride = gemm_columns + gemm_padding;  // of a tile row that is a step

  unit* tile;   // [32, output_stride], or [128, column_stride]
  float* sums;  // [columns, tokens], or the gate's [32, tokens] and the up projection's
  float* row;   // [256]

  explicit gemm_scratch(skim::detail::arena& arena) {
    tile = arena.take<unit>(greater(gemm_outputs * output_stride, column_depth * column_stride));
    sums = arena.take<float>(greater(gemm_columns, 2 * gemm_outputs) * gemm_rows);
    row = arena.take<float>(gemm_columns);
  }
};

/// Calls `body(row, vectors)`, `vectors` an integral constant, for the lane blocks of `stride` tokens.
template <class Body>
SKIM_INLINE void for_lane_blocks(std::int64_t stride, const Body& body) {
  constexpr std::int64_t wide = row_vectors * simd::lanes;
  std::int64_t row = 0;
  for (; row + wide <= stride; row += wide) body(row, std::integral_constant<int, row_vectors>{});
  for (; row < stride; row += simd::lanes) body(row, std::integral_constant<int, 1>{});
}

/// sums [outputs, Vectors * lanes] (+)= ones . many over `steps`; `outputs` in whole broadcast blocks.
template <class Math, int Vectors, class Across, class Along>
SKIM_NOINLINE void multiply_block(const typename Math::unit* ones, Across across, Along along, std::int64_t outputs,
                                  const typename Math::unit* many, std::int64_t steps, bool fresh, float* sums) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  for (std::int64_t output = 0; output < outputs; output += broadcasts) {
    float* const to = sums + output * width;
    simd::floats acc[broadcasts][Vectors];
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
        acc[i][v] = fresh ? simd::floats(0.0f) : simd::load(to + i * width + v * simd::lanes);
      });
    });
    multiply_tile<Math, Vectors>(ones + output * across, across, along, many, width_constant<Vectors>{}, steps, acc);
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v)
                                SKIM_LAMBDA_INLINE { simd::store(to + i * width + v * simd::lanes, acc[i][v]); });
    });
  }
}

/// sums [32, tokens] = dot products of the rows [first, first + count), count <= 32, with `tokens` over `columns`.
template <class Math>
SKIM_NOINLINE void multiply_outputs(const gathered_rows& weights, std::int64_t first, std::int64_t columns,
                                    const packed_tokens<typename Math::unit>& tokens, const gemm_scratch<Math>& with,
                                    float* sums) {
  constexpr std::int64_t stride = gemm_scratch<Math>::output_stride;
  const std::int64_t count = smaller(gemm_outputs, weights.count - first), outputs = round_up(count, broadcasts);
  for (std::int64_t step = 0; step < tokens.steps; step += output_depth) {
    const std::int64_t steps = smaller(output_depth, tokens.steps - step), column = step * Math::values;
    const std::int64_t values = smaller(steps * Math::values, columns - column);
    for (std::int64_t i = 0; i < count; ++i) {
      Math::load_key(weights.at(first + i, column), weights.type, values, with.tile + i * stride);
    }
    for (std::int64_t i = count * stride; i < outputs * stride; ++i) with.tile[i] = 0;
    for_lane_blocks(tokens.stride, [&](std::int64_t row, auto vectors) SKIM_LAMBDA_INLINE {
      multiply_block<Math, vectors>(with.tile, std::integral_constant<std::int64_t, stride>{}, one_constant{}, outputs,
                                    tokens.at(row, step), steps, step == 0, sums + row * gemm_outputs);
    });
  }
}

/// sums [columns, tokens] = the rows, from column `first` on, times the tokens' values; `tokens` [rows, tokens].
/// `columns` <= 256 counts those of the matrix; sums are written for whole broadcast blocks.
template <class Math>
SKIM_NOINLINE void multiply_steps(const gathered_rows& weights, std::int64_t first, std::int64_t columns,
                                  const packed_tokens<typename Math::unit>& tokens, const gemm_scratch<Math>& with,
                                  float* sums) {
  constexpr std::int64_t stride = gemm_scratch<Math>::column_stride;
  const std::int64_t outputs = round_up(columns, broadcasts);
  for (std::int64_t step = 0; step == 0 || step < tokens.steps; step += column_depth) {  // no rows: zeros
    const std::int64_t steps = smaller(column_depth, tokens.steps - step);
    for (std::int64_t i = 0; i < steps; ++i) {
      const std::int64_t row = (step + i) * Math::values;
      const char* const next = Math::values == 2 && row + 1 < weights.count ? weights.at(row + 1, first) : nullptr;
      Math::load_values(weights.at(row, first), next, weights.type, columns, with.tile + i * stride);
      for (std::int64_t c = columns; c < outputs; ++c) with.tile[i * stride + c] = 0;
    }
    for_lane_blocks(tokens.stride, [&](std::int64_t row, auto vectors) SKIM_LAMBDA_INLINE {
      multiply_block<Math, vectors>(with.tile, one_constant{}, std::integral_constant<std::int64_t, stride>{}, outputs,
                                    tokens.at(row, step), steps, step == 0, sums + row * outputs);
    });
  }
}

/// Columns of a work unit whose rows are steps: at least 16 units where the width allows, so that threads share them
/// evenly. A function of the width alone.
SKIM_INLINE std::int64_t columns_per_unit(std::int64_t width) {
  return smaller(greater(round_up((width + 15) / 16, 16), 32), gemm_columns);
}

/// Packs up to 128 tokens, lanes beyond the last hold zeros. `lanes_from`: the first of the lane block to pack.
template <class Math>
SKIM_NOINLINE void pack_tokens(const tensor_view<const void, 2>& x, std::int64_t first_row, std::int64_t rows,
                               std::int64_t row, const packed_tokens<typename Math::unit>& to, float* scratch) {
  const row_lanes block = row_lanes::of(row, to.stride);
  const std::int64_t d = x.extents[1];
  for (std::int64_t r = row; r < row + block.width; ++r) {
    if (r < rows) {
      simd::widen_row(x.at(first_row + r, 0), x.type, d, scratch);
    } else {
      for (std::int64_t i = 0; i < d; ++i) scratch[i] = 0;
    }
    Math::scatter_query(scratch, d, 1.0f, to.at(r, 0), block.width);
  }
}

/// Writes (or adds) columns [first, first + columns) of `rows` tokens to `out`, from sums [columns, tokens].
template <class Math>
SKIM_NOINLINE void store_tokens(const float* sums, std::int64_t columns, std::int64_t stride,
                                const tensor_view<void, 2>& out, std::int64_t first, bool add,
                                const gemm_scratch<Math>& with) {
  const std::int64_t outputs = round_up(columns, broadcasts);
  for (std::int64_t r = 0; r < out.extents[0]; ++r) {
    const row_lanes block = row_lanes::of(r, stride);
    const float* const from = sums + block.offset(r, outputs, 0);
    void* const to = out.at(r, first);
    if (add) {
      simd::widen_row(to, out.type, columns, with.row);
      for (std::int64_t c = 0; c < columns; ++c) with.row[c] += from[c * block.width];
    } else {
      for (std::int64_t c = 0; c < columns; ++c) with.row[c] = from[c * block.width];
    }
    simd::narrow_row(with.row, columns, to, out.type);
  }
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
