// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/retention.hpp>

namespace skim { inline namespace v0_2 {

/// Selector and evictor that scores nothing: the `sinks` lowest positions and, for the rest of the budget, the highest
/// (StreamingLLM, arXiv 2309.17453). `keep.recent` need not be set.
struct sink_window {
  retention keep = retention::budget(1024, 4);

  static constexpr bool scores_alike = true;

  SKIM_HD SKIM_INLINE retention kept(std::int64_t tokens) const {
    retention all = keep;
    if (keep.sinks >= 0 && keep.sinks <= keep.keys(tokens)) all.recent = keep.keys(tokens) - keep.sinks;
    return all;
  }
  template <class Args>
  SKIM_INLINE report check(const Args&) const {
    if (keep.recent == 0) return {};
    return fault(status::bad_value, "keep.recent (sink_window derives it)", keep.recent, 0);
  }
};

}}  // namespace skim::v0_2
