// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/evictor.hpp>
#include <skim/cpu/evictor/observed_weights.hpp>
#include <skim/cpu/kernel/attention_weights.hpp>
#include <skim/eviction.hpp>
#include <skim/evictor/tova.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct evictor_kernel<tova> : detail::weight_evictor<tova> {
  static std::size_t workspace_bytes(const tova&, const eviction_args& args, unsigned workers) {
    return detail::weight_scratch_bytes(args.attended, last(args)) * workers;
  }
  static cost_estimate cost(const tova&, const eviction_args& args) { return weights_cost(args, 1); }

  static void observe(const tova&, const eviction_args& args, memory state, memory workspace,
                      executor_ref executor) {
    const float share = 1 / static_cast<float>(group_size(args.attended));
    detail::observe_weights(args, {last(args), share, false}, state, workspace, executor);
  }

 private:
  static std::int64_t last(const eviction_args& args) { return new_tokens(args) > 0 ? new_tokens(args) - 1 : 0; }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
