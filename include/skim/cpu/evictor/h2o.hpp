// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/evictor.hpp>
#include <skim/cpu/evictor/observed_weights.hpp>
#include <skim/cpu/kernel/attention_weights.hpp>
#include <skim/eviction.hpp>
#include <skim/evictor/h2o.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct evictor_kernel<h2o> : detail::weight_evictor<h2o> {
  static std::size_t workspace_bytes(const h2o&, const eviction_args& args, unsigned workers) {
    return detail::weight_scratch_bytes(args.attended, 0) * workers;
  }
  static cost_estimate cost(const h2o&, const eviction_args& args) { return weights_cost(args, new_tokens(args)); }

  static void observe(const h2o&, const eviction_args& args, memory state, memory workspace, executor_ref executor) {
    const float share = 1 / static_cast<float>(group_size(args.attended));
    detail::observe_weights(args, {0, share, true}, state, workspace, executor);
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
