// SPDX-License-Identifier: Apache-2.0
/// \file The control that draws neurons at random, on the CPU.
#pragma once

#include <skim/cpu/neuron_selector.hpp>
#include <skim/ffn.hpp>
#include <skim/math/random.hpp>
#include <skim/neuron_selector/random_neurons.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct neuron_selector_kernel<random_neurons> : detail::plain_neuron_selector<random_neurons> {
  static void predict(const random_neurons& policy, const ffn_args& args, tensor_view<float, 1> scores, memory, memory,
                      executor_ref executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      const std::uint64_t stream = draw(policy.seed, static_cast<std::uint64_t>(args.block));
      for (std::int64_t j = 0; j < scores.extents[0]; ++j) {
        *scores.at(j) = draw_uniform(stream, static_cast<std::uint64_t>(j));
      }
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
