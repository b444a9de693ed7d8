// SPDX-License-Identifier: Apache-2.0
/// \file Tokens by position, and scores averaged over neighbours. Linear time, no allocation.
#pragma once

#include <skim/cpu/kernel/rows.hpp>
#include <skim/retention.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Slots of a head in order of position: a run of neighbours, or a list.
struct slot_order {
  const std::int32_t* slot_ids = nullptr;  // [count]; null: first, first + 1, ...
  std::int64_t first = 0, count = 0;

  SKIM_INLINE std::int64_t at(std::int64_t i) const { return slot_ids ? slot_ids[i] : first + i; }
};

inline constexpr std::int64_t digit_bins = 2048;

/// Scratch of a sort by position.
struct order_scratch {
  std::int32_t* swapped;  // [n]
  std::int32_t* bins;     // [2048]

  order_scratch(arena& arena, std::int64_t n)
      : swapped(arena.take<std::int32_t>(n)), bins(arena.take<std::int32_t>(digit_bins)) {}
};

/// The slots of [0, n) that `admitted(slot)`. Where they are out of position order, or leave gaps, `list [n]` holds them:
/// sorted by the three digits of a position, 11 bits each.
template <class Admitted>
SKIM_INLINE slot_order order_slots(const kv_view& kv, std::int64_t head, std::int64_t n, const Admitted& admitted,
                                   std::int32_t* list, const order_scratch& scratch) {
  slot_order order;
  bool ascend = true;
  std::int64_t last = -1, position = -1;
  for (std::int64_t slot = 0; slot < n; ++slot) {
    if (!admitted(slot)) continue;
    if (order.count == 0) order.first = slot;
    ascend &= kv.position(head, slot) > position;
    position = kv.position(head, slot);
    last = slot;
    ++order.count;
  }
  if (ascend && last - order.first + 1 == order.count) return order;
  std::int64_t count = 0;
  for (std::int64_t slot = order.first; slot <= last; ++slot) {
    if (admitted(slot)) list[count++] = static_cast<std::int32_t>(slot);
  }
  std::int32_t *from = list, *to = scratch.swapped;
  for (int shift = 0; !ascend && shift < 33; shift += 11) {
    const auto digit = [&](std::int32_t slot) SKIM_LAMBDA_INLINE {
      return (static_cast<std::uint64_t>(kv.position(head, slot)) >> shift) & (digit_bins - 1);
    };
    for (std::int64_t bin = 0; bin < digit_bins; ++bin) scratch.bins[bin] = 0;
    for (std::int64_t i = 0; i < count; ++i) ++scratch.bins[digit(from[i])];
    for (std::int32_t bin = 0, sum = 0; bin < digit_bins; ++bin) {
      const std::int32_t size = scratch.bins[bin];
      scratch.bins[bin] = sum;
      sum += size;
    }
    for (std::int64_t i = 0; i < count; ++i) to[scratch.bins[digit(from[i])]++] = from[i];
    std::int32_t* const other = from;
    from = to;
    to = other;
  }
  if (from != list) std::memcpy(list, from, static_cast<std::size_t>(count) * sizeof(std::int32_t));
  order.slot_ids = list;
  return order;
}

/// Each score becomes the mean of those of the `width` tokens around it, in `order`, that exist and are finite; one that is
/// not becomes NaN. By pieces, whose scores are set aside before they are written over.
SKIM_NOINLINE inline void smooth_scores(const slot_order& order, std::int64_t width, float* scores) {
  constexpr std::int64_t piece = 1024, room = piece + skim::detail::widest_smooth;
  float value[room], counts[room];  // of the tokens from begin - half on; 0 where there is none or it is not finite
  const std::int64_t half = width / 2;
  const auto put = [&](std::int64_t i, std::int64_t place) SKIM_LAMBDA_INLINE {
    const float score = i < order.count ? scores[order.at(i)] : minus_infinity;
    const bool counted = score * 0 == 0;
    value[place] = counted ? score : 0.0f;
    counts[place] = counted ? 1.0f : 0.0f;
  };
  for (std::int64_t i = 0; i < half; ++i) value[i] = counts[i] = 0;
  for (std::int64_t i = 0; i < half; ++i) put(i, half + i);
  for (std::int64_t begin = 0; begin < order.count; begin += piece) {
    const std::int64_t count = smaller(piece, order.count - begin);
    for (std::int64_t i = 0; i < count; ++i) put(begin + half + i, 2 * half + i);
    for (std::int64_t i = 0; i < count; ++i) {
      float sum = 0, number = 0;
      for (std::int64_t j = 0; j < width; ++j) {
        sum += value[i + j];
        number += counts[i + j];
      }
      const bool counted = counts[i + half] != 0;
      scores[order.at(begin + i)] = counted ? sum / number : std::numeric_limits<float>::quiet_NaN();
    }
    for (std::int64_t i = 0; i < 2 * half; ++i) {
      value[i] = value[count + i];
      counts[i] = counts[count + i];
    }
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
