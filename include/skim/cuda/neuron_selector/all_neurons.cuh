// SPDX-License-Identifier: Apache-2.0
/// \file `all_neurons` on a GPU: the dense FFN.
#pragma once

#include <skim/cuda/kernel/ffn_call.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/neuron_selector/all_neurons.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

/// A block for each row of scores.
template <int Threads>
__global__ void __launch_bounds__(Threads) score_alike(float* scores, std::int64_t stride, int f) {
  start_in_chain();
  for (int i = threadIdx.x; i < f; i += Threads) scores[blockIdx.x * stride + i] = 0;
}

}  // namespace detail

/// Asked for scores, which a dense block does not need, all are 0.
template <>
struct score_kernel<all_neurons> {
  static report check(const all_neurons&) { return {}; }
  static std::size_t workspace_bytes(const all_neurons&, const ffn_args&) { return 0; }
  static void score(const all_neurons&, const ffn_args& args, const detail::ffn_runs& runs, float* scores,
                    std::int64_t stride, void*, detail::launcher& launch) {
    launch(&detail::score_alike<256>, runs.lists, 1, 256, 0, scores, stride, static_cast<int>(args.up.extents[0]));
  }
};

}}}  // namespace skim::v0_2::cuda
