// SPDX-License-Identifier: Apache-2.0
/// \file SnapKV's pooled weights of the newest queries on the CPU.
#pragma once

#include <skim/cpu/evictor/observed_weights.hpp>
#include <skim/cpu/kernel/position_order.hpp>
#include <skim/evictor/snapkv.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Error bound: see observed_weights.hpp, over the window's rows; pooling adds u (pool + 1) of the score.
template <>
struct score_kernel<snapkv> : detail::weight_evictor<snapkv> {
  static std::size_t workspace_bytes(const snapkv& policy, const eviction_args& args, unsigned workers) {
    const std::size_t observe = detail::observe_bytes(args, policy.first_query(args), workers);
    detail::arena arena;
    arena.take<char>(detail::saturated(static_cast<std::int64_t>(detail::order_bytes(args.kv.tokens)), workers));
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
    const std::size_t bytes = detail::order_bytes(args.kv.tokens);
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
      const std::int64_t n = kv.length(head), reach = policy.pool / 2;
      const detail::slot_order order =
          detail::order_tokens(kv, head, detail::worker_piece(workspace.data, bytes, worker));
      for (std::int64_t i = 0; i < n; ++i) {
        float sum = 0;
        const std::int64_t end = detail::smaller(i + reach + 1, n);
        for (std::int64_t j = detail::greater(i - reach, 0); j < end; ++j) {
          sum += weights[head * kv.capacity + kv.metadata_row(order.at(j))];
        }
        *scores.at(head, order.at(i)) = sum / static_cast<float>(policy.pool);
      }
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
