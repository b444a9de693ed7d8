// SPDX-License-Identifier: Apache-2.0
/// \file An eviction by smoothed scores against one by those of the bare policy.
#pragma once

#include "eviction_small.hpp"
#include "values.hpp"

#include <skim/reference/eviction.hpp>

namespace skim_test {

namespace reference = skim::reference;

inline constexpr std::int64_t smoothed_budget = 40;

/// `make(keep, smooth)` gives the policy. Its scores are those of the bare one, unprotected, smoothed; what stays follows.
template <class Make>
void expect_smoothed(const eviction_case& c, const Make& make) {
  SCOPED_TRACE(testing::Message() << c);
  eviction_inputs inputs(c);
  const skim::eviction_args args = inputs.args();
  const skim::retention ends = skim::retention::budget(smoothed_budget, 4, 10);
  for (const std::int64_t width : {3, 5, 63}) {
    const auto policy = make(ends, width);
    const auto lists = lists_of(policy, eviction_inputs(c).args());
    for (std::int64_t head = 0; head < args.kv.heads; ++head) {
      SCOPED_TRACE(testing::Message() << "width " << width << ", head " << head);
      const auto bare = scores_of(make(skim::retention::budget(smoothed_budget), 1), args, head);
      const auto exact = reference::smoothed_by_position(args.kv, head, bare, width);
      const auto got = scores_of(policy, args, head);
      double largest = 0;
      for (const double x : bare) largest = std::max(largest, std::fabs(x));
      for (std::size_t slot = 0; slot < exact.size(); ++slot) {
        ASSERT_NEAR(got[slot], exact[slot], static_cast<double>(width + 2) * f32_roundoff * largest) << "slot " << slot;
      }
      if (args.share_heads) continue;
      const bool later = skim::prefers_later<decltype(make(ends, width))>;
      const auto kept =
          reference::keep_tokens(args.kv, head, ends, got, later ? reference::ties::later : reference::ties::earlier);
      EXPECT_EQ(lists[static_cast<std::size_t>(head)], kept);
    }
  }
}

}  // namespace skim_test
