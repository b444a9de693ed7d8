// SPDX-License-Identifier: Apache-2.0
/// \file The FFN of some neurons, and a compensator's part: two passes of the gathered matrix product each.
///
/// First pass: a work unit makes the values of 32 neurons for one tile of tokens. Second pass: a unit adds up to 1024
/// columns of the output.
#pragma once

#include <skim/cpu/kernel/gathered_gemm.hpp>
#include <skim/cpu/simd/math.hpp>
#include <skim/cpu/simd/transpose.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/compensator.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Packed inputs and neuron values of a batch, and scratch of each worker.
template <class Math>
struct neuron_scratch : batch_scratch<Math> {
  packed_batch<Math> values;
  std::int64_t columns;  // of a work unit

  neuron_scratch(arena& arena, const ffn_args& args, std::int64_t neurons, unsigned workers)
      : batch_scratch<Math>(arena, args.x, args.x.extents[1], workers),
        values(packed_batch<Math>::take(arena, neurons, smaller(args.x.extents[0], batch_rows))),
        columns(columns_per_unit(args.x.extents[1], workers)) {}
};

/// One batch of a call.
template <class Math>
struct neuron_job {
  ffn_args args;
  neuron_scratch<Math> scratch;

  /// The rows of one tile.
  template <class T>
  SKIM_INLINE tensor_view<T, 2> rows_of(const tensor_view<T, 2>& matrix, std::int64_t tile) const {
    return rows(matrix, tile * gemm_rows, scratch.x.rows_of(tile));
  }
};

/// Columns of a compensator's hidden layer in a work unit: two cache lines of each row of c1.
inline constexpr std::int64_t hidden_columns = 64;
static_assert(hidden_columns % gemm_outputs == 0 && hidden_columns <= 2 * gemm_outputs,
              "whole tiles that sums have room for");

/// Sums of `count` <= 32 neurons from `first` on: [height, tokens], for the gate too if there is one.
struct neuron_sums {
  const float *gate, *up;
  std::int64_t height, first, count;
};

/// The values of neurons i and, if steps are pairs, i + 1 for the tokens of one vector, as one step.
template <class Math>
SKIM_INLINE void weigh_step(const neuron_sums& sums, activation act, std::int64_t i, std::int64_t at,
                            std::int64_t width, typename Math::step* target) {
  const auto value = [&](std::int64_t neuron) SKIM_LAMBDA_INLINE {
    if (neuron >= sums.count) return simd::floats(0.0f);
    const simd::floats linear = simd::load(sums.up + at + neuron * width);
    if (!sums.gate) return simd::activate(act, linear);
    return simd::activate(act, simd::load(sums.gate + at + neuron * width)) * linear;
  };
  Math::pack(target, value(i), Math::values == 2 ? value(i + 1) : simd::floats(0.0f));
}

/// The neurons' values, act(gate) * up or act(up), packed as steps: in lanes, or with AMX in rows.
template <class Math>
SKIM_INLINE void weigh_neurons(const neuron_sums& sums, activation act, const packed_tokens<Math>& target) {
  for_lane_blocks(target.stride, [&](std::int64_t token, auto vectors) SKIM_LAMBDA_INLINE {
    constexpr std::int64_t width = vectors * simd::lanes;
    const std::int64_t step = sums.first / Math::values;
    for (std::int64_t lane = 0; lane < width; lane += simd::lanes) {
      const std::int64_t at = token * sums.height + lane;
      if constexpr (Math::amx) {
        std::uint32_t steps[16][16];
        for (int i = 0; i < 16; ++i) weigh_step<Math>(sums, act, 2 * i, at, width, steps[i]);
        simd::store_transposed(steps[0], 16, target.row_at(token + lane, step),
                               packed_tokens<Math>::room(target.steps));
      } else {
        for (std::int64_t i = 0; i < sums.count; i += Math::values) {
          weigh_step<Math>(sums, act, i, at, width, target.lanes_at(token, step + i / Math::values) + lane);
        }
      }
    }
  });
}

/// First pass. Units of one set of neurons follow each other, so that the tiles of a batch find its weights in a cache.
template <class Math>
SKIM_NOINLINE void weigh_unit(const neuron_job<Math>& job, const gathered_rows& gate, const gathered_rows& up,
                              std::int64_t index, unsigned worker) {
  const std::int64_t tiles = job.scratch.x.tiles(), tile = index % tiles, first = index / tiles * gemm_outputs;
  const std::int64_t d = job.args.x.extents[1];
  const math_registers<Math> registers;
  const gemm_scratch<Math> scratch = job.scratch.gemm.of(worker);
  float* const gate_sums = scratch.sums + gemm_outputs * gemm_rows;
  const packed_tokens<Math> tokens = job.scratch.x.tile(tile);
  multiply_outputs(up, first, d, tokens, scratch, scratch.sums);
  if (gate.data) multiply_outputs(gate, first, d, tokens, scratch, gate_sums);
  const std::int64_t count = smaller(gemm_outputs, up.count - first);
  weigh_neurons({gate.data ? gate_sums : nullptr, scratch.sums, gemm_outputs, first, count}, job.args.act,
                job.scratch.values.tile(tile));
}

/// Second pass.
template <class Math>
SKIM_NOINLINE void gather_unit(const neuron_job<Math>& job, const gathered_rows& down, bool add, std::int64_t index,
                               unsigned worker) {
  const std::int64_t d = job.args.x.extents[1], tiles = job.scratch.x.tiles(), tile = index % tiles;
  const std::int64_t first = index / tiles * job.scratch.columns, columns = smaller(job.scratch.columns, d - first);
  const math_registers<Math> registers;
  const gemm_scratch<Math> scratch = job.scratch.gemm.of(worker);
  const packed_tokens<Math> tokens = job.scratch.values.tile(tile);
  multiply_steps(down, first, columns, tokens, scratch);
  store_tokens(columns, tokens.stride, job.rows_of(job.args.out, tile), first, add, scratch);
}

/// A compensator's first pass: act(x c1), in which the rows of c1 [d, c] are steps.
template <class Math>
SKIM_NOINLINE void hidden_unit(const neuron_job<Math>& job, const neuron_compensator& compensator, std::int64_t index,
                               unsigned worker) {
  const std::int64_t d = job.args.x.extents[1], c = compensator.c1.extents[1];
  const std::int64_t tiles = job.scratch.x.tiles(), tile = index % tiles, first = index / tiles * hidden_columns;
  const std::int64_t columns = smaller(hidden_columns, c - first), height = round_up(columns, output_block<Math>);
  const math_registers<Math> registers;
  const gemm_scratch<Math> scratch = job.scratch.gemm.of(worker);
  const packed_tokens<Math> tokens = job.scratch.x.tile(tile), target = job.scratch.values.tile(tile);
  multiply_steps(gathered_rows::of(compensator.c1, nullptr, d), first, columns, tokens, scratch);
  if constexpr (Math::amx) {  // sums and values both lie in rows
    for (std::int64_t t = 0; t < target.stride; ++t) {
      bf16* const row = reinterpret_cast<bf16*>(target.row_at(t, 0)) + first;
      for (std::int64_t i = 0; i < round_up(columns, gemm_outputs); i += simd::lanes) {
        const simd::floats sum = i < height ? simd::load(scratch.sums + t * height + i) : simd::floats(0.0f);
        simd::store(row + i, simd::activate(compensator.act, sum));  // act(0) = 0: steps beyond c are zeros
      }
    }
  } else {
    weigh_neurons({nullptr, scratch.sums, height, first, columns}, compensator.act, target);
  }
}

/// Calls `body(job)` for each batch of the call's rows.
template <class Math, class Body>
void for_batches(const ffn_args& args, neuron_scratch<Math> scratch, const Body& body) {
  for (std::int64_t row = 0; row < args.x.extents[0]; row += batch_rows) {
    const std::int64_t count = smaller(batch_rows, args.x.extents[0] - row);
    neuron_job<Math> job{args, scratch};
    job.args.x = rows(args.x, row, count);
    job.args.out = rows(args.out, row, count);
    job.scratch.x.rows = job.scratch.values.rows = count;
    body(job);
  }
}

/// out [M, d] = the FFN of `count` listed neurons, or of all, whatever blocks the rows belong to.
template <class Math>
void compute_neurons(const ffn_args& args, const std::int32_t* list, std::int64_t count, void* workspace,
                     executor_ref executor) {
  arena arena(workspace);
  const neuron_scratch<Math> scratch(arena, args, count, executor.concurrency());
  const gathered_rows gate = gathered_rows::of(args.gate, list, count), up = gathered_rows::of(args.up, list, count);
  const gathered_rows down = gathered_rows::of(args.down, list, count);
  const std::int64_t d = args.x.extents[1];
  for_batches<Math>(args, scratch, [&](const neuron_job<Math>& job) {
    const std::int64_t tiles = job.scratch.x.tiles();
    pack_tokens(job.args.x, token_order::lanes, job.scratch, executor);
    executor.parallel_for((count + gemm_outputs - 1) / gemm_outputs * tiles,
                          [&](std::int64_t index, unsigned worker) { weigh_unit(job, gate, up, index, worker); });
    executor.parallel_for((d + scratch.columns - 1) / scratch.columns * tiles,
                          [&](std::int64_t index, unsigned worker) { gather_unit(job, down, false, index, worker); });
  });
}

/// out [M, d] += act(x c1) c2
template <class Math>
void compensate_neurons(const ffn_args& args, const neuron_compensator& compensator, void* workspace,
                        executor_ref executor) {
  const std::int64_t d = args.x.extents[1], c = compensator.c1.extents[1];
  arena arena(workspace);
  const neuron_scratch<Math> scratch(arena, args, c, executor.concurrency());
  const gathered_rows c2 = gathered_rows::of(compensator.c2, nullptr, c);
  for_batches<Math>(args, scratch, [&](const neuron_job<Math>& job) {
    const std::int64_t tiles = job.scratch.x.tiles();
    pack_tokens(job.args.x, token_order::rows, job.scratch, executor);
    executor.parallel_for((c + hidden_columns - 1) / hidden_columns * tiles,
                          [&](std::int64_t index, unsigned worker) { hidden_unit(job, compensator, index, worker); });
    executor.parallel_for((d + scratch.columns - 1) / scratch.columns * tiles,
                          [&](std::int64_t index, unsigned worker) { gather_unit(job, c2, true, index, worker); });
  });
}

/// Scratch of `compute_neurons` for lists of up to `count` neurons of weights of `type`.
template <class Accumulate>
std::size_t compute_bytes(Accumulate arithmetic, const ffn_args& args, element type, std::int64_t count,
                          unsigned workers) {
  return simd::with_math(arithmetic, type, [&](auto math) {
    arena arena;
    neuron_scratch<decltype(math)>(arena, args, count, workers);
    return arena.used();
  });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
