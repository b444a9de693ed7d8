// SPDX-License-Identifier: Apache-2.0
/// \file Element types: f32 (float), f16 and bf16 as two-byte structs, 8-bit integers, blocks of them; their scalar
/// conversions, and what a stored row is.
#pragma once

#include <skim/config.hpp>

#include <cstring>
#include <type_traits>

namespace skim { inline namespace v0_2 {

/// IEEE 754 binary16. The bits are those of `_Float16`, `__half` and `Eigen::half`, and a view may point at them: without
/// "may alias", GCC 12 reorders the host's stores to its own type and loads through this one.
struct SKIM_MAY_ALIAS f16 {
  std::uint16_t bits;
};

/// The upper half of a binary32. The bits are those of `__nv_bfloat16` and `Eigen::bfloat16`.
struct SKIM_MAY_ALIAS bf16 {
  std::uint16_t bits;
};

/// A block of ggml's Q8_0: 32 numbers that belong together, integers from -127 to 127 times one scale.
struct SKIM_MAY_ALIAS q8_0 {
  f16 scale;
  std::int8_t values[32];
};

/// What a view with an erased element type (`T = void`) points to. A stored type's number is its place in `stored_types`.
enum class element : std::uint8_t {
  none,
  f32,
  f16,
  bf16,
  q8_0,  ///< ggml's blocks; sizes and strides are whole blocks
  int8,  ///< integers from -127 to 127, meant to be scaled: see `basic_kv_tensor::scales`
};

namespace detail {

template <class... T>
struct type_list {};

/// The types of stored elements, in the order of `element`. A new one is an entry here, `to_float` and `from_float` for it
/// beside its definition and, for speed, `cpu::simd::load` and `store`; tests add one by this macro.
#if defined(SKIM_ONE_MORE_STORED_TYPE)
using stored_types = type_list<float, f16, bf16, q8_0, std::int8_t, SKIM_ONE_MORE_STORED_TYPE>;
#else
using stored_types = type_list<float, f16, bf16, q8_0, std::int8_t>;
#endif

/// Numbers that one T holds.
template <class T>
inline constexpr std::int64_t block_values = 1;
template <>
inline constexpr std::int64_t block_values<q8_0> = 32;

template <class T, class... Stored>
SKIM_HD constexpr element find_element(type_list<Stored...>) {
  constexpr bool same[] = {std::is_same_v<T, Stored>...};
  for (std::size_t i = 0; i < sizeof...(Stored); ++i) {
    if (same[i]) return static_cast<element>(i + 1);
  }
  return element::none;
}

/// What `stored_range` answers for types that are stored as they are.
template <class T>
SKIM_HD constexpr float stored_range(T) {
  return 0;
}
SKIM_HD constexpr float stored_range(std::int8_t) {
  return 127;
}

struct size_of_stored {
  template <class T>
  SKIM_HD constexpr std::int64_t operator()(T) const {
    return static_cast<std::int64_t>(sizeof(T));
  }
};
struct values_of_stored {
  template <class T>
  SKIM_HD constexpr std::int64_t operator()(T) const {
    return block_values<T>;
  }
};
struct range_of_stored {
  template <class T>
  SKIM_HD constexpr float operator()(T stored) const {
    return stored_range(stored);
  }
};

/// `number(T{})` of the C++ type that is `type`; 0 where there is none.
template <class Number, class... Stored>
SKIM_HD SKIM_INLINE constexpr auto find_number(element type, type_list<Stored...>, Number number) {
  decltype(number(0.0f)) found = 0;  // comparisons: a table would be built anew at each call
  ((found = type == find_element<Stored>(type_list<Stored...>{}) ? number(Stored{}) : found), ...);
  return found;
}

}  // namespace detail

/// `element_of<T>`: the tag of a C++ type; `none` for every type that is no tensor element.
template <class T>
inline constexpr element element_of = detail::find_element<T>(detail::stored_types{});

/// How elements of a type lie in memory: `values` of them, which belong together, take `bytes`. `range` is the largest
/// number that the type holds where it is meant to be scaled to that, 0 where it is not.
struct element_format {
  std::int64_t values = 1, bytes = 0;
  float range = 0;
};

SKIM_HD SKIM_INLINE constexpr element_format format_of(element type) {
  element_format format;
  format.bytes = detail::find_number(type, detail::stored_types{}, detail::size_of_stored{});
  const std::int64_t values = detail::find_number(type, detail::stored_types{}, detail::values_of_stored{});
  format.values = values > 0 ? values : 1;
  format.range = detail::find_number(type, detail::stored_types{}, detail::range_of_stored{});
  return format;
}

/// Bytes of `values` elements, a number of whole blocks; negative for a negative number.
SKIM_HD SKIM_INLINE constexpr std::int64_t bytes_of(element type, std::int64_t values) {
  const element_format format = format_of(type);
  return values / format.values * format.bytes;
}

/// True for the types that views may have.
SKIM_HD SKIM_INLINE constexpr bool is_stored(element type) {
  return format_of(type).bytes > 0;
}

/// Types whose numbers are 8-bit integers times a scale.
SKIM_HD SKIM_INLINE constexpr bool has_8_bits(element type) {
  return type == element::q8_0 || type == element::int8;
}

SKIM_LOCAL constexpr const char* to_string(element type) {
  switch (type) {
    case element::none:
      return "none";
    case element::f32:
      return "f32";
    case element::f16:
      return "f16";
    case element::bf16:
      return "bf16";
    case element::q8_0:
      return "q8_0";
    case element::int8:
      return "int8";
  }
  return "an unknown type";
}

namespace detail {

SKIM_HD SKIM_INLINE float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SKIM_HD SKIM_INLINE std::uint32_t bits_from_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace detail

/// Exact for every value; a NaN stays a NaN.
SKIM_HD SKIM_INLINE float to_float(float value) {
  return value;
}

/// Exact for every value.
SKIM_HD SKIM_INLINE float to_float(bf16 value) {
  return detail::float_from_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

/// Exact for every value, subnormals included.
SKIM_HD SKIM_INLINE float to_float(f16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN: the exponent becomes all ones, the payload moves up
    return detail::float_from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x400u) {  // subnormal: a multiple of 2^-24, made without f32 subnormals, which some hosts flush
    const float size = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return detail::float_from_bits(sign | detail::bits_from_float(size));
  }
  return detail::float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

/// Exact.
SKIM_HD SKIM_INLINE float to_float(std::int8_t value) {
  return static_cast<float>(value);
}

/// Number `i` of a block; exact, for f32 has digits enough for the product. By bytes: compilers think of whole blocks where a
/// type is known at run time only, and warn of memory that holds a number of another.
SKIM_HD SKIM_INLINE float to_float(const q8_0& block, std::int64_t i) {
  f16 scale;
  std::int8_t value;
  std::memcpy(&scale, reinterpret_cast<const char*>(&block), sizeof scale);
  std::memcpy(&value, reinterpret_cast<const char*>(&block) + sizeof scale + i, sizeof value);
  return to_float(scale) * to_float(value);
}

/// Rounds to nearest, ties to even.
template <class T>
SKIM_HD SKIM_INLINE T from_float(float value);

template <>
SKIM_HD SKIM_INLINE float from_float<float>(float value) {
  return value;
}

template <>
SKIM_HD SKIM_INLINE bf16 from_float<bf16>(float value) {
  const std::uint32_t bits = detail::bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN: set the quiet bit, so that rounding cannot make it infinite
    return bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  }
  return bf16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
SKIM_HD SKIM_INLINE f16 from_float<f16>(float value) {
  const std::uint32_t bits = detail::bits_from_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520, the midpoint above the largest f16, and beyond
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 aligns the subnormal's last bit and rounds it
    half = detail::bits_from_float(detail::float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return f16{static_cast<std::uint16_t>(sign | half)};
}

/// At most 127 in size; NaN becomes 0.
template <>
SKIM_HD SKIM_INLINE std::int8_t from_float<std::int8_t>(float value) {
  const float inside = value > 127 ? 127.0f : value < -127 ? -127.0f : value == value ? value : 0.0f;
  const float shifted =
      inside + 0x1.8p23f;  // where f32 has no fractions: the sum rounds, and its bits end in the integer's
  return static_cast<std::int8_t>(detail::bits_from_float(shifted) & 0xffu);
}

namespace detail {

/// The scale of a block whose largest number has this size: the smallest f16 of which 127 times is no less. NaN, which all
/// of the block then reads as, for an infinity, a NaN, or where there is none (beyond 127 * 65504).
SKIM_HD SKIM_INLINE f16 scale_of_block(float largest) {
  constexpr f16 nan{0x7e00u};
  const float wanted = largest / 127;
  if (!(wanted <= 65504.0f)) return nan;
  f16 scale = from_float<f16>(wanted);
  if (to_float(scale) < wanted) ++scale.bits;
  return scale;
}

/// The same of 32 numbers of a query that meets keys of 8 bits, kept in f32: up to 16 significant bits, so that 127 times it
/// is exact, and rounding what is rounded changes nothing.
SKIM_HD SKIM_INLINE float scale_of_query_block(float largest) {
  return float_from_bits((bits_from_float(largest / 127) + 0xffu) & ~0xffu);
}

/// The numbers of a row of blocks by their index, as a pointer to elements gives others.
template <class Block>
struct block_row {
  const Block* blocks;
  std::int64_t first;  // number

  SKIM_HD SKIM_INLINE block_row operator+(std::int64_t n) const { return {blocks, first + n}; }
  SKIM_HD SKIM_INLINE float operator[](std::int64_t i) const {
    const std::int64_t at = first + i;
    return to_float(blocks[at / block_values<Block>], at % block_values<Block>);
  }
};

/// What `row[i]`, `row + i`, `to_float(row[i])` and `cpu::simd::load(row + i)` take for a row of a type.
template <class T>
SKIM_HD SKIM_INLINE auto row_at(const void* data) {
  if constexpr (block_values<T> == 1) {
    return static_cast<const T*>(data);
  } else {
    return block_row<T>{static_cast<const T*>(data), 0};
  }
}

template <class Body>
SKIM_HD SKIM_INLINE void with_stored_type(element, type_list<>, const Body&) {}

/// Calls `body(T{})`, T being the C++ type of `type`; does nothing where there is none.
SKIM_HD_AS_BODY
template <class T, class... Others, class Body>
SKIM_HD SKIM_INLINE void with_stored_type(element type, type_list<T, Others...>, const Body& body) {
  if (type == element_of<T>) {
    body(T{});
  } else {
    with_stored_type(type, type_list<Others...>{}, body);
  }
}

}  // namespace detail

/// Reads number `index` of an array whose type is known at run time only. For loops where speed does not matter.
SKIM_HD SKIM_INLINE float load_element(const void* data, element type, std::int64_t index) {
  float value = 0;
  detail::with_stored_type(type, detail::stored_types{},
                           [&](auto t) { value = to_float(detail::row_at<decltype(t)>(data)[index]); });
  return value;
}

/// Writes number `index`, rounded to nearest even; of a type whose numbers stand alone.
SKIM_HD SKIM_INLINE void store_element(void* data, element type, std::int64_t index, float value) {
  detail::with_stored_type(type, detail::stored_types{}, [&](auto t) {
    using T = decltype(t);
    if constexpr (detail::block_values<T> == 1) static_cast<T*>(data)[index] = from_float<T>(value);
  });
}

/// Writes a block of ggml's Q8_0: the numbers over the block's scale (see `scale_of_block`), to nearest even. ggml's own
/// rounds that scale to nearest, with which the largest number may be cut.
SKIM_HD SKIM_INLINE q8_0 block_from_floats(const float* values) {
  q8_0 block{};
  float largest = 0, spoilt = 0;
  for (int i = 0; i < 32; ++i) {
    const float size = values[i] < 0 ? -values[i] : values[i];
    largest = size > largest ? size : largest;
    spoilt += values[i] * 0;
  }
  block.scale = detail::scale_of_block(spoilt == 0 ? largest : spoilt);
  const float scale = to_float(block.scale), factor = scale > 0 ? 1 / scale : 0.0f;
  for (int i = 0; i < 32; ++i) block.values[i] = from_float<std::int8_t>(values[i] * factor);
  return block;
}

/// Writes `count` numbers, whole blocks, from the beginning of a row on.
SKIM_HD SKIM_INLINE void store_elements(void* data, element type, const float* values, std::int64_t count) {
  if (type == element::q8_0) {
    for (std::int64_t i = 0; i < count; i += 32) static_cast<q8_0*>(data)[i / 32] = block_from_floats(values + i);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) store_element(data, type, i, values[i]);
}

/// One row of keys, values or weights as it is stored: numbers of `type`, times `scale`.
struct stored_row {
  const void* data;
  element type;
  float scale = 1;
};

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2, "16-bit storage types must be two bytes");
static_assert(sizeof(q8_0) == 34, "blocks follow each other without gaps");
static_assert(std::is_trivially_copyable_v<f16> && std::is_trivially_copyable_v<bf16>, "storage types are plain bits");

}}  // namespace skim::v0_2
