// SPDX-License-Identifier: Apache-2.0
/// \file The static set on the CPU: the statistic of the prompt's first block.
#pragma once

#include <skim/cpu/neuron_selector/statistic.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/neuron_selector/static_set.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

template <>
struct score_kernel<static_set> : own_hooks<static_set, executor_ref> {
  static std::size_t workspace_bytes(const static_set&, const ffn_args& args, unsigned workers) {
    return detail::statistic_bytes(args, workers);
  }
  static std::size_t state_bytes(const static_set&, const ffn_args& args) {
    return static_cast<std::size_t>(args.up.extents[0]) * sizeof(float);
  }
  static void reset(const static_set&, const ffn_args& args, memory state, executor_ref executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < args.up.extents[0]; ++j) static_cast<float*>(state.data)[j] = 0;
    });
  }
  static void observe(const static_set&, const ffn_args& block, memory state, memory workspace, executor_ref executor) {
    if (block.first_block != 0 || block.decode) return;
    detail::neuron_statistic(block, static_cast<float*>(state.data), workspace.data, executor);
  }
  static void score(const static_set&, const ffn_args&, tensor_view<float, 2> scores, memory state, memory,
                    executor_ref executor) {
    executor.parallel_for(scores.extents[0], [&](std::int64_t block, unsigned) {
      const float* const statistic = static_cast<const float*>(state.data);
      for (std::int64_t j = 0; j < scores.extents[1]; ++j) *scores.at(block, j) = statistic[j];
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
