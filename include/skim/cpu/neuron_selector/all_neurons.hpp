// SPDX-License-Identifier: Apache-2.0
/// \file `all_neurons` on the CPU: the dense FFN.
#pragma once

#include <skim/cpu/score_kernel.hpp>
#include <skim/neuron_selector/all_neurons.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

template <>
struct score_kernel<all_neurons> : own_hooks<all_neurons, executor_ref> {
  static void score(const all_neurons&, const ffn_args&, tensor_view<float, 2> scores, memory, memory,
                    executor_ref executor) {
    executor.parallel_for(scores.extents[0], [&](std::int64_t block, unsigned) {
      for (std::int64_t j = 0; j < scores.extents[1]; ++j) *scores.at(block, j) = 0;
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
