// SPDX-License-Identifier: Apache-2.0
/// \file A call that is captured in a graph once, and replayed.
#pragma once

#include <skim/cuda/launch.cuh>

#include <gtest/gtest.h>

namespace skim_test {

class captured_call {
 public:
  /// `call(stream)` enqueues it and returns the report.
  template <class Call>
  explicit captured_call(const Call& call) {
    EXPECT_EQ(cudaStreamCreate(&stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const skim::cuda::launch_report report = call(stream_);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph_), cudaSuccess);
    EXPECT_TRUE(report.ok()) << cudaGetErrorString(report.error);
    EXPECT_EQ(cudaGraphInstantiate(&executable_, graph_, 0), cudaSuccess);
  }
  ~captured_call() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
    cudaStreamDestroy(stream_);
  }
  captured_call(const captured_call&) = delete;
  captured_call& operator=(const captured_call&) = delete;

  void replay() const {
    ASSERT_EQ(cudaGraphLaunch(executable_, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace skim_test
