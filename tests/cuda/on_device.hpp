// SPDX-License-Identifier: Apache-2.0
/// \file Memory of the GPU for tests, and what a test says where there is no GPU.
#pragma once

#include <skim/workspace.hpp>

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <vector>

namespace skim_test {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Fails without one: who asks for the label gpu is not to be told that its tests passed.
#define NEEDS_A_GPU() ASSERT_TRUE(skim_test::has_gpu()) << "needs a GPU; ctest -LE gpu leaves this test out"

/// A workspace on the GPU that begins as NaN, with a guard behind it.
class guarded_device_memory {
 public:
  explicit guarded_device_memory(std::size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes + guard), cudaSuccess);
    EXPECT_EQ(cudaMemset(data_, 0xff, bytes + guard), cudaSuccess);
  }
  ~guarded_device_memory() { cudaFree(data_); }
  guarded_device_memory(const guarded_device_memory&) = delete;
  guarded_device_memory& operator=(const guarded_device_memory&) = delete;

  skim::memory get() const { return {data_, bytes_}; }

  bool guards_intact() const {
    std::vector<unsigned char> behind(guard);
    if (cudaMemcpy(behind.data(), static_cast<char*>(data_) + bytes_, guard, cudaMemcpyDefault) != cudaSuccess) {
      return false;
    }
    return behind == std::vector<unsigned char>(guard, 0xff);
  }

 private:
  static constexpr std::size_t guard = 4096;

  void* data_ = nullptr;
  std::size_t bytes_;
};

}  // namespace skim_test
