// SPDX-License-Identifier: Apache-2.0
/// \file A square of steps, transposed on its way through registers.
#pragma once

#include <skim/cpu/simd/compat.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

SKIM_INTRINSICS_BEGIN

/// Row i of `target`, `stride` apart, = column i of `source`, whose rows are `source_stride` apart: `lanes` of each.
template <class Step>
SKIM_INLINE void store_transposed(const Step* source, std::int64_t source_stride, Step* target, std::int64_t stride) {
  static_assert(sizeof(Step) == 4);
#if XSIMD_WITH_AVX512F
  __m512i rows[16], pairs[16], quads[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(source + i * source_stride);
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
      quads[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
    }
  }
  // quads[4 g + j] holds, in 128-bit lane l, rows 4 g .. 4 g + 3 of column 4 l + j.
  for (int j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xdd);
    const __m512i high_even = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xdd);
    _mm512_storeu_si512(target + j * stride, _mm512_shuffle_i32x4(low_even, high_even, 0x88));
    _mm512_storeu_si512(target + (4 + j) * stride, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_storeu_si512(target + (8 + j) * stride, _mm512_shuffle_i32x4(low_even, high_even, 0xdd));
    _mm512_storeu_si512(target + (12 + j) * stride, _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
#else
  for (std::int64_t i = 0; i < lanes; ++i) {
    for (std::int64_t j = 0; j < lanes; ++j) target[j * stride + i] = source[i * source_stride + j];
  }
#endif
}

SKIM_INTRINSICS_END

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
