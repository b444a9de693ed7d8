// SPDX-License-Identifier: Apache-2.0
/// \file The exact FFN and linear layer, and how far from them a kernel's rounding may lead, element by element. Allocates.
#pragma once

#include <skim/neuron_selector/fastforward.hpp>
#include <skim/reference/ffn.hpp>
#include <skim/testing/attention_truth.hpp>

namespace skim { inline namespace v0_2 { namespace testing {

/// Exact results [M, d] and bounds, without the output's own rounding.
///
/// With `n(k) = sum (32 + k / 16) + factor` for a sum of k products whose inputs are rounded by `factor`, and P, Q the sums
/// of absolute products of a neuron's gate and up projections, those are off by n(d) P and n(d) Q, and the activation by
/// its slope (at most 1.13; relu_squared: twice the argument) times the former and 4e-7 (|act| + |argument|) of its own.
/// A neuron's value is off by what these make of the product; an output by the sum of that times |down|, and by
/// n(K) sum_j |value_j down_j|. Where values are stored between the products in a type of their own, `factor` counts in the
/// first only, and in the second that type's roundoff and half of its smallest step.
struct ffn_truth {
  std::int64_t M = 0, d = 0;
  std::vector<double> out, bound;

  /// Adds what other neurons contribute to the same sums.
  void join(const ffn_truth& other) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] += other.out[i];
      bound[i] += other.bound[i];
    }
  }

  /// Adds what a compensator contributes to an output that was stored as `type`.
  void add(const ffn_truth& other, element type) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      bound[i] += roundoff(type) * (std::fabs(out[i]) + bound[i]) + smallest_step(type) + other.bound[i];
      out[i] += other.out[i];
      bound[i] += 0x1p-24 * std::fabs(out[i]);
    }
  }
};

namespace detail {

/// A number and how far a kernel's may be from it.
struct uncertain {
  double value = 0, error = 0;
};

inline double sum_error(const arithmetic& rounding, std::int64_t products) {
  return rounding.sum * (32 + static_cast<double>(products) / 16) + rounding.factor;
}

/// Weights of 8 bits are rounded to what values are rounded to: twice that.
inline arithmetic with_weights(arithmetic rounding, element type) {
  if (has_8_bits(type)) rounding.factor *= 2;
  return rounding;
}

/// How values meet the second product: what they are stored as (none: `factor` is their rounding), and how many products
/// its sums have besides.
struct value_rounding {
  element stored = element::none;
  std::int64_t more = 0;

  arithmetic of_sums(const arithmetic& rounding) const {
    return {rounding.sum, stored == element::none ? rounding.factor : roundoff(stored)};
  }
  uncertain keep(uncertain value) const {
    return {value.value, value.error + (stored == element::none ? 0 : smallest_step(stored))};
  }
};

inline uncertain activated(activation act, uncertain x) {
  const double size = std::fabs(x.value), value = activate(act, x.value);
  const double slope = act == activation::relu_squared ? 2 * (size + x.error) : 1.13;
  return {value, slope * x.error + 4e-7 * (std::fabs(value) + size)};
}

inline uncertain product(uncertain a, uncertain b, const arithmetic& rounding) {
  const double value = a.value * b.value;
  const double error = std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error;
  return {value, error + rounding.sum * std::fabs(value)};
}

/// x[t] . row, the row's elements `stride` apart.
inline uncertain projection(const std::vector<double>& x, std::size_t t, std::size_t d, const double* row,
                            std::size_t stride, const arithmetic& rounding) {
  double sum = 0, size = 0;
  for (std::size_t i = 0; i < d; ++i) {
    sum += x[t * d + i] * row[i * stride];
    size += std::fabs(x[t * d + i] * row[i * stride]);
  }
  return {sum, sum_error(rounding, static_cast<std::int64_t>(d)) * size};
}

inline std::vector<double> widened(const tensor_view<const void, 2>& matrix) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < matrix.extents[0]; ++i) {
    for (std::int64_t j = 0; j < matrix.extents[1]; ++j) values.push_back(reference::element_at(matrix, i, j));
  }
  return values;
}

/// Adds one neuron's value, `down` its row of d numbers.
inline void add_neuron(ffn_truth& truth, std::int64_t t, uncertain z, const double* down, double rounding) {
  const std::size_t first = static_cast<std::size_t>(t * truth.d);
  for (std::size_t c = 0; c < static_cast<std::size_t>(truth.d); ++c) {
    truth.out[first + c] += z.value * down[c];
    truth.bound[first + c] += (z.error + rounding * (std::fabs(z.value) + z.error)) * std::fabs(down[c]);
  }
}

inline ffn_truth zero_truth(const tensor_view<const void, 2>& out) {
  const std::size_t size = static_cast<std::size_t>(out.extents[0] * out.extents[1]);
  return {out.extents[0], out.extents[1], std::vector<double>(size), std::vector<double>(size)};
}

}  // namespace detail

/// The FFN of some neurons.
inline ffn_truth compute_exactly(const ffn_args& args, const std::vector<std::int32_t>& neurons,
                                 arithmetic rounding = {}, const detail::value_rounding& values = {}) {
  rounding = detail::with_weights(rounding, args.up.type);
  ffn_truth truth = detail::zero_truth(args.out);
  const std::size_t d = static_cast<std::size_t>(truth.d);
  const std::vector<double> x = detail::widened(args.x), up = detail::widened(args.up);
  const std::vector<double> gate = detail::widened(args.gate), down = detail::widened(args.down);
  const double sum_of_neurons =
      detail::sum_error(values.of_sums(rounding), static_cast<std::int64_t>(neurons.size()) + values.more);
  for (std::int64_t t = 0; t < truth.M; ++t) {
    for (const std::int32_t neuron : neurons) {
      const std::size_t row = static_cast<std::size_t>(neuron) * d, token = static_cast<std::size_t>(t);
      detail::uncertain z = detail::projection(x, token, d, up.data() + row, 1, rounding);
      if (is_gated(args)) {
        z = detail::product(
            detail::activated(args.act, detail::projection(x, token, d, gate.data() + row, 1, rounding)), z, rounding);
      } else {
        z = detail::activated(args.act, z);
      }
      detail::add_neuron(truth, t, values.keep(z), down.data() + row, sum_of_neurons);
    }
  }
  return truth;
}

/// A linear layer: an output is off by n(n_in) times the sum of absolute products, and by a rounding of its own.
inline ffn_truth multiply_exactly(const linear_args& args, arithmetic rounding = {}) {
  rounding = detail::with_weights(rounding, args.weight.type);
  ffn_truth truth = detail::zero_truth(args.out);
  const std::size_t n_in = static_cast<std::size_t>(args.x.extents[1]);
  const std::vector<double> x = detail::widened(args.x), weight = detail::widened(args.weight);
  for (std::size_t i = 0; i < truth.out.size(); ++i) {
    const std::size_t t = i / static_cast<std::size_t>(truth.d), o = i % static_cast<std::size_t>(truth.d);
    const detail::uncertain sum = detail::projection(x, t, n_in, weight.data() + o * n_in, 1, rounding);
    truth.out[i] = sum.value + reference::bias_at(args, static_cast<std::int64_t>(o));
    truth.bound[i] = sum.error + rounding.sum * (std::fabs(truth.out[i]) + sum.error);
  }
  return truth;
}

/// What a compensator adds.
inline ffn_truth compensate_exactly(const ffn_args& args, const neuron_compensator& compensator,
                                    arithmetic rounding = {}, const detail::value_rounding& values = {}) {
  rounding = detail::with_weights(rounding, compensator.c1.type);
  ffn_truth truth = detail::zero_truth(args.out);
  const std::size_t d = static_cast<std::size_t>(truth.d);
  const std::size_t width = static_cast<std::size_t>(compensator.c1.extents[1]);
  const std::vector<double> x = detail::widened(args.x), c1 = detail::widened(compensator.c1);
  const std::vector<double> c2 = detail::widened(compensator.c2);
  const double sum_of_hidden =
      detail::sum_error(values.of_sums(rounding), static_cast<std::int64_t>(width) + values.more);
  for (std::int64_t t = 0; t < truth.M; ++t) {
    for (std::size_t j = 0; j < width; ++j) {
      const detail::uncertain hidden =
          detail::projection(x, static_cast<std::size_t>(t), d, c1.data() + j, width, rounding);
      detail::add_neuron(truth, t, values.keep(detail::activated(compensator.act, hidden)), c2.data() + j * d,
                         sum_of_hidden);
    }
  }
  return truth;
}

}}}  // namespace skim::v0_2::testing
