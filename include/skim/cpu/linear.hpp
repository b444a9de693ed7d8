// SPDX-License-Identifier: Apache-2.0
/// \file A linear layer on the CPU: `cpu::linear<Accumulate>`.
#pragma once

#include <skim/cpu/kernel/gathered_gemm.hpp>
#include <skim/linear.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// One batch of a call: x and out are its rows.
template <class Math>
struct linear_job {
  linear_args args;
  batch_scratch<Math> scratch;
};

/// 32 outputs of one tile of tokens.
template <class Math>
SKIM_NOINLINE void linear_unit(const linear_job<Math>& job, std::int64_t index, unsigned worker) {
  const linear_args& args = job.args;
  const std::int64_t tiles = job.scratch.x.tiles(), tile = index % tiles, first = index / tiles * gemm_outputs;
  const gathered_rows weight = gathered_rows::of(args.weight, nullptr, args.weight.extents[0]);
  const math_registers<Math> registers;
  const gemm_scratch<Math> scratch = job.scratch.gemm.of(worker);
  const packed_tokens<Math> tokens = job.scratch.x.tile(tile);
  multiply_outputs(weight, first, args.x.extents[1], tokens, scratch, scratch.sums);
  const std::int64_t count = smaller(gemm_outputs, weight.count - first);
  float *const values = scratch.row, *const bias = values + gemm_outputs;
  if (has_bias(args)) widen({args.bias.at(first), args.bias.type}, count, bias);
  for (std::int64_t t = 0; t < job.scratch.x.rows_of(tile); ++t) {
    const row_lanes block = row_lanes::of(t, tokens.stride);
    const float* const sums = scratch.sums + block.offset(t, gemm_outputs, 0);
    for (std::int64_t i = 0; i < count; ++i) values[i] = sums[i * block.width];
    for (std::int64_t i = 0; has_bias(args) && i < count; ++i) values[i] += bias[i];
    narrow(values, count, args.out.at(tile * gemm_rows + t, first), args.out.type);
  }
}

/// out [M, n_out] = x weight^T + bias
template <class Math>
void multiply_linear(const linear_args& args, void* workspace, executor_ref executor) {
  arena arena(workspace);
  linear_job<Math> job{args, batch_scratch<Math>(arena, args.x, 0, executor.concurrency())};
  const std::int64_t units = (args.weight.extents[0] + gemm_outputs - 1) / gemm_outputs;
  for (std::int64_t row = 0; row < args.x.extents[0]; row += batch_rows) {
    const std::int64_t count = smaller(batch_rows, args.x.extents[0] - row);
    job.args.x = rows(args.x, row, count);
    job.args.out = rows(args.out, row, count);
    job.scratch.x.rows = count;
    pack_tokens(job.args.x, token_order::lanes, job.scratch, executor);
    executor.parallel_for(units * job.scratch.x.tiles(),
                          [&](std::int64_t index, unsigned worker) { linear_unit(job, index, worker); });
  }
}

}  // namespace detail

/// out = x weight^T + bias, on weights as they are stored: a checkpoint's projections without a copy in f32.
///
/// Storage: any stored types; sums accumulate in f32. With `widen_fma` an output differs from exact arithmetic on the
/// stored values by at most 2^-24 ((32 + n_in / 16) sum_i |x_i w_i| + |out|); with `dot_pairs` (a bf16 weight) x is
/// rounded to bf16, which adds 2^-8 sum_i |x_i w_i|; 16-bit outputs add their rounding. testing/ffn_truth.hpp has the
/// bounds. On normal data the NMSE of 64 outputs or more is below 1e-10, with `dot_pairs` below 5e-5.
///
/// Nothing here allocates, throws or starts a thread. `out` must not overlap the inputs. With equal arguments every
/// executor and every number of workers gives the same bits, and so do calls for some of the rows.
template <class Accumulate = accumulate::widen_fma>
struct linear {
  Accumulate accumulate{};

  /// O(1), follows no pointer.
  report check(const linear_args& args) const { return skim::check(args); }

  /// The same before there is memory: pointers may be null.
  report check_shape(const linear_args& args) const { return skim::check_shape(args); }

  /// Scratch with at most `workers` workers; 64-byte aligned, any contents. Never larger for fewer tokens or workers; 0
  /// for what `check_shape` refuses.
  std::size_t workspace_bytes(const linear_args& args, unsigned workers) const {
    return check_shape(args) ? needed_bytes(args, workers > 0 ? workers : 1) : 0;
  }

  cost_estimate cost(const linear_args& args) const { return linear_cost(args); }

  /// Statuses: those of `check`, short_workspace.
  report run(const linear_args& args, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    const std::size_t needed = needed_bytes(args, executor.concurrency());
    if (report r = detail::check_workspace(workspace, needed); !r) return r;
    simd::with_math(accumulate, args.weight.type,
                    [&](auto math) { detail::multiply_linear<decltype(math)>(args, workspace.data, executor); });
    report answer;
    answer.taken = path::dense;
    return answer;
  }

 private:
  std::size_t needed_bytes(const linear_args& args, unsigned workers) const {
    return simd::with_math(accumulate, args.weight.type, [&](auto math) {
      detail::arena arena;
      detail::batch_scratch<decltype(math)>(arena, args.x, 0, workers);
      return arena.used();
    });
  }
};

template <class Accumulate>
linear(Accumulate) -> linear<Accumulate>;

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
