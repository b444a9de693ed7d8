// SPDX-License-Identifier: Apache-2.0
/// \file What a selector answers: per KV head, the slots that a chunk reads.
#pragma once

#include <skim/status.hpp>

#include <type_traits>

namespace skim {
inline namespace v0 {

/// Slots of past tokens per KV head, ascending and without repeats. Memory is the caller's.
///
/// With several sequences, sequence s and head h stand in row `s * Hk + h`.
struct index_lists {
  std::int32_t* indices = nullptr;  ///< [rows, capacity]
  std::int32_t* counts = nullptr;   ///< [rows]: how many of each row are in use
  std::int64_t rows = 0;            ///< Hk, or sequences * Hk
  std::int64_t capacity = 0;        ///< row length and row stride, in elements

  SKIM_HD SKIM_INLINE std::int32_t* row(std::int64_t r) const { return indices + r * capacity; }
};

static_assert(std::is_trivially_copyable_v<index_lists>, "lists cross to devices as plain bytes");

namespace detail {

/// fraction * all, rounded up; but a product that only rounding puts above a whole number is that number: 55 for 0.55 of
/// 100, although 0.55 * 100.0 > 55.
SKIM_HD SKIM_INLINE constexpr std::int64_t share_of(double fraction, std::int64_t all) {
  const double exact = fraction * static_cast<double>(all) * (1 - 0x1p-50);
  const std::int64_t whole = static_cast<std::int64_t>(exact);
  return static_cast<double>(whole) < exact ? whole + 1 : whole;
}

/// Whether the lists have `rows` rows of at least `capacity` entries. Follows no pointer.
SKIM_INLINE constexpr report check_room(const index_lists& lists, std::int64_t rows, std::int64_t capacity) {
  if (lists.rows != rows) return fault(status::bad_extent, "lists.rows", lists.rows, rows);
  if (lists.capacity < capacity) {
    return fault(status::bad_extent, "lists.capacity", lists.capacity, capacity, "at least");
  }
  if (!lists.counts) return null_fault("lists.counts");
  if (lists.capacity > 0 && !lists.indices) return null_fault("lists.indices");
  return {};
}

}  // namespace detail
}  // namespace v0
}  // namespace skim
