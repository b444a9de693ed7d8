// SPDX-License-Identifier: Apache-2.0
/// \file Tokens by position, and scores averaged over neighbours.
#pragma once

#include <skim/cuda/kernel/eviction_call.cuh>
#include <skim/view.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Slots of each head in order of position, and scores that are set aside: [Hk, stride].
struct token_order {
  static constexpr int chunk = 1024;  // tokens that a block sorts

  std::int32_t *slots, *ranks;
  float* scores;
  unsigned long long* sorted;  // [Hk, chunks, chunk]: positions, and slots in their lower half
  std::int64_t stride, chunks;

  token_order() = default;
  token_order(skim::detail::arena& arena, std::int64_t heads, std::int64_t row)
      : slots(arena.take<std::int32_t>(heads * row)),
        ranks(arena.take<std::int32_t>(heads * row)),
        scores(arena.take<float>(heads * row)),
        stride(row),
        chunks(pieces(row, chunk)) {
    sorted = arena.take<unsigned long long>(heads * chunks * chunk);
  }
  SKIM_DEVICE unsigned long long* sorted_chunk(int head, int c) const { return sorted + (head * chunks + c) * chunk; }
};

/// Sorts chunks of tokens by position, each in one block: bitonic.
template <int Threads>
__global__ void __launch_bounds__(Threads) sort_chunks(const eviction_call call, const token_order order) {
  constexpr int chunk = token_order::chunk;
  __shared__ unsigned long long keys[chunk];
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), first = blockIdx.x * chunk;
  if (first >= n) return;
  for (int i = threadIdx.x; i < chunk; i += Threads) {
    const int slot = first + i;
    const auto position = static_cast<unsigned long long>(slot < n ? call.kv.position(head, slot) : 0);
    keys[i] = slot < n ? position << 32 | static_cast<unsigned>(slot) : ~0ull;
  }
  for (int size = 2; size <= chunk; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < chunk / 2; i += Threads) {
        const int low = i / step * 2 * step + i % step, high = low + step;
        const bool descends = (low & size) != 0;
        const unsigned long long a = keys[low], b = keys[high];
        if ((a > b) != descends) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < chunk; i += Threads) order.sorted_chunk(head, blockIdx.x)[i] = keys[i];
}

/// A token's rank is its place in its own chunk and in all others'.
template <int Threads>
__global__ void __launch_bounds__(Threads) rank_tokens(const eviction_call call, const token_order order) {
  constexpr int chunk = token_order::chunk;
  start_in_chain();
  const int head = blockIdx.y, n = call.kv.length(head), at = blockIdx.x * Threads + threadIdx.x;
  const int own = at / chunk, chunks = (n + chunk - 1) / chunk;
  if (own >= chunks) return;
  const unsigned long long key = order.sorted_chunk(head, own)[at % chunk];
  if (key == ~0ull) return;  // behind the last token
  int rank = at % chunk;
#pragma unroll 4
  for (int c = 0; c < chunks; ++c) {
    const unsigned long long* const keys = order.sorted_chunk(head, c);
    int below = 0;
#pragma unroll
    for (int step = chunk / 2; step > 0; step /= 2) below += keys[below + step - 1] < key ? step : 0;
    below += keys[below] < key ? 1 : 0;
    rank += c == own ? 0 : below;
  }
  const int slot = static_cast<int>(key & 0xffffffffu);
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

/// Each score becomes the mean of those of the `width` tokens around it that exist and are finite, or, with `zeros`, as if
/// there were zeros beyond the ends; one that is not finite becomes NaN.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    smooth_scores_by_position(const eviction_call call, int width, bool zeros, float* scores, std::int64_t stride,
                              const token_order order) {
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
      isfinite(sorted[rank]) ? sum / (zeros ? static_cast<float>(width) : count) : __int_as_float(0x7fc00000);
}

inline void find_order(const eviction_call& call, const token_order& order, launcher& launch) {
  launch(&sort_chunks<512>, pieces(call.kv.tokens, token_order::chunk), call.heads, 512, 0, call, order);
  launch(&rank_tokens<128>, pieces(call.kv.tokens, token_order::chunk) * (token_order::chunk / 128), call.heads, 128, 0,
         call, order);
}

/// Smooths an evictor's scores [Hk, n], head by head in order of position: see `smooth_scores_by_position`.
inline void smooth_tokens(const eviction_call& call, std::int64_t width, bool zeros,
                          const tensor_view<float, 2>& scores, const token_order& order, launcher& launch) {
  find_order(call, order, launch);
  const std::int64_t blocks = pieces(call.kv.tokens, 256);
  launch(&sort_scores<256>, blocks, call.heads, 256, 0, call, static_cast<const float*>(scores.data), scores.strides[0],
         order);
  launch(&smooth_scores_by_position<256>, blocks, call.heads, 256, 0, call, static_cast<int>(width), zeros, scores.data,
         scores.strides[0], order);
}

}}}}  // namespace skim::v0_2::cuda::detail
