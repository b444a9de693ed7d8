// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 {

/// Evictor that draws lots, anew at each eviction: a control. The draw of a token depends on the seed, its KV head, its
/// position and the newest position. Give each layer its own seed.
struct random_tokens {
  retention keep = retention::budget(1024);
  std::uint64_t seed = 0;

  SKIM_INLINE report check(const eviction_args&) const { return {}; }
};

}}  // namespace skim::v0_2
