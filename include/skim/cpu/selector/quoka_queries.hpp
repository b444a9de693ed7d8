// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's steps 1 to 3 on the CPU: the queries that speak for the chunk, `qbar [n, D]` per KV head.
/// See selector/queries.hpp for the rules. Everything in f32, D in the lanes.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/math/order.hpp>
#include <skim/selector/queries.hpp>
#include <skim/workspace.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Rows of length D padded with zeros to whole vectors, so that row loops have no tail.
SKIM_INLINE constexpr std::int64_t padded_row(std::int64_t D) {
  return (D + simd::lanes - 1) / simd::lanes * simd::lanes;
}

SKIM_INLINE void clear_row(float* row, std::int64_t length) {
  for (std::int64_t d = 0; d < length; d += simd::lanes) simd::store(row + d, simd::floats(0.0f));
}

/// 1 / |row|, 0 of a zero row. Arbitrary where f32 squares overflow or vanish: see `is_usable`.
SKIM_INLINE float inverse_length(const float* row, std::int64_t length) {
  const float squares = dot_of(row, row, length);
  return squares == 0 ? 0.0f : 1.0f / std::sqrt(squares);
}

/// A query with an infinity or NaN has no say. Its row, and the mean of a group of such, is marked.
SKIM_INLINE bool is_silent(const float* row) {
  return std::isnan(row[0]);
}
SKIM_INLINE void silence(float* row) {
  row[0] = std::numeric_limits<float>::quiet_NaN();
}

/// Powers of two which, one after the other, bring numbers whose largest is `largest` to about 1; 1 where that is 0 or not
/// finite. Two, since one may be too large for f32.
struct to_one {
  float first = 1, second = 1;

  SKIM_INLINE explicit to_one(float largest) {
    if (!(largest > 0) || largest * 0 != 0) return;
    const int power = std::ilogb(largest);
    first = static_cast<float>(std::ldexp(1.0, -power / 2));
    second = static_cast<float>(std::ldexp(1.0, -power + power / 2));
  }
  SKIM_INLINE simd::floats operator()(simd::floats x) const { return x * simd::floats(first) * simd::floats(second); }
};

/// The largest of some padded rows' absolute values, lane by lane.
SKIM_INLINE simd::floats larger_of_row(const float* row, std::int64_t length, simd::floats most) {
  for (std::int64_t d = 0; d < length; d += simd::lanes) most = simd::larger(xsimd::abs(simd::load(row + d)), most);
  return most;
}

/// Scratch for the choice of one KV head, one a worker. Rows are padded.
struct choose_scratch {
  float* rows;              // [Tq, padded D]: one query head's queries, those of unusual size by 2^-exponent
  float* means;             // [Tq, padded D]: the group's mean unit queries, for rules that choose among those
  float* center;            // [padded D]
  float* inverse;           // [Tq]: 1 / |rows[t]|
  float* weights;           // [Tq]: what a row counts in the head's mean query
  std::int32_t* exponents;  // [Tq]
  float* nearest;           // [Tq]: squared distance to the nearest chosen row
  std::uint64_t* heap;      // [Tq]
  std::int32_t* shuffled;   // [Tq]
  std::int32_t* chosen;     // [Tq]: the rows that the rule keeps

  choose_scratch(arena& arena, std::int64_t Tq, std::int64_t D) {
    rows = arena.take<float>(Tq * padded_row(D));
    means = arena.take<float>(Tq * padded_row(D));
    center = arena.take<float>(padded_row(D));
    inverse = arena.take<float>(Tq);
    weights = arena.take<float>(Tq);
    exponents = arena.take<std::int32_t>(Tq);
    nearest = arena.take<float>(Tq);
    heap = arena.take<std::uint64_t>(Tq);
    shuffled = arena.take<std::int32_t>(Tq);
    chosen = arena.take<std::int32_t>(Tq);
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

/// Writes the `n` rows of lowest cosine to the mean row, ascending, ties to the lower row, silent ones last: a heap of
/// (cosine, row). `weights`: what the rows count in the mean; null: all the same, and none is silent.
inline void choose_lowest_cosine(const float* rows, const float* weights, std::int64_t Tq, std::int64_t D,
                                 std::int64_t n, const choose_scratch& scratch, std::int32_t* chosen) {
  const std::int64_t length = padded_row(D);
  clear_row(scratch.center, length);
  for (std::int64_t t = 0; t < Tq; ++t) {
    const float* const row = rows + t * length;
    if (!weights || !is_silent(row)) add_scaled_of(row, weights ? weights[t] : 1.0f, scratch.center, length);
  }
  const float scale = inverse_length(scratch.center, length);
  for (std::int64_t t = 0; t < Tq; ++t) {
    const float* const row = rows + t * length;
    const float cosine = weights && is_silent(row)
                             ? std::numeric_limits<float>::infinity()
                             : dot_of(row, scratch.center, length) * inverse_length(row, length) * scale;
    scratch.heap[t] = std::uint64_t{rank_bits(cosine)} << 32 | static_cast<std::uint64_t>(t);
  }
  for (std::int64_t parent = Tq / 2 - 1; parent >= 0; --parent) sift_down(scratch.heap, Tq, parent);
  for (std::int64_t i = 0, size = Tq; i < n; ++i) {
    chosen[i] = static_cast<std::int32_t>(scratch.heap[0] & 0xffffffffu);
    scratch.heap[0] = scratch.heap[--size];
    sift_down(scratch.heap, size, 0);
  }
}

/// Greedy k-center from the row of lowest cosine, in the order of choice, silent rows last.
inline void choose_farthest_points(const float* rows, const float* weights, std::int64_t Tq, std::int64_t D,
                                   std::int64_t n, const choose_scratch& scratch, std::int32_t* chosen) {
  const std::int64_t length = padded_row(D);
  constexpr float silent = -0.5f, taken = -1;
  choose_lowest_cosine(rows, weights, Tq, D, 1, scratch, chosen);
  for (std::int64_t t = 0; t < Tq; ++t) {
    scratch.nearest[t] = weights && is_silent(rows + t * length) ? silent : std::numeric_limits<float>::infinity();
  }
  for (std::int64_t i = 1; i < n; ++i) {
    const float* const latest = rows + chosen[i - 1] * length;
    scratch.nearest[chosen[i - 1]] = taken;
    std::int64_t farthest = -1;
    for (std::int64_t t = 0; t < Tq; ++t) {
      if (scratch.nearest[t] == taken) continue;
      if (scratch.nearest[t] != silent) {
        const float distance = squared_distance_of(rows + t * length, 1.0f, latest, length);
        if (distance < scratch.nearest[t]) scratch.nearest[t] = distance;
      }
      if (farthest < 0 || scratch.nearest[t] > scratch.nearest[farthest]) farthest = t;
    }
    chosen[i] = static_cast<std::int32_t>(farthest);
  }
}

/// The rows that a rule keeps, where it keeps fewer than `Tq`. `rows` as in
/// reference::choose_rows, `weights` as in choose_lowest_cosine.
inline void choose_rows(const query_rule& rule, const float* rows, const float* weights, std::int64_t Tq,
                        std::int64_t D, std::int64_t Tk, const choose_scratch& scratch, std::int32_t* chosen) {
  switch (rule.choice) {
    case query_choice::lowest_cosine:
    case query_choice::group_lowest_cosine:
      return choose_lowest_cosine(rows, weights, Tq, D, rule.n, scratch, chosen);
    case query_choice::farthest_point:
      return choose_farthest_points(rows, weights, Tq, D, rule.n, scratch, chosen);
    case query_choice::random:
      queries::draw_rows(rule, Tq, Tk, scratch.shuffled);
      for (std::int64_t i = 0; i < rule.n; ++i) chosen[i] = scratch.shuffled[i];
      return;
    case query_choice::newest:
      for (std::int64_t i = 0; i < rule.n; ++i) chosen[i] = static_cast<std::int32_t>(Tq - rule.n + i);
      return;
    case query_choice::all:     // keeps every row
    case query_choice::needed:  // not among means
      return;
  }
}

/// What rows count in their mean: 2^exponent of each, by that of the largest, so that neither it nor they overflow.
SKIM_INLINE void weigh_queries(std::int64_t Tq, const choose_scratch& scratch) {
  std::int32_t most = (std::numeric_limits<std::int32_t>::min)();
  for (std::int64_t t = 0; t < Tq; ++t) {
    if (scratch.inverse[t] > 0 && scratch.exponents[t] > most) most = scratch.exponents[t];
  }
  for (std::int64_t t = 0; t < Tq; ++t) {
    const bool counts = scratch.inverse[t] > 0, less = scratch.exponents[t] != most;
    scratch.weights[t] = !counts ? 0.0f : less ? std::ldexp(1.0f, scratch.exponents[t] - most) : 1.0f;
  }
}

/// One query head's queries, widened, padded with zeros, those of unusual size scaled: sums of many squares stay in f32.
/// Returns whether there are such, and then weighs them.
SKIM_INLINE bool widen_queries(const attention_args& args, const attention_sequence& sequence, std::int64_t h,
                               const choose_scratch& scratch) {
  const std::int64_t D = args.q.extents[2], length = padded_row(D);
  bool unusual = false;
  for (std::int64_t t = 0; t < sequence.Tq; ++t) {
    float* const row = scratch.rows + t * length;
    simd::store(row + length - simd::lanes, simd::floats(0.0f));
    widen({args.q.at(sequence.first_row + t, h), args.q.type}, D, row);
    scratch.inverse[t] = inverse_length(row, length);
    scratch.exponents[t] = 0;
    if (scratch.inverse[t] > 1e-8f && scratch.inverse[t] < 1e8f) continue;
    unusual = true;
    scratch.inverse[t] = scale_to_one(row, length, scratch.exponents + t);
    if (std::isnan(scratch.inverse[t])) silence(row);
  }
  if (unusual) weigh_queries(sequence.Tq, scratch);
  return unusual;
}

/// qbar [kept, padded D] of one KV head; a row for which no query of the group has a say is marked.
SKIM_NOINLINE inline void choose_queries(const query_rule& rule, const attention_args& args,
                                         const attention_sequence& block, std::int64_t head,
                                         const choose_scratch& scratch, float* qbar) {
  const std::int64_t D = args.q.extents[2], length = padded_row(D), G = group_size(args), Tq = block.Tq;
  const std::int64_t kept = rule.kept(Tq, G);
  const bool chooses = kept < Tq, by_head = rule.per_query_head() && chooses;
  float* const means = chooses && !by_head ? scratch.means : qbar;
  const std::int64_t rows = by_head ? kept : Tq;
  for (std::int64_t i = 0; i < rows; ++i) {
    clear_row(means + i * length, length);
    silence(means + i * length);
  }
  const float share = 1.0f / static_cast<float>(G);
  bool some_unusual = false;
  for (std::int64_t g = 0; g < G; ++g) {
    const bool unusual = widen_queries(args, block, head * G + g, scratch);
    some_unusual |= unusual;
    if (by_head)
      choose_rows(rule, scratch.rows, unusual ? scratch.weights : nullptr, Tq, D, block.Tk(), scratch, scratch.chosen);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t t = by_head ? scratch.chosen[i] : i;
      const float* const row = scratch.rows + t * length;
      float* const mean = means + i * length;
      if (unusual && is_silent(row)) continue;
      if (is_silent(mean)) mean[0] = 0;
      add_scaled_of(row, scratch.inverse[t] * share, mean, length);
    }
  }
  if (!chooses || by_head) return;
  for (std::int64_t t = 0; t < Tq; ++t) scratch.weights[t] = 1;
  choose_rows(rule, means, some_unusual ? scratch.weights : nullptr, Tq, D, block.Tk(), scratch, scratch.chosen);
  for (std::int64_t i = 0; i < kept; ++i) {
    std::memcpy(qbar + i * length, means + scratch.chosen[i] * length,
                static_cast<std::size_t>(length) * sizeof(float));
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
