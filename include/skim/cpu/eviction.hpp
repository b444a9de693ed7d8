// SPDX-License-Identifier: Apache-2.0
/// \file The eviction operation on the CPU: `cpu::eviction<Evictor>`.
#pragma once

#include <skim/cpu/kernel/choose.hpp>
#include <skim/cpu/kernel/compact.hpp>
#include <skim/cpu/kernel/rank.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/eviction.hpp>

#include <utility>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Which tokens of a cache stay, by `Evictor`. A plain value; make one per layer. State is per layer and sequence: `reset`
/// it with an empty cache, then call `run` (or `observe`) after every chunk that was appended and attended.
///
/// The steps are public, together they are `run`: `observe` takes in the chunk, `score` gives every token a score, `choose`
/// lists the tokens that stay, `compact` closes the gaps. In decoding, one may `observe` every token and `run` every r-th:
/// the cache then needs room for budget + r.
///
/// After `compact` or `run`, head h holds `lists.counts[h]` tokens in the slots from 0 on: the host sets `kv.tokens` to the
/// largest, and `kv.lengths` to the counts where they differ. A cache of `budget + chunk` tokens never overflows.
///
/// Nothing here allocates, throws or starts a thread. With equal arguments every executor and every number of workers
/// gives the same bits. A page that several sequences share must not be compacted: the host copies it first.
template <class Evictor>
struct eviction {
  static_assert(skim::detail::is_evictor<Evictor, score_kernel<Evictor>, executor_ref>(), "see the error above");

  Evictor evictor{};

  /// What the host must compute and keep for this evictor.
  policy_needs needs() const { return needs_of(evictor); }

  /// O(1), follows no pointer.
  report check(const eviction_args& args) const { return check_given(args, pointers::required); }

  /// The same before there is memory: pointers may be null.
  report check_shape(const eviction_args& args) const { return check_given(args, pointers::ignored); }

  /// Bytes that the evictor keeps between calls, per layer; a function of the heads, dimensions and capacity of the cache.
  /// Needs shapes only; 0 for arguments that `check_shape` refuses.
  std::size_t state_bytes(const eviction_args& args) const {
    return check_shape(args) ? kernel::state_bytes(evictor, args) : 0;
  }

  /// Scratch of `run` and of each step with at most `workers` workers; 64-byte aligned, any contents. Needs shapes only; 0
  /// for arguments that `check_shape` refuses. Fewer tokens, new tokens or workers never need more.
  std::size_t workspace_bytes(const eviction_args& args, unsigned workers) const {
    return check_shape(args) ? scratch_bytes(args, workers) : 0;
  }

  /// The row length that lists need.
  std::int64_t list_capacity(const eviction_args& args) const { return skim::list_capacity(kept(args), args); }

  /// Of observing, scoring and choosing, and of moving what `refill` moves where a full cache evicts one chunk.
  cost_estimate cost(const eviction_args& args) const {
    const kv_cache& kv = args.kv;
    const double over = static_cast<double>(kv.tokens - list_capacity(args)) * static_cast<double>(kv.heads);
    const std::int64_t values = kv.values_in_keys ? 0 : bytes_of(kv.v.type, kv.v.dim);
    const double row = static_cast<double>(bytes_of(kv.k.type, kv.k.dim) + values);
    return cost_of(evictor, args) + cost_estimate{0, 2 * over * row};
  }

  /// Makes the state that of an empty cache. Statuses: those of `check`, short_state.
  report reset(const eviction_args& args, memory state, executor_ref executor) const {
    if (report r = check_call(args, state, {}, 0); !r) return r;
    kernel::reset(evictor, args, state, executor);
    return {};
  }

  /// Takes in the chunk: all that the evictor wants to know of its attention, so that q and the log-sum-exp may go.
  report observe(const eviction_args& args, memory state, memory workspace, executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (report r = check_watched(args); !r) return r;
    kernel::observe(evictor, args, state, workspace, executor);
    return {};
  }

  /// scores [Hk, n]: of every token, by slot; the highest stay. Entries beyond a head's length are not written.
  report score(const eviction_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
               executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (report r = check_scores(args, scores, args.kv.heads); !r) return r;
    if (report r = detail::check_apart(scores, "scores"); !r) return r;
    score_tokens(args, scores, state, workspace, executor);
    return {};
  }

  /// Writes the slots that stay: the tokens that the policy protects and the highest scores, as many as the budget.
  /// scores [Hk, n], or [1, n] with `share_heads`, where they have been pooled over heads and, perhaps, layers.
  /// Entries of `lists` need `list_capacity(args)`. NaN ranks below -inf, -0 = +0.
  report choose(const eviction_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                memory workspace, executor_ref executor) const {
    if (report r = check_call(args, {}, workspace, executor.concurrency(), false); !r) return r;
    const bool pooled = args.share_heads && scores.extents[0] == 1;
    if (report r = check_scores(args, scores, pooled ? 1 : args.kv.heads); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    detail::choose_highest(args, rule(args), scores, lists, workspace, executor);
    return {};
  }

  /// Lets everything follow `lists`: the state, then keys, values, their scales, positions and inverse norms (or pages).
  /// Lists as `choose` writes them are its precondition: ascending, without repeats, of slots that exist.
  report compact(const eviction_args& args, const index_lists& lists, memory state, memory workspace,
                 executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    kernel::compact(evictor, args, lists, state, workspace, executor);
    detail::compact_cache(args, lists, executor);
    return {};
  }

  /// Observes the chunk and, where a head holds more than its budget, evicts. `lists` then tells which slots stayed; its
  /// counts are the new lengths. The report's path is `dense` where nothing had to leave.
  /// Statuses: those of `check`, short_workspace, short_state.
  report run(const eviction_args& args, const index_lists& lists, memory state, memory workspace,
             executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (report r = check_watched(args); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    const auto [scores, used] = scores_in(args, workspace.data);
    const memory rest{static_cast<char*>(workspace.data) + used, workspace.bytes - used};
    kernel::observe(evictor, args, state, rest, executor);
    report answer;
    answer.taken = detail::fits(args, kept(args)) ? path::dense : path::sparse;
    if (answer.taken == path::dense) {
      detail::choose_everything(args, lists, executor);
      return answer;
    }
    score_tokens(args, scores, state, rest, executor);
    detail::choose_highest(args, rule(args), scores, lists, rest, executor);
    kernel::compact(evictor, args, lists, state, rest, executor);
    detail::compact_cache(args, lists, executor);
    return answer;
  }

 private:
  using kernel = score_kernel<Evictor>;

  retention kept(const eviction_args& args) const { return kept_by(evictor, args); }
  detail::choice_rule rule(const eviction_args& args) const {
    return {kept(args), prefers_later<Evictor> || scores_alike<Evictor>};
  }

  void score_tokens(const eviction_args& args, const tensor_view<float, 2>& scores, memory state, memory workspace,
                    executor_ref executor) const {
    if constexpr (scores_alike<Evictor>) {
      detail::score_alike(args, scores, executor);
    } else {
      kernel::score(evictor, args, scores, state, workspace, executor);
      if (smooth_of(evictor) > 1) detail::smooth_tokens(args, smooth_of(evictor), scores, workspace.data, executor);
    }
  }

  report check_given(const eviction_args& args, pointers given) const {
    if (report r = skim::check(args, kept(args), needs(), given); !r) return r;
    if (report r = detail::check_width_of_mean("smooth", smooth_of(evictor)); !r) return r;
    return evictor.check(args);
  }

  /// The scores of a `run`, at the front of its workspace, and the bytes they take.
  static std::pair<tensor_view<float, 2>, std::size_t> scores_in(const eviction_args& args, void* workspace) {
    detail::arena arena(workspace);
    float* const scores = arena.take<float>(args.kv.heads * args.kv.tokens);
    return {tensor_view<float, 2>(scores, {args.kv.heads, args.kv.tokens}), arena.used()};
  }

  std::size_t scratch_bytes(const eviction_args& args, unsigned workers) const {
    const std::size_t steps = kernel::workspace_bytes(evictor, args, workers);
    const std::size_t choice = detail::choice_bytes(args, workers);
    const std::size_t smoothing = smooth_of(evictor) > 1 ? detail::smooth_bytes(args, workers) : 0;
    const std::size_t most = steps > choice ? steps : choice;
    return scores_in(args, nullptr).second + (most > smoothing ? most : smoothing);
  }

  /// The lists that attention read, where they will be looked at.
  report check_watched(const eviction_args& args) const {
    return needs().lse ? detail::check_read(attended_call(args), args.read) : report{};
  }

  /// `workers` 0: the call needs no workspace.
  report check_call(const eviction_args& args, memory state, memory workspace, unsigned workers,
                    bool needs_state = true) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_workspace(workspace, workers == 0 ? 0 : scratch_bytes(args, workers)); !r) return r;
    return detail::check_state(state, needs_state ? kernel::state_bytes(evictor, args) : 0);
  }

  static report check_scores(const eviction_args& args, tensor_view<const float, 2> scores, std::int64_t rows) {
    if (report r = detail::check_tensor(scores, "scores"); !r) return r;
    if (report r = detail::check_extent(scores, 0, rows, "scores"); !r) return r;
    const std::int64_t columns = scores.extents[1], tokens = args.kv.tokens;
    if (columns >= tokens) return {};
    return detail::part_fault(status::bad_extent, "scores", part::extents, 1, columns, tokens, "at least");
  }

  report check_lists(const eviction_args& args, const index_lists& lists) const {
    return detail::check_room(lists, list_rows(args), list_capacity(args));
  }
};

template <class Evictor>
eviction(Evictor) -> eviction<Evictor>;

/// Scratch of `rank_scores` for rows of n scores.
inline std::size_t rank_scores_bytes(std::int64_t n, unsigned workers) {
  if (n < 0 || n > skim::detail::largest_index) return 0;
  return detail::order_bytes(n) * workers;
}

/// In place: each score of scores [rows, n] becomes (rank / n)^16, its rank being how many of its row are not above it; NaN
/// ranks lowest. What is to be pooled where heads of many layers hold the same tokens: they agree
/// about few, and a mean of scores keeps what none of them needs most; this mean counts the heads that rank a token about
/// in their highest sixteenth. Ours. Statuses: those of tensors, short_workspace.
inline report rank_scores(tensor_view<float, 2> scores, memory workspace, executor_ref executor) {
  if (report r = detail::check_tensor(scores, "scores"); !r) return r;
  if (report r = detail::check_apart(scores, "scores"); !r) return r;
  const std::int64_t n = scores.extents[1];
  const std::size_t bytes = detail::order_bytes(n);
  if (report r = detail::check_workspace(workspace, bytes * executor.concurrency()); !r) return r;
  executor.parallel_for(scores.extents[0], [&](std::int64_t row, unsigned worker) {
    detail::sharpen_row(scores, row, detail::worker_piece(workspace.data, bytes, worker));
  });
  return {};
}

/// pooled [1, n] = mean over all rows of scores [rows, n]: of a layer's heads, or of all heads of several layers whose
/// scores stand one after another. For `eviction::choose` with `share_heads`.
inline report pool_scores(tensor_view<const float, 2> scores, tensor_view<float, 2> pooled, executor_ref executor) {
  if (report r = detail::check_tensor(scores, "scores"); !r) return r;
  if (report r = detail::check_tensor(pooled, "pooled"); !r) return r;
  if (report r = detail::check_extent(pooled, 0, 1, "pooled"); !r) return r;
  if (report r = detail::check_extent(pooled, 1, scores.extents[1], "pooled"); !r) return r;
  if (report r = detail::check_apart(pooled, "pooled"); !r) return r;
  if (scores.extents[0] == 0) {
    return detail::part_fault(status::bad_extent, "scores", part::extents, 0, 0, 1, "at least");
  }
  detail::pool_rows(scores, pooled, executor);
  return {};
}

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
