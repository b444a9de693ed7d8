// SPDX-License-Identifier: Apache-2.0
/// \file An evictor policy that lacks hook number CASE (1 to 3), or none; CAOTE over a base without scores (4), and over
/// an evictor of one's own without weights (5).
#include <skim/cpu/eviction.hpp>
#include <skim/cpu/evictor/caote.hpp>
#include <skim/cpu/evictor/tova.hpp>
#include <skim/selector/sink_window.hpp>

struct evictor {
#if CASE != 1
  skim::retention keep;
#endif
#if CASE != 2
  skim::report check(const skim::eviction_args&) const {
    return {};
  }
#endif
#if CASE != 3
  void score(const skim::eviction_args& args, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    executor.parallel_for(args.kv.heads, [&](std::int64_t head, unsigned) { *scores.at(head, 0) = 0; });
  }
#endif
#if CASE != 5
  float caote_weight(float score) const {
    return score;
  }
#endif
};

#if CASE == 4
using base = skim::sink_window;
#else
using base = evictor;
#endif

template <class Policy>
skim::report evict(const Policy& policy, const skim::eviction_args& args, const skim::index_lists& lists,
                   skim::memory workspace) {
  const skim::cpu::eviction<Policy> op{policy};
  if (skim::report report = op.check(args); !report) return report;
  if (workspace.bytes < op.workspace_bytes(args, 1)) return {};
  return op.run(args, lists, {}, workspace, skim::serial_executor{});
}

skim::report evict_by_output(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory workspace) {
  return evict(skim::caote<base>{}, args, lists, workspace);
}

skim::report evict_quickly(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory workspace) {
  return evict(skim::fast_caote<base>{}, args, lists, workspace);
}

skim::report evict_last(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory workspace) {
  return evict(skim::sink_window{}, args, lists, workspace);
}

skim::report evict_alone(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory workspace) {
  return evict(evictor{}, args, lists, workspace);
}
