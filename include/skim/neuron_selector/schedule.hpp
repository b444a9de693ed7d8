// SPDX-License-Identifier: Apache-2.0
/// \file How many neurons each layer computes. FastForward's schedule: layers whose tokens depend on more than the prompt's
/// beginning keep more (arXiv 2602.00397, section 3.3). Ours: layers that lose more by it keep more, for a stated loss.
#pragma once

#include <skim/check.hpp>
#include <skim/retention.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 {

/// How a mean kept fraction is spread over layers.
struct neuron_schedule {
  double mean = 0.5;           ///< fraction of f kept on average, above 0 and at most 1
  double least = 0.1;          ///< no layer keeps less than this fraction; at most `mean`
  std::int64_t multiple = 64;  ///< neurons are handed out in pieces of this size
};

SKIM_LOCAL constexpr report check(const neuron_schedule& schedule, std::int64_t layers, std::int64_t f) {
  if (layers < 0) return fault(status::bad_extent, "layers", layers, 0, "at least");
  if (f < 1) return fault(status::bad_extent, "f", f, 1, "at least");
  if (f > detail::largest_width) return fault(status::unsupported, "f", f, detail::largest_width, "at most");
  if (!(schedule.mean > 0 && schedule.mean <= 1)) {
    return fault(status::bad_value, "schedule.mean", schedule.mean, 1, "above 0 and at most");
  }
  if (!detail::within(schedule.least, 0, schedule.mean)) {
    return fault(status::bad_value, "schedule.least", schedule.least, schedule.mean, "at least 0 and at most");
  }
  if (schedule.multiple < 1) return fault(status::bad_value, "schedule.multiple", schedule.multiple, 1, "at least");
  return {};
}

/// fractions [layers] = share_l, proportional to `importance` [layers], held within [least, 1], of mean `schedule.mean`.
///
/// The paper goes through the layers in order, gives each its share of what is left, and cuts at 1; what a cut frees
/// reaches later layers only. Here it is spread over all layers that are not cut: the same where none is. Importance that
/// is negative or not finite counts as 0; where all are 0, layers share equally. O(layers^2).
SKIM_LOCAL report kept_fractions(const double* importance, std::int64_t layers, const neuron_schedule& schedule,
                                 double* fractions) {
  if (report r = check(schedule, layers, 1); !r) return r;
  if (layers > 0 && !importance) return null_fault("importance");
  if (layers > 0 && !fractions) return null_fault("fractions");
  // A fraction of -1 is not settled yet. Each round settles the layers that the proportional share of what is left would
  // put below `least`, or, if there are none, those above 1; the rest is spread again.
  double left = schedule.mean * static_cast<double>(layers);
  std::int64_t open = layers;
  for (std::int64_t l = 0; l < layers; ++l) fractions[l] = -1;
  double largest = 0;  // divides all, so that no sum overflows
  const auto counts = [&](std::int64_t l) { return importance[l] > 0 && std::isfinite(importance[l]); };
  for (std::int64_t l = 0; l < layers; ++l) {
    if (counts(l) && importance[l] > largest) largest = importance[l];
  }
  const auto weight = [&](std::int64_t l) { return counts(l) ? importance[l] / largest : 0.0; };
  while (open > 0) {
    double total = 0;
    for (std::int64_t l = 0; l < layers; ++l) total += fractions[l] < 0 ? weight(l) : 0;
    const auto share = [&](std::int64_t l) {
      return total > 0 ? weight(l) / total * left : left / static_cast<double>(open);
    };
    // The excess of the layers above 1 and the want of those below `least` pull the common factor in opposite
    // directions; settling the side that weighs more never has to be taken back.
    double excess = 0, want = 0;
    for (std::int64_t l = 0; l < layers; ++l) {
      if (fractions[l] >= 0) continue;
      if (share(l) > 1) excess += share(l) - 1;
      if (share(l) < schedule.least) want += schedule.least - share(l);
    }
    const bool high = excess >= want && excess > 0, low = !high && want > 0;
    double given = 0;
    std::int64_t settled = 0;
    for (std::int64_t l = 0; l < layers; ++l) {
      if (fractions[l] >= 0) continue;
      const double part = share(l);
      double value = -1;
      if (high && part > 1) value = 1;
      if (low && part < schedule.least) value = schedule.least;
      if (!high && !low) value = part;
      if (value < 0) continue;
      fractions[l] = value;
      given += value;
      ++settled;
    }
    left -= given;
    open -= settled;
  }
  return {};
}

/// neurons [layers] = `kept_fractions` times f, in pieces of `schedule.multiple` (a layer's last piece may be shorter), at
/// least one piece each: shares are rounded down, and pieces go to the largest remainders, the lower layer first, until the
/// next would not bring the sum nearer to mean * layers * f. `scratch [layers]`.
SKIM_LOCAL report kept_neurons(const double* importance, std::int64_t layers, std::int64_t f,
                               const neuron_schedule& schedule, double* scratch, std::int64_t* neurons) {
  if (report r = check(schedule, layers, f); !r) return r;
  if (layers > 0 && !scratch) return null_fault("scratch");
  if (layers > 0 && !neurons) return null_fault("neurons");
  if (report r = kept_fractions(importance, layers, schedule, scratch); !r) return r;
  const std::int64_t multiple = schedule.multiple < f ? schedule.multiple : f;
  double left = schedule.mean * static_cast<double>(layers) * static_cast<double>(f);
  for (std::int64_t l = 0; l < layers; ++l) {
    const double exact = scratch[l] * static_cast<double>(f);
    neurons[l] = static_cast<std::int64_t>(exact) / multiple * multiple;
    if (neurons[l] < multiple) neurons[l] = multiple;
    scratch[l] = exact - static_cast<double>(neurons[l]);
    left -= static_cast<double>(neurons[l]);
  }
  // Layers with next to nothing have got a piece nonetheless. If that was more than there is, the others give some back.
  const std::int64_t sign = left < 0 ? -1 : 1;
  for (;;) {
    std::int64_t next = -1, piece = 0;
    for (std::int64_t l = 0; l < layers; ++l) {
      const std::int64_t room = sign > 0 ? f - neurons[l] : neurons[l] - multiple;
      if (room == 0) continue;
      if (next >= 0 && static_cast<double>(sign) * (scratch[l] - scratch[next]) <= 0) continue;
      next = l;
      piece = sign * (room < multiple ? room : multiple);
    }
    if (next < 0 || std::fabs(left - static_cast<double>(piece)) > std::fabs(left)) return {};
    neurons[next] += piece;
    scratch[next] -= static_cast<double>(piece);
    left -= static_cast<double>(piece);
  }
}

/// What a model loses when one layer alone computes a share of its neurons, in any unit that adds up: nats, say.
struct neuron_losses {
  const float* keep = nullptr;  ///< [levels]: shares of f, ascending, above 0 and below 1
  const float* loss = nullptr;  ///< [layers, levels]; a layer that computes all its neurons loses nothing
  std::int64_t layers = 0, levels = 0;
};

SKIM_LOCAL constexpr report check(const neuron_losses& losses, std::int64_t f) {
  if (losses.layers < 0) return fault(status::bad_extent, "layers", losses.layers, 0, "at least");
  if (losses.levels < 0) return fault(status::bad_extent, "levels", losses.levels, 0, "at least");
  if (f < 1) return fault(status::bad_extent, "f", f, 1, "at least");
  if (f > detail::largest_width) return fault(status::unsupported, "f", f, detail::largest_width, "at most");
  if (losses.levels > 0 && !losses.keep) return null_fault("keep");
  if (losses.layers > 0 && losses.levels > 0 && !losses.loss) return null_fault("loss");
  for (std::int64_t i = 0; i < losses.levels; ++i) {
    const double keep = static_cast<double>(losses.keep[i]);
    if (!(keep > 0 && keep < 1)) return fault(status::bad_value, "keep", keep, 1, "above 0 and below");
    if (i > 0 && !(losses.keep[i - 1] < losses.keep[i])) {
      return fault(status::bad_value, "keep", keep, static_cast<double>(losses.keep[i - 1]), "ascending, so above");
    }
  }
  return {};
}

/// neurons [layers]: few in all, so that the layers' losses add up to at most `most`.
///
/// All layers begin with all f. Then, again and again, the layer and the lower level come next that cost the least loss
/// for each neuron that they leave out, among those that `most` still allows; the lower layer and the fewer neurons first
/// where two cost the same. A layer of which no level pays keeps all its neurons. Losses below 0 count as 0, those that
/// are not finite as too much. A level of share s computes `neuron_retention::share(s).neurons(f)`.
SKIM_LOCAL report neurons_for_loss(const neuron_losses& losses, std::int64_t f, double most, std::int64_t* neurons) {
  if (report r = check(losses, f); !r) return r;
  if (!(most >= 0 && std::isfinite(most))) return fault(status::bad_value, "most", most, 0, "finite and at least");
  if (losses.layers > 0 && !neurons) return null_fault("neurons");
  const std::int64_t layers = losses.layers, all = losses.levels;
  std::int64_t* const level = neurons;  // until the end
  for (std::int64_t l = 0; l < layers; ++l) level[l] = all;
  const auto count_at = [&](std::int64_t i) {
    return i == all ? f : neuron_retention::share(static_cast<double>(losses.keep[i])).neurons(f);
  };
  const auto loss_at = [&](std::int64_t l, std::int64_t i) {
    const double loss = i == all ? 0 : static_cast<double>(losses.loss[l * all + i]);
    return loss < 0 ? 0 : loss;
  };
  for (;;) {
    double spent = 0, least = 0;
    for (std::int64_t l = 0; l < layers; ++l) spent += loss_at(l, level[l]);
    std::int64_t next = -1, to = 0;
    for (std::int64_t l = 0; l < layers; ++l) {
      for (std::int64_t i = 0; i < level[l]; ++i) {
        const double more = loss_at(l, i) - loss_at(l, level[l]);
        const std::int64_t saved = count_at(level[l]) - count_at(i);
        if (saved <= 0 || !(spent + more <= most)) continue;
        const double price = more / static_cast<double>(saved);
        if (next >= 0 && !(price < least)) continue;
        next = l;
        to = i;
        least = price;
      }
    }
    if (next < 0) break;
    level[next] = to;
  }
  for (std::int64_t l = 0; l < layers; ++l) neurons[l] = count_at(level[l]);
  return {};
}

}}  // namespace skim::v0_2
