// SPDX-License-Identifier: Apache-2.0
/// \file Fits a predictor. It has no biases, and the constant answer is the one to beat: so it starts from that.
#pragma once

#include <skim/calibrate/descend.hpp>
#include <skim/calibrate/losses.hpp>

SKIM_INTRINSICS_BEGIN
#include <Eigen/Cholesky>
SKIM_INTRINSICS_END

namespace skim { inline namespace v0_2 { namespace calibrate {

namespace detail {

/// The best logits [f] that do not look at the block, one count of either label added: the log of the weights' ratio.
inline row<float> constant_logits(const matrix<float>& labels, const std::vector<Eigen::Index>& blocks) {
  row<float> up = row<float>::Ones(labels.cols()), down = row<float>::Ones(labels.cols());
  for (const Eigen::Index block : blocks) {
    up += labels.row(block).cwiseMax(0.0f);
    down -= labels.row(block).cwiseMin(0.0f);
  }
  return (up.array() / down.array()).log();
}

/// A predictor that answers `constant_logits`, more or less, and whose other hidden units look in random directions. The
/// direction m with a . m = 1 for all blocks stands in for the missing biases: the first unit is m alone, and the others
/// get enough of it to be active for most blocks. Where the inputs have no such direction, m explains what it can.
inline predictor_parameters<float> predictor_start(const std::vector<matrix<float>>& x, const matrix<float>& labels,
                                                   Eigen::Index rank, const descent& plan) {
  const Eigen::Index d = x[0].cols();
  const std::vector<Eigen::Index>& blocks = plan.split->training;
  predictor_parameters<float> start(d, rank, labels.cols());
  matrix<float> means(static_cast<Eigen::Index>(blocks.size()), d);
  for (Eigen::Index i = 0; i < means.rows(); ++i) {
    means.row(i) = x[static_cast<std::size_t>(blocks[static_cast<std::size_t>(i)])].colwise().mean();
  }
  const row<float> centre = means.colwise().mean();
  matrix<float> square = means.transpose() * means;
  square.diagonal().array() += 1e-3f * square.trace() / static_cast<float>(d) + 1e-20f;
  const row<float> one = square.llt().solve(means.colwise().sum().transpose()).transpose();
  start.w1().col(0) = one;
  start.w2().row(0) = constant_logits(labels, blocks);
  // A unit that changes by about 1 from block to block.
  const double spread =
      std::sqrt(static_cast<double>((means.rowwise() - centre).squaredNorm()) / static_cast<double>(means.rows()));
  random_numbers random(plan.seed);
  const double size = spread > 0 ? std::sqrt(3.0) / spread : 0;
  for (Eigen::Index k = 1; k < rank; ++k) {
    row<float> direction(d);
    for (Eigen::Index i = 0; i < d; ++i) direction(i) = static_cast<float>(size * random.symmetric());
    start.w1().col(k) = (direction + (1 - direction.dot(centre)) * one).transpose();
  }
  return start;
}

}  // namespace detail

/// The predictor of rank `rank` for the blocks' labels [B, f] (see `labeling`) from their tokens x[b] [M, d].
inline predictor_parameters<float> fit_predictor(const std::vector<matrix<float>>& x, const matrix<float>& labels,
                                                 Eigen::Index rank, descent plan, executor_ref executor) {
  double weight = 0;
  for (const Eigen::Index block : plan.split->training)
    weight += static_cast<double>(labels.row(block).cwiseAbs().sum());
  plan.unit = weight > 0 ? weight / static_cast<double>(plan.split->training.size()) : 1;
  predictor_parameters<float> parameters = detail::predictor_start(x, labels, rank, plan);
  const auto loss = [&](const predictor_parameters<float>& now, const Eigen::Index* blocks, Eigen::Index count,
                        predictor_parameters<float>* gradient) {
    std::vector<const matrix<float>*> tokens;
    matrix<float> wanted(count, labels.cols());
    for (Eigen::Index i = 0; i < count; ++i) {
      tokens.push_back(&x[static_cast<std::size_t>(blocks[i])]);
      wanted.row(i) = labels.row(blocks[i]);
    }
    return static_cast<double>(predictor_loss(now, tokens, wanted, gradient));
  };
  descend(parameters, loss, plan, executor);
  return parameters;
}

}}}  // namespace skim::v0_2::calibrate
