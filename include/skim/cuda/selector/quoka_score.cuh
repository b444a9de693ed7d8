// SPDX-License-Identifier: Apache-2.0
/// \file Scores of keys, on a GPU: the largest standardised product, or the largest cosine; then the mean with a key's
/// neighbours.
#pragma once

#include <skim/cuda/kernel/unit_rows.cuh>
#include <skim/cuda/selector/tensor_moments.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Where raw scores go: beside the final ones where they are smoothed. By slot.
SKIM_DEVICE float* raw_scores(const quoka_call& call, int list) {
  return call.raw + list * call.score_stride;
}

/// What a candidate scores before smoothing: NaN where that is not finite.
SKIM_DEVICE float raw_score(float largest) {
  return isfinite(largest) ? largest : __int_as_float(0x7fc00000);
}
/// The same where no query scores: the newest is highest. (Cosines are 0 there.)
SKIM_DEVICE float newest_first(int past, int slot) {
  return static_cast<float>(slot + 1 - past);
}

/// 1 / |key|, as it is stored, or from its squares.
SKIM_DEVICE float inverse_of_key(const quoka_call& call, int head, int slot, float squares) {
  if (call.inverse_norms) return call.inverse_norms[head * call.inverse_norms_stride + call.kv.metadata_row(slot)];
  return 1 / sqrtf(squares);
}

/// The score of a key whose squares f32 does not hold, or that has none. By a warp.
SKIM_DEVICE float score_unusual(const quoka_call& call, const quoka_block& block, int slot) {
  const stored_rows& of = call.kv.k;
  const int stored = block.base + slot;
  const unit_factors unit = scale_to_one(call.kv, of, block.head, stored);
  const char* const key = call.kv.row(of, block.head, stored);
  const float scale = call.kv.scale(of, block.head, stored);
  const std::int64_t first = static_cast<std::int64_t>(block.list) * call.n;
  float most = minus_infinity();
  for (int query = 0; query < block.queries(call); ++query) {
    if (call.factors[first + query] == 0) continue;
    const float* const row = query_row(call.queries, of.dim, first + query);
    float sum = 0;
    for (int d = threadIdx.x % 32; d < of.dim; d += 32) sum += unit(load(key, of.type, d) * scale) * row[d];
    most = fmaxf(most, sum_of_warp(sum));
  }
  return most == minus_infinity() ? unit.inverse * 0 : most;
}

/// Scores again what each lane has, if `unusual`. By a warp.
SKIM_DEVICE void put_unusual(const quoka_call& call, int list, int slot, bool unusual) {
  for (unsigned left = __ballot_sync(all_lanes, unusual); left != 0; left &= left - 1) {
    const int own = __shfl_sync(all_lanes, slot, __ffs(static_cast<int>(left)) - 1);
    const float score = score_unusual(call, quoka_block(call, list), own);
    if (threadIdx.x % 32 == 0) raw_scores(call, list)[own] = score;
  }
}

/// Of any type and dimension, by multiply-adds. Grid: pieces of keys, lists.
struct plain_scores {
  static constexpr int keys = 32, threads = 256, queries_of_warp = 8;

  static constexpr std::size_t bytes(std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>(keys * shared_pitch(D) + threads);
  }
};

template <int Threads>
__global__ void __launch_bounds__(Threads) score_plainly(const quoka_call call) {
  using tile = plain_scores;
  extern __shared__ __align__(16) float keys[];
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int begin = blockIdx.x * tile::keys;
  if (block.reads_all || begin >= block.past || begin + tile::keys <= block.first) return;
  const int D = call.kv.k.dim, pitch = static_cast<int>(shared_pitch(D)), thread = threadIdx.x, lane = thread % 32;
  const int n = block.queries(call);
  float* const largest = keys + tile::keys * pitch;
  load_slots<Threads>(call.kv, call.kv.k, block.head, tile::keys, keys, nullptr,
                      [&](int i) { return block.base + min(begin + i, block.past - 1); });
  __syncthreads();
  const std::int64_t first_query = static_cast<std::int64_t>(block.list) * call.n;
  const float* const factors = call.factors + static_cast<std::int64_t>(block.list) * call.n;
  const float* const offsets = call.offsets + static_cast<std::int64_t>(block.list) * call.n;
  float most = minus_infinity();
  bool some = false;
  for (int first = thread / 32 * tile::queries_of_warp; first < n; first += Threads / 32 * tile::queries_of_warp) {
    float products[tile::queries_of_warp] = {};
    for (int d = 0; d < D; d += 4) {
      const float4 k = load_4(keys + lane * pitch + d);
#pragma unroll
      for (int i = 0; i < tile::queries_of_warp; ++i) {
        products[i] =
            dot_4(load_4(query_row(call.queries, D, first_query + min(first + i, n - 1)) + d), k, products[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < tile::queries_of_warp; ++i) {
      const int query = min(first + i, n - 1);
      if (factors[query] > 0) most = fmaxf(most, products[i] * factors[query] + offsets[query]);
      some |= factors[query] > 0;
    }
  }
  largest[thread] = most;
  some = __syncthreads_or(some) != 0;
  if (thread >= tile::keys) return;
  for (int warp = 0; warp < Threads / 32; ++warp) most = fmaxf(most, largest[warp * 32 + lane]);
  const int slot = begin + lane;
  const bool mine = slot < block.past;
  float squares = 0;
  for (int d = 0; call.means && d < D; ++d) squares += keys[lane * pitch + d] * keys[lane * pitch + d];
  const float inverse = call.means && mine ? inverse_of_key(call, block.head, slot, squares) : 1;
  if (!some) most = call.means ? 0 : newest_first(block.past, slot);
  if (mine) raw_scores(call, block.list)[slot] = raw_score(most * inverse);
  if (call.means) put_unusual(call, block.list, slot, mine && !is_usable(inverse));
}

/// Factors and offsets of queries that are means of a group, which score as they are: as `merge_moments`.
SKIM_DEVICE bool copy_factors(const quoka_call& call, const quoka_block& block, float2* factors, int thread,
                              int threads) {
  const std::int64_t first = static_cast<std::int64_t>(block.list) * call.n;
  bool some = false;
  for (int query = thread; query < call.whole; query += threads) {
    float2 own = make_float2(0, minus_infinity());
    if (query < block.queries(call)) own = make_float2(call.factors[first + query], call.offsets[first + query]);
    some |= own.x > 0;
    factors[query] = own;
  }
  return some;
}

/// The blocks of rows of one KV head that a thread block scores for.
struct scored_lists {
  int head, first_block, count;

  /// `at`: which of KV heads times groups of blocks, `together` in each.
  SKIM_DEVICE scored_lists(const quoka_call& call, int at, int together)
      : head(at % call.heads),
        first_block(at / call.heads * together),
        count(min(together, call.blocks - first_block)) {}
  SKIM_DEVICE int list(const quoka_call& call, int i) const { return (first_block + i) * call.heads + head; }
  SKIM_DEVICE quoka_block at(const quoka_call& call, int i) const { return quoka_block(call, list(call, i)); }
};

/// What is known of them once there are queries.
struct list_ends {
  int end[4];      // 0 where there is nothing to choose
  bool scores[4];  // whether some query does
};

/// Calls `copy(i, block, thread, threads)` for each that chooses, to have its queries; leaves factors and offsets in `factors`.
/// Each list has warps of its own. Ends with the block's threads together.
template <int D, bool Means, class Copy>
SKIM_DEVICE void prepare_lists(const quoka_call& call, const scored_lists& lists, float2* factors, list_ends& ends,
                               const Copy& copy) {
  const int thread = threadIdx.x, threads = static_cast<int>(blockDim.x) / 32 / lists.count * 32, i = thread / threads;
  if (thread < lists.count) ends.scores[thread] = false;
  __syncthreads();
  if (i < lists.count) {
    const quoka_block block = lists.at(call, i);
    if (!block.reads_all) {
      copy(i, block, thread % threads, threads);
      float2* const own = factors + i * call.whole;
      const bool some = Means ? copy_factors(call, block, own, thread % threads, threads)
                              : merge_moments<D>(call, block, own, thread % threads, threads);
      if (some) ends.scores[i] = true;
    }
    if (thread % threads == 0) ends.end[i] = block.reads_all ? 0 : block.past;
  }
  await_copies<0>();
  __syncthreads();
}

/// Scores of keys for `together` blocks of rows, whose moments it merges first. Grid: pieces of keys, KV heads times groups
/// of blocks.
template <class T, int D, bool Means>
__global__ void __launch_bounds__(tensor_scores<D>::threads, 2)
    score_by_tensor_cores(const quoka_call call, int together) {
  using tile = tensor_scores<D>;
  using rows = key_rows<T, D, tile::keys>;
  constexpr int parts = rows::parts, tiles = D < 128 && !Means ? 4 : 2;  // of queries at a time, as registers allow
  extern __shared__ __align__(16) char shared[];
  __shared__ list_ends ends;
  static_assert(tile::most_lists == sizeof(ends.end) / sizeof(int), "one for each list");
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, quarter = lane % 4, queries = call.whole;
  const scored_lists lists(call, blockIdx.y, together);
  float2* const factors = reinterpret_cast<float2*>(shared + lists.count * queries * D * 2);  // and offsets

  const int end = lists.at(call, lists.count - 1).past;  // the longest
  const row_addresses keys(call.kv, call.kv.k, lists.head, rows::dims / 2 * quarter, lists.at(call, 0).base);
  const int step = static_cast<int>(gridDim.x) * tile::warps * tile::keys;
  int first = (static_cast<int>(blockIdx.x) * tile::warps + thread / 32) * tile::keys +
              lists.at(call, 0).first / tile::keys * tile::keys;
  rows own;
  const auto load = [&](int from) { own.load(keys, [&](int i) { return max(min(from + i, end - 1), 0); }); };
  if (end > 0) load(first);
  await_kernel_before();
  prepare_lists<D, Means>(call, lists, factors, ends, [&](int i, const quoka_block& block, int part, int parts) {
    copy_fragments<D>(call, block.list, shared + i * queries * D * 2, part, parts);
  });

#pragma unroll 1
  for (; first < end; first += step) {
    const float squares = Means && !call.inverse_norms ? own.squares() : 0;
#pragma unroll 1
    for (int at = 0; at < lists.count; ++at) {
      float most[2 * parts];
#pragma unroll
      for (float& each : most) each = minus_infinity();
#pragma unroll 1
      for (int begin = 0; begin < queries / 8; begin += tiles) {
        float sums[parts][tiles][4] = {};
        own.multiply(sums, reinterpret_cast<const row_piece<rows::dims>*>(shared + at * queries * D * 2), queries / 8,
                     begin);
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
          const float4 own_factors =
              *reinterpret_cast<const float4*>(factors + at * queries + (begin + j) * 8 + 2 * quarter);
#pragma unroll
          for (int i = 0; i < 2 * parts; ++i) {
            const float(&products)[4] = sums[i / 2][j];
            // What is not a number loses.
            most[i] = fmaxf(most[i], fmaxf(fmaf(products[i % 2 * 2], own_factors.x, own_factors.y),
                                           fmaf(products[i % 2 * 2 + 1], own_factors.z, own_factors.w)));
          }
        }
      }
      const int slot = first + 8 * quarter + lane / 4;
      float score = 0;
#pragma unroll
      for (int i = 0; i < 2 * parts; ++i) {
        most[i] = fmaxf(most[i], __shfl_xor_sync(all_lanes, most[i], 1));
        most[i] = fmaxf(most[i], __shfl_xor_sync(all_lanes, most[i], 2));
        if (quarter == i) score = most[i];
      }
      const bool mine = quarter < 2 * parts && slot < ends.end[at];
      const int list = lists.list(call, at);
      if constexpr (Means) {
        const float inverse = mine ? inverse_of_key(call, lists.head, slot, squares) : 1;
        if (mine) raw_scores(call, list)[slot] = raw_score(ends.scores[at] ? score * inverse : 0);
        put_unusual(call, list, slot, mine && !is_usable(inverse));
      } else if (mine) {
        raw_scores(call, list)[slot] = raw_score(ends.scores[at] ? score : newest_first(ends.end[at], slot));
      }
    }
    load(first + step);
  }
}

/// The mean of a candidate's raw score and its neighbours'; those that are not finite have no part and stay NaN.
template <class Raw>
SKIM_DEVICE float smoothed(const quoka_block& block, int smooth, int slot, const Raw& raw) {
  float sum = 0, count = 0;
  for (int at = max(slot - smooth / 2, block.first); at <= min(slot + smooth / 2, block.past - 1); ++at) {
    const float score = raw(at);
    sum += isfinite(score) ? score : 0;
    count += isfinite(score) ? 1 : 0;
  }
  return isfinite(raw(slot)) ? sum / count : __int_as_float(0x7fc00000);
}

/// Of each candidate. Grid: pieces of keys, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) smooth_scores(const quoka_call call) {
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int slot = blockIdx.x * Threads + threadIdx.x;
  if (block.reads_all || slot < block.first || slot >= block.past) return;
  const float* const raw = raw_scores(call, block.list);
  call.scores[block.list * call.score_stride + slot] =
      smoothed(block, call.smooth, slot, [&](int at) { return raw[at]; });
}

}}}}  // namespace skim::v0_2::cuda::detail
