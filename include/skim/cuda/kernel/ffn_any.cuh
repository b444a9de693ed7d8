// SPDX-License-Identifier: Apache-2.0
/// \file The FFN in f32 multiply-adds: every type, width and stride. For what tensor cores do not take; it does not try to
/// be fast.
#pragma once

#include <skim/cuda/kernel/ffn_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct plain_ffn {
  static constexpr int rows = 64, columns = 64, terms = 16, threads = 256;
};

/// sums [4, 4] of a thread += a [64, n] b [n, 64], of which `a(row, i)` and `b(i, column)` are the elements, in sums of 16.
template <class A, class B>
SKIM_DEVICE void multiply_plainly(float (&sums)[4][4], int n, const A& a, const B& b) {
  constexpr int rows = plain_ffn::rows, terms = plain_ffn::terms, threads = plain_ffn::threads;
  __shared__ float left[terms][rows + 4], right[terms][rows + 4];
  const int thread = threadIdx.x, row = thread / 16 * 4, column = thread % 16 * 4;
  for (int begin = 0; begin < n; begin += terms) {
    for (int i = thread; i < rows * terms; i += threads) {
      const int at = begin + i % terms;
      left[i % terms][i / terms] = at < n ? a(i / terms, at) : 0;
    }
    for (int i = thread; i < rows * terms; i += threads) {
      const auto [term, own] = b.by_rows ? int2{i % terms, i / terms} : int2{i / rows, i % rows};
      right[term][own] = begin + term < n ? b(begin + term, own) : 0;
    }
    __syncthreads();
    float own[4][4] = {};
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      const float4 x = *reinterpret_cast<const float4*>(&left[term][row]);
      const float4 y = *reinterpret_cast<const float4*>(&right[term][column]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) own[i][j] += xs[i] * ys[j];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] += own[i][j];
    }
    __syncthreads();
  }
}

/// Elements of a factor, and whether those of a column lie together in memory.
template <class At>
struct plain_factor {
  bool by_rows;
  At at;

  SKIM_DEVICE float operator()(int i, int column) const { return at(i, column); }
};
template <class At>
SKIM_DEVICE plain_factor<At> factor(bool by_rows, const At& at) {
  return {by_rows, at};
}

/// Values of 64 rows for 64 neurons, in f32. Grid: (tiles of the compensator's neurons, then of the list's) x tiles of rows,
/// halves of those.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_values_plainly(const ffn_call call, int compensator_tiles) {
  constexpr int rows = plain_ffn::rows, columns = plain_ffn::columns;
  start_in_chain();
  const int thread = threadIdx.x, tile = blockIdx.x / call.runs.tiles;
  const ffn_rows at = rows_of_tile(call, blockIdx.x % call.runs.tiles);
  const int first_row = blockIdx.y * rows;
  const bool compensates = tile < compensator_tiles;
  const int first = (compensates ? tile : tile - compensator_tiles) * columns, count = compensates ? at.C : at.count;
  if (first_row >= at.rows || first >= count) return;
  const auto x = [&](int row, int i) {
    return load(call.x, call.x_type, (at.first + min(first_row + row, at.rows - 1)) * call.x_row + i);
  };
  const auto neurons_of = [&](const char* weights, std::int64_t stride) {
    return factor(true, [=](int i, int column) {
      return load(weights, call.weight_type, at.neuron(min(first + column, count - 1)) * stride + i);
    });
  };
  float gates[4][4] = {}, sums[4][4] = {};
  if (compensates) {
    multiply_plainly(sums, call.d, x, factor(false, [&](int i, int column) {
                       return load(call.c1, call.c_type, i * call.c1_row + min(first + column, count - 1));
                     }));
  } else {
    multiply_plainly(sums, call.d, x, neurons_of(call.up, call.up_row));
    if (call.gated) multiply_plainly(gates, call.d, x, neurons_of(call.gate, call.gate_row));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + thread / 16 * 4 + i, neuron = first + thread % 16 * 4 + j;
      if (row >= at.rows || neuron >= count) continue;
      const float sum = j == 0 ? sums[i][0] : j == 1 ? sums[i][1] : j == 2 ? sums[i][2] : sums[i][3];
      const float gate = j == 0 ? gates[i][0] : j == 1 ? gates[i][1] : j == 2 ? gates[i][2] : gates[i][3];
      const bool gated = call.gated && !compensates;
      const float active = activate(compensates ? call.c_act : call.act, gated ? gate : sum);
      reinterpret_cast<float*>(
          call.values)[(at.first + row) * call.values_row + (compensates ? at.padded : 0) + neuron] =
          gated ? active * sum : active;
    }
  }
}

/// The output of 64 rows and columns. Grid: tiles of columns x tiles of rows, halves of those.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_values_plainly(const ffn_call call) {
  constexpr int rows = plain_ffn::rows, columns = plain_ffn::columns;
  start_in_chain();
  const int thread = threadIdx.x;
  const ffn_rows at = rows_of_tile(call, blockIdx.x % call.runs.tiles);
  const int first_row = blockIdx.y * rows, first = blockIdx.x / call.runs.tiles * columns;
  if (first_row >= at.rows) return;
  const float* const values = reinterpret_cast<const float*>(call.values);
  const auto values_from = [&](int column) {
    return [=](int row, int i) {
      return values[(at.first + min(first_row + row, at.rows - 1)) * call.values_row + column + i];
    };
  };
  float sums[4][4] = {};
  multiply_plainly(sums, at.count, values_from(0), factor(false, [&](int i, int column) {
                     return load(call.down, call.weight_type,
                                 at.neuron(i) * call.down_row + min(first + column, call.d - 1));
                   }));
  multiply_plainly(sums, at.C, values_from(at.padded), factor(false, [&](int i, int column) {
                     return load(call.c2, call.c_type, i * call.c2_row + min(first + column, call.d - 1));
                   }));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + thread / 16 * 4 + i, column = first + thread % 16 * 4 + j;
      if (row < at.rows && column < call.d) {
        store(call.out, call.out_type, (at.first + row) * call.out_row + column, sums[i][j]);
      }
    }
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
