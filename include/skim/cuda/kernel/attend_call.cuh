// SPDX-License-Identifier: Apache-2.0
/// \file How the attention of a sequence is cut into tiles of rows and splits of keys, and how splits are merged.
///
/// Rows of a KV head are packed: row r of a block is token r / G, head r % G of the group. A tile's keys are numbered: first
/// what the block reads of its past (what is listed, or everything), then its own. Cuts follow from the shape of a sequence
/// alone, so that it has the same bits alone, in any batch and on every GPU.
#pragma once

#include <skim/attention.hpp>
#include <skim/cuda/kernel/batch_tiles.cuh>
#include <skim/cuda/kernel/cache_rows.cuh>
#include <skim/index_lists.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct attend_call {
  cache_rows kv;
  const char* q;
  char* out;
  float* lse;
  std::int64_t q_row, q_head, out_row, out_head, lse_row, lse_head;
  const std::int32_t *indices, *counts;  // null: every past key
  std::int64_t list_capacity;
  const float* sink_logits;
  std::int64_t left, right;
  float scale, q_sign, soft_cap;  // scale above 0
  float *partial, *partial_sums;  // [rows, Hq, splits, Dv] and [rows, Hq, splits, 2]; of a batch see `partial_at`
  const batch_tile* batch;        // [tiles]; null: one sequence
  element q_type, out_type;
  bool q_as_stored;   // tensor cores multiply 16 bytes of q as they are
  bool out_in_pairs;  // two 16-bit numbers of out, the first in an even column, can be stored together
  int Tq, heads, group, block_rows, tiles_of_block, tiles, splits;  // splits: the most that a tile has
  int tile_rows, tile_keys;
};

/// A tile of packed rows of one KV head.
struct row_tile {
  int tile, block, head;  // of the call; KV head
  int of_sequence;        // tiles that its sequence has
  int first_token, Tq;    // the block's, in the call's rows
  int first, rows;        // packed rows of the tile, and all of the block
  int past;               // tokens before the block
  int base;               // slot 0, for tables
  int listed;             // past keys that it reads
  int begin, end;         // its keys, by number
  const std::int32_t* list;

  SKIM_DEVICE int slot(int key) const { return list && key < listed ? list[key] : key - listed + past; }
};

/// Its rows, which follow from what is older than the lists. None where a batch has no such tile.
SKIM_DEVICE row_tile rows_at(const attend_call& call, int tile, int head) {
  row_tile at;
  at.tile = tile;
  at.head = head;
  if (call.batch) {
    await_kernel_before();  // for what the first of the chain wrote
    const batch_tile& own = call.batch[tile];
    at.block = own.block;
    at.of_sequence = own.of_sequence;
    at.first_token = own.first_token;
    at.Tq = own.Tq;
    at.first = own.first;
    at.past = own.past;
    at.base = own.base;
  } else {
    at.block = tile / call.tiles_of_block;
    at.of_sequence = call.tiles;
    at.first_token = at.block * call.block_rows;
    at.Tq = min(call.block_rows, call.Tq - at.first_token);
    at.first = (tile - at.block * call.tiles_of_block) * call.tile_rows;
    at.past = call.kv.length(head) - call.Tq + at.first_token;
    at.base = 0;
  }
  at.rows = at.Tq * call.group;
  return at;
}

/// The same with its keys.
SKIM_DEVICE row_tile with_keys(const attend_call& call, row_tile at) {
  const int list = at.block * call.heads + at.head;
  at.listed = call.indices ? call.counts[list] : at.past;
  at.list = at.listed < at.past ? call.indices + list * call.list_capacity : nullptr;  // one of everything is none
  at.begin = 0;
  at.end = at.listed + at.Tq;
  if (call.kv.positions) return at;  // in any order
  const int first_token = at.first / call.group,
            last_token = (min(at.first + call.tile_rows, at.rows) - 1) / call.group;
  if (call.right < at.Tq) at.end = min(at.end, at.listed + last_token + 1 + static_cast<int>(call.right));
  if (!at.list && call.left < at.past + first_token) {
    at.begin = (at.past + first_token - static_cast<int>(call.left)) / call.tile_keys * call.tile_keys;
  }
  return at;
}

SKIM_DEVICE row_tile tile_at(const attend_call& call, int tile, int head) {
  return with_keys(call, rows_at(call, tile, head));
}

/// Calls `put(row, c, 16 bytes)` for numbers 8 c to 8 c + 7 of the rows of a tile's q, rounded to T, each by one of `Threads`
/// threads. Rows beyond the block's repeat its last.
template <class T, int Rows, int Columns, int Threads, class Put>
SKIM_DEVICE void pack_queries(const attend_call& call, const row_tile& at, int thread, const Put& put) {
  constexpr int all = Rows * Columns, together = 8;
  const auto from = [&](int i) {
    const int row = min(at.first + i / Columns, at.rows - 1);
    return (at.first_token + row / call.group) * call.q_row + (at.head * call.group + row % call.group) * call.q_head +
           i % Columns * 8;
  };
  if (call.q_as_stored) {  // one branch for all: loads in branches wait for each other
#pragma unroll 1
    for (int begin = thread; begin < all; begin += Threads * together) {
      uint4 stored[together];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        stored[i] = *reinterpret_cast<const uint4*>(call.q + from(min(begin + i * Threads, all - 1)) * 2);
      }
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const int own = begin + i * Threads;
        if (own < all) put(own / Columns, own % Columns, stored[i]);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < all; i += Threads) {
    const std::int64_t own = from(i);
    std::uint32_t packed[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      packed[j] = tensor_type<T>::pack(call.q_sign * load(call.q, call.q_type, own + 2 * j),
                                       call.q_sign * load(call.q, call.q_type, own + 2 * j + 1));
    }
    put(i / Columns, i % Columns, make_uint4(packed[0], packed[1], packed[2], packed[3]));
  }
}

struct tile_range {
  int begin, end, splits;  // tiles of keys
};

/// The tiles of keys of split `split`; none where there is no such split.
SKIM_DEVICE tile_range split_at(const attend_call& call, const row_tile& at, int split) {
  if (at.rows == 0) return {0, 0, 0};
  const int first = at.begin / call.tile_keys, last = (at.end + call.tile_keys - 1) / call.tile_keys;
  const int splits = splits_of(at.of_sequence, call.heads, last - first);
  if (split >= splits) return {0, 0, splits};
  const int each = (last - first) / splits, more = (last - first) % splits;
  const int begin = first + split * each + min(split, more);
  return {begin, begin + each + (split < more ? 1 : 0), splits};
}

/// What a row's softmax has met: the largest logit, in units of log2, and the sum of 2 to the power of what is below it.
struct row_sums {
  float largest, sum;
};

/// The log-sum-exp of a row, the sink included, and the factor that makes its sum of values the output.
SKIM_DEVICE float finish_row(const attend_call& call, int query_head, row_sums row, float& factor) {
  const float sink = call.sink_logits ? call.sink_logits[query_head] * log2_e : minus_infinity();
  const float largest = fmaxf(row.largest, sink);
  factor = 0;
  if (largest == minus_infinity() && row.sum == 0) return minus_infinity();  // sees no key
  const float shift = largest == minus_infinity() ? 0 : largest;
  const float own = exp2f(row.largest - shift), sum = row.sum * own + exp2f(sink - shift);
  factor = own / sum;
  return (shift + log2f(sum)) * ln_2;
}

/// Where a row's results of one split lie: of a batch with those of its block.
SKIM_DEVICE std::int64_t partial_at(const attend_call& call, const row_tile& at, int token, int query_head, int split) {
  const int query_heads = call.heads * call.group;
  if (!call.batch) return (static_cast<std::int64_t>(token) * query_heads + query_head) * call.splits + split;
  const batch_tile& own = call.batch[at.tile];
  const std::int64_t row = static_cast<std::int64_t>(token - own.first_token) * query_heads + query_head;
  return own.part + row * own.splits + split;
}

/// Writes what four lanes, `quarter` 0 to 3, have of a packed row: lane q columns 8 n + 2 q + e as `value(n, e)`. The row's
/// output, or its part where there are several splits.
template <int D, class Value>
SKIM_DEVICE void write_row(const attend_call& call, const row_tile& at, int row, int split, int splits, row_sums own,
                           int quarter, const Value& value) {
  const int token = at.first_token + row / call.group, query_head = at.head * call.group + row % call.group;
  // One branch before all columns: code that runs once costs its way into the instruction cache.
  if (splits > 1) {
    const std::int64_t partial = partial_at(call, at, token, query_head, split);
    float* const to = call.partial + partial * D + quarter * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) *reinterpret_cast<float2*>(to + 8 * n) = make_float2(value(n, 0), value(n, 1));
    if (quarter == 0) {
      *reinterpret_cast<float2*>(call.partial_sums + 2 * partial) = make_float2(own.largest, own.sum);
    }
    return;
  }
  float factor;
  const float lse = finish_row(call, query_head, own, factor);
  const std::int64_t to = token * call.out_row + query_head * call.out_head + quarter * 2;
  const auto store_all = [&](auto type) {
    using T = decltype(type);
    T* const out = reinterpret_cast<T*>(call.out) + to;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      store_pair(out + 8 * n, value(n, 0) * factor, value(n, 1) * factor, call.out_in_pairs);
  };
  if (call.out_type == element::bf16) {
    store_all(bf16{});
  } else if (call.out_type == element::f16) {
    store_all(f16{});
  } else {
    store_all(0.0f);
  }
  if (quarter == 0 && call.lse) call.lse[token * call.lse_row + query_head * call.lse_head] = lse;
}

/// Merges the splits of each row, in order, a warp for a row. Grid: rows that all tiles may have, KV heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) merge_splits(const attend_call call) {
  start_in_chain();
  const int lane = threadIdx.x % 32, rows = min(call.tile_rows, call.block_rows * call.group);
  const int row = blockIdx.x * (Threads / 32) + threadIdx.x / 32, tile = row / rows;
  if (tile >= call.tiles) return;
  const row_tile at = tile_at(call, tile, blockIdx.y);
  const int own_row = at.first + row - tile * rows;
  if (own_row >= at.rows) return;
  const int token = at.first_token + own_row / call.group, query_head = at.head * call.group + own_row % call.group;
  const int splits = split_at(call, at, 0).splits;
  if (splits == 1) return;
  // Lane i has the weights of splits i and 32 + i.
  const float* const sums = call.partial_sums + 2 * partial_at(call, at, token, query_head, 0);
  row_sums own[2], all{minus_infinity(), 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int split = 32 * i + lane;
    own[i] = split < splits ? row_sums{sums[2 * split], sums[2 * split + 1]} : row_sums{minus_infinity(), 0};
    all.largest = fmaxf(all.largest, own[i].largest);
  }
  all.largest = largest_of_warp(all.largest);
  const float shift = all.largest == minus_infinity() ? 0 : all.largest;
  float weights[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    weights[i] = exp2f(own[i].largest - shift);
    all.sum += weights[i] * own[i].sum;
  }
  all.sum = sum_of_warp(all.sum);
  float factor;
  const float lse = finish_row(call, query_head, all, factor);
  const int Dv = call.kv.v.dim;
  const float* const values = call.partial + partial_at(call, at, token, query_head, 0) * Dv;
  for (int first = 0; first < Dv; first += 128) {
    float value[4] = {};
    constexpr int together = 4;  // whose loads do not wait for each other
    for (int begin = 0; begin < splits; begin += together) {
      float parts[together][4];
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const float* const from = values + static_cast<std::int64_t>(min(begin + j, splits - 1)) * Dv;
#pragma unroll
        for (int i = 0; i < 4; ++i) parts[j][i] = from[min(first + 32 * i + lane, Dv - 1)];
      }
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const int split = begin + j;
        const float weight = __shfl_sync(all_lanes, split < 32 ? weights[0] : weights[1], split % 32);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (split < splits) value[i] += weight * parts[j][i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int d = first + 32 * i + lane;
      if (d < Dv)
        store(call.out, call.out_type, token * call.out_row + query_head * call.out_head + d, value[i] * factor);
    }
  }
  if (call.lse && lane == 0) call.lse[token * call.lse_row + query_head * call.lse_head] = lse;
}

}}}}  // namespace skim::v0_2::cuda::detail
