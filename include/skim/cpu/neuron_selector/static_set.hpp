// SPDX-License-Identifier: Apache-2.0
/// \file The static set on the CPU: the statistic of the prompt's first block.
#pragma once

#include <skim/cpu/neuron_selector.hpp>
#include <skim/cpu/neuron_selector/statistic.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/static_set.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct neuron_selector_kernel<static_set> : detail::statistic_selector<static_set> {
  static std::size_t state_bytes(const static_set&, const ffn_args& args) {
    return static_cast<std::size_t>(args.up.extents[0]) * sizeof(float);
  }
  static void reset(const static_set&, const ffn_args& args, memory state, executor_ref executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < args.up.extents[0]; ++j) static_cast<float*>(state.data)[j] = 0;
    });
  }
  static void observe(const static_set&, const ffn_args& args, memory state, memory workspace,
                      executor_ref executor) {
    if (args.block != 0 || args.decode) return;
    detail::neuron_statistic(args, static_cast<float*>(state.data), workspace.data, executor);
  }
  static void predict(const static_set&, const ffn_args& args, tensor_view<float, 1> scores, memory state, memory,
                      executor_ref executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < args.up.extents[0]; ++j) *scores.at(j) = static_cast<const float*>(state.data)[j];
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
