// SPDX-License-Identifier: Apache-2.0
/// \file Scores of one row as their ranks among them, sharpened.
#pragma once

#include <skim/cpu/kernel/position_order.hpp>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Row `row` of scores: (rank / n)^16, the rank being how many of the row are not above; in scratch of `order_bytes(n)`.
SKIM_NOINLINE inline void sharpen_row(const tensor_view<float, 2>& scores, std::int64_t row, void* place) {
  const std::int64_t n = scores.extents[1];
  arena arena(place);
  std::int32_t* const list = arena.take<std::int32_t>(n);
  const order_scratch scratch(arena, n);
  const auto bits = [&](std::int32_t slot) SKIM_LAMBDA_INLINE { return rank_bits(*scores.at(row, slot)); };
  for (std::int64_t slot = 0; slot < n; ++slot) list[slot] = static_cast<std::int32_t>(slot);
  sort_slots(bits, list, n, scratch);
  for (std::int64_t end = n, next = 0; end > 0; end = next) {  // equal scores at a time
    const std::uint32_t equal = bits(list[end - 1]);
    double value = static_cast<double>(end) / static_cast<double>(n);
    for (int square = 0; square < 4; ++square) value *= value;
    for (next = end; next > 0 && bits(list[next - 1]) == equal; --next) {
      *scores.at(row, list[next - 1]) = static_cast<float>(value);
    }
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
