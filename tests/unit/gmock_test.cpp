// SPDX-License-Identifier: Apache-2.0
// The matchers work with GoogleMock's EXPECT_THAT, although their header asks for GoogleTest only.
#include "support/attention_case.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/testing/matchers.hpp>

#include <gmock/gmock-matchers.h>

namespace {

TEST(ExpectThat, TakesTheMatchers) {
  skim_test::attention_case c;
  c.lse = true;
  skim_test::attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<> op;
  skim_test::aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(args, {}, workspace.get(), skim::serial_executor{}).ok());
  EXPECT_THAT(args.out, skim::testing::matches_attention(args));
  EXPECT_THAT(args.lse, skim::testing::matches_lse(args));
  *args.lse.at(0, 0) += 1;
  EXPECT_THAT(args.lse, testing::Not(skim::testing::matches_lse(args)));
}

}  // namespace
