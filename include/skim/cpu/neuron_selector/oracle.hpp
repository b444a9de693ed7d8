// SPDX-License-Identifier: Apache-2.0
/// \file The oracle on the CPU: the statistic of each block.
#pragma once

#include <skim/cpu/neuron_selector/statistic.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/neuron_selector/oracle.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

template <>
struct score_kernel<oracle> : own_hooks<oracle, executor_ref> {
  static std::size_t workspace_bytes(const oracle&, const ffn_args& args, unsigned workers) {
    return detail::statistic_bytes(args, workers);
  }
  static void score(const oracle&, const ffn_args& args, tensor_view<float, 2> scores, memory, memory workspace,
                    executor_ref executor) {
    for_each_block(args, [&](const ffn_args& block, std::int64_t index) {
      detail::neuron_statistic(block, scores.at(index), workspace.data, executor);
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
