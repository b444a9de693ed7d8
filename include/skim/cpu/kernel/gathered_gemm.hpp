// SPDX-License-Identifier: Apache-2.0
/// \file The matrix product of FFN and linear layers: rows of weights, gathered by a list or all, against tokens.
///
/// Tokens lie in the SIMD lanes, weights are broadcast from a tile that is widened once per 128 tokens. A row found
/// through a list costs what the next row costs: nothing is copied first, and dense and sparse are one kernel.
///
/// A weight's rows are used in two ways. In the gate and up projections and in a linear layer a row is an *output*: its
/// dot product with every token. In the down projection, stored [f, d], and in a compensator's matrices a row is a *step*:
/// its multiple is added to every token's output.
///
/// Calls are cut into batches of 512 tokens, which bounds the workspace, and those into tiles of 128. Each number is
/// summed by one work unit in one order, so results depend on no number of workers.
#pragma once

#include <skim/cpu/kernel/multiply_tile.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/amx.hpp>
#include <skim/executor.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <type_traits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

// Sizes of a tile of weights, and of the tokens that meet it. In f32, 256 steps of 32 tokens are 32 KiB and meet 8 tile
// rows of 1 KiB each; AMX does with half of the steps, which leaves L1 to 32 outputs and 32 tokens.
//
// Weights come from memory, whose prefetchers follow some 32 rows at a time and run ahead of each: short pieces of 32
// rows side by side are fetched at full speed, of more rows only if a piece is 1 KiB, and only if what follows it in its
// row is wanted soon.
inline constexpr std::int64_t gemm_rows = 128;  // tokens: widening a weight once then costs a few percent
inline constexpr std::int64_t batch_rows = 4 * gemm_rows;
inline constexpr std::int64_t gemm_outputs = 32;    // rows, where rows are outputs
inline constexpr std::int64_t column_depth = 128;   // steps, where rows are steps
inline constexpr std::int64_t unit_columns = 1024;  // columns of a work unit at most: tile after tile, along the rows
inline constexpr std::int64_t gemm_padding = 16;    // behind each tile row: power-of-two strides share few L1 sets
/// Steps, where rows are outputs.
template <class Math>
inline constexpr std::int64_t output_depth = Math::amx ? 128 : 256;
/// Columns, where rows are steps: 1 KiB of a row in f32 and for AMX.
template <class Math>
inline constexpr std::int64_t gemm_columns = Math::amx ? 512 : 256;
static_assert(gemm_outputs % broadcasts == 0 && unit_columns % broadcasts == 0, "tiles hold whole broadcast blocks");

/// Rows of a stored matrix, by a list or, where that is null, in order.
struct gathered_rows {
  const char* data;
  element type;
  std::int64_t row_bytes;
  const std::int32_t* list;
  std::int64_t count;  // rows

  /// Of an absent matrix, whose strides nobody checked, nothing is taken.
  static gathered_rows of(const tensor_view<const void, 2>& matrix, const std::int32_t* list, std::int64_t count) {
    const std::int64_t row_bytes = matrix.data ? bytes_of(matrix.type, matrix.strides[0]) : 0;
    return {static_cast<const char*>(matrix.data), matrix.type, row_bytes, list, count};
  }
  /// The same rows from a column on.
  SKIM_INLINE gathered_rows from_column(std::int64_t column) const {
    return {data + bytes_of(type, column), type, row_bytes, list, count};
  }
  /// Row i; without data if there is none.
  SKIM_INLINE stored_row row(std::int64_t i) const {
    if (i >= count) return {nullptr, type};
    return {data + (list ? list[i] : i) * row_bytes, type};
  }
};

/// Steps that hold `values` numbers; AMX takes 16 at a time, of which the last may be zeros.
template <class Math>
SKIM_INLINE constexpr std::int64_t steps_of(std::int64_t values) {
  return round_up((values + Math::values - 1) / Math::values, Math::amx ? 16 : 1);
}

/// What the tokens of one work unit are multiplied by weights with, in one of two orders.
///
/// *Lanes*: [steps, tokens] by `row_lanes`. *Rows*: [tokens, steps], what AMX needs where weights' rows are steps.
template <class Math>
struct packed_tokens {
  typename Math::step* data;
  std::int64_t steps;
  std::int64_t stride;  // tokens, rounded up to the lane count

  static constexpr std::int64_t row_padding = 16;  // steps behind a token's row
  /// Steps that a token takes in either order.
  SKIM_INLINE static constexpr std::int64_t room(std::int64_t steps) { return steps + (Math::amx ? row_padding : 0); }

  SKIM_INLINE typename Math::step* lanes_at(std::int64_t token, std::int64_t step) const {
    return data + row_lanes::of(token, stride).offset(token, steps, step);
  }
  SKIM_INLINE typename Math::step* row_at(std::int64_t token, std::int64_t step) const {
    return data + token * room(steps) + step;
  }
};

/// Columns of a work unit whose rows are steps: two units for each worker where the width allows. Every column is summed
/// in the same order whatever its unit, so that results do not depend on the workers.
SKIM_INLINE std::int64_t columns_per_unit(std::int64_t width, unsigned workers) {
  const std::int64_t units = 2 * static_cast<std::int64_t>(workers), least = gemm_outputs;
  return smaller(greater(round_up((width + units - 1) / units, least), least), unit_columns);
}

/// Scratch of one worker.
template <class Math>
struct gemm_scratch {
  static constexpr std::int64_t output_stride = output_depth<Math> + gemm_padding;  // of a tile row that is an output
  static constexpr std::int64_t column_stride = gemm_columns<Math> + gemm_padding;  // of a tile row that is a step
  static constexpr std::int64_t of_outputs = gemm_outputs * output_stride, of_steps = column_depth * column_stride;

  typename Math::step* tile;  // [32, output_stride], or [column_depth, column_stride]
  float* sums;                // of a unit's columns, or of 32 neurons' gate and up projections, times 128 tokens
  float* row;                 // [gemm_columns]
};

/// Scratch of all workers. Fewer workers never need more: their units have more columns, but not in sum.
template <class Math>
class gemm_scratches {
 public:
  gemm_scratches(arena& arena, std::int64_t width, unsigned workers)
      : columns_(greater(columns_per_unit(width, workers), 2 * gemm_outputs)) {
    const std::int64_t count = workers;
    const std::int64_t widest = smaller(unit_columns * count, (width + 1) / 2 + gemm_outputs * count);
    tiles_ = arena.take<typename Math::step>(tile_size * count);
    sums_ = arena.take<float>(greater(widest, 2 * gemm_outputs * count) * gemm_rows);
    rows_ = arena.take<float>(gemm_columns<Math> * count);
  }
  SKIM_INLINE gemm_scratch<Math> of(unsigned worker) const {
    const std::int64_t i = worker;
    return {tiles_ + i * tile_size, sums_ + i * columns_ * gemm_rows, rows_ + i * gemm_columns<Math>};
  }

 private:
  static constexpr std::int64_t tile_size = greater(gemm_scratch<Math>::of_outputs, gemm_scratch<Math>::of_steps);
  typename Math::step* tiles_;
  float *sums_, *rows_;
  std::int64_t columns_;  // that a worker has sums for
};

/// Calls `body(row, vectors)`, `vectors` an integral constant, for the lane blocks of `stride` tokens.
template <class Body>
SKIM_INLINE void for_lane_blocks(std::int64_t stride, const Body& body) {
  constexpr std::int64_t wide = row_vectors * simd::lanes;
  std::int64_t row = 0;
  for (; row + wide <= stride; row += wide) body(row, std::integral_constant<int, row_vectors>{});
  for (; row < stride; row += simd::lanes) body(row, std::integral_constant<int, 1>{});
}

/// sums [outputs, Vectors * lanes] (+)= broadcast . packed over `steps`; `outputs` in whole broadcast blocks.
template <class Math, int Vectors, class Across, class Along>
SKIM_NOINLINE void multiply_block(const typename Math::step* broadcast, Across across, Along along,
                                  std::int64_t outputs, const typename Math::step* packed, std::int64_t steps,
                                  bool fresh, float* sums) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  for (std::int64_t output = 0; output < outputs; output += broadcasts) {
    float* const target = sums + output * width;
    simd::vectors<Vectors> acc[broadcasts];
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
        acc[i][v] = fresh ? simd::floats(0.0f) : simd::load(target + i * width + v * simd::lanes);
      });
    });
    multiply_tile<Math, Vectors>(broadcast + output * across, across, along, packed, width_constant<Vectors>{}, steps,
                                 acc);
    simd::unroll<broadcasts>([&](auto i) SKIM_LAMBDA_INLINE {
      simd::unroll<Vectors>([&](auto v)
                                SKIM_LAMBDA_INLINE { simd::store(target + i * width + v * simd::lanes, acc[i][v]); });
    });
  }
}

struct no_registers {
  no_registers() {}  // NOLINT: not trivial, so that it counts as used
};
/// The tile registers, for the `Math` that uses them.
template <class Math>
using math_registers = std::conditional_t<Math::amx, simd::amx_registers, no_registers>;

/// Outputs of a unit are computed in blocks of this many.
template <class Math>
inline constexpr std::int64_t output_block = Math::amx ? 16 : broadcasts;

/// sums [outputs, tokens] (+)= tile [outputs, steps] . tokens in lanes, from `step` on.
template <class Math>
SKIM_INLINE void multiply_lanes(const packed_tokens<Math>& tokens, std::int64_t step, std::int64_t steps,
                                const typename Math::step* tile, std::int64_t outputs, float* sums) {
  constexpr std::int64_t stride = gemm_scratch<Math>::output_stride;
  for_lane_blocks(tokens.stride, [&](std::int64_t token, auto vectors) SKIM_LAMBDA_INLINE {
    float* const target = sums + token * gemm_outputs;
    if constexpr (Math::amx) {
      constexpr std::int64_t width = vectors * simd::lanes;
      const simd::amx_matrix<const std::uint32_t> left{tile, stride}, right{tokens.lanes_at(token, step), width};
      if (outputs > simd::amx_rows) {
        simd::multiply_amx<2, vectors>(left, right, {target, width}, steps, step == 0);
      } else {
        simd::multiply_amx<1, vectors>(left, right, {target, width}, steps, step == 0);
      }
    } else {
      multiply_block<Math, vectors>(tile, std::integral_constant<std::int64_t, stride>{}, unit_stride{}, outputs,
                                    tokens.lanes_at(token, step), steps, step == 0, target);
    }
  });
}

/// sums [32, tokens] = dot products of the rows [first, first + 32), as far as there are, over `columns`.
template <class Math>
SKIM_NOINLINE void multiply_outputs(const gathered_rows& weights, std::int64_t first, std::int64_t columns,
                                    const packed_tokens<Math>& tokens, const gemm_scratch<Math>& scratch, float* sums) {
  constexpr std::int64_t stride = gemm_scratch<Math>::output_stride;
  const std::int64_t count = smaller(gemm_outputs, weights.count - first);
  const std::int64_t outputs = round_up(count, output_block<Math>);
  for (std::int64_t step = 0; step < tokens.steps; step += output_depth<Math>) {
    const std::int64_t steps = smaller(output_depth<Math>, tokens.steps - step), column = step * Math::values;
    const std::int64_t values = smaller(steps * Math::values, columns - column);
    const gathered_rows piece = weights.from_column(column);
    for (std::int64_t i = 0; i < count; ++i) {
      typename Math::step* const target = scratch.tile + i * stride;
      for (std::int64_t s = values / Math::values; s < steps; ++s) target[s] = 0;
      load_row<Math>(piece.row(first + i), values, target);
    }
    for (std::int64_t i = count * stride; i < outputs * stride; ++i) scratch.tile[i] = 0;
    multiply_lanes(tokens, step, steps, scratch.tile, outputs, sums);
  }
}

/// The tile of `steps` steps whose rows are the matrix's, from column `first` on; columns up to `outputs` are zeros.
template <class Math>
SKIM_INLINE void load_steps(const gathered_rows& weights, std::int64_t step, std::int64_t steps, std::int64_t first,
                            std::int64_t columns, const gemm_scratch<Math>& scratch) {
  constexpr std::int64_t stride = gemm_scratch<Math>::column_stride;
  const std::int64_t outputs = round_up(columns, output_block<Math>);
  const gathered_rows piece = weights.from_column(first);
  for (std::int64_t i = 0; i < steps; ++i) {
    typename Math::step* const target = scratch.tile + i * stride;
    const std::int64_t row = (step + i) * Math::values;
    load_row_pair<Math>(piece.row(row), piece.row(row + 1), columns, target);
    for (std::int64_t c = columns; c < outputs; ++c) target[c] = 0;
  }
}

/// sums [tokens, outputs] (+)= tokens in rows, from `step` on, . tile [steps, outputs]. The 32 columns that stay in L1 meet
/// all tokens.
template <class Math>
SKIM_INLINE void multiply_rows(const packed_tokens<Math>& tokens, std::int64_t step, std::int64_t steps,
                               const typename Math::step* tile, std::int64_t outputs, float* target) {
  constexpr std::int64_t stride = gemm_scratch<Math>::column_stride;
  for (std::int64_t c = 0; c < outputs; c += 2 * simd::amx_units) {
    for_lane_blocks(tokens.stride, [&](std::int64_t token, auto vectors) SKIM_LAMBDA_INLINE {
      const simd::amx_matrix<const std::uint32_t> left{tokens.row_at(token, step),
                                                       packed_tokens<Math>::room(tokens.steps)};
      const simd::amx_matrix<const std::uint32_t> right{tile + c, stride};
      const simd::amx_matrix<float> sums{target + token * outputs + c, outputs};
      if (outputs - c > simd::amx_units) {
        simd::multiply_amx<vectors, 2>(left, right, sums, steps, step == 0);
      } else {
        simd::multiply_amx<vectors, 1>(left, right, sums, steps, step == 0);
      }
    });
  }
}

/// Calls `body(column, columns, sums)` for a unit's columns, as many at a time as a tile has, with the place of their sums.
template <class Math, class Body>
SKIM_INLINE void for_column_tiles(std::int64_t columns, float* sums, const Body& body) {
  for (std::int64_t c = 0; c < columns; c += gemm_columns<Math>) {
    body(c, smaller(gemm_columns<Math>, columns - c), sums + c * gemm_rows);
  }
}

/// sums = the rows, from column `first` on, times the tokens' values. `columns` counts those of the matrix; each tile's
/// sums are [columns, tokens] by lane blocks, or with AMX [tokens, columns], in whole blocks of columns.
template <class Math>
SKIM_NOINLINE void multiply_steps(const gathered_rows& weights, std::int64_t first, std::int64_t columns,
                                  const packed_tokens<Math>& tokens, const gemm_scratch<Math>& scratch) {
  constexpr std::int64_t stride = gemm_scratch<Math>::column_stride;
  for (std::int64_t step = 0; step == 0 || step < tokens.steps; step += column_depth) {  // no rows: zeros
    const std::int64_t steps = smaller(column_depth, tokens.steps - step);
    for_column_tiles<Math>(
        columns, scratch.sums, [&](std::int64_t c, std::int64_t some, float* sums) SKIM_LAMBDA_INLINE {
          const std::int64_t outputs = round_up(some, output_block<Math>);
          load_steps(weights, step, steps, first + c, some, scratch);
          if constexpr (Math::amx) {
            multiply_rows(tokens, step, steps, scratch.tile, outputs, sums);
          } else {
            for_lane_blocks(tokens.stride, [&](std::int64_t token, auto vectors) SKIM_LAMBDA_INLINE {
              multiply_block<Math, vectors>(scratch.tile, unit_stride{}, std::integral_constant<std::int64_t, stride>{},
                                            outputs, tokens.lanes_at(token, step), steps, step == 0,
                                            sums + token * outputs);
            });
          }
        });
  }
}

/// The tokens of a batch, in tiles of 128, or a width of values held for them.
template <class Math>
struct packed_batch {
  typename Math::step* data;
  std::int64_t steps, rows;

  static packed_batch take(arena& arena, std::int64_t width, std::int64_t rows) {
    const std::int64_t steps = steps_of<Math>(width), room = packed_tokens<Math>::room(steps);
    return {arena.take<typename Math::step>(room * round_up(rows, simd::lanes)), steps, rows};
  }
  SKIM_INLINE std::int64_t tiles() const { return (rows + gemm_rows - 1) / gemm_rows; }
  SKIM_INLINE std::int64_t rows_of(std::int64_t tile) const { return smaller(gemm_rows, rows - tile * gemm_rows); }
  SKIM_INLINE packed_tokens<Math> tile(std::int64_t index) const {
    return {data + index * gemm_rows * packed_tokens<Math>::room(steps), steps, round_up(rows_of(index), simd::lanes)};
  }
};

/// Packed inputs of a batch, and scratch of each worker.
template <class Math>
struct batch_scratch {
  packed_batch<Math> x;
  float* tokens;  // [workers, token_stride]: a token in f32
  std::int64_t token_stride;
  gemm_scratches<Math> gemm;

  /// `width`: columns of the product whose rows are steps; 0 where there is none.
  batch_scratch(arena& arena, const tensor_view<const void, 2>& inputs, std::int64_t width, unsigned workers)
      : x(packed_batch<Math>::take(arena, inputs.extents[1], smaller(inputs.extents[0], batch_rows))),
        token_stride(round_up(inputs.extents[1], simd::lanes)),
        gemm(arena, width, workers) {
    tokens = arena.take<float>(token_stride * workers);
  }
};

enum class token_order { lanes, rows };

/// Packs token `t` of the inputs: a row of zeros where there is none, zeros in steps beyond its width.
template <class Math>
SKIM_INLINE void pack_token(const tensor_view<const void, 2>& x, std::int64_t t, token_order order,
                            const packed_tokens<Math>& target, float* scratch) {
  const std::int64_t d = x.extents[1];
  const bool given = t < x.extents[0];
  if (given) widen({x.at(t), x.type}, d, scratch);
  if constexpr (Math::amx) {
    if (order == token_order::rows) {
      bf16* const row = reinterpret_cast<bf16*>(target.row_at(t, 0));  // bf16 may alias the pair that holds it
      if (given) simd::narrow(scratch, d, row);
      for (std::int64_t i = given ? d : 0; i < 2 * target.steps; ++i) row[i] = bf16{0};
      return;
    }
  }
  static_cast<void>(order);  // without AMX there is one
  const std::int64_t width = row_lanes::of(t, target.stride).width;
  if (given) Math::pack_lane(scratch, d, target.lanes_at(t, 0), width);
  for (std::int64_t s = given ? (d + Math::values - 1) / Math::values : 0; s < target.steps; ++s) {
    *target.lanes_at(t, s) = 0;
  }
}

/// Packs the tokens of a batch, a lane block in a work unit.
template <class Math>
void pack_tokens(const tensor_view<const void, 2>& x, token_order order, const batch_scratch<Math>& scratch,
                 executor_ref executor) {
  constexpr std::int64_t wide = row_vectors * simd::lanes;
  executor.parallel_for((scratch.x.rows + wide - 1) / wide, [&](std::int64_t index, unsigned worker) {
    const std::int64_t tile = index * wide / gemm_rows, begin = index * wide % gemm_rows;
    const packed_tokens<Math> target = scratch.x.tile(tile);
    const tensor_view<const void, 2> inputs = rows(x, tile * gemm_rows, scratch.x.rows_of(tile));
    float* const token = scratch.tokens + worker * scratch.token_stride;
    for (std::int64_t t = begin; t < smaller(begin + wide, target.stride); ++t) {
      pack_token(inputs, t, order, target, token);
    }
  });
}

/// Writes (or adds) columns [first, first + columns) of the tokens of `out` from the sums of `multiply_steps`.
template <class Math>
SKIM_NOINLINE void store_tokens(std::int64_t columns, std::int64_t stride, const tensor_view<void, 2>& out,
                                std::int64_t first, bool add, const gemm_scratch<Math>& scratch) {
  for_column_tiles<Math>(columns, scratch.sums, [&](std::int64_t c, std::int64_t some, const float* sums) {
    const std::int64_t outputs = round_up(some, output_block<Math>);
    for (std::int64_t t = 0; t < out.extents[0]; ++t) {
      const row_lanes block = row_lanes::of(t, stride);
      const float* const source = sums + (Math::amx ? t * outputs : block.offset(t, outputs, 0));
      const std::int64_t step = Math::amx ? 1 : block.width;
      void* const target = out.at(t, first + c);
      if (add) {
        widen({target, out.type}, some, scratch.row);
        for (std::int64_t i = 0; i < some; ++i) scratch.row[i] += source[i * step];
      } else {
        for (std::int64_t i = 0; i < some; ++i) scratch.row[i] = source[i * step];
      }
      narrow(scratch.row, some, target, out.type);
    }
  });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
