// SPDX-License-Identifier: Apache-2.0
/// \file Element types: f32 (float), f16 and bf16 as two-byte structs, their scalar conversions, and what a stored row is.
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

/// What a view with an erased element type (`T = void`) points to. A stored type's number is its place in `stored_types`.
enum class element : std::uint8_t { none, f32, f16, bf16 };

namespace detail {

template <class... T>
struct type_list {};

/// The types of stored elements, in the order of `element`. A new one is an entry here, `to_float` and `from_float` for it
/// beside its definition and, for speed, `cpu::simd::load` and `store`; tests add one by this macro.
#if defined(SKIM_ONE_MORE_STORED_TYPE)
using stored_types = type_list<float, f16, bf16, SKIM_ONE_MORE_STORED_TYPE>;
#else
using stored_types = type_list<float, f16, bf16>;
#endif

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

struct size_of_stored {
  template <class T>
  SKIM_HD constexpr std::int64_t operator()(T) const {
    return static_cast<std::int64_t>(sizeof(T));
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

namespace detail {

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

/// Reads element `index` of an array whose type is known at run time only. For loops where speed does not matter.
SKIM_HD SKIM_INLINE float load_element(const void* data, element type, std::int64_t index) {
  float value = 0;
  detail::with_stored_type(type, detail::stored_types{},
                           [&](auto t) { value = to_float(static_cast<const decltype(t)*>(data)[index]); });
  return value;
}

/// Writes element `index`, rounded to nearest even.
SKIM_HD SKIM_INLINE void store_element(void* data, element type, std::int64_t index, float value) {
  detail::with_stored_type(type, detail::stored_types{},
                           [&](auto t) { static_cast<decltype(t)*>(data)[index] = from_float<decltype(t)>(value); });
}

/// One row of keys, values or weights as it is stored: elements of `type`, times `scale`.
struct stored_row {
  const void* data;
  element type;
  float scale = 1;
};

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2, "16-bit storage types must be two bytes");
static_assert(std::is_trivially_copyable_v<f16> && std::is_trivially_copyable_v<bf16>, "storage types are plain bits");

}}  // namespace skim::v0_2
