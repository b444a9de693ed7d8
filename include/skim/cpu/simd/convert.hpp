// SPDX-License-Identifier: Apache-2.0
/// \file Elements of f32, f16 and bf16 to and from f32. xsimd has no 16-bit batches, and its converting loads are scalar at
/// GCC's -O2, so the vector forms are intrinsics.
#pragma once

#include <skim/cpu/simd/compat.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

SKIM_INTRINSICS_BEGIN

/// `lanes` elements widened to f32; exact.
SKIM_INLINE floats load(const bf16* p) {
#if XSIMD_WITH_AVX512F
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return floats(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
#elif XSIMD_WITH_AVX2
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return floats(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
#elif XSIMD_WITH_SSE2 && !XSIMD_WITH_AVX
  const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return floats(_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), half)));
#elif XSIMD_WITH_NEON64
  const uint16x4_t half = vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
  return floats(vreinterpretq_f32_u32(vshll_n_u16(half, 16)));
#else
  float wide[lanes];
  for (std::int64_t i = 0; i < lanes; ++i) wide[i] = to_float(p[i]);
  return load(wide);
#endif
}

SKIM_INLINE floats load(const f16* p) {
#if XSIMD_WITH_AVX512F
  return floats(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif XSIMD_WITH_AVX && defined(__F16C__)
  return floats(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif XSIMD_WITH_NEON64
  return floats(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)))));
#else
  float wide[lanes];
  for (std::int64_t i = 0; i < lanes; ++i) wide[i] = to_float(p[i]);
  return load(wide);
#endif
}

/// `lanes` values rounded to nearest even.
SKIM_INLINE void store(bf16* p, floats x) {
  // Integer rounding rather than AVX512_BF16's conversion, which turns every subnormal into zero.
  const ints bits = as_ints(x);
  const ints rounded = bits + ints(0x7fff) + ((bits >> 16) & ints(1));
  const ints quiet = bits | ints(0x400000);
  const ints chosen = as_ints(xsimd::select(is_number(x), as_floats(rounded), as_floats(quiet)));
#if XSIMD_WITH_AVX512F
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
#else
  std::int32_t wide[lanes];
  chosen.store_unaligned(wide);
  for (std::int64_t i = 0; i < lanes; ++i) {
    p[i].bits = static_cast<std::uint16_t>(static_cast<std::uint32_t>(wide[i]) >> 16);
  }
#endif
}

SKIM_INLINE void store(f16* p, floats x) {
#if XSIMD_WITH_AVX512F
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif XSIMD_WITH_AVX && defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif XSIMD_WITH_NEON64
  vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(x)));
#else
  float wide[lanes];
  store(wide, x);
  for (std::int64_t i = 0; i < lanes; ++i) p[i] = from_float<f16>(wide[i]);
#endif
}

SKIM_INTRINSICS_END

/// Any other stored type, by way of its scalar conversions.
template <class T>
SKIM_INLINE floats load(const T* p) {
  float wide[lanes];
  for (std::int64_t i = 0; i < lanes; ++i) wide[i] = to_float(p[i]);
  return load(static_cast<const float*>(wide));
}
template <class T>
SKIM_INLINE void store(T* p, floats x) {
  float wide[lanes];
  store(static_cast<float*>(wide), x);
  for (std::int64_t i = 0; i < lanes; ++i) p[i] = from_float<T>(wide[i]);
}

/// target [n] = the values; reads exactly n elements.
template <class T>
SKIM_INLINE void widen(const T* source, std::int64_t n, float* target) {
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(target + i, load(source + i));
  for (; i < n; ++i) target[i] = to_float(source[i]);
}

/// target [n] = the values rounded to nearest even; writes exactly n elements.
template <class T>
SKIM_INLINE void narrow(const float* source, std::int64_t n, T* target) {
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(target + i, load(source + i));
  for (; i < n; ++i) target[i] = from_float<T>(source[i]);
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
