// SPDX-License-Identifier: Apache-2.0
/// \file FastForward (arXiv 2602.00397) in plain double loops: the predictor, the compensator, and GRIFFIN's statistic, by
/// which neurons are compared. Each takes the rows of a call as one block. Allocates.
#pragma once

#include <skim/neuron_selector/fastforward.hpp>
#include <skim/reference/ffn.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// The predictor's logits, [f]; tokens with an infinity or NaN have no part; a block without others gives those of a = 0.
inline std::vector<double> predict(const ffn_args& args, const neuron_predictor& predictor) {
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1];
  const std::int64_t rank = predictor.w1.extents[1], f = predictor.w2.extents[1];
  std::vector<double> logits;
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  for (std::int64_t t = 0; t < M; ++t) {
    double sum = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      sum += element_at(args.x, t, i) *
             static_cast<double>(load_element(predictor.query.data, predictor.query.type, predictor.query.offset(i)));
    }
    logits.push_back(sum / std::sqrt(static_cast<double>(d)));
    if (std::isfinite(sum)) largest = (std::max)(largest, logits.back());
  }
  std::vector<double> mean(static_cast<std::size_t>(d)), scores(static_cast<std::size_t>(f));
  for (const double logit : logits) total += std::isfinite(logit) ? std::exp(logit - largest) : 0;
  for (std::int64_t t = 0; t < M; ++t) {
    if (!std::isfinite(logits[static_cast<std::size_t>(t)])) continue;
    const double weight = std::exp(logits[static_cast<std::size_t>(t)] - largest) / total;
    for (std::int64_t i = 0; i < d; ++i) mean[static_cast<std::size_t>(i)] += weight * element_at(args.x, t, i);
  }
  for (std::int64_t j = 0; j < rank; ++j) {
    double hidden = 0;
    for (std::int64_t i = 0; i < d; ++i) hidden += mean[static_cast<std::size_t>(i)] * element_at(predictor.w1, i, j);
    hidden = activate(activation::relu, hidden);
    for (std::int64_t n = 0; n < f; ++n) scores[static_cast<std::size_t>(n)] += hidden * element_at(predictor.w2, j, n);
  }
  return scores;
}

/// What a compensator adds: act(x c1) c2, [M, d].
inline std::vector<double> compensation(const ffn_args& args, const neuron_compensator& compensator) {
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1], width = compensator.c1.extents[1];
  std::vector<double> out(static_cast<std::size_t>(M * d));
  for (std::int64_t t = 0; t < M; ++t) {
    for (std::int64_t j = 0; j < width; ++j) {
      double sum = 0;
      for (std::int64_t i = 0; i < d; ++i) sum += element_at(args.x, t, i) * element_at(compensator.c1, i, j);
      const double value = activate(compensator.act, sum);
      for (std::int64_t c = 0; c < d; ++c) {
        out[static_cast<std::size_t>(t * d + c)] += value * element_at(compensator.c2, j, c);
      }
    }
  }
  return out;
}

/// GRIFFIN's statistic of the block (see `oracle`), [f].
inline std::vector<double> neuron_statistic(const ffn_args& args) {
  const std::size_t M = static_cast<std::size_t>(args.x.extents[0]), f = static_cast<std::size_t>(args.up.extents[0]);
  const std::vector<double> z = neuron_values(args, every_neuron(args));
  std::vector<double> statistic(f);
  for (std::size_t t = 0; t < M; ++t) {
    double square = 0;
    for (std::size_t j = 0; j < f; ++j) square += z[t * f + j] * z[t * f + j];
    if (square == 0 || !std::isfinite(square)) continue;
    for (std::size_t j = 0; j < f; ++j) statistic[j] += z[t * f + j] * z[t * f + j] / square;
  }
  for (double& value : statistic) value = std::sqrt(value);
  return statistic;
}

}}}  // namespace skim::v0_2::reference
