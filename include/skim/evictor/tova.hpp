// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/evictor/attention_cost.hpp>

namespace skim { inline namespace v0_2 {

/// Evictor TOVA (arXiv 2401.06104): a token's score is the softmax weight that the chunk's last query gives it, meaned
/// over the group's query heads. State [Hk, capacity] f32: what the last `observe` saw.
struct tova {
  retention keep = retention::budget(1024);
  std::int64_t smooth = 1;  ///< odd, at most 63; the paper's: 1

  SKIM_INLINE report check(const eviction_args&) const { return {}; }
  SKIM_INLINE cost_estimate cost(const eviction_args& args) const { return detail::weights_cost(args, 1); }
  SKIM_INLINE constexpr policy_needs needs() const { return {true, true, false}; }
  SKIM_HD SKIM_INLINE float caote_weight(float score) const { return score; }
};

}}  // namespace skim::v0_2
