// SPDX-License-Identifier: Apache-2.0
/// \file The eviction operation on a GPU: `cuda::eviction<Evictor>`.
#pragma once

#include <skim/cuda/arch/choose_in_cluster.cuh>
#include <skim/cuda/kernel/compact.cuh>
#include <skim/cuda/kernel/pool_scores.cuh>
#include <skim/cuda/kernel/score_alike.cuh>
#include <skim/cuda/kernel/smooth_tokens.cuh>
#include <skim/cuda/score_kernel.cuh>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Which tokens of a cache stay, by `Evictor`, as `cpu::eviction`: the same steps, arguments and lists, but that equal scores
/// may round apart. The cache, its metadata, budgets, lists, scores, state and workspace are memory of the device. State is
/// that of the GPU: the CPU's is another.
///
/// Steps only enqueue, and nothing is allocated: calls may be captured in a graph. Equal arguments give equal bits. Not
/// supported, and refused by name: `compaction::pages`; bias and slopes of an attention that is watched. As lengths are not
/// looked at on the host, `run` reports the sparse path where some head may be over its budget.
template <class Evictor>
struct eviction {
  Evictor evictor{};

  policy_needs needs() const { return needs_of(evictor); }

  /// O(1), follows no pointer.
  launch_report check(const eviction_args& args) const { return check_given(args, pointers::required); }
  launch_report check_shape(const eviction_args& args) const { return check_given(args, pointers::ignored); }

  /// Bytes that the evictor keeps on the device between calls, per layer and sequence; 0 for what `check_shape` refuses.
  std::size_t state_bytes(const eviction_args& args) const {
    return check_shape(args) ? kernel::state_bytes(evictor, args) : 0;
  }

  /// Scratch of `run` and of each step on the device; 64-byte aligned, any contents. 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const eviction_args& args) const { return check_shape(args) ? scratch(args).bytes : 0; }

  /// The row length that lists need.
  std::int64_t list_capacity(const eviction_args& args) const { return skim::list_capacity(kept(args), args); }

  /// Makes the state that of an empty cache.
  launch_report reset(const eviction_args& args, memory state, cudaStream_t stream) const {
    if (launch_report r = check_state(args, state); !r) return r;
    detail::launcher launch(stream);
    kernel::reset(evictor, args, state, launch);
    return {report{}, launch.error()};
  }

  /// Takes in the chunk.
  launch_report observe(const eviction_args& args, memory state, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check_call(args, state, workspace); !r) return r;
    if (report r = check_watched(args); !r) return r;
    detail::launcher launch(stream);
    kernel::observe(evictor, args, detail::call_of(args, kept(args)), state, scratch(args, workspace.data).rest,
                    launch);
    return {report{}, launch.error()};
  }

  /// scores [Hk, n]: of every token, by slot; the highest stay. Entries beyond a head's length are not written.
  launch_report score(const eviction_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
                      cudaStream_t stream) const {
    if (launch_report r = check_call(args, state, workspace); !r) return r;
    if (report r = check_scores(args, scores, args.kv.heads); !r) return r;
    if (report r = skim::detail::check_apart(scores, "scores"); !r) return r;
    detail::launcher launch(stream);
    score_tokens(args, scores, state, scratch(args, workspace.data), launch);
    return {report{}, launch.error()};
  }

  /// Writes the slots that stay: the tokens that the policy protects and the highest scores, as many as the budget.
  /// scores [Hk, n], or [1, n] with `share_heads`. NaN ranks below -inf, -0 = +0.
  launch_report choose(const eviction_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                       memory workspace, cudaStream_t stream) const {
    if (launch_report r = check_workspace(args, workspace); !r) return r;
    const bool pooled = args.share_heads && scores.extents[0] == 1;
    if (report r = check_scores(args, scores, pooled ? 1 : args.kv.heads); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    detail::launcher launch(stream);
    choose_tokens(args, scores, lists, scratch(args, workspace.data), nullptr, launch);
    return {report{}, launch.error()};
  }

  /// Lets everything follow `lists`: the state, then keys, values, their scales, positions and inverse norms. Lists as
  /// `choose` writes them are its precondition.
  launch_report compact(const eviction_args& args, const index_lists& lists, memory state, memory workspace,
                        cudaStream_t stream) const {
    if (launch_report r = check_call(args, state, workspace); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    detail::launcher launch(stream);
    follow(args, lists, state, scratch(args, workspace.data), nullptr, launch);
    return {report{}, launch.error()};
  }

  /// Observes the chunk and evicts what is over the budget. `lists` then tells which slots stayed; its counts are the new
  /// lengths.
  launch_report run(const eviction_args& args, const index_lists& lists, memory state, memory workspace,
                    cudaStream_t stream) const {
    if (launch_report r = check_call(args, state, workspace); !r) return r;
    if (report r = check_watched(args); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    detail::launcher launch(stream);
    const scratch_memory own = scratch(args, workspace.data);
    kernel::observe(evictor, args, detail::call_of(args, kept(args)), state, own.rest, launch);
    const bool evicts = args.budgets || args.kv.tokens > kept(args).count;
    const tensor_view<float, 2> scores(own.scores, {args.kv.heads, args.kv.tokens}, {own.stride, 1});
    if (evicts) score_tokens(args, scores, state, own, launch);
    const bool listed = choose_tokens(args, scores, lists, own, evicts ? own.left_out : nullptr, launch);
    if (evicts) follow(args, lists, state, own, listed ? own.left_out : nullptr, launch);
    launch_report answer(report{}, launch.error());
    answer.taken = evicts ? path::sparse : path::dense;
    return answer;
  }

 private:
  using kernel = std::conditional_t<scores_alike<Evictor>, detail::alike_kernel<Evictor>, score_kernel<Evictor>>;

  /// The workspace: scores of a `run`, mean scores of all heads, slots that leave, order of positions and scores before
  /// smoothing, what blocks that move rows in order say, the rest.
  struct scratch_memory {
    float *scores, *pooled;
    std::int32_t* left_out;
    std::int64_t stride;
    detail::token_order order;
    detail::moving_order moving;
    memory rest;
    std::size_t bytes;
  };
  scratch_memory scratch(const eviction_args& args, void* workspace = nullptr) const {
    scratch_memory own{};
    skim::detail::arena arena(workspace);
    own.stride = detail::pieces(args.kv.tokens, 4) * 4;
    own.scores = arena.take<float>(args.kv.heads * own.stride);
    own.pooled = arena.take<float>(args.share_heads ? own.stride : 0);
    own.left_out = arena.take<std::int32_t>(list_rows(args) * own.stride);
    own.order = detail::token_order(arena, args.kv.heads, smooth_of(evictor) > 1 ? own.stride : 0);
    own.moving.turn =
        arena.take<std::uint32_t>(args.how == compaction::stable ? detail::moving_order::items(args) + 1 : 0);
    own.moving.read = own.moving.turn + 1;
    const std::size_t of_kernel = kernel::workspace_bytes(evictor, args);
    own.rest = {static_cast<char*>(workspace) + arena.used(), of_kernel};
    own.bytes = arena.used() + of_kernel;
    return own;
  }

  retention kept(const eviction_args& args) const { return kept_by(evictor, args); }

  void score_tokens(const eviction_args& args, const tensor_view<float, 2>& scores, memory state,
                    const scratch_memory& own, detail::launcher& launch) const {
    const detail::eviction_call call = detail::call_of(args, kept(args));
    kernel::score(evictor, args, call, scores, state, own.rest, launch);
    if (smooth_of(evictor) > 1) detail::smooth_tokens(call, smooth_of(evictor), false, scores, own.order, launch);
  }

  /// Says whether what leaves is listed too, in `left_out` if given.
  bool choose_tokens(const eviction_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                     const scratch_memory& own, std::int32_t* left_out, detail::launcher& launch) const {
    if (args.share_heads && scores.extents[0] > 1) {
      const tensor_view<float, 2> pooled(own.pooled, {1, args.kv.tokens}, {own.stride, 1});
      detail::pool_scores(scores, pooled, launch);
      scores = pooled;
    }
    detail::token_rows rows{};
    rows.call = detail::call_of(args, kept(args));
    const int blocks = detail::cluster_choosing::blocks(args.kv.tokens, true, list_rows(args));
    rows.call.left_out = blocks == 2 ? nullptr : left_out;
    rows.call.left_out_stride = own.stride;
    rows.lists = lists;
    rows.scores = scores.data;
    rows.score_stride = scores.strides[0];
    rows.columns = static_cast<int>(args.kv.tokens);
    rows.by_four = reinterpret_cast<std::uintptr_t>(scores.data) % 16 == 0 && scores.strides[0] % 4 == 0 &&
                   args.kv.tokens % 4 == 0;
    rows.later = prefers_later<Evictor> || scores_alike<Evictor>;
    if (detail::choose_by_clusters(rows, args.kv.tokens, list_rows(args), launch)) return blocks != 2;
    detail::choose_by_blocks(rows, list_rows(args), launch);
    return false;
  }

  void follow(const eviction_args& args, const index_lists& lists, memory state, const scratch_memory& own,
              std::int32_t* left_out, detail::launcher& launch) const {
    detail::eviction_call call = detail::call_of(args, kept(args));
    call.left_out = left_out;
    call.left_out_stride = own.stride;
    const auto leaving = kernel::leaving(evictor, args, call, state);
    detail::compact_cache(call, lists, leaving, own.moving, launch);
  }

  launch_report check_given(const eviction_args& args, pointers given) const {
    if (report r = skim::check(args, kept(args), needs(), given); !r) return r;
    if (report r = skim::detail::check_width_of_mean("smooth", smooth_of(evictor)); !r) return r;
    if (report r = evictor.check(args); !r) return r;
    if (report r = check_limits(args); !r) return r;
    return kernel::check(evictor, args);
  }

  static report check_limits(const eviction_args& args) {
    const kv_cache& kv = args.kv;
    if (report r = detail::check_loadable(kv.k.type, "kv.k"); !r) return r;
    if (report r = detail::check_loadable(kv.v.type, "kv.v"); !r) return r;
    if (args.how == compaction::pages) {
      return fault(status::unsupported, "how (on a GPU)", to_string(args.how), "refill or stable");
    }
    const std::int64_t most = std::int64_t{1} << 28;  // slots are 32-bit numbers here
    if (kv.tokens > most) return fault(status::unsupported, "kv.tokens", kv.tokens, most, "at most");
    return kv.heads > 65535 ? fault(status::unsupported, "kv.heads", kv.heads, 65535, "at most") : report{};
  }

  /// The lists that attention read, where they will be looked at.
  report check_watched(const eviction_args& args) const {
    return needs().lse ? skim::detail::check_read(attended_call(args), args.read) : report{};
  }

  launch_report check_state(const eviction_args& args, memory state) const {
    if (launch_report r = check(args); !r) return r;
    return skim::detail::check_state(state, kernel::state_bytes(evictor, args));
  }
  launch_report check_workspace(const eviction_args& args, memory workspace) const {
    if (launch_report r = check(args); !r) return r;
    return skim::detail::check_workspace(workspace, scratch(args).bytes);
  }
  launch_report check_call(const eviction_args& args, memory state, memory workspace) const {
    if (launch_report r = check_workspace(args, workspace); !r) return r;
    return skim::detail::check_state(state, kernel::state_bytes(evictor, args));
  }

  static report check_scores(const eviction_args& args, tensor_view<const float, 2> scores, std::int64_t rows) {
    if (report r = skim::detail::check_tensor(scores, "scores"); !r) return r;
    if (report r = skim::detail::check_extent(scores, 0, rows, "scores"); !r) return r;
    const std::int64_t columns = scores.extents[1], tokens = args.kv.tokens;
    if (columns >= tokens) return {};
    return skim::detail::part_fault(status::bad_extent, "scores", part::extents, 1, columns, tokens, "at least");
  }
  report check_lists(const eviction_args& args, const index_lists& lists) const {
    return skim::detail::check_room(lists, list_rows(args), list_capacity(args));
  }
};

template <class Evictor>
eviction(Evictor) -> eviction<Evictor>;

}}}  // namespace skim::v0_2::cuda
