// SPDX-License-Identifier: Apache-2.0
/// \file Random numbers that depend on nothing but a seed and a counter (SplitMix64), so that every worker and back-end
/// draws the same.
#pragma once

#include <skim/config.hpp>

namespace skim { inline namespace v0_2 {

/// Number `counter` of the stream `seed`.
SKIM_HD SKIM_INLINE std::uint64_t draw(std::uint64_t seed, std::uint64_t counter) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15u * (counter + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// The same as a number in [0, 1).
SKIM_HD SKIM_INLINE float draw_uniform(std::uint64_t seed, std::uint64_t counter) {
  return static_cast<float>(draw(seed, counter) >> 40) * 0x1p-24f;
}

}}  // namespace skim::v0_2
