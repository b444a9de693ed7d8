// SPDX-License-Identifier: Apache-2.0
/// \file H2O's sums of attention weights on the CPU.
#pragma once

#include <skim/cpu/evictor/observed_weights.hpp>
#include <skim/evictor/h2o.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Error bound: see observed_weights.hpp, over all rows since the token arrived.
template <>
struct score_kernel<h2o> : detail::weight_evictor<h2o> {
  static std::size_t workspace_bytes(const h2o&, const eviction_args& args, unsigned workers) {
    return detail::observe_bytes(args, 0, workers);
  }

  static void observe(const h2o&, const eviction_args& args, memory state, memory workspace, executor_ref executor) {
    const float share = 1 / static_cast<float>(group_size(attended_call(args)));
    detail::observe_weights(args, {0, share, true}, state, workspace, executor);
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
