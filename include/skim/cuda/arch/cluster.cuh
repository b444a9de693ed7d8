// SPDX-License-Identifier: Apache-2.0
/// \file Hopper's clusters: blocks that run together and read each other's shared memory.
#pragma once

#include <skim/cuda/kernel/ptx.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

#if SKIM_CUDA_SM90

SKIM_DEVICE int rank_in_cluster() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// Waits for all threads of a cluster of so many blocks; what they wrote to shared memory is there.
template <int Blocks>
SKIM_DEVICE void await_cluster() {
  if constexpr (Blocks == 1) return __syncthreads();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// The address of the same place in the shared memory of block `rank`.
SKIM_DEVICE std::uint32_t address_in(std::uint32_t own, int rank) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
  return address;
}
SKIM_DEVICE unsigned load_from(std::uint32_t address) {
  unsigned value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
SKIM_DEVICE uint2 load_2_from(std::uint32_t address) {
  uint2 value;
  asm volatile("ld.shared::cluster.v2.u32 {%0,%1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address));
  return value;
}

#endif  // SKIM_CUDA_SM90

}}}}  // namespace skim::v0_2::cuda::detail
