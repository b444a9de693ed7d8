// SPDX-License-Identifier: Apache-2.0
// Attention from device pointers: 512 rows behind 32768 tokens in bf16, by all keys and by 1024 for every 128 rows (QUOKA).
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>
#include <skim/math/random.hpp>

#include <algorithm>
#include <vector>

namespace {

constexpr std::int64_t Tk = 32768, Tq = 512, Hq = 32, Hk = 8, D = 128;

void demand(bool fine, const char* what, const char* why) {
  if (fine) return;
  std::fprintf(stderr, "%s: %s\n", what, why);
  std::exit(1);
}
void demand(cudaError_t error, const char* what) {
  demand(error == cudaSuccess, what, cudaGetErrorString(error));
}

void* device_memory(std::size_t bytes) {  // for as long as the program runs
  void* memory = nullptr;
  demand(cudaMalloc(&memory, bytes), "cudaMalloc");
  return memory;
}

/// Noise and, in the first `on_topic` of every 1024 rows, a direction that queries and few keys share: something to choose.
__global__ void fill(skim::bf16* numbers, std::int64_t rows, std::int64_t heads, int on_topic, std::uint64_t seed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const float topic = i / (heads * D) % 1024 >= on_topic ? 0.0f : skim::draw(0, i % D) >> 63 ? 1.0f : -1.0f;
  numbers[i] = skim::from_float<skim::bf16>(topic + 2 * skim::draw_uniform(seed, i) - 1);
}

skim::tensor_view<skim::bf16, 3> filled(std::int64_t rows, std::int64_t heads, int on_topic, std::uint64_t seed) {
  const std::size_t count = rows * heads * D;
  skim::bf16* const numbers = static_cast<skim::bf16*>(device_memory(count * sizeof(skim::bf16)));
  fill<<<count / 256, 256>>>(numbers, rows, heads, on_topic, seed);
  demand(cudaDeviceSynchronize(), "filling tensors");
  return {numbers, {rows, heads, D}};
}

/// What calls of `op` write. Prints which way the last one went and the median of their times.
template <class Op>
std::vector<skim::bf16> run(const char* name, const Op& op, const skim::attention_args& args, cudaStream_t stream) {
  const std::size_t bytes = op.workspace_bytes(args);
  const skim::memory workspace{device_memory(bytes), bytes};  // scratch; an engine has one for all layers
  skim::cuda::launch_report done;
  cudaEvent_t begin, end;
  for (cudaEvent_t* const event : {&begin, &end}) demand(cudaEventCreate(event), "cudaEventCreate");
  float times[21];
  for (float& ms : times) {
    demand(cudaEventRecord(begin, stream), "cudaEventRecord");
    done = op.run(args, workspace, stream);  // only enqueues
    char text[160];
    demand(done.ok(), name, done.error ? cudaGetErrorString(done.error) : describe(done, text, sizeof text));
    demand(cudaEventRecord(end, stream), "cudaEventRecord");
    demand(cudaEventSynchronize(end), name);  // also what kernels say that fail
    demand(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
  }
  std::nth_element(times, times + 10, times + 21);
  std::printf("%s: %s, %.0f us\n", name, done.taken == skim::path::sparse ? "sparse" : "dense", times[10] * 1e3);
  std::vector<skim::bf16> out(Tq * Hq * D);
  demand(cudaMemcpy(out.data(), args.out.data, out.size() * sizeof out[0], cudaMemcpyDeviceToHost), "cudaMemcpy");
  return out;
}

}  // namespace

int main() {
  int gpus = 0;
  cudaStream_t stream = nullptr;
  demand(cudaGetDeviceCount(&gpus), "There is no GPU that CUDA can use");
  demand(cudaStreamCreate(&stream), "cudaStreamCreate");
  skim::attention_args args;  // views over device memory; the last Tq tokens of the cache are the chunk's own
  args.q = filled(Tq, Hq, 1024, 1);
  args.kv = skim::contiguous_kv(filled(Tk + Tq, Hk, 8, 2), filled(Tk + Tq, Hk, 0, 3), Tk + Tq);
  args.out = filled(Tq, Hq, 0, 4);
  const skim::quoka chooses{skim::queries::needed(64), skim::retention::preset(1024).for_every(128)};
  const auto dense = run("all keys", skim::cuda::attention<>{}, args, stream);
  const auto sparse = run("QUOKA's keys", skim::cuda::attention{chooses}, args, stream);
  double error = 0, power = 0;
  for (std::size_t i = 0; i < dense.size(); ++i) {
    error += std::pow(skim::to_float(sparse[i]) - skim::to_float(dense[i]), 2);
    power += std::pow(skim::to_float(dense[i]), 2);
  }
  std::printf("they differ by %.1e of the square\n", error / power);
  return error > 0 && error < 1e-2 * power ? 0 : 1;
}
