// SPDX-License-Identifier: Apache-2.0
/// \file Rows of the cache as they are stored: where they lie, writing them, arithmetic on them, loops over all of them.
/// D lies in the lanes, f32 accumulation. Reads exactly D elements.
#pragma once

#include <skim/cpu/simd/convert.hpp>
#include <skim/view.hpp>

#include <cmath>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

SKIM_INLINE const char* row_address(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot) {
  return static_cast<const char*>(tensor.data) + kv.row_offset(tensor, head, slot) * element_bytes(tensor.type);
}

/// Converts a row and returns the sum of squares of the stored values.
SKIM_INLINE float store_row(const void* given, element given_type, void* stored, element stored_type, std::int64_t n) {
  constexpr std::int64_t piece = 8 * simd::lanes;
  float values[piece];
  simd::floats squares(0.0f);
  float tail = 0;
  for (std::int64_t begin = 0; begin < n; begin += piece) {
    const std::int64_t count = n - begin < piece ? n - begin : piece;
    const char* const source = static_cast<const char*>(given) + begin * element_bytes(given_type);
    char* const target = static_cast<char*>(stored) + begin * element_bytes(stored_type);
    simd::widen_row(source, given_type, count, values);
    simd::narrow_row(values, count, target, stored_type);
    if (stored_type != element::f32) simd::widen_row(target, stored_type, count, values);
    std::int64_t i = 0;
    for (; i + simd::lanes <= count; i += simd::lanes) {
      const simd::floats x = simd::load(values + i);
      squares = simd::fma(x, x, squares);
    }
    for (; i < count; ++i) tail += values[i] * values[i];
  }
  return simd::sum(squares) + tail;
}

/// 1 / |k| for a sum of squares; 0 for a zero key. Where f32 squares overflow or lose digits, sums again in f64.
SKIM_INLINE float inverse_norm(float squares, const void* row, element type, std::int64_t n) {
  if (squares > 1e-30f && squares < 1e38f) return 1.0f / std::sqrt(squares);
  double exact = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const double x = static_cast<double>(load_element(row, type, d));
    exact += x * x;
  }
  return exact == 0 ? 0.0f : static_cast<float>(1 / std::sqrt(exact));
}

template <class T>
SKIM_INLINE float dot_of(const T* row, const float* other, std::int64_t n) {
  simd::floats even(0.0f), odd(0.0f);
  std::int64_t d = 0;
  for (; d + 2 * simd::lanes <= n; d += 2 * simd::lanes) {
    even = simd::fma(simd::load(row + d), simd::load(other + d), even);
    odd = simd::fma(simd::load(row + d + simd::lanes), simd::load(other + d + simd::lanes), odd);
  }
  if (d + simd::lanes <= n) {
    even = simd::fma(simd::load(row + d), simd::load(other + d), even);
    d += simd::lanes;
  }
  float tail = 0;
  for (; d < n; ++d) tail += to_float(row[d]) * other[d];
  return simd::sum(even + odd) + tail;
}

template <class T>
SKIM_INLINE float squared_distance_of(const T* row, const float* other, std::int64_t n) {
  simd::floats total(0.0f);
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    const simd::floats difference = simd::load(row + d) - simd::load(other + d);
    total = simd::fma(difference, difference, total);
  }
  float tail = 0;
  for (; d < n; ++d) {
    const float difference = to_float(row[d]) - other[d];
    tail += difference * difference;
  }
  return simd::sum(total) + tail;
}

template <class T>
SKIM_INLINE void add_scaled_of(const T* row, float factor, float* target, std::int64_t n) {
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    simd::store(target + d, simd::fma(simd::load(row + d), simd::floats(factor), simd::load(target + d)));
  }
  for (; d < n; ++d) target[d] += to_float(row[d]) * factor;
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

/// row . other
SKIM_INLINE float dot_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                          const float* other) {
  return with_row(kv, tensor, head, slot, [&](auto row) SKIM_LAMBDA_INLINE { return dot_of(row, other, tensor.dim); });
}

/// |row - other|^2
SKIM_INLINE float squared_distance_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                                       const float* other) {
  return with_row(kv, tensor, head, slot,
                  [&](auto row) SKIM_LAMBDA_INLINE { return squared_distance_of(row, other, tensor.dim); });
}

/// target += factor * row
SKIM_INLINE void add_scaled_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                                float factor, float* target) {
  with_row(kv, tensor, head, slot,
           [&](auto row) SKIM_LAMBDA_INLINE { add_scaled_of(row, factor, target, tensor.dim); });
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

/// Cuts the cache's slots into pieces for loops that stream K or V. In token-major storage one piece takes all heads of
/// its slots, so that memory is read in order; else each head has pieces of its own.
struct stream_plan {
  std::int64_t slots, heads, pieces, unit_heads;
  static constexpr std::int64_t piece_slots = 256;  // of 8 heads and 128 dimensions: 512 KiB of bf16

  SKIM_INLINE stream_plan(const kv_view& kv, const kv_tensor& tensor)
      : slots(kv.tokens),
        heads(kv.heads),
        pieces((kv.tokens + piece_slots - 1) / piece_slots),
        unit_heads(tensor.head_stride < tensor.row_stride ? kv.heads : 1) {}

  SKIM_INLINE std::int64_t units() const { return pieces * (heads / unit_heads); }
  SKIM_INLINE std::int64_t piece(std::int64_t unit) const { return unit % pieces; }

  /// Calls `body(head, slot)` for the rows of a unit that exist, in the order of memory.
  template <class Body>
  SKIM_INLINE void for_each_row(const kv_view& kv, std::int64_t unit, const Body& body) const {
    const std::int64_t first_head = unit / pieces * unit_heads, begin = piece(unit) * piece_slots;
    const std::int64_t end = begin + piece_slots < slots ? begin + piece_slots : slots;
    for (std::int64_t slot = begin; slot < end; ++slot) {
      for (std::int64_t head = first_head; head < first_head + unit_heads; ++head) {
        if (slot < kv.length(head)) body(head, slot);
      }
    }
  }
};

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
