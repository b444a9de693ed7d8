// SPDX-License-Identifier: Apache-2.0
/// \file Lots, drawn on a GPU: the CPU's.
#pragma once

#include <skim/cuda/kernel/score_alike.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/evictor/random_tokens.hpp>
#include <skim/math/random.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

/// A block for each head.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    draw_lots(const eviction_call call, std::uint64_t seed, float* scores, std::int64_t stride) {
  __shared__ int of_warps[Threads / 32];
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), thread = threadIdx.x;
  const auto position = [&](int slot) { return static_cast<int>(call.kv.position(head, slot)); };
  int newest = 0;
#pragma unroll 8
  for (int slot = thread; slot < n; slot += Threads) newest = max(newest, position(slot));
  newest = __reduce_max_sync(all_lanes, newest);
  if (thread % 32 == 0) of_warps[thread / 32] = newest;
  __syncthreads();
  newest = __reduce_max_sync(all_lanes, of_warps[thread % (Threads / 32)]);
  // With shared lists the draws of all heads would average out towards none: all heads draw the same.
  const std::uint64_t of_head = draw(seed, static_cast<std::uint64_t>(call.share_heads ? 0 : head));
  const std::uint64_t stream = draw(of_head, static_cast<std::uint64_t>(newest));
  for (int slot = thread; slot < n; slot += Threads) {
    scores[head * stride + slot] = draw_uniform(stream, static_cast<std::uint64_t>(position(slot)));
  }
}

}  // namespace detail

template <>
struct score_kernel<random_tokens> : detail::stateless_kernel<random_tokens> {
  static void score(const random_tokens& policy, const eviction_args& args, const detail::eviction_call& call,
                    const tensor_view<float, 2>& scores, memory, memory, detail::launcher& launch) {
    launch(&detail::draw_lots<1024>, 1, args.kv.heads, 1024, 0, call, policy.seed, scores.data, scores.strides[0]);
  }
};

}}}  // namespace skim::v0_2::cuda
