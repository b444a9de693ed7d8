// SPDX-License-Identifier: Apache-2.0
/// \file Sums of as many vectors as a vector has lanes.
#pragma once

#include <skim/cpu/simd/compat.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

SKIM_INTRINSICS_BEGIN

/// Lane i = the sum of vector i's lanes.
SKIM_INLINE floats sums_of(const floats (&of)[static_cast<std::size_t>(lanes)]) {
#if XSIMD_WITH_AVX512F
  __m512 pairs[8], quads[4], halves[2];
  unroll<8>([&](auto i) SKIM_LAMBDA_INLINE {
    const __m512 a = of[2 * i], b = of[2 * i + 1];
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  });
  unroll<4>([&](auto i) SKIM_LAMBDA_INLINE {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  });
  // In each 128-bit lane of quads[i]: four sums of four numbers, of vectors 4 i .. 4 i + 3.
  unroll<2>([&](auto i) SKIM_LAMBDA_INLINE {
    const __m512 a = quads[2 * i], b = quads[2 * i + 1];
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  });
  return floats(_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                              _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd)));
#elif XSIMD_WITH_AVX
  __m256 pairs[4], quads[2];
  unroll<4>([&](auto i) SKIM_LAMBDA_INLINE { pairs[i] = _mm256_hadd_ps(of[2 * i], of[2 * i + 1]); });
  unroll<2>([&](auto i) SKIM_LAMBDA_INLINE { quads[i] = _mm256_hadd_ps(pairs[2 * i], pairs[2 * i + 1]); });
  return floats(_mm256_add_ps(_mm256_permute2f128_ps(quads[0], quads[1], 0x20),
                              _mm256_permute2f128_ps(quads[0], quads[1], 0x31)));
#else
  float each[lanes];
  for (std::int64_t i = 0; i < lanes; ++i) each[i] = sum(of[i]);
  return load(static_cast<const float*>(each));
#endif
}

SKIM_INTRINSICS_END

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
