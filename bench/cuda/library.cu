// SPDX-License-Identifier: Apache-2.0
// skim::cuda behind functions that Python can call, so that peers are timed on the same tensors in the same process.
// Caches [tokens, Hk, D] and queries [Tq, Hq, D] in bf16, all contiguous.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>

namespace {

skim::attention_args arguments(const void* q, const void* k, const void* v, void* out, std::int64_t Tq, std::int64_t Tk,
                               std::int64_t Hq, std::int64_t Hk, std::int64_t D) {
  using skim::bf16;
  skim::attention_args args;
  args.q = skim::tensor_view<const bf16, 3>(static_cast<const bf16*>(q), {Tq, Hq, D});
  args.out = skim::tensor_view<bf16, 3>(static_cast<bf16*>(out), {Tq, Hq, D});
  args.kv =
      skim::contiguous_kv(skim::tensor_view<const bf16, 3>(static_cast<const bf16*>(k), {Tk + Tq, Hk, D}),
                          skim::tensor_view<const bf16, 3>(static_cast<const bf16*>(v), {Tk + Tq, Hk, D}), Tk + Tq);
  return args;
}

skim::cuda::attention<skim::quoka> quoka(std::int64_t n, std::int64_t every, std::int64_t budget) {
  return {skim::quoka{skim::queries::needed(n), skim::retention::preset(budget).for_every(every).dense_under(0)}};
}

skim::index_lists lists_in(std::int32_t* memory, std::int64_t Tq, std::int64_t Hk, std::int64_t every,
                           std::int64_t budget) {
  skim::index_lists lists;
  lists.rows = skim::block_count(Tq, every) * Hk;
  lists.capacity = budget;
  lists.block_rows = every;
  lists.counts = memory;
  lists.indices = memory + lists.rows;
  return lists;
}

int error_of(const skim::cuda::launch_report& report) {
  return report.error != cudaSuccess ? static_cast<int>(report.error) : report.ok() ? 0 : -1;
}

}  // namespace

#define SHAPE std::int64_t Tq, std::int64_t Tk, std::int64_t Hq, std::int64_t Hk, std::int64_t D
#define TENSORS const void *q, const void *k, const void *v, void *out

extern "C" {

std::int64_t skim_workspace(SHAPE, std::int64_t n, std::int64_t every, std::int64_t budget) {
  const skim::attention_args args = arguments(nullptr, nullptr, nullptr, nullptr, Tq, Tk, Hq, Hk, D);
  const std::size_t dense = skim::cuda::attend{}.workspace_bytes(args, every);
  const std::size_t sparse = quoka(n, every, budget).workspace_bytes(args);
  return static_cast<std::int64_t>(dense > sparse ? dense : sparse);
}

int skim_dense(TENSORS, SHAPE, void* workspace, std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(skim::cuda::attend{}.run(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D), scratch, stream));
}

int skim_quoka(TENSORS, SHAPE, std::int64_t n, std::int64_t every, std::int64_t budget, void* workspace,
               std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(quoka(n, every, budget).run(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D), scratch, stream));
}

int skim_select(TENSORS, SHAPE, std::int64_t n, std::int64_t every, std::int64_t budget, std::int32_t* lists,
                void* workspace, std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(
      quoka(n, every, budget)
          .select(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D), lists_in(lists, Tq, Hk, every, budget), scratch, stream));
}

int skim_attend(TENSORS, SHAPE, std::int64_t every, std::int64_t budget, std::int32_t* lists, void* workspace,
                std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(skim::cuda::attend{}.run(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D),
                                           lists_in(lists, Tq, Hk, every, budget), scratch, stream));
}

}  // extern "C"
