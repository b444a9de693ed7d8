// SPDX-License-Identifier: Apache-2.0
/// \file The highest of n unsigned ranks by a radix select (11 + 11 + 10 bits): no sort, no allocation.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/workspace.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t histogram_bins = 2048;

/// Entries of a rank above `rank` are taken, and `ties` of the `equals` that have it.
struct rank_threshold {
  std::uint32_t rank;
  std::int64_t ties, equals;
};

/// The threshold that takes `count` >= 1 of `n` >= count entries; `key(i)` is an entry's rank.
template <class Key>
SKIM_INLINE rank_threshold find_threshold(const Key& key, std::int64_t n, std::int64_t count, std::int32_t* histogram) {
  constexpr int shifts[4] = {32, 21, 10, 0};  // bits [31:21], [20:10], [9:0]
  std::uint32_t prefix = 0;
  std::int64_t equals = 0;
  for (int digit = 1; digit <= 3; ++digit) {
    const int shift = shifts[digit];
    const std::uint64_t above = std::uint64_t{prefix} >> shifts[digit - 1];
    const std::uint32_t bits = (1u << (shifts[digit - 1] - shift)) - 1;
    for (std::int64_t bin = 0; bin < histogram_bins; ++bin) histogram[bin] = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint32_t rank = key(i);
      if (std::uint64_t{rank} >> shifts[digit - 1] == above) ++histogram[(rank >> shift) & bits];
    }
    std::int64_t bin = bits;
    while (histogram[bin] < count) count -= histogram[bin--];
    prefix |= static_cast<std::uint32_t>(bin) << shift;
    equals = histogram[bin];
  }
  return {prefix, count, equals};
}

/// Calls `take(i)` in ascending order for the entries that a threshold admits; of equal ranks the first.
template <class Key, class Take>
SKIM_INLINE void take_above(const Key& key, std::int64_t n, rank_threshold limit, const Take& take) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t rank = key(i);
    if (rank > limit.rank) {
      take(i);
    } else if (rank == limit.rank && limit.ties > 0) {
      --limit.ties;
      take(i);
    }
  }
}

/// Scratch of a choice among n entries.
struct rank_scratch {
  std::uint32_t* ranks;     // [n]
  std::int32_t* histogram;  // [2048]

  rank_scratch(arena& arena, std::int64_t n)
      : ranks(arena.take<std::uint32_t>(n)), histogram(arena.take<std::int32_t>(histogram_bins)) {}
};

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
