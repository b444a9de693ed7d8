// SPDX-License-Identifier: Apache-2.0
/// \file Evictors that keep nothing between calls, and those that score all tokens alike.
#pragma once

#include <skim/cuda/kernel/compact.cuh>
#include <skim/view.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// What is not there of a policy that keeps no state.
template <class Policy>
struct stateless_kernel {
  static report check(const Policy&, const eviction_args&) { return {}; }
  static std::size_t state_bytes(const Policy&, const eviction_args&) { return 0; }
  static std::size_t workspace_bytes(const Policy&, const eviction_args&) { return 0; }
  static void reset(const Policy&, const eviction_args&, memory, launcher&) {}
  static void observe(const Policy&, const eviction_args&, const eviction_call&, memory, memory, launcher&) {}
  static no_farewell leaving(const Policy&, const eviction_args&, const eviction_call&, memory) { return {}; }
};

template <int Threads>
__global__ void __launch_bounds__(Threads)
    score_tokens_alike(const eviction_call call, float* scores, std::int64_t stride) {
  start_in_chain();
  const int head = blockIdx.y, slot = blockIdx.x * Threads + threadIdx.x;
  if (slot < call.kv.length(head)) scores[head * stride + slot] = 0;
}

/// Of policies with `scores_alike`.
template <class Policy>
struct alike_kernel : stateless_kernel<Policy> {
  static void score(const Policy&, const eviction_args& args, const eviction_call& call,
                    const tensor_view<float, 2>& scores, memory, memory, launcher& launch) {
    launch(&score_tokens_alike<256>, pieces(args.kv.tokens, 256), args.kv.heads, 256, 0, call, scores.data,
           scores.strides[0]);
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
