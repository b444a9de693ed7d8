// SPDX-License-Identifier: Apache-2.0
/// \file What a kernel wrote for a test case, held to exact arithmetic.
#pragma once

#include "attention_case.hpp"

#include <skim/testing/matchers.hpp>

#include <gtest/gtest.h>

namespace skim_test {

/// Output and log-sum-exp are exact within `rounding`; nothing beside them was written.
inline void expect_attention(const attention_case& c, attention_inputs& inputs, skim::testing::arithmetic rounding) {
  const skim::attention_args args = inputs.args();
  const auto truth = skim::testing::attend_exactly(args, inputs.lists(), rounding);
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::attention_matcher(truth, rounding)));
  if (c.lse) {
    EXPECT_TRUE(skim::testing::satisfies(args.lse, skim::testing::lse_matcher(truth)));
  }
  EXPECT_TRUE(inputs.out().outside_intact());
  EXPECT_TRUE(inputs.lse().outside_intact());
}

}  // namespace skim_test
