// SPDX-License-Identifier: Apache-2.0
/// \file Rows as they are stored: reading, writing and moving them, arithmetic on them, loops over a cache's rows. The only
/// file of cpu/ that asks for an element type.
///
/// D lies in the lanes, f32 accumulation. Reads exactly D elements.
#pragma once

#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/dot_bytes.hpp>
#include <skim/cpu/simd/tile_math.hpp>
#include <skim/kv_view.hpp>

#include <cmath>
#include <cstring>
#include <limits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Calls `body(pointer)` with the row's pointer in its own type, or what stands for one where numbers lie in blocks.
template <class Types = stored_types, class Body>
SKIM_INLINE void with_row(const stored_row& row, const Body& body) {
  with_stored_type(row.type, Types{}, [&](auto type) SKIM_LAMBDA_INLINE { body(row_at<decltype(type)>(row.data)); });
}

/// Those of 8 bits.
using integer_types = type_list<q8_0, std::int8_t>;

/// What `simd::with_math` goes by where the rows of a tensor are multiplied.
SKIM_INLINE element multiplied_type(const kv_tensor& tensor) {
  return tensor.type == element::bf16 && tensor.scales ? element::none : tensor.type;
}

SKIM_INLINE void scale_row(float scale, std::int64_t n, float* row) {
  if (scale == 1.0f) return;
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    simd::store(row + d, simd::load(static_cast<const float*>(row) + d) * simd::floats(scale));
  }
  for (; d < n; ++d) row[d] *= scale;
}

/// target [n] = the row's values; reads exactly n elements. For loops over keys; elsewhere `widen`, compiled once, does.
SKIM_INLINE void widen_here(const stored_row& row, std::int64_t n, float* target) {
  with_row(row, [&](auto source) SKIM_LAMBDA_INLINE { simd::widen(source, n, target); });
  scale_row(row.scale, n, target);
}
SKIM_NOINLINE inline void widen(const stored_row& row, std::int64_t n, float* target) {
  widen_here(row, n, target);
}

/// The row `target [n]` = the values rounded to nearest even; writes exactly n elements.
SKIM_NOINLINE inline void narrow(const float* values, std::int64_t n, void* target, element type) {
  with_stored_type(type, stored_types{}, [&](auto stored) SKIM_LAMBDA_INLINE {
    simd::narrow(values, n, static_cast<decltype(stored)*>(target));
  });
}

/// target [n steps] = the row as steps along it, for a tile.
template <class Math>
SKIM_INLINE void load_row(const stored_row& row, std::int64_t n, typename Math::step* target) {
  if constexpr (Math::values == 1) {
    widen_here(row, n, target);
  } else if (row.type == element::bf16) {
    Math::load_row(static_cast<const bf16*>(row.data), n, target);
  } else {
    with_row<integer_types>(row,
                            [&](auto source) SKIM_LAMBDA_INLINE { Math::round_row_of(source, row.scale, n, target); });
  }
}

/// target [n] = the rows of one step, of which the second is looked at where steps are pairs; a row without data counts as
/// zeros.
template <class Math>
SKIM_INLINE void load_row_pair(const stored_row& row, const stored_row& next, std::int64_t n,
                               typename Math::step* target) {
  if constexpr (Math::values == 1) {
    if (row.data) return widen_here(row, n, target);
    for (std::int64_t d = 0; d < n; ++d) target[d] = 0;
  } else if (row.type == element::bf16) {
    Math::load_row_pair(static_cast<const bf16*>(row.data), static_cast<const bf16*>(next.data), n, target);
  } else if (row.data) {
    const bool both = next.data != nullptr;
    with_stored_type(row.type, integer_types{}, [&](auto type) SKIM_LAMBDA_INLINE {
      const auto low = row_at<decltype(type)>(row.data), high = row_at<decltype(type)>(both ? next.data : row.data);
      Math::round_row_pair_of(low, row.scale, high, next.scale, n, target);
    });
    for (std::int64_t d = 0; !both && d < n; ++d) target[d] = Math::without(target[d], 1);
  } else {
    for (std::int64_t d = 0; d < n; ++d) target[d] = 0;
  }
}

template <class Row>
SKIM_INLINE float dot_of(Row row, const float* other, std::int64_t n) {
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

/// A row without a scale is not multiplied by one: compilers would cut the loop another way, and round another way.
template <bool Scaled, class Row>
SKIM_INLINE float add_squared_differences(Row row, float scale, const float* other, std::int64_t n) {
  simd::floats total(0.0f);
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    const simd::floats stored = simd::load(row + d), value = Scaled ? stored * simd::floats(scale) : stored;
    const simd::floats difference = value - simd::load(other + d);
    total = simd::fma(difference, difference, total);
  }
  float tail = 0;
  for (; d < n; ++d) {
    const float difference = (Scaled ? to_float(row[d]) * scale : to_float(row[d])) - other[d];
    tail += difference * difference;
  }
  return simd::sum(total) + tail;
}

template <class Row>
SKIM_INLINE float squared_distance_of(Row row, float scale, const float* other, std::int64_t n) {
  return scale == 1 ? add_squared_differences<false>(row, scale, other, n)
                    : add_squared_differences<true>(row, scale, other, n);
}

template <class Row>
SKIM_INLINE void add_scaled_of(Row row, float factor, float* target, std::int64_t n) {
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) {
    simd::store(target + d, simd::fma(simd::load(row + d), simd::floats(factor), simd::load(target + d)));
  }
  for (; d < n; ++d) target[d] += to_float(row[d]) * factor;
}

/// row . other
SKIM_INLINE float dot(const stored_row& row, const float* other, std::int64_t n) {
  float sum = 0;
  with_row(row, [&](auto values) SKIM_LAMBDA_INLINE { sum = dot_of(values, other, n); });
  return sum * row.scale;
}

/// `distance` where f32 squares overflow or lose digits.
SKIM_NOINLINE inline float distance_by_f64(const stored_row& row, const float* other, std::int64_t n) {
  double squares = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const double difference =
        static_cast<double>(load_element(row.data, row.type, d)) * static_cast<double>(row.scale) -
        static_cast<double>(other[d]);
    squares += difference * difference;
  }
  const double most = static_cast<double>((std::numeric_limits<float>::max)()), length = std::sqrt(squares);
  return static_cast<float>(length > most && std::isfinite(length) ? most : length);
}

/// |row - other|; at most the largest f32.
SKIM_INLINE float distance(const stored_row& row, const float* other, std::int64_t n) {
  float squares = 0;
  with_row(row, [&](auto values) SKIM_LAMBDA_INLINE { squares = squared_distance_of(values, row.scale, other, n); });
  return squares > 1e-30f && squares < 1e38f ? std::sqrt(squares) : distance_by_f64(row, other, n);
}

/// target += factor * row
SKIM_INLINE void add_scaled(const stored_row& row, float factor, float* target, std::int64_t n) {
  with_row(row, [&](auto values) SKIM_LAMBDA_INLINE { add_scaled_of(values, factor * row.scale, target, n); });
}

SKIM_INLINE bool is_finite(float x) {
  return std::fabs(x) <= (std::numeric_limits<float>::max)();
}

SKIM_INLINE bool all_finite(const float* row, std::int64_t n) {
  const simd::floats zero(0.0f);
  simd::floats spoilt = zero;
  std::int64_t d = 0;
  for (; d + simd::lanes <= n; d += simd::lanes) spoilt = simd::fma(simd::load(row + d), zero, spoilt);
  bool finite = xsimd::all(spoilt == zero);
  for (; d < n; ++d) finite &= is_finite(row[d]);
  return finite;
}

/// 1 / |k| for a sum of squares; 0 for a zero key, infinity where |k| is below 2^-128. Where f32 squares overflow or lose
/// digits, sums again in f64.
SKIM_INLINE float inverse_norm(float squares, const stored_row& row, std::int64_t n) {
  if (squares > 1e-30f && squares < 1e38f) return 1.0f / std::sqrt(squares);
  double exact = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const double x = static_cast<double>(load_element(row.data, row.type, d)) * static_cast<double>(row.scale);
    exact += x * x;
  }
  return exact == 0 ? 0.0f : static_cast<float>(1 / std::sqrt(exact));
}

/// Whether 1 / |row| is a factor for f32: squares and products of such rows neither overflow nor vanish.
inline constexpr float least_inverse = 1e-18f, most_inverse = 1e15f;
SKIM_INLINE bool is_usable(float inverse_length) {
  using skim::detail::bits_from_float;  // as numbers: one comparison, which NaN fails too
  return bits_from_float(inverse_length) - bits_from_float(least_inverse) <
         bits_from_float(most_inverse) - bits_from_float(least_inverse);
}

/// For other rows: multiplies the row by the power of two that brings its largest number into [1, 2), and returns 1 / |row|
/// of what is there then. 0 for a row of zeros, NaN for one with an infinity or NaN, which stay as they are. The row was
/// 2^`exponent` times what it is; its elements are `stride` apart.
SKIM_NOINLINE inline float scale_to_one(float* row, std::int64_t n, std::int32_t* exponent = nullptr,
                                        std::int64_t stride = 1) {
  float largest = 0, spoilt = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const float size = std::fabs(row[d * stride]);
    largest = size > largest ? size : largest;
    spoilt += row[d * stride] * 0;
  }
  if (!(spoilt == 0)) return std::numeric_limits<float>::quiet_NaN();
  if (largest == 0) return 0;
  const int power = std::ilogb(largest);
  const double factor = std::ldexp(1.0, -power);
  double squares = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    row[d * stride] = static_cast<float>(static_cast<double>(row[d * stride]) * factor);
    squares += static_cast<double>(row[d * stride]) * static_cast<double>(row[d * stride]);
  }
  if (exponent) *exponent = power;
  return static_cast<float>(1 / std::sqrt(squares));
}

/// The scale with which a row's largest number is the largest that its type holds; 1 for a type that needs none. NaN for a
/// row with an infinity or NaN, which such a type cannot hold: all of the row then reads as NaN.
SKIM_INLINE float scale_for(const stored_row& row, std::int64_t n, element type) {
  const float range = format_of(type).range;
  if (range == 0) return 1;
  float largest = 0, spoilt = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const float value = load_element(row.data, row.type, d), size = std::fabs(value);
    largest = size > largest ? size : largest;
    spoilt += value * 0;
  }
  if (!(spoilt == 0)) return std::numeric_limits<float>::quiet_NaN();
  if (largest == 0) return 1;
  const float scale = largest / range, least = (std::numeric_limits<float>::min)();  // whose inverse is finite
  return scale > least ? scale : least;
}

/// Stores row `slot` of one of the cache's tensors, with its scale where it has scales. Returns the sum of squares of the
/// stored values.
SKIM_INLINE float store_row(const kv_cache& kv, const kv_cache_tensor& tensor, std::int64_t head, std::int64_t slot,
                            const stored_row& given) {
  constexpr std::int64_t piece = 8 * simd::lanes;  // whole blocks
  const std::int64_t n = tensor.dim;
  const float scale = tensor.scales ? scale_for(given, n, tensor.type) : 1;
  if (tensor.scales) kv.scale(tensor, head, slot) = scale;
  char* const stored = static_cast<char*>(kv.row_address(tensor, head, slot));
  float values[piece];
  simd::floats squares(0.0f);
  float tail = 0;
  for (std::int64_t begin = 0; begin < n; begin += piece) {
    const std::int64_t count = smaller(n - begin, piece);
    char* const target = stored + bytes_of(tensor.type, begin);
    widen({static_cast<const char*>(given.data) + bytes_of(given.type, begin), given.type}, count, values);
    scale_row(1 / scale, count, values);
    narrow(values, count, target, tensor.type);
    if (tensor.type != element::f32) widen({target, tensor.type, scale}, count, values);
    std::int64_t i = 0;
    for (; i + simd::lanes <= count; i += simd::lanes) {
      const simd::floats x = simd::load(static_cast<const float*>(values) + i);
      squares = simd::fma(x, x, squares);
    }
    for (; i < count; ++i) tail += values[i] * values[i];
  }
  return simd::sum(squares) + tail;
}

/// Brings a row of one of the cache's tensors to another slot, with its scale.
SKIM_INLINE void move_row(const kv_cache& kv, const kv_cache_tensor& tensor, std::int64_t head, std::int64_t source,
                          std::int64_t target) {
  std::memcpy(kv.row_address(tensor, head, target), kv.row_address(tensor, head, source),
              static_cast<std::size_t>(bytes_of(tensor.type, tensor.dim)));
  if (tensor.scales) kv.scale(tensor, head, target) = kv.scale(tensor, head, source);
}

/// Where the rows of a head of a cache's tensor, and of the heads behind it, lie: for loops over many of them.
class head_rows {
 public:
  SKIM_INLINE head_rows(const kv_view& kv, const kv_tensor& tensor, std::int64_t head)
      : head_bytes_(bytes_of(tensor.type, tensor.head_stride)),
        first_(static_cast<const char*>(tensor.data) + head * head_bytes_),
        row_bytes_(bytes_of(tensor.type, tensor.row_stride)),
        page_bytes_(kv.layout == kv_layout::paged ? bytes_of(tensor.type, tensor.page_stride) : 0),
        tensor_(&tensor),
        head_(head) {}

  SKIM_INLINE stored_row at(kv_place place, std::int64_t later_heads = 0) const {
    const char* const data = first_ + place.page * page_bytes_ + place.row * row_bytes_ + later_heads * head_bytes_;
    return {data, tensor_->type, tensor_->scales ? scale(place, head_ + later_heads) : 1.0f};
  }

 private:
  SKIM_INLINE float scale(kv_place at, std::int64_t head) const {
    return tensor_->scales[at.page * tensor_->scale_page_stride + at.row * tensor_->scale_row_stride +
                           head * tensor_->scale_head_stride];
  }

  std::int64_t head_bytes_;
  const char* first_;
  std::int64_t row_bytes_, page_bytes_;
  const kv_tensor* tensor_;
  std::int64_t head_;
};

inline constexpr std::int64_t rows_summed_apart = 256;  // which bounds the rounding error of a sum over a cache

/// total [dim] = sum over the head's slots of weights[slot] * row, or the rows' mean where `weights` is null. Left out are
/// weights that are not positive and rows with an infinity or NaN. `scratch [2, dim]`.
SKIM_NOINLINE inline void sum_rows(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, const float* weights,
                                   float* scratch, float* total) {
  const std::int64_t n = kv.length(head), dim = tensor.dim;
  const head_rows rows(kv, tensor, head);
  const float share = 1 / static_cast<float>(n);
  float *const sum = scratch, *const zeros = scratch + dim;
  for (std::int64_t d = 0; d < dim; ++d) total[d] = zeros[d] = 0;
  for (std::int64_t begin = 0; begin < n; begin += rows_summed_apart) {
    for (std::int64_t d = 0; d < dim; ++d) sum[d] = 0;
    for (std::int64_t slot = begin; slot < n && slot < begin + rows_summed_apart; ++slot) {
      const float weight = weights ? weights[slot] : share;
      if (!(weight > 0)) continue;
      const stored_row row = rows.at(kv.place(slot));
      with_row(row, [&](auto values) SKIM_LAMBDA_INLINE {
        const bool finite = dot_of(values, zeros, dim) * row.scale == 0;  // infinity and NaN times 0 are NaN
        if (finite) add_scaled_of(values, weight * row.scale, sum, dim);
      });
    }
    for (std::int64_t d = 0; d < dim; ++d) total[d] += sum[d];
  }
}

/// Cuts the cache's slots into pieces for loops that stream K or V. In token-major storage one piece takes all heads of
/// its slots, so that memory is read in order; else each head has pieces of its own.
struct stream_plan {
  std::int64_t slot_count, heads, pieces, unit_heads;
  static constexpr std::int64_t piece_slots = 256;  // of 8 heads and 128 dimensions: 512 KiB of bf16

  SKIM_INLINE stream_plan(const kv_view& kv, const kv_tensor& tensor)
      : slot_count(kv.tokens),
        heads(kv.heads),
        pieces((kv.tokens + piece_slots - 1) / piece_slots),
        unit_heads(tensor.head_stride < tensor.row_stride ? kv.heads : 1) {}

  SKIM_INLINE std::int64_t units() const { return pieces * (heads / unit_heads); }
  SKIM_INLINE std::int64_t piece(std::int64_t unit) const { return unit % pieces; }

  /// Calls `body(head, slot, row)` for the rows of a unit that exist, in the order of memory.
  template <class Body>
  SKIM_INLINE void for_each_row(const kv_view& kv, const kv_tensor& tensor, std::int64_t unit, const Body& body) const {
    const std::int64_t first_head = unit / pieces * unit_heads, begin = piece(unit) * piece_slots;
    const std::int64_t end = smaller(begin + piece_slots, slot_count);
    const head_rows rows(kv, tensor, 0);
    for (std::int64_t slot = begin; slot < end; ++slot) {
      const kv_place place = kv.place(slot);
      for (std::int64_t head = first_head; head < first_head + unit_heads; ++head) {
        if (slot < kv.length(head)) body(head, slot, rows.at(place, head));
      }
    }
  }
};

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
