// SPDX-License-Identifier: Apache-2.0
/// \file Attention on Hopper: a warpgroup gathers rows of K and V, two multiply them by `wgmma`. Head dimensions 64 and 128.
#pragma once

#include <skim/cuda/arch/wgmma.cuh>
#include <skim/cuda/kernel/attend_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// A tile: two warpgroups of 64 packed rows, 64 keys at a time, several of these in flight. Rows in shared memory are cut
/// into panels of 64 columns, 128 bytes, as `wgmma` reads them.
template <int D>
struct warpgroup_tile {
  static constexpr int rows = 128, keys = 64, threads = 384, stages = D <= 64 ? 6 : 4, panels = D / 64;
  static constexpr int q_bytes = rows * D * 2, k_bytes = keys * D * 2, stage_bytes = 2 * k_bytes;
  static constexpr int barriers_at = q_bytes + stages * stage_bytes;
  static constexpr int bytes = 1024 + barriers_at + 8 * (3 * stages + 1);  // the front is aligned to 1024
};

/// As `attend_by_tensor_cores`, whose rounding it shares. Without Hopper's instructions it has no body.
template <class T, int D>
__global__ void __launch_bounds__(warpgroup_tile<D>::threads, 1) attend_by_warpgroups(const attend_call call) {
#if SKIM_CUDA_SM90
  using tile = warpgroup_tile<D>;
  using warpgroup = warpgroup_type<T>;
  using tensor = tensor_type<T>;
  constexpr int N = tile::keys, stages = tile::stages, chunks = D / 8, at_once = 128 / chunks, own_rows = N / at_once;
  extern __shared__ __align__(128) char raw[];
  const std::uint32_t base = (shared_address(raw) + 1023) / 1024 * 1024;
  char* const shared = raw + (base - shared_address(raw));
  const std::uint32_t tiles_at = base + tile::q_bytes, barriers = base + tile::barriers_at;
  const auto k_full = [&](int stage) { return barriers + 8 * stage; };
  const auto v_full = [&](int stage) { return barriers + 8 * (stages + stage); };
  const auto empty = [&](int stage) { return barriers + 8 * (2 * stages + stage); };
  const int thread = threadIdx.x % 128, group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 128, 0);
  let_next_kernel_start();
  row_tile at = rows_at(call, blockIdx.x / call.splits, blockIdx.y);
  if (at.rows == 0) return;
  const int split = blockIdx.x % call.splits;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      make_barrier(k_full(stage), 128);
      make_barrier(v_full(stage), 128);
      make_barrier(empty(stage), 2);
    }
    publish_barriers();
  }
  __syncthreads();

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 80;");
    await_kernel_before();
    at = with_keys(call, at);
    const tile_range keys = split_at(call, at, split);
    if (split >= keys.splits) return;
    const int column = thread % chunks, first = thread / chunks;
    const std::uint32_t to = column / 8 * (N * 128) + first * 128 + ((column % 8 ^ first % 8) << 4);
    // A tile ahead, so that lists and block tables are read while copies are under way.
    int slots[own_rows];
    const auto look_up = [&](int j) {
#pragma unroll
      for (int i = 0; i < own_rows; ++i) {
        const int key = j * N + first + at_once * i;
        slots[i] = key < at.end && j < keys.end ? at.slot(key) : -1;
      }
    };
    const row_addresses keys_at(call.kv, call.kv.k, at.head, column * 16, at.base);
    const row_addresses values_at(call.kv, call.kv.v, at.head, column * 16, at.base);
    look_up(keys.begin);
    for (int j = keys.begin; j < keys.end; ++j) {
      const int turn = j - keys.begin, stage = turn % stages;
      const char *k_rows[own_rows], *v_rows[own_rows];
      bool given[own_rows];
#pragma unroll
      for (int i = 0; i < own_rows; ++i) given[i] = slots[i] >= 0;
      if (keys_at.plain() && values_at.plain()) {
#pragma unroll
        for (int i = 0; i < own_rows; ++i) {
          k_rows[i] = keys_at.plain_row(max(slots[i], 0));
          v_rows[i] = values_at.plain_row(max(slots[i], 0));
        }
      } else {
#pragma unroll
        for (int i = 0; i < own_rows; ++i) {
          k_rows[i] = keys_at.row(max(slots[i], 0));
          v_rows[i] = values_at.row(max(slots[i], 0));
        }
      }
      look_up(j + 1);
      if (turn >= stages) await(empty(stage), (turn / stages - 1) & 1);
      const std::uint32_t stage_at = tiles_at + stage * tile::stage_bytes + to;
#pragma unroll
      for (int i = 0; i < own_rows; ++i) copy_16(stage_at + i * at_once * 128, k_rows[i], given[i]);
      arrive_with_copies(k_full(stage));
#pragma unroll
      for (int i = 0; i < own_rows; ++i) copy_16(stage_at + tile::k_bytes + i * at_once * 128, v_rows[i], given[i]);
      arrive_with_copies(v_full(stage));
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
  // While lists are made, or keys are on their way.
  pack_queries<T, tile::rows, chunks, 256>(call, at, threadIdx.x - 128, [&](int own, int column, uint4 eight) {
    *reinterpret_cast<uint4*>(shared + column / 8 * (tile::rows * 128) + own * 128 + ((column % 8 ^ own % 8) << 4)) =
        eight;
  });
  show_copies();
  asm volatile("bar.sync 1, 256;" ::: "memory");
  await_kernel_before();
  at = with_keys(call, at);
  const tile_range keys = split_at(call, at, split);
  if (split >= keys.splits) return;
  const int lane = thread % 32, own_row = (group - 1) * 64 + thread / 32 * 16 + lane / 4;
  // Products read keys and values from shared memory as fast as it allows: queries stay in registers.
  std::uint32_t queries[D / 16][4];
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    const int row = (group - 1) * 64 + thread / 32 * 16 + lane % 16, column = 2 * d + lane / 16;
    load_matrices(queries[d], base + column / 8 * (tile::rows * 128) + row * 128 + ((column % 8 ^ row % 8) << 4));
  }
  float values[D / 2], logits[N / 2], before[2];
  std::uint32_t weights[N / 16][4];
#pragma unroll
  for (float& value : values) value = 0;
  row_sums sums[2] = {{minus_infinity(), 0}, {minus_infinity(), 0}};
  const bool always_masked = call.kv.positions || call.left < at.past + at.Tq;
  int key_end[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = min(at.first + own_row + half * 8, at.rows - 1) / call.group;
    key_end[half] = call.right < at.Tq ? min(at.end, at.listed + token + 1 + static_cast<int>(call.right)) : at.end;
  }

  // Matrices are told by addresses in units of 16 bytes in the low bits: those of later parts and stages are sums.
  const std::uint64_t k_rows = swizzled(tiles_at, 16, 1024), v_rows = swizzled(tiles_at + tile::k_bytes, N * 128, 1024);
  int k_stage = 0, k_phase = 0, v_stage = 0, v_phase = 0;
  const auto multiply_keys = [&] {
    await(k_full(k_stage), k_phase);
    show_copies();
    begin_products();
    const std::uint64_t stage_rows = k_rows + static_cast<std::uint32_t>(k_stage * (tile::stage_bytes / 16));
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      warpgroup::multiply(logits, queries[d], stage_rows + (d / 4 * (N * 128) + d % 4 * 32) / 16, d);
    }
    end_products();
    k_phase ^= k_stage == stages - 1 ? 1 : 0;
    k_stage = k_stage == stages - 1 ? 0 : k_stage + 1;
  };
  const auto multiply_values = [&] {
    await(v_full(v_stage), v_phase);
    show_copies();
    begin_products();
    const std::uint64_t stage_rows = v_rows + static_cast<std::uint32_t>(v_stage * (tile::stage_bytes / 16));
#pragma unroll
    for (int n = 0; n < N / 16; ++n) warpgroup::multiply(values, weights[n], stage_rows + n * 2048 / 16);
    end_products();
    v_phase ^= v_stage == stages - 1 ? 1 : 0;
    v_stage = v_stage == stages - 1 ? 0 : v_stage + 1;
  };
  // Hides the logits of tile j that rows do not see.
  const auto mask = [&](int j) {
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int row = min(at.first + own_row + half * 8, at.rows - 1);
      const std::int64_t place = call.kv.position(at.head, at.past + row / call.group);
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = j * N + n * 8 + lane % 4 * 2 + e, slot = key < at.end ? at.slot(key) : -1;
          const std::int64_t position = slot < 0 ? 0 : call.kv.position(at.head, slot);
          const bool hidden = slot < 0 || position < place - call.left || position > place + call.right;
          if (half == 0 && hidden) logits[4 * n + e] = minus_infinity();
          if (half == 1 && hidden) logits[4 * n + 2 + e] = minus_infinity();
        }
      }
    }
  };
  const float to_log2 = (call.soft_cap > 0 ? call.soft_cap : call.scale) * log2_e;  // above 0
  // Logits of tile j become weights; `before` is what the sums so far are to be multiplied with.
  const auto weigh = [&](int j) {
    if (call.soft_cap > 0) {
      const float factor = call.scale / call.soft_cap;
#pragma unroll
      for (float& logit : logits) logit = tanhf(logit * factor);
    }
    if (always_masked) {
      mask(j);
    } else if ((j + 1) * N > at.listed) {  // of the call's own keys rows see those up to a place of their own
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (j * N + n * 8 + lane % 4 * 2 + i % 2 >= key_end[i / 2]) logits[4 * n + i] = minus_infinity();
        }
      }
    }
    float largest[2] = {minus_infinity(), minus_infinity()}, shift[2], sum[2][2] = {};
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[half] = fmaxf(largest[half], fmaxf(logits[4 * n + 2 * half], logits[4 * n + 2 * half + 1]));
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(all_lanes, largest[half], 1));
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(all_lanes, largest[half], 2));
      largest[half] = fmaxf(sums[half].largest, largest[half] * to_log2);
      shift[half] = largest[half] == minus_infinity() ? 0 : largest[half];
      before[half] = power_of_2(sums[half].largest - shift[half]);
    }
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& logit = logits[4 * n + 2 * half + e];
          logit = power_of_2(fmaf(logit, to_log2, -shift[half]));
          sum[half][e] += logit;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] = {largest[half], sums[half].sum * before[half] + (sum[half][0] + sum[half][1])};
    }
  };
  const auto round_weights = [&] {
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[n][i] = tensor::pack(logits[8 * n + 2 * i], logits[8 * n + 2 * i + 1]);
    }
  };

  if (keys.begin < keys.end) {
    multiply_keys();
    await_products<0>();
    weigh(keys.begin);
    round_weights();
    // The warpgroups take turns, so that one multiplies while the other weighs.
    if (group == 2) pass_turn(group);
#pragma unroll 1
    for (int j = keys.begin; j + 1 < keys.end; ++j) {
      const int stage = v_stage;
      take_turn(group);
      multiply_keys();
      multiply_values();
      pass_turn(group);
      await_products<1>();
      weigh(j + 1);
      await_products<0>();
      if (thread == 0) arrive(empty(stage));
      if (!__all_sync(all_lanes, before[0] == 1 && before[1] == 1)) {  // seldom: the largest logits come early
#pragma unroll
        for (int i = 0; i < D / 2; ++i) values[i] *= before[i / 2 % 2];
      }
      round_weights();
    }
    if (group == 1) take_turn(group);  // what the other has passed on
    multiply_values();
    await_products<0>();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    row_sums own = sums[half];
    own.sum += __shfl_xor_sync(all_lanes, own.sum, 1);
    own.sum += __shfl_xor_sync(all_lanes, own.sum, 2);
    const int row = at.first + own_row + half * 8;
    if (row >= at.rows) continue;
    float(&own_values)[D / 2] = values;
    write_row<D>(call, at, row, split, keys.splits, own, lane % 4,
                 [&](int n, int e) { return own_values[4 * n + 2 * half + e]; });
  }
#endif
}

}}}}  // namespace skim::v0_2::cuda::detail
