// SPDX-License-Identifier: Apache-2.0
/// \file Scores of keys, on a GPU: the largest standardised product, then the mean with a key's
/// neighbours.
#pragma once

#include <skim/cuda/arch/sm80.cuh>
#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Where raw scores go: beside the final ones where they are smoothed. By slot.
SKIM_DEVICE float* raw_scores(const quoka_call& call, int list) {
  return call.raw + list * call.score_stride;
}

/// Of any type and dimension, by multiply-adds. Grid: pieces of keys, lists.
struct plain_scores {
  static constexpr int keys = 32, threads = 256, queries_of_warp = 8;

  static constexpr std::size_t bytes(std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>(keys * shared_pitch(D) + threads);
  }
};

template <int Threads>
__global__ void __launch_bounds__(Threads) score_plainly(const quoka_call call) {
  using tile = plain_scores;
  extern __shared__ __align__(16) float keys[];
  const quoka_block block(call, blockIdx.y);
  const int begin = blockIdx.x * tile::keys;
  if (block.reads_all || begin >= block.past || begin + tile::keys <= block.first) return;
  const int D = call.kv.k.dim, pitch = static_cast<int>(shared_pitch(D)), thread = threadIdx.x, lane = thread % 32;
  const int n = block.queries(call);
  float* const largest = keys + tile::keys * pitch;
  load_slots<Threads>(call.kv, call.kv.k, block.head, tile::keys, keys, nullptr,
                      [&](int i) { return min(begin + i, block.past - 1); });
  __syncthreads();
  const std::int64_t first_query = static_cast<std::int64_t>(block.list) * call.n;
  const float* const factors = call.factors + static_cast<std::int64_t>(block.list) * call.n;
  const float* const offsets = call.offsets + static_cast<std::int64_t>(block.list) * call.n;
  float most = minus_infinity();
  for (int first = thread / 32 * tile::queries_of_warp; first < n; first += Threads / 32 * tile::queries_of_warp) {
    float products[tile::queries_of_warp] = {};
    for (int d = 0; d < D; d += 4) {
      const float4 k = load_4(keys + lane * pitch + d);
#pragma unroll
      for (int i = 0; i < tile::queries_of_warp; ++i) {
        products[i] =
            dot_4(load_4(query_row(call.queries, D, first_query + min(first + i, n - 1)) + d), k, products[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < tile::queries_of_warp; ++i) {
      const int query = min(first + i, n - 1);
      if (factors[query] > 0) most = fmaxf(most, products[i] * factors[query] + offsets[query]);
    }
  }
  largest[thread] = most;
  __syncthreads();
  if (thread >= tile::keys || begin + thread >= block.past) return;
  for (int warp = 0; warp < Threads / 32; ++warp) most = fmaxf(most, largest[warp * 32 + lane]);
  raw_scores(call, block.list)[begin + thread] = isfinite(most) ? most : __int_as_float(0x7fc00000);
}

/// By tensor cores: so many queries at a time, in the cache's type.
template <int D>
struct tensor_scores {
  static constexpr int queries = 64, keys = 64, threads = 128;
  static constexpr int pitch = 2 * D + 16;

  static constexpr std::size_t bytes(std::int64_t n) {
    return static_cast<std::size_t>((round_up(n) + 2 * keys) * pitch + (2 * round_up(n) + 4 * keys) * 4);
  }
  static SKIM_HD constexpr std::int64_t round_up(std::int64_t n) { return (n + queries - 1) / queries * queries; }
};

template <class T, int D>
__global__ void __launch_bounds__(tensor_scores<D>::threads) score_by_tensor_cores(const quoka_call call) {
  using tile = tensor_scores<D>;
  using tensor = tensor_type<T>;
  constexpr int N = tile::keys, pitch = tile::pitch, chunks = D / 8;
  extern __shared__ __align__(16) char shared[];
  const quoka_block block(call, blockIdx.y);
  const int piece = call.tiles_of_piece * N, begin = blockIdx.x * piece, end = min(block.past, begin + piece);
  if (block.reads_all || begin >= block.past || end <= block.first) return;
  const int n = block.queries(call), all_queries = static_cast<int>(tile::round_up(n));
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  char* const keys = shared + all_queries * pitch;
  float *const factors = reinterpret_cast<float*>(keys + 2 * N * pitch), *const offsets = factors + all_queries;
  float* const largest = offsets + all_queries;  // [4 warps, N]
  const std::uint32_t q_at = shared_address(shared), k_at = shared_address(keys);

  const row_addresses keys_at(call.kv, call.kv.k, block.head, 0);
  const auto copy_keys = [&](int tile_at, int first) {
#pragma unroll
    for (int i = thread; i < N * chunks; i += tile::threads) {
      const int slot = first + i / chunks;
      copy_16(k_at + (tile_at % 2 * N + i / chunks) * pitch + i % chunks * 16,
              keys_at.row(min(slot, block.past - 1)) + i % chunks * 16, slot < block.past);
    }
    end_copies();
  };
  copy_keys(0, begin);
  const std::int64_t first_query = static_cast<std::int64_t>(block.list) * call.n;
  for (int i = thread; i < all_queries * chunks; i += tile::threads) {
    const float* const from = query_row(call.queries, D, first_query + min(i / chunks, n - 1)) + i % chunks * 8;
    std::uint32_t packed[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) packed[j] = tensor::pack(from[2 * j], from[2 * j + 1]);
    *reinterpret_cast<uint4*>(shared + i / chunks * pitch + i % chunks * 16) =
        make_uint4(packed[0], packed[1], packed[2], packed[3]);
  }
  for (int i = thread; i < all_queries; i += tile::threads) {
    factors[i] = i < n ? call.factors[static_cast<std::int64_t>(block.list) * call.n + i] : 0;
    offsets[i] = i < n ? call.offsets[static_cast<std::int64_t>(block.list) * call.n + i] : 0;
  }

  for (int t = 0; begin + t * N < end; ++t) {
    if (begin + (t + 1) * N < end) {
      copy_keys(t + 1, begin + (t + 1) * N);
    } else {
      end_copies();
    }
    await_copies<1>();
    __syncthreads();
    float most[N / 8][2];
#pragma unroll
    for (int k = 0; k < N / 8; ++k) most[k][0] = most[k][1] = minus_infinity();
    for (int first = warp * 16; first < all_queries; first += tile::queries) {
      float products[N / 8][4] = {};
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        std::uint32_t a[4];
        load_matrices(a, q_at + (first + lane % 16) * pitch + (2 * d + lane / 16) * 16);
#pragma unroll
        for (int k = 0; k < N / 16; ++k) {
          std::uint32_t b[4];
          load_matrices(b,
                        k_at + (t % 2 * N + k * 16 + lane / 16 * 8 + lane % 8) * pitch + (2 * d + lane / 8 % 2) * 16);
          tensor::multiply(products[2 * k], a, b[0], b[1]);
          tensor::multiply(products[2 * k + 1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = first + half * 8 + lane / 4;
        if (!(factors[query] > 0)) continue;
#pragma unroll
        for (int k = 0; k < N / 8; ++k) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            most[k][e] = fmaxf(most[k][e], products[k][2 * half + e] * factors[query] + offsets[query]);
          }
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < N / 8; ++k) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          most[k][e] = fmaxf(most[k][e], __shfl_xor_sync(all_lanes, most[k][e], step));
        }
        if (lane < 4) largest[warp * N + k * 8 + lane * 2 + e] = most[k][e];
      }
    }
    __syncthreads();
    const int slot = begin + t * N + thread;
    if (thread < N && slot < end) {
      const float all =
          fmaxf(fmaxf(largest[thread], largest[N + thread]), fmaxf(largest[2 * N + thread], largest[3 * N + thread]));
      raw_scores(call, block.list)[slot] = isfinite(all) ? all : __int_as_float(0x7fc00000);
    }
  }
}

/// The mean of a candidate's score and its neighbours'; those that are not finite have no part and are NaN. Where no query
/// scores: by age, the newest highest. Grid: pieces of keys, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) smooth_scores(const quoka_call call) {
  const quoka_block block(call, blockIdx.y);
  const int slot = blockIdx.x * Threads + threadIdx.x;
  if (block.reads_all || slot < block.first || slot >= block.past) return;
  const bool some = !isnan(call.offsets[static_cast<std::int64_t>(block.list) * call.n]);
  const auto raw = [&](int at) {
    return some ? raw_scores(call, block.list)[at] : static_cast<float>(at + 1 - block.past);
  };
  float sum = 0, count = 0;
  for (int at = max(slot - call.smooth / 2, block.first); at <= min(slot + call.smooth / 2, block.past - 1); ++at) {
    const float score = raw(at);
    sum += isfinite(score) ? score : 0;
    count += isfinite(score) ? 1 : 0;
  }
  call.scores[block.list * call.score_stride + slot] = isfinite(raw(slot)) ? sum / count : __int_as_float(0x7fc00000);
}

}}}}  // namespace skim::v0_2::cuda::detail
