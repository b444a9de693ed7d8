// SPDX-License-Identifier: Apache-2.0
/// \file A selector in the manner of QUOKA, written on the vocabulary alone.
#pragma once

#include <skim/attention.hpp>
#include <skim/executor.hpp>
#include <skim/math/order.hpp>
#include <skim/workspace.hpp>

#include <algorithm>
#include <cmath>

namespace skim_test {

/// Per KV head, the `budget` visible past keys of highest cosine to the mean unit query of chunk and group.
struct mean_query_selector {
  std::int64_t budget = 0;

  skim::report check(const skim::attention_args&) const {
    if (budget < 1) return skim::detail::fault(skim::status::bad_value, "budget", budget, 1, "at least");
    return {};
  }

  std::int64_t list_capacity(const skim::attention_args& args) const { return std::min(budget, most_past(args)); }

  std::size_t workspace_bytes(const skim::attention_args& args, unsigned) const {
    skim::detail::arena arena;
    scratch(arena, args);
    return arena.used();
  }

  template <class Executor>
  void select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory, skim::memory workspace,
              const Executor& executor) const {
    skim::detail::arena arena(workspace.data);
    const scratch with(arena, args);
    const std::int64_t heads = skim::first_view(args).heads, blocks = (with.past + block_keys - 1) / block_keys;
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) { mean_query(args, row, with); });
    executor.parallel_for(lists.rows * blocks, [&](std::int64_t unit, unsigned) {
      const skim::attention_sequence sequence = skim::sequence_at(args, unit / blocks / heads);
      const std::int64_t begin = unit % blocks * block_keys;
      const std::int64_t past = sequence.kv->length(unit / blocks % heads) - sequence.Tq;
      for (std::int64_t slot = begin; slot < std::min(begin + block_keys, past); ++slot) {
        with.ranks[unit / blocks * with.past + slot] = rank(args, unit / blocks, slot, with);
      }
    });
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) { take_highest(args, row, with, lists); });
  }

 private:
  static constexpr std::int64_t block_keys = 16;

  static std::int64_t most_past(const skim::attention_args& args) {
    std::int64_t most = 0;
    for (std::int64_t s = 0; s < skim::sequence_count(args); ++s)
      most = std::max(most, skim::sequence_at(args, s).Tk());
    return most;
  }

  struct scratch {
    std::int64_t past;
    float* qbar;           // [rows, D]
    std::uint32_t* ranks;  // [rows, past]
    std::int32_t* order;   // [rows, past]

    scratch(skim::detail::arena& arena, const skim::attention_args& args) : past(most_past(args)) {
      const std::int64_t rows = skim::sequence_count(args) * skim::first_view(args).heads;
      qbar = arena.take<float>(rows * args.q.extents[2]);
      ranks = arena.take<std::uint32_t>(rows * past);
      order = arena.take<std::int32_t>(rows * past);
    }
  };

  static void mean_query(const skim::attention_args& args, std::int64_t row, const scratch& with) {
    const std::int64_t heads = skim::first_view(args).heads, G = skim::group_size(args), D = args.q.extents[2];
    const skim::attention_sequence sequence = skim::sequence_at(args, row / heads);
    float* const qbar = with.qbar + row * D;
    for (std::int64_t d = 0; d < D; ++d) qbar[d] = 0;
    for (std::int64_t i = 0; i < sequence.Tq * G; ++i) {
      const std::int64_t q = args.q.offset(sequence.first_row + i / G, row % heads * G + i % G);
      float squares = 0;
      for (std::int64_t d = 0; d < D; ++d) {
        const float value = skim::load_element(args.q.data, args.q.type, q + d);
        squares += value * value;
      }
      const float scale = squares > 0 ? 1 / (std::sqrt(squares) * static_cast<float>(sequence.Tq * G)) : 0;
      for (std::int64_t d = 0; d < D; ++d) qbar[d] += scale * skim::load_element(args.q.data, args.q.type, q + d);
    }
  }

  static std::uint32_t rank(const skim::attention_args& args, std::int64_t row, std::int64_t slot,
                            const scratch& with) {
    const std::int64_t heads = skim::first_view(args).heads, head = row % heads;
    const skim::attention_sequence sequence = skim::sequence_at(args, row / heads);
    const skim::kv_view& kv = *sequence.kv;
    bool seen = false;
    for (std::int64_t t = 0; t < sequence.Tq; ++t) {
      seen = seen || args.mask.visible(kv.position(head, kv.length(head) - sequence.Tq + t), kv.position(head, slot));
    }
    if (!seen) return 0;
    const std::int64_t k = kv.row_offset(kv.k, head, slot);
    float dot = 0, squares = 0;
    for (std::int64_t d = 0; d < kv.k.dim; ++d) {
      const float value = skim::load_element(kv.k.data, kv.k.type, k + d);
      dot += value * with.qbar[row * kv.k.dim + d];
      squares += value * value;
    }
    const float computed = squares > 0 ? 1 / std::sqrt(squares) : 0;
    const float* const norms = kv.inverse_norms;
    return skim::rank_bits(dot * (norms ? norms[head * kv.inverse_norms_stride + kv.metadata_row(slot)] : computed));
  }

  void take_highest(const skim::attention_args& args, std::int64_t row, const scratch& with,
                    const skim::index_lists& lists) const {
    const std::int64_t heads = skim::first_view(args).heads;
    const skim::attention_sequence sequence = skim::sequence_at(args, row / heads);
    const skim::kv_view& kv = *sequence.kv;
    const std::uint32_t* const ranks = with.ranks + row * with.past;
    std::int32_t* const order = with.order + row * with.past;
    std::int64_t candidates = 0;
    for (std::int64_t slot = 0; slot < kv.length(row % heads) - sequence.Tq; ++slot) {
      if (ranks[slot] > 0) order[candidates++] = static_cast<std::int32_t>(slot);
    }
    const std::int64_t kept = std::min(budget, candidates);
    std::partial_sort(order, order + kept, order + candidates, [&](std::int32_t a, std::int32_t b) {
      return ranks[a] != ranks[b] ? ranks[a] > ranks[b] : kv.position(row % heads, a) < kv.position(row % heads, b);
    });
    std::sort(order, order + kept);
    std::copy(order, order + kept, lists.row(row));
    lists.counts[row] = static_cast<std::int32_t>(kept);
  }
};

}  // namespace skim_test
