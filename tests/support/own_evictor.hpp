// SPDX-License-Identifier: Apache-2.0
/// \file Evictor policies that a user might write: a set-independent score, and given weights.
#pragma once

#include <skim/cpu/eviction.hpp>

namespace skim_test {

/// A score out of 64 that depends on the position alone, so that many tie.
inline float hashed_score(std::int64_t position) {
  return static_cast<float>(static_cast<std::uint32_t>(position) * 2654435761u >> 26);
}

/// Keeps the highest `hashed_score`; of equal ones the earlier position, or the later.
template <bool Later>
struct hashed_tokens {
  static constexpr bool prefers_later = Later;

  skim::retention keep;

  skim::report check(const skim::eviction_args&) const { return {}; }

  void score(const skim::eviction_args& args, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    const skim::kv_cache& kv = args.kv;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(head, slot) = hashed_score(kv.position(head, slot));
      }
    });
  }
};

/// Every token scores and weighs `value`, the one at position `special` 1. A base for CAOTE.
struct constant_weights {
  skim::retention keep;
  float value = 0;
  std::int64_t special = -1;

  skim::report check(const skim::eviction_args&) const { return {}; }
  float caote_weight(float score) const { return score; }

  void score(const skim::eviction_args& args, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    const skim::kv_cache& kv = args.kv;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(head, slot) = kv.position(head, slot) == special ? 1.0f : value;
      }
    });
  }
};

}  // namespace skim_test
