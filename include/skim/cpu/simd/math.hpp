// SPDX-License-Identifier: Apache-2.0
/// \file Elementary functions of the softmax.
#pragma once

#include <skim/cpu/simd/compat.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace simd {

/// 2^x for x <= 0, relative error below 1.2e-7; 0 below -126 (-inf included), NaN for NaN.
/// 2^x = 2^n 2^r with n the nearest integer and a degree-6 polynomial in r on [-1/2, 1/2]: the minimax fit of the
/// relative error (2.0e-9) with the constant term held at 1, rounded to f32 (7.9e-8 with fused multiply-add).
SKIM_INLINE floats exp2_nonpositive(floats x) {
  const floats magic(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const floats clamped = xsimd::select(x < floats(-126.0f), floats(-126.0f), x);
  const floats shifted = clamped + magic;
  const floats r = clamped - (shifted - magic);
  floats p = floats(1.5353362e-4f);
  p = fma(p, r, floats(1.3398875e-3f));
  p = fma(p, r, floats(9.6184369e-3f));
  p = fma(p, r, floats(5.5503324e-2f));
  p = fma(p, r, floats(2.4022648e-1f));
  p = fma(p, r, floats(6.9314718e-1f));
  p = fma(p, r, floats(1.0f));
  // Adding n to the exponent field multiplies by 2^n; the shift drops the magic number's upper bits.
  const floats scaled = as_floats(as_ints(p) + (as_ints(shifted) << 23));
  return xsimd::select(x < floats(-126.0f), floats(0.0f), xsimd::select(x != x, x, scaled));
}

/// cap * tanh(x / cap).
SKIM_INLINE floats soft_cap(floats x, floats cap, floats inverse_cap) {
  return cap * xsimd::tanh(x * inverse_cap);
}

}  // namespace simd
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
