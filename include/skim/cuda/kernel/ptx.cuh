// SPDX-License-Identifier: Apache-2.0
/// \file Instructions of the GPU that CUDA C++ has no words for, and the few numbers that every kernel needs.
#pragma once

#include <skim/types.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "skim::cuda needs compute capability 8.0 or later: compile with -arch=sm_80, for Hopper with -arch=sm_90a"
#endif

#define SKIM_DEVICE __device__ __forceinline__

/// Whether Hopper's own instructions may be used: -arch=sm_90a says so.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SKIM_CUDA_SM90 1
#else
#define SKIM_CUDA_SM90 0
#endif

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

inline constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
inline constexpr unsigned all_lanes = 0xffffffffu;

SKIM_DEVICE float minus_infinity() {
  return __int_as_float(static_cast<int>(0xff800000u));
}

/// An address as instructions on shared memory want it.
SKIM_DEVICE std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory behind the thread's back; zeros where `given` is false.
SKIM_DEVICE void copy_16(std::uint32_t to, const void* from, bool given) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(given ? 16 : 0));
}
/// The same of 8 bytes.
SKIM_DEVICE void copy_8(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from));
}
SKIM_DEVICE void end_copies() {
  asm volatile("cp.async.commit_group;");
}
/// Waits until at most `Left` groups of copies are under way.
template <int Left>
SKIM_DEVICE void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/// Sixteen bytes of what no kernel of the chain writes, past the first cache.
SKIM_DEVICE uint4 load_once(const void* from) {
  uint4 to;
  asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
      : "l"(from));
  return to;
}

/// The same where lanes read 64 bytes of a row at a time, as many rows at once.
SKIM_DEVICE uint4 load_once_of_many(const void* from) {
  uint4 to;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
      : "l"(from));
  return to;
}

/// What kernels earlier in a chain wrote is there.
SKIM_DEVICE void await_kernel_before() {
#if SKIM_CUDA_SM90
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel of a chain may start, as far as there is room.
SKIM_DEVICE void let_next_kernel_start() {
#if SKIM_CUDA_SM90
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// For kernels that read at once what the one before wrote.
SKIM_DEVICE void start_in_chain() {
  let_next_kernel_start();
  await_kernel_before();
}

/// Four 8 x 8 matrices of 16-bit numbers, of which lane l addresses row l % 8 of matrix l / 8.
SKIM_DEVICE void load_matrices(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}
SKIM_DEVICE void load_transposed(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

/// 16-bit numbers that tensor cores multiply: c [16, 8] += a [16, 16] b [16, 8], sums in f32.
template <class T>
struct tensor_type;
template <>
struct tensor_type<bf16> {
  static SKIM_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  /// Two numbers in one register, `low` in its low half.
  static SKIM_DEVICE std::uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&both);
  }
  static SKIM_DEVICE float low(std::uint32_t both) { return __uint_as_float(both << 16); }
  static SKIM_DEVICE float high(std::uint32_t both) { return __uint_as_float(both & 0xffff0000u); }
};
template <>
struct tensor_type<f16> {
  static SKIM_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  static SKIM_DEVICE std::uint32_t pack(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&both);
  }
  static SKIM_DEVICE float low(std::uint32_t both) { return __low2float(*reinterpret_cast<const __half2*>(&both)); }
  static SKIM_DEVICE float high(std::uint32_t both) { return __high2float(*reinterpret_cast<const __half2*>(&both)); }
};

/// 2 to the power of x, within 2 units in the last place; what is below 2^-126 is 0.
SKIM_DEVICE float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Sum over the warp's lanes, the same in all, always in the same order.
template <class T>
SKIM_DEVICE T sum_of_warp(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  return value;
}
/// Sum over the block's threads likewise. `of_warps [Threads / 32]` is shared.
template <int Threads, class T>
SKIM_DEVICE T sum_of_block(T value, T* of_warps) {
  value = sum_of_warp(value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int warp = 0; warp < Threads / 32; ++warp) sum += of_warps[warp];
  __syncthreads();
  return sum;
}
SKIM_DEVICE float largest_of_warp(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(all_lanes, value, step));
  return value;
}

/// `load_element` and `store_element` with the GPU's own conversions, which round alike.
SKIM_DEVICE float load(const void* data, element type, std::int64_t at) {
  if (type == element::f32) return static_cast<const float*>(data)[at];
  if (type == element::f16) return __half2float(static_cast<const __half*>(data)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
}
/// Of a type known when compiled.
SKIM_DEVICE float load(const float* data, std::int64_t at) {
  return data[at];
}
SKIM_DEVICE float load(const f16* data, std::int64_t at) {
  return __half2float(reinterpret_cast<const __half*>(data)[at]);
}
SKIM_DEVICE float load(const bf16* data, std::int64_t at) {
  return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[at]);
}
/// Four numbers side by side, at a multiple of their size together.
SKIM_DEVICE void load_together(float (&to)[4], const float* from) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}
template <class T>
SKIM_DEVICE void load_together(float (&to)[4], const T* from) {
  const uint2 both = *reinterpret_cast<const uint2*>(from);
  to[0] = tensor_type<T>::low(both.x);
  to[1] = tensor_type<T>::high(both.x);
  to[2] = tensor_type<T>::low(both.y);
  to[3] = tensor_type<T>::high(both.y);
}
/// Calls `body` with `data` as a pointer to its type: one branch where many loads follow.
template <class Body>
SKIM_DEVICE void with_type(const void* data, element type, const Body& body) {
  if (type == element::f32) {
    body(static_cast<const float*>(data));
  } else if (type == element::f16) {
    body(static_cast<const f16*>(data));
  } else {
    body(static_cast<const bf16*>(data));
  }
}
SKIM_DEVICE void store(void* data, element type, std::int64_t at, float value) {
  if (type == element::f32) {
    static_cast<float*>(data)[at] = value;
  } else if (type == element::f16) {
    static_cast<__half*>(data)[at] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(value);
  }
}
/// Two numbers side by side; `together`: in one piece, where their address allows it.
SKIM_DEVICE void store_pair(float* to, float first, float second, bool) {
  to[0] = first;
  to[1] = second;
}
template <class T>
SKIM_DEVICE void store_pair(T* to, float first, float second, bool together) {
  const std::uint32_t both = tensor_type<T>::pack(first, second);
  if (together) {
    *reinterpret_cast<std::uint32_t*>(to) = both;
  } else {
    reinterpret_cast<std::uint16_t*>(to)[0] = static_cast<std::uint16_t>(both);
    reinterpret_cast<std::uint16_t*>(to)[1] = static_cast<std::uint16_t>(both >> 16);
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
