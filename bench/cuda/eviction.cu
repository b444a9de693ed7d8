// SPDX-License-Identifier: Apache-2.0
// Evictors on a GPU behind functions that Python can call. Caches [tokens, Hk, D] in bf16, contiguous, over their budget by one
// chunk.
#include <skim/cuda/eviction.cuh>
#include <skim/cuda/evictor/caote.cuh>
#include <skim/cuda/evictor/h2o.cuh>
#include <skim/cuda/evictor/keydiff.cuh>
#include <skim/cuda/evictor/random_tokens.cuh>
#include <skim/cuda/evictor/snapkv.cuh>
#include <skim/cuda/evictor/tova.cuh>
#include <skim/math/random.hpp>
#include <skim/selector/sink_window.hpp>

namespace {

/// Reads memory once, as fast as it goes: what a score pass is measured by.
__global__ void read_all(const uint4* from, std::int64_t count, std::uint32_t* to) {
  std::uint32_t all = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    all ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += step) all ^= from[i].x;
  if (all == 0x5eed5eed) *to = all;  // else the loads would go
}

/// The chunk's positions and keys, which are new each time, as a host's are: equal keys would score alike. A block for each.
__global__ void append_keys(skim::bf16* k, std::int32_t* positions, std::int64_t tokens, int D, std::int32_t* next) {
  const int head = blockIdx.x, i = blockIdx.y, heads = gridDim.x, fresh = gridDim.y;
  const std::int64_t slot = tokens - fresh + i;
  const std::int32_t position = next[head * fresh + i];
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    const std::uint64_t drawn =
        skim::draw(static_cast<std::uint64_t>(position * heads + head), static_cast<std::uint64_t>(d));
    const int sum =
        static_cast<int>((drawn & 0xffff) + (drawn >> 16 & 0xffff) + (drawn >> 32 & 0xffff) + (drawn >> 48));
    const float value = static_cast<float>(sum - 2 * 0xffff) * (1.0f / 37837);  // of variance 1
    skim::store_element(k, skim::element::bf16, (slot * heads + head) * D + d, value);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  positions[head * tokens + slot] = position;
  next[head * fresh + i] = position + fresh;
}

int error_of(const skim::cuda::launch_report& report) {
  return report.error != cudaSuccess ? static_cast<int>(report.error) : report.ok() ? 0 : -1;
}

skim::retention keep_of(std::int64_t budget, std::int64_t ends) {
  return skim::retention::budget(budget, ends > 0 ? 4 : 0, ends);
}
template <class Policy>
Policy policy_of(Policy*, std::int64_t budget, std::int64_t ends) {
  return {keep_of(budget, ends)};
}
skim::fast_caote<skim::keydiff<>> policy_of(skim::fast_caote<skim::keydiff<>>*, std::int64_t budget,
                                            std::int64_t ends) {
  return {skim::keydiff<>{keep_of(budget, ends)}, 5};
}

skim::sink_window policy_of(skim::sink_window*, std::int64_t budget, std::int64_t) {
  return {skim::retention::budget(budget, 4)};
}

/// What the chunk's attention has left: q [fresh, Hq, D] and log-sum-exps [fresh, Hq]. Nothing for policies that look at keys.
struct attended {
  void* q;
  float* lse;
  std::int64_t Hq;
};

/// `memory` [4]: state, workspace, lists, scores. `step`: 0 to 3 are the operation's, 4 the whole, 5 says the bytes of state
/// and workspace in `bytes [2]`.
template <class Policy>
int run(void* k, void* v, const attended& chunk, std::int32_t* positions, float* norms, std::int64_t tokens,
        std::int64_t fresh, std::int64_t Hk, std::int64_t D, std::int64_t ends, std::int64_t stable, void** memory,
        std::int64_t* bytes, int step, cudaStream_t stream) {
  using skim::bf16;
  const std::int64_t budget = tokens - fresh;
  const skim::cuda::eviction<Policy> op{policy_of(static_cast<Policy*>(nullptr), budget, ends)};
  skim::eviction_args args;
  args.kv = skim::contiguous_cache(skim::tensor_view<bf16, 3>(static_cast<bf16*>(k), {tokens, Hk, D}),
                                   skim::tensor_view<bf16, 3>(static_cast<bf16*>(v), {tokens, Hk, D}), tokens);
  args.kv.positions = positions;
  args.kv.positions_stride = tokens;
  args.kv.inverse_norms = norms;
  args.kv.inverse_norms_stride = norms ? tokens : 0;
  args.new_tokens = fresh;
  args.how = stable ? skim::compaction::stable : skim::compaction::refill;
  args.attended.q = skim::tensor_view<bf16, 3>(static_cast<bf16*>(chunk.q), {fresh, chunk.Hq, D});
  args.attended.lse = skim::tensor_view<float, 2>(chunk.lse, {fresh, chunk.Hq});
  if (step == 5) {
    bytes[0] = static_cast<std::int64_t>(op.state_bytes(args));
    bytes[1] = static_cast<std::int64_t>(op.workspace_bytes(args));
    return bytes[1] == 0;
  }
  const skim::memory state{memory[0], op.state_bytes(args)}, workspace{memory[1], op.workspace_bytes(args)};
  skim::index_lists lists;
  lists.rows = Hk;
  lists.capacity = budget;
  lists.counts = static_cast<std::int32_t*>(memory[2]);
  lists.indices = lists.counts + Hk;
  const skim::tensor_view<float, 2> scores(static_cast<float*>(memory[3]), {Hk, tokens});
  switch (step) {
    case 0:
      return error_of(op.observe(args, state, workspace, stream));
    case 1:
      return error_of(op.score(args, scores, state, workspace, stream));
    case 2:
      return error_of(op.choose(args, scores, lists, workspace, stream));
    case 3:
      return error_of(op.compact(args, lists, state, workspace, stream));
    default:
      return error_of(op.run(args, lists, state, workspace, stream));
  }
}

}  // namespace

extern "C" {

int skim_evict(int rule, void* k, void* v, void* q, float* lse, std::int64_t Hq, std::int32_t* positions, float* norms,
               std::int64_t tokens, std::int64_t fresh, std::int64_t Hk, std::int64_t D, std::int64_t ends,
               std::int64_t stable, void** memory, std::int64_t* bytes, int step, cudaStream_t stream) {
  constexpr decltype(&run<skim::keydiff<>>) rules[] = {
      &run<skim::keydiff<>>,    &run<skim::fast_caote<skim::keydiff<>>>,
      &run<skim::tova>,         &run<skim::snapkv>,
      &run<skim::h2o>,          &run<skim::sink_window>,
      &run<skim::random_tokens>};
  return rules[rule](k, v, {q, lse, Hq}, positions, norms, tokens, fresh, Hk, D, ends, stable, memory, bytes, step,
                     stream);
}

int skim_append(void* k, std::int32_t* positions, std::int64_t tokens, std::int64_t fresh, std::int64_t Hk,
                std::int64_t D, std::int32_t* next, cudaStream_t stream) {
  append_keys<<<dim3(static_cast<unsigned>(Hk), static_cast<unsigned>(fresh)), 128, 0, stream>>>(
      static_cast<skim::bf16*>(k), positions, tokens, static_cast<int>(D), next);
  return static_cast<int>(cudaPeekAtLastError());
}

int skim_read(const void* from, std::int64_t bytes, std::uint32_t* to, cudaStream_t stream) {
  read_all<<<132 * 4, 512, 0, stream>>>(static_cast<const uint4*>(from), bytes / 16, to);
  return static_cast<int>(cudaPeekAtLastError());
}

}  // extern "C"
