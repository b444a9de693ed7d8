// SPDX-License-Identifier: Apache-2.0
/// \file One row of scores for all heads: their mean.
#pragma once

#include <skim/cuda/launch.cuh>
#include <skim/view.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

template <int Threads>
__global__ void __launch_bounds__(Threads)
    mean_of_rows(const float* scores, std::int64_t stride, int rows, int columns, float* pooled) {
  start_in_chain();
  const int slot = blockIdx.x * Threads + threadIdx.x;
  if (slot >= columns) return;
  float sum = 0;
  for (int row = 0; row < rows; ++row) sum += scores[row * stride + slot];
  pooled[slot] = sum * (1 / static_cast<float>(rows));
}

/// pooled [1, n] = mean over the rows of scores [rows, n], summed in their order.
inline void pool_scores(const tensor_view<const float, 2>& scores, const tensor_view<float, 2>& pooled,
                        launcher& launch) {
  const std::int64_t n = pooled.extents[1];
  launch(&mean_of_rows<256>, pieces(n, 256), 1, 256, 0, scores.data, scores.strides[0],
         static_cast<int>(scores.extents[0]), static_cast<int>(n), pooled.data);
}

}}}}  // namespace skim::v0_2::cuda::detail
