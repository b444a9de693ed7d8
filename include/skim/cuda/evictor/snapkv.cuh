// SPDX-License-Identifier: Apache-2.0
/// \file SnapKV's pooled weights of the newest queries on a GPU.
#pragma once

#include <skim/cuda/evictor/observed_weights.cuh>
#include <skim/cuda/kernel/smooth_tokens.cuh>
#include <skim/evictor/snapkv.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Error bound: see observed_weights.cuh, over the window's rows; pooling adds 2^-24 (pool + 1) of the score.
template <>
struct score_kernel<snapkv> : detail::weight_evictor<snapkv> {
  static std::size_t workspace_bytes(const snapkv& policy, const eviction_args& args) {
    skim::detail::arena arena;
    static_cast<void>(order_of(policy, args, arena));
    return arena.used();
  }
  static void observe(const snapkv& policy, const eviction_args& args, const detail::eviction_call&, memory state,
                      memory, detail::launcher& launch) {
    const std::int64_t first = policy.first_query(args);
    const std::int64_t rows = (args.new_tokens - first) * group_size(attended_call(args));
    const float share = 1 / static_cast<float>(detail::greater(rows, 1));
    detail::observe_weights(args, {first, share, false}, state, launch);
  }
  static void score(const snapkv& policy, const eviction_args& args, const detail::eviction_call& call,
                    const tensor_view<float, 2>& scores, memory state, memory workspace, detail::launcher& launch) {
    weight_evictor::score(policy, args, call, scores, state, workspace, launch);
    if (policy.pool == 1) return;
    skim::detail::arena arena(workspace.data);
    detail::smooth_tokens(call, policy.pool, true, scores, order_of(policy, args, arena), launch);
  }

 private:
  static detail::token_order order_of(const snapkv& policy, const eviction_args& args, skim::detail::arena& arena) {
    return detail::token_order(arena, args.kv.heads, policy.pool > 1 ? args.kv.tokens : 0);
  }
};

}}}  // namespace skim::v0_2::cuda
