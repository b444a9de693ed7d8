// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's predictor on the CPU (arXiv 2602.00397, section 3.1).
#pragma once

#include <skim/cpu/kernel/rows.hpp>
#include <skim/cpu/neuron_selector.hpp>
#include <skim/cpu/simd/convert.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <cmath>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

inline constexpr std::int64_t predictor_columns = 1024;  // of a work unit: long enough for hardware to fetch ahead
inline constexpr std::int64_t predictor_tokens = 16;     // of a work unit

/// Calls `body(pointer)` with an erased pointer in its own type.
template <class Body>
SKIM_INLINE auto with_type(const void* data, element type, const Body& body) {
  if (type == element::f32) return body(static_cast<const float*>(data));
  if (type == element::f16) return body(static_cast<const f16*>(data));
  return body(static_cast<const bf16*>(data));
}

/// Scratch of a prediction.
struct predictor_scratch {
  float *query, *weights, *mean, *hidden;  // [d], [M], [d], [r]

  predictor_scratch(arena& arena, const ffn_args& args, std::int64_t rank) {
    query = arena.take<float>(args.x.extents[1]);
    weights = arena.take<float>(args.x.extents[0]);
    mean = arena.take<float>(args.x.extents[1]);
    hidden = arena.take<float>(rank);
  }
};

/// target [n] += sum_i factors[i] * rows[i][0 .. n), i < 4, in order: four streams from memory at a time.
template <class T>
SKIM_INLINE void add_four_rows(const T* const* rows, const float* factors, float* target, std::int64_t n) {
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

/// target [n] = sum_i factors[i] * matrix[i][first .. first + n)
SKIM_NOINLINE inline void add_rows(const tensor_view<const void, 2>& matrix, const float* factors, std::int64_t first,
                                   std::int64_t n, float* target) {
  for (std::int64_t c = 0; c < n; ++c) target[c] = 0;
  with_type(matrix.data, matrix.type, [&](auto start) SKIM_LAMBDA_INLINE {
    const auto row = [&](std::int64_t i) SKIM_LAMBDA_INLINE { return start + matrix.offset(i, first); };
    std::int64_t i = 0;
    for (; i + 4 <= matrix.extents[0]; i += 4) {
      const decltype(start) rows[] = {row(i), row(i + 1), row(i + 2), row(i + 3)};
      add_four_rows(rows, factors + i, target, n);
    }
    for (; i < matrix.extents[0]; ++i) add_scaled_of(row(i), factors[i], target, n);
  });
}

/// Replaces logits by their softmax.
SKIM_NOINLINE inline void softmax(float* logits, std::int64_t n) {
  float largest = logits[0], total = 0;
  for (std::int64_t t = 1; t < n; ++t) largest = logits[t] > largest ? logits[t] : largest;
  for (std::int64_t t = 0; t < n; ++t) {
    logits[t] = std::exp(logits[t] - largest);
    total += logits[t];
  }
  for (std::int64_t t = 0; t < n; ++t) logits[t] /= total;
}

/// Calls `body(first, count)` for pieces of [0, n).
template <class Body>
void in_pieces(std::int64_t n, std::int64_t piece, executor_ref executor, const Body& body) {
  executor.parallel_for((n + piece - 1) / piece, [&](std::int64_t index, unsigned) {
    body(index * piece, n - index * piece < piece ? n - index * piece : piece);
  });
}

/// logits [f] of the block; those of a = 0 for an empty one.
void predict_neurons(const neuron_predictor& predictor, const ffn_args& args, float* logits, void* workspace,
                     executor_ref executor) {
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1];
  const std::int64_t rank = predictor.w1.extents[1], f = predictor.w2.extents[1];
  arena arena(workspace);
  const predictor_scratch scratch(arena, args, rank);
  executor.parallel_for(1, [&](std::int64_t, unsigned) {
    simd::widen_row(predictor.query.data, predictor.query.type, d, scratch.query);
  });
  in_pieces(M, predictor_tokens, executor, [&](std::int64_t first, std::int64_t count) {
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    for (std::int64_t t = first; t < first + count; ++t) {
      scratch.weights[t] = scale * with_type(args.x.at(t), args.x.type, [&](auto row) SKIM_LAMBDA_INLINE {
                             return dot_of(row, scratch.query, d);
                           });
    }
  });
  executor.parallel_for(M > 0 ? 1 : 0, [&](std::int64_t, unsigned) { softmax(scratch.weights, M); });
  in_pieces(d, predictor_columns, executor, [&](std::int64_t first, std::int64_t count) {
    add_rows(args.x, scratch.weights, first, count, scratch.mean + first);
  });
  in_pieces(rank, 128, executor, [&](std::int64_t first, std::int64_t count) {
    add_rows(predictor.w1, scratch.mean, first, count, scratch.hidden + first);
    for (std::int64_t j = first; j < first + count; ++j)
      scratch.hidden[j] = scratch.hidden[j] < 0 ? 0 : scratch.hidden[j];
  });
  in_pieces(f, predictor_columns, executor, [&](std::int64_t first, std::int64_t count) {
    add_rows(predictor.w2, scratch.hidden, first, count, logits + first);
  });
}

}  // namespace detail

template <>
struct neuron_selector_kernel<fastforward> : detail::plain_neuron_selector<fastforward> {
  static report check(const fastforward& policy, const ffn_args& args) {
    if (report r = skim::check(policy.keep); !r) return r;
    return skim::check(policy.predictor, args.x.extents[1], args.up.extents[0]);
  }
  static std::size_t workspace_bytes(const fastforward& policy, const ffn_args& args, unsigned) {
    detail::arena arena;
    detail::predictor_scratch(arena, args, policy.predictor.w1.extents[1]);
    return arena.used();
  }
  static cost_estimate cost(const fastforward& policy, const ffn_args& args) {
    const double d = static_cast<double>(args.x.extents[1]), f = static_cast<double>(args.up.extents[0]);
    const double rank = static_cast<double>(policy.predictor.w1.extents[1]);
    return {4 * static_cast<double>(args.x.extents[0]) * d + 2 * rank * (d + f),
            rank * (d * static_cast<double>(element_bytes(policy.predictor.w1.type)) +
                    f * static_cast<double>(element_bytes(policy.predictor.w2.type)))};
  }
  static void predict(const fastforward& policy, const ffn_args& args, tensor_view<float, 1> scores, memory,
                      memory workspace, executor_ref executor) {
    detail::predict_neurons(policy.predictor, args, scores.data, workspace.data, executor);
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
