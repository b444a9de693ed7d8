// SPDX-License-Identifier: Apache-2.0
/// \file What a selector answers: per KV head, the slots that a chunk reads.
#pragma once

#include <skim/config.hpp>

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

}  // namespace v0
}  // namespace skim
