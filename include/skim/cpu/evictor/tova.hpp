// SPDX-License-Identifier: Apache-2.0
/// \file TOVA's weights of the last query on the CPU.
#pragma once

#include <skim/cpu/evictor/observed_weights.hpp>
#include <skim/evictor/tova.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Error bound: see observed_weights.hpp, over the group's rows of one token.
template <>
struct score_kernel<tova> : detail::weight_evictor<tova> {
  static std::size_t workspace_bytes(const tova&, const eviction_args& args, unsigned workers) {
    return detail::observe_bytes(args, last(args), workers);
  }

  static void observe(const tova&, const eviction_args& args, memory state, memory workspace, executor_ref executor) {
    const float share = 1 / static_cast<float>(group_size(attended_call(args)));
    detail::observe_weights(args, {last(args), share, false}, state, workspace, executor);
  }

 private:
  static std::int64_t last(const eviction_args& args) { return args.new_tokens > 0 ? args.new_tokens - 1 : 0; }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
