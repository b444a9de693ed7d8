// SPDX-License-Identifier: Apache-2.0
/// \file Arithmetic on one row of the cache as it is stored, D in the lanes, f32 accumulation. Reads exactly D elements.
#pragma once

#include <skim/cpu/simd/convert.hpp>
#include <skim/view.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

template <class T>
SKIM_INLINE float dot_of(const T* row, const float* with, std::int64_t n) {
  simd::floats even(0.0f), odd(0.0f);
  std::int64_t d = 0;
  for (; d + 2 * simd::lanes <= n; d += 2 * simd::lanes) {
    even = simd::fma(simd::load(row + d), simd::load(with + d), even);
    odd = simd::fma(simd::load(row + d + simd::lanes), simd::load(with + d + simd::lanes), odd);
  }
  if (d + simd::lanes <= n) {
    even = simd::fma(simd::load(row + d), simd::load(with + d), even);
    d += simd::lanes;
  }
  float tail = 0;
  for (; d < n; ++d) tail += to_float(row[d]) * with[d];
  return simd::sum(even + odd) + tail;
}

template <class T>
SKIM_INLINE float squared_distance_of(const T* row, const float* from, std::int64_t n) {
  simd::floats total(0.0f);
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    const simd::floats difference = simd::load(row + d) - simd::load(from + d);
    total = simd::fma(difference, difference, total);
  }
  float tail = 0;
  for (; d < n; ++d) {
    const float difference = to_float(row[d]) - from[d];
    tail += difference * difference;
  }
  return simd::sum(total) + tail;
}

template <class T>
SKIM_INLINE void add_scaled_of(const T* row, float factor, float* to, std::int64_t n) {
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    simd::store(to + d, simd::fma(simd::load(row + d), simd::floats(factor), simd::load(to + d)));
  }
  for (; d < n; ++d) to[d] += to_float(row[d]) * factor;
}

/// Calls `body(pointer)` with the row's pointer in its own type.
template <class Body>
SKIM_INLINE auto with_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                          const Body& body) {
  const std::int64_t offset = kv.row_offset(tensor, head, slot);
  if (tensor.type == element::f32) return body(static_cast<const float*>(tensor.data) + offset);
  if (tensor.type == element::f16) return body(static_cast<const f16*>(tensor.data) + offset);
  return body(static_cast<const bf16*>(tensor.data) + offset);
}

/// row . with
SKIM_INLINE float dot_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                          const float* with) {
  return with_row(kv, tensor, head, slot, [&](auto row) SKIM_LAMBDA_INLINE { return dot_of(row, with, tensor.dim); });
}

/// |row - from|^2
SKIM_INLINE float squared_distance_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                                       const float* from) {
  return with_row(kv, tensor, head, slot,
                  [&](auto row) SKIM_LAMBDA_INLINE { return squared_distance_of(row, from, tensor.dim); });
}

/// to += factor * row
SKIM_INLINE void add_scaled_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                                float factor, float* to) {
  with_row(kv, tensor, head, slot, [&](auto row) SKIM_LAMBDA_INLINE { add_scaled_of(row, factor, to, tensor.dim); });
}

/// True if every element is finite. `zeros [D]`.
SKIM_INLINE bool is_finite_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                               const float* zeros) {
  return dot_row(kv, tensor, head, slot, zeros) == 0;  // infinity and NaN times 0 are NaN
}

/// total [dim] = sum over the head's slots of weights[slot] * row, or the rows' mean where `weights` is null. Left out are
/// weights that are not positive and rows with an infinity or NaN. `scratch [2, dim]`. Blocks of 256 rows are summed
/// apart, which bounds the rounding error.
SKIM_NOINLINE inline void sum_rows(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, const float* weights,
                                   float* scratch, float* total) {
  constexpr std::int64_t block = 256;
  const std::int64_t n = kv.length(head);
  const float share = 1 / static_cast<float>(n);
  float *const sum = scratch, *const zeros = scratch + tensor.dim;
  for (std::int64_t d = 0; d < tensor.dim; ++d) total[d] = zeros[d] = 0;
  for (std::int64_t begin = 0; begin < n; begin += block) {
    for (std::int64_t d = 0; d < tensor.dim; ++d) sum[d] = 0;
    for (std::int64_t slot = begin; slot < n && slot < begin + block; ++slot) {
      const float weight = weights ? weights[slot] : share;
      if (!(weight > 0) || !is_finite_row(kv, tensor, head, slot, zeros)) continue;
      add_scaled_row(kv, tensor, head, slot, weight, sum);
    }
    for (std::int64_t d = 0; d < tensor.dim; ++d) total[d] += sum[d];
  }
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
