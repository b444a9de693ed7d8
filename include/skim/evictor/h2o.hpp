// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/evictor/attention_cost.hpp>

namespace skim { inline namespace v0_2 {

/// Evictor H2O (arXiv 2306.14048), as CAOTE's paper uses it: a token's score is the softmax weight it has received from
/// all queries so far, meaned over the group's query heads, never averaged over queries. State [Hk, capacity] f32, which
/// follows the tokens. Every chunk must be observed, also where nothing is evicted.
struct h2o {
  retention keep = retention::budget(1024);
  std::int64_t smooth = 1;  ///< odd, at most 63; the paper's: 1

  SKIM_INLINE report check(const eviction_args&) const { return {}; }
  SKIM_INLINE cost_estimate cost(const eviction_args& args) const {
    return detail::weights_cost(args, args.new_tokens);
  }
  SKIM_INLINE constexpr policy_needs needs() const { return {true, true, false}; }
  SKIM_HD SKIM_INLINE float caote_weight(float score) const { return score; }
};

}}  // namespace skim::v0_2
