// SPDX-License-Identifier: Apache-2.0
/// \file Stable top-k of one KV head's past keys: by score, ties by position, the earlier first; lists ascend by slot.
///
/// Scores become unsigned ranks; a radix select (11 + 11 + 10 bits) finds the rank of the budget's last key, and one
/// more pass writes the list. No sort, no allocation, the same list for any number of workers.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/math/order.hpp>
#include <skim/selector/retention.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

inline constexpr std::int64_t histogram_bins = 2048;
inline constexpr std::uint32_t kept_anyway = 0xffffffffu;  // sinks and recent keys; above the rank of every score
inline constexpr std::uint32_t no_candidate = 0;

/// Entries of a rank above `rank` are taken, and `ties` of the `equals` that have it.
struct rank_threshold {
  std::uint32_t rank;
  std::int64_t ties, equals;
};

/// The threshold that takes `count` >= 1 of `n` >= count entries; `key(i)` is an entry's rank.
template <class Key>
SKIM_INLINE rank_threshold find_threshold(const Key& key, std::int64_t n, std::int64_t count, std::int32_t* histogram) {
  constexpr int shifts[4] = {32, 21, 10, 0};  // bits [31:21], [20:10], [9:0]
  std::uint32_t prefix = 0;
  std::int64_t equals = 0;
  for (int digit = 1; digit <= 3; ++digit) {
    const int shift = shifts[digit];
    const std::uint64_t above = std::uint64_t{prefix} >> shifts[digit - 1];
    const std::uint32_t bits = (1u << (shifts[digit - 1] - shift)) - 1;
    for (std::int64_t bin = 0; bin < histogram_bins; ++bin) histogram[bin] = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint32_t rank = key(i);
      if (std::uint64_t{rank} >> shifts[digit - 1] == above) ++histogram[(rank >> shift) & bits];
    }
    std::int64_t bin = bits;
    while (histogram[bin] < count) count -= histogram[bin--];
    prefix |= static_cast<std::uint32_t>(bin) << shift;
    equals = histogram[bin];
  }
  return {prefix, count, equals};
}

/// Calls `take(i)` in ascending order for the entries that a threshold admits; of equal ranks the first.
template <class Key, class Take>
SKIM_INLINE void take_above(const Key& key, std::int64_t n, rank_threshold limit, const Take& take) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t rank = key(i);
    if (rank > limit.rank) {
      take(i);
    } else if (rank == limit.rank && limit.ties > 0) {
      --limit.ties;
      take(i);
    }
  }
}

/// Answers whether some query of the chunk may see a position.
class chunk_sight {
 public:
  SKIM_INLINE chunk_sight(const attention_args& args, const attention_sequence& sequence, std::int64_t head)
      : kv_(sequence.kv), see_(args.mask), head_(head), past_(kv_->length(head) - sequence.Tq), Tq_(sequence.Tq) {
    queries_ = {largest_position, -1};
    for (std::int64_t t = 0; t < Tq_; ++t) {
      const std::int64_t position = kv_->position(head, past_ + t);
      if (position < queries_.begin) queries_.begin = position;
      if (position + 1 > queries_.end) queries_.end = position + 1;
    }
    const std::int64_t spread = queries_.end - queries_.begin;
    has_gaps_ = spread > Tq_ && spread > see_.left + see_.right;
  }

  /// The positions outside which no key is seen.
  SKIM_INLINE position_range hull() const { return see_.keys(queries_); }

  SKIM_INLINE bool sees(std::int64_t position) const {
    const position_range range = hull();
    if (Tq_ == 0 || position < range.begin || position >= range.end) return false;
    if (!has_gaps_) return true;
    for (std::int64_t t = 0; t < Tq_; ++t) {
      if (see_.visible(kv_->position(head_, past_ + t), position)) return true;
    }
    return false;
  }

 private:
  static constexpr std::int64_t largest_position = std::int64_t{1} << 31;
  const kv_view* kv_;
  mask see_;
  std::int64_t head_, past_, Tq_;
  position_range queries_;
  bool has_gaps_;  // the chunk's positions leave room for a key that lies between two queries' windows
};

/// Scratch of `top_k`, one a worker.
struct top_k_scratch {
  std::uint32_t* ranks;     // [Tk]
  std::int32_t* histogram;  // [2048]

  top_k_scratch(skim::detail::arena& arena, std::int64_t Tk) {
    ranks = arena.take<std::uint32_t>(Tk);
    histogram = arena.take<std::int32_t>(histogram_bins);
  }
};

SKIM_INLINE bool positions_ascend(const kv_view& kv, std::int64_t head, std::int64_t past) {
  bool ascend = true;
  for (std::int64_t slot = 1; kv.positions && slot < past; ++slot) {
    ascend &= kv.position(head, slot - 1) < kv.position(head, slot);
  }
  return ascend;
}

/// Order of age among the entries that `admitted(slot)`: a rank that is higher for higher (`newest`) or lower positions.
template <class Admitted>
SKIM_INLINE auto age_rank(const kv_view& kv, std::int64_t head, bool newest, const Admitted& admitted) {
  return [&kv, head, newest, &admitted](std::int64_t slot) SKIM_LAMBDA_INLINE {
    if (!admitted(slot)) return no_candidate;
    const std::uint32_t position = static_cast<std::uint32_t>(kv.position(head, slot)) + 1;
    return newest ? position : ~position;
  };
}

/// Sets the ranks of the `count` candidates of lowest (or, `newest`, highest) position to `kept_anyway`.
SKIM_INLINE void keep_ends(const kv_view& kv, std::int64_t head, std::int64_t past, std::int64_t count, bool newest,
                           bool ascend, const top_k_scratch& scratch) {
  if (count == 0) return;
  std::uint32_t* const ranks = scratch.ranks;
  if (ascend) {
    const std::int64_t step = newest ? -1 : 1;
    for (std::int64_t slot = newest ? past - 1 : 0; count > 0; slot += step) {
      if (ranks[slot] == no_candidate) continue;
      ranks[slot] = kept_anyway;
      --count;
    }
    return;
  }
  const auto candidate = [ranks](std::int64_t slot) SKIM_LAMBDA_INLINE { return ranks[slot] != no_candidate; };
  const auto age = age_rank(kv, head, newest, candidate);
  const rank_threshold limit = find_threshold(age, past, count, scratch.histogram);
  take_above(age, past, limit, [ranks](std::int64_t slot) SKIM_LAMBDA_INLINE { ranks[slot] = kept_anyway; });
}

/// Writes ranks of all past slots and returns how many are candidates. `scores` null: all candidates rank equal.
SKIM_INLINE std::int64_t rank_candidates(const attention_args& args, const attention_sequence& sequence,
                                         std::int64_t head, const float* scores, std::uint32_t* ranks) {
  const kv_view& kv = *sequence.kv;
  const std::int64_t past = kv.length(head) - sequence.Tq;
  const chunk_sight sight(args, sequence, head);
  std::int64_t candidates = 0;
  for (std::int64_t slot = 0; slot < past; ++slot) {
    const bool seen = sight.sees(kv.position(head, slot));
    ranks[slot] = !seen ? no_candidate : scores ? rank_bits(scores[slot]) : rank_bits(0.0f);
    candidates += seen;
  }
  return candidates;
}

/// Writes the slots of [0, n) to keep, ascending: `sinks`, `recent` and the highest of `scratch.ranks`, `budget` in all;
/// every candidate where there are no more. Equal ranks prefer the earlier position, or the later. Returns their number.
SKIM_INLINE std::int64_t keep_ranked(const kv_view& kv, std::int64_t head, std::int64_t n, std::int64_t candidates,
                                     const retention& keep, std::int64_t budget, bool later,
                                     const top_k_scratch& scratch, std::int32_t* list) {
  std::uint32_t* const ranks = scratch.ranks;
  std::int64_t length = 0;
  const auto append = [&](std::int64_t slot) SKIM_LAMBDA_INLINE { list[length++] = static_cast<std::int32_t>(slot); };
  if (candidates <= budget) {
    for (std::int64_t slot = 0; slot < n; ++slot) {
      if (ranks[slot] != no_candidate) append(slot);
    }
    return length;
  }
  const bool ascend = positions_ascend(kv, head, n);
  keep_ends(kv, head, n, keep.sinks, false, ascend, scratch);
  keep_ends(kv, head, n, keep.recent, true, ascend, scratch);
  const auto rank = [ranks](std::int64_t slot) SKIM_LAMBDA_INLINE { return ranks[slot]; };
  rank_threshold limit = find_threshold(rank, n, budget, scratch.histogram);
  // Of several equals the first slots would be taken: where those are not the wanted positions, these are settled first.
  if ((!ascend || later) && limit.ties < limit.equals) {
    const auto tied = [ranks, limit](std::int64_t slot) SKIM_LAMBDA_INLINE { return ranks[slot] == limit.rank; };
    const auto age = age_rank(kv, head, later, tied);
    const rank_threshold last = find_threshold(age, n, limit.ties, scratch.histogram);
    take_above(age, n, last, [ranks](std::int64_t slot) SKIM_LAMBDA_INLINE { ranks[slot] = kept_anyway; });
    if (limit.rank != kept_anyway) limit.ties = 0;
  }
  take_above(rank, n, limit, append);
  return length;
}

/// The list of one KV head: sinks, recent keys and the highest scores, `keep.keys(Tk)` in all. Returns its length.
SKIM_INLINE std::int64_t top_k(const attention_args& args, const attention_sequence& sequence, std::int64_t head,
                               const retention& keep, const float* scores, const top_k_scratch& scratch,
                               std::int32_t* list) {
  const kv_view& kv = *sequence.kv;
  const std::int64_t past = kv.length(head) - sequence.Tq;
  const std::int64_t candidates = rank_candidates(args, sequence, head, scores, scratch.ranks);
  return keep_ranked(kv, head, past, candidates, keep, keep.keys(past), false, scratch, list);
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
