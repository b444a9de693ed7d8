// SPDX-License-Identifier: Apache-2.0
/// \file H2O's sums of attention weights on a GPU.
#pragma once

#include <skim/cuda/evictor/observed_weights.cuh>
#include <skim/evictor/h2o.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Error bound: see observed_weights.cuh, over all rows since the token arrived.
template <>
struct score_kernel<h2o> : detail::weight_evictor<h2o> {
  static void observe(const h2o&, const eviction_args& args, const detail::eviction_call&, memory state, memory,
                      detail::launcher& launch) {
    const float share = 1 / static_cast<float>(group_size(attended_call(args)));
    detail::observe_weights(args, {0, share, true}, state, launch);
  }
};

}}}  // namespace skim::v0_2::cuda
