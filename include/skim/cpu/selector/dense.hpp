// SPDX-License-Identifier: Apache-2.0
/// \file `dense` on the CPU: every past key is read.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/selector.hpp>
#include <skim/index_lists.hpp>
#include <skim/selector/dense.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

/// `dense`: never asked to select.
template <>
struct selector_kernel<dense> {
  static report check(const dense&, const attention_args&) { return {}; }
  static std::int64_t list_capacity(const dense&, const attention_args& args) { return detail::longest_past(args); }
  static std::size_t workspace_bytes(const dense&, const attention_args&, unsigned) { return 0; }
  static std::size_t state_bytes(const dense&, const attention_args&) { return 0; }
  static bool runs_dense(const dense&, const attention_args&, std::int64_t) { return true; }
  static cost_estimate cost(const dense&, const attention_args&) { return {}; }
  static void select(const dense&, const attention_args& args, const index_lists& lists, memory, memory,
                     executor_ref executor) {
    const std::int64_t heads = first_view(args).heads;
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) {
      const attention_sequence sequence = sequence_at(args, row / heads);
      const std::int64_t past = sequence.kv->length(row % heads) - sequence.Tq;
      for (std::int64_t slot = 0; slot < past; ++slot) lists.row(row)[slot] = static_cast<std::int32_t>(slot);
      lists.counts[row] = static_cast<std::int32_t>(past);
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
