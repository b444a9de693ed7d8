// SPDX-License-Identifier: Apache-2.0
/// \file Fits FastForward's predictors and compensators to a model, on prompts of generated or real text.
#pragma once

#include "evaluation.hpp"

#include <skim/calibrate/fit_layer.hpp>

#include <filesystem>

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
  /// Prompts beside the others, and their first tokens, on which each layer's loss is measured at each share of neurons.
  std::int64_t loss_prompts = 2;
  std::int64_t loss_tokens = 640;
  std::vector<float> loss_keep = {0.5f, 0.7f, 0.85f, 0.95f};
  std::filesystem::path scratch = ".";  ///< the directory for what the layers' FFNs read
};

/// All layers, or the first ones. The importance of all, and the losses of those that are there.
struct calibration {
  skim::calibrate::fitted_model model;
  std::vector<skim::calibrate::layer_report> layers;
};

/// Gives the tokens of one prompt after another: first those to fit to, then those that measure losses.
using token_source = std::function<std::vector<std::int32_t>()>;

/// Windows of texts, each of `tokens` tokens, `begin` included: consecutive, without overlap, in an order that the seed
/// shuffles, so that any number of them is a sample of all.
class text_windows {
 public:
  text_windows(std::vector<std::vector<std::int32_t>> texts, std::vector<std::int32_t> begin, std::int64_t tokens,
               std::uint64_t seed);
  std::int64_t count() const { return static_cast<std::int64_t>(starts_.size()); }
  /// The `number`th, below `count()`.
  std::vector<std::int32_t> window(std::int64_t number) const;

 private:
  struct start {
    std::size_t text, token;
  };
  std::vector<std::vector<std::int32_t>> texts_;
  std::vector<std::int32_t> begin_;
  std::size_t length_;  // of text in a window
  std::vector<start> starts_;
};

/// Throws `error` where these settings cannot be, or would take more memory than the fit may have, or more disk than there is.
void check(const calibration_settings& settings, const model_config& config);

/// Prefills the prompts densely, keeps what each layer's FFN read in a file without a name, measures the layers' importance,
/// and fits layer by layer, each followed by its losses. `so_far`: what `after_layer` was given by a run that was stopped;
/// the same settings and prompts then end with the same bits as one run. `after_layer` may be empty.
calibration calibrate(const model& weights, const calibration_settings& settings, const token_source& next,
                      const executor& threads, const progress& report, calibration so_far = {},
                      const std::function<void(const calibration& so_far)>& after_layer = {});

}  // namespace needle
