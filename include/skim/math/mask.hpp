// SPDX-License-Identifier: Apache-2.0
/// \file Which keys a query may see, by position.
#pragma once

#include <skim/config.hpp>

namespace skim { inline namespace v0_2 {

/// Positions [begin, end).
struct position_range {
  std::int64_t begin = 0, end = 0;
};

/// A query at position p sees the keys at positions [p - left, p + right]: causal, sliding-window and full attention
/// are one rule with other bounds, which kernels read at run time. Positions are 32-bit values (see `kv_view`).
///
/// `visible` is the definition; `keys` and `covers` are shortcuts for whole tiles.
struct mask {
  static constexpr std::int64_t unbounded = std::int64_t{1} << 40;  // beyond any 32-bit position; sums cannot overflow

  std::int64_t left = unbounded;
  std::int64_t right = 0;

  SKIM_HD static constexpr mask full() { return {unbounded, unbounded}; }
  SKIM_HD static constexpr mask causal() { return {unbounded, 0}; }
  /// Causal, and at most `tokens` keys back, the query's own position included.
  SKIM_HD static constexpr mask window(std::int64_t tokens) { return {tokens - 1, 0}; }

  SKIM_HD SKIM_INLINE constexpr bool visible(std::int64_t q, std::int64_t k) const {
    return q - left <= k && k <= q + right;
  }

  /// The positions that some query of a nonempty tile `q` sees; `visible` is false outside.
  SKIM_HD SKIM_INLINE constexpr position_range keys(position_range q) const { return {q.begin - left, q.end + right}; }

  /// True if every query of the nonempty tile `q` sees every key of the nonempty tile `k`.
  SKIM_HD SKIM_INLINE constexpr bool covers(position_range q, position_range k) const {
    return q.end - 1 - left <= k.begin && k.end - 1 <= q.begin + right;
  }
};

}}  // namespace skim::v0_2
