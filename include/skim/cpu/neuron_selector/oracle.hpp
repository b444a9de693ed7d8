// SPDX-License-Identifier: Apache-2.0
/// \file The oracle on the CPU: the block's own statistic.
#pragma once

#include <skim/cpu/neuron_selector.hpp>
#include <skim/cpu/neuron_selector/statistic.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/oracle.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct neuron_selector_kernel<oracle> : detail::statistic_selector<oracle> {
  static cost_estimate cost(const oracle&, const ffn_args& args) {
    const cost_estimate all = ffn_cost(args, args.up.extents[0]);
    const double share = is_gated(args) ? 2.0 / 3 : 0.5;  // all but the down projection
    return {all.flops * share, all.bytes * share};
  }
  static void predict(const oracle&, const ffn_args& args, tensor_view<float, 1> scores, memory, memory workspace,
                      executor_ref executor) {
    detail::neuron_statistic(args, scores.data, workspace.data, executor);
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
