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
  template <class Executor>
  void predict(const skim::ffn_args&, skim::tensor_view<float, 1> scores, skim::memory, skim::memory,
               const Executor& executor) const {
    executor.parallel_for(scores.extents[0], [&](std::int64_t j, unsigned) { *scores.at(j) = 0; });
  }
#endif
};

skim::report compute(const skim::ffn_args& args, skim::memory workspace) {
  const skim::cpu::ffn<selector> op{};
  if (skim::report report = op.check(args); !report) return report;
  if (workspace.bytes < op.workspace_bytes(args, 1)) return {};
  return op.run(args, {}, workspace, skim::serial_executor{});
}
