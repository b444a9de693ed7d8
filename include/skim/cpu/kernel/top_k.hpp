// SPDX-License-Identifier: Apache-2.0
/// \file Stable top-k of one KV head's past keys: by score, ties by position, the earlier first; lists ascend by slot.
///
/// Scores become unsigned ranks; a radix select finds the rank of the budget's last key, and one more pass writes the
/// list. No sort, no allocation, the same list for any number of workers.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/executor.hpp>
#include <skim/math/mask.hpp>
#include <skim/math/order.hpp>
#include <skim/retention.hpp>
#include <skim/view.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::uint32_t kept_anyway = 0xffffffffu;  // sinks and recent keys; above the rank of every score
inline constexpr std::uint32_t no_candidate = 0;

/// Where the CPU's sparse path begins to win: twice the budget is the length from which reading all keys to score them and
/// then the budget moves fewer bytes than reading everything. The number of rows has not been measured yet: 0.
SKIM_INLINE dense_crossing crossing_of(const retention& keep, std::int64_t past) {
  return {smaller(keep.keys(past), largest_index) * 2, 0};
}

/// Whether a block reads everything that is behind it.
SKIM_INLINE bool reads_all(const retention& keep, const attention_sequence& block) {
  return runs_dense(keep, block.Tk(), block.Tq, crossing_of(keep, block.Tk()));
}

/// scores = 0, for policies that score nothing.
inline void score_alike(tensor_view<float, 2> scores, executor_ref executor) {
  executor.parallel_for(scores.extents[0], [&](std::int64_t row, unsigned) {
    for (std::int64_t slot = 0; slot < scores.extents[1]; ++slot) *scores.at(row, slot) = 0;
  });
}

/// Answers whether some query of the chunk may see a position.
class chunk_sight {
 public:
  SKIM_INLINE chunk_sight(const attention_args& args, const attention_sequence& sequence, std::int64_t head)
      : kv_(&sequence.kv), see_(args.mask), head_(head), past_(sequence.past(head)), Tq_(sequence.Tq) {
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

  /// Whether the keys that are seen are those of a run of slots.
  SKIM_INLINE bool is_run() const { return !kv_->positions && !has_gaps_; }
  /// The run, of the first `past` slots.
  SKIM_INLINE position_range run(std::int64_t past) const {
    if (Tq_ == 0) return {0, 0};
    const std::int64_t begin = smaller(greater(hull().begin - kv_->first_position, 0), past);
    return {begin, smaller(greater(hull().end - kv_->first_position, begin), past)};
  }

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
SKIM_NOINLINE inline void keep_ends(const kv_view& kv, std::int64_t head, std::int64_t past, std::int64_t count,
                                    bool newest, bool ascend, const rank_scratch& scratch) {
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

/// The tokens that sequences which are selected together may count, each as long as the longest of them, block by block. All
/// tokens count, not the past alone: of two calls over as many tokens that with fewer rows has the longer past, and must not
/// need more.
SKIM_LOCAL std::int64_t group_tokens(const attention_args& args, std::int64_t block_rows, unsigned workers) {
  const std::int64_t busy = static_cast<std::int64_t>(workers) / first_view(args).heads;  // sequences for all workers
  const std::int64_t one = saturated(most_tokens(args), block_count(most_rows(args), block_rows));
  return greater(saturated(one, greater(busy, 2)), 1 << 18);
}

/// Writes ranks of all past slots and returns how many are candidates. `scores` null: all candidates rank equal.
SKIM_NOINLINE inline std::int64_t rank_candidates(const attention_args& args, const attention_sequence& sequence,
                                                  std::int64_t head, const float* scores, std::uint32_t* ranks) {
  const kv_view& kv = sequence.kv;
  const std::int64_t past = sequence.past(head);
  const chunk_sight sight(args, sequence, head);
  std::int64_t candidates = 0;
  if (scores && sight.is_run()) {
    const position_range run = sight.run(past);
    for (std::int64_t slot = 0; slot < run.begin; ++slot) ranks[slot] = no_candidate;
    rank_scores(scores + run.begin, run.end - run.begin, ranks + run.begin);
    for (std::int64_t slot = run.end; slot < past; ++slot) ranks[slot] = no_candidate;
    return run.end - run.begin;
  }
  for (std::int64_t slot = 0; slot < past; ++slot) {
    const bool seen = sight.sees(kv.position(head, slot));
    ranks[slot] = !seen ? no_candidate : scores ? rank_bits(scores[slot]) : rank_bits(0.0f);
    candidates += seen;
  }
  return candidates;
}

/// Writes the slots of [0, n) to keep, ascending: `sinks`, `recent` and the highest of `scratch.ranks`, `budget` in all;
/// every candidate where there are no more. Equal ranks prefer the earlier position, or the later. Returns their number.
SKIM_NOINLINE inline std::int64_t keep_ranked(const kv_view& kv, std::int64_t head, std::int64_t n,
                                              std::int64_t candidates, const retention& keep, std::int64_t budget,
                                              bool later, const rank_scratch& scratch, std::int32_t* list) {
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
  const stored_ranks rank{ranks};
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
SKIM_NOINLINE inline std::int64_t top_k(const attention_args& args, const attention_sequence& sequence,
                                        std::int64_t head, const retention& keep, const float* scores,
                                        const rank_scratch& scratch, std::int32_t* list) {
  const kv_view& kv = sequence.kv;
  const std::int64_t past = sequence.past(head);
  const std::int64_t candidates = rank_candidates(args, sequence, head, scores, scratch.ranks);
  return keep_ranked(kv, head, past, candidates, keep, keep.keys(past), false, scratch, list);
}

/// Lists all `past` keys of a block that leaves nothing out: those that the mask hides too, so that it reads what it would
/// read without lists, tile by tile.
inline void list_all(std::int64_t past, const index_lists& lists, std::int64_t row) {
  for (std::int64_t slot = 0; slot < past; ++slot) lists.row(row)[slot] = static_cast<std::int32_t>(slot);
  lists.counts[row] = static_cast<std::int32_t>(past);
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
