// SPDX-License-Identifier: Apache-2.0
/// \file Elementary functions of the softmax and of FFN activations.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/math/activation.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

/// 2^x for x <= 0, relative error below 1.2e-7; 0 below -126 (-inf included), NaN for NaN.
/// 2^x = 2^n 2^r with n the nearest integer and a degree-6 polynomial in r on [-1/2, 1/2]: the minimax fit of the
/// relative error (2.0e-9) with the constant term held at 1, rounded to f32 (7.9e-8 with fused multiply-add).
SKIM_INLINE floats exp2_nonpositive(floats x) {
  const floats clamped = larger(floats(-126.0f), x);
  const ints n = round_to_ints(clamped);
  const floats r = clamped - xsimd::to_float(n);
  floats p = floats(1.5353362e-4f);
  p = fma(p, r, floats(1.3398875e-3f));
  p = fma(p, r, floats(9.6184369e-3f));
  p = fma(p, r, floats(5.5503324e-2f));
  p = fma(p, r, floats(2.4022648e-1f));
  p = fma(p, r, floats(6.9314718e-1f));
  p = fma(p, r, floats(1.0f));
  const floats scaled = as_floats(as_ints(p) + (n << 23));  // adding n to the exponent field multiplies by 2^n
  return xsimd::select(x < floats(-126.0f), floats(0.0f), xsimd::select(is_number(x), scaled, x));
}

/// 1 / (1 + exp(-x)), from the exponential of -|x|, which neither overflows nor cancels.
SKIM_INLINE floats sigmoid(floats x) {
  const floats tail = exp2_nonpositive(xsimd::abs(x) * floats(-1.44269504f));
  const floats above = floats(1.0f) / (floats(1.0f) + tail);  // of |x|
  return xsimd::select(x < floats(0.0f), tail * above, above);
}

/// See `skim::activate`.
SKIM_INLINE floats activate(activation act, floats x) {
  switch (act) {
    case activation::silu:
      return x * sigmoid(x);
    case activation::gelu_tanh: {
      const floats cube = x * x * x;
      return x * sigmoid(floats(1.59576912f) * fma(cube, floats(0.044715f), x));  // (1 + tanh(u)) / 2 = sigmoid(2 u)
    }
    case activation::gelu_erf:
      return floats(0.5f) * x * (floats(1.0f) + xsimd::erf(x * floats(0.70710678f)));
    case activation::relu:
      return xsimd::select(x < floats(0.0f), floats(0.0f), x);
    case activation::relu_squared:
      return xsimd::select(x < floats(0.0f), floats(0.0f), x * x);
  }
  return x;
}

/// cap * tanh(x / cap).
SKIM_INLINE floats soft_cap(floats x, floats cap, floats inverse_cap) {
  return cap * xsimd::tanh(x * inverse_cap);
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
