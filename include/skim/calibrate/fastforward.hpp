// SPDX-License-Identifier: Apache-2.0
/// \file Fits FastForward's predictors and compensators to a model, layer by layer (arXiv 2602.00397, section 3). The
/// only part of skim that allocates and throws, with Eigen.
#pragma once

#include <skim/calibrate/fit_layer.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 { namespace calibrate {

/// Takes one block's FFN inputs x [M, d] of one prompt; copies them. Throws std::invalid_argument on what does not fit.
using input_sink = std::function<void(std::int64_t prompt, const tensor_view<const void, 2>& x)>;

/// The engine's part: calls the sink for every block of a layer that would be sparse, so without each prompt's first and
/// last. `fit` asks for each layer once, in ascending order, so that an engine may carry all prompts through its layers
/// side by side and forget what lies behind. Prompts may come in any order, but all layers in the same one.
using input_source = std::function<void(std::int64_t layer, const input_sink& sink)>;

namespace detail {

[[noreturn]] inline void refuse(std::int64_t layer, const std::string& problem) {
  throw std::invalid_argument("calibrate: layer " + std::to_string(layer) + ": " + problem);
}

inline void demand(std::int64_t layer, const skim::report& answer) {
  if (answer.ok()) return;
  char text[256];
  refuse(layer, describe(answer, text, sizeof text));
}

inline ffn_args arguments(const ffn_layer& layer, const tensor_view<const void, 2>& x) {
  ffn_args args;
  args.x = x;
  args.gate = layer.gate;
  args.up = layer.up;
  args.down = layer.down;
  args.act = layer.act;
  return args;
}

inline collected_inputs collect(const ffn_layer& layer, std::int64_t number, const input_source& source) {
  collected_inputs inputs;
  source(number, [&](std::int64_t prompt, const tensor_view<const void, 2>& x) {
    demand(number, skim::detail::check_ffn_input(arguments(layer, x)));
    if (x.extents[0] == 0) return;
    inputs.x.push_back(widened(x));
    inputs.prompt.push_back(prompt);
    if (!inputs.x.back().allFinite()) {
      refuse(number, "an input of prompt " + std::to_string(prompt) + " is not finite");
    }
  });
  return inputs;
}

/// Splits by prompt, so that no held-out block has a neighbour among the training blocks.
inline block_split split_of(const collected_inputs& inputs, std::int64_t layer, const options& settings) {
  std::vector<Eigen::Index> prompts(inputs.prompt.begin(), inputs.prompt.end());
  std::sort(prompts.begin(), prompts.end());
  prompts.erase(std::unique(prompts.begin(), prompts.end()), prompts.end());
  const std::size_t all = prompts.size();
  if (all < 2) refuse(layer, "blocks of " + std::to_string(all) + " prompts came, at least 2 are needed");
  random_numbers(settings.seed).shuffle(prompts);
  const double share = std::ceil(settings.held_out * static_cast<double>(all));
  const std::size_t held_out = (std::min)((std::max)(static_cast<std::size_t>(share), std::size_t{1}), all - 1);
  prompts.resize(held_out);
  block_split split;
  for (std::size_t block = 0; block < inputs.prompt.size(); ++block) {
    const bool judges = std::find(prompts.begin(), prompts.end(), inputs.prompt[block]) != prompts.end();
    (judges ? split.held_out : split.training).push_back(static_cast<Eigen::Index>(block));
  }
  return split;
}

inline void check_options(const options& settings) {
  const auto demand_that = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("calibrate: ") + what);
  };
  demand_that(check(settings.keep).ok(), "options.keep is not valid");
  demand_that(settings.rank >= 0 && settings.rank <= skim::detail::largest_width, "options.rank is out of range");
  demand_that(settings.held_out >= 0 && settings.held_out <= 1, "options.held_out is no share");
  for (const training* part : {&settings.predictor, &settings.compensator}) {
    demand_that(part->epochs >= 0 && part->patience >= 0, "epochs and patience are at least 0");
    demand_that(part->batch >= 1, "a batch has at least 1 block");
    demand_that(part->rate > 0 && part->decay >= 0, "rates are above 0, decays at least 0");
  }
}

/// Whether what an earlier run has fitted may be the beginning of this one's result.
inline bool begins(const fit_result& so_far, const std::vector<ffn_layer>& layers, const options& settings) {
  const fitted_model& model = so_far.model;
  if (model.layers.size() > layers.size() || so_far.reports.size() != model.layers.size()) return false;
  const std::int64_t f = layers[0].up.extents[0], d = layers[0].up.extents[1];
  const std::int64_t r = settings.rank > 0 ? settings.rank : predictor_rank(d), c = compensator_width(d);
  bool fits = model.d == d && model.f == f && model.act == layers[0].act && model.keep.count == settings.keep.count &&
              model.keep.fraction == settings.keep.fraction;
  const auto expect = [&fits](const std::vector<float>& values, std::int64_t count) {
    fits = fits && static_cast<std::int64_t>(values.size()) == count;
  };
  for (const fitted_layer& each : model.layers) {
    expect(each.query, d);
    expect(each.w1, d * r);
    expect(each.w2, r * f);
    expect(each.statistic, f);
    for (const auto* const part : {&each.c1, &each.c2, &each.set_c1, &each.set_c2}) expect(*part, d * c);
  }
  return fits;
}

}  // namespace detail

/// Fits every layer. All layers have one shape and one activation. Holds one layer's inputs at a time, about
/// 8 bytes x tokens x d in all.
///
/// `so_far`: what `options.after_layer` was given by a run that was stopped. Its layers are kept, the source is asked for
/// the others alone, and with equal inputs and options these have the bits that they have in one run. Throws
/// std::invalid_argument, std::bad_alloc, and what the callbacks throw.
inline fit_result fit(const std::vector<ffn_layer>& layers, const input_source& source, const options& settings,
                      executor_ref executor, fit_result so_far = {}) {
  detail::check_options(settings);
  fit_result result = std::move(so_far);
  fitted_model& model = result.model;
  const std::int64_t count = static_cast<std::int64_t>(layers.size());
  if (!model.layers.empty() && !detail::begins(result, layers, settings)) {
    throw std::invalid_argument("calibrate: so_far is of another model or of other options");
  }
  model.keep = settings.keep;
  if (!layers.empty()) {
    model.f = layers[0].up.extents[0];
    model.d = layers[0].up.extents[1];
    model.act = layers[0].act;
  }
  for (std::int64_t number = static_cast<std::int64_t>(model.layers.size()); number < count; ++number) {
    const ffn_layer& layer = layers[static_cast<std::size_t>(number)];
    if (layer.up.extents[0] != model.f || layer.up.extents[1] != model.d || layer.act != model.act) {
      detail::refuse(number, "its shape or activation differs from layer 0's");
    }
    const auto announce = [&](const char* stage, std::int64_t epoch, std::int64_t epochs, double loss) {
      if (settings.report) settings.report({number, count, stage, epoch, epochs, loss});
    };
    announce("inputs", 0, 0, 0);
    const collected_inputs inputs = detail::collect(layer, number, source);
    const block_split split = detail::split_of(inputs, number, settings);
    const ffn_weights weights(layer);
    result.reports.emplace_back();
    detail::layer_fit work(weights, inputs, split, settings, executor);
    const std::uint64_t seed = settings.seed + 1000003 * static_cast<std::uint64_t>(number + 1);
    model.layers.push_back(work.run(seed, announce, result.reports.back()));
    if (settings.after_layer) settings.after_layer(result);
  }
  return result;
}

}}}  // namespace skim::v0_2::calibrate
