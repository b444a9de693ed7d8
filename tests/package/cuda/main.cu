// SPDX-License-Identifier: Apache-2.0
// A program outside that uses skim::cuda: it needs no GPU to ask what a call would need.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>

#include <cstdio>

int main() {
  constexpr std::int64_t Tk = 8192, Tq = 128, Hq = 32, Hk = 8, D = 128;
  const skim::bf16* const none = nullptr;
  skim::attention_args args;
  args.q = skim::tensor_view<const skim::bf16, 3>(none, {Tq, Hq, D});
  args.out = skim::tensor_view<skim::bf16, 3>(nullptr, {Tq, Hq, D});
  args.kv = skim::contiguous_kv(skim::tensor_view<const skim::bf16, 3>(none, {Tk + Tq, Hk, D}),
                                skim::tensor_view<const skim::bf16, 3>(none, {Tk + Tq, Hk, D}), Tk + Tq);
  const skim::cuda::attention op{skim::quoka{}};
  const std::size_t bytes = op.workspace_bytes(args);
  std::printf("%zu bytes\n", bytes);
  return bytes > 0 ? 0 : 1;
}
