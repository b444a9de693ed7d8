// SPDX-License-Identifier: Apache-2.0
/// \file AdamW over blocks in a random order, with early stopping; the same bits for any number of threads.
#pragma once

#include <skim/calibrate/ffn_layer.hpp>
#include <skim/executor.hpp>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>

namespace skim { inline namespace v0_2 { namespace calibrate {

/// How one part is fitted. The paper names no optimiser: AdamW (arXiv 1711.05101), its rate rising over the first
/// steps and then falling to 0 along half a cosine.
struct training {
  std::int64_t epochs = 30;   ///< at most
  std::int64_t patience = 8;  ///< epochs without a better held-out loss before it stops
  std::int64_t batch = 16;    ///< blocks per step
  double rate = 1e-3;
  double decay = 0.01;  ///< of the weights, per step and unit of rate
};

/// Blocks by number: those that are fitted to, and those that judge.
struct block_split {
  std::vector<Eigen::Index> training, held_out;
};

struct descent {
  training settings;
  const block_split* split = nullptr;
  double unit = 1;         ///< losses are divided by it, so that rates do not depend on their size
  std::uint64_t seed = 0;  ///< of the blocks' order
  std::function<void(std::int64_t epoch, double held_out_loss)> after_epoch;  ///< or none
};

/// Numbers that are the same with every standard library, unlike those of its distributions.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : bits_(seed) {}

  /// Uniform in [-1, 1).
  double symmetric() { return static_cast<double>(bits_() >> 11) * 0x1p-52 - 1; }

  void shuffle(std::vector<Eigen::Index>& order) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[bits_() % i]);
  }

 private:
  std::mt19937_64 bits_;
};

/// The optimiser's state.
class adamw {
 public:
  adamw(Eigen::Index count, double decay)
      : mean_(row<float>::Zero(count)), square_(row<float>::Zero(count)), decay_(decay) {}

  void step(row<float>& values, const row<float>& gradient, double rate) {
    constexpr double keep_mean = 0.9, keep_square = 0.999;
    constexpr float epsilon = 1e-8f;
    ++steps_;
    mean_ = static_cast<float>(keep_mean) * mean_ + static_cast<float>(1 - keep_mean) * gradient;
    square_ = static_cast<float>(keep_square) * square_ + static_cast<float>(1 - keep_square) * gradient.cwiseAbs2();
    const float scale = static_cast<float>(rate / (1 - std::pow(keep_mean, steps_)));
    const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(keep_square, steps_)));
    values *= static_cast<float>(1 - rate * decay_);
    values.array() -= scale * mean_.array() / (root * square_.array().sqrt() + epsilon);
  }

 private:
  row<float> mean_, square_;
  double decay_;
  std::int64_t steps_ = 0;
};

namespace detail {

/// Blocks that one thread takes at a time. Sums are made piece by piece, in order.
inline constexpr Eigen::Index piece_blocks = 4;

/// The loss over blocks[0 .. count), and its gradient, if asked for.
template <class Parameters, class Loss>
double loss_over(const Parameters& parameters, const Eigen::Index* blocks, Eigen::Index count,
                 std::vector<Parameters>* gradients, const Loss& loss, executor_ref executor) {
  const Eigen::Index pieces = (count + piece_blocks - 1) / piece_blocks;
  std::vector<double> losses(static_cast<std::size_t>(pieces));
  executor.parallel_for(pieces, [&](std::int64_t piece, unsigned) {
    const std::size_t at = static_cast<std::size_t>(piece);
    const Eigen::Index first = static_cast<Eigen::Index>(piece) * piece_blocks;
    Parameters* const gradient = gradients ? &(*gradients)[at] : nullptr;
    if (gradient) gradient->values.setZero();
    losses[at] = loss(parameters, blocks + first, (std::min)(piece_blocks, count - first), gradient);
  });
  double sum = 0;
  for (const double each : losses) sum += each;
  if (gradients) {
    for (std::size_t i = 1; i < losses.size(); ++i) (*gradients)[0].values += (*gradients)[i].values;
  }
  return sum;
}

}  // namespace detail

/// The mean of `loss(parameters, blocks, count, gradient)` over some blocks. `loss` returns a sum over its blocks and adds
/// their gradient, if there is one to add to; it runs on several threads at once.
template <class Parameters, class Loss>
double mean_loss(const Parameters& parameters, const std::vector<Eigen::Index>& blocks, const Loss& loss,
                 executor_ref executor) {
  const Eigen::Index count = static_cast<Eigen::Index>(blocks.size());
  return detail::loss_over<Parameters>(parameters, blocks.data(), count, nullptr, loss, executor) /
         static_cast<double>(count);
}

/// Lowers the mean loss over the training blocks; leaves the parameters that were best on the held-out blocks, those at
/// the start included, and returns the held-out loss.
template <class Parameters, class Loss>
double descend(Parameters& parameters, const Loss& loss, const descent& plan, executor_ref executor) {
  std::vector<Eigen::Index> order = plan.split->training;
  const Eigen::Index all = static_cast<Eigen::Index>(order.size()),
                     batch = std::min<Eigen::Index>(plan.settings.batch, all);
  std::vector<Parameters> gradients(static_cast<std::size_t>((batch + detail::piece_blocks - 1) / detail::piece_blocks),
                                    parameters);
  const Eigen::Index steps = plan.settings.epochs * ((all + batch - 1) / batch),
                     warm = std::min<Eigen::Index>(steps / 20 + 1, 100);
  adamw optimiser(parameters.values.size(), plan.settings.decay);
  random_numbers random(plan.seed);
  Parameters best = parameters;
  double least = mean_loss(parameters, plan.split->held_out, loss, executor) / plan.unit;
  std::int64_t best_epoch = 0;
  Eigen::Index step = 0;
  for (std::int64_t epoch = 1; epoch <= plan.settings.epochs && epoch - best_epoch <= plan.settings.patience; ++epoch) {
    random.shuffle(order);
    for (Eigen::Index first = 0; first < all; first += batch, ++step) {
      const Eigen::Index count = (std::min)(batch, all - first);
      detail::loss_over(parameters, order.data() + first, count, &gradients, loss, executor);
      gradients[0].values *= static_cast<float>(1 / (plan.unit * static_cast<double>(count)));
      const double turn = 3.14159265358979 * static_cast<double>(step) / static_cast<double>(steps);
      const double rise = (std::min)(1.0, static_cast<double>(step + 1) / static_cast<double>(warm));
      optimiser.step(parameters.values, gradients[0].values, plan.settings.rate * rise * (1 + std::cos(turn)) / 2);
    }
    const double now = mean_loss(parameters, plan.split->held_out, loss, executor) / plan.unit;
    if (now < least) {
      least = now;
      best = parameters;
      best_epoch = epoch;
    }
    if (plan.after_epoch) plan.after_epoch(epoch, now);
  }
  parameters = best;
  return least;
}

}}}  // namespace skim::v0_2::calibrate
