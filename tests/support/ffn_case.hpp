// SPDX-License-Identifier: Apache-2.0
/// \file One FFN call to test, described by plain values, and the memory that it needs.
#pragma once

#include "pairwise.hpp"
#include "strided_tensor.hpp"

#include <skim/cpu/features.hpp>
#include <skim/cpu/simd/tile_math.hpp>
#include <skim/neuron_selector/fastforward.hpp>

#include <cmath>

namespace skim_test {

inline constexpr skim::element weight_types[] = {skim::element::f32, skim::element::f16, skim::element::bf16,
                                                 skim::element::q8_0};
/// Of values, and of weights on a GPU: the first three.
inline constexpr int value_types = 3;

enum class neurons_kind { every, third, one, empty };
enum class multiply_kind { widen_fma, dot_pairs, amx };

inline const char* to_string(multiply_kind kind) {
  const char* const names[] = {"widen_fma", "dot_pairs", "amx"};
  return names[static_cast<int>(kind)];
}

/// Calls `body(accumulate)`.
template <class Body>
void with_accumulate(multiply_kind kind, const Body& body) {
  static const skim::accumulate::amx granted = skim::cpu::request_amx();
  if (kind == multiply_kind::amx) return body(granted);
  if (kind == multiply_kind::dot_pairs) return body(skim::accumulate::dot_pairs{});
  body(skim::accumulate::widen_fma{});
}

/// True where weights of `type` are multiplied in pairs.
inline bool multiplies_pairs(multiply_kind kind, skim::element type) {
  return kind != multiply_kind::widen_fma &&
         skim::cpu::simd::with_math(skim::accumulate::dot_pairs{}, type,
                                    [](auto math) { return decltype(math)::values == 2; });
}

/// A tensor of one head as a matrix.
inline skim::tensor_view<void, 2> matrix(strided_tensor& tensor) {
  const auto all = tensor.view();
  return {all.data, {all.extents[0], all.extents[2]}, {all.strides[0], 1}, all.type};
}

/// Rows of a matrix, with `padding` elements behind each.
inline strided_tensor::shape matrix_shape(std::int64_t rows, std::int64_t width, skim::element type,
                                          std::int64_t padding) {
  strided_tensor::shape s;
  s.tokens = rows;
  s.heads = 1;
  s.dim = width;
  s.type = type;
  s.padding = padding;
  return s;
}

struct ffn_case {
  skim::element weights = skim::element::f32, x_type = skim::element::f32, out_type = skim::element::f32;
  std::int64_t M = 5, d = 24, f = 40;
  bool gated = true;
  skim::activation act = skim::activation::silu;
  neurons_kind neurons = neurons_kind::every;
  std::int64_t padding = 0;
  multiply_kind multiply = multiply_kind::widen_fma;
};

inline std::ostream& operator<<(std::ostream& to, const ffn_case& c) {
  const char* const neurons[] = {"every", "every third", "one", "no"};
  return to << "weights " << to_string(c.weights) << ", x " << to_string(c.x_type) << ", out " << to_string(c.out_type)
            << ", M " << c.M << ", d " << c.d << ", f " << c.f << (c.gated ? ", gated " : ", plain ")
            << to_string(c.act) << ", " << neurons[static_cast<int>(c.neurons)] << " neuron, padding " << c.padding
            << ", " << to_string(c.multiply);
}

/// Values, weights and parts of policies for one case; weights are scaled so that outputs have the size of inputs.
class ffn_inputs {
 public:
  explicit ffn_inputs(const ffn_case& c)
      : case_(c),
        x_(rows(c.M, c.d, c.x_type, 1)),
        gate_(rows(c.f, c.d, c.weights, 2)),
        up_(rows(c.f, c.d, c.weights, 3)),
        down_(rows(c.f, c.d, c.weights, 4)),
        out_(matrix_shape(c.M, c.d, c.out_type, c.padding)),
        query_(rows(1, c.d, c.x_type, 5)),
        w1_(rows(c.d, skim::predictor_rank(c.d), type_of_parts(c), 6)),
        w2_(rows(skim::predictor_rank(c.d), c.f, c.x_type, 7)),
        c1_(rows(c.d, compensator_width(), type_of_parts(c), 8)),
        c2_(rows(compensator_width(), c.d, type_of_parts(c), 9)) {
    for (std::int64_t j = 0; j < c.f; ++j) {
      const bool listed = c.neurons == neurons_kind::every || (c.neurons == neurons_kind::third && j % 3 == 1) ||
                          (c.neurons == neurons_kind::one && j == c.f - 1);
      if (listed) list_.push_back(static_cast<std::int32_t>(j));
    }
    count_ = static_cast<std::int32_t>(list_.size());
  }

  skim::ffn_args args() {
    skim::ffn_args args;
    args.x = matrix(x_);
    if (case_.gated) args.gate = matrix(gate_);
    args.up = matrix(up_);
    args.down = matrix(down_);
    args.out = matrix(out_);
    args.act = case_.act;
    args.first_block = 1;
    return args;
  }
  skim::neuron_predictor predictor() {
    skim::neuron_predictor parts;
    const skim::tensor_view<void, 2> query = matrix(query_);
    parts.query = skim::tensor_view<const void, 1>(query.data, {query.extents[1]}, query.type);
    parts.w1 = matrix(w1_);
    parts.w2 = matrix(w2_);
    return parts;
  }
  skim::neuron_compensator compensator() {
    skim::neuron_compensator parts;
    parts.c1 = matrix(c1_);
    parts.c2 = matrix(c2_);
    return parts;
  }
  skim::index_lists lists() { return {list_.data(), &count_, 1, static_cast<std::int64_t>(list_.size())}; }
  const std::vector<std::int32_t>& neurons() const { return list_; }
  strided_tensor& out() { return out_; }

 private:
  /// Beside weights in blocks: their widths need not be whole ones.
  static skim::element type_of_parts(const ffn_case& c) {
    return c.weights == skim::element::q8_0 ? skim::element::bf16 : c.weights;
  }
  /// Wider than a model's, so that small cases have several work units and a ragged end.
  std::int64_t compensator_width() const { return case_.d + skim::compensator_width(case_.d); }

  strided_tensor rows(std::int64_t n, std::int64_t width, skim::element type, unsigned seed) const {
    strided_tensor tensor(matrix_shape(n, width, type, case_.padding));
    std::vector<float> values = normal_values(n * width, seed);
    const float size = seed == 1 ? 1.0f : 1 / std::sqrt(static_cast<float>(case_.d));
    for (float& value : values) value *= size;
    tensor.fill(values);
    return tensor;
  }

  ffn_case case_;
  strided_tensor x_, gate_, up_, down_, out_, query_, w1_, w2_, c1_, c2_;
  std::vector<std::int32_t> list_;
  std::int32_t count_ = 0;
};

/// Every two values of every two parameters meet.
inline std::vector<ffn_case> ffn_sample(int weights = static_cast<int>(std::size(weight_types))) {
  const std::int64_t W = skim::cpu::simd::lanes;
  const std::vector<std::int64_t> tokens{0, 1, 3, W, 2 * W + 1, 127, 128, 129, 300, 520};
  const std::vector<std::int64_t> widths{1, 7, 8, 33, 40, 64, 257, 300}, neurons{1, 2, 31, 32, 33, 100, 200};
  const auto count = [](const auto& values) { return static_cast<int>(std::size(values)); };
  const int values = value_types;
  const pairwise_sample sample({weights, values, values, count(tokens), count(widths), count(neurons), 2, 5, 4, 2, 3});
  std::vector<ffn_case> cases;
  for (const auto& row : sample.rows()) {
    const int* next = row.data();
    const auto take = [&next] { return static_cast<std::size_t>(*next++); };
    ffn_case c;
    c.weights = weight_types[take()];
    c.x_type = weight_types[take()];
    c.out_type = weight_types[take()];
    c.M = tokens[take()];
    c.d = widths[take()];
    c.f = neurons[take()];
    c.gated = take() != 0;
    c.act = static_cast<skim::activation>(take());
    c.neurons = static_cast<neurons_kind>(take());
    c.padding = static_cast<std::int64_t>(take()) * 3;
    c.multiply = static_cast<multiply_kind>(take());
    if (c.weights == skim::element::q8_0) {  // in whole blocks
      c.d = (c.d + 31) / 32 * 32;
      c.padding = (c.padding + 31) / 32 * 32;
    }
    cases.push_back(c);
  }
  return cases;
}

}  // namespace skim_test
