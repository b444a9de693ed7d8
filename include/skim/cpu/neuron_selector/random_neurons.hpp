// SPDX-License-Identifier: Apache-2.0
/// \file The control that draws neurons at random, on the CPU.
#pragma once

#include <skim/cpu/score_kernel.hpp>
#include <skim/ffn.hpp>
#include <skim/math/random.hpp>
#include <skim/neuron_selector/random_neurons.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

template <>
struct score_kernel<random_neurons> : own_hooks<random_neurons, executor_ref> {
  static void score(const random_neurons& policy, const ffn_args& args, tensor_view<float, 2> scores, memory, memory,
                    executor_ref executor) {
    parallel_for_blocks(args, executor, [&](const ffn_args& block, std::int64_t index, unsigned) {
      const std::uint64_t stream = draw(policy.seed, static_cast<std::uint64_t>(block.first_block));
      for (std::int64_t j = 0; j < scores.extents[1]; ++j) {
        *scores.at(index, j) = draw_uniform(stream, static_cast<std::uint64_t>(j));
      }
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
