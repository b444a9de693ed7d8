// SPDX-License-Identifier: Apache-2.0
/// \file Rows at unit length, also where f32 does not hold their squares.
#pragma once

#include <skim/cuda/kernel/cache_rows.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Whether 1 / |row| is a factor for f32: squares and products of such rows neither overflow nor vanish.
SKIM_DEVICE bool is_usable(float inverse_length) {
  return inverse_length >= 1e-18f && inverse_length < 1e15f;
}

/// What makes a row a unit row: a power of two where its size is unusual, then a factor; 0 for zeros, NaN for a row that is
/// not finite.
struct unit_factors {
  int exponent;
  float inverse;

  SKIM_DEVICE float operator()(float x) const { return (exponent == 0 ? x : scalbnf(x, exponent)) * inverse; }
  /// 1 / |row|, 0 for zeros.
  SKIM_DEVICE float inverse_length() const { return exponent == 0 ? inverse : scalbnf(inverse, exponent); }
};

/// Of `dim` numbers, each times `scale`. By a warp.
SKIM_DEVICE unit_factors scale_to_one(const char* row, element type, int dim, float scale) {
  float largest = 0, spoilt = 0;
  for (int d = threadIdx.x % 32; d < dim; d += 32) {
    const float x = load(row, type, d) * scale;
    largest = fmaxf(largest, fabsf(x));
    spoilt += x * 0;
  }
  if (!(sum_of_warp(spoilt) == 0)) return {0, __int_as_float(0x7fc00000)};
  largest = largest_of_warp(largest);
  if (largest == 0) return {0, 0};
  const int exponent = -ilogbf(largest);
  float squares = 0;
  for (int d = threadIdx.x % 32; d < dim; d += 32) {
    const float x = scalbnf(load(row, type, d) * scale, exponent);
    squares += x * x;
  }
  return {exponent, 1 / sqrtf(sum_of_warp(squares))};
}
SKIM_DEVICE unit_factors scale_to_one(const cache_rows& kv, const stored_rows& of, int head, int slot) {
  return scale_to_one(kv.row(of, head, slot), of.type, of.dim, kv.scale(of, head, slot));
}

}}}}  // namespace skim::v0_2::cuda::detail
