// SPDX-License-Identifier: Apache-2.0
/// \file Fits FastForward's predictors and compensators to a model, on generated prompts.
#pragma once

#include "evaluation.hpp"

#include <skim/calibrate/fit_layer.hpp>

namespace needle {

struct calibration_settings {
  prompt_shape shape;
  std::int64_t prompts = 32;
  std::int64_t chunk = 128;
  std::uint64_t seed = 1000;  ///< other prompts than an evaluation's
  double keep = 0.5;
  /// r of the predictors. The paper's d / 16 would be 16 here, too few to beat a constant set in every layer.
  std::int64_t rank = 64;
  /// The chunks that measure the layers' importance: those that end here at the latest. Behind many times the 128 tokens
  /// that do not count, every layer without an attention sink looks alike.
  std::int64_t importance_tokens = 1024;
};

struct calibration {
  skim::calibrate::fitted_model model;
  std::vector<skim::calibrate::layer_report> layers;
};

/// Prefills the prompts densely, keeps what each layer's FFN read, measures the layers' importance, and fits layer by layer.
calibration calibrate(const model& weights, const calibration_settings& settings, const executor& threads,
                      const progress& report);

}  // namespace needle
