// SPDX-License-Identifier: Apache-2.0
/// \file How many past keys a selector keeps, and which of them unconditionally.
#pragma once

#include <skim/attention.hpp>

namespace skim {
inline namespace v0 {

/// The budget counts past keys per KV head; sinks and recent keys are inside it. The chunk's own keys are always read.
struct retention {
  std::int64_t count = 0;   ///< keys to keep, or
  double fraction = 0;      ///< share of the past keys, rounded up; exactly one of the two is set
  std::int64_t sinks = 0;   ///< always keep this many of the lowest surviving positions
  std::int64_t recent = 0;  ///< always keep this many of the highest surviving positions

  static constexpr retention budget(std::int64_t keys, std::int64_t sinks = 0, std::int64_t recent = 0) {
    return {keys, 0, sinks, recent};
  }
  static constexpr retention share(double fraction, std::int64_t sinks = 0, std::int64_t recent = 0) {
    return {0, fraction, sinks, recent};
  }

  /// Keys kept of `Tk`; may exceed `Tk`. A share is never less than sinks + recent, which a short cache would undercut.
  SKIM_HD constexpr std::int64_t keys(std::int64_t Tk) const {
    if (count > 0) return count;
    const std::int64_t share = detail::share_of(fraction, Tk);
    return share < sinks + recent ? sinks + recent : share;
  }
};

SKIM_INLINE constexpr report check(const retention& keep) {
  using detail::fault;
  if (keep.sinks < 0) return fault(status::bad_value, "keep.sinks", keep.sinks, 0, "at least");
  if (keep.recent < 0) return fault(status::bad_value, "keep.recent", keep.recent, 0, "at least");
  if (keep.count < 0) return fault(status::bad_value, "keep.count", keep.count, 1, "at least");
  if (!detail::within(static_cast<float>(keep.fraction), 0, 1)) {
    return fault(status::bad_value, "keep.fraction", 0, 1, "above 0 and at most");
  }
  if (keep.count == 0 && keep.fraction == 0) return fault(status::bad_value, "keep.count", 0, 1, "at least");
  if (keep.count > 0 && keep.fraction > 0) {
    return fault(status::bad_value, "keep.count", keep.count, 0, "with keep.fraction set,");
  }
  const std::int64_t most = keep.count > 0 ? keep.count : detail::largest_index;
  if (keep.sinks > most) return fault(status::bad_value, "keep.sinks", keep.sinks, most, "at most");
  if (keep.recent > most - keep.sinks) {
    return fault(status::bad_value, "keep.recent", keep.recent, most - keep.sinks, "beside the sinks at most");
  }
  return {};
}

/// The longest list that `keep` can give in this call: the capacity that index lists need.
inline std::int64_t list_capacity(const retention& keep, const attention_args& args) {
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    const std::int64_t Tk = sequence_at(args, s).Tk();
    const std::int64_t keys = keep.keys(Tk) < Tk ? keep.keys(Tk) : Tk;
    if (keys > longest) longest = keys;
  }
  return longest;
}

/// True if the call has nothing to leave out, or is shorter than `dense_below`; see `attention_args`.
SKIM_HD inline bool runs_dense(const retention& keep, const attention_args& args, std::int64_t Tk) {
  const std::int64_t keys = keep.keys(Tk);
  return Tk <= keys || Tk < (args.dense_below >= 0 ? args.dense_below : 2 * keys);
}

}  // namespace v0
}  // namespace skim
