// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/attention.hpp>

namespace skim { inline namespace v0_2 {

/// Selector that leaves nothing out: every chunk reads all past keys.
struct dense {
  static constexpr bool scores_alike = true;

  SKIM_INLINE retention kept(std::int64_t) const { return retention::share(1); }
  SKIM_INLINE report check(const attention_args&) const { return {}; }
};

}}  // namespace skim::v0_2
