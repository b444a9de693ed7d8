// SPDX-License-Identifier: Apache-2.0
/// \file GRIFFIN's statistic of a block and the two baselines that choose by it: the oracle and the static set.
#pragma once

#include <skim/cpu/kernel/compute_neurons.hpp>
#include <skim/cpu/neuron_selector.hpp>
#include <skim/neuron_selector/oracle.hpp>
#include <skim/neuron_selector/static_set.hpp>

#include <cmath>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// The statistic multiplies in f32 whatever the FFN does: it is a yardstick.
using statistic_math = simd::tile_math<accumulate::widen_fma>;

struct statistic_scratch {
  neuron_scratch<statistic_math> neurons;
  float* shares;  // [rows of a batch]: 1 / |z|^2

  statistic_scratch(skim::detail::arena& arena, const ffn_args& args, unsigned workers)
      : neurons(arena, args, args.up.extents[0], workers) {
    shares = arena.take<float>(round_up(smaller(args.x.extents[0], batch_rows), simd::lanes));
  }
};

/// shares [width] of one lane block: 1 / |z[t]|^2, 0 where z[t] is zero.
SKIM_NOINLINE inline void share_unit(const packed_tokens<statistic_math>& values, std::int64_t row, float* shares) {
  const std::int64_t width = row_lanes::of(row, values.stride).width;
  for (std::int64_t lane = 0; lane < width; lane += simd::lanes) {
    const float* from = values.lanes_at(row, 0) + lane;
    simd::floats total(0.0f);
    for (std::int64_t begin = 0; begin < values.steps; begin += 256) {  // sums of sums bound the rounding error
      simd::floats sum(0.0f);
      for (std::int64_t j = begin; j < smaller(values.steps, begin + 256); ++j) {
        const simd::floats z = simd::load(from + j * width);
        sum = simd::fma(z, z, sum);
      }
      total = total + sum;
    }
    simd::store(shares + lane, xsimd::select(total == simd::floats(0.0f), total, simd::floats(1.0f) / total));
  }
}

/// scores [32 neurons from `first` on] += sum_t z[t]^2 * shares[t] of one tile.
SKIM_NOINLINE inline void statistic_unit(const packed_tokens<statistic_math>& values, std::int64_t first,
                                         const float* shares, float* scores) {
  for (std::int64_t j = first; j < smaller(values.steps, first + gemm_outputs); ++j) {
    simd::floats sum(0.0f);
    for (std::int64_t row = 0; row < values.stride; row += simd::lanes) {
      const simd::floats z = simd::load(values.lanes_at(row, j));
      sum = simd::fma(z * z, simd::load(shares + row), sum);
    }
    scores[j] += simd::sum(sum);
  }
}

/// scores [f] = the statistic of the block (see `oracle`).
template <class Executor>
void neuron_statistic(const ffn_args& args, float* scores, void* workspace, const Executor& executor) {
  const std::int64_t f = args.up.extents[0], pieces = (f + gemm_outputs - 1) / gemm_outputs;
  skim::detail::arena arena(workspace);
  const statistic_scratch with(arena, args, executor.concurrency());
  const gathered_rows gate = gathered_rows::of(args.gate, nullptr, f), up = gathered_rows::of(args.up, nullptr, f);
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    for (std::int64_t j = 0; j < f; ++j) scores[j] = 0;
  });
  for_batches<statistic_math>(args, with.neurons, [&](const neuron_job<statistic_math>& job) {
    const std::int64_t tiles = job.with.x.tiles();
    executor.parallel_for(pack_units(job.with.x), [&](std::int64_t index, unsigned worker) {
      pack_unit(job, token_order::lanes, index, worker);
    });
    executor.parallel_for(pieces * tiles,
                          [&](std::int64_t index, unsigned worker) { weigh_unit(job, gate, up, index, worker); });
    executor.parallel_for(tiles, [&](std::int64_t tile, unsigned) {
      const auto values = job.with.values.tile(tile);
      for_lane_blocks(values.stride,
                      [&](std::int64_t row, auto) { share_unit(values, row, with.shares + tile * gemm_rows + row); });
    });
    executor.parallel_for(pieces, [&](std::int64_t piece, unsigned) {
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        statistic_unit(job.with.values.tile(tile), piece * gemm_outputs, with.shares + tile * gemm_rows, scores);
      }
    });
  });
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    for (std::int64_t j = 0; j < f; ++j) scores[j] = std::sqrt(scores[j]);
  });
}

/// What the two policies share.
template <class Policy>
struct statistic_selector : plain_neuron_selector<Policy> {
  static std::size_t workspace_bytes(const Policy&, const ffn_args& args, unsigned workers) {
    skim::detail::arena arena;
    statistic_scratch(arena, args, workers);
    return arena.used();
  }
};

}  // namespace detail

template <>
struct neuron_selector_kernel<oracle> : detail::statistic_selector<oracle> {
  static cost_estimate cost(const oracle&, const ffn_args& args) {
    const cost_estimate all = ffn_cost(args, args.up.extents[0]);
    const double share = is_gated(args) ? 2.0 / 3 : 0.5;  // all but the down projection
    return {all.flops * share, all.bytes * share};
  }
  template <class Executor>
  static void predict(const oracle&, const ffn_args& args, tensor_view<float, 1> scores, memory, memory workspace,
                      const Executor& executor) {
    detail::neuron_statistic(args, scores.data, workspace.data, executor);
  }
};

template <>
struct neuron_selector_kernel<static_set> : detail::statistic_selector<static_set> {
  static std::size_t state_bytes(const static_set&, const ffn_args& args) {
    return static_cast<std::size_t>(args.up.extents[0]) * sizeof(float);
  }
  template <class Executor>
  static void reset(const static_set&, const ffn_args& args, memory state, const Executor& executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < args.up.extents[0]; ++j) static_cast<float*>(state.data)[j] = 0;
    });
  }
  template <class Executor>
  static void observe(const static_set&, const ffn_args& args, memory state, memory workspace,
                      const Executor& executor) {
    if (args.block != 0 || args.decode) return;
    detail::neuron_statistic(args, static_cast<float*>(state.data), workspace.data, executor);
  }
  template <class Executor>
  static void predict(const static_set&, const ffn_args& args, tensor_view<float, 1> scores, memory state, memory,
                      const Executor& executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < args.up.extents[0]; ++j) *scores.at(j) = static_cast<const float*>(state.data)[j];
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
