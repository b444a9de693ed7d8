// SPDX-License-Identifier: Apache-2.0
/// \file A second unit that includes the library, so that a definition that is not inline fails to link.
#include <skim/skim.hpp>

float sparse_attention(const skim::attention_args& args) {
  const skim::cpu::attention op{skim::quoka::paper(skim::queries::farthest_point(16), skim::retention::budget(2))};
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  const skim::report report = op.run(args, {}, workspace, skim::serial_executor{});
  return report ? *static_cast<const float*>(args.out.data) : 0;
}
