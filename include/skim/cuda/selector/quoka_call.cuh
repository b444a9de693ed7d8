// SPDX-License-Identifier: Apache-2.0
/// \file What QUOKA's kernels share: blocks of rows that choose at a time, and their scratch.
#pragma once

#include <skim/cuda/kernel/attend_call.cuh>
#include <skim/cuda/kernel/key_rows.cuh>
#include <skim/retention.hpp>
#include <skim/selector/quoka.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Rows of queries in scratch: [lists * n, padded(D)].
SKIM_DEVICE float* query_row(float* queries, int D, std::int64_t row) {
  return queries + row * padded(D);
}

/// Moments of a query's products with some keys. spread: sum of squared distances from the mean.
struct product_moments {
  float count = 0, mean = 0, spread = 0;

  SKIM_DEVICE void join(const product_moments& other) {
    if (other.count == 0) return;
    const float both = count + other.count, apart = other.mean - mean;
    spread += other.spread + apart * apart * (count * other.count / both);
    mean += apart * (other.count / both);
    count = both;
  }
  /// What turns a product into a standardised one: factor 0 and offset -inf where the query does not score. Says whether it
  /// does.
  SKIM_DEVICE bool standardise(float& factor, float& offset) const {
    const float deviation = count < 2 ? 0 : sqrtf(spread / (count - 1));
    const bool scores = deviation > 1e-6f * sqrtf(spread / count + mean * mean);
    factor = scores ? 1 / deviation : 0;
    offset = scores ? -mean / deviation : minus_infinity();
    return scores;
  }
};

struct quoka_call {
  cache_rows kv;
  const char* q;
  std::int64_t q_row, q_head, left, right;
  float scale;
  element q_type;
  int Tq, heads, group, block_rows, first_block, blocks;  // of the sequence; of these, the ones at work here
  unsigned dense_blocks;                                  // bit i: block first_block + i reads everything
  batch_tile* batch;                                      // blocks of a batch, [all]; null: one sequence
  int n, samples, smooth, rows;                           // rows: room for a block's G * Tq
  int whole;                                              // queries that matrix instructions meet
  int pieces, most_samples;                               // of moments, at most
  query_choice choice;
  bool needed, means;  // whether rows of need are picked; whether queries are means of groups, and scores cosines
  element query_type;  // that queries are rounded to; none: they stay f32
  const float* inverse_norms;
  std::int64_t inverse_norms_stride;
  retention keep;
  float *needs, *features, *distances, *queries, *factors, *offsets, *raw, *scores;
  float* inverse_lengths;    // [lists, rows]: of the block's rows; NaN of one that has no say
  int *nearest, *picked;     // picked [lists, n]; of means [lists, group, n]
  product_moments* moments;  // [lists, pieces, n]
  char* fragments;           // queries once more, as matrix instructions want them: see `fragment_at`. Null: by none
  std::int64_t score_stride;
};

/// Queries that matrix instructions meet: 32 at a time, or 16 of those that need no moments.
SKIM_HD SKIM_INLINE constexpr std::int64_t whole_queries(std::int64_t n, bool means) {
  return means ? (n + 15) / 16 * 16 : (n + 31) / 32 * 32;
}
/// Where number d of a query stands: [D / dims, queries / 8, 32 lanes, dims / 4].
SKIM_HD SKIM_INLINE constexpr int fragment_at(int query, int d, int D, int queries) {
  const int dims = dims_at_once(D), part = dims / 4;
  return ((d / dims * (queries / 8) + query / 8) * 32 + query % 8 * 4 + d % dims / part) * part + d % part;
}

/// Number d of a query, rounded to what keys are multiplied in; NaN where there is no query.
SKIM_DEVICE void store_query(const quoka_call& call, int list, int query, int d, float value) {
  const int D = call.kv.k.dim, queries = call.whole;
  const float rounded = call.query_type == element::bf16  ? __bfloat162float(__float2bfloat16_rn(value))
                        : call.query_type == element::f16 ? __half2float(__float2half_rn(value))
                                                          : value;
  query_row(call.queries, D, static_cast<std::int64_t>(list) * call.n + query)[d] = d < D ? rounded : 0;
  if (!call.fragments) return;
  store(call.fragments + static_cast<std::int64_t>(list) * queries * D * 2, call.query_type,
        fragment_at(query, d, D, queries), value);
}
/// Two or four numbers from d on, a multiple of as many, of queries that are rounded to T.
template <class T, int D, int Count>
SKIM_DEVICE void store_query(const quoka_call& call, int list, int query, int d, const float (&values)[Count]) {
  const int queries = call.whole;
  float* const row = query_row(call.queries, D, static_cast<std::int64_t>(list) * call.n + query) + d;
  auto* const fragment = reinterpret_cast<std::uint32_t*>(
      call.fragments + (static_cast<std::int64_t>(list) * queries * D + fragment_at(query, d, D, queries)) * 2);
#pragma unroll
  for (int i = 0; i < Count; i += 2) {
    const std::uint32_t both = tensor_type<T>::pack(values[i], values[i + 1]);
    *reinterpret_cast<float2*>(row + i) = make_float2(tensor_type<T>::low(both), tensor_type<T>::high(both));
    fragment[i / 2] = both;
  }
}

/// One block of rows of one KV head; scratch of lists is laid out by `list`.
struct quoka_block {
  int list, head, first_token, Tq, rows, past;
  int base;               // slot 0, for tables
  int first, count;       // candidates: the past slots [first, first + count)
  bool dense, reads_all;  // reads what no row sees too; nothing to choose

  SKIM_DEVICE quoka_block(const quoka_call& call, int at) {
    list = at;
    head = at % call.heads;
    const int block = call.first_block + at / call.heads;
    if (call.batch) {
      await_kernel_before();  // for what the first of the chain wrote
      const batch_tile& own = call.batch[block];
      first_token = own.first_token;
      Tq = own.Tq;
      past = own.past;
      base = own.base;
      dense = own.dense;
    } else {
      first_token = block * call.block_rows;
      Tq = min(call.block_rows, call.Tq - first_token);
      past = call.kv.length(head) - call.Tq + first_token;
      base = 0;
      dense = (call.dense_blocks >> (block - call.first_block) & 1u) != 0;
    }
    rows = Tq * call.group;
    first = Tq == 0 ? past : call.left < past ? past - static_cast<int>(call.left) : 0;  // what no row sees is none
    count = past - first;
    reads_all = dense || count <= call.keep.keys(past);
  }

  SKIM_DEVICE std::int64_t query_offset(const quoka_call& call, int row) const {
    return (first_token + row % Tq) * call.q_row + (head * call.group + row / Tq) * call.q_head;
  }
  /// Queries that there may be; those that do not score have factor 0.
  SKIM_DEVICE int queries(const quoka_call& call) const { return min(call.n, call.means ? Tq : rows); }
  SKIM_DEVICE bool picks(const quoka_call& call) const { return !reads_all && !takes_every_row(call); }
  SKIM_DEVICE bool takes_every_row(const quoka_call& call) const { return !call.needed || rows <= call.n; }

  /// The i-th place that moments are of, and how many there are.
  SKIM_DEVICE int moment_count() const {
    const int sampled = count > 16 ? (count - 17) / 32 + 1 : 0;
    return sampled >= 32 ? sampled : count;
  }
  SKIM_DEVICE int moment_slot(int i) const {
    const int sampled = count > 16 ? (count - 17) / 32 + 1 : 0;
    return first + (sampled >= 32 ? 16 + 32 * i : i);
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
