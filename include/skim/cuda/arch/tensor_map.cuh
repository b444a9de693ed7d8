// SPDX-License-Identifier: Apache-2.0
/// \file Hopper's copy engine: a map of a matrix, made on the host, and copies of a tile of it to shared memory.
#pragma once

#include <skim/cuda/kernel/ptx.cuh>

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// A map of a matrix of f16 or bf16, of which tiles of `tile_rows` rows and 64 columns are copied, swizzled as `wgmma` reads
/// them; zeros stand for what lies outside. Rows are a multiple of 16 bytes apart and begin at one. False where the driver
/// does not make it.
template <class T>
bool map_matrix(CUtensorMap& map, const void* data, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                int tile_rows) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult answer{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &answer);
    if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
    return error == cudaSuccess && answer == cudaDriverEntryPointSuccess
               ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)
               : nullptr;
  }();
  if (!encode) return false;
  constexpr auto type =
      element_of<T> == element::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * sizeof(T)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(tile_rows)}, steps[] = {1, 1};
  return encode(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#if SKIM_CUDA_SM90

/// Arrives at `barrier`, which then waits for `bytes` besides.
SKIM_DEVICE void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// One thread copies the tile from (row, column) on.
SKIM_DEVICE void copy_tile(std::uint32_t to, const CUtensorMap& map, int row, int column, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
/// What other kernels wrote is there for the copy engine too.
SKIM_DEVICE void show_memory() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

#endif  // SKIM_CUDA_SM90

}}}}  // namespace skim::v0_2::cuda::detail
