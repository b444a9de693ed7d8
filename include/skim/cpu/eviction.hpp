// SPDX-License-Identifier: Apache-2.0
/// \file The eviction operation on the CPU: `cpu::eviction<Evictor>`.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/evictor.hpp>
#include <skim/cpu/kernel/compact.hpp>
#include <skim/cpu/kernel/keep.hpp>
#include <skim/eviction.hpp>
#include <skim/index_lists.hpp>
#include <skim/retention.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <utility>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// `skim::check`, inlined once into a function of this feature set.
SKIM_NOINLINE inline report check_eviction(const eviction_args& args, const retention& keep, bool reads_attention) {
  return skim::check(args, keep, reads_attention);
}

}  // namespace detail

/// Which tokens of a cache stay, by `Evictor`. A plain value; make one per layer. State is per layer and sequence: `reset`
/// it with an empty cache, then call `run` (or `observe`) after every chunk that was appended and attended.
///
/// The steps are public, together they are `run`: `observe` takes in the chunk, `score` gives every token a score, `keep`
/// chooses, `compact` closes the gaps. In decoding, one may `observe` every token and `run` every r-th: the cache then
/// needs room for budget + r.
///
/// After `compact` or `run`, head h holds `lists.counts[h]` tokens in the slots from 0 on: the host sets `kv.tokens` to the
/// largest, and `kv.lengths` to the counts where they differ. A cache of `budget + chunk` tokens never overflows.
///
/// Nothing here allocates, throws or starts a thread. With equal arguments every executor and every number of workers
/// gives the same bits. A page that several sequences share must not be compacted: the host copies it first.
template <class Evictor>
struct eviction {
  Evictor evictor{};

  using kernel = evictor_kernel<Evictor>;

  /// O(1), reads no pointer.
  report check(const eviction_args& args) const {
    if (report r = detail::check_eviction(args, kernel::keep(evictor), kernel::reads_attention); !r) return r;
    return kernel::check(evictor, args);
  }

  /// Bytes that the evictor keeps between calls, per layer; a function of the heads, dimensions and capacity of the cache.
  std::size_t state_bytes(const eviction_args& args) const { return kernel::state_bytes(evictor, args); }

  /// Scratch of `run` and of each step with at most `workers` workers; 64-byte aligned, any contents.
  std::size_t workspace_bytes(const eviction_args& args, unsigned workers) const {
    const std::size_t steps = kernel::workspace_bytes(evictor, args, workers), keep = detail::keep_bytes(args, workers);
    return scores_in(args, nullptr).second + (steps > keep ? steps : keep);
  }

  /// The row length that lists need.
  std::int64_t list_capacity(const eviction_args& args) const {
    return skim::list_capacity(kernel::keep(evictor), args);
  }

  /// Of observing, scoring and choosing, and of moving what `refill` moves where a full cache evicts one chunk.
  cost_estimate cost(const eviction_args& args) const {
    const kv_view& kv = args.attended.kv;
    const double over = static_cast<double>(kv.tokens - list_capacity(args)) * static_cast<double>(kv.heads);
    const double row = static_cast<double>((kv.k.dim + kv.v.dim) * element_bytes(kv.k.type));
    return kernel::cost(evictor, args) + cost_estimate{0, 2 * over * row};
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
    kernel::observe(evictor, args, state, workspace, executor);
    return {};
  }

  /// scores [Hk, n]: of every token, by slot; the highest stay. Entries beyond a head's length are not written.
  report score(const eviction_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
               executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (report r = check_scores(args, scores, args.attended.kv.heads); !r) return r;
    kernel::score(evictor, args, scores, state, workspace, executor);
    return {};
  }

  /// Writes the slots that stay: the tokens that the policy protects and the highest scores, as many as the budget.
  /// scores [Hk, n], or [1, n] with `share_heads`, where they have been pooled over heads and, perhaps, layers.
  /// Entries of `lists` need `list_capacity(args)`. NaN ranks below -inf, -0 = +0.
  report keep(const eviction_args& args, tensor_view<const float, 2> scores, const index_lists& lists, memory workspace,
              executor_ref executor) const {
    if (report r = check_call(args, {}, workspace, executor.concurrency(), false); !r) return r;
    const bool pooled = args.share_heads && scores.extents[0] == 1;
    if (report r = check_scores(args, scores, pooled ? 1 : args.attended.kv.heads); !r) return r;
    if (report r = check_lists(args, lists); !r) return r;
    detail::keep_highest(args, rule(), scores, lists, workspace, executor);
    return {};
  }

  /// Lets everything follow `lists`: the state, then keys, values, positions and inverse norms (or pages). Lists as `keep`
  /// writes them are its precondition: ascending, without repeats, of slots that exist.
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
    if (report r = check_lists(args, lists); !r) return r;
    const auto [scores, used] = scores_in(args, workspace.data);
    const memory rest{static_cast<char*>(workspace.data) + used, workspace.bytes - used};
    kernel::observe(evictor, args, state, rest, executor);
    report answer;
    answer.taken = detail::fits(args, kernel::keep(evictor)) ? path::dense : path::sparse;
    if (answer.taken == path::dense) {
      detail::keep_everything(args, lists, executor);
      return answer;
    }
    kernel::score(evictor, args, scores, state, rest, executor);
    detail::keep_highest(args, rule(), scores, lists, rest, executor);
    kernel::compact(evictor, args, lists, state, rest, executor);
    detail::compact_cache(args, lists, executor);
    return answer;
  }

 private:
  detail::keep_rule rule() const { return {kernel::keep(evictor), kernel::prefers_later}; }

  /// The scores of a `run`, at the front of its workspace, and the bytes they take.
  static std::pair<tensor_view<float, 2>, std::size_t> scores_in(const eviction_args& args, void* workspace) {
    const kv_view& kv = args.attended.kv;
    detail::arena arena(workspace);
    float* const scores = arena.take<float>(kv.heads * kv.tokens);
    return {tensor_view<float, 2>(scores, {kv.heads, kv.tokens}), arena.used()};
  }

  /// `workers` 0: the call needs no workspace.
  report check_call(const eviction_args& args, memory state, memory workspace, unsigned workers,
                    bool needs_state = true) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_workspace(workspace, workers == 0 ? 0 : workspace_bytes(args, workers)); !r) return r;
    return detail::check_state(state, needs_state ? state_bytes(args) : 0);
  }

  static report check_scores(const eviction_args& args, tensor_view<const float, 2> scores, std::int64_t rows) {
    const kv_view& kv = args.attended.kv;
    if (report r = detail::check_tensor(scores,
                                        {"scores.extents[0]", "scores.extents[1]", "scores.strides[1]", "scores.data"});
        !r) {
      return r;
    }
    if (scores.extents[0] != rows)
      return fault(status::bad_extent, "scores.extents[0]", scores.extents[0], rows);
    if (scores.extents[1] < kv.tokens) {
      return fault(status::bad_extent, "scores.extents[1]", scores.extents[1], kv.tokens, "at least");
    }
    return {};
  }

  report check_lists(const eviction_args& args, const index_lists& lists) const {
    return detail::check_room(lists, list_rows(args), list_capacity(args));
  }
};

template <class Evictor>
eviction(Evictor) -> eviction<Evictor>;

/// pooled [1, n] = mean over all rows of scores [rows, n]: of a layer's heads, or of all heads of several layers whose
/// scores stand one after another. For `eviction::keep` with `share_heads`.
report pool_scores(tensor_view<const float, 2> scores, tensor_view<float, 2> pooled, executor_ref executor) {
  if (report r =
          detail::check_tensor(scores, {"scores.extents[0]", "scores.extents[1]", "scores.strides[1]", "scores.data"});
      !r) {
    return r;
  }
  if (report r =
          detail::check_tensor(pooled, {"pooled.extents[0]", "pooled.extents[1]", "pooled.strides[1]", "pooled.data"});
      !r) {
    return r;
  }
  if (pooled.extents[0] != 1) return fault(status::bad_extent, "pooled.extents[0]", pooled.extents[0], 1);
  if (pooled.extents[1] != scores.extents[1]) {
    return fault(status::bad_extent, "pooled.extents[1]", pooled.extents[1], scores.extents[1]);
  }
  if (scores.extents[0] == 0) return fault(status::bad_extent, "scores.extents[0]", 0, 1, "at least");
  detail::pool_rows(scores, pooled, executor);
  return {};
}

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
