// SPDX-License-Identifier: Apache-2.0
/// \file A stored type that the library does not know: 16-bit integers with a scale for each row. Include it before anything of
/// skim. What it takes to add a type is what stands here, and what the library must not need is anything else.
#pragma once

#include <skim/config.hpp>

#include <cmath>

namespace skim_test {

struct SKIM_MAY_ALIAS scaled_i16 {
  std::int16_t bits;
};

constexpr float stored_range(scaled_i16) {
  return 32767;
}

SKIM_INLINE float to_float(scaled_i16 value) {
  return static_cast<float>(value.bits);
}

}  // namespace skim_test

#define SKIM_ONE_MORE_STORED_TYPE skim_test::scaled_i16
#include <skim/types.hpp>

namespace skim {

/// To nearest even; it has no NaN.
template <>
SKIM_INLINE skim_test::scaled_i16 from_float<skim_test::scaled_i16>(float value) {
  const float nearest = std::nearbyint(value);
  const float inside = nearest > 32767 ? 32767 : nearest < -32767 ? -32767 : nearest == nearest ? nearest : 0;
  return {static_cast<std::int16_t>(inside)};
}

}  // namespace skim

namespace skim_test {

inline constexpr skim::element i16 = skim::element_of<scaled_i16>;

}  // namespace skim_test
