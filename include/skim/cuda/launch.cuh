// SPDX-License-Identifier: Apache-2.0
/// \file What CUDA operations answer, and how they launch kernels.
#pragma once

#include <skim/check.hpp>
#include <skim/workspace.hpp>

#include <cuda_runtime_api.h>

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

/// Shared memory that a block may ask for on every GPU from compute capability 8.0 on, with some to spare.
inline constexpr std::size_t most_shared_bytes = 160 * 1024;

/// The first error of a chain of launches, after which there are no more.
class launcher {
 public:
  explicit launcher(cudaStream_t stream) : stream_(stream) {}

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), std::int64_t blocks_x, std::int64_t blocks_y, int threads,
                  std::size_t shared_bytes, const Arguments&... arguments) {
    if (error_ != cudaSuccess || blocks_x == 0 || blocks_y == 0) return;
    const void* const address = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > 48 * 1024) {  // beyond that a kernel must be asked; allowed while a graph is captured
      error_ =
          cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
      if (error_ != cudaSuccess) return;
    }
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    static_assert((std::is_same_v<std::decay_t<Parameters>, Arguments> && ...), "arguments are passed by address");
    error_ = cudaLaunchKernel(address, dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y)),
                              dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, stream_);
  }

  cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace detail
}}}  // namespace skim::v0_2::cuda
