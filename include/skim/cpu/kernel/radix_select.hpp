// SPDX-License-Identifier: Apache-2.0
/// \file The highest of n unsigned ranks by a radix select: no sort, no allocation.
///
/// A digit is cut from the range of ranks that can still hold the threshold, not from all 32 bits: scores that lie close to
/// each other fall into many bins, and increments of one bin do not wait for each other.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/math/order.hpp>
#include <skim/workspace.hpp>

#include <limits>
#include <type_traits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t histogram_bins = 2048;
inline constexpr std::uint32_t highest_rank = 0xffffffffu;
inline constexpr std::int32_t first_signed = (std::numeric_limits<std::int32_t>::min)();
inline constexpr std::int32_t last_signed = (std::numeric_limits<std::int32_t>::max)();

/// Entries of a rank above `rank` are taken, and `ties` of the `equals` that have it.
struct rank_threshold {
  std::uint32_t rank;
  std::int64_t ties, equals;
};

/// Ranks that are stored: loops look at a vector of them at a time.
struct stored_ranks {
  const std::uint32_t* data;

  SKIM_INLINE std::uint32_t operator()(std::int64_t i) const { return data[i]; }
  /// A signed integer of the same order.
  SKIM_INLINE static std::int32_t in_order(std::uint32_t rank) {
    return static_cast<std::int32_t>(static_cast<std::int64_t>(rank) + first_signed);
  }
  SKIM_INLINE simd::ints vector(std::int64_t i) const {
    return simd::load(reinterpret_cast<const std::int32_t*>(data + i)) ^ simd::ints(first_signed);
  }
};

/// ranks [n] = `rank_bits` of the scores.
SKIM_NOINLINE inline void rank_scores(const float* scores, std::int64_t n, std::uint32_t* ranks) {
  std::int64_t i = 0;
  for (; i + simd::lanes <= n; i += simd::lanes) {
    const simd::floats score = simd::load(scores + i);
    const simd::ints bits = simd::as_ints(score), sign(first_signed);
    const simd::ints ordered = bits ^ ((bits >> 31) | sign);  // all bits of a negative number, the sign of others
    const simd::floats rank =
        xsimd::select(score == simd::floats(0.0f), simd::as_floats(sign), simd::as_floats(ordered));
    const simd::floats known = xsimd::select(simd::is_number(score), rank, simd::as_floats(simd::ints(1)));
    simd::store(reinterpret_cast<std::int32_t*>(ranks + i), simd::as_ints(known));
  }
  for (; i < n; ++i) ranks[i] = rank_bits(scores[i]);
}

/// Calls `body(i, rank)` in ascending order for the entries of [0, n) whose ranks lie in [low, high].
template <class Key, class Body>
SKIM_INLINE void each_between(const Key& key, std::int64_t n, std::uint32_t low, std::uint32_t high, const Body& body) {
  std::int64_t i = 0;
  if constexpr (std::is_same_v<Key, stored_ranks>) {
    const simd::ints least(Key::in_order(low)), most(Key::in_order(high));
    for (; i + simd::lanes <= n; i += simd::lanes) {
      const simd::ints ranks = key.vector(i);
      for (std::uint32_t bits = simd::bits_of(simd::as_float_mask((ranks >= least) & (ranks <= most))); bits != 0;
           bits &= bits - 1) {
        const std::int64_t place = i + simd::lowest_bit(bits);
        body(place, key(place));
      }
    }
  }
  for (; i < n; ++i) {
    const std::uint32_t rank = key(i);
    if (rank >= low && rank <= high) body(i, rank);
  }
}

/// The range of all ranks but `highest_rank` and 0, and how many there are in it and at its top.
struct rank_range {
  std::uint32_t low = highest_rank, high = 0;
  std::int64_t count = 0, highest = 0;

  template <class Key>
  SKIM_INLINE rank_range(const Key& key, std::int64_t n) {
    std::int64_t i = 0;
    if constexpr (std::is_same_v<Key, stored_ranks>) {
      const simd::ints first(first_signed), last(last_signed), none(0), one(1);
      simd::ints least = last, most = first, between = none, tops = none;
      for (; i + simd::lanes <= n; i += simd::lanes) {
        const simd::ints ranks = key.vector(i);
        const auto inside = (ranks != first) & (ranks != last);
        least = simd::smaller(least, simd::select(inside, ranks, last));
        most = simd::larger(most, simd::select(inside, ranks, first));
        between = between + simd::select(inside, one, none);
        tops = tops + simd::select(ranks == last, one, none);
      }
      std::int32_t lows[simd::lanes], highs[simd::lanes], counts[simd::lanes], highests[simd::lanes];
      simd::store(lows, least);
      simd::store(highs, most);
      simd::store(counts, between);
      simd::store(highests, tops);
      for (std::int64_t lane = 0; lane < simd::lanes; ++lane) {
        take(static_cast<std::uint32_t>(lows[lane]) ^ 0x80000000u, 0);
        take(static_cast<std::uint32_t>(highs[lane]) ^ 0x80000000u, 0);
        count += counts[lane];
        highest += highests[lane];
      }
    }
    for (; i < n; ++i) take(key(i), 1);
  }

 private:
  SKIM_INLINE void take(std::uint32_t rank, std::int64_t some) {
    if (rank == highest_rank) highest += some;
    if (rank == highest_rank || rank == 0) return;
    low = rank < low ? rank : low;
    high = rank > high ? rank : high;
    count += some;
  }
};

/// The threshold that takes `count` >= 1 of `n` >= count entries; `key(i)` is an entry's rank.
template <class Key>
SKIM_INLINE rank_threshold find_threshold(const Key& key, std::int64_t n, std::int64_t count, std::int32_t* histogram) {
  const rank_range range(key, n);
  if (count <= range.highest) return {highest_rank, count, range.highest};
  count -= range.highest;
  if (count > range.count) return {0, count - range.count, n - range.highest - range.count};
  std::uint32_t low = range.low, high = range.high;
  for (bool most = 2 * range.count > n;; most = false) {
    int shift = 0;
    while ((high - low) >> shift >= histogram_bins) ++shift;
    std::int64_t bin = (high - low) >> shift;
    for (std::int64_t i = 0; i <= bin; ++i) histogram[i] = 0;
    if (most) {  // not worth a look at a vector of them
      for (std::int64_t i = 0; i < n; ++i) {
        const std::uint32_t place = key(i) - low;
        if (place <= high - low) ++histogram[place >> shift];
      }
    } else {
      each_between(key, n, low, high,
                   [&](std::int64_t, std::uint32_t rank) SKIM_LAMBDA_INLINE { ++histogram[(rank - low) >> shift]; });
    }
    while (histogram[bin] < count) count -= histogram[bin--];
    low += static_cast<std::uint32_t>(bin) << shift;
    if (shift == 0) return {low, count, histogram[bin]};
    const std::uint32_t wide = (1u << shift) - 1;
    high = high - low < wide ? high : low + wide;
  }
}

/// Calls `take(i)` in ascending order for the entries that a threshold admits; of equal ranks the first.
template <class Key, class Take>
SKIM_INLINE void take_above(const Key& key, std::int64_t n, rank_threshold limit, const Take& take) {
  each_between(key, n, limit.rank, highest_rank, [&](std::int64_t i, std::uint32_t rank) SKIM_LAMBDA_INLINE {
    if (rank == limit.rank && limit.ties-- <= 0) return;
    take(i);
  });
}

/// Scratch of a choice among n entries.
struct rank_scratch {
  std::uint32_t* ranks;     // [n]
  std::int32_t* histogram;  // [2048]

  rank_scratch(arena& arena, std::int64_t n)
      : ranks(arena.take<std::uint32_t>(n)), histogram(arena.take<std::int32_t>(histogram_bins)) {}
};

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
