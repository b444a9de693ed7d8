// SPDX-License-Identifier: Apache-2.0
/// \file What QUOKA's kernels share: the blocks of one sequence that choose together, and their scratch.
#pragma once

#include <skim/cuda/kernel/attend_call.cuh>
#include <skim/retention.hpp>
#include <skim/selector/quoka.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Rows of queries in scratch: [lists * n, padded(D)].
SKIM_DEVICE float* query_row(float* queries, int D, std::int64_t row) {
  return queries + row * padded(D);
}

/// Sums over a piece of a query's products with sampled keys.
struct partial_moments {
  float count, mean, spread, squares;  // spread: sum of squared distances from the mean
};

struct quoka_call {
  cache_rows kv;
  const char* q;
  std::int64_t q_row, q_head, left, right;
  float scale;
  element q_type;
  int Tq, heads, group, block_rows, first_block, blocks;  // of the sequence; of these, the ones at work here
  unsigned dense_blocks;                                  // bit i: block first_block + i reads everything
  int n, samples, smooth, rows, pieces, tiles_of_piece;   // rows: room for a block's G * Tq; pieces of moments
  bool needed;
  element query_type;  // that queries are rounded to; none: they stay f32
  retention keep;
  float *needs, *features, *distances, *queries, *factors, *offsets, *raw, *scores;
  int *nearest, *picked;
  partial_moments* moments;
  std::int64_t score_stride;
};

/// One block of rows of one KV head; scratch of lists is laid out by `list`.
struct quoka_block {
  int list, head, first_token, Tq, rows, past;
  int first, count;  // candidates: the past slots [first, first + count)
  bool reads_all;    // nothing to choose

  SKIM_DEVICE quoka_block(const quoka_call& call, int at) {
    list = at;
    head = at % call.heads;
    const int block = at / call.heads;
    first_token = (call.first_block + block) * call.block_rows;
    Tq = min(call.block_rows, call.Tq - first_token);
    rows = Tq * call.group;
    past = call.kv.length(head) - call.Tq + first_token;
    first = Tq == 0 ? past : call.left < past ? past - static_cast<int>(call.left) : 0;  // what no row sees is none
    count = past - first;
    reads_all = (call.dense_blocks >> block & 1u) != 0 || count <= call.keep.keys(past);
  }

  SKIM_DEVICE std::int64_t query_offset(const quoka_call& call, int row) const {
    return (first_token + row % Tq) * call.q_row + (head * call.group + row / Tq) * call.q_head;
  }
  /// Queries that there may be; those that do not score have factor 0.
  SKIM_DEVICE int queries(const quoka_call& call) const { return min(call.n, rows); }
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
