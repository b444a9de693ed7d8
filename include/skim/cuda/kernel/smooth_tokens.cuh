// SPDX-License-Identifier: Apache-2.0
/// \file Tokens by position, and scores averaged over neighbours.
#pragma once

#include <skim/cuda/kernel/eviction_call.cuh>
#include <skim/view.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Slots of each head in order of position, and scores that are set aside: [Hk, stride].
struct token_order {
  std::int32_t *slots, *ranks;
  float* scores;
  std::int64_t stride;

  token_order() = default;
  token_order(skim::detail::arena& arena, std::int64_t heads, std::int64_t row)
      : slots(arena.take<std::int32_t>(heads * row)),
        ranks(arena.take<std::int32_t>(heads * row)),
        scores(arena.take<float>(heads * row)),
        stride(row) {}
};

/// Counts for each token the earlier ones: n^2 comparisons a head, which for some thousand tokens cost less than a sort.
template <int Threads>
__global__ void __launch_bounds__(Threads) order_tokens(const eviction_call call, const token_order order) {
  __shared__ std::int32_t others[Threads];
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), slot = blockIdx.x * Threads + threadIdx.x;
  if (static_cast<int>(blockIdx.x) * Threads >= n) return;
  const auto position = [&](int at) { return static_cast<std::int32_t>(call.kv.position(head, min(at, n - 1))); };
  const std::int32_t own = position(slot);
  int rank = 0;
  for (int first = 0; first < n; first += Threads) {
    others[threadIdx.x] = position(first + threadIdx.x);
    __syncthreads();
    const int count = min(Threads, n - first);
#pragma unroll 8
    for (int i = 0; i < count; ++i) rank += others[i] < own ? 1 : 0;
    __syncthreads();
  }
  if (slot >= n) return;
  order.ranks[head * order.stride + slot] = rank;
  order.slots[head * order.stride + rank] = slot;
}

/// Sets a head's scores aside, in order of position.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    sort_scores(const eviction_call call, const float* scores, std::int64_t stride, const token_order order) {
  start_in_chain();
  const int head = blockIdx.y, rank = blockIdx.x * Threads + threadIdx.x;
  if (rank >= call.kv.length(head)) return;
  order.scores[head * order.stride + rank] = scores[head * stride + order.slots[head * order.stride + rank]];
}

/// Each score becomes the mean of those of the `width` tokens around it that exist and are finite; one that is not becomes
/// NaN.
template <int Threads>
__global__ void __launch_bounds__(Threads) smooth_scores_by_position(const eviction_call call, int width, float* scores,
                                                                     std::int64_t stride, const token_order order) {
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), rank = blockIdx.x * Threads + threadIdx.x;
  if (rank >= n) return;
  const float* const sorted = order.scores + head * order.stride;
  float sum = 0, count = 0;
  for (int at = max(rank - width / 2, 0); at <= min(rank + width / 2, n - 1); ++at) {
    if (!isfinite(sorted[at])) continue;
    sum += sorted[at];
    count += 1;
  }
  scores[head * stride + order.slots[head * order.stride + rank]] =
      isfinite(sorted[rank]) ? sum / count : __int_as_float(0x7fc00000);
}

inline void find_order(const eviction_call& call, const token_order& order, launcher& launch) {
  launch(&order_tokens<256>, pieces(call.kv.tokens, 256), call.heads, 256, 0, call, order);
}

/// Smooths an evictor's scores [Hk, n], head by head in order of position.
inline void smooth_tokens(const eviction_call& call, std::int64_t width, const tensor_view<float, 2>& scores,
                          const token_order& order, launcher& launch) {
  find_order(call, order, launch);
  const std::int64_t blocks = pieces(call.kv.tokens, 256);
  launch(&sort_scores<256>, blocks, call.heads, 256, 0, call, static_cast<const float*>(scores.data), scores.strides[0],
         order);
  launch(&smooth_scores_by_position<256>, blocks, call.heads, 256, 0, call, static_cast<int>(width), scores.data,
         scores.strides[0], order);
}

}}}}  // namespace skim::v0_2::cuda::detail
