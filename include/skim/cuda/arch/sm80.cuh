// SPDX-License-Identifier: Apache-2.0
/// \file Attention by `mma.sync` and `cp.async`: f16 and bf16 caches, on every GPU from compute capability 8.0 on.
#pragma once

#include <skim/cuda/kernel/attend_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// A tile: 4 warps of `16 * row_parts` packed rows, `keys` keys at a time, two of these in flight.
template <int D>
struct tensor_tile {
  static constexpr int row_parts = D <= 128 ? 2 : 1, rows = 64 * row_parts, keys = D <= 80 ? 64 : 32, threads = 128;
  static constexpr int pitch = 2 * D + 16;  // bytes of a row: an odd number of 16, so that eight rows meet all banks
  static constexpr int slots_at = (rows + 4 * keys) * pitch;
  static constexpr int bytes = slots_at + 3 * keys * static_cast<int>(sizeof(int));
};

/// Attention of one tile of packed rows to one split of its keys. Grid: tiles x splits, KV heads.
///
/// Logits and sums are f32; q is rounded to the cache's type T, as are the softmax's weights, relative to the largest that
/// the row has met, before they multiply values.
template <class T, int D>
__global__ void __launch_bounds__(tensor_tile<D>::threads, 2) attend_by_tensor_cores(const attend_call call) {
  using tile = tensor_tile<D>;
  using tensor = tensor_type<T>;
  constexpr int row_parts = tile::row_parts, N = tile::keys, pitch = tile::pitch, chunks = D / 8;
  extern __shared__ __align__(16) char shared[];
  const std::uint32_t q_at = shared_address(shared), k_at = q_at + tile::rows * pitch, v_at = k_at + 2 * N * pitch;
  int* const slots = reinterpret_cast<int*>(shared + tile::slots_at);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  start_in_chain();
  const row_tile at = tile_at(call, blockIdx.x / call.splits, blockIdx.y);
  const int split = blockIdx.x % call.splits;
  const tile_range keys = split_at(call, at, split);
  if (split >= keys.splits) return;

  pack_queries<T, tile::rows, chunks, tile::threads>(call, at, thread, [&](int row, int column, uint4 eight) {
    *reinterpret_cast<uint4*>(shared + row * pitch + column * 16) = eight;
  });

  const auto slot_of = [&](int key_tile) {
    const int key = key_tile * N + thread;
    return key < at.end && key_tile < keys.end ? at.slot(key) : -1;
  };
  const auto copy_rows = [&](const stored_rows& of, std::uint32_t to, int key_tile) {
    const int* const own = slots + key_tile % 3 * N;
    for (int i = thread; i < N * chunks; i += tile::threads) {
      const int slot = own[i / chunks];
      copy_16(to + (key_tile % 2 * N + i / chunks) * pitch + i % chunks * 16,
              call.kv.row(of, at.head, at.base + max(slot, 0)) + i % chunks * 16, slot >= 0);
    }
    end_copies();
  };
  if (thread < N) {
    slots[keys.begin % 3 * N + thread] = slot_of(keys.begin);
    slots[(keys.begin + 1) % 3 * N + thread] = slot_of(keys.begin + 1);
  }
  __syncthreads();
  copy_rows(call.kv.k, k_at, keys.begin);
  copy_rows(call.kv.v, v_at, keys.begin);

  float values[row_parts][D / 8][4] = {};
  row_sums sums[row_parts][2];
#pragma unroll
  for (int x = 0; x < row_parts; ++x) sums[x][0] = sums[x][1] = {minus_infinity(), 0};
  const float to_log2 = call.soft_cap > 0 ? 1 : call.scale * log2_e;
  const bool always_masked = call.kv.positions || call.left < at.past + at.Tq;
  const int warp_row = warp * 16 * row_parts;

  for (int j = keys.begin; j < keys.end; ++j) {
    const int later = thread < N ? slot_of(j + 2) : 0;
    if (j + 1 < keys.end) {
      copy_rows(call.kv.k, k_at, j + 1);
      copy_rows(call.kv.v, v_at, j + 1);
    } else {
      end_copies();
      end_copies();
    }
    await_copies<3>();
    __syncthreads();

    float logits[row_parts][N / 8][4] = {};
    const std::uint32_t k_tile = k_at + j % 2 * N * pitch, v_tile = v_at + j % 2 * N * pitch;
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      std::uint32_t a[row_parts][4];
#pragma unroll
      for (int x = 0; x < row_parts; ++x) {
        load_matrices(a[x], q_at + (warp_row + x * 16 + lane % 16) * pitch + (2 * d + lane / 16) * 16);
      }
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        std::uint32_t b[4];
        load_matrices(b, k_tile + (n * 16 + lane / 16 * 8 + lane % 8) * pitch + (2 * d + lane / 8 % 2) * 16);
#pragma unroll
        for (int x = 0; x < row_parts; ++x) {
          tensor::multiply(logits[x][2 * n], a[x], b[0], b[1]);
          tensor::multiply(logits[x][2 * n + 1], a[x], b[2], b[3]);
        }
      }
    }

    const bool masked = always_masked || (j + 1) * N > at.listed;
#pragma unroll
    for (int x = 0; x < row_parts; ++x) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = min(at.first + warp_row + x * 16 + half * 8 + lane / 4, at.rows - 1);
        const std::int64_t place = masked ? call.kv.position(at.head, at.past + row / call.group) : 0;
        float largest = sums[x][half].largest;
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            float& logit = logits[x][n][e];
            if (call.soft_cap > 0) logit = call.soft_cap * log2_e * tanhf(logit * call.scale / call.soft_cap);
            logit *= to_log2;
            if (masked) {
              const int slot = slots[j % 3 * N + n * 8 + lane % 4 * 2 + e % 2];
              const std::int64_t key = slot < 0 ? 0 : call.kv.position(at.head, slot);
              if (slot < 0 || key < place - call.left || key > place + call.right) logit = minus_infinity();
            }
            largest = fmaxf(largest, logit);
          }
        }
        largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, 2));
        const float shift = largest == minus_infinity() ? 0 : largest;
        const float before = power_of_2(sums[x][half].largest - shift);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            logits[x][n][e] = power_of_2(logits[x][n][e] - shift);
            sum += logits[x][n][e];
          }
        }
        sums[x][half] = {largest, sums[x][half].sum * before + sum};
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
          values[x][d][2 * half] *= before;
          values[x][d][2 * half + 1] *= before;
        }
      }
    }

    await_copies<2>();
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      std::uint32_t a[row_parts][4];
#pragma unroll
      for (int x = 0; x < row_parts; ++x) {
        const float(&left)[4] = logits[x][2 * n], (&right)[4] = logits[x][2 * n + 1];
        a[x][0] = tensor::pack(left[0], left[1]);
        a[x][1] = tensor::pack(left[2], left[3]);
        a[x][2] = tensor::pack(right[0], right[1]);
        a[x][3] = tensor::pack(right[2], right[3]);
      }
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        std::uint32_t b[4];
        load_transposed(b, v_tile + (n * 16 + lane % 16) * pitch + (2 * d + lane / 16) * 16);
#pragma unroll
        for (int x = 0; x < row_parts; ++x) {
          tensor::multiply(values[x][2 * d], a[x], b[0], b[1]);
          tensor::multiply(values[x][2 * d + 1], a[x], b[2], b[3]);
        }
      }
    }
    if (thread < N) slots[(j + 2) % 3 * N + thread] = later;
    __syncthreads();  // the next copies go where this tile's keys are
  }
  await_copies<0>();

#pragma unroll
  for (int x = 0; x < row_parts; ++x) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_sums own = sums[x][half];
      own.sum += __shfl_xor_sync(all_lanes, own.sum, 1);
      own.sum += __shfl_xor_sync(all_lanes, own.sum, 2);
      const int row = at.first + warp_row + x * 16 + half * 8 + lane / 4;
      if (row >= at.rows) continue;
      float(&own_values)[D / 8][4] = values[x];
      write_row<D>(call, at, row, split, keys.splits, own, lane % 4,
                   [&](int n, int e) { return own_values[n][2 * half + e]; });
    }
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
