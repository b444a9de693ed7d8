// SPDX-License-Identifier: Apache-2.0
/// \file `all_neurons` on the CPU: the dense FFN.
#pragma once

#include <skim/cpu/neuron_selector.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/all_neurons.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

/// `all_neurons`: never asked to choose; asked all the same, all score equal.
template <>
struct neuron_selector_kernel<all_neurons> : detail::plain_neuron_selector<all_neurons> {
  static neuron_retention keep(const all_neurons&) { return neuron_retention::share(1); }
  static report check(const all_neurons&, const ffn_args&) { return {}; }
  static void predict(const all_neurons&, const ffn_args&, tensor_view<float, 1> scores, memory, memory,
                      executor_ref executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < scores.extents[0]; ++j) *scores.at(j) = 0;
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
