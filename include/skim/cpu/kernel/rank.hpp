// SPDX-License-Identifier: Apache-2.0
/// \file Scores of one row as their ranks among them, sharpened.
#pragma once

#include <skim/cpu/kernel/position_order.hpp>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Row `row` of scores: (rank / n)^16, rank 1 for the lowest; in scratch of `order_bytes(n)`.
SKIM_NOINLINE inline void sharpen_row(const tensor_view<float, 2>& scores, std::int64_t row, void* place) {
  const std::int64_t n = scores.extents[1];
  arena arena(place);
  std::int32_t* const list = arena.take<std::int32_t>(n);
  const order_scratch scratch(arena, n);
  for (std::int64_t slot = 0; slot < n; ++slot) list[slot] = static_cast<std::int32_t>(slot);
  sort_slots([&](std::int32_t slot) SKIM_LAMBDA_INLINE { return rank_bits(*scores.at(row, slot)); }, list, n, scratch);
  for (std::int64_t i = 0; i < n; ++i) {
    double value = static_cast<double>(i + 1) / static_cast<double>(n);
    for (int square = 0; square < 4; ++square) value *= value;
    *scores.at(row, list[i]) = static_cast<float>(value);
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
