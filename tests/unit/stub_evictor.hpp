// SPDX-License-Identifier: Apache-2.0
/// \file An evictor in the manner of H2O, written on the vocabulary alone.
#pragma once

#include <skim/attention.hpp>
#include <skim/executor.hpp>
#include <skim/workspace.hpp>

#include <algorithm>
#include <cmath>

namespace skim_test {

/// Keeps the `budget` tokens of each KV head that have received the most attention so far. State: one running sum per
/// head and row of metadata, `[Hk, capacity]`, which follows compaction. The cache stores positions per head.
struct attention_sum_evictor {
  std::int64_t budget = 0;

  struct kept_sums {
    float* sums;  // [Hk, capacity]
    kept_sums(skim::detail::arena& arena, const skim::kv_view& kv) { sums = arena.take<float>(kv.heads * kv.capacity); }
  };

  std::size_t state_bytes(const skim::attention_args& args) const {
    skim::detail::arena arena;
    kept_sums(arena, args.kv);
    return arena.used();
  }

  /// One row of logits per worker.
  std::size_t workspace_bytes(const skim::attention_args& args, unsigned workers) const {
    return workers * logits_bytes(args);
  }

  template <class Executor>
  void reset(const skim::attention_args& args, skim::memory state, const Executor& executor) const {
    const kept_sums kept = sums_of(args, state);
    executor.parallel_for(args.kv.heads, [&](std::int64_t head, unsigned) {
      std::fill_n(kept.sums + head * args.kv.capacity, args.kv.capacity, 0.0f);
    });
  }

  /// Adds the softmax weights of the chunk's queries; the chunk's own tokens start from zero.
  template <class Executor>
  void observe(const skim::attention_args& args, skim::memory state, skim::memory workspace,
               const Executor& executor) const {
    const kept_sums kept = sums_of(args, state);
    executor.parallel_for(args.kv.heads, [&](std::int64_t head, unsigned worker) {
      skim::detail::arena arena(static_cast<char*>(workspace.data) + worker * logits_bytes(args));
      add_weights(args, head, kept.sums + head * args.kv.capacity, arena.take<float>(args.kv.tokens));
    });
  }

  template <class Executor>
  void score(const skim::attention_args& args, skim::memory state, skim::tensor_view<float, 2> scores,
             const Executor& executor) const {
    const kept_sums kept = sums_of(args, state);
    executor.parallel_for(args.kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < args.kv.tokens; ++slot) {
        *scores.at(head, slot) = kept.sums[head * args.kv.capacity + args.kv.metadata_row(slot)];
      }
    });
  }

  /// `lists` [Hk, tokens]: its rows also serve as the order that is being sorted.
  template <class Executor>
  void keep(const skim::attention_args& args, skim::tensor_view<const float, 2> scores, const skim::index_lists& lists,
            const Executor& executor) const {
    executor.parallel_for(args.kv.heads, [&](std::int64_t head, unsigned) {
      std::int32_t* const order = lists.row(head);
      for (std::int64_t slot = 0; slot < args.kv.tokens; ++slot) order[slot] = static_cast<std::int32_t>(slot);
      const std::int64_t kept = std::min(budget, args.kv.tokens);
      std::partial_sort(order, order + kept, order + args.kv.tokens, [&](std::int32_t a, std::int32_t b) {
        const float first = *scores.at(head, a), second = *scores.at(head, b);
        return first != second ? first > second : a < b;
      });
      std::sort(order, order + kept);
      lists.counts[head] = static_cast<std::int32_t>(kept);
    });
  }

  /// Moves everything that belongs to a kept token to the front. The host then sets `tokens` to what was kept.
  template <class Executor>
  void compact(const skim::attention_args& args, const skim::index_lists& lists, skim::memory state,
               const Executor& executor) const {
    const skim::kv_view& kv = args.kv;
    const kept_sums kept = sums_of(args, state);
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t to = 0; to < lists.counts[head]; ++to) {
        const std::int64_t from = lists.row(head)[to];
        move_row(kv, kv.k, head, from, to);
        move_row(kv, kv.v, head, from, to);
        const std::int64_t a = kv.metadata_row(from), b = kv.metadata_row(to);
        kept.sums[head * kv.capacity + b] = kept.sums[head * kv.capacity + a];
        kv.positions[head * kv.positions_stride + b] = kv.positions[head * kv.positions_stride + a];
        float* const norms = kv.inverse_norms + head * kv.inverse_norms_stride;
        if (kv.inverse_norms) norms[b] = norms[a];
      }
    });
  }

 private:
  static kept_sums sums_of(const skim::attention_args& args, skim::memory state) {
    skim::detail::arena arena(state.data);
    return kept_sums(arena, args.kv);
  }

  static std::size_t logits_bytes(const skim::attention_args& args) {
    skim::detail::arena arena;
    arena.take<float>(args.kv.tokens);
    return arena.used();
  }

  static void add_weights(const skim::attention_args& args, std::int64_t head, float* sums, float* weights) {
    const skim::kv_view& kv = args.kv;
    const std::int64_t Tq = args.q.extents[0], past = kv.tokens - Tq, G = skim::group_size(args);
    for (std::int64_t t = 0; t < Tq; ++t) sums[kv.metadata_row(past + t)] = 0;
    for (std::int64_t i = 0; i < Tq * G; ++i) {
      const std::int64_t q = args.q.offset(i / G, head * G + i % G), position = kv.position(head, past + i / G);
      float total = 0;
      for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
        weights[slot] = 0;
        if (!args.mask.visible(position, kv.position(head, slot))) continue;
        const std::int64_t k = kv.row_offset(kv.k, head, slot);
        float dot = 0;
        for (std::int64_t d = 0; d < kv.k.dim; ++d) {
          dot += skim::load_element(args.q.data, args.q.type, q + d) * skim::load_element(kv.k.data, kv.k.type, k + d);
        }
        weights[slot] = std::exp(dot * skim::logit_scale(args));
        total += weights[slot];
      }
      for (std::int64_t slot = 0; slot < kv.tokens; ++slot) sums[kv.metadata_row(slot)] += weights[slot] / total;
    }
  }

  static void move_row(const skim::kv_view& kv, const skim::kv_tensor& tensor, std::int64_t head, std::int64_t from,
                       std::int64_t to) {
    const std::int64_t size = skim::element_bytes(tensor.type);
    char* const bytes = static_cast<char*>(tensor.data);
    std::memmove(bytes + kv.row_offset(tensor, head, to) * size, bytes + kv.row_offset(tensor, head, from) * size,
                 static_cast<std::size_t>(tensor.dim * size));
  }
};

}  // namespace skim_test
