// SPDX-License-Identifier: Apache-2.0
/// \file Stored numbers to and from f32. xsimd has no 16-bit batches, and its converting loads are scalar at GCC's -O2, so the
/// vector forms are intrinsics.
#pragma once

#include <skim/cpu/simd/compat.hpp>

#include <cstring>

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

SKIM_INLINE floats load(const std::int8_t* p) {
#if XSIMD_WITH_AVX512F
  return floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif XSIMD_WITH_AVX2
  return floats(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#elif XSIMD_WITH_SSE2 && !XSIMD_WITH_AVX
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  const __m128i bytes = _mm_cvtsi32_si128(four), twice = _mm_unpacklo_epi8(bytes, bytes);
  return floats(_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24)));
#else
  float wide[lanes];
  for (std::int64_t i = 0; i < lanes; ++i) wide[i] = to_float(p[i]);
  return load(wide);
#endif
}

/// A factor in all lanes.
SKIM_INLINE floats fill(f16 x) {
#if XSIMD_WITH_AVX512F
  return floats(_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(x.bits))));
#elif XSIMD_WITH_AVX && defined(__F16C__)
  return floats(_mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(x.bits))));
#else
  return floats(to_float(x));
#endif
}

/// Up to 32 integers of a row of 8 bits, and their factor.
struct scaled_integers {
  const std::int8_t* values;
  floats factor;

  SKIM_INLINE floats at(std::int64_t i) const { return load(values + i) * factor; }
};

/// Those from a multiple of `lanes` on, up to one of 32.
SKIM_INLINE scaled_integers integers_of(skim::detail::block_row<q8_0> row, float scale) {
  static_assert(32 % lanes == 0, "a vector lies in one block");
  const q8_0& block = row.blocks[row.first / 32];
  return {static_cast<const std::int8_t*>(block.values) + row.first % 32, fill(block.scale) * floats(scale)};
}
SKIM_INLINE scaled_integers integers_of(const std::int8_t* row, float scale) {
  return {row, floats(scale)};
}

SKIM_INLINE floats load(skim::detail::block_row<q8_0> row) {
  return integers_of(row, 1).at(0);
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

/// At most 127 in size; NaN becomes 0.
SKIM_INLINE void store(std::int8_t* p, floats x) {
  const floats inside = smaller(larger(x, floats(-127.0f)), floats(127.0f));
  const ints rounded = round_to_ints(xsimd::select(is_number(x), inside, floats(0.0f)));
#if XSIMD_WITH_AVX512F
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(rounded));
#else
  std::int32_t wide[lanes];
  rounded.store_unaligned(wide);
  for (std::int64_t i = 0; i < lanes; ++i) p[i] = static_cast<std::int8_t>(wide[i]);
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

/// target [n] = the values; reads exactly n elements. `Row`: a pointer, or what stands for one where numbers lie in blocks.
template <class Row>
SKIM_INLINE void widen(Row source, std::int64_t n, float* target) {
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

/// The same in blocks, whose scales are those of `block_from_floats`; n is a multiple of 32.
SKIM_INLINE void narrow(const float* source, std::int64_t n, q8_0* target) {
  for (std::int64_t begin = 0; begin < n; begin += 32) {
    const float* const values = source + begin;
    floats largest(0.0f), spoilt(0.0f);
    for (std::int64_t i = 0; i < 32; i += lanes) {
      const floats x = load(values + i);
      largest = larger(xsimd::abs(x), largest);
      spoilt = fma(x, floats(0.0f), spoilt);
    }
    const float zero = sum(spoilt);
    q8_0& block = target[begin / 32];
    block.scale = skim::detail::scale_of_block(zero == 0 ? max_lane(largest) : zero);
    const float scale = to_float(block.scale);
    const floats factor(scale > 0 ? 1 / scale : 0.0f);
    for (std::int64_t i = 0; i < 32; i += lanes)
      store(static_cast<std::int8_t*>(block.values) + i, load(values + i) * factor);
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
