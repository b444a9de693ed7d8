// SPDX-License-Identifier: Apache-2.0
/// \file What CUDA operations answer, and how they launch kernels.
#pragma once

#include <skim/check.hpp>
#include <skim/cuda/kernel/ptx.cuh>
#include <skim/workspace.hpp>

#include <cuda_runtime_api.h>

#include <atomic>

namespace skim { inline namespace v0_2 { namespace cuda {

/// A report and what the launches said. Operations only enqueue: an error of a kernel that runs is the stream's.
struct [[nodiscard]] launch_report : report {
  cudaError_t error = cudaSuccess;

  launch_report() = default;
  launch_report(const report& answer, cudaError_t launched = cudaSuccess)  // NOLINT: implicit, as every report is one
      : report(answer), error(launched) {}

  bool ok() const { return report::ok() && error == cudaSuccess; }
  explicit operator bool() const { return ok(); }
};

namespace detail {

inline constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
inline constexpr std::int64_t greater(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}
inline constexpr std::int64_t pieces(std::int64_t n, std::int64_t of) {
  return (n + of - 1) / of;
}

/// Kernels read and write f32, f16 and bf16; other stored types are refused by name.
inline report check_loadable(element type, const char* name) {
  if (type == element::f32 || type == element::f16 || type == element::bf16) return {};
  return skim::detail::part_fault(status::unsupported, name, part::type, 0, to_string(type),
                                  "f32, f16 or bf16 on a GPU");
}

/// Shared memory that a block may ask for on every GPU from compute capability 8.0 on, with some to spare.
inline constexpr std::size_t most_shared_bytes = 160 * 1024;

/// Takes no more than 32 threads where it was compiled without Hopper's instructions, which tells the host.
template <int Threads>
__global__ void __launch_bounds__(SKIM_CUDA_SM90 ? Threads : 32) hopper_probe() {}

/// Whether the current device has Hopper's instructions, and the program code for them.
inline bool has_hopper_code() {
  constexpr int most_devices = 64;
  static std::atomic<signed char> known[most_devices];  // 0 = not asked yet
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= most_devices) return false;
  if (known[device].load(std::memory_order_relaxed) == 0) {
    constexpr int threads = 64;
    cudaFuncAttributes of{};
    const cudaError_t found = cudaFuncGetAttributes(&of, reinterpret_cast<const void*>(&hopper_probe<threads>));
    if (found != cudaSuccess) static_cast<void>(cudaGetLastError());  // there is no device
    known[device].store(found == cudaSuccess && of.maxThreadsPerBlock >= threads ? 1 : -1, std::memory_order_relaxed);
  }
  return known[device].load(std::memory_order_relaxed) > 0;
}

/// Shared memory that a block may ask for on the current device, at least.
inline std::size_t shared_bytes_of_block() {
  return has_hopper_code() ? std::size_t{224} * 1024 : most_shared_bytes;
}

/// A chain of launches, of which there are no more after the first error. On Hopper a kernel may start while the one before
/// still runs: each waits by `await_kernel_before`, and until then reads nothing but what was there before the chain.
class launcher {
 public:
  explicit launcher(cudaStream_t stream) : stream_(stream), hopper_(has_hopper_code()) {}

  bool hopper() const { return hopper_; }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), std::int64_t blocks_x, std::int64_t blocks_y, int threads,
                  std::size_t shared_bytes, const Arguments&... arguments) {
    in_clusters(1, kernel, blocks_x, blocks_y, threads, shared_bytes, arguments...);
  }

  /// Of `cluster` blocks each along x: for Hopper only.
  template <class... Parameters, class... Arguments>
  void in_clusters(int cluster, void (*kernel)(Parameters...), std::int64_t blocks_x, std::int64_t blocks_y,
                   int threads, std::size_t shared_bytes, const Arguments&... arguments) {
    if (error_ != cudaSuccess || blocks_x == 0 || blocks_y == 0) return;
    const void* const address = reinterpret_cast<const void*>(kernel);
    // Beyond 48 KB, what a kernel has of known size included (at most 16), it must be asked; a graph may be captured.
    if (shared_bytes > 32 * 1024) {
      error_ =
          cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
      if (error_ != cudaSuccess) return;
    }
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    static_assert((std::is_same_v<std::decay_t<Parameters>, Arguments> && ...), "arguments are passed by address");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    cudaLaunchAttribute attributes[2];
    config.attrs = attributes;
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(cluster);
      attributes[config.numAttrs].val.clusterDim.y = attributes[config.numAttrs].val.clusterDim.z = 1;
      ++config.numAttrs;
    }
    if (hopper_ && !first_) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
      ++config.numAttrs;
    }
    first_ = false;
    error_ = cudaLaunchKernelExC(&config, address, pointers);
  }

  /// Zeros.
  void clear(void* data, std::size_t bytes) {
    if (error_ != cudaSuccess || bytes == 0) return;
    error_ = cudaMemsetAsync(data, 0, bytes, stream_);
    first_ = true;  // a kernel waits for it as for what was there before
  }

  cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
  bool hopper_, first_ = true;
};

}  // namespace detail
}}}  // namespace skim::v0_2::cuda
