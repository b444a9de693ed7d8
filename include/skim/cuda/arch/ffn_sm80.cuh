// SPDX-License-Identifier: Apache-2.0
/// \file The FFN by `mma.sync` and `cp.async`: f16 and bf16 weights, on every GPU from compute capability 8.0 on.
#pragma once

#include <skim/cuda/kernel/ffn_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// 128 rows and 128 columns by 8 warps, of 32 rows and 64 columns each; 64 terms at a time, three of these in flight.
/// Rows in shared memory have 128 bytes: 16 bytes number c of row r stand at c ^ (r % 8), so that eight rows meet all banks.
struct tensor_ffn {
  static constexpr int threads = 256, columns = 128, stages = 3, side_bytes = 128 * 128, stage_bytes = 2 * side_bytes;
  static constexpr int pitch = columns + 8;  // of sums, which take the place of stages
  static constexpr int bytes = stages * stage_bytes;
};
static_assert(ffn_tile::rows * tensor_ffn::pitch * 4 <= tensor_ffn::bytes, "sums take the place of stages");

SKIM_DEVICE std::uint32_t swizzled_at(int row, int chunk) {
  return static_cast<std::uint32_t>(row * 128 + ((chunk ^ row % 8) << 4));
}

/// sums += a [128, 64 steps] b, over the steps [begin, end). `copy_a(to, i, row, chunk, step)` and `copy_b` copy 16 bytes,
/// the thread's i-th: b has a column in each row of 64 terms, or with `ByTerms` a term in each row of 128 columns, which lie
/// in two panels.
template <class T, bool ByTerms, class CopyA, class CopyB>
SKIM_DEVICE void multiply_tiles(float (&sums)[2][8][4], std::uint32_t base, int begin, int end, const CopyA& copy_a,
                                const CopyB& copy_b) {
  using tile = tensor_ffn;
  using tensor = tensor_type<T>;
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 64 * 32, warp_column = thread / 32 % 2 * 64;
  const auto copy = [&](int step) {
    const std::uint32_t to = base + (step - begin) % tile::stages * tile::stage_bytes;
    if (step < end) {
#pragma unroll
      for (int i = 0; i < 128 * 8 / tile::threads; ++i) {
        const int row = i * (tile::threads / 8) + thread / 8;
        copy_a(to + swizzled_at(row, thread % 8), i, row, thread % 8, step);
      }
#pragma unroll
      for (int i = 0; i < 128 * 8 / tile::threads; ++i) {
        if constexpr (ByTerms) {
          const int row = i * (tile::threads / 16) + thread / 16, chunk = thread % 16;
          copy_b(to + tile::side_bytes + chunk / 8 * (64 * 128) + swizzled_at(row, chunk % 8), i, row, chunk, step);
        } else {
          const int row = i * (tile::threads / 8) + thread / 8;
          copy_b(to + tile::side_bytes + swizzled_at(row, thread % 8), i, row, thread % 8, step);
        }
      }
    }
    end_copies();
  };
  copy(begin);
  copy(begin + 1);
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    await_copies<1>();
    __syncthreads();  // the step's rows are there, and nobody reads those of the step before
    copy(step + 2);
    const std::uint32_t a_at = base + (step - begin) % tile::stages * tile::stage_bytes;
    const std::uint32_t b_at = a_at + tile::side_bytes + (ByTerms ? warp_column / 64 * (64 * 128) : 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        load_matrices(a[x], a_at + swizzled_at(warp_row + 16 * x + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        std::uint32_t b[4];
        if constexpr (ByTerms) {
          load_transposed(b, b_at + swizzled_at(16 * k + lane % 16, 2 * n + lane / 16));
        } else {
          load_matrices(b, b_at + swizzled_at(warp_column + 16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        }
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          tensor::multiply(sums[x][2 * n], a[x], b[0], b[1]);
          tensor::multiply(sums[x][2 * n + 1], a[x], b[2], b[3]);
        }
      }
    }
  }
  await_copies<0>();
  __syncthreads();
}

/// Values of 128 rows for 64 neurons, or 128 where there is no gate or they are the compensator's. Grid: (tiles of the
/// compensator's neurons, then of the list's) x tiles of rows.
template <class T, bool Gated>
__global__ void __launch_bounds__(tensor_ffn::threads, 1)
    find_values_by_tensor_cores(const ffn_call call, int compensator_tiles) {
  using tile = tensor_ffn;
  constexpr int neurons = Gated ? tile::columns / 2 : tile::columns;
  extern __shared__ __align__(16) char shared[];
  const std::uint32_t base = shared_address(shared);
  float* const products = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 64 * 32, warp_column = thread / 32 % 2 * 64;
  const int at_tile = blockIdx.x / call.runs.tiles;
  await_kernel_before();
  let_next_kernel_start();  // which may read lists at once
  if (blockIdx.x == 0 && call.splits > 1) {
    for (int i = thread; i < call.runs.tiles * call.column_tiles; i += tile::threads) call.arrivals[i] = 0;
  }
  const ffn_rows at = rows_of_tile(call, blockIdx.x % call.runs.tiles);
  const auto copy_x = [&](std::uint32_t to, int, int row, int chunk, int step) {
    const int d = step * ffn_tile::step + chunk * 8;
    const std::int64_t from = (at.first + min(row, at.rows - 1)) * call.x_row + d;
    copy_16(to, call.x + from * static_cast<int>(sizeof(T)), d < call.d);
  };
  float sums[2][8][4] = {};
  const int steps = (call.d + ffn_tile::step - 1) / ffn_tile::step;
  const auto share_sums = [&] {
#pragma unroll
    for (int x = 0; x < 2; ++x) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float* const to = products + (warp_row + 16 * x + lane / 4) * tile::pitch + warp_column + 8 * n + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(sums[x][n][0], sums[x][n][1]);
        *reinterpret_cast<float2*>(to + 8 * tile::pitch) = make_float2(sums[x][n][2], sums[x][n][3]);
      }
    }
    __syncthreads();
  };
  if (at_tile < compensator_tiles) {
    const int first = at_tile * tile::columns, whole = (at.C + ffn_tile::step - 1) / ffn_tile::step * ffn_tile::step;
    if (at.rows <= 0 || first >= at.C) return;
    multiply_tiles<T, true>(sums, base, 0, steps, copy_x, [&](std::uint32_t to, int, int row, int chunk, int step) {
      const int d = step * ffn_tile::step + row, c = first + chunk * 8;
      const bool given = d < call.d && c < at.C;
      copy_16(to, call.c1 + (given ? d * call.c1_row + c : 0) * static_cast<int>(sizeof(T)), given);
    });
    share_sums();
    write_values<T, false>(call, at, call.c_act, products, tile::pitch, first, min(first + tile::columns, whole), at.C,
                           at.padded + first, thread, tile::threads);
    return;
  }
  const int first = (at_tile - compensator_tiles) * neurons;
  if (at.rows <= 0 || first >= at.count) return;
  constexpr int own_rows = 128 * 8 / tile::threads;
  const char* own[own_rows];
#pragma unroll
  for (int i = 0; i < own_rows; ++i) {
    const int row = i * (tile::threads / 8) + thread / 8;
    const std::int64_t neuron = at.neuron(min(first + (Gated ? row / 2 : row), at.count - 1));
    own[i] = Gated && row % 2 == 0 ? call.gate + neuron * call.gate_row * static_cast<int>(sizeof(T))
                                   : call.up + neuron * call.up_row * static_cast<int>(sizeof(T));
  }
  multiply_tiles<T, false>(sums, base, 0, steps, copy_x, [&](std::uint32_t to, int i, int, int chunk, int step) {
    const int d = step * ffn_tile::step + chunk * 8;
    copy_16(to, own[i] + d * static_cast<int>(sizeof(T)), d < call.d);
  });
  share_sums();
  const int last = first + neurons < at.count ? first + neurons : at.padded;
  write_values<T, Gated>(call, at, call.act, products, tile::pitch, first, last, at.count, first, thread,
                         tile::threads);
}

/// 128 rows and columns of the output, of one segment where there are `Splits`, else of all. Grid: tiles of columns x tiles
/// of rows x splits.
template <class T, bool Splits>
__global__ void __launch_bounds__(tensor_ffn::threads, 1) sum_values_by_tensor_cores(const ffn_call call) {
  using tile = tensor_ffn;
  extern __shared__ __align__(16) char shared[];
  __shared__ int last;
  const std::uint32_t base = shared_address(shared);
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 64 * 32, warp_column = thread / 32 % 2 * 64;
  const int splits = Splits ? call.splits : 1, split = blockIdx.x % splits, unit = blockIdx.x / splits;
  start_in_chain();
  const ffn_rows at = rows_of_tile(call, unit % call.runs.tiles);
  const int first = unit / call.runs.tiles * ffn_tile::columns;
  const int steps = at.steps(), segments = segments_of(steps, call.column_tiles);
  if (at.rows <= 0 || split >= segments) return;
  const auto copy_values = [&](std::uint32_t to, int, int row, int chunk, int step) {
    const std::int64_t from = (at.first + min(row, at.rows - 1)) * call.values_row + step * ffn_tile::step + chunk * 8;
    copy_16(to, call.values + from * static_cast<int>(sizeof(T)), true);
  };
  const auto copy_rows = [&](std::uint32_t to, int, int row, int chunk, int step) {
    const int own = step * ffn_tile::step + row, column = first + chunk * 8;
    const bool listed = own < at.padded, given = column < call.d && (listed ? own < at.count : own - at.padded < at.C);
    const std::int64_t from = !given   ? 0
                              : listed ? at.neuron(own) * call.down_row + column
                                       : (own - at.padded) * call.c2_row + column;
    copy_16(to, (listed ? call.down : call.c2) + from * static_cast<int>(sizeof(T)), given);
  };
  float all[2][8][4] = {};
  for (int segment = split; segment < (Splits ? split + 1 : segments); ++segment) {
    float sums[2][8][4] = {};
    const step_range range = segment_at(steps, segments, segment);
    multiply_tiles<T, true>(sums, base, range.begin, range.end, copy_values, copy_rows);
#pragma unroll
    for (int i = 0; i < 64; ++i) all[i / 32][i / 4 % 8][i % 4] += sums[i / 32][i / 4 % 8][i % 4];
  }
  if (Splits && segments > 1) {
    float(&flat)[64] = reinterpret_cast<float(&)[64]>(all);
    if (!join_segments<tile::threads>(call, flat, unit, split, segments, thread, &last, [] { __syncthreads(); }))
      return;
  }
  write_output<2, 8>(call, at, warp_row + lane / 4, 16, first + warp_column + lane % 4 * 2,
                     [&](int part, int n, int half, int e) { return all[part][n][2 * half + e]; });
}

}}}}  // namespace skim::v0_2::cuda::detail
