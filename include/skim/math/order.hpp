// SPDX-License-Identifier: Apache-2.0
/// \file The order in which scores rank: by value, -0 equal to +0, NaN below -inf.
#pragma once

#include <skim/types.hpp>

namespace skim { inline namespace v0_2 {

/// An unsigned number that compares as the score ranks; 0 is reserved for entries that are no candidates.
SKIM_HD SKIM_INLINE std::uint32_t rank_bits(float score) {
  const std::uint32_t bits = detail::bits_from_float(score);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 1;           // NaN
  if (magnitude == 0) return 0x80000000u;          // both zeros
  return bits >> 31 ? ~bits : bits | 0x80000000u;  // -inf becomes 0x007fffff
}

/// The score that has a rank; of both zeros +0, of all NaN one.
SKIM_HD SKIM_INLINE float score_of_rank(std::uint32_t rank) {
  if (rank == 1) return detail::float_from_bits(0x7fc00000u);
  return detail::float_from_bits(rank >> 31 ? rank & 0x7fffffffu : ~rank);
}

}}  // namespace skim::v0_2
