// SPDX-License-Identifier: Apache-2.0
/// \file The constant set that FastForward is compared with, on the CPU.
#pragma once

#include <skim/cpu/score_kernel.hpp>
#include <skim/neuron_selector/calibrated_set.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

template <>
struct score_kernel<calibrated_set> : own_hooks<calibrated_set, executor_ref> {
  static void score(const calibrated_set& policy, const ffn_args&, tensor_view<float, 2> scores, memory, memory,
                    executor_ref executor) {
    executor.parallel_for(scores.extents[0], [&](std::int64_t block, unsigned) {
      for (std::int64_t j = 0; j < scores.extents[1]; ++j) *scores.at(block, j) = *policy.statistic.at(j);
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
