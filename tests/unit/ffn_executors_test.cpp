// SPDX-License-Identifier: Apache-2.0
// The FFN leaves the same bits on every executor, for every number of workers and whatever lies in the workspace.
#include "support/executors.hpp"
#include "support/ffn_case.hpp"

#include <skim/cpu/features.hpp>
#include <skim/cpu/ffn.hpp>
#include <skim/cpu/neuron_selector/fastforward.hpp>
#include <skim/cpu/neuron_selector/oracle.hpp>
#include <skim/cpu/neuron_selector/static_set.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::neuron_retention;

using bytes = std::vector<unsigned char>;

/// Two blocks, the first of which is dense: a policy's state goes from one to the other.
template <class Op>
std::pair<bytes, bytes> two_blocks(const Op& op, const ffn_case& c, executor_choice choice, unsigned char fill = 0xff) {
  ffn_inputs first(c), second(c);
  skim::ffn_args args[] = {first.args(), second.args()};
  args[0].block = 0;
  aligned_memory state(op.state_bytes(args[0])), workspace(op.workspace_bytes(args[0], choice.workers), fill);
  run_on(choice, [&](const auto& executor) {
    EXPECT_TRUE(op.reset(args[0], state.get(), executor).ok());
    EXPECT_EQ(op.run(args[0], state.get(), workspace.get(), executor).taken, skim::path::dense);
    EXPECT_EQ(op.run(args[1], state.get(), workspace.get(), executor).taken, skim::path::sparse);
  });
  EXPECT_TRUE(state.guards_intact() && workspace.guards_intact());
  EXPECT_TRUE(first.out().outside_intact() && second.out().outside_intact());
  return {first.out().bytes(), second.out().bytes()};
}

/// More than one unit of every loop, and a rest: batches of 512 tokens, tiles of 128, 32 neurons, columns.
ffn_case wide_case() {
  ffn_case c;
  c.weights = skim::element::bf16;
  c.M = 700;
  c.d = 150;
  c.f = 220;
  return c;
}

/// Calls `body(op)` for a policy of each kind and each way to multiply.
template <class Body>
void for_each_op(const Body& body) {
  ffn_inputs parts(wide_case());  // outlives the calls: policies view its predictor and compensator
  const neuron_retention keep = neuron_retention::budget(101);
  const skim::fastforward selector{keep, parts.predictor(), parts.compensator()};
  body(skim::cpu::ffn{selector});
  body(skim::cpu::ffn{selector, skim::accumulate::dot_pairs{}});
  body(skim::cpu::ffn{selector, skim::cpu::request_amx()});
  body(skim::cpu::ffn{skim::static_set{keep}});
  body(skim::cpu::ffn{skim::oracle{keep}});
}

class ffn_executors : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(kinds, ffn_executors, testing::ValuesIn(every_executor));

TEST_P(ffn_executors, leave_the_serial_bits) {
  for_each_op([](const auto& op) {
    EXPECT_TRUE(two_blocks(op, wide_case(), GetParam()) == two_blocks(op, wide_case(), executor_choice{}));
  });
}

/// A workspace for some workers serves any fewer, whatever their work units.
TEST(FfnWorkspace, FewerWorkersNeedNoMore) {
  for (const std::int64_t d : {1, 31, 256, 1000, 4096, 20000}) {
    skim::ffn_args args;
    args.x.extents[0] = 1;
    args.x.extents[1] = args.up.extents[1] = d;
    args.up.extents[0] = 3;
    std::size_t fewer = 0;
    for (unsigned workers = 1; workers <= 100; ++workers) {
      const std::size_t needed = skim::cpu::ffn<>{}.workspace_bytes(args, workers);
      EXPECT_GE(needed, fewer) << workers << " workers, d " << d;
      fewer = needed;
    }
  }
}

TEST(FfnWorkspace, ContentsDoNotMatter) {
  for (const unsigned char fill : {0x00, 0x7f, 0x3f}) {
    for_each_op([&](const auto& op) {
      EXPECT_TRUE(two_blocks(op, wide_case(), {}, fill) == two_blocks(op, wide_case(), {}))
          << "filled with " << int{fill};
    });
  }
}

/// Tokens do not see each other: a block in pieces gives the rows of the whole, whatever tile and lane they fall in.
TEST(FfnTokens, AreIndependentOfTheirBlock) {
  for_each_op([](const auto& op) {
    const ffn_case c = wide_case();
    ffn_inputs whole(c), pieces(c);
    skim::ffn_args args = whole.args();
    std::vector<std::int32_t> list{1, 2, 30, 31, 32, 33, 34, 100, 219};
    std::int32_t count = 9;
    const skim::index_lists lists{list.data(), &count, 1, 9};
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.compute(args, lists, workspace.get(), skim::serial_executor{}).ok());
    const skim::ffn_args all = pieces.args();
    for (std::int64_t row = 0, rows = 1; row < c.M; row += rows, rows = std::min(2 * rows, c.M - row)) {
      args = all;
      args.x.data = all.x.at(row);
      args.out.data = all.out.at(row);
      args.x.extents[0] = args.out.extents[0] = rows;
      ASSERT_TRUE(op.compute(args, lists, workspace.get(), skim::serial_executor{}).ok());
    }
    EXPECT_EQ(whole.out().bytes(), pieces.out().bytes());
  });
}

}  // namespace
