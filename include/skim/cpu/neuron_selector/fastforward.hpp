// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's predictor on the CPU (arXiv 2602.00397, section 3.1).
#pragma once

#include <skim/cpu/kernel/rows.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/neuron_selector/fastforward.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {
namespace detail {

inline constexpr std::int64_t predictor_columns = 1024;  // of a work unit: long enough for hardware to fetch ahead
inline constexpr std::int64_t predictor_tokens = 16;     // of a work unit
inline constexpr std::int64_t hidden_units = 128;        // of a work unit

/// Scratch of a prediction.
struct predictor_scratch {
  float *query, *weights, *mean, *hidden;  // [d], [M], [blocks, d], [blocks, r]

  predictor_scratch(arena& arena, const ffn_args& args, std::int64_t rank) {
    const std::int64_t d = args.x.extents[1], blocks = block_count(args);
    query = arena.take<float>(d);
    weights = arena.take<float>(args.x.extents[0]);
    mean = arena.take<float>(blocks * d);
    hidden = arena.take<float>(blocks * rank);
  }
};

/// target [n] += sum_i factors[i] * rows[i][0 .. n), i < 4, in order: four streams from memory at a time.
template <class Row>
SKIM_INLINE void add_four_rows(const Row* rows, const float* factors, float* target, std::int64_t n) {
  std::int64_t c = 0;
  for (; c + simd::lanes <= n; c += simd::lanes) {
    simd::floats sum = simd::load(target + c);
    for (int i = 0; i < 4; ++i) sum = simd::fma(simd::load(rows[i] + c), simd::floats(factors[i]), sum);
    simd::store(target + c, sum);
  }
  for (; c < n; ++c) {
    for (int i = 0; i < 4; ++i) target[c] += to_float(rows[i][c]) * factors[i];
  }
}

/// target [n] = sum_i factors[i] * matrix[i][first .. first + n); rows whose factor is 0 are not looked at.
SKIM_NOINLINE inline void add_rows(const tensor_view<const void, 2>& matrix, const float* factors, std::int64_t first,
                                   std::int64_t n, float* target) {
  for (std::int64_t c = 0; c < n; ++c) target[c] = 0;
  with_row({matrix.data, matrix.type}, [&](auto start) SKIM_LAMBDA_INLINE {
    decltype(start) rows[4];
    float used[4];
    int count = 0;
    for (std::int64_t i = 0; i < matrix.extents[0]; ++i) {
      if (factors[i] == 0) continue;
      rows[count] = start + matrix.offset(i, first);
      used[count++] = factors[i];
      if (count == 4) add_four_rows(rows, used, target, n);
      count %= 4;
    }
    for (int i = 0; i < count; ++i) add_scaled_of(rows[i], used[i], target, n);
  });
}

/// Replaces logits by their softmax, in which those that are not finite have no part: weight 0.
SKIM_NOINLINE inline void softmax(float* logits, std::int64_t n) {
  float largest = minus_infinity, total = 0;
  for (std::int64_t t = 0; t < n; ++t) largest = std::isfinite(logits[t]) && logits[t] > largest ? logits[t] : largest;
  for (std::int64_t t = 0; t < n; ++t) {
    logits[t] = std::isfinite(logits[t]) ? std::exp(logits[t] - largest) : 0.0f;
    total += logits[t];
  }
  for (std::int64_t t = 0; t < n && total > 0; ++t) logits[t] /= total;
}

/// Calls `body(block, first, count)` for pieces of [0, n), for each of `blocks`. Those that read the same weights follow each
/// other, so that weights come from memory once.
template <class Body>
void in_pieces(std::int64_t blocks, std::int64_t n, std::int64_t piece, executor_ref executor, const Body& body) {
  executor.parallel_for((n + piece - 1) / piece * blocks, [&](std::int64_t index, unsigned) {
    const std::int64_t first = index / blocks * piece;
    body(index % blocks, first, smaller(n - first, piece));
  });
}

/// scores [blocks, f] = the logits of each block. Sums are f32, as many terms as d and r: an error of at most
/// 2^-24 (d + r + 32) times what the sums of absolute values would be.
inline void predict_neurons(const neuron_predictor& predictor, const ffn_args& args,
                            const tensor_view<float, 2>& scores, void* workspace, executor_ref executor) {
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1], blocks = scores.extents[0];
  const std::int64_t rank = predictor.w1.extents[1], f = predictor.w2.extents[1];
  arena arena(workspace);
  const predictor_scratch scratch(arena, args, rank);
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    widen({predictor.query.data, predictor.query.type}, d, scratch.query);
  });
  in_pieces(1, M, predictor_tokens, executor, [&](std::int64_t, std::int64_t first, std::int64_t count) {
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    for (std::int64_t t = first; t < first + count; ++t) {
      scratch.weights[t] = scale * dot({args.x.at(t), args.x.type}, scratch.query, d);
    }
  });
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    float* weights = scratch.weights;
    for_each_block(args, [&](const ffn_args& block, std::int64_t) {
      softmax(weights, block.x.extents[0]);
      weights += block.x.extents[0];
    });
  });
  in_pieces(1, d, predictor_columns, executor, [&](std::int64_t, std::int64_t first, std::int64_t count) {
    const float* weights = scratch.weights;
    for_each_block(args, [&](const ffn_args& block, std::int64_t index) {
      add_rows(block.x, weights, first, count, scratch.mean + index * d + first);
      weights += block.x.extents[0];
    });
  });
  in_pieces(blocks, rank, hidden_units, executor, [&](std::int64_t index, std::int64_t first, std::int64_t count) {
    float* const hidden = scratch.hidden + index * rank;
    add_rows(predictor.w1, scratch.mean + index * d, first, count, hidden + first);
    for (std::int64_t j = first; j < first + count; ++j) hidden[j] = hidden[j] < 0 ? 0 : hidden[j];
  });
  in_pieces(blocks, f, predictor_columns, executor, [&](std::int64_t index, std::int64_t first, std::int64_t count) {
    add_rows(predictor.w2, scratch.hidden + index * rank, first, count, scores.at(index, first));
  });
}

}  // namespace detail

template <>
struct score_kernel<fastforward> : own_hooks<fastforward, executor_ref> {
  static std::size_t workspace_bytes(const fastforward& policy, const ffn_args& args, unsigned) {
    detail::arena arena;
    detail::predictor_scratch(arena, args, policy.predictor.w1.extents[1]);
    return arena.used();
  }
  static void score(const fastforward& policy, const ffn_args& args, tensor_view<float, 2> scores, memory,
                    memory workspace, executor_ref executor) {
    detail::predict_neurons(policy.predictor, args, scores, workspace.data, executor);
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
