// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/evictor/attention_cost.hpp>

namespace skim { inline namespace v0_2 {

/// Evictor SnapKV (arXiv 2404.14469) in chunks: the mean softmax weight from the chunk's last `window` queries (fewer if
/// the chunk has fewer) and the group's heads, then average-pooled over `pool` neighbours in order of position (zeros
/// beyond the ends, always divided by `pool`). The newest `window` tokens stay and count in the budget.
/// State [Hk, capacity] f32: what the last `observe` saw.
struct snapkv {
  retention keep = retention::budget(1024);
  std::int64_t window = 32;
  std::int64_t pool = 5;  ///< odd, at most 63

  /// `keep` with the window among the protected tokens. A window that does not fit beside the sinks is cut here, so that
  /// `check` can name it.
  SKIM_HD SKIM_INLINE constexpr retention kept(std::int64_t) const {
    retention all = keep;
    if (keep.sinks < 0 || keep.sinks > keep.count) return all;  // which `check` refuses
    const std::int64_t room = keep.count - keep.sinks, fitting = window < room ? window : room;
    if (all.recent < fitting) all.recent = fitting;
    return all;
  }

  SKIM_INLINE report check(const eviction_args&) const {
    if (window < 1) return fault(status::bad_value, "window", window, 1, "at least");
    const std::int64_t room = keep.count - keep.sinks;
    if (window > room) return fault(status::bad_value, "window", window, room, "beside the sinks at most");
    return detail::check_width_of_mean("pool", pool);
  }

  /// The first of the chunk's queries that are asked.
  SKIM_HD SKIM_INLINE constexpr std::int64_t first_query(const eviction_args& args) const {
    return args.new_tokens > window ? args.new_tokens - window : 0;
  }

  SKIM_INLINE cost_estimate cost(const eviction_args& args) const {
    return detail::weights_cost(args, args.new_tokens - first_query(args));
  }
  SKIM_INLINE constexpr policy_needs needs() const { return {true, true, false}; }
  SKIM_HD SKIM_INLINE float caote_weight(float score) const { return score; }
};

}}  // namespace skim::v0_2
