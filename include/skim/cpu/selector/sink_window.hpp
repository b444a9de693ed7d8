// SPDX-License-Identifier: Apache-2.0
/// \file `sink_window` on the CPU, as a selector: the top-k of equal scores whose ends are kept.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/selector.hpp>
#include <skim/index_lists.hpp>
#include <skim/retention.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct selector_kernel<sink_window> {
  static report check(const sink_window& policy, const attention_args&) {
    report r = skim::check(policy.keep);
    if (r && policy.keep.recent != 0) {
      return fault(status::bad_value, "keep.recent (sink_window derives it)", policy.keep.recent, 0);
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

  static void select(const sink_window& policy, const attention_args& args, const index_lists& lists, memory,
                     memory workspace, executor_ref executor) {
    const std::size_t scratch = scratch_bytes(args);
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned worker) {
      const std::int64_t heads = first_view(args).heads, head = row % heads;
      const attention_sequence sequence = sequence_at(args, row / heads);
      retention keep = policy.keep;
      keep.recent = keep.keys(sequence.kv->length(head) - sequence.Tq) - keep.sinks;
      detail::arena arena(detail::worker_piece(workspace.data, scratch, worker));
      const detail::rank_scratch place(arena, detail::longest_past(args));
      lists.counts[row] =
          static_cast<std::int32_t>(detail::top_k(args, sequence, head, keep, nullptr, place, lists.row(row)));
    });
  }

 private:
  static std::size_t scratch_bytes(const attention_args& args) {
    detail::arena arena;
    detail::rank_scratch(arena, detail::longest_past(args));
    return arena.used();
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
