// SPDX-License-Identifier: Apache-2.0
/// \file The paper's queries on a GPU (arXiv 2602.08722, Algorithm 1, steps 1 to 3): unit queries of the tokens that each head
/// chooses by their cosine with its mean, averaged over the group slot by slot. Of any type and dimension, in f32.
#pragma once

#include <skim/cuda/kernel/unit_rows.cuh>
#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct mean_queries {
  static constexpr int threads = 512, warps = threads / 32, average_threads = 128;
  static constexpr int rows = 8, columns = 4;  // of a warp and of a lane, under way at a time

  /// Sums of each warp, the mean, and the tokens' cosines.
  static std::size_t bytes(std::int64_t D, std::int64_t Tq) {
    return sizeof(float) * static_cast<std::size_t>((warps + 1) * D + Tq);
  }
};

/// Rows of one query head, a warp's every 16th. Calls `add(i, first + i * 16, column, value)` for numbers of eight of them at
/// a time, each lane for its own columns, then `end(first)`.
template <class T, class Add, class End>
SKIM_DEVICE void for_rows(const T* q, const quoka_call& call, const quoka_block& block, int head, int first_column,
                          int end_column, const Add& add, const End& end) {
  using own = mean_queries;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int first = threadIdx.x / 32; first < block.Tq; first += own::warps * own::rows) {
    std::int64_t at[own::rows];
#pragma unroll
    for (int i = 0; i < own::rows; ++i) {
      at[i] = block.query_offset(call, head * block.Tq + min(first + i * own::warps, block.Tq - 1));
    }
#pragma unroll 1
    for (int begin = first_column + lane; begin - lane < end_column; begin += 32 * own::columns) {
      float values[own::rows][own::columns];  // loads first, without conditions: else they wait for each other
#pragma unroll
      for (int i = 0; i < own::rows; ++i) {
#pragma unroll
        for (int j = 0; j < own::columns; ++j) values[i][j] = load(q, at[i] + min(begin + 32 * j, end_column - 1));
      }
#pragma unroll
      for (int i = 0; i < own::rows; ++i) {
#pragma unroll
        for (int j = 0; j < own::columns; ++j) {
          if (begin + 32 * j < end_column) add(i, first + i * own::warps, begin + 32 * j, values[i][j]);
        }
      }
    }
    end(first);
  }
}

/// Each row's inverse length, NaN of one that has no say, and the tokens of lowest cosine to the head's mean, ascending.
/// Grid: query heads of a group, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) choose_by_cosine(const quoka_call call) {
  using own = mean_queries;
  static_assert(Threads == own::threads, "rows are dealt out among its warps");
  extern __shared__ __align__(16) float sums[];  // [warps, D]
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all) return;
  const int D = call.kv.k.dim, thread = threadIdx.x, lane = thread % 32, warp = thread / 32, head = blockIdx.x;
  float* const mean = sums + own::warps * D;
  float* const cosines = mean + D;
  float* const inverse = call.inverse_lengths + static_cast<std::int64_t>(block.list) * call.rows +
                         static_cast<std::int64_t>(head) * block.Tq;
  with_type(call.q, call.q_type, [&](auto* q) {
    float squares[own::rows] = {};
    for_rows(
        q, call, block, head, 0, D, [&](int i, int, int, float x) { squares[i] += x * x; },
        [&](int first) {
#pragma unroll
          for (int i = 0; i < own::rows; ++i) {
            const int token = first + i * own::warps;
            const float sum = sum_of_warp(squares[i]);
            squares[i] = 0;
            if (token >= block.Tq) continue;
            float length = 1 / sqrtf(sum);
            if (!is_usable(length)) {
              const char* const row =
                  reinterpret_cast<const char*>(q + block.query_offset(call, head * block.Tq + token));
              length = scale_to_one(row, call.q_type, D, 1).inverse_length();
            }
            if (lane == 0) inverse[token] = length;
          }
        });
    if (call.choice != query_choice::lowest_cosine || block.queries(call) == block.Tq) return;
    __syncthreads();
#pragma unroll 1
    for (int begin = 0; begin < D; begin += 32 * own::columns) {
      float sum[own::columns] = {};
      for_rows(
          q, call, block, head, begin, min(D, begin + 32 * own::columns),
          [&](int, int token, int column, float x) {
            if (token < block.Tq && !isnan(inverse[token])) sum[(column - begin) / 32] += x;
          },
          [](int) {});
#pragma unroll
      for (int j = 0; j < own::columns; ++j) {
        if (begin + 32 * j + lane < D) sums[warp * D + begin + 32 * j + lane] = sum[j];
      }
    }
    __syncthreads();
    for (int d = thread; d < D; d += Threads) {
      float sum = 0;
      for (int i = 0; i < own::warps; ++i) sum += sums[i * D + d];
      mean[d] = sum / static_cast<float>(block.Tq);
    }
    __syncthreads();
    float products[own::rows] = {};
    for_rows(
        q, call, block, head, 0, D, [&](int i, int, int column, float x) { products[i] += x * mean[column]; },
        [&](int first) {
#pragma unroll
          for (int i = 0; i < own::rows; ++i) {
            const int token = first + i * own::warps;
            const float sum = sum_of_warp(products[i]);
            products[i] = 0;
            if (lane != 0 || token >= block.Tq) continue;
            cosines[token] = isnan(inverse[token]) ? __int_as_float(0x7f800000) : sum * inverse[token];
          }
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
__global__ void __launch_bounds__(Threads) average_units(const quoka_call call) {
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int query = blockIdx.x * (Threads / 32) + threadIdx.x / 32, n = block.queries(call), lane = threadIdx.x % 32;
  if (block.reads_all || query >= n) return;
  const std::int64_t list = block.list;
  const bool chosen = call.choice == query_choice::lowest_cosine && n < block.Tq;
  const auto row_of = [&](int head) {
    const int token = chosen ? call.picked[(list * call.group + head) * call.n + query] : block.Tq - n + query;
    return head * block.Tq + token;
  };
  const float* const inverse = call.inverse_lengths + list * call.rows;
  bool some = false;
  for (int head = 0; head < call.group; ++head) some |= !isnan(inverse[row_of(head)]);
  const float share = 1 / static_cast<float>(call.group);
  with_type(call.q, call.q_type, [&](auto* q) {
    for (int d = lane; d < padded(call.kv.k.dim); d += 32) {
      float sum = 0;
#pragma unroll 4
      for (int head = 0; head < call.group; ++head) {
        const int row = row_of(head);
        const float factor = inverse[row], x = load(q, block.query_offset(call, row) + min(d, call.kv.k.dim - 1));
        sum += isnan(factor) ? 0 : x * factor;
      }
      store_query(call, block.list, query, d, some ? sum * share : __int_as_float(0x7fc00000));
    }
  });
  if (lane != 0) return;
  call.factors[list * call.n + query] = some ? 1 : 0;
  call.offsets[list * call.n + query] = some ? 0 : minus_infinity();
}

}}}}  // namespace skim::v0_2::cuda::detail
