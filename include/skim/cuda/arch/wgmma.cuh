// SPDX-License-Identifier: Apache-2.0
/// \file Hopper's own instructions: matrix products of a warpgroup (`wgmma`), barriers that copies arrive at.
#pragma once

#include <skim/cuda/kernel/ptx.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

#if SKIM_CUDA_SM90

SKIM_DEVICE void make_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
SKIM_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
SKIM_DEVICE void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives once this thread's copies so far have landed.
SKIM_DEVICE void arrive_with_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
SKIM_DEVICE void await(std::uint32_t barrier, int phase) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra DONE;\nbra WAIT;\n"
      "DONE:\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

/// What was copied to shared memory is there for matrix products too.
SKIM_DEVICE void show_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
SKIM_DEVICE void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
SKIM_DEVICE void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Left>
SKIM_DEVICE void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

/// A matrix in shared memory whose rows of 128 bytes are swizzled: 16 bytes number c of row r stand at c ^ (r % 8).
SKIM_DEVICE std::uint64_t swizzled(std::uint32_t address, std::uint32_t leading_bytes, std::uint32_t stride_bytes) {
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<std::uint64_t>(stride_bytes >> 4) << 32 | std::uint64_t{1} << 62;
}

/// Of two warpgroups, 1 and 2, one at a time: waits until the other has passed the turn on.
SKIM_DEVICE void take_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
SKIM_DEVICE void pass_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory");
}

// clang-format off: lists of registers
#define SKIM_SUMS_8(d, i)                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define SKIM_SUMS_32(d, i) SKIM_SUMS_8(d, i), SKIM_SUMS_8(d, i + 8), SKIM_SUMS_8(d, i + 16), SKIM_SUMS_8(d, i + 24)
#define SKIM_REGISTERS_32                                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31}"
#define SKIM_REGISTERS_64                                                                            \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"  \
  "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49," \
  "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

/// Sums of a warpgroup, [64, N]: warp w has rows 16 w to 16 w + 15, as `mma.sync` spreads them.
template <class T>
struct warpgroup_type;

#define SKIM_WARPGROUP_TYPE(T, name)                                                                            \
  template <>                                                                                                   \
  struct warpgroup_type<T> {                                                                                    \
    /* d [64, 64] = a [64, 16] b [64, 16]^T, added to d if `keep` */                                            \
    static SKIM_DEVICE void multiply(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b, int keep) {  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." name \
                   "." name " " SKIM_REGISTERS_32 ", {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}"                    \
                   : SKIM_SUMS_32(d, 0)                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));                            \
    }                                                                                                           \
    /* d [64, N] += a [64, 16] b [16, N] */                                                                     \
    static SKIM_DEVICE void multiply(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b) {            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " " SKIM_REGISTERS_32            \
                   ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"                                                      \
                   : SKIM_SUMS_32(d, 0)                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                       \
    }                                                                                                           \
    static SKIM_DEVICE void multiply(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " " SKIM_REGISTERS_64           \
                   ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"                                                      \
                   : SKIM_SUMS_32(d, 0), SKIM_SUMS_32(d, 32)                                                    \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                       \
    }                                                                                                           \
  };
// clang-format on
SKIM_WARPGROUP_TYPE(bf16, "bf16")
SKIM_WARPGROUP_TYPE(f16, "f16")
#undef SKIM_WARPGROUP_TYPE
#undef SKIM_REGISTERS_64
#undef SKIM_REGISTERS_32
#undef SKIM_SUMS_32
#undef SKIM_SUMS_8

#endif  // SKIM_CUDA_SM90

}}}}  // namespace skim::v0_2::cuda::detail
