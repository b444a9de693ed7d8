// SPDX-License-Identifier: Apache-2.0
/// \file Evictors that watch attention: the softmax weights of some queries, kept as state. H2O, TOVA and SnapKV differ in the
/// queries.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/evictor.hpp>
#include <skim/cpu/kernel/attend_rows.hpp>
#include <skim/cpu/kernel/attend_tile.hpp>
#include <skim/cpu/kernel/attention_weights.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/compat.hpp>
#include <skim/eviction.hpp>
#include <skim/index_lists.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

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

/// Brings the state up to date with the chunk's attention. Work unit = (KV head, 512 keys): each weight has one writer.
void observe_weights(const eviction_args& args, const weight_rule& what, memory state, memory workspace,
                     executor_ref executor) {
  const attention_args& call = args.attended;
  const kv_view& kv = call.kv;
  const std::int64_t Tq = new_tokens(args);
  if (Tq == 0) return;
  float* const weights = weight_state::at(kv, state).weights;
  executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
    const std::int64_t length = kv.length(head);
    for (std::int64_t slot = what.accumulate ? length - Tq : 0; slot < length; ++slot) {
      weights[head * kv.capacity + kv.metadata_row(slot)] = 0;
    }
  });

  const std::int64_t pieces = (kv.tokens + weight_keys - 1) / weight_keys, G = group_size(call);
  const std::int64_t rows = (Tq - what.first) * G, stride = weight_stride(call, what.first);
  const std::size_t bytes = weight_scratch_bytes(call, what.first);
  const logit_rule rule = logit_rule::of(call);
  executor.parallel_for(kv.heads * pieces, [&](std::int64_t unit, unsigned worker) {
    attend_job job{};
    job.args = &call;
    job.lists = args.read;
    job.sequence = attention_sequence{&kv, 0, Tq};
    job.head = unit / pieces;
    job.G = G;
    job.key_begin = unit % pieces * weight_keys;
    job.key_end = smaller(job.key_begin + weight_keys, job.listed() + Tq);
    if (job.key_begin >= job.key_end) return;
    arena arena(worker_piece(workspace.data, bytes, worker));
    const weight_scratch scratch(arena, call.q.extents[2], stride);
    for (std::int64_t row = 0; row < rows; row += weight_rows) {
      job.row = what.first * G + row;
      job.rows = smaller(weight_rows, rows - row);
      job.stride = round_up(job.rows, simd::lanes);
      load_weight_rows(job, rule, scratch);
      float* const own = weights + job.head * kv.capacity;
      sum_job_weights(job, rule, {0, largest_index + 1}, scratch,
                      [&](std::int64_t slot, float weight)
                          SKIM_LAMBDA_INLINE { own[kv.metadata_row(slot)] += what.factor * weight; });
    }
  });
}

/// Evictors whose score is, or is made from, attention weights that they keep as state.
template <class Policy>
struct weight_evictor : plain_evictor<Policy> {
  static constexpr bool reads_attention = true;
  static constexpr bool has_weights = true;

  static float weight(const Policy&, float score) { return score; }
  static std::size_t state_bytes(const Policy&, const eviction_args& args) {
    return weight_state::bytes(args.attended.kv);
  }

  static void reset(const Policy&, const eviction_args& args, memory state, executor_ref executor) {
    const kv_view& kv = args.attended.kv;
    float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t row = 0; row < kv.capacity; ++row) weights[head * kv.capacity + row] = 0;
    });
  }

  static void score(const Policy&, const eviction_args& args, tensor_view<float, 2> scores, memory state, memory,
                    executor_ref executor) {
    const kv_view& kv = args.attended.kv;
    const float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(head, slot) = weights[head * kv.capacity + kv.metadata_row(slot)];
      }
    });
  }

  static void compact(const Policy&, const eviction_args& args, const index_lists& lists, memory state, memory,
                      executor_ref executor) {
    const kv_view& kv = args.attended.kv;
    float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      const std::int64_t row = args.share_heads ? 0 : head;
      float* const own = weights + head * kv.capacity;
      for_each_move(args.how, lists.row(row), lists.counts[row],
                    [&](std::int64_t from_slot, std::int64_t to_slot)
                        SKIM_LAMBDA_INLINE { own[kv.metadata_row(to_slot)] = own[kv.metadata_row(from_slot)]; });
    });
  }

 protected:
  /// Flops of the weights of `rows` queries, and K read once.
  static cost_estimate weights_cost(const eviction_args& args, std::int64_t tokens) {
    const kv_view& kv = args.attended.kv;
    const double n = static_cast<double>(kv.tokens), D = static_cast<double>(kv.k.dim);
    const double rows = static_cast<double>(tokens * args.attended.q.extents[1]);
    return {2 * rows * n * D, static_cast<double>(kv.heads) * n *
                                  (D * static_cast<double>(element_bytes(kv.k.type)) + 2 * sizeof(float))};
  }
};

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
