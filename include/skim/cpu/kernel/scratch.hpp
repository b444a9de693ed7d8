// SPDX-License-Identifier: Apache-2.0
/// \file Small numbers that every kernel needs to lay out its scratch.
#pragma once

#include <skim/cpu/simd/compat.hpp>

#include <limits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

SKIM_INLINE constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
SKIM_INLINE constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
SKIM_INLINE constexpr std::int64_t greater(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}

/// a * b of numbers that are not negative; the largest number where that overflows.
SKIM_INLINE constexpr std::int64_t saturated(std::int64_t a, std::int64_t b) {
  constexpr std::int64_t most = (std::numeric_limits<std::int64_t>::max)();
  return a != 0 && b > most / a ? most : a * b;
}

/// A worker's piece of scratch.
SKIM_INLINE char* worker_piece(void* workspace, std::size_t bytes, unsigned worker) {
  return static_cast<char*>(workspace) + bytes * worker;
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
