// SPDX-License-Identifier: Apache-2.0
/// \file A selector that scores and lacks member number CASE (1 to 3), one that gives lists and lacks one (4, 5), or both
/// whole if CASE is 0.
#include <skim/cpu/attention.hpp>

struct scores_keys {
#if CASE != 2
  skim::retention keep = skim::retention::budget(8);
#endif
#if CASE != 1
  skim::report check(const skim::attention_args&) const {
    return {};
  }
#endif
#if CASE != 3
  void score(const skim::attention_blocks&, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    executor.parallel_for(scores.extents[0], [&](std::int64_t row, unsigned) { *scores.at(row, 0) = 1; });
  }
#endif
};

struct gives_lists {
#if CASE != 5
  skim::report check(const skim::attention_args&) const {
    return {};
  }
#endif
#if CASE != 4
  std::int64_t list_capacity(const skim::attention_args&) const {
    return 1;
  }
#endif
  void select(const skim::attention_args&, const skim::index_lists& lists, skim::memory, skim::memory,
              skim::executor_ref executor) const {
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) { lists.counts[row] = 0; });
  }
};

template <class Selector>
skim::report attend(const skim::attention_args& args, skim::memory workspace) {
  const skim::cpu::attention<Selector> op{};
  if (skim::report report = op.check(args); !report) return report;
  if (workspace.bytes < op.workspace_bytes(args, 1)) return {};
  return op.run(args, {}, workspace, skim::serial_executor{});
}

skim::report attend_to_both(const skim::attention_args& args, skim::memory workspace) {
  if (skim::report report = attend<scores_keys>(args, workspace); !report) return report;
  return attend<gives_lists>(args, workspace);
}
