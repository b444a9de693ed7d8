// SPDX-License-Identifier: Apache-2.0
/// \file A selector policy that lacks hook number CASE, or none if CASE is 0.
#include <skim/cpu/attention.hpp>

struct selector {
#if CASE != 1
  skim::report check(const skim::attention_args&) const {
    return {};
  }
#endif
#if CASE != 2
  std::int64_t list_capacity(const skim::attention_args&) const {
    return 1;
  }
#endif
#if CASE != 3
  std::size_t workspace_bytes(const skim::attention_args&, unsigned) const {
    return 0;
  }
#endif
#if CASE != 4
  template <class Executor>
  void select(const skim::attention_args&, const skim::index_lists& lists, skim::memory, skim::memory,
              const Executor& executor) const {
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) { lists.counts[row] = 0; });
  }
#endif
};

skim::report attend(const skim::attention_args& args, skim::memory workspace) {
  const skim::cpu::attention op{selector{}};
  if (skim::report report = op.check(args); !report) return report;
  if (workspace.bytes < op.workspace_bytes(args, 1)) return {};
  return op.run(args, {}, workspace, skim::serial_executor{});
}
