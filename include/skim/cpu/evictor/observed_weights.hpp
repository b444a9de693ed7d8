// SPDX-License-Identifier: Apache-2.0
/// \file Evictors that watch attention: the softmax weights of some queries, kept as state. H2O, TOVA and SnapKV differ in the
/// queries.
///
/// Weights and their sums are f32. With u = 2^-24 the weight that a query gives to a key lies within a factor of
/// exp(u ((D + 8) A + 8 B + 4 |lse| + 2)) of exact arithmetic on the stored values and the given log-sum-exp, A being the
/// largest `scale * sum_d |q_d k_d|` of the row and B its largest |bias| + |slope * distance|; it is never above 1. Summing r
/// rows adds at most u (min(r, b) / 4 + r / b + c + 14) of the sum, where b = `weight_rows` and c counts the blocks of rows,
/// over all chunks that were observed. Weights below 2^-126 count as 0.
#pragma once

#include <skim/cpu/kernel/attention_weights.hpp>
#include <skim/cpu/kernel/compact.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t weight_keys = 512;  // of a work unit: packing 512 rows of queries costs 1/512 of it

/// The state of an evictor that watches attention, and its bytes.
struct weight_state {
  float* weights;  // [Hk, capacity], by `metadata_row`

  weight_state(arena& arena, const kv_view& kv) { weights = arena.take<float>(kv.heads * kv.capacity); }
  static weight_state at(const kv_view& kv, memory state) {
    arena arena(state.data);
    return weight_state(arena, kv);
  }
  static std::size_t bytes(const kv_view& kv) {
    arena arena;
    weight_state(arena, kv);
    return arena.used();
  }
};

/// Whose weights, and what becomes of them: weights of queries [first, Tq), times `factor`, are added to the state, in
/// which tokens start at zero when they arrive (`accumulate`) or each time.
struct weight_rule {
  std::int64_t first;
  float factor;
  bool accumulate;
};

/// Scratch of observing, for all workers.
inline std::size_t observe_bytes(const eviction_args& args, std::int64_t first, unsigned workers) {
  arena arena;
  const std::size_t piece = weight_scratch_bytes(attended_call(args), first);
  arena.take<char>(saturated(static_cast<std::int64_t>(piece), workers));
  return arena.used();
}

/// Adds the weights of one block of the chunk's rows. Work unit = (KV head, 512 keys): each weight has one writer.
inline void observe_block(const attention_args& call, attend_job block, const weight_rule& what, float* weights,
                          void* workspace, executor_ref executor) {
  const kv_view& kv = call.kv;
  const std::int64_t begin = greater(what.first - block.sequence.first_row, 0), Tq = block.sequence.Tq;
  const std::int64_t pieces = (block.sequence.kv.tokens + weight_keys - 1) / weight_keys;
  const std::int64_t rows = (Tq - begin) * block.G, stride = weight_stride(call, what.first);
  const std::size_t bytes = weight_scratch_bytes(call, what.first);
  const logit_rule rule = logit_rule::of(call);
  executor.parallel_for(kv.heads * pieces, [&](std::int64_t work, unsigned worker) {
    attend_job job = block;
    job.head = work / pieces;
    job.key_begin = work % pieces * weight_keys;
    job.key_end = smaller(job.key_begin + weight_keys, job.listed() + Tq);
    if (job.key_begin >= job.key_end) return;
    arena arena(worker_piece(workspace, bytes, worker));
    const weight_scratch scratch(arena, call.q.extents[2], stride);
    float* const own = weights + job.head * kv.capacity;
    for (std::int64_t row = 0; row < rows; row += weight_rows) {
      job.row = begin * job.G + row;
      job.rows = smaller(weight_rows, rows - row);
      job.stride = round_up(job.rows, simd::lanes);
      load_weight_rows(job, rule, scratch);
      sum_job_weights(job, rule, {0, largest_index + 1}, scratch,
                      [&](std::int64_t slot, float weight)
                          SKIM_LAMBDA_INLINE { own[kv.metadata_row(slot)] += what.factor * weight; });
    }
  });
}

/// Brings the state up to date with the chunk's attention, block after block where these read lists of their own.
inline void observe_weights(const eviction_args& args, const weight_rule& what, memory state, memory workspace,
                            executor_ref executor) {
  if (args.new_tokens == 0) return;
  const attention_args call = attended_call(args);
  const kv_view& kv = call.kv;
  float* const weights = weight_state::at(kv, state).weights;
  executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
    const std::int64_t length = kv.length(head);
    for (std::int64_t slot = what.accumulate ? length - args.new_tokens : 0; slot < length; ++slot) {
      weights[head * kv.capacity + kv.metadata_row(slot)] = 0;
    }
  });
  const std::int64_t block_rows = args.read ? args.read->block_rows : 0;
  for_each_block(call, block_rows, [&](const attention_sequence& rows, std::int64_t index) {
    if (rows.first_row + rows.Tq <= what.first) return;
    attend_job block{};
    block.args = &call;
    block.lists = args.read;
    block.sequence = rows;
    block.list_row = index * kv.heads;
    block.G = group_size(call);
    observe_block(call, block, what, weights, workspace.data, executor);
  });
}

/// Evictors whose score is, or is made from, attention weights that they keep as state.
template <class Policy>
struct weight_evictor : own_hooks<Policy, executor_ref> {
  static std::size_t state_bytes(const Policy&, const eviction_args& args) { return weight_state::bytes(args.kv); }

  static void reset(const Policy&, const eviction_args& args, memory state, executor_ref executor) {
    const kv_view kv = args.kv;
    float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t row = 0; row < kv.capacity; ++row) weights[head * kv.capacity + row] = 0;
    });
  }

  static void score(const Policy&, const eviction_args& args, tensor_view<float, 2> scores, memory state, memory,
                    executor_ref executor) {
    const kv_view kv = args.kv;
    const float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(head, slot) = weights[head * kv.capacity + kv.metadata_row(slot)];
      }
    });
  }

  static void compact(const Policy&, const eviction_args& args, const index_lists& lists, memory state, memory,
                      executor_ref executor) {
    const kv_view kv = args.kv;
    float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      const std::int64_t row = list_row(args, head);
      float* const own = weights + head * kv.capacity;
      for_each_move(args.how, lists.row(row), lists.counts[row],
                    [&](std::int64_t source, std::int64_t target)
                        SKIM_LAMBDA_INLINE { own[kv.metadata_row(target)] = own[kv.metadata_row(source)]; });
    });
  }
};

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
