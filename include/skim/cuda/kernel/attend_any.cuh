// SPDX-License-Identifier: Apache-2.0
/// \file Attention in f32 multiply-adds: every type, every head dimension up to 576, scaled rows. For what tensor cores do
/// not take; it does not try to be fast.
#pragma once

#include <skim/cuda/kernel/attend_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct plain_tile {
  static constexpr int rows = 16, keys = 32, threads = 128;
  static constexpr std::int64_t largest_dim = 576;

  /// Bytes of shared memory: q and the sums of values, a tile of keys that becomes one of values, its logits and slots.
  static constexpr std::size_t bytes(std::int64_t D, std::int64_t Dv) {
    const std::int64_t wider = D > Dv ? D : Dv;
    return sizeof(float) * static_cast<std::size_t>(rows * (D + Dv) + keys * (wider + 1) + rows * (keys + 3) + keys);
  }
};

/// Grid as `attend_by_tensor_cores`.
template <int Threads>
__global__ void __launch_bounds__(Threads) attend_plainly(const attend_call call) {
  constexpr int M = plain_tile::rows, N = plain_tile::keys;
  extern __shared__ float floats[];
  const int D = call.kv.k.dim, Dv = call.kv.v.dim, pitch = max(D, Dv) + 1, thread = threadIdx.x;
  float* const q = floats;
  float* const values = q + M * D;
  float* const tile = values + M * Dv;
  float* const logits = tile + N * pitch;  // [M, N]
  float* const largest = logits + M * N;   // [M], and the sums and factors behind it
  float *const sum = largest + M, *const factor = sum + M;
  int* const slots = reinterpret_cast<int*>(factor + M);
  start_in_chain();
  const row_tile at = tile_at(call, blockIdx.x / call.splits, blockIdx.y);
  const int split = blockIdx.x % call.splits;
  const tile_range keys = split_at(call, at, split);
  if (split >= keys.splits) return;

  const auto row_of = [&](int i) { return min(at.first + i, at.rows - 1); };
  const auto token_of = [&](int i) { return at.first_token + row_of(i) / call.group; };
  const auto query_head_of = [&](int i) { return at.head * call.group + row_of(i) % call.group; };
  for (int i = thread; i < M * D; i += Threads) {
    q[i] = call.q_sign *
           load(call.q, call.q_type, token_of(i / D) * call.q_row + query_head_of(i / D) * call.q_head + i % D);
  }
  for (int i = thread; i < M * Dv; i += Threads) values[i] = 0;
  for (int i = thread; i < M; i += Threads) {
    largest[i] = minus_infinity();
    sum[i] = 0;
  }

  const auto load_tile = [&](const stored_rows& of) {
    for (int i = thread; i < N * of.dim; i += Threads) {
      const int slot = slots[i / of.dim], stored = at.base + slot;
      tile[i / of.dim * pitch + i % of.dim] =
          slot < 0 ? 0
                   : load(of.data, of.type, call.kv.offset(of, at.head, stored) + i % of.dim) *
                         call.kv.scale(of, at.head, stored);
    }
  };
  for (int j = keys.begin; j < keys.end; ++j) {
    __syncthreads();
    if (thread < N) slots[thread] = j * N + thread < at.end ? at.slot(j * N + thread) : -1;
    __syncthreads();
    load_tile(call.kv.k);
    __syncthreads();
    for (int i = thread; i < M * N; i += Threads) {
      const int row = i / N, slot = slots[i % N];
      float product = 0;
      for (int d = 0; d < D; ++d) product += q[row * D + d] * tile[i % N * pitch + d];
      float logit = product * call.scale;
      if (call.soft_cap > 0) logit = call.soft_cap * tanhf(logit / call.soft_cap);
      const std::int64_t place = call.kv.position(at.head, at.past + row_of(row) / call.group);
      const std::int64_t key = slot < 0 ? 0 : call.kv.position(at.head, slot);
      const bool hidden = slot < 0 || key < place - call.left || key > place + call.right;
      logits[i] = hidden ? minus_infinity() : logit * log2_e;
    }
    __syncthreads();
    load_tile(call.kv.v);
    if (thread < M) {
      float most = largest[thread];
      for (int n = 0; n < N; ++n) most = fmaxf(most, logits[thread * N + n]);
      const float shift = most == minus_infinity() ? 0 : most;
      factor[thread] = exp2f(largest[thread] - shift);
      float total = 0;
      for (int n = 0; n < N; ++n) {
        float& weight = logits[thread * N + n];
        if (weight == minus_infinity()) {
          weight = -1;  // hidden: its values do not count, NaN neither
        } else {
          weight = exp2f(weight - shift);
          total += weight;
        }
      }
      largest[thread] = most;
      sum[thread] = sum[thread] * factor[thread] + total;
    }
    __syncthreads();
    for (int i = thread; i < M * Dv; i += Threads) {
      const int row = i / Dv;
      float value = values[i] * factor[row];
      for (int n = 0; n < N; ++n) {
        const float weight = logits[row * N + n];
        if (!(weight < 0)) value += weight * tile[n * pitch + i % Dv];
      }
      values[i] = value;
    }
  }
  __syncthreads();

  const bool whole = keys.splits == 1;
  for (int i = thread; i < M; i += Threads) {
    if (at.first + i >= at.rows) continue;
    const std::int64_t partial = partial_at(call, at, token_of(i), query_head_of(i), split);
    if (!whole) {
      call.partial_sums[2 * partial] = largest[i];
      call.partial_sums[2 * partial + 1] = sum[i];
      factor[i] = 1;
    } else {
      const float lse = finish_row(call, query_head_of(i), {largest[i], sum[i]}, factor[i]);
      if (call.lse) call.lse[token_of(i) * call.lse_row + query_head_of(i) * call.lse_head] = lse;
    }
  }
  __syncthreads();
  for (int i = thread; i < M * Dv; i += Threads) {
    const int row = i / Dv;
    if (at.first + row >= at.rows) continue;
    const float value = values[i] * factor[row];
    if (whole) {
      store(call.out, call.out_type, token_of(row) * call.out_row + query_head_of(row) * call.out_head + i % Dv, value);
    } else {
      call.partial[partial_at(call, at, token_of(row), query_head_of(row), split) * Dv + i % Dv] = value;
    }
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
