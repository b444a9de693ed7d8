// SPDX-License-Identifier: Apache-2.0
/// \file Means and standard deviations of queries' products with sampled keys, on a GPU, for
/// `similarity::standardised`. In f32.
#pragma once

#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct moments_tile {
  static constexpr int keys = 32, rounds = 2, samples = keys * rounds, threads = 256, queries_of_warp = 8;

  static constexpr std::size_t bytes(std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>(samples * shared_pitch(D));
  }
  /// Samples behind `past` tokens or fewer, at most: every 32nd, or all where that would be fewer than 32.
  static constexpr std::int64_t most(std::int64_t past) {
    return greater(cuda::detail::pieces(past, 32), smaller(past, 16 + 31 * 32));
  }
};

/// Of a piece of the sample. Grid: pieces, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_moments(const quoka_call call) {
  using tile = moments_tile;
  extern __shared__ __align__(16) float keys[];
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int begin = blockIdx.x * tile::samples, all = block.moment_count();
  if (block.reads_all || begin >= all) return;
  const int D = call.kv.k.dim, pitch = static_cast<int>(shared_pitch(D)), lane = threadIdx.x % 32;
  const int n = block.queries(call);
  load_slots<Threads>(call.kv, call.kv.k, block.head, tile::samples, keys, nullptr,
                      [&](int i) { return begin + i < all ? block.base + block.moment_slot(begin + i) : -1; });
  __syncthreads();
  const std::int64_t first_query = static_cast<std::int64_t>(block.list) * call.n;
  product_moments* const to =
      call.moments + (static_cast<std::int64_t>(block.list) * call.pieces + blockIdx.x) * call.n;
  for (int first = threadIdx.x / 32 * tile::queries_of_warp; first < n; first += Threads / 32 * tile::queries_of_warp) {
    float products[tile::queries_of_warp][tile::rounds] = {};
    const float* const queries = query_row(call.queries, D, first_query + first);
    int rows[tile::queries_of_warp];
#pragma unroll
    for (int i = 0; i < tile::queries_of_warp; ++i) rows[i] = min(i, n - 1 - first) * static_cast<int>(padded(D));
#pragma unroll 1
    for (int d = 0; d < D; d += 4) {
      float4 k[tile::rounds];
#pragma unroll
      for (int j = 0; j < tile::rounds; ++j) k[j] = load_4(keys + (j * tile::keys + lane) * pitch + d);
#pragma unroll
      for (int i = 0; i < tile::queries_of_warp; ++i) {
        const float4 c = load_4(queries + rows[i] + d);
#pragma unroll
        for (int j = 0; j < tile::rounds; ++j) products[i][j] = dot_4(c, k[j], products[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < tile::queries_of_warp; ++i) {
      float count = 0, sum = 0, spread = 0;
#pragma unroll
      for (int j = 0; j < tile::rounds; ++j) {
        float& product = products[i][j];
        if (begin + j * tile::keys + lane >= all || !isfinite(product)) product = __int_as_float(0x7fc00000);
        if (isnan(product)) continue;
        count += 1;
        sum += product;
      }
      count = sum_of_warp(count);
      const float mean = sum_of_warp(sum) / fmaxf(count, 1);
#pragma unroll
      for (int j = 0; j < tile::rounds; ++j) {
        if (!isnan(products[i][j])) spread += (products[i][j] - mean) * (products[i][j] - mean);
      }
      spread = sum_of_warp(spread);
      if (lane == 0 && first + i < n) to[first + i] = {count, mean, spread};
    }
  }
}

/// Merges the pieces, in order. A block for each list.
template <int Threads>
__global__ void __launch_bounds__(Threads) standardise(const quoka_call call) {
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all) return;
  const int n = block.queries(call), all = block.moment_count();
  const std::int64_t list = block.list;
  for (int query = threadIdx.x; query < call.n; query += Threads) {
    product_moments own;
    const int pieces = query < n ? (all + moments_tile::samples - 1) / moments_tile::samples : 0;
    for (int first = 0; first < pieces; first += 8) {
      product_moments next[8];  // loads first: else they wait for each other
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        next[i] = call.moments[(list * call.pieces + min(first + i, pieces - 1)) * call.n + query];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (first + i < pieces) own.join(next[i]);
      }
    }
    own.standardise(call.factors[list * call.n + query], call.offsets[list * call.n + query]);
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
