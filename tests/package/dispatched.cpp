// SPDX-License-Identifier: Apache-2.0
// An outside program for any processor: it parses no SIMD code, and its levels are compiled by skim_add_dispatch.
#include <skim/buffer.hpp>
#include <skim/cpu/dispatch.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  if (!skim::cpu::level_name()) return 1;
  std::printf("computed at %s\n", skim::cpu::level_name());
  const std::vector<float> q(32, 1.0f), k(10 * 32, 0.5f), v(10 * 32, 0.25f);
  std::vector<float> out(32);
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {1, 1, 32});
  args.kv = skim::contiguous_kv(skim::tensor_view<const float, 3>(k.data(), {10, 1, 32}),
                                skim::tensor_view<const float, 3>(v.data(), {10, 1, 32}), 10);
  args.out = skim::tensor_view<float, 3>(out.data(), {1, 1, 32});
  const skim::cpu::any_attention op;
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  const skim::report report = op.run(args, {}, workspace, skim::serial_executor{});
  for (const float x : out) {
    if (!report || std::fabs(x - 0.25f) > 1e-6f) return 1;
  }
}
