// SPDX-License-Identifier: Apache-2.0
/// \file A project outside: dense attention of one query over four keys, through nothing but public headers.
#include <skim/skim.hpp>

#include <cstdio>

float sparse_attention(const skim::attention_args& args);

int main() {
  float q[8] = {1}, keys[5 * 8] = {}, values[5 * 8], out[8];
  for (float& value : values) value = 2;
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q, {1, 1, 8});
  args.out = skim::tensor_view<float, 3>(out, {1, 1, 8});
  args.kv = skim::contiguous_kv(skim::tensor_view<float, 3>(keys, {5, 1, 8}),
                                skim::tensor_view<float, 3>(values, {5, 1, 8}), 5);
  const skim::cpu::attention<> op;
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  const skim::report report = op.run(args, {}, workspace, skim::serial_executor{});
  const float sparse = sparse_attention(args);
  std::printf("skim %d.%d: dense %g, sparse %g\n", skim::version.major_version, skim::version.minor_version,
              static_cast<double>(out[0]), static_cast<double>(sparse));
  return report && out[0] == 2 && sparse == 2 ? 0 : 1;
}
