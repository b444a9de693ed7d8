// SPDX-License-Identifier: Apache-2.0
/// \file SnapKV's pooled weights of the newest queries on the CPU.
#pragma once

#include <skim/cpu/evictor/observed_weights.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/evictor/snapkv.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// Slots by ascending position: a radix sort of 11 bits a pass, stable, out of place.
struct position_order {
  std::int32_t* slot_ids;   // [n]
  std::int32_t* other;      // [n]
  std::int32_t* histogram;  // [2048]

  position_order(arena& arena, std::int64_t n) {
    slot_ids = arena.take<std::int32_t>(n);
    other = arena.take<std::int32_t>(n);
    histogram = arena.take<std::int32_t>(histogram_bins);
  }

  SKIM_INLINE void sort(const kv_view& kv, std::int64_t head, std::int64_t n) {
    for (std::int64_t slot = 0; slot < n; ++slot) slot_ids[slot] = static_cast<std::int32_t>(slot);
    if (positions_ascend(kv, head, n)) return;
    for (int shift = 0; shift < 32; shift += 11) {
      const auto digit = [&](std::int32_t slot) SKIM_LAMBDA_INLINE {
        return (static_cast<std::uint32_t>(kv.position(head, slot)) >> shift) & (histogram_bins - 1);
      };
      for (std::int64_t bin = 0; bin < histogram_bins; ++bin) histogram[bin] = 0;
      for (std::int64_t i = 0; i < n; ++i) ++histogram[digit(slot_ids[i])];
      for (std::int64_t bin = 0, before = 0; bin < histogram_bins; ++bin) {
        const std::int32_t count = histogram[bin];
        histogram[bin] = static_cast<std::int32_t>(before);
        before += count;
      }
      for (std::int64_t i = 0; i < n; ++i) other[histogram[digit(slot_ids[i])]++] = slot_ids[i];
      std::int32_t* const sorted = other;
      other = slot_ids;
      slot_ids = sorted;
    }
  }
};

}  // namespace detail

/// Error bound: see observed_weights.hpp, over the window's rows; pooling adds u (pool + 1) of the score.
template <>
struct score_kernel<snapkv> : detail::weight_evictor<snapkv> {
  static std::size_t workspace_bytes(const snapkv& policy, const eviction_args& args, unsigned workers) {
    const std::size_t observe = detail::observe_bytes(args, policy.first_query(args), workers);
    detail::arena arena;
    arena.take<char>(detail::saturated(static_cast<std::int64_t>(order_bytes(args)), workers));
    return observe > arena.used() ? observe : arena.used();
  }

  static void observe(const snapkv& policy, const eviction_args& args, memory state, memory workspace,
                      executor_ref executor) {
    const std::int64_t first = policy.first_query(args);
    const std::int64_t rows = (args.new_tokens - first) * group_size(attended_call(args));
    const float share = 1 / static_cast<float>(detail::greater(rows, 1));
    detail::observe_weights(args, {first, share, false}, state, workspace, executor);
  }

  static void score(const snapkv& policy, const eviction_args& args, tensor_view<float, 2> scores, memory state,
                    memory workspace, executor_ref executor) {
    const kv_view kv = args.kv;
    const float* const weights = detail::weight_state::at(kv, state).weights;
    const std::size_t bytes = order_bytes(args);
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
      detail::arena arena(detail::worker_piece(workspace.data, bytes, worker));
      detail::position_order order(arena, kv.tokens);
      const std::int64_t n = kv.length(head), reach = policy.pool / 2;
      order.sort(kv, head, n);
      for (std::int64_t i = 0; i < n; ++i) {
        float sum = 0;
        const std::int64_t end = detail::smaller(i + reach + 1, n);
        for (std::int64_t j = detail::greater(i - reach, 0); j < end; ++j) {
          sum += weights[head * kv.capacity + kv.metadata_row(order.slot_ids[j])];
        }
        *scores.at(head, order.slot_ids[i]) = sum / static_cast<float>(policy.pool);
      }
    });
  }

 private:
  static std::size_t order_bytes(const eviction_args& args) {
    detail::arena arena;
    detail::position_order(arena, args.kv.tokens);
    return arena.used();
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
