// SPDX-License-Identifier: Apache-2.0
/// \file The neuron selectors that a method can name.
#include "error.hpp"
#include "method_parts.hpp"
#include "model.hpp"

#include <skim/cpu/ffn.hpp>
#include <skim/cpu/neuron_selector/all_neurons.hpp>
#include <skim/cpu/neuron_selector/calibrated_set.hpp>
#include <skim/cpu/neuron_selector/fastforward.hpp>
#include <skim/cpu/neuron_selector/oracle.hpp>
#include <skim/cpu/neuron_selector/random_neurons.hpp>
#include <skim/cpu/neuron_selector/static_set.hpp>
#include <skim/neuron_selector/schedule.hpp>

namespace needle {
namespace {

template <class Selector>
class ffn_of final : public operation_of<layer_ffn, skim::cpu::ffn<Selector>> {
 public:
  using operation_of<layer_ffn, skim::cpu::ffn<Selector>>::operation_of;

  skim::report run(const skim::ffn_args& args, skim::memory state, skim::memory workspace,
                   skim::executor_ref threads) const override {
    return this->op_.run(args, state, workspace, threads);
  }
};

template <class Selector>
std::unique_ptr<layer_ffn> make(const Selector& selector) {
  return std::make_unique<ffn_of<Selector>>(skim::cpu::ffn<Selector>{selector});
}

/// `kept(weights)` tells what each layer keeps, `selector_for(weights, layer, keep, seed)` is its policy.
template <class Kept, class SelectorFor>
ffn_maker maker(const Kept& kept, const SelectorFor& selector_for) {
  return [kept, selector_for](const model& weights, std::uint64_t seed) {
    std::vector<std::unique_ptr<layer_ffn>> ffns;
    const std::vector<skim::neuron_retention> keep = kept(weights);
    for (std::size_t layer = 0; layer < keep.size(); ++layer) {
      ffns.push_back(make(selector_for(weights, layer, keep[layer], seed)));
    }
    return ffns;
  };
}

const skim::calibrate::fitted_model& fitted_parts(const model& weights) {
  if (weights.fitted.layers.empty()) {
    throw error(std::string("the model has no ") + fitted_file +
                " beside it, which this method needs: run `needle calibrate` for it");
  }
  return weights.fitted;
}

/// How many neurons each layer computes.
class neurons_kept {
 public:
  explicit neurons_kept(const parameters& given)
      : mean_(given.fraction("keep", "0.5")),
        for_loss_(given.has("keep_for_loss") ? given.fraction("keep_for_loss") : 0),
        by_attention_(given.choice("schedule", {"uniform", "attention"}) == "attention"),
        sparse_decode_(given.choice("decode", {"dense", "sparse"}) == "sparse") {
    if (for_loss_ == 0) return;
    for (const char* other : {"keep", "schedule"}) given.refuse(other, "and keep_for_loss both say how many neurons");
  }

  std::vector<skim::neuron_retention> operator()(const model& weights) const {
    std::vector<skim::neuron_retention> keep;
    for (const std::int64_t count : counts(weights)) {
      keep.push_back(skim::neuron_retention::budget(count));
      keep.back().sparse_decode = sparse_decode_;
    }
    return keep;
  }

 private:
  std::vector<std::int64_t> counts(const model& weights) const {
    const std::int64_t f = weights.config.f, layers = weights.config.layers;
    if (for_loss_ > 0) return counts_for_loss(fitted_parts(weights), f);
    if (!by_attention_) {
      return std::vector<std::int64_t>(static_cast<std::size_t>(layers),
                                       skim::neuron_retention::share(mean_).neurons(f));
    }
    const std::vector<float>& measured = fitted_parts(weights).importance;
    if (measured.empty()) throw error(std::string(fitted_file) + " has no importance of the layers");
    const std::vector<double> importance(measured.begin(), measured.end());
    skim::neuron_schedule schedule;
    schedule.mean = mean_;
    if (schedule.least > mean_) schedule.least = mean_;
    schedule.multiple = 1;
    std::vector<double> scratch(importance.size());
    std::vector<std::int64_t> counts(importance.size());
    const skim::report answer =
        skim::kept_neurons(importance.data(), layers, f, schedule, scratch.data(), counts.data());
    char text[256];
    if (!answer) throw error(skim::describe(answer, text, sizeof text));
    return counts;
  }

  std::vector<std::int64_t> counts_for_loss(const skim::calibrate::fitted_model& fitted, std::int64_t f) const {
    if (fitted.loss_keep.empty()) {
      throw error(std::string(fitted_file) + " has no losses of the layers: run `needle calibrate` again");
    }
    std::vector<std::int64_t> counts(fitted.layers.size());
    demand(skim::neurons_for_loss(fitted.losses(), f, for_loss_, counts.data()));
    return counts;
  }

  double mean_, for_loss_;  // for_loss_ 0: not given
  bool by_attention_, sparse_decode_;
};

/// `PolicyOf`: the member of `fitted_model` that makes a layer's policy.
template <auto PolicyOf>
void parse_fitted(const parameters& given, method& result) {
  // Compensators are fitted to one share of neurons, and losses measured without them.
  const names choices = given.has("keep_for_loss") ? names{"off", "on"} : names{"on", "off"};
  const bool compensate = given.choice("compensate", choices) == "on";
  result.make_ffns = maker(neurons_kept(given), [compensate](const model& weights, std::size_t layer,
                                                             const skim::neuron_retention& keep, std::uint64_t) {
    auto selector = (fitted_parts(weights).*PolicyOf)(layer);
    selector.keep = keep;
    if (!compensate) selector.compensator = {};
    return selector;
  });
}

template <class Selector>
void parse_statistic(const parameters& given, method& result) {
  result.make_ffns = maker(neurons_kept(given), [](const model&, std::size_t, const skim::neuron_retention& keep,
                                                   std::uint64_t) { return Selector{keep}; });
}

void parse_random(const parameters& given, method& result) {
  const std::uint64_t own = static_cast<std::uint64_t>(given.count("seed", 0, 0));
  result.make_ffns = maker(neurons_kept(given), [own](const model&, std::size_t layer,
                                                      const skim::neuron_retention& keep, std::uint64_t seed) {
    const std::uint64_t stream = skim::draw(seed, static_cast<std::uint64_t>(layer));
    return skim::random_neurons{keep, skim::draw(own, stream)};
  });
}

}  // namespace

ffn_maker make_dense_ffns() {
  return [](const model& weights, std::uint64_t) {
    std::vector<std::unique_ptr<layer_ffn>> ffns;
    for (std::size_t layer = 0; layer < weights.layers.size(); ++layer) {
      ffns.push_back(make(skim::all_neurons{}));
    }
    return ffns;
  };
}

ffn_maker make_dense_ffns_but(std::int64_t layer, const skim::fastforward& sparse) {
  return [layer, sparse](const model& weights, std::uint64_t seed) {
    std::vector<std::unique_ptr<layer_ffn>> ffns = make_dense_ffns()(weights, seed);
    ffns[static_cast<std::size_t>(layer)] = make(sparse);
    return ffns;
  };
}

std::vector<part_kind> neuron_parts() {
  using skim::calibrate::fitted_model;
  return {
      {"fastforward",
       {"keep", "schedule", "decode", "compensate", "keep_for_loss"},
       parse_fitted<&fitted_model::fastforward>},
      {"oracle", {"keep", "schedule", "decode", "keep_for_loss"}, parse_statistic<skim::oracle>},
      {"static_set", {"keep", "schedule", "decode", "keep_for_loss"}, parse_statistic<skim::static_set>},
      {"calibrated_set",
       {"keep", "schedule", "decode", "compensate", "keep_for_loss"},
       parse_fitted<&fitted_model::calibrated_set>},
      {"ffn(random)", {"keep", "schedule", "decode", "seed", "keep_for_loss"}, parse_random},
  };
}

}  // namespace needle
