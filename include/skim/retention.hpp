// SPDX-License-Identifier: Apache-2.0
/// \file How many keys, tokens or neurons a policy keeps, which of them whatever their score, and when it keeps all.
#pragma once

#include <skim/check.hpp>

namespace skim { inline namespace v0_2 {
namespace detail {

/// fraction * all, rounded up; but a product that only rounding puts above a whole number is that number: 55 for 0.55 of
/// 100, although 0.55 * 100.0 > 55.
SKIM_HD SKIM_INLINE constexpr std::int64_t share_of(double fraction, std::int64_t all) {
  if (!within(fraction, 0, 1)) return 0;  // which `check` refuses
  const double exact = fraction * static_cast<double>(all) * (1 - 0x1p-50);
  const std::int64_t whole = static_cast<std::int64_t>(exact);
  return static_cast<double>(whole) < exact ? whole + 1 : whole;
}

/// What the two retentions have in common: a count or a share.
SKIM_LOCAL constexpr report check_amount(std::int64_t count, double fraction) {
  if (count < 0) return fault(status::bad_value, "keep.count", count, 1, "at least");
  if (!within(fraction, 0, 1)) return fault(status::bad_value, "keep.fraction", fraction, 1, "above 0 and at most");
  if (count == 0 && fraction == 0) return fault(status::bad_value, "keep.count", count, 1, "at least");
  if (count > 0 && fraction > 0) {
    return fault(status::bad_value, "keep.count", count, 0, "with keep.fraction set,");
  }
  return {};
}

}  // namespace detail

/// What stays of a KV head's tokens. For a selector: past keys that a block of queries reads, its own being read in any case.
/// For an evictor: tokens that stay in the cache, the chunk's own counted; by `count`, not by `fraction`.
/// Sinks and recent tokens are inside the budget.
struct retention {
  std::int64_t count = 0;   ///< tokens to keep, or
  double fraction = 0;      ///< share of the past, rounded up; exactly one of the two is set
  std::int64_t sinks = 0;   ///< always keep this many of the lowest surviving positions
  std::int64_t recent = 0;  ///< always keep this many of the highest surviving positions

  // Selectors only: which rows choose together, and which blocks of rows are not worth a choice and read everything.
  std::int64_t every = 0;  ///< rows of q that share a choice and see no later ones (`index_lists::block_rows`); 0 = all
  std::int64_t dense_below =
      -1;  ///< blocks with a shorter past are dense; -1 = the back-end's measured crossing, 0 = none
  std::int64_t rows_below = 0;  ///< blocks of fewer rows of q are dense; -1 and 0 likewise

  /// Recent give way where they fill more than a quarter of what is kept, rounded up, or with the sinks more than half;
  /// sinks where they alone fill more than half. (At 256 keys the newest 128 would leave too few that were asked for: 0.95
  /// of the answers of a model, 0.98 with 64.)
  bool shrinks = false;

  SKIM_HD static constexpr retention budget(std::int64_t tokens, std::int64_t sinks = 0, std::int64_t recent = 0) {
    return {tokens, 0, sinks, recent};
  }
  SKIM_HD static constexpr retention share(double fraction, std::int64_t sinks = 0, std::int64_t recent = 0) {
    return {0, fraction, sinks, recent};
  }

  /// What QUOKA's own rule was measured with: 4 sinks and the newest 128 inside, a choice for every 64 rows.
  SKIM_HD static constexpr retention preset(std::int64_t tokens) { return {tokens, 0, 4, 128, 64, -1, 0, true}; }
  SKIM_HD static constexpr retention preset_share(double fraction) { return {0, fraction, 4, 128, 64, -1, 0, true}; }

  /// The same, with other bounds below which blocks are dense: `retention::budget(512).dense_under(0)` never is.
  SKIM_HD constexpr retention dense_under(std::int64_t past, std::int64_t rows = 0) const {
    retention other = *this;
    other.dense_below = past;
    other.rows_below = rows;
    return other;
  }
  /// The same, chosen anew for every `rows` rows of q.
  SKIM_HD constexpr retention for_every(std::int64_t rows) const {
    retention other = *this;
    other.every = rows;
    return other;
  }

  /// Kept of `n` tokens; may exceed `n`. A share is never less than sinks + recent, which a short cache would undercut.
  SKIM_HD SKIM_INLINE constexpr std::int64_t keys(std::int64_t n) const {
    if (count > 0) return count;
    const std::int64_t share = detail::share_of(fraction, n), most = detail::largest_index;
    const bool sound = sinks >= 0 && sinks <= most && recent >= 0 && recent <= most;  // else `check` refuses
    return sound && !shrinks && share < sinks + recent ? sinks + recent : share;
  }

  /// The same for `n` tokens: with as many sinks and recent ones as stay of those that may shrink.
  SKIM_HD SKIM_INLINE constexpr retention among(std::int64_t n) const {
    retention other = *this;
    if (!shrinks || count < 0 || sinks < 0 || recent < 0) return other;  // what `check` refuses stays as it is
    const std::int64_t kept = keys(n), half = kept / 2, quarter = (kept + 3) / 4;
    if (other.sinks > half) other.sinks = half;
    const std::int64_t most = quarter < half - other.sinks ? quarter : half - other.sinks;
    if (other.recent > most) other.recent = most;
    return other;
  }
};

SKIM_LOCAL constexpr report check(const retention& keep) {
  using namespace detail;
  if (report r = check_range("keep.sinks", keep.sinks, 0, largest_index, status::bad_value); !r) return r;
  if (report r = check_range("keep.recent", keep.recent, 0, largest_index, status::bad_value); !r) return r;
  if (report r = check_amount(keep.count, keep.fraction); !r) return r;
  const std::int64_t most = keep.count > 0 ? keep.count : largest_index;
  const retention ends = keep.count > 0 ? keep.among(keep.count) : keep;  // those that shrink fit
  if (ends.sinks > most) return fault(status::bad_value, "keep.sinks", ends.sinks, most, "at most");
  if (ends.recent > most - ends.sinks) {
    return fault(status::bad_value, "keep.recent", ends.recent, most - ends.sinks, "beside the sinks at most");
  }
  if (report r = check_range("keep.every", keep.every, 0, largest_index, status::bad_value); !r) return r;
  if (report r = check_range("keep.dense_below", keep.dense_below, -1, largest_index, status::bad_value); !r) return r;
  return check_range("keep.rows_below", keep.rows_below, -1, largest_index, status::bad_value);
}

namespace detail {

inline constexpr std::int64_t widest_mean = 63;  // each token's costs as much

/// Of the number of neighbouring tokens whose scores are averaged.
SKIM_LOCAL constexpr report check_width_of_mean(const char* name, std::int64_t width) {
  if (report r = check_range(name, width, 1, widest_mean, status::bad_value); !r) return r;
  return width % 2 == 0 ? fault(status::bad_value, name, width, width + 1, "odd, such as") : report{};
}

}  // namespace detail

/// From how long a past and from how many rows of q on a back-end's sparse path is faster than its dense one.
struct dense_crossing {
  std::int64_t past = 0, rows = 0;
};

/// True if a block of `rows` rows of q behind `past` tokens reads everything. `measured` stands where `keep` says -1.
SKIM_HD SKIM_INLINE constexpr bool runs_dense(const retention& keep, std::int64_t past, std::int64_t rows,
                                              dense_crossing measured) {
  if (past <= keep.keys(past)) return true;
  return past < (keep.dense_below >= 0 ? keep.dense_below : measured.past) ||
         rows < (keep.rows_below >= 0 ? keep.rows_below : measured.rows);
}

/// The longest list that `keep` can give behind `past` tokens, or behind fewer.
SKIM_HD SKIM_LOCAL std::int64_t list_capacity(const retention& keep, std::int64_t past, dense_crossing measured) {
  const std::int64_t dense = keep.dense_below >= 0 ? keep.dense_below : measured.past;
  std::int64_t longest = keep.keys(past) > dense - 1 ? keep.keys(past) : dense - 1;
  if (keep.rows_below > 0 || (keep.rows_below < 0 && measured.rows > 0)) longest = past;  // blocks of few rows read all
  return longest < past ? longest : past;
}

/// How many neurons a policy computes, and in which blocks it computes all.
struct neuron_retention {
  std::int64_t count = 0;      ///< neurons to compute, or
  double fraction = 0;         ///< share of f, rounded up; exactly one of the two is set
  bool dense_edges = true;     ///< the prompt's first and last block are dense (arXiv 2602.00397, section 3)
  bool sparse_decode = false;  ///< generated tokens are sparse too

  static constexpr neuron_retention budget(std::int64_t neurons) { return {neurons, 0}; }
  static constexpr neuron_retention share(double fraction) { return {0, fraction}; }

  /// Neurons computed of `f`; may exceed `f`.
  SKIM_HD SKIM_INLINE constexpr std::int64_t neurons(std::int64_t f) const {
    return count > 0 ? count : detail::share_of(fraction, f);
  }
};

SKIM_LOCAL constexpr report check(const neuron_retention& keep) {
  return detail::check_amount(keep.count, keep.fraction);
}

}}  // namespace skim::v0_2
