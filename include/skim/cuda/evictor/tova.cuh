// SPDX-License-Identifier: Apache-2.0
/// \file TOVA's weights of the last query on a GPU.
#pragma once

#include <skim/cuda/evictor/observed_weights.cuh>
#include <skim/evictor/tova.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Error bound: see observed_weights.cuh, over the group's rows of one token.
template <>
struct score_kernel<tova> : detail::weight_evictor<tova> {
  static void observe(const tova&, const eviction_args& args, const detail::eviction_call&, memory state, memory,
                      detail::launcher& launch) {
    const float share = 1 / static_cast<float>(group_size(attended_call(args)));
    detail::observe_weights(args, {args.new_tokens - 1, share, false}, state, launch);
  }
};

}}}  // namespace skim::v0_2::cuda
