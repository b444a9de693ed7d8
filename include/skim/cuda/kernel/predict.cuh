// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's predictor: a logit for every neuron of every block that has a list, sums in f32.
#pragma once

#include <skim/cuda/kernel/choose.cuh>
#include <skim/cuda/kernel/ffn_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct predict_call {
  static constexpr int threads = 256, row_threads = 128;
  static constexpr int slice = 64;            // columns of x that a block of `mix_rows` takes
  static constexpr int neurons = 128;         // that a block of `score_neurons` takes
  static constexpr int hidden_at_once = 512;  // hidden units in shared memory

  const char *x, *query, *w1, *w2;
  std::int64_t x_row, w1_row, w2_row;
  element x_type, query_type, w1_type, w2_type;
  int d, f, rank, slices;
  float scale;
  float *logits, *parts, *hidden;  // [rows], [lists, slices, rank], [lists, rank]
  unsigned* arrivals;              // [lists]
  float* scores;                   // [lists, score_row]
  std::int64_t score_row;
  ffn_runs runs;
};

/// The sum over a block's threads of up to 1024, in order of its warps. `of_warps [32]` is shared.
template <int Threads>
SKIM_DEVICE float sum_over_block(float value, float* of_warps) {
  value = sum_of_warp(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < Threads / 32; ++warp) sum += of_warps[warp];
  return sum;
}

/// logits [rows] = x . query / sqrt(d). A block for each row.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_row_logits(const predict_call call) {
  __shared__ float of_warps[32];
  start_in_chain();
  const int thread = threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (row == 0) {
    for (int i = thread; i < call.runs.lists; i += Threads) call.arrivals[i] = 0;
  }
  float sum = 0;
  with_type(call.x, call.x_type, [&](const auto* x) {
    x += row * call.x_row;
    with_type(call.query, call.query_type, [&](const auto* query) {
#pragma unroll 8
      for (int d = thread; d < call.d; d += Threads) sum += load(x, d) * load(query, d);
    });
  });
  sum = sum_over_block<Threads>(sum, of_warps);
  if (thread == 0) call.logits[row] = call.scale * sum;
}

/// Of each block's mean row, by the softmax of its logits, 64 columns and what they add to the hidden units; who comes last
/// adds up the parts, in order. Grid: slices of x, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) mix_rows(const predict_call call) {
  constexpr int slice = predict_call::slice, groups = Threads / slice;
  __shared__ float of_warps[32], weights[Threads], mean[groups][slice];
  __shared__ int last;
  start_in_chain();
  const int thread = threadIdx.x, list = blockIdx.y, first = blockIdx.x * slice;
  int neurons;
  const row_range block = block_of_list(call.runs, call.runs.first_list + list, neurons);
  const float* const logits = call.logits + block.first;
  float largest = minus_infinity();
  for (int row = thread; row < block.rows; row += Threads) {
    if (isfinite(logits[row])) largest = fmaxf(largest, logits[row]);
  }
  largest = largest_of_warp(largest);
  if (thread % 32 == 0) of_warps[thread / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < Threads / 32; ++warp) largest = fmaxf(largest, of_warps[warp]);
  float total = 0;
  for (int row = thread; row < block.rows; row += Threads) {
    total += isfinite(logits[row]) ? expf(logits[row] - largest) : 0;
  }
  total = sum_over_block<Threads>(total, of_warps);

  float sum = 0;
  const int column = min(first + thread % slice, call.d - 1), group = thread / slice;
  for (int begin = 0; begin < block.rows; begin += Threads) {
    const int count = min(Threads, block.rows - begin);
    const float logit = thread < count ? logits[begin + thread] : minus_infinity();
    __syncthreads();
    weights[thread] = isfinite(logit) ? expf(logit - largest) / total : 0;
    __syncthreads();
    with_type(call.x, call.x_type, [&](const auto* x) {
      x += (block.first + begin) * call.x_row + column;
#pragma unroll 8
      for (int row = group; row < count; row += groups) {
        const float value = load(x, row * call.x_row), weight = weights[row];
        sum = weight == 0 ? sum : sum + weight * value;  // the value of a row that is lost may be a NaN
      }
    });
  }
  mean[group][thread % slice] = sum;
  __syncthreads();
  if (thread < slice) {
    for (int other = 1; other < groups; ++other) sum += mean[other][thread];
    mean[0][thread] = first + thread < call.d ? sum : 0;
  }
  __syncthreads();

  float* const parts = call.parts + static_cast<std::int64_t>(list) * call.slices * call.rank;
  const int count = min(slice, call.d - first);
  for (int unit = thread; unit < call.rank; unit += Threads) {
    float part = 0;
    with_type(call.w1, call.w1_type, [&](const auto* w1) {
      w1 += first * call.w1_row + unit;
#pragma unroll 16
      for (int i = 0; i < slice; ++i) {
        const float weight = load(w1, min(i, count - 1) * call.w1_row), factor = mean[0][i];
        part = factor == 0 ? part : part + factor * weight;
      }
    });
    __stcg(parts + static_cast<std::int64_t>(blockIdx.x) * call.rank + unit, part);
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicAdd(call.arrivals + list, 1u) == static_cast<unsigned>(call.slices - 1) ? 1 : 0;
  __syncthreads();
  if (last == 0) return;
  __threadfence();
  for (int unit = thread; unit < call.rank; unit += Threads) {
    float hidden = 0;
#pragma unroll 16
    for (int i = 0; i < call.slices; ++i) hidden += __ldcg(parts + static_cast<std::int64_t>(i) * call.rank + unit);
    call.hidden[static_cast<std::int64_t>(list) * call.rank + unit] = hidden < 0 ? 0 : hidden;
  }
}

/// Two elements side by side, of which the second may be missing; `together`: in one piece.
SKIM_DEVICE float2 load_pair(const float* from, bool second, bool) {
  return make_float2(from[0], second ? from[1] : 0);
}
template <class T>
SKIM_DEVICE float2 load_pair(const T* from, bool second, bool together) {
  if (together) {
    const std::uint32_t both = *reinterpret_cast<const std::uint32_t*>(from);
    return make_float2(tensor_type<T>::low(both), tensor_type<T>::high(both));
  }
  return make_float2(load(from, 0), second ? load(from, 1) : 0);
}

/// Scores of 128 neurons for `Lists` blocks. Grid: pieces of neurons, groups of lists.
template <int Threads, int Lists>
__global__ void __launch_bounds__(Threads) score_neurons(const predict_call call) {
  constexpr int neurons = predict_call::neurons, groups = Threads / (neurons / 2),
                at_once = predict_call::hidden_at_once;
  __shared__ float hidden[Lists][at_once];
  __shared__ float2 parts[groups][Lists][neurons / 2];
  start_in_chain();
  const int thread = threadIdx.x, pair = thread % (neurons / 2), group = thread / (neurons / 2);
  const int first_list = blockIdx.y * Lists, lists = min(Lists, call.runs.lists - first_list);
  const int neuron = blockIdx.x * neurons + 2 * pair, own = min(neuron, call.f - 1);
  const bool second = neuron + 1 < call.f;
  const bool together = second && (call.w2_row % 2 == 0) && reinterpret_cast<std::uintptr_t>(call.w2) % 4 == 0;
  float2 sums[Lists] = {};
  for (int begin = 0; begin < call.rank; begin += at_once) {
    const int count = min(at_once, call.rank - begin);
    __syncthreads();
    for (int i = thread; i < Lists * count; i += Threads) {
      const int list = i / count, unit = i - list * count;
      hidden[list][unit] =
          list < lists ? call.hidden[static_cast<std::int64_t>(first_list + list) * call.rank + begin + unit] : 0;
    }
    __syncthreads();
    with_type(call.w2, call.w2_type, [&](const auto* w2) {
      w2 += begin * call.w2_row + own;
#pragma unroll 16
      for (int unit = group; unit < count; unit += groups) {
        const float2 weight = load_pair(w2 + unit * call.w2_row, second, together);
#pragma unroll
        for (int list = 0; list < Lists; ++list) {
          const float factor = hidden[list][unit];
          sums[list].x = factor == 0 ? sums[list].x : sums[list].x + factor * weight.x;
          sums[list].y = factor == 0 ? sums[list].y : sums[list].y + factor * weight.y;
        }
      }
    });
  }
#pragma unroll
  for (int list = 0; list < Lists; ++list) parts[group][list][pair] = sums[list];
  __syncthreads();
  for (int i = thread; i < lists * neurons; i += Threads) {
    const int list = i / neurons, at = i % neurons;
    float sum = 0;
#pragma unroll
    for (int other = 0; other < groups; ++other) {
      const float2 part = parts[other][list][at / 2];
      sum += at % 2 == 0 ? part.x : part.y;
    }
    if (blockIdx.x * neurons + at < call.f) {
      call.scores[(first_list + list) * call.score_row + blockIdx.x * neurons + at] = sum;
    }
  }
}

/// Scores of which each list takes the highest, as `choose_highest` wants them.
struct neuron_rows {
  static constexpr bool by_position = false;

  const float* scores;
  std::int64_t stride;
  bool by_four;
  int f;
  index_lists lists;
  ffn_runs runs;
  int first;  // row of the runs' lists that the grid begins with

  SKIM_DEVICE score_row row(int at) const {
    const int list = runs.first_list + first + at;
    score_row row{};
    static_cast<void>(block_of_list(runs, list, row.count));
    row.scores = scores + (first + at) * stride;
    row.stride = by_four ? static_cast<int>(stride) : f;
    row.by_four = by_four;
    row.end = f;
    row.list = lists.row(list);
    row.length = lists.counts + list;
    return row;
  }
  SKIM_DEVICE int position(int, int slot) const { return slot; }
};

}}}}  // namespace skim::v0_2::cuda::detail
