// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's predictor: a logit for every neuron of every block that has a list, sums in f32.
#pragma once

#include <skim/cuda/kernel/choose.cuh>
#include <skim/cuda/kernel/ffn_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct predict_call {
  static constexpr int threads = 256, row_threads = 128;
  static constexpr int slice = 64;     // columns of x that a block of `mix_rows` takes
  static constexpr int neurons = 128;  // that a block of `score_neurons` takes

  const char *x, *query, *w1, *w2;
  std::int64_t x_row, w1_row, w2_row;
  bool x_wide, query_wide, w1_wide,
      w2_wide;  // eight elements from a multiple of eight on lie at a multiple of 16 bytes
  element query_type;
  int d, f, rank, slices;
  float scale;
  float *logits, *parts, *hidden;  // [rows], [lists, slices, rank], [lists, rank]
  unsigned* arrivals;              // [lists]
  float* scores;                   // [lists, score_row]
  std::int64_t score_row;
  ffn_runs runs;
};

/// Eight elements that lie together, zeros beyond the `left` that there are.
template <class T>
struct eight {
  uint4 words[sizeof(T) / 2];

  SKIM_DEVICE void load(const T* from, std::int64_t left, bool wide) {
    if (wide && left >= 8) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i) words[i] = reinterpret_cast<const uint4*>(from)[i];
      return;
    }
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < left ? detail::load(from, i) : 0;
    if constexpr (sizeof(T) == 2) {
      using tensor = tensor_type<T>;
      words[0] = make_uint4(tensor::pack(values[0], values[1]), tensor::pack(values[2], values[3]),
                            tensor::pack(values[4], values[5]), tensor::pack(values[6], values[7]));
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[i] = make_uint4(__float_as_uint(values[4 * i]), __float_as_uint(values[4 * i + 1]),
                              __float_as_uint(values[4 * i + 2]), __float_as_uint(values[4 * i + 3]));
      }
    }
  }
  SKIM_DEVICE void clear() {
#pragma unroll
    for (uint4& word : words) word = make_uint4(0, 0, 0, 0);
  }
  SKIM_DEVICE void widen(float (&to)[8]) const {
    if constexpr (sizeof(T) == 2) {
      using tensor = tensor_type<T>;
      const std::uint32_t pairs[4] = {words[0].x, words[0].y, words[0].z, words[0].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[2 * i] = tensor::low(pairs[i]);
        to[2 * i + 1] = tensor::high(pairs[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to[4 * i] = __uint_as_float(words[i].x);
        to[4 * i + 1] = __uint_as_float(words[i].y);
        to[4 * i + 2] = __uint_as_float(words[i].z);
        to[4 * i + 3] = __uint_as_float(words[i].w);
      }
    }
  }
};

/// sums += factor * values.
template <class T>
SKIM_DEVICE void add_eight(float (&sums)[8], float factor, const eight<T>& values) {
  float own[8];
  values.widen(own);
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i] = fmaf(factor, own[i], sums[i]);
}

/// logits [rows] = x . query / sqrt(d). A block for each row.
template <class X, int Threads>
__global__ void __launch_bounds__(Threads) find_row_logits(const predict_call call) {
  __shared__ float of_warps[Threads / 32];
  start_in_chain();
  const int thread = threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (row == 0) {
    for (int i = thread; i < call.runs.lists; i += Threads) call.arrivals[i] = 0;
  }
  float sums[8] = {};
  const X* const x = reinterpret_cast<const X*>(call.x) + row * call.x_row;
  with_type(call.query, call.query_type, [&](const auto* query) {
    using Query = std::remove_const_t<std::remove_pointer_t<decltype(query)>>;
#pragma unroll 4
    for (int d = 8 * thread; d < call.d; d += 8 * Threads) {
      eight<X> left;
      eight<Query> right;
      left.load(x + d, call.d - d, call.x_wide);
      right.load(query + d, call.d - d, call.query_wide);
      float a[8], b[8];
      left.widen(a);
      right.widen(b);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] = fmaf(a[i], b[i], sums[i]);
    }
  });
  float sum = sum_of_warp(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
  if (thread % 32 == 0) of_warps[thread / 32] = sum;
  __syncthreads();
  if (thread > 0) return;
#pragma unroll
  for (int warp = 1; warp < Threads / 32; ++warp) sum += of_warps[warp];
  call.logits[row] = call.scale * sum;
}

/// Of each block's mean row, by the softmax of its logits, 64 columns and what they add to the hidden units; who comes last
/// adds up the parts, in order. Grid: slices of x, lists. x and w1 are older than the chain: their loads are under way
/// before the wait.
template <class X, class W1, int Threads>
__global__ void __launch_bounds__(Threads) mix_rows(const predict_call call) {
  constexpr int slice = predict_call::slice, warps = Threads / 32, units = 256;
  constexpr int row_groups = Threads / (slice / 8), at_once = 4, terms = slice / warps;
  __shared__ float partial[warps][units], mean[slice];
  __shared__ int last;
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int list = blockIdx.y, first = blockIdx.x * slice;
  int neurons;
  const row_range block = block_of_list(call.runs, call.runs.first_list + list, neurons);
  const int column = first + thread % (slice / 8) * 8, group = thread / (slice / 8);
  eight<X> rows[at_once];
  const auto load_rows = [&](int begin) {
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int row = begin + group + row_groups * i;
      if (row < block.rows) {
        rows[i].load(reinterpret_cast<const X*>(call.x) + (block.first + row) * call.x_row + column, call.d - column,
                     call.x_wide);
      } else {
        rows[i].clear();
      }
    }
  };
  eight<W1> weights[terms];
  const auto load_weights = [&](int begin) {
    const int unit = begin + lane * 8;
#pragma unroll
    for (int i = 0; i < terms; ++i) {
      const int term = first + warp * terms + i;
      if (term < call.d && unit < call.rank) {
        weights[i].load(reinterpret_cast<const W1*>(call.w1) + term * call.w1_row + unit, call.rank - unit,
                        call.w1_wide);
      } else {
        weights[i].clear();
      }
    }
  };
  load_rows(0);
  load_weights(0);
  await_kernel_before();

  // Each warp for itself: nobody waits.
  const float* const logits = call.logits + block.first;
  float largest = minus_infinity(), total = 0;
  for (int row = lane; row < block.rows; row += 32) {
    if (isfinite(logits[row])) largest = fmaxf(largest, logits[row]);
  }
  largest = largest_of_warp(largest);
  for (int row = lane; row < block.rows; row += 32) {
    total += isfinite(logits[row]) ? expf(logits[row] - largest) : 0;
  }
  total = sum_of_warp(total);
  float sums[8] = {};
  for (int begin = 0; begin < block.rows; begin += at_once * row_groups) {
    if (begin > 0) load_rows(begin);
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int row = begin + group + row_groups * i;
      const float logit = row < block.rows ? logits[row] : minus_infinity();
      if (isfinite(logit)) add_eight(sums, expf(logit - largest) / total, rows[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sums[i] += __shfl_xor_sync(all_lanes, sums[i], 8);
    sums[i] += __shfl_xor_sync(all_lanes, sums[i], 16);
    if (lane < 8) partial[warp][lane * 8 + i] = sums[i];
  }
  __syncthreads();
  if (thread < slice) {
    float sum = 0;
#pragma unroll
    for (int other = 0; other < warps; ++other) sum += partial[other][thread];
    mean[thread] = sum;
  }

  float* const parts = call.parts + static_cast<std::int64_t>(list) * call.slices * call.rank;
  for (int begin = 0; begin < call.rank; begin += units) {
    if (begin > 0) load_weights(begin);
    __syncthreads();
    float own[8] = {};
#pragma unroll
    for (int i = 0; i < terms; ++i) add_eight(own, mean[warp * terms + i], weights[i]);
#pragma unroll
    for (int i = 0; i < 8; ++i) partial[warp][lane * 8 + i] = own[i];
    __syncthreads();
    for (int unit = thread; unit < units && begin + unit < call.rank; unit += Threads) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < warps; ++other) sum += partial[other][unit];
      __stcg(parts + static_cast<std::int64_t>(blockIdx.x) * call.rank + begin + unit, sum);
    }
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicAdd(call.arrivals + list, 1u) == static_cast<unsigned>(call.slices - 1) ? 1 : 0;
  __syncthreads();
  if (last == 0) return;
  __threadfence();
  for (int unit = thread; unit < call.rank; unit += Threads) {
    float hidden = 0;
#pragma unroll 32
    for (int i = 0; i < call.slices; ++i) hidden += __ldcg(parts + static_cast<std::int64_t>(i) * call.rank + unit);
    call.hidden[static_cast<std::int64_t>(list) * call.rank + unit] = hidden < 0 ? 0 : hidden;
  }
}

/// Scores of 128 neurons for `Lists` blocks. Grid: pieces of neurons, groups of lists. w2 is older than the chain: its loads
/// are under way before the wait.
template <class W2, int Lists, int Threads>
__global__ void __launch_bounds__(Threads, sizeof(W2) == 2 ? 2 : 1) score_neurons(const predict_call call) {
  constexpr int neurons = predict_call::neurons, warps = Threads / 32, groups = Threads / (neurons / 8);
  constexpr int at_once = sizeof(W2) == 2 ? 16 : 8, units = groups * at_once;
  __shared__ float hidden[Lists][units], partial[warps][Lists][neurons];
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, group = thread / (neurons / 8);
  const int first_list = blockIdx.y * Lists, lists = min(Lists, call.runs.lists - first_list);
  const int first = blockIdx.x * neurons, neuron = first + thread % (neurons / 8) * 8;
  eight<W2> weights[at_once];
  const auto load_weights = [&](int begin) {
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int unit = begin + group + groups * i;
      if (unit < call.rank && neuron < call.f) {
        weights[i].load(reinterpret_cast<const W2*>(call.w2) + unit * call.w2_row + neuron, call.f - neuron,
                        call.w2_wide);
      } else {
        weights[i].clear();
      }
    }
  };
  load_weights(0);
  await_kernel_before();
  float sums[Lists][8] = {};
  for (int begin = 0; begin < call.rank; begin += units) {
    if (begin > 0) load_weights(begin);
    __syncthreads();
    for (int i = thread; i < Lists * units; i += Threads) {
      const int list = i / units, unit = begin + i % units;
      hidden[list][i % units] = list < lists && unit < call.rank
                                    ? call.hidden[static_cast<std::int64_t>(first_list + list) * call.rank + unit]
                                    : 0;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      float own[8];
      weights[i].widen(own);
#pragma unroll
      for (int list = 0; list < Lists; ++list) {
        const float factor = hidden[list][group + groups * i];
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[list][j] = fmaf(factor, own[j], sums[list][j]);
      }
    }
  }
#pragma unroll
  for (int list = 0; list < Lists; ++list) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float sum = sums[list][j] + __shfl_xor_sync(all_lanes, sums[list][j], 16);
      if (lane < 16) partial[warp][list][j * 16 + lane] = sum;
    }
  }
  __syncthreads();
  for (int i = thread; i < lists * neurons; i += Threads) {
    const int list = i / neurons, own = i % neurons;
    float sum = 0;
#pragma unroll
    for (int other = 0; other < warps; ++other) sum += partial[other][list][own % 8 * 16 + own / 8];
    if (first + own < call.f) call.scores[(first_list + list) * call.score_row + first + own] = sum;
  }
}

/// Scores of which each list takes the highest, as `choose_highest` and `choose_in_cluster` want them.
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

  template <int Each>
  SKIM_DEVICE void load_ranks(int, const score_row& row, int begin, const unsigned (&)[2],
                              unsigned (&ranks)[Each]) const {
    using slots = slots_of_lane<Each>;
#pragma unroll
    for (int part = 0; part < Each; part += slots::wide) {
      float own[slots::wide];
      load_scores(row.scores, row.stride, row.by_four, slots::at(begin, part), own);
#pragma unroll
      for (int i = 0; i < slots::wide; ++i) {
        ranks[part + i] = slots::at(begin, part + i) < row.end ? rank_bits(own[i]) : 0;
      }
    }
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
