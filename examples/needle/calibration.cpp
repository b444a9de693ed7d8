// SPDX-License-Identifier: Apache-2.0
#include "calibration.hpp"

#include "error.hpp"

#include <skim/calibrate/fastforward.hpp>
#include <skim/cpu/attention_importance.hpp>

#include <algorithm>

namespace needle {
namespace {

/// What the FFN of one layer read: blocks of bf16, half the memory of f32.
struct recorded_block {
  std::int64_t prompt, rows;
  std::vector<skim::bf16> x;  // [rows, d]
};

/// Listens to the dense prefill of all prompts.
class recorder {
 public:
  recorder(const model& weights, const executor& threads)
      : blocks_(weights.layers.size()), importance_(weights.layers.size()), threads_(threads) {}

  void prefill(const model& weights, const calibration_settings& settings, const prompt& text, std::int64_t number) {
    const session_options options{settings.shape.tokens - 1, settings.chunk, skim::element::bf16, 0};
    session run(weights, parse_method("dense"), options, threads_);
    run.listen(
        [&](std::int64_t layer, const skim::tensor_view<const void, 2>& x, bool always_dense) {
          if (!always_dense) record(layer, number, x);
        },
        [&](std::int64_t layer, const skim::attention_args& args, bool) {
          if (args.kv.tokens <= settings.importance_tokens) measure(layer, args);
        });
    run.feed({text.tokens.begin(), text.tokens.end() - 1});
  }

  /// Hands a layer's blocks to the fit and forgets them.
  void replay(std::int64_t layer, const skim::calibrate::input_sink& sink) {
    std::vector<recorded_block> blocks;
    blocks.swap(blocks_[static_cast<std::size_t>(layer)]);
    for (const recorded_block& block : blocks) {
      const std::int64_t d = static_cast<std::int64_t>(block.x.size()) / block.rows;
      sink(block.prompt, skim::tensor_view<const skim::bf16, 2>(block.x.data(), {block.rows, d}));
    }
  }

  std::vector<float> importance() const { return {importance_.begin(), importance_.end()}; }

 private:
  void record(std::int64_t layer, std::int64_t prompt, const skim::tensor_view<const void, 2>& x) {
    recorded_block block{prompt, x.extents[0], {}};
    block.x.reserve(static_cast<std::size_t>(x.extents[0] * x.extents[1]));
    for (std::int64_t t = 0; t < x.extents[0]; ++t) {
      for (std::int64_t i = 0; i < x.extents[1]; ++i) {
        block.x.push_back(skim::from_float<skim::bf16>(skim::load_element(x.data, x.type, x.offset(t, i))));
      }
    }
    blocks_[static_cast<std::size_t>(layer)].push_back(std::move(block));
  }

  void measure(std::int64_t layer, const skim::attention_args& attended) {
    skim::attention_importance_args args;
    args.attended = attended;
    args.sum = &importance_[static_cast<std::size_t>(layer)];
    const skim::cpu::attention_importance op;
    scratch_.reserve(op.workspace_bytes(args, threads_.concurrency()));
    char text[256];
    if (const skim::report answer = op.run(args, scratch_, threads_); !answer) {
      throw error(skim::describe(answer, text, sizeof text));
    }
  }

  std::vector<std::vector<recorded_block>> blocks_;  // [layers]
  std::vector<double> importance_;                   // [layers]
  executor threads_;
  skim::buffer scratch_;
};

skim::calibrate::ffn_layer ffn_weights_of(const layer_weights& layer) {
  skim::calibrate::ffn_layer weights;
  weights.gate = layer.gate.view;
  weights.up = layer.up.view;
  weights.down = layer.down.view;
  return weights;
}

}  // namespace

calibration calibrate(const model& weights, const calibration_settings& settings, const executor& threads,
                      const progress& report) {
  if (settings.prompts < 2) throw error("calibration needs at least 2 prompts: some judge what the others teach");
  if (!(settings.keep > 0 && settings.keep <= 1)) {  // NaN passes the command line's range
    throw error("keep is " + std::to_string(settings.keep) + ", expected a number above 0 and at most 1");
  }
  if (settings.shape.tokens <= 2 * settings.chunk + 1) {
    throw error("a prompt of " + std::to_string(settings.shape.tokens) +
                " tokens has no chunk between its first and its last");
  }
  const std::int64_t layers = weights.config.layers, all = settings.prompts + layers;
  recorder records(weights, threads);
  prompt_source source(settings.seed);
  for (std::int64_t number = 0; number < settings.prompts; ++number) {
    report(number, all, "prefilling prompt " + std::to_string(number + 1));
    records.prefill(weights, settings, source.next(settings.shape), number);
  }
  std::vector<skim::calibrate::ffn_layer> ffns;
  for (const layer_weights& layer : weights.layers) ffns.push_back(ffn_weights_of(layer));
  skim::calibrate::options how;
  how.keep = skim::neuron_retention::share(settings.keep);
  how.rank = settings.rank;
  how.seed = settings.seed;
  how.report = [&](const skim::calibrate::progress& at) {
    std::string stage = "layer " + std::to_string(at.layer + 1) + ", " + at.stage;
    if (at.epochs > 0) stage += ", epoch " + std::to_string(at.epoch) + " of " + std::to_string(at.epochs);
    report(settings.prompts + at.layer, all, stage);
  };
  skim::calibrate::fit_result fitted = skim::calibrate::fit(
      ffns, [&](std::int64_t layer, const skim::calibrate::input_sink& sink) { records.replay(layer, sink); }, how,
      threads);
  report(all, all, "");
  fitted.model.importance = records.importance();
  return {std::move(fitted.model), std::move(fitted.reports)};
}

}  // namespace needle
