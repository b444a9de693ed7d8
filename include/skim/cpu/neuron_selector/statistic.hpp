// SPDX-License-Identifier: Apache-2.0
/// \file GRIFFIN's statistic of a block (see `oracle`), by which two baselines choose.
#pragma once

#include <skim/cpu/kernel/compute_neurons.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// The statistic multiplies in f32 whatever the FFN does: it is a yardstick.
using statistic_math = simd::tile_math<accumulate::widen_fma>;

struct statistic_scratch {
  neuron_scratch<statistic_math> neurons;
  float* shares;  // [rows of a batch]: 1 / |z|

  statistic_scratch(arena& arena, const ffn_args& args, unsigned workers)
      : neurons(arena, args, args.up.extents[0], workers) {
    shares = arena.take<float>(round_up(smaller(args.x.extents[0], batch_rows), simd::lanes));
  }
};

/// Brings the token in lane `z`, of `width` of them, to a size whose squares f32 holds, and returns its share. One with an
/// infinity or NaN becomes zeros: its own output is lost, the choice for the others is not.
SKIM_NOINLINE inline float share_unusual(float* z, std::int64_t steps, std::int64_t width) {
  float share = scale_to_one(z, steps, nullptr, width);
  if (!std::isnan(share)) return share;
  for (std::int64_t j = 0; j < steps; ++j) z[j * width] = 0;
  return 0;
}

/// shares [width] of one lane block: 1 / |z[t]|, 0 where z[t] is zero. `count`: tokens from `row` on.
SKIM_NOINLINE inline void share_unit(const packed_tokens<statistic_math>& values, std::int64_t row, std::int64_t count,
                                     float* shares) {
  const std::int64_t width = row_lanes::of(row, values.stride).width;
  for (std::int64_t lane = 0; lane < width; lane += simd::lanes) {
    float* const source = values.lanes_at(row, 0) + lane;
    simd::floats total(0.0f);
    for (std::int64_t begin = 0; begin < values.steps; begin += 256) {  // sums of sums bound the rounding error
      simd::floats sum(0.0f);
      for (std::int64_t j = begin; j < smaller(values.steps, begin + 256); ++j) {
        const simd::floats z = simd::load(source + j * width);
        sum = simd::fma(z, z, sum);
      }
      total = total + sum;
    }
    simd::store(shares + lane, total);
    for (std::int64_t i = lane; i < lane + simd::lanes; ++i) {
      const float squares = shares[i];
      shares[i] = squares == 0 ? 0.0f : 1.0f / std::sqrt(squares);
      if (i < count && !is_usable(shares[i])) shares[i] = share_unusual(source + i - lane, values.steps, width);
    }
  }
}

/// scores [32 neurons from `first` on] += sum_t (z[t] * shares[t])^2 of one tile.
SKIM_NOINLINE inline void statistic_unit(const packed_tokens<statistic_math>& values, std::int64_t first,
                                         const float* shares, float* scores) {
  for (std::int64_t j = first; j < smaller(values.steps, first + gemm_outputs); ++j) {
    simd::floats sum(0.0f);
    for (std::int64_t row = 0; row < values.stride; row += simd::lanes) {
      const simd::floats z = simd::load(values.lanes_at(row, j)) * simd::load(shares + row);
      sum = simd::fma(z, z, sum);
    }
    scores[j] += simd::sum(sum);
  }
}

/// scores [f] = the statistic of a call of one block (see `oracle`), summed in f32: off by some 2^-20 sqrt(M) and, for
/// each token, by the error of its values' directions.
inline void neuron_statistic(const ffn_args& args, float* scores, void* workspace, executor_ref executor) {
  const std::int64_t f = args.up.extents[0], pieces = (f + gemm_outputs - 1) / gemm_outputs;
  arena arena(workspace);
  const statistic_scratch scratch(arena, args, executor.concurrency());
  const gathered_rows gate = gathered_rows::of(args.gate, nullptr, f), up = gathered_rows::of(args.up, nullptr, f);
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    for (std::int64_t j = 0; j < f; ++j) scores[j] = 0;
  });
  for_batches<statistic_math>(args, scratch.neurons, [&](const neuron_job<statistic_math>& job) {
    const std::int64_t tiles = job.scratch.x.tiles();
    pack_tokens(job.args.x, token_order::lanes, job.scratch, executor);
    executor.parallel_for(pieces * tiles,
                          [&](std::int64_t index, unsigned worker) { weigh_unit(job, gate, up, index, worker); });
    executor.parallel_for(tiles, [&](std::int64_t tile, unsigned) {
      const auto values = job.scratch.values.tile(tile);
      for_lane_blocks(values.stride, [&](std::int64_t row, auto) {
        share_unit(values, row, job.scratch.x.rows_of(tile) - row, scratch.shares + tile * gemm_rows + row);
      });
    });
    executor.parallel_for(pieces, [&](std::int64_t piece, unsigned) {
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        statistic_unit(job.scratch.values.tile(tile), piece * gemm_outputs, scratch.shares + tile * gemm_rows, scores);
      }
    });
  });
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    for (std::int64_t j = 0; j < f; ++j) scores[j] = std::sqrt(scores[j]);
  });
}

inline std::size_t statistic_bytes(const ffn_args& args, unsigned workers) {
  arena arena;
  statistic_scratch(arena, args, workers);
  return arena.used();
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
