// SPDX-License-Identifier: Apache-2.0
/// \file The paper's queries on a GPU (arXiv 2602.08722, Algorithm 1, steps 1 to 3): unit queries of the tokens that each head
/// chooses by their cosine with its mean, averaged over the group slot by slot. Of any type and dimension, in f32.
#pragma once

#include <skim/cuda/kernel/unit_rows.cuh>
#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct mean_queries {
  static constexpr int threads = 512, warps = threads / 32, average_threads = 128;
  static constexpr int rows = 8, columns = 4;  // of a warp, under way at a time; of a lane, side by side

  /// Sums of each warp, the mean, the tokens' cosines and inverse lengths.
  static std::size_t bytes(std::int64_t D, std::int64_t Tq) {
    return sizeof(float) * static_cast<std::size_t>((warps + 1) * padded(D) + 2 * Tq);
  }
};

/// The queries of one head.
template <class T>
struct head_rows {
  const T* first;
  std::int64_t stride;
  int Tq, D;
  bool by_four;  // numbers 4 i to 4 i + 3 of a row can be loaded together

  SKIM_DEVICE head_rows(const T* q, const quoka_call& call, const quoka_block& block, int head)
      : first(q + block.query_offset(call, head * block.Tq)), stride(call.q_row), Tq(block.Tq), D(call.kv.k.dim) {
    by_four = D % 4 == 0 && stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(first) % (4 * sizeof(T)) == 0;
  }

  /// A warp's every 16th token, eight of them at a time: calls `add(i, token, d, values)` for the four numbers from d on that
  /// a lane has of the i-th, zeros beyond D, then `end(token of the first)`. Tokens beyond the last repeat it.
  template <class Add, class End>
  SKIM_DEVICE void for_each(int first_column, int end_column, const Add& add, const End& end) const {
    using own = mean_queries;
#pragma unroll 1
    for (int begin = threadIdx.x / 32; begin < Tq; begin += own::warps * own::rows) {
      const auto token_at = [&](int i) { return begin + i * own::warps; };
#pragma unroll 1
      for (int d = first_column + threadIdx.x % 32 * own::columns; d < end_column; d += 32 * own::columns) {
        float values[own::rows][own::columns];  // loads first: else they wait for each other
#pragma unroll
        for (int i = 0; i < own::rows; ++i) load_four(values[i], min(token_at(i), Tq - 1), d);
#pragma unroll
        for (int i = 0; i < own::rows; ++i) add(i, token_at(i), d, values[i]);
      }
      __syncwarp();
      end(begin);
    }
  }

  /// Numbers d to d + 3 of a token, zeros beyond D.
  SKIM_DEVICE void load_four(float (&to)[4], int token, int d) const {
    const T* const row = first + token * stride;
    if (by_four) return load_together(to, row + d);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j] = d + j < D ? load(row, min(d + j, D - 1)) : 0;
  }
};

/// Each row's inverse length, NaN of one that has no say, and the tokens of lowest cosine to the head's mean, ascending.
/// Grid: query heads of a group, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) choose_by_cosine(const quoka_call call) {
  using own = mean_queries;
  static_assert(Threads == own::threads, "rows are dealt out among its warps");
  extern __shared__ __align__(16) float sums[];  // [warps, padded(D)]
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all) return;
  const int D = call.kv.k.dim, length = static_cast<int>(padded(D)), thread = threadIdx.x, lane = thread % 32,
            warp = thread / 32, head = blockIdx.x;
  float* const mean = sums + own::warps * length;
  float* const cosines = mean + length;  // [Tq]
  float* const lengths = cosines + block.Tq;
  float* const inverse = call.inverse_lengths + static_cast<std::int64_t>(block.list) * call.rows +
                         static_cast<std::int64_t>(head) * block.Tq;
  with_type(call.q, call.q_type, [&](auto* q) {
    const head_rows rows(q, call, block, head);
    // Sums over the lanes of eight rows' numbers: `put(token, sum)` by the first lane.
    float found[own::rows] = {};
    const auto put_sums = [&](int first, const auto& put) {
#pragma unroll
      for (int i = 0; i < own::rows; ++i) {
        const float sum = sum_of_warp(found[i]);
        found[i] = 0;
        if (lane == 0 && first + i * own::warps < block.Tq) put(first + i * own::warps, sum);
      }
      __syncwarp();
    };
    rows.for_each(
        0, D,
        [&](int i, int, int, const float(&x)[4]) {
          found[i] += x[0] * x[0] + x[1] * x[1] + (x[2] * x[2] + x[3] * x[3]);
        },
        [&](int first) {
          put_sums(first, [&](int token, float squares) { lengths[token] = 1 / sqrtf(squares); });
#pragma unroll 1
          for (int token = first; token < min(first + own::rows * own::warps, block.Tq); token += own::warps) {
            if (is_usable(lengths[token])) continue;  // seldom not: f32 does not hold its squares, or it is zeros
            const unit_factors unit =
                scale_to_one(reinterpret_cast<const char*>(rows.first + token * rows.stride), call.q_type, D, 1);
            const float inverse_length = unit.inverse_length();
            if (lane == 0) lengths[token] = isinf(inverse_length) ? 0 : inverse_length;
          }
        });
    __syncthreads();
    for (int token = thread; token < block.Tq; token += Threads) inverse[token] = lengths[token];
    if (call.choice != query_choice::lowest_cosine || block.queries(call) == block.Tq) return;
#pragma unroll 1
    for (int begin = 0; begin < D; begin += 32 * own::columns) {
      float sum[own::columns] = {};
      rows.for_each(
          begin, min(D, begin + 32 * own::columns),
          [&](int, int token, int, const float(&x)[4]) {
            const bool counts = token < block.Tq && !isnan(lengths[min(token, block.Tq - 1)]);
#pragma unroll
            for (int j = 0; j < own::columns; ++j) sum[j] += counts ? x[j] : 0;
          },
          [](int) {});
      const int d = begin + lane * own::columns;
      if (d < length)
        *reinterpret_cast<float4*>(sums + warp * length + d) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
    __syncthreads();
    for (int d = thread; d < length; d += Threads) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < own::warps; ++i) sum += sums[i * length + d];
      mean[d] = sum / static_cast<float>(block.Tq);
    }
    __syncthreads();
    rows.for_each(
        0, D,
        [&](int i, int, int d, const float(&x)[4]) {
          found[i] = dot_4(load_4(mean + d), make_float4(x[0], x[1], x[2], x[3]), found[i]);
        },
        [&](int first) {
          put_sums(first, [&](int token, float product) {
            cosines[token] = isnan(lengths[token]) ? __int_as_float(0x7f800000) : product * lengths[token];
          });
        });
    __syncthreads();
    // Four lanes count how many are before a token.
    const int n = block.queries(call), part = thread % 4;
    int* const picked = call.picked + (static_cast<std::int64_t>(block.list) * call.group + head) * call.n;
    for (int begin = 0; begin < block.Tq; begin += Threads / 4) {
      const int token = begin + thread / 4;
      const float cosine = cosines[min(token, block.Tq - 1)];
      int before = 0;
#pragma unroll 8
      for (int other = part; other < block.Tq; other += 4) {
        const float its = cosines[other];
        before += its < cosine || (its == cosine && other < token) ? 1 : 0;
      }
      before += __shfl_xor_sync(all_lanes, before, 1);
      before += __shfl_xor_sync(all_lanes, before, 2);
      if (part == 0 && token < block.Tq && before < n) picked[before] = token;
    }
  });
}

/// The mean of the group's unit queries, slot by slot, rounded to what keys are multiplied in; of those that have no say zeros,
/// and no query where none has. A warp for each. Grid: pieces of queries, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads, 8) average_units(const quoka_call call) {
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int query = blockIdx.x * (Threads / 32) + threadIdx.x / 32, n = block.queries(call), lane = threadIdx.x % 32;
  if (block.reads_all || query >= n) return;
  const std::int64_t list = block.list;
  const int D = call.kv.k.dim, G = call.group;
  const bool chosen = call.choice == query_choice::lowest_cosine && n < block.Tq;
  bool some = false;
  with_type(call.q, call.q_type, [&](auto* q) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(q)>>;
#pragma unroll 1
    for (int begin = 0; begin < D; begin += 32 * mean_queries::columns) {
      const int d = begin + lane * mean_queries::columns;
      float sum[mean_queries::columns] = {};
#pragma unroll 1
      for (int first = 0; first < G; first += 32) {  // a lane looks up a head's row
        const int its_head = min(first + lane, G - 1);
        const int token = chosen ? call.picked[(list * G + its_head) * call.n + query] : block.Tq - n + query;
        const float its_factor = call.inverse_lengths[list * call.rows + its_head * block.Tq + token];
        some |= __any_sync(all_lanes, !isnan(its_factor)) != 0;
#pragma unroll 1
        for (int i = 0; i < min(32, G - first); ++i) {
          const int row = __shfl_sync(all_lanes, token, i);
          const float factor = __shfl_sync(all_lanes, its_factor, i);
          float values[mean_queries::columns];
          head_rows<T>(q, call, block, first + i).load_four(values, row, min(d, (D - 1) / 4 * 4));
#pragma unroll
          for (int j = 0; j < mean_queries::columns; ++j) sum[j] += isnan(factor) ? 0 : values[j] * factor;
        }
      }
#pragma unroll
      for (int j = 0; j < mean_queries::columns; ++j) {
        const float value = some ? sum[j] / static_cast<float>(G) : __int_as_float(0x7fc00000);
        if (d < D) store_query(call, block.list, query, d + j, value);
      }
    }
  });
  if (lane != 0) return;
  call.factors[list * call.n + query] = some ? 1 : 0;
  call.offsets[list * call.n + query] = some ? 0 : minus_infinity();
}

}}}}  // namespace skim::v0_2::cuda::detail
