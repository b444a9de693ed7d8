// SPDX-License-Identifier: Apache-2.0
/// \file The only file that knows which xsimd and which instruction set it is compiled with.
///
/// Code in `skim::cpu` lives in an inline namespace named after the feature set, so that units compiled with different
/// flags can be linked together: each keeps its own kernels.
#pragma once

#include <skim/types.hpp>

#include <type_traits>
#include <utility>

SKIM_INTRINSICS_BEGIN
SKIM_PRECISE_BEGIN
#pragma push_macro("min")  // windows.h and complex.h define these, and xsimd uses the names
#pragma push_macro("max")
#pragma push_macro("I")
#undef min
#undef max
#undef I
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <xsimd/xsimd.hpp>
#pragma pop_macro("I")
#pragma pop_macro("max")
#pragma pop_macro("min")
SKIM_PRECISE_END
SKIM_INTRINSICS_END

#define SKIM_PASTE_5(a, b, c, d, e) a##b##c##d##e
#define SKIM_NAME_5(a, b, c, d, e) SKIM_PASTE_5(a, b, c, d, e)

#if XSIMD_WITH_AVX512BW
#define SKIM_CPU_ARCH avx512bw
#define SKIM_CPU_REGISTERS 32
#elif XSIMD_WITH_AVX512F
#define SKIM_CPU_ARCH avx512f
#define SKIM_CPU_REGISTERS 32
#elif XSIMD_WITH_FMA3_AVX2
#define SKIM_CPU_ARCH avx2_fma
#define SKIM_CPU_REGISTERS 16
#elif XSIMD_WITH_AVX2
#define SKIM_CPU_ARCH avx2
#define SKIM_CPU_REGISTERS 16
#elif XSIMD_WITH_AVX
#define SKIM_CPU_ARCH avx
#define SKIM_CPU_REGISTERS 16
#elif XSIMD_WITH_NEON64
#define SKIM_CPU_ARCH neon64
#define SKIM_CPU_REGISTERS 32
#elif XSIMD_WITH_SSE4_2
#define SKIM_CPU_ARCH sse4_2
#define SKIM_CPU_REGISTERS 16
#elif XSIMD_WITH_SSE4_1
#define SKIM_CPU_ARCH sse4_1
#define SKIM_CPU_REGISTERS 16
#elif XSIMD_WITH_SSE2
#define SKIM_CPU_ARCH sse2
#define SKIM_CPU_REGISTERS 16
#else
#error "skim::cpu needs an instruction set that xsimd supports: SSE2 or later, or 64-bit NEON"
#endif

#if defined(__F16C__)
#define SKIM_CPU_F16 _f16c
#else
#define SKIM_CPU_F16
#endif
#if defined(__AVX512BF16__) && XSIMD_WITH_AVX512BW
#define SKIM_CPU_DOT_PAIRS 1
#define SKIM_CPU_BF16 _bf16
#else
#define SKIM_CPU_DOT_PAIRS 0
#define SKIM_CPU_BF16
#endif

#if defined(__AVX512VNNI__) && XSIMD_WITH_AVX512BW && defined(__AVX512VL__)
#define SKIM_CPU_DOT_BYTES 1
#define SKIM_CPU_VNNI _vnni
#else
#define SKIM_CPU_DOT_BYTES 0
#define SKIM_CPU_VNNI
#endif

#if defined(__AMX_BF16__) && SKIM_CPU_DOT_PAIRS
#define SKIM_CPU_AMX 1
#define SKIM_CPU_AMX_NAME _amx
#else
#define SKIM_CPU_AMX 0
#define SKIM_CPU_AMX_NAME
#endif

/// Names the feature set: avx512bw_f16c_bf16_vnni_amx, avx2_fma_f16c, sse2, neon64, ...
#define SKIM_CPU_FEATURES SKIM_NAME_5(SKIM_CPU_ARCH, SKIM_CPU_F16, SKIM_CPU_BF16, SKIM_CPU_VNNI, SKIM_CPU_AMX_NAME)

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

namespace detail {

using namespace skim::detail;  // NOLINT: the library's own internals, one level up

}  // namespace detail

namespace simd {

using arch = xsimd::default_arch;
using floats = xsimd::batch<float, arch>;
using ints = xsimd::batch<std::int32_t, arch>;
using float_mask = xsimd::batch_bool<float, arch>;

inline constexpr std::int64_t lanes = static_cast<std::int64_t>(floats::size);
inline constexpr int registers = SKIM_CPU_REGISTERS;

SKIM_INTRINSICS_BEGIN

/// a * b + c, fused where the processor can; xsimd before 11 has no fused form for AVX-512.
SKIM_INLINE floats fma(floats a, floats b, floats c) {
#if XSIMD_VERSION_MAJOR < 11 && XSIMD_WITH_AVX512F
  return floats(_mm512_fmadd_ps(a, b, c));
#else
  return xsimd::fma(a, b, c);
#endif
}

/// The larger; b where one is NaN. xsimd's own max changed its NaN rule between versions.
SKIM_INLINE floats larger(floats a, floats b) {
#if XSIMD_WITH_AVX512F
  return floats(_mm512_max_ps(a, b));
#elif XSIMD_WITH_AVX
  return floats(_mm256_max_ps(a, b));
#elif XSIMD_WITH_SSE2
  return floats(_mm_max_ps(a, b));
#else
  return xsimd::select(a > b, a, b);
#endif
}

/// The smaller; b where one is NaN.
SKIM_INLINE floats smaller(floats a, floats b) {
#if XSIMD_WITH_AVX512F
  return floats(_mm512_min_ps(a, b));
#elif XSIMD_WITH_AVX
  return floats(_mm256_min_ps(a, b));
#elif XSIMD_WITH_SSE2
  return floats(_mm_min_ps(a, b));
#else
  return xsimd::select(a < b, a, b);
#endif
}

SKIM_INLINE ints as_ints(floats x) {
#if XSIMD_VERSION_MAJOR < 11
  return xsimd::bitwise_cast<ints>(x);
#else
  return xsimd::bitwise_cast<std::int32_t>(x);
#endif
}

SKIM_INLINE floats as_floats(ints x) {
#if XSIMD_VERSION_MAJOR < 11
  return xsimd::bitwise_cast<floats>(x);
#else
  return xsimd::bitwise_cast<float>(x);
#endif
}

/// False where x is NaN; `!=` says so in some versions only.
SKIM_INLINE float_mask is_number(floats x) {
  return x == x;
}

/// The nearest integers, ties to even; arbitrary for what no 32-bit integer holds. An instruction: adding and taking away
/// 1.5 * 2^23 would do as well, but for compilers that are told to reorder.
SKIM_INLINE ints round_to_ints(floats x) {
#if XSIMD_WITH_AVX512F
  return ints(_mm512_cvtps_epi32(x));
#elif XSIMD_WITH_AVX
  return ints(_mm256_cvtps_epi32(x));
#elif XSIMD_WITH_SSE2
  return ints(_mm_cvtps_epi32(x));
#else
  return ints(vcvtnq_s32_f32(x));
#endif
}

SKIM_INLINE float_mask as_float_mask(xsimd::batch_bool<std::int32_t, arch> m) {
#if XSIMD_VERSION_MAJOR < 9
  return xsimd::bool_cast(m);
#else
  return xsimd::batch_bool_cast<float>(m);
#endif
}

/// a where the mask says so, else b. xsimd's own for integers may not compile at -O0, where intrinsics are macros.
SKIM_INLINE ints select(xsimd::batch_bool<std::int32_t, arch> mask, ints a, ints b) {
  return as_ints(xsimd::select(as_float_mask(mask), as_floats(a), as_floats(b)));
}

SKIM_INLINE ints larger(ints a, ints b) {
  return select(a > b, a, b);
}
SKIM_INLINE ints smaller(ints a, ints b) {
  return select(a < b, a, b);
}

SKIM_INLINE floats load(const float* p) {
  return floats::load_unaligned(p);
}
SKIM_INLINE ints load(const std::int32_t* p) {
  return ints::load_unaligned(p);
}
SKIM_INLINE void store(float* p, floats x) {
  x.store_unaligned(p);
}
SKIM_INLINE void store(std::int32_t* p, ints x) {
  x.store_unaligned(p);
}

SKIM_INLINE float sum(floats x) {
#if XSIMD_VERSION_MAJOR < 9
  return xsimd::hadd(x);
#else
  return xsimd::reduce_add(x);
#endif
}

/// The largest lane; arbitrary if some lanes are NaN, NaN if all are.
SKIM_INLINE float max_lane(floats x) {
#if XSIMD_WITH_AVX512F
  return _mm512_reduce_max_ps(x);
#else
  float lane[lanes];
  store(lane, x);
  float most = lane[0];
  for (std::int64_t i = 1; i < lanes; ++i) most = lane[i] > most ? lane[i] : most;
  return most;
#endif
}

/// The lanes that are true, the first in the lowest bit.
SKIM_INLINE std::uint32_t bits_of(float_mask mask) {
#if XSIMD_WITH_AVX512F
  return static_cast<__mmask16>(mask);
#elif XSIMD_WITH_AVX
  return static_cast<std::uint32_t>(_mm256_movemask_ps(mask));
#elif XSIMD_WITH_SSE2
  return static_cast<std::uint32_t>(_mm_movemask_ps(mask));
#else
  bool lane[lanes];
  mask.store_unaligned(lane);
  std::uint32_t bits = 0;
  for (std::int64_t i = 0; i < lanes; ++i) bits |= static_cast<std::uint32_t>(lane[i]) << i;
  return bits;
#endif
}

SKIM_INTRINSICS_END

/// The number of the lowest bit that is set; some are.
SKIM_INLINE std::int64_t lowest_bit(std::uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_ctz(bits);
#else
  std::int64_t bit = 0;
  for (; (bits >> bit & 1) == 0; ++bit) {
  }
  return bit;
#endif
}

/// Asks for the line of an address, which is read soon.
SKIM_INLINE void prefetch_line(const void* data) {
#if defined(__GNUC__)
  __builtin_prefetch(data, 0, 3);
#else
  static_cast<void>(data);
#endif
}

/// Asks for the lines of `bytes` bytes, which are read soon, in the second-level cache: the first holds what is read now.
SKIM_INLINE void prefetch(const void* data, std::int64_t bytes) {
#if defined(__GNUC__)
  constexpr std::int64_t line = 64;
  for (std::int64_t i = 0; i < bytes; i += line) __builtin_prefetch(static_cast<const char*>(data) + i, 0, 2);
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

/// An array of N vectors. (In the brackets, a signed N would be a conversion that compilers warn of.)
template <class Vector, int N>
using vectors_of = Vector[static_cast<std::size_t>(N)];
template <int N>
using vectors = vectors_of<floats, N>;

/// Calls `body(integral_constant<int, i>)` for i in [0, N), unrolled at every optimisation level: accumulators that are
/// indexed by `i` stay in registers.
template <class Body, int... indices>
SKIM_INLINE void unroll_indices(const Body& body, std::integer_sequence<int, indices...>) {
  (body(std::integral_constant<int, indices>{}), ...);
}
template <int N, class Body>
SKIM_INLINE void unroll(const Body& body) {
  unroll_indices(body, std::make_integer_sequence<int, N>{});
}

}  // namespace simd
}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
