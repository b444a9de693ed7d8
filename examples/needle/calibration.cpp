// SPDX-License-Identifier: Apache-2.0
#include "calibration.hpp"

#include "error.hpp"
#include "method_parts.hpp"
#include "unnamed_file.hpp"

#include <skim/calibrate/fastforward.hpp>
#include <skim/cpu/attention_importance.hpp>

#include <algorithm>
#include <cstring>

namespace needle {
namespace {

constexpr double most_memory = 2e9;  // bytes, above the model

/// Where the blocks lie that the FFN of one layer read: bf16, half the disk of f32.
struct recorded_block {
  std::int64_t prompt, rows, from;
};

/// Listens to the dense prefill of all prompts.
class recorder {
 public:
  /// Records layers from `first` on.
  recorder(const model& weights, const calibration_settings& settings, std::int64_t first, const executor& threads)
      : first_(first),
        settings_(settings),
        inputs_(settings.scratch),
        blocks_(weights.layers.size()),
        importance_(weights.layers.size()),
        threads_(threads) {}

  void prefill(const model& weights, const std::vector<std::int32_t>& tokens, std::int64_t number) {
    const session_options options{static_cast<std::int64_t>(tokens.size()), settings_.chunk, skim::element::bf16, 0};
    session run(weights, parse_method("dense"), options, threads_);
    run.listen(
        [&](std::int64_t layer, const skim::tensor_view<const void, 2>& x, bool always_dense) {
          if (!always_dense && layer >= first_) record(layer, number, x);
        },
        [&](std::int64_t layer, const skim::attention_args& args, bool) {
          if (args.kv.tokens <= settings_.importance_tokens) measure(layer, args);
        });
    run.feed(tokens);
  }

  /// Hands a layer's blocks to the fit.
  void replay(std::int64_t layer, const skim::calibrate::input_sink& sink) {
    for (const recorded_block& block : blocks_[static_cast<std::size_t>(layer)]) {
      values_.resize(static_cast<std::size_t>(block.rows) * width_);
      inputs_.read(block.from, values_.data(), values_.size() * sizeof(skim::bf16));
      const std::int64_t d = static_cast<std::int64_t>(width_);
      sink(block.prompt, skim::tensor_view<const skim::bf16, 2>(values_.data(), {block.rows, d}));
    }
  }

  std::vector<float> importance() const { return {importance_.begin(), importance_.end()}; }

 private:
  void record(std::int64_t layer, std::int64_t prompt, const skim::tensor_view<const void, 2>& x) {
    width_ = static_cast<std::size_t>(x.extents[1]);
    values_.clear();
    for (std::int64_t t = 0; t < x.extents[0]; ++t) {
      for (std::int64_t i = 0; i < x.extents[1]; ++i) {
        values_.push_back(skim::from_float<skim::bf16>(skim::load_element(x.data, x.type, x.offset(t, i))));
      }
    }
    const std::int64_t from = inputs_.append(values_.data(), values_.size() * sizeof(skim::bf16));
    blocks_[static_cast<std::size_t>(layer)].push_back({prompt, x.extents[0], from});
  }

  void measure(std::int64_t layer, const skim::attention_args& attended) {
    skim::attention_importance_args args;
    args.attended = attended;
    args.sum = &importance_[static_cast<std::size_t>(layer)];
    const skim::cpu::attention_importance op;
    scratch_.reserve(op.workspace_bytes(args, threads_.concurrency()));
    demand(op.run(args, scratch_, threads_));
  }

  const std::int64_t first_;
  const calibration_settings& settings_;
  unnamed_file inputs_;
  std::size_t width_ = 0;                            // d
  std::vector<skim::bf16> values_;                   // of one block
  std::vector<std::vector<recorded_block>> blocks_;  // [layers]
  std::vector<double> importance_;                   // [layers]
  executor threads_;
  skim::buffer scratch_;
};

/// What a model's predictions lose by a method, in nats: KL(dense || method), the mean over positions of text. It is what
/// the method would add to the loss of text that the model itself had written, and is told from the noise on few tokens.
class loss_meter {
 public:
  loss_meter(const model& weights, const calibration_settings& settings, std::vector<std::vector<std::int32_t>> windows,
             const executor& threads)
      : weights_(weights), settings_(settings), windows_(std::move(windows)), threads_(threads) {
    prefill(parse_method("dense"), [&](const matrix& logits) { dense_.push_back(logits); });
  }

  double loss(const method& how) const {
    double sum = 0, count = 0;
    std::size_t at = 0;
    prefill(how, [&](const matrix& logits) {
      const matrix& dense = dense_[at++];
      for (Eigen::Index i = 0; i < logits.rows(); ++i) sum += divergence(dense.row(i), logits.row(i));
      count += static_cast<double>(logits.rows());
    });
    return sum / count;
  }

 private:
  using values = Eigen::Array<double, 1, Eigen::Dynamic>;

  static values log_softmax(const row& logits) {
    const values wide = logits.cast<double>().array() - static_cast<double>(logits.maxCoeff());
    return wide - std::log(wide.exp().sum());
  }

  static double divergence(const row& dense, const row& other) {
    const values p = log_softmax(dense);
    return (p.exp() * (p - log_softmax(other))).sum();
  }

  /// Calls `visit` with the logits of some positions of each chunk but the first, which no method computes sparsely.
  template <class Visit>
  void prefill(const method& how, const Visit& visit) const {
    constexpr std::int64_t positions = 16;  // side by side, since one product has them all
    for (const std::vector<std::int32_t>& window : windows_) {
      const session_options options{static_cast<std::int64_t>(window.size()), settings_.chunk, skim::element::bf16, 0};
      session run(weights_, how, options, threads_);
      run.feed(window, [&](std::int64_t first, std::int64_t count) {
        const std::int64_t rows = std::min(count, positions);
        if (first > 0) visit(run.logits(first + count - rows, rows));
      });
    }
  }

  const model& weights_;
  const calibration_settings& settings_;
  std::vector<std::vector<std::int32_t>> windows_;
  executor threads_;
  std::vector<matrix> dense_;  // logits, in the order of the visits
};

/// Dense, but for one layer without its compensator.
method sparse_in(std::int64_t layer, const skim::calibrate::fitted_model& fitted, float keep) {
  method how = parse_method("dense");
  skim::fastforward policy = fitted.fastforward(static_cast<std::size_t>(layer));
  policy.keep = skim::neuron_retention::share(static_cast<double>(keep));
  policy.compensator = {};
  how.make_ffns = make_dense_ffns_but(layer, policy);
  return how;
}

skim::calibrate::ffn_layer ffn_weights_of(const layer_weights& layer, const model_config& config) {
  skim::calibrate::ffn_layer weights;
  weights.gate = layer.gate.view;
  weights.up = layer.up.view;
  weights.down = layer.down.view;
  weights.act = config.activation;
  return weights;
}

/// Steps for the progress, each of which takes about as long as one prompt's prefill.
class step_counter {
 public:
  step_counter(const calibration_settings& settings, std::int64_t layers, std::int64_t open, const progress& report)
      : prompts_(settings.prompts), report_(report) {
    constexpr double fit_by_prefill = 2;  // how much longer all layers' fits take than the prefill of their inputs
    const double share = static_cast<double>(settings.prompts) / static_cast<double>(layers);
    fit_ = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(fit_by_prefill * share)));
    const double tokens = static_cast<double>(settings.loss_prompts * settings.loss_tokens) *
                          static_cast<double>(settings.loss_keep.size());
    loss_ = static_cast<std::int64_t>(std::ceil(tokens / static_cast<double>(settings.shape.tokens)));
    all_ = prompts_ + open * (fit_ + loss_);
  }

  void prompt(std::int64_t number) { report_(number, all_, "prefilling prompt " + std::to_string(number + 1)); }

  void fit(const skim::calibrate::progress& at) {
    static const char* const stages[] = {"inputs", "compensator", "predictor", "predicted", "constant"};
    std::string text = "layer " + std::to_string(at.layer + 1) + ", " + at.stage;
    if (at.epochs > 0) text += ", epoch " + std::to_string(at.epoch) + " of " + std::to_string(at.epochs);
    double stage = -1;
    for (const char* each : stages) {
      if (std::strcmp(each, at.stage) == 0) break;
      ++stage;
    }
    stage += at.epochs > 0 ? static_cast<double>(at.epoch) / static_cast<double>(at.epochs) : 1;
    const double done = static_cast<double>(fit_) * std::max(stage, 0.0) / 4;
    report_(prompts_ + layers_done_ * (fit_ + loss_) + static_cast<std::int64_t>(done), all_, text);
  }

  void loss(std::int64_t layer) {
    report_(prompts_ + layers_done_ * (fit_ + loss_) + fit_, all_, "layer " + std::to_string(layer + 1) + ", losses");
  }

  void layer_done() { ++layers_done_; }
  void end() { report_(all_, all_, ""); }

 private:
  std::int64_t prompts_, layers_done_ = 0, fit_ = 1, loss_ = 1, all_ = 1;
  const progress& report_;
};

/// What was fitted, with what the engine has measured.
calibration with_measures(const skim::calibrate::fit_result& fitted, const skim::calibrate::fitted_model& measured) {
  calibration all{fitted.model, fitted.reports};
  all.model.importance = measured.importance;
  all.model.loss_keep = measured.loss_keep;
  all.model.loss = measured.loss;
  return all;
}

}  // namespace

text_windows::text_windows(std::vector<std::vector<std::int32_t>> texts, std::vector<std::int32_t> begin,
                           std::int64_t tokens, std::uint64_t seed)
    : texts_(std::move(texts)), begin_(std::move(begin)) {
  if (tokens <= static_cast<std::int64_t>(begin_.size())) throw error("a window has no room for text");
  length_ = static_cast<std::size_t>(tokens) - begin_.size();
  for (std::size_t text = 0; text < texts_.size(); ++text) {
    for (std::size_t token = 0; token + length_ <= texts_[text].size(); token += length_)
      starts_.push_back({text, token});
  }
  std::mt19937_64 bits(seed);
  for (std::size_t i = starts_.size(); i > 1; --i) std::swap(starts_[i - 1], starts_[bits() % i]);
}

std::vector<std::int32_t> text_windows::window(std::int64_t number) const {
  const start& at = starts_[static_cast<std::size_t>(number)];
  const auto first = texts_[at.text].begin() + static_cast<std::ptrdiff_t>(at.token);
  std::vector<std::int32_t> tokens = begin_;
  tokens.insert(tokens.end(), first, first + static_cast<std::ptrdiff_t>(length_));
  return tokens;
}

void check(const calibration_settings& settings, const model_config& config) {
  if (settings.prompts < 2) throw error("calibration needs at least 2 prompts: some judge what the others teach");
  if (!(settings.keep > 0 && settings.keep <= 1)) {  // NaN passes the command line's range
    throw error("keep is " + std::to_string(settings.keep) + ", expected a number above 0 and at most 1");
  }
  if (settings.shape.tokens <= 2 * settings.chunk + 1) {
    throw error("a prompt of " + std::to_string(settings.shape.tokens) +
                " tokens has no chunk between its first and its last");
  }
  // One layer's inputs, and what its neurons leave out, in f32; four numbers for each of its neurons and blocks.
  const double recorded = static_cast<double>(settings.shape.tokens - 2 * settings.chunk);  // of a prompt's tokens
  const double d = static_cast<double>(config.d), blocks = std::ceil(recorded / static_cast<double>(settings.chunk));
  const double memory = recorded * d * 8 + blocks * static_cast<double>(config.f) * 16;  // for each prompt
  if (static_cast<double>(settings.prompts) * memory > most_memory) {
    throw error("the fit would need more than 2 GB beside the model, expected at most " +
                std::to_string(static_cast<std::int64_t>(most_memory / memory)) + " prompts of that context");
  }
  const double disk = static_cast<double>(settings.prompts * config.layers) * recorded * d * 2;
  std::error_code code;
  const std::filesystem::space_info space = std::filesystem::space(settings.scratch, code);
  if (!code && disk > static_cast<double>(space.available)) {
    throw error(settings.scratch.string() + ": has no room for " +
                std::to_string(static_cast<std::int64_t>(disk / 1e6)) +
                " MB, which the calibration needs while it runs");
  }
}

calibration calibrate(const model& weights, const calibration_settings& settings, const token_source& next,
                      const executor& threads, const progress& report, calibration so_far,
                      const std::function<void(const calibration& so_far)>& after_layer) {
  check(settings, weights.config);
  const std::int64_t layers = weights.config.layers, first = static_cast<std::int64_t>(so_far.layers.size());
  if (first == layers) return so_far;
  step_counter steps(settings, layers, layers - first, report);
  recorder records(weights, settings, first, threads);
  for (std::int64_t number = 0; number < settings.prompts; ++number) {
    steps.prompt(number);
    records.prefill(weights, next(), number);
  }
  std::vector<std::vector<std::int32_t>> judges;
  for (std::int64_t number = 0; number < settings.loss_prompts; ++number) {
    judges.push_back(next());
    judges.back().resize(std::min(judges.back().size(), static_cast<std::size_t>(settings.loss_tokens)));
  }
  const loss_meter meter(weights, settings, std::move(judges), threads);

  so_far.model.importance = records.importance();
  so_far.model.loss_keep = settings.loss_keep;
  std::vector<skim::calibrate::ffn_layer> ffns;
  for (const layer_weights& layer : weights.layers) ffns.push_back(ffn_weights_of(layer, weights.config));
  skim::calibrate::options how;
  how.keep = skim::neuron_retention::share(settings.keep);
  how.rank = settings.rank;
  how.seed = settings.seed;
  how.report = [&](const skim::calibrate::progress& at) { steps.fit(at); };
  how.after_layer = [&](const skim::calibrate::fit_result& fitted) {
    const std::int64_t layer = static_cast<std::int64_t>(fitted.model.layers.size()) - 1;
    steps.loss(layer);
    for (const float keep : settings.loss_keep) {
      so_far.model.loss.push_back(static_cast<float>(meter.loss(sparse_in(layer, fitted.model, keep))));
    }
    steps.layer_done();
    if (after_layer) after_layer(with_measures(fitted, so_far.model));
  };
  const skim::calibrate::fit_result fitted = skim::calibrate::fit(
      ffns, [&](std::int64_t layer, const skim::calibrate::input_sink& sink) { records.replay(layer, sink); }, how,
      threads, {so_far.model, so_far.layers});
  steps.end();
  return with_measures(fitted, so_far.model);
}

}  // namespace needle
