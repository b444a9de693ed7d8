// SPDX-License-Identifier: Apache-2.0
/// \file Tokens by position, and scores averaged over neighbours. Linear time, no allocation.
#pragma once

#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/retention.hpp>
#include <skim/workspace.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Slots of a head in order of position: a run of neighbours, or a list.
struct slot_order {
  const std::int32_t* slot_ids = nullptr;  // [count]; null: first, first + 1, ...
  std::int64_t first = 0, count = 0;

  SKIM_INLINE std::int64_t at(std::int64_t i) const { return slot_ids ? slot_ids[i] : first + i; }
};

/// Scratch of a sort by position.
struct order_scratch {
  std::int32_t* swapped;  // [n]
  std::int32_t* bins;     // [2048]

  order_scratch(arena& arena, std::int64_t n)
      : swapped(arena.take<std::int32_t>(n)), bins(arena.take<std::int32_t>(histogram_bins)) {}
};

/// Sorts `list [count]` of slots by `key(slot)`, a number of at most 33 bits, by three digits of 11 bits each; stable.
template <class Key>
SKIM_INLINE void sort_slots(const Key& key, std::int32_t* list, std::int64_t count, const order_scratch& scratch) {
  std::int32_t *from = list, *to = scratch.swapped;
  for (int shift = 0; shift < 33; shift += 11) {
    const auto digit = [&](std::int32_t slot) SKIM_LAMBDA_INLINE {
      return (static_cast<std::uint64_t>(key(slot)) >> shift) & (histogram_bins - 1);
    };
    for (std::int64_t bin = 0; bin < histogram_bins; ++bin) scratch.bins[bin] = 0;
    for (std::int64_t i = 0; i < count; ++i) ++scratch.bins[digit(from[i])];
    for (std::int32_t bin = 0, sum = 0; bin < histogram_bins; ++bin) {
      const std::int32_t size = scratch.bins[bin];
      scratch.bins[bin] = sum;
      sum += size;
    }
    for (std::int64_t i = 0; i < count; ++i) to[scratch.bins[digit(from[i])]++] = from[i];
    std::int32_t* const other = from;
    from = to;
    to = other;
  }
  std::memcpy(list, from, static_cast<std::size_t>(count) * sizeof(std::int32_t));
}

/// The slots of [0, n) that `admitted(slot)`. Where they are out of position order, or leave gaps, `list [n]` holds them
/// sorted.
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
  if (!ascend) {
    sort_slots([&](std::int32_t slot) SKIM_LAMBDA_INLINE { return kv.position(head, slot); }, list, count, scratch);
  }
  order.slot_ids = list;
  return order;
}

/// All tokens of a head in order of position, in scratch of `order_bytes(kv.tokens)`.
SKIM_NOINLINE inline slot_order order_tokens(const kv_view& kv, std::int64_t head, void* place) {
  arena arena(place);
  std::int32_t* const list = arena.take<std::int32_t>(kv.tokens);
  const order_scratch scratch(arena, kv.tokens);
  return order_slots(
      kv, head, kv.length(head), [](std::int64_t) { return true; }, list, scratch);
}
inline std::size_t order_bytes(std::int64_t tokens) {
  arena arena;
  arena.take<std::int32_t>(tokens);
  order_scratch(arena, tokens);
  return arena.used();
}

/// Scores to be averaged: their values, and 1 for each that is one, 0 for what is not finite or not there.
struct smooth_piece {
  static constexpr std::int64_t tokens = 1024;
  static constexpr std::int64_t room = tokens + skim::detail::widest_mean + simd::lanes;
  float values[room], counts[room];

  SKIM_INLINE void put(std::int64_t place, simd::floats score) {
    const simd::floats zero(0.0f);
    const simd::float_mask finite = score * zero == zero;
    simd::store(values + place, xsimd::select(finite, score, zero));
    simd::store(counts + place, xsimd::select(finite, simd::floats(1.0f), zero));
  }
  SKIM_INLINE void put(std::int64_t place, float score) {
    const bool finite = score * 0 == 0;
    values[place] = finite ? score : 0.0f;
    counts[place] = finite ? 1.0f : 0.0f;
  }
};

/// Each score becomes the mean of those of the `width` tokens around it, in `order`, that exist and are finite; one that is
/// not becomes NaN. By pieces, whose scores are set aside before they are written over.
SKIM_NOINLINE inline void smooth_scores(const slot_order& order, std::int64_t width, float* scores) {
  smooth_piece piece;  // from the token `half` before `begin` on
  const std::int64_t half = width / 2;
  const auto read = [&](std::int64_t first, std::int64_t place, std::int64_t count) SKIM_LAMBDA_INLINE {
    std::int64_t i = 0;
    for (; !order.slot_ids && i + simd::lanes <= smaller(count, order.count - first); i += simd::lanes) {
      piece.put(place + i, simd::load(static_cast<const float*>(scores) + order.first + first + i));
    }
    for (; i < count; ++i) piece.put(place + i, first + i < order.count ? scores[order.at(first + i)] : minus_infinity);
  };
  for (std::int64_t i = 0; i < half; ++i) piece.put(i, minus_infinity);
  read(0, half, half);
  for (std::int64_t begin = 0; begin < order.count; begin += smooth_piece::tokens) {
    const std::int64_t count = smaller(smooth_piece::tokens, order.count - begin);
    read(begin + half, 2 * half, round_up(count, simd::lanes));
    for (std::int64_t i = 0; i < count; i += simd::lanes) {
      simd::floats sum(0.0f), number(0.0f);
      for (std::int64_t j = i; j < i + width; ++j) {
        sum = sum + simd::load(static_cast<const float*>(piece.values) + j);
        number = number + simd::load(static_cast<const float*>(piece.counts) + j);
      }
      const simd::floats own = simd::load(static_cast<const float*>(piece.counts) + i + half);
      const simd::floats nothing(std::numeric_limits<float>::quiet_NaN());
      const simd::floats mean = xsimd::select(own == simd::floats(0.0f), nothing, sum / number);
      if (!order.slot_ids && i + simd::lanes <= count) {
        simd::store(scores + order.first + begin + i, mean);
        continue;
      }
      float means[simd::lanes];
      simd::store(means, mean);
      for (std::int64_t j = 0; j < smaller(simd::lanes, count - i); ++j) scores[order.at(begin + i + j)] = means[j];
    }
    std::memmove(piece.values, piece.values + count, static_cast<std::size_t>(2 * half) * sizeof(float));
    std::memmove(piece.counts, piece.counts + count, static_cast<std::size_t>(2 * half) * sizeof(float));
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
