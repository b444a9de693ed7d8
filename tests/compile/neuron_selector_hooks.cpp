// SPDX-License-Identifier: Apache-2.0
/// \file A neuron selector that lacks hook number CASE (1 to 3), or none.
#include <skim/cpu/ffn.hpp>

struct selector {
#if CASE != 1
  skim::neuron_retention keep;
#endif
#if CASE != 2
  skim::report check(const skim::ffn_args&) const {
    return {};
  }
#endif
#if CASE != 3
  void score(const skim::ffn_args&, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    executor.parallel_for(scores.extents[1], [&](std::int64_t j, unsigned) { *scores.at(0, j) = 0; });
  }
#endif
};

skim::report compute(const skim::ffn_args& args, skim::memory workspace) {
  const skim::cpu::ffn<selector> op{};
  if (skim::report report = op.check(args); !report) return report;
  if (workspace.bytes < op.workspace_bytes(args, 1)) return {};
  return op.run(args, {}, workspace, skim::serial_executor{});
}
