// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's parts after fitting, in plain f32 arrays, and the policies that view them. Needs no Eigen: an
/// engine that only loads them (interop/fastforward_file.hpp) needs none either.
#pragma once

#include <skim/neuron_selector/calibrated_set.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/neuron_selector/schedule.hpp>

#include <vector>

namespace skim { inline namespace v0_2 { namespace calibrate {

/// One layer's parts, row-major; c = `compensator_width(d)`, and r the predictor's rank.
struct fitted_layer {
  std::vector<float> query;      ///< [d]
  std::vector<float> w1;         ///< [d, r]
  std::vector<float> w2;         ///< [r, f]
  std::vector<float> c1;         ///< [d, c]
  std::vector<float> c2;         ///< [c, d]
  std::vector<float> statistic;  ///< [f]: the mean over the calibration data
  std::vector<float> set_c1;     ///< [d, c]: the compensator of `calibrated_set`
  std::vector<float> set_c2;     ///< [c, d]
};

/// A model's parts. The policies below view them: neither move nor destroy the model while they are in use.
struct fitted_model {
  std::int64_t d = 0, f = 0;
  activation act = activation::silu;                     ///< the FFN's
  neuron_retention keep = neuron_retention::share(0.5);  ///< what the parts were fitted for
  std::vector<fitted_layer> layers;
  std::vector<float> importance;  ///< [layers], or empty: attention mass for `kept_neurons`, which the engine measures
  /// [levels] and [layers, levels], or empty: `neuron_losses`, which the engine measures.
  std::vector<float> loss_keep, loss;

  /// FastForward for one layer. `compensator` may be emptied, `keep` be changed.
  skim::fastforward fastforward(std::size_t layer) const {
    const fitted_layer& part = layers[layer];
    const std::int64_t r = d > 0 ? static_cast<std::int64_t>(part.w1.size()) / d : 0;
    skim::fastforward policy;
    policy.keep = keep;
    policy.predictor.query = {part.query.data(), {d}, element::f32};
    policy.predictor.w1 = {part.w1.data(), {d, r}, element::f32};
    policy.predictor.w2 = {part.w2.data(), {r, f}, element::f32};
    policy.compensator = compensator(part.c1, part.c2);
    return policy;
  }

  /// For `neurons_for_loss`.
  neuron_losses losses() const {
    return {loss_keep.data(), loss.data(), static_cast<std::int64_t>(layers.size()),
            static_cast<std::int64_t>(loss_keep.size())};
  }

  /// The constant set for one layer, with its own compensator.
  skim::calibrated_set calibrated_set(std::size_t layer) const {
    const fitted_layer& part = layers[layer];
    skim::calibrated_set policy;
    policy.keep = keep;
    policy.statistic = {part.statistic.data(), {f}};
    policy.compensator = compensator(part.set_c1, part.set_c2);
    return policy;
  }

 private:
  neuron_compensator compensator(const std::vector<float>& c1, const std::vector<float>& c2) const {
    const std::int64_t c = compensator_width(d);
    return {{c1.data(), {d, c}, element::f32}, {c2.data(), {c, d}, element::f32}, activation::silu};
  }
};

}}}  // namespace skim::v0_2::calibrate
