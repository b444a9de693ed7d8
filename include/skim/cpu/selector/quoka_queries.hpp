// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's steps 1 to 3 on the CPU: the queries that speak for the chunk, `qbar [n, D]` per KV head.
/// See selector/queries.hpp for the rules. Everything in f32, D in the lanes.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/simd/convert.hpp>
#include <skim/math/order.hpp>
#include <skim/selector/queries.hpp>
#include <skim/workspace.hpp>

#include <cmath>
#include <limits>
#include <type_traits>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// Rows of length D padded with zeros to whole vectors, so that row loops have no tail.
SKIM_INLINE constexpr std::int64_t padded_row(std::int64_t D) {
  return (D + simd::lanes - 1) / simd::lanes * simd::lanes;
}

SKIM_INLINE float dot_rows(const float* a, const float* b, std::int64_t length) {
  simd::floats even(0.0f), odd(0.0f);
  std::int64_t d = 0;
  for (; d + 2 * simd::lanes <= length; d += 2 * simd::lanes) {
    even = simd::fma(simd::load(a + d), simd::load(b + d), even);
    odd = simd::fma(simd::load(a + d + simd::lanes), simd::load(b + d + simd::lanes), odd);
  }
  if (d < length) even = simd::fma(simd::load(a + d), simd::load(b + d), even);
  return simd::sum(even + odd);
}

SKIM_INLINE float squared_distance(const float* a, const float* b, std::int64_t length) {
  simd::floats total(0.0f);
  for (std::int64_t d = 0; d < length; d += simd::lanes) {
    const simd::floats difference = simd::load(a + d) - simd::load(b + d);
    total = simd::fma(difference, difference, total);
  }
  return simd::sum(total);
}

/// target += source * factor.
SKIM_INLINE void add_row(float* target, const float* source, float factor, std::int64_t length) {
  for (std::int64_t d = 0; d < length; d += simd::lanes) {
    simd::store(target + d, simd::fma(simd::load(source + d), simd::floats(factor), simd::load(target + d)));
  }
}

SKIM_INLINE void clear_row(float* row, std::int64_t length) {
  for (std::int64_t d = 0; d < length; d += simd::lanes) simd::store(row + d, simd::floats(0.0f));
}

SKIM_INLINE float inverse_length(const float* row, std::int64_t length) {
  const float squares = dot_rows(row, row, length);
  return squares == 0 ? 0.0f : 1.0f / std::sqrt(squares);
}

/// Scratch for the choice of one KV head, one a worker. Rows are padded.
struct choose_scratch {
  float* rows;             // [Tq, padded D]: one query head's queries
  float* means;            // [Tq, padded D]: the group's mean unit queries, for rules that choose among those
  float* center;           // [padded D]
  float* inverse;          // [Tq]: 1 / |rows[t]|
  float* nearest;          // [Tq]: squared distance to the nearest chosen row
  std::uint64_t* heap;     // [Tq]
  std::int32_t* shuffled;  // [Tq]

  choose_scratch(arena& arena, std::int64_t Tq, std::int64_t D) {
    rows = arena.take<float>(Tq * padded_row(D));
    means = arena.take<float>(Tq * padded_row(D));
    center = arena.take<float>(padded_row(D));
    inverse = arena.take<float>(Tq);
    nearest = arena.take<float>(Tq);
    heap = arena.take<std::uint64_t>(Tq);
    shuffled = arena.take<std::int32_t>(Tq);
  }
};

SKIM_INLINE void sift_down(std::uint64_t* heap, std::int64_t size, std::int64_t parent) {
  for (std::int64_t child; (child = 2 * parent + 1) < size; parent = child) {
    if (child + 1 < size && heap[child + 1] < heap[child]) ++child;
    if (heap[parent] <= heap[child]) return;
    const std::uint64_t swapped = heap[parent];
    heap[parent] = heap[child];
    heap[child] = swapped;
  }
}

/// Writes the `n` rows of lowest cosine to the mean row, ascending, ties to the lower row: a heap of (cosine, row).
SKIM_INLINE void choose_lowest_cosine(const float* rows, std::int64_t Tq, std::int64_t D, std::int64_t n,
                                      const choose_scratch& scratch, std::int32_t* chosen) {
  const std::int64_t length = padded_row(D);
  clear_row(scratch.center, length);
  for (std::int64_t t = 0; t < Tq; ++t) add_row(scratch.center, rows + t * length, 1.0f, length);
  const float scale = inverse_length(scratch.center, length);
  for (std::int64_t t = 0; t < Tq; ++t) {
    const float* const row = rows + t * length;
    const float cosine = dot_rows(row, scratch.center, length) * inverse_length(row, length) * scale;
    scratch.heap[t] = std::uint64_t{rank_bits(cosine)} << 32 | static_cast<std::uint64_t>(t);
  }
  for (std::int64_t parent = Tq / 2 - 1; parent >= 0; --parent) sift_down(scratch.heap, Tq, parent);
  for (std::int64_t i = 0, size = Tq; i < n; ++i) {
    chosen[i] = static_cast<std::int32_t>(scratch.heap[0] & 0xffffffffu);
    scratch.heap[0] = scratch.heap[--size];
    sift_down(scratch.heap, size, 0);
  }
}

/// Greedy k-center from the row of lowest cosine, in the order of choice.
SKIM_INLINE void choose_farthest_points(const float* rows, std::int64_t Tq, std::int64_t D, std::int64_t n,
                                        const choose_scratch& scratch, std::int32_t* chosen) {
  const std::int64_t length = padded_row(D);
  choose_lowest_cosine(rows, Tq, D, 1, scratch, chosen);
  for (std::int64_t t = 0; t < Tq; ++t) scratch.nearest[t] = std::numeric_limits<float>::infinity();
  for (std::int64_t i = 1; i < n; ++i) {
    const float* const latest = rows + chosen[i - 1] * length;
    scratch.nearest[chosen[i - 1]] = -1;  // never twice
    std::int64_t farthest = -1;
    for (std::int64_t t = 0; t < Tq; ++t) {
      if (scratch.nearest[t] < 0) continue;
      const float distance = squared_distance(rows + t * length, latest, length);
      if (distance < scratch.nearest[t]) scratch.nearest[t] = distance;
      if (farthest < 0 || scratch.nearest[t] > scratch.nearest[farthest]) farthest = t;
    }
    chosen[i] = static_cast<std::int32_t>(farthest);
  }
}

/// The rows that a rule keeps, where it keeps fewer than `Tq`. `rows` as in reference::choose_rows.
SKIM_INLINE void choose_rows(const queries::lowest_cosine& rule, const float* rows, std::int64_t Tq, std::int64_t D,
                             std::int64_t, const choose_scratch& scratch, std::int32_t* chosen) {
  choose_lowest_cosine(rows, Tq, D, rule.n, scratch, chosen);
}
SKIM_INLINE void choose_rows(const queries::group_lowest_cosine& rule, const float* rows, std::int64_t Tq,
                             std::int64_t D, std::int64_t, const choose_scratch& scratch, std::int32_t* chosen) {
  choose_lowest_cosine(rows, Tq, D, rule.n, scratch, chosen);
}
SKIM_INLINE void choose_rows(const queries::farthest_point& rule, const float* rows, std::int64_t Tq, std::int64_t D,
                             std::int64_t, const choose_scratch& scratch, std::int32_t* chosen) {
  choose_farthest_points(rows, Tq, D, rule.n, scratch, chosen);
}
SKIM_INLINE void choose_rows(const queries::random& rule, const float*, std::int64_t Tq, std::int64_t, std::int64_t Tk,
                             const choose_scratch& scratch, std::int32_t* chosen) {
  queries::choose(rule, Tq, Tk, scratch.shuffled);
  for (std::int64_t i = 0; i < rule.n; ++i) chosen[i] = scratch.shuffled[i];
}
SKIM_INLINE void choose_rows(const queries::newest& rule, const float*, std::int64_t Tq, std::int64_t, std::int64_t,
                             const choose_scratch&, std::int32_t* chosen) {
  for (std::int64_t i = 0; i < rule.n; ++i) chosen[i] = static_cast<std::int32_t>(Tq - rule.n + i);
}

/// One query head's queries, widened, padded with zeros.
SKIM_INLINE void widen_queries(const attention_args& args, const attention_sequence& sequence, std::int64_t h,
                               const choose_scratch& scratch) {
  const std::int64_t D = args.q.extents[2], length = padded_row(D);
  for (std::int64_t t = 0; t < sequence.Tq; ++t) {
    float* const row = scratch.rows + t * length;
    simd::store(row + length - simd::lanes, simd::floats(0.0f));
    simd::widen_row(args.q.at(sequence.first_row + t, h), args.q.type, D, row);
    scratch.inverse[t] = inverse_length(row, length);
  }
}

/// qbar [kept, padded D] of one KV head, and the tokens chosen: tokens [G, kept] for rules that choose per query head,
/// [1, kept] for the others.
template <class Queries>
SKIM_INLINE void choose_queries(const Queries& rule, const attention_args& args, const attention_sequence& sequence,
                                std::int64_t head, const choose_scratch& scratch, std::int32_t* tokens, float* qbar) {
  const std::int64_t D = args.q.extents[2], length = padded_row(D), G = group_size(args), Tq = sequence.Tq;
  const std::int64_t kept = queries::kept(rule, Tq);
  const bool chooses = kept < Tq;
  const bool by_head = queries::per_query_head<Queries> && chooses;
  float* const means = chooses && !by_head ? scratch.means : qbar;
  const std::int64_t rows = by_head ? kept : Tq;
  for (std::int64_t i = 0; i < rows; ++i) clear_row(means + i * length, length);
  for (std::int64_t i = 0; i < kept && !chooses; ++i) tokens[i] = static_cast<std::int32_t>(i);
  const float share = 1.0f / static_cast<float>(G);
  for (std::int64_t g = 0; g < G; ++g) {
    widen_queries(args, sequence, head * G + g, scratch);
    std::int32_t* const chosen = tokens + g * kept;
    if constexpr (queries::per_query_head<Queries>) {
      if (chooses) choose_rows(rule, scratch.rows, Tq, D, sequence.Tk(), scratch, chosen);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t t = by_head ? chosen[i] : i;
      add_row(means + i * length, scratch.rows + t * length, scratch.inverse[t] * share, length);
    }
  }
  if constexpr (!queries::per_query_head<Queries> && !std::is_same_v<Queries, queries::all>) {
    if (!chooses) return;
    choose_rows(rule, means, Tq, D, sequence.Tk(), scratch, tokens);
    for (std::int64_t i = 0; i < kept; ++i) {
      clear_row(qbar + i * length, length);
      add_row(qbar + i * length, means + tokens[i] * length, 1.0f, length);
    }
  }
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
