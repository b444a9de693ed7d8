// SPDX-License-Identifier: Apache-2.0
/// \file What FastForward's two parts are fitted to, with gradients (arXiv 2602.00397, section 3). Templates on the
/// scalar, so that tests can differentiate in double.
#pragma once

#include <skim/calibrate/ffn_layer.hpp>

#include <cmath>
#include <utility>

namespace skim { inline namespace v0_2 { namespace calibrate {

/// A part's parameters lie one after another in one row, which is what the optimiser sees.
template <class Scalar>
struct predictor_parameters {
  Eigen::Index d = 0, r = 0, f = 0;
  row<Scalar> values;

  predictor_parameters(Eigen::Index width, Eigen::Index rank, Eigen::Index neurons)
      : d(width), r(rank), f(neurons), values(row<Scalar>::Zero(d + d * r + r * f)) {}

  auto query() { return Eigen::Map<row<Scalar>>(values.data(), d); }                 // [d]
  auto w1() { return Eigen::Map<matrix<Scalar>>(values.data() + d, d, r); }          // [d, r]
  auto w2() { return Eigen::Map<matrix<Scalar>>(values.data() + d + d * r, r, f); }  // [r, f]
  auto query() const { return Eigen::Map<const row<Scalar>>(values.data(), d); }
  auto w1() const { return Eigen::Map<const matrix<Scalar>>(values.data() + d, d, r); }
  auto w2() const { return Eigen::Map<const matrix<Scalar>>(values.data() + d + d * r, r, f); }
};

template <class Scalar>
struct compensator_parameters {
  Eigen::Index d = 0, c = 0;
  row<Scalar> values;

  compensator_parameters(Eigen::Index width, Eigen::Index hidden)
      : d(width), c(hidden), values(row<Scalar>::Zero(2 * d * c)) {}

  auto c1() { return Eigen::Map<matrix<Scalar>>(values.data(), d, c); }          // [d, c]
  auto c2() { return Eigen::Map<matrix<Scalar>>(values.data() + d * c, c, d); }  // [c, d]
  auto c1() const { return Eigen::Map<const matrix<Scalar>>(values.data(), d, c); }
  auto c2() const { return Eigen::Map<const matrix<Scalar>>(values.data() + d * c, c, d); }
};

/// How blocks are labelled. A label is y and its weight in one number: +weight for y = 1, -weight for y = 0.
enum class labeling {
  /// The paper's: the K neurons that the oracle keeps have y = 1, in fifths from the strongest to the weakest with weights
  /// 32, 16, 8, 4 and 2; the others y = 0 and weight 1. (The paper writes of the top half, and keeps half.)
  fifths,
  /// What a wrong choice costs: with e what a neuron adds to the output, (statistic * |row of the down projection|)^2 as a
  /// share of its sum over neurons, and t the K-th largest mean of e over the blocks, y = 1 where e > t, with weight
  /// |e / t - 1|, at most 100. A logit is then above 0 where the expected share is above t, and the best constant logits
  /// keep the K neurons of largest mean share.
  margin,
};

/// The label of the `fifths` kind of one block: [f] from statistic [f].
inline row<float> fifth_labels(const row<float>& statistic, std::int64_t count) {
  row<float> labels = row<float>::Constant(statistic.size(), -1);
  const std::vector<std::int32_t> order = ranked(statistic);
  for (std::int64_t i = 0; i < count; ++i) {
    labels(order[static_cast<std::size_t>(i)]) = static_cast<float>(32 >> (i * 5 / count));
  }
  return labels;
}

/// e of `margin` for each block: [B, f] from statistics [B, f] and the lengths of the down projection's rows [f]. A block
/// whose tokens are all zero has none.
inline matrix<float> energy_shares(const matrix<float>& statistics, const row<float>& lengths) {
  matrix<float> shares = statistics.array().rowwise() * lengths.array();
  shares = shares.cwiseAbs2();
  for (Eigen::Index block = 0; block < shares.rows(); ++block) {
    const float sum = shares.row(block).sum();
    if (sum > 0) shares.row(block) /= sum;
  }
  return shares;
}

/// Labels [B, f] of blocks with these statistics [B, f], of neurons whose down projection has rows of these lengths [f];
/// t is found on the blocks of `training`.
inline matrix<float> neuron_labels(const matrix<float>& statistics, const row<float>& lengths, std::int64_t count,
                                   labeling rule, const std::vector<Eigen::Index>& training) {
  if (rule == labeling::fifths) {
    matrix<float> labels(statistics.rows(), statistics.cols());
    for (Eigen::Index block = 0; block < labels.rows(); ++block)
      labels.row(block) = fifth_labels(statistics.row(block), count);
    return labels;
  }
  constexpr float largest = 100;  // one neuron of one block must not outweigh a batch
  const matrix<float> shares = energy_shares(statistics, lengths);
  row<float> mean = row<float>::Zero(shares.cols());
  for (const Eigen::Index block : training) mean += shares.row(block);
  mean /= static_cast<float>(training.size());
  const float threshold = mean(ranked(mean)[static_cast<std::size_t>(count - 1)]);
  if (!(threshold > 0)) return shares.cwiseSign() * largest;  // fewer than K neurons are ever active
  return ((shares.array() / threshold - 1).min)(largest);
}

/// Tokens weighted by a softmax over one block, and the weights: a [d], w [M].
template <class Scalar>
struct pooled_block {
  row<Scalar> mean, weights;
};

template <class Scalar>
pooled_block<Scalar> pool(const predictor_parameters<Scalar>& parameters, const matrix<Scalar>& x) {
  pooled_block<Scalar> pooled;
  pooled.weights.noalias() = parameters.query() * x.transpose() / std::sqrt(static_cast<Scalar>(parameters.d));
  if (x.rows() > 0) pooled.weights.array() -= pooled.weights.maxCoeff();
  pooled.weights = pooled.weights.array().exp();
  pooled.weights /= pooled.weights.sum();
  pooled.mean.noalias() = pooled.weights * x;
  return pooled;
}

/// The predictor's logits of one block, [f].
template <class Scalar>
row<Scalar> logits(const predictor_parameters<Scalar>& parameters, const matrix<Scalar>& x) {
  const row<Scalar> hidden = (pool(parameters, x).mean * parameters.w1()).cwiseMax(Scalar(0));
  return hidden * parameters.w2();
}

/// Weighted binary cross-entropy of logits [B, f] under labels [B, f] (see `labeling`), summed. `gradient`, where given:
/// d loss / d logits.
template <class Scalar>
Scalar cross_entropy(const matrix<Scalar>& scores, const matrix<Scalar>& labels, matrix<Scalar>* gradient) {
  const matrix<Scalar> margin = scores.array() * labels.array().sign();
  // log(1 + exp(-m)) = max(-m, 0) + log(1 + exp(-|m|)): exp never overflows.
  const matrix<Scalar> tail = (-margin.array().abs()).exp();
  if (gradient) {
    const auto wrong = (margin.array() > 0).select(tail.array(), Scalar(1)) / (1 + tail.array());  // 1 / (1 + exp(m))
    *gradient = -labels.array() * wrong;
  }
  return (labels.array().abs() * (((-margin.array()).max)(Scalar(0)) + tail.array().log1p())).sum();
}

/// The predictor's loss, summed over blocks x[i] [M, d] with labels [B, f]. Adds its gradient to `gradient`, if given.
template <class Scalar>
Scalar predictor_loss(const predictor_parameters<Scalar>& parameters, const std::vector<const matrix<Scalar>*>& x,
                      const matrix<Scalar>& labels, predictor_parameters<Scalar>* gradient) {
  const Eigen::Index blocks = static_cast<Eigen::Index>(x.size());
  std::vector<pooled_block<Scalar>> pooled;
  matrix<Scalar> means(blocks, parameters.d);
  for (Eigen::Index b = 0; b < blocks; ++b) {
    pooled.push_back(pool(parameters, *x[static_cast<std::size_t>(b)]));
    means.row(b) = pooled.back().mean;
  }
  const matrix<Scalar> hidden = (means * parameters.w1()).cwiseMax(Scalar(0));  // [B, r]
  const matrix<Scalar> scores = hidden * parameters.w2();                       // [B, f]
  if (!gradient) return cross_entropy<Scalar>(scores, labels, nullptr);

  matrix<Scalar> by_score;  // [B, f]
  const Scalar loss = cross_entropy(scores, labels, &by_score);
  gradient->w2().noalias() += hidden.transpose() * by_score;
  matrix<Scalar> by_hidden = by_score * parameters.w2().transpose();  // [B, r]
  by_hidden = (hidden.array() > 0).select(by_hidden, Scalar(0));
  gradient->w1().noalias() += means.transpose() * by_hidden;
  const matrix<Scalar> by_mean = by_hidden * parameters.w1().transpose();  // [B, d]
  for (Eigen::Index b = 0; b < blocks; ++b) {
    const pooled_block<Scalar>& block = pooled[static_cast<std::size_t>(b)];
    const matrix<Scalar>& tokens = *x[static_cast<std::size_t>(b)];
    row<Scalar> by_weight = by_mean.row(b) * tokens.transpose();  // [M]
    by_weight.array() -= by_mean.row(b).dot(block.mean);
    by_weight = by_weight.cwiseProduct(block.weights) / std::sqrt(static_cast<Scalar>(parameters.d));
    gradient->query().noalias() += by_weight * tokens;
  }
  return loss;
}

/// What a compensator adds to one block: silu(x c1) c2, [M, d].
template <class Scalar>
matrix<Scalar> compensation(const compensator_parameters<Scalar>& parameters, const matrix<Scalar>& x) {
  const matrix<Scalar> hidden = x * parameters.c1();
  return (hidden.array() / (1 + (-hidden.array()).exp())).matrix() * parameters.c2();
}

/// The compensator's loss of one block: |compensation(x) - missing|^2, summed over x [M, d]. Adds its gradient.
template <class Scalar>
Scalar compensator_loss(const compensator_parameters<Scalar>& parameters, const matrix<Scalar>& x,
                        const matrix<Scalar>& missing, compensator_parameters<Scalar>* gradient) {
  matrix<Scalar> hidden(x.rows(), parameters.c);
  hidden.noalias() = x * parameters.c1();
  const matrix<Scalar> sigmoid = (1 + (-hidden.array()).exp()).inverse();
  const matrix<Scalar> active = hidden.cwiseProduct(sigmoid);
  matrix<Scalar> error = -missing;
  error.noalias() += active * parameters.c2();
  if (gradient) {
    gradient->c2().noalias() += 2 * active.transpose() * error;
    matrix<Scalar> by_active(x.rows(), parameters.c);
    by_active.noalias() = 2 * error * parameters.c2().transpose();
    by_active.array() *= sigmoid.array() * (1 + hidden.array() * (1 - sigmoid.array()));
    gradient->c1().noalias() += x.transpose() * by_active;
  }
  return error.squaredNorm();
}

}}}  // namespace skim::v0_2::calibrate
