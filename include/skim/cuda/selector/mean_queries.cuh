// SPDX-License-Identifier: Apache-2.0
/// \file The paper's queries on a GPU (arXiv 2602.08722, Algorithm 1, steps 1 to 3): unit queries of the tokens that each head
/// chooses by their cosine with its mean, averaged over the group slot by slot. Of any type and dimension, in f32.
#pragma once

#include <skim/cuda/arch/cluster.cuh>
#include <skim/cuda/kernel/unit_rows.cuh>
#include <skim/cuda/selector/quoka_call.cuh>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct mean_queries {
  static constexpr int threads = 512, warps = threads / 32, average_threads = 128;
  static constexpr int rows = 8, columns = 4;  // of a warp, under way at a time; of a lane, side by side
  static constexpr int most_together = 8;      // heads of a group whose blocks may be a cluster

  /// Sums of each warp, the mean, the tokens' inverse lengths and the ranks of their cosines.
  static std::size_t bytes(std::int64_t D, std::int64_t Tq) {
    return sizeof(float) * static_cast<std::size_t>((warps + 1) * padded(D) + 2 * padded(Tq));
  }
};

/// The queries of a group.
template <class T>
struct group_rows {
  const T* first;
  std::int64_t row_stride, head_stride;
  int Tq, D;
  bool by_four;  // numbers 4 i to 4 i + 3 of a row can be loaded together

  SKIM_DEVICE group_rows(const T* q, const quoka_call& call, const quoka_block& block)
      : first(q + block.query_offset(call, 0)),
        row_stride(call.q_row),
        head_stride(call.q_head),
        Tq(block.Tq),
        D(call.kv.k.dim) {
    by_four = D % 4 == 0 && row_stride % 4 == 0 && head_stride % 4 == 0 &&
              reinterpret_cast<std::uintptr_t>(first) % (4 * sizeof(T)) == 0;
  }

  SKIM_DEVICE const T* row(int head, int token) const { return first + head * head_stride + token * row_stride; }

  /// Numbers d to d + 3 of rows `of(i)`, zeros beyond D. One branch for all: loads in branches wait for each other.
  template <int Rows, class Of>
  SKIM_DEVICE void load_four(float (&to)[Rows][4], int d, const Of& of) const {
    if (by_four) {
      using four_numbers = std::conditional_t<sizeof(T) == 4, float4, uint2>;
      four_numbers four[Rows];
#pragma unroll
      for (int i = 0; i < Rows; ++i) four[i] = *reinterpret_cast<const four_numbers*>(of(i) + d);
#pragma unroll
      for (int i = 0; i < Rows; ++i) load_together(to[i], reinterpret_cast<const T*>(&four[i]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < Rows; ++i) {
          const float number = load(of(i), min(d + j, D - 1));
          to[i][j] = d + j < D ? number : 0;
        }
      }
    }
  }

  /// A warp's every 16th token of a head, eight of them at a time: calls `add(token of the first, d, values)` for the four
  /// numbers from d on that a lane has of each, then `end(token of the first)`. Tokens beyond the last repeat it.
  template <class Add, class End>
  SKIM_DEVICE void for_each(int head, const Add& add, const End& end) const {
    using own = mean_queries;
#pragma unroll 1
    for (int begin = threadIdx.x / 32; begin < Tq; begin += own::warps * own::rows) {
#pragma unroll 1
      for (int d = threadIdx.x % 32 * own::columns; d < D; d += 32 * own::columns) {
        float values[own::rows][own::columns];
        load_four(values, d, [&](int i) { return row(head, min(begin + i * own::warps, Tq - 1)); });
        add(begin, d, values);
      }
      __syncwarp();
      end(begin);
    }
  }
};

/// Lane l's is the sum over the warp's lanes of number l / 4.
SKIM_DEVICE float sum_of_eight(const float (&own)[8]) {
  const int lane = threadIdx.x % 32;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool last = lane & 16;
    four[i] = (last ? own[i + 4] : own[i]) + __shfl_xor_sync(all_lanes, last ? own[i] : own[i + 4], 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool last = lane & 8;
    two[i] = (last ? four[i + 2] : four[i]) + __shfl_xor_sync(all_lanes, last ? four[i] : four[i + 2], 8);
  }
  const bool last = lane & 4;
  float one = (last ? two[1] : two[0]) + __shfl_xor_sync(all_lanes, last ? two[0] : two[1], 4);
  one += __shfl_xor_sync(all_lanes, one, 2);
  return one + __shfl_xor_sync(all_lanes, one, 1);
}

/// The mean of the group's unit queries of one slot, rounded to what keys are multiplied in; of those that have no say zeros,
/// and no query where none has. By a warp.
SKIM_DEVICE void average_query(const quoka_call& call, const quoka_block& block, int query) {
  const std::int64_t list = block.list;
  const int D = call.kv.k.dim, G = call.group, n = block.queries(call), lane = threadIdx.x % 32;
  const bool chosen = call.choice == query_choice::lowest_cosine && n < block.Tq;
  bool some = false;
  with_type(call.q, call.q_type, [&](auto* q) {
    const group_rows rows(q, call, block);
    constexpr int at_once = 4;
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
        for (int begin_head = first; begin_head < min(first + 32, G); begin_head += at_once) {
          float values[at_once][mean_queries::columns];
          rows.load_four(values, min(d, (D - 1) / 4 * 4), [&](int i) {
            const int head = min(begin_head + i, G - 1);
            return rows.row(head, __shfl_sync(all_lanes, token, head - first));
          });
#pragma unroll
          for (int i = 0; i < at_once; ++i) {
            const float factor = __shfl_sync(all_lanes, its_factor, begin_head + i - first);
#pragma unroll
            for (int j = 0; j < mean_queries::columns; ++j) {
              sum[j] += begin_head + i >= G || isnan(factor) ? 0 : values[i][j] * factor;
            }
          }
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

/// Each row's inverse length, NaN of one that has no say, and the tokens of lowest cosine to the head's mean, ascending. Where
/// the blocks of a group are a cluster (`Together`), they also average what they chose. Grid: query heads of a group, lists.
template <int Threads, bool Together>
__global__ void __launch_bounds__(Threads) choose_by_cosine(const quoka_call call) {
  using own = mean_queries;
  static_assert(Threads == own::threads, "rows are dealt out among its warps");
  extern __shared__ __align__(16) float sums[];  // [warps, padded(D)]
  __shared__ unsigned limit;
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all) return;
  const int D = call.kv.k.dim, length = static_cast<int>(padded(D)), thread = threadIdx.x, lane = thread % 32,
            warp = thread / 32, head = blockIdx.x, n = block.queries(call);
  const bool chooses = call.choice == query_choice::lowest_cosine && n < block.Tq;
  float* const mean = sums + own::warps * length;
  float* const lengths = mean + length;                                             // [Tq]
  unsigned* const ranks = reinterpret_cast<unsigned*>(lengths + padded(block.Tq));  // [padded(Tq)], of the cosines
  float* const inverse = call.inverse_lengths + static_cast<std::int64_t>(block.list) * call.rows +
                         static_cast<std::int64_t>(head) * block.Tq;
  with_type(call.q, call.q_type, [&](auto* q) {
    const group_rows rows(q, call, block);
    float found[own::rows] = {};  // of eight rows, what a lane has of a sum
    // Calls `put(token, sum)` for each of them.
    const auto put_sums = [&](int begin, const auto& put) {
      const int token = begin + lane / 4 * own::warps;
      const float sum = sum_of_eight(found);
      if (lane % 4 == 0 && token < block.Tq) put(token, sum);
#pragma unroll
      for (float& each : found) each = 0;
      __syncwarp();
    };

    bool spoilt = false;
    float* const own_sums = sums + warp * length;
    for (int d = lane; d < length; d += 32) own_sums[d] = 0;
    __syncwarp();
    rows.for_each(
        head,
        [&](int begin, int d, const float(&values)[own::rows][own::columns]) {
          float4 sum = load_4(own_sums + d);
#pragma unroll
          for (int i = 0; i < own::rows; ++i) {
            const float(&x)[own::columns] = values[i];
            found[i] += x[0] * x[0] + x[1] * x[1] + (x[2] * x[2] + x[3] * x[3]);
            if (begin + i * own::warps >= block.Tq) continue;
            sum = make_float4(sum.x + x[0], sum.y + x[1], sum.z + x[2], sum.w + x[3]);
          }
          *reinterpret_cast<float4*>(own_sums + d) = sum;
        },
        [&](int begin) {
          put_sums(begin, [&](int token, float squares) { lengths[token] = 1 / sqrtf(squares); });
#pragma unroll 1
          for (int token = begin; token < min(begin + own::rows * own::warps, block.Tq); token += own::warps) {
            if (is_usable(lengths[token])) continue;  // seldom not: f32 does not hold its squares, or it is zeros
            const unit_factors unit =
                scale_to_one(reinterpret_cast<const char*>(rows.row(head, token)), call.q_type, D, 1);
            const float inverse_length = unit.inverse_length();
            spoilt |= isnan(inverse_length);
            if (lane == 0) lengths[token] = isinf(inverse_length) ? 0 : inverse_length;
          }
        });
    spoilt = __syncthreads_or(spoilt) != 0;
    for (int token = thread; token < block.Tq; token += Threads) inverse[token] = lengths[token];
    if (!chooses) return;
    for (int d = thread; d < length; d += Threads) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < own::warps; ++i) sum += sums[i * length + d];
      if (spoilt) {  // rows that are not finite have no part
        sum = 0;
        for (int token = 0; token < block.Tq; ++token) {
          if (d < D && !isnan(lengths[token])) sum += load(rows.row(head, token), d);
        }
      }
      mean[d] = sum / static_cast<float>(block.Tq);
    }
    __syncthreads();
    rows.for_each(
        head,
        [&](int, int d, const float(&values)[own::rows][own::columns]) {
          const float4 center = load_4(mean + d);
#pragma unroll
          for (int i = 0; i < own::rows; ++i) {
            const float(&x)[own::columns] = values[i];
            found[i] = dot_4(center, make_float4(x[0], x[1], x[2], x[3]), found[i]);
          }
        },
        [&](int begin) {
          put_sums(begin, [&](int token, float product) {
            ranks[token] = rank_bits(isnan(lengths[token]) ? -minus_infinity() : product * lengths[token]);
          });
        });
  });
  if (chooses) {
    __syncthreads();
    if (warp == 0) {  // a number that n ranks are below, more only where some are equal: bit by bit
      unsigned number = 0, below = 0;
#pragma unroll 1
      for (unsigned bit = 1u << 31; bit != 0 && below != static_cast<unsigned>(n); bit >>= 1) {
        below = 0;
        for (int token = lane; token < block.Tq; token += 32) below += ranks[token] < (number | bit) ? 1 : 0;
        below = __reduce_add_sync(all_lanes, below);
        number |= below <= static_cast<unsigned>(n) ? bit : 0;
      }
      if (lane == 0) limit = number + (below != static_cast<unsigned>(n) ? 1 : 0);
    }
    __syncthreads();
    // A warp counts how many are before such a token, of equals the earlier.
    int* const picked = call.picked + (static_cast<std::int64_t>(block.list) * call.group + head) * call.n;
#pragma unroll 1
    for (int begin = 32 * warp; begin < block.Tq; begin += Threads) {
      unsigned left = __ballot_sync(all_lanes, begin + lane < block.Tq && ranks[begin + lane] < limit);
      for (; left != 0; left &= left - 1) {
        const int token = begin + __ffs(static_cast<int>(left)) - 1;
        const unsigned rank = ranks[token];
        int before = 0;
        for (int other = lane; other < block.Tq; other += 32) before += ranks[other] < rank + (other < token) ? 1 : 0;
        before = __reduce_add_sync(all_lanes, before);
        if (lane == 0 && before < n) picked[before] = token;
      }
    }
  }
#if SKIM_CUDA_SM90
  if constexpr (Together) {
    await_cluster<2>();
#pragma unroll 1
    for (int query = warp * call.group + head; query < n; query += own::warps * call.group) {
      average_query(call, block, query);
    }
  }
#endif
}

/// The same averages of groups that are no cluster, a warp for each. Grid: pieces of queries, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) average_units(const quoka_call call) {
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int query = blockIdx.x * (Threads / 32) + threadIdx.x / 32;
  if (!block.reads_all && query < block.queries(call)) average_query(call, block, query);
}

}}}}  // namespace skim::v0_2::cuda::detail
