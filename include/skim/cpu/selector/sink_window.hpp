// SPDX-License-Identifier: Apache-2.0
/// \file `sink_window` on the CPU, as selector and as evictor: the top-k of equal scores whose ends are kept.
#pragma once

#include <skim/cpu/evictor.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/selector.hpp>
#include <skim/selector/sink_window.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// The longest past of the call's sequences.
inline std::int64_t longest_past(const attention_args& args) {
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    if (sequence_at(args, s).Tk() > longest) longest = sequence_at(args, s).Tk();
  }
  return longest;
}

/// A worker's piece of scratch.
SKIM_INLINE char* worker_piece(void* workspace, std::size_t bytes, unsigned worker) {
  return static_cast<char*>(workspace) + bytes * worker;
}

}  // namespace detail

template <>
struct selector_kernel<sink_window> {
  static report check(const sink_window& policy, const attention_args&) {
    report r = skim::check(policy.keep);
    if (r && policy.keep.recent != 0) {
      return detail::fault(status::bad_value, "keep.recent (sink_window derives it)", policy.keep.recent, 0);
    }
    return r;
  }
  static std::int64_t list_capacity(const sink_window& policy, const attention_args& args) {
    return skim::list_capacity(policy.keep, args);
  }
  static std::size_t state_bytes(const sink_window&, const attention_args&) { return 0; }
  static bool runs_dense(const sink_window& policy, const attention_args& args, std::int64_t Tk) {
    return skim::runs_dense(policy.keep, args, Tk);
  }
  static cost_estimate cost(const sink_window&, const attention_args&) { return {}; }
  static std::size_t workspace_bytes(const sink_window&, const attention_args& args, unsigned workers) {
    return scratch_bytes(args) * workers;
  }

  template <class Executor>
  static void select(const sink_window& policy, const attention_args& args, const index_lists& lists, memory,
                     memory workspace, const Executor& executor) {
    const std::size_t scratch = scratch_bytes(args);
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned worker) {
      const std::int64_t heads = first_view(args).heads, head = row % heads;
      const attention_sequence sequence = sequence_at(args, row / heads);
      retention keep = policy.keep;
      keep.recent = keep.keys(sequence.kv->length(head) - sequence.Tq) - keep.sinks;
      skim::detail::arena arena(detail::worker_piece(workspace.data, scratch, worker));
      const detail::top_k_scratch place(arena, detail::longest_past(args));
      lists.counts[row] =
          static_cast<std::int32_t>(detail::top_k(args, sequence, head, keep, nullptr, place, lists.row(row)));
    });
  }

 private:
  static std::size_t scratch_bytes(const attention_args& args) {
    skim::detail::arena arena;
    detail::top_k_scratch(arena, detail::longest_past(args));
    return arena.used();
  }
};

/// As an evictor: all tokens but the sinks score the same, and of equal scores the later positions stay.
template <>
struct evictor_kernel<sink_window> : detail::plain_evictor<sink_window> {
  static constexpr bool prefers_later = true;

  static report check(const sink_window& policy, const eviction_args&) {
    if (policy.keep.recent == 0) return {};
    return detail::fault(status::bad_value, "keep.recent (sink_window derives it)", policy.keep.recent, 0);
  }

  template <class Executor>
  static void score(const sink_window&, const eviction_args& args, tensor_view<float, 2> scores, memory, memory,
                    const Executor& executor) {
    const kv_view& kv = args.attended.kv;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) *scores.at(head, slot) = 0;
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
