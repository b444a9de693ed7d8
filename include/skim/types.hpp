// SPDX-License-Identifier: Apache-2.0
/// \file Element types: f32 (float), f16 and bf16 as two-byte structs, and their scalar conversions.
#pragma once

#include <skim/config.hpp>

#include <cstring>
#include <type_traits>

namespace skim {
inline namespace v0 {

/// IEEE 754 binary16. The bits are those of `_Float16`, `__half` and `Eigen::half`, and a view may point at them: without
/// "may alias", GCC 12 reorders the host's stores to its own type and loads through this one.
struct SKIM_MAY_ALIAS f16 {
  std::uint16_t bits;
};

/// The upper half of a binary32. The bits are those of `__nv_bfloat16` and `Eigen::bfloat16`.
struct SKIM_MAY_ALIAS bf16 {
  std::uint16_t bits;
};

/// What a view with an erased element type (`T = void`) points to.
enum class element : std::uint8_t { none, f32, f16, bf16 };

SKIM_HD SKIM_INLINE constexpr std::int64_t element_bytes(element type) {
  return type == element::f32 ? 4 : type == element::none ? 0 : 2;
}

inline constexpr const char* to_string(element type) {
  return type == element::f32 ? "f32" : type == element::f16 ? "f16" : type == element::bf16 ? "bf16" : "none";
}

/// `element_of<T>`: the tag of a C++ type; `none` for every type that is no tensor element.
template <class T>
inline constexpr element element_of = element::none;
template <>
inline constexpr element element_of<float> = element::f32;
template <>
inline constexpr element element_of<f16> = element::f16;
template <>
inline constexpr element element_of<bf16> = element::bf16;

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

/// Reads element `index` of an array whose type is known at run time only. For loops where speed does not matter.
SKIM_HD inline float load_element(const void* data, element type, std::int64_t index) {
  if (type == element::f32) return static_cast<const float*>(data)[index];
  if (type == element::f16) return to_float(static_cast<const f16*>(data)[index]);
  return to_float(static_cast<const bf16*>(data)[index]);
}

/// Writes element `index`, rounded to nearest even.
SKIM_HD inline void store_element(void* data, element type, std::int64_t index, float value) {
  if (type == element::f32) {
    static_cast<float*>(data)[index] = value;
  } else if (type == element::f16) {
    static_cast<f16*>(data)[index] = from_float<f16>(value);
  } else {
    static_cast<bf16*>(data)[index] = from_float<bf16>(value);
  }
}

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2, "16-bit storage types must be two bytes");
static_assert(std::is_trivially_copyable_v<f16> && std::is_trivially_copyable_v<bf16>, "storage types are plain bits");

}  // namespace v0
}  // namespace skim
