// SPDX-License-Identifier: Apache-2.0
/// \file Fits the parts of one layer to the inputs that its FFN had.
#pragma once

#include <skim/calibrate/descend.hpp>
#include <skim/calibrate/fit_predictor.hpp>
#include <skim/calibrate/losses.hpp>
#include <skim/interop/fitted_fastforward.hpp>

#include <string>

namespace skim { inline namespace v0_2 { namespace calibrate {

/// Where the work stands.
struct progress {
  std::int64_t layer = 0, layers = 0;
  const char* stage = "";  ///< "inputs", "predictor", "compensator", "predicted" or "constant": what it is fitted to
  std::int64_t epoch = 0, epochs = 0;
  double held_out_loss = 0;  ///< of the stage, compensators' as a share of what the oracle's choice leaves out
};

/// How well a choice of neurons does on the held-out blocks.
struct selection_report {
  double recall = 0;    ///< share of the oracle's neurons that are chosen
  double captured = 0;  ///< the statistic's sum over the chosen neurons, by that over the oracle's
  double error = 0;     ///< |dense - sparse| / |dense|, over all tokens
  double compensated_error = 0;
};

struct layer_report {
  selection_report oracle;  ///< with the compensator fitted to it
  selection_report predictor;
  selection_report calibrated_set;  ///< with its own compensator
  std::int64_t training_blocks = 0, held_out_blocks = 0;
};

/// What `fit` has fitted: all layers, or the first ones.
struct fit_result {
  fitted_model model;
  std::vector<layer_report> reports;  ///< of `model.layers`
};

struct options {
  neuron_retention keep = neuron_retention::share(0.5);  ///< `count` or `fraction` alone matter
  double held_out = 0.125;                               ///< share of the prompts that judge, at least one prompt
  calibrate::labeling labels = labeling::margin;
  std::int64_t rank = 0;  ///< r of the predictor; 0: the paper's, `predictor_rank(d)`
  std::uint64_t seed = 0;
  training predictor{30, 6, 32, 6e-3, 0.01};
  training compensator{16, 4, 16, 4e-3, 0.0};  ///< once for the oracle's neurons, then again for those predicted
  std::function<void(const calibrate::progress&)> report;  ///< called on the calling thread
  /// Called on the calling thread whenever one more layer is fitted, for engines that store it and may go on later.
  std::function<void(const fit_result& so_far)> after_layer;
};

/// A layer's FFN inputs, block by block.
struct collected_inputs {
  std::vector<matrix<float>> x;  // [M, d] each
  std::vector<std::int64_t> prompt;
};

namespace detail {

class layer_fit {
 public:
  using announcement = std::function<void(const char* stage, std::int64_t epoch, std::int64_t epochs, double loss)>;

  layer_fit(const ffn_weights& weights, const collected_inputs& inputs, const block_split& split,
            const options& settings, executor_ref executor)
      : weights_(weights), inputs_(inputs), split_(split), settings_(settings), executor_(executor) {
    const std::size_t blocks = inputs.x.size();
    f_ = weights.up.rows();
    count_ = std::min<std::int64_t>(settings.keep.neurons(f_), f_);
    statistic_.resize(static_cast<Eigen::Index>(blocks), f_);
    chosen_.resize(static_cast<Eigen::Index>(blocks), f_);
    missing_.resize(blocks);
  }

  fitted_layer run(std::uint64_t seed, const announcement& announce, layer_report& report) {
    seed_ = seed;
    announce_ = announce;
    report.training_blocks = static_cast<std::int64_t>(split_.training.size());
    report.held_out_blocks = static_cast<std::int64_t>(split_.held_out.size());
    measure();
    compensator_parameters<float> start = compensator_start();
    report.oracle = fit_compensator("compensator", start);
    compensator_parameters<float> predicted = start, constant = start;
    const predictor_parameters<float> predictor = fit_predictor();
    choose([&](Eigen::Index block) { return strongest(logits(predictor, at(inputs_.x, block)), count_); });
    report.predictor = fit_compensator("predicted", predicted);
    const row<float> set = strongest(mean_statistic_, count_);
    choose([&](Eigen::Index) { return set; });
    report.calibrated_set = fit_compensator("constant", constant);

    const auto copy = [](const auto& values) {
      return std::vector<float>(values.data(), values.data() + values.size());
    };
    return {copy(predictor.query()), copy(predictor.w1()),  copy(predictor.w2()), copy(predicted.c1()),
            copy(predicted.c2()),    copy(mean_statistic_), copy(constant.c1()),  copy(constant.c2())};
  }

 private:
  template <class T>
  static T& at(std::vector<T>& values, Eigen::Index i) {
    return values[static_cast<std::size_t>(i)];
  }
  template <class T>
  static const T& at(const std::vector<T>& values, Eigen::Index i) {
    return values[static_cast<std::size_t>(i)];
  }

  std::function<void(std::int64_t, double)> listener(const char* stage, const training& settings) const {
    return [this, stage, epochs = settings.epochs](std::int64_t epoch, double loss) {
      announce_(stage, epoch, epochs, loss);
    };
  }

  /// The statistic of every block, what the oracle chooses by it, and what the FFN puts out on the held-out blocks.
  void measure() {
    std::vector<double> squares(inputs_.x.size());
    const row<float> none = row<float>::Zero(f_);
    executor_.parallel_for(statistic_.rows(), [&](std::int64_t b, unsigned) {
      const Eigen::Index block = static_cast<Eigen::Index>(b);
      const matrix<float> z = neuron_values(weights_, at(inputs_.x, block));
      statistic_.row(block) = neuron_statistic(z);
      chosen_.row(block) = strongest(statistic_.row(block), count_);
      at(missing_, block) = left_out(weights_, z, chosen_.row(block));
      if (std::binary_search(split_.held_out.begin(), split_.held_out.end(), block)) {
        at(squares, block) = static_cast<double>(left_out(weights_, z, none).squaredNorm());
      }
    });
    for (const Eigen::Index block : split_.held_out) dense_square_ += at(squares, block);
    mean_statistic_ = row<float>::Zero(f_);
    for (const Eigen::Index block : split_.training) mean_statistic_ += statistic_.row(block);
    mean_statistic_ /= static_cast<float>(split_.training.size());
  }

  predictor_parameters<float> fit_predictor() {
    const row<float> lengths = weights_.down.rowwise().norm().transpose();
    const matrix<float> labels = neuron_labels(statistic_, lengths, count_, settings_.labels, split_.training);
    const Eigen::Index rank = settings_.rank > 0 ? settings_.rank : predictor_rank(weights_.up.cols());
    return calibrate::fit_predictor(
        inputs_.x, labels, rank, {settings_.predictor, &split_, 1, seed_, listener("predictor", settings_.predictor)},
        executor_);
  }

  /// Sets `chosen_` and `missing_` for every block.
  template <class Choice>
  void choose(const Choice& choice) {
    executor_.parallel_for(chosen_.rows(), [&](std::int64_t b, unsigned) {
      const Eigen::Index block = static_cast<Eigen::Index>(b);
      chosen_.row(block) = choice(block);
      at(missing_, block) = left_out(weights_, neuron_values(weights_, at(inputs_.x, block)), chosen_.row(block));
    });
  }

  /// c1 such that silu sees values of about 1, c2 zero.
  compensator_parameters<float> compensator_start() const {
    const Eigen::Index d = weights_.up.cols();
    compensator_parameters<float> start(d, compensator_width(d));
    double squares = 0, count = 0;
    for (const Eigen::Index block : split_.training) {
      squares += static_cast<double>(at(inputs_.x, block).squaredNorm());
      count += static_cast<double>(at(inputs_.x, block).rows());
    }
    const double size = squares > 0 ? std::sqrt(3 * count / squares) : 0;  // 3: the variance of `symmetric` is 1 / 3
    random_numbers random(seed_ + 1);
    for (Eigen::Index i = 0; i < d * start.c; ++i) start.values(i) = static_cast<float>(size * random.symmetric());
    return start;
  }

  selection_report fit_compensator(const char* stage, compensator_parameters<float>& parameters) {
    const auto loss = [this](const compensator_parameters<float>& now, const Eigen::Index* blocks, Eigen::Index count,
                             compensator_parameters<float>* gradient) {
      double sum = 0;
      for (Eigen::Index i = 0; i < count; ++i) {
        sum += static_cast<double>(compensator_loss(now, at(inputs_.x, blocks[i]), at(missing_, blocks[i]), gradient));
      }
      return sum;
    };
    double trained = 0, held_out = 0;
    for (const Eigen::Index block : split_.training) trained += static_cast<double>(at(missing_, block).squaredNorm());
    for (const Eigen::Index block : split_.held_out) held_out += static_cast<double>(at(missing_, block).squaredNorm());
    const double unit = trained / static_cast<double>(split_.training.size());
    double left = 0;
    if (unit > 0) {  // otherwise nothing is missing
      left =
          descend(parameters, loss,
                  {settings_.compensator, &split_, unit, seed_ + 2, listener(stage, settings_.compensator)}, executor_);
    }
    selection_report report = judged();
    if (!(dense_square_ > 0)) return report;
    report.error = std::sqrt(held_out / dense_square_);
    report.compensated_error = std::sqrt(left * unit * static_cast<double>(split_.held_out.size()) / dense_square_);
    return report;
  }

  /// Recall and captured share of `chosen_`.
  selection_report judged() const {
    selection_report report;
    for (const Eigen::Index block : split_.held_out) {
      const row<float> oracle = strongest(statistic_.row(block), count_);
      report.recall += static_cast<double>(oracle.dot(chosen_.row(block))) / static_cast<double>(count_);
      const float most = statistic_.row(block).dot(oracle);
      report.captured += most > 0 ? static_cast<double>(statistic_.row(block).dot(chosen_.row(block)) / most) : 1;
    }
    report.recall /= static_cast<double>(split_.held_out.size());
    report.captured /= static_cast<double>(split_.held_out.size());
    return report;
  }

  const ffn_weights& weights_;
  const collected_inputs& inputs_;
  const block_split& split_;
  const options& settings_;
  executor_ref executor_;
  Eigen::Index f_ = 0;
  std::int64_t count_ = 0;
  std::uint64_t seed_ = 0;
  announcement announce_;
  matrix<float> statistic_, chosen_;    // [B, f]
  row<float> mean_statistic_;           // [f]
  std::vector<matrix<float>> missing_;  // [M, d] each: what the chosen neurons leave out
  double dense_square_ = 0;             // of the held-out blocks' outputs
};

}  // namespace detail
}}}  // namespace skim::v0_2::calibrate
