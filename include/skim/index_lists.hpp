// SPDX-License-Identifier: Apache-2.0
/// \file What a selector answers: per KV head, the slots that a chunk reads; what an evictor answers: those that stay.
#pragma once

#include <skim/status.hpp>

#include <type_traits>

namespace skim { inline namespace v0_2 {

/// Slots of past tokens per KV head, ascending and without repeats. Memory is the caller's.
///
/// The rows of q of a sequence fall into blocks of `block_rows`, which choose apart: block b begins at the sequence's row
/// `b * block_rows`, and its past is everything before it, the call's earlier rows included. A list row is (blocks before
/// it, of all sequences) * Hk + head. Lists of neurons and of an eviction have no blocks of rows.
struct index_lists {
  std::int32_t* indices = nullptr;  ///< [rows, capacity]
  std::int32_t* counts = nullptr;   ///< [rows]: how many of each row are in use
  std::int64_t rows = 0;            ///< blocks * Hk
  std::int64_t capacity = 0;        ///< row length and row stride, in elements
  std::int64_t block_rows = 0;      ///< rows of q that share a choice; 0 = all rows of a sequence

  SKIM_HD SKIM_INLINE std::int32_t* row(std::int64_t r) const { return indices + r * capacity; }
};

static_assert(std::is_trivially_copyable_v<index_lists>, "lists cross to devices as plain bytes");

}}  // namespace skim::v0_2
