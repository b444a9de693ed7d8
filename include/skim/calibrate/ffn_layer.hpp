// SPDX-License-Identifier: Apache-2.0
/// \file One layer's FFN in f32 matrices: what its neurons contribute to a block, and what leaving some out costs.
#pragma once

#include <skim/ffn.hpp>
#include <skim/math/order.hpp>

SKIM_INTRINSICS_BEGIN
#include <Eigen/Core>
SKIM_INTRINSICS_END

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace skim { inline namespace v0_2 { namespace calibrate {

template <class Scalar>
using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using row = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;

/// One layer's weights, as in `ffn_args`.
struct ffn_layer {
  tensor_view<const void, 2> gate;  ///< [f, d], or empty
  tensor_view<const void, 2> up;    ///< [f, d]
  tensor_view<const void, 2> down;  ///< [f, d]
  activation act = activation::silu;
};

/// A view of any element type, widened.
inline matrix<float> widened(const tensor_view<const void, 2>& view) {
  matrix<float> values(view.extents[0], view.extents[1]);
  for (Eigen::Index i = 0; i < values.rows(); ++i) {
    for (Eigen::Index j = 0; j < values.cols(); ++j)
      values(i, j) = load_element(view.data, view.type, view.offset(i, j));
  }
  return values;
}

/// The same weights in f32.
struct ffn_weights {
  matrix<float> gate, up, down;  // [f, d]; gate may be empty
  activation act = activation::silu;

  explicit ffn_weights(const ffn_layer& layer)
      : gate(layer.gate.data ? widened(layer.gate) : matrix<float>()),
        up(widened(layer.up)),
        down(widened(layer.down)),
        act(layer.act) {}
};

/// values = act(values), element by element.
inline void activate_all(activation act, matrix<float>& values) {
  auto x = values.array();
  switch (act) {
    case activation::silu:
      x = x / (1 + (-x).exp());
      return;
    case activation::gelu_tanh:
      x = x / (1 + (-1.5957691f * (x + 0.044715f * x.cube())).exp());
      return;
    case activation::relu:
      x = (x.max)(0.0f);
      return;
    case activation::relu_squared:
      x = (x.max)(0.0f).square();
      return;
    case activation::gelu_erf:
      break;
  }
  for (Eigen::Index i = 0; i < values.size(); ++i) {
    values.data()[i] = static_cast<float>(activate(act, static_cast<double>(values.data()[i])));
  }
}

/// z [M, f] = act(x gate^T) * (x up^T), or act(x up^T) if there is no gate.
inline matrix<float> neuron_values(const ffn_weights& weights, const matrix<float>& x) {
  matrix<float> up(x.rows(), weights.up.rows());
  up.noalias() = x * weights.up.transpose();
  if (weights.gate.size() == 0) {
    activate_all(weights.act, up);
    return up;
  }
  matrix<float> z(x.rows(), weights.gate.rows());
  z.noalias() = x * weights.gate.transpose();
  activate_all(weights.act, z);
  z.array() *= up.array();
  return z;
}

/// GRIFFIN's statistic [f] of the block that gave z [M, f]; see `oracle`.
inline row<float> neuron_statistic(const matrix<float>& z) {
  row<float> inverse(z.rows());  // of the squared norms
  for (Eigen::Index t = 0; t < z.rows(); ++t) {
    const float square = z.row(t).squaredNorm();
    inverse(t) = square > 0 ? 1 / square : 0;
  }
  row<float> sum(z.cols());
  sum.noalias() = inverse * z.cwiseAbs2();
  return sum.unaryExpr([](float s) { return std::sqrt(s); });  // Eigen's own root differs from processor to processor
}

/// Neurons from strongest to weakest: equal scores in ascending order, NaN last, as every selection of this library.
inline std::vector<std::int32_t> ranked(const row<float>& scores) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(scores.size()));
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = static_cast<std::int32_t>(j);
  std::sort(order.begin(), order.end(), [&scores](std::int32_t a, std::int32_t b) {
    const auto left = rank_bits(scores(a)), right = rank_bits(scores(b));
    return left != right ? left > right : a < b;
  });
  return order;
}

/// [f]: 1 for the `count` strongest neurons, 0 for the others.
inline row<float> strongest(const row<float>& scores, std::int64_t count) {
  row<float> chosen = row<float>::Zero(scores.size());
  const std::vector<std::int32_t> order = ranked(scores);
  for (std::int64_t i = 0; i < count; ++i) chosen(order[static_cast<std::size_t>(i)]) = 1;
  return chosen;
}

/// [M, d]: what the neurons that are not `chosen` [f] would have added to the block's output.
inline matrix<float> left_out(const ffn_weights& weights, const matrix<float>& z, const row<float>& chosen) {
  std::vector<Eigen::Index> rest;
  for (Eigen::Index j = 0; j < chosen.size(); ++j) {
    if (chosen(j) == 0) rest.push_back(j);
  }
  const matrix<float> values = z(Eigen::all, rest), rows = weights.down(rest, Eigen::all);
  matrix<float> missing(z.rows(), weights.down.cols());
  missing.noalias() = values * rows;
  return missing;
}

}}}  // namespace skim::v0_2::calibrate
