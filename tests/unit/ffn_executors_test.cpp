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

#include <cmath>

namespace {

using namespace skim_test;
using skim::neuron_retention;

using bytes = std::vector<unsigned char>;

/// Two blocks, the first of which is dense: a policy's state goes from one to the other.
template <class Op>
std::pair<bytes, bytes> two_blocks(const Op& op, const ffn_case& c, executor_choice choice, unsigned char fill = 0xff) {
  ffn_inputs first(c), second(c);
  skim::ffn_args args[] = {first.args(), second.args()};
  args[0].first_block = 0;
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
ffn_case wide_layer() {
  ffn_case c;
  c.weights = skim::element::bf16;
  c.M = 700;
  c.d = 150;
  c.f = 220;
  return c;
}

/// Arguments without memory.
skim::ffn_args shape_of(std::int64_t M, std::int64_t d, std::int64_t f) {
  skim::ffn_args args;
  args.x = {nullptr, {M, d}, skim::element::f32};
  args.out = {nullptr, {M, d}, skim::element::f32};
  args.gate = args.up = args.down = {nullptr, {f, d}, skim::element::bf16};
  return args;
}

/// Calls `body(op)` for a policy of each kind and each way to multiply.
template <class Body>
void for_each_op(const Body& body) {
  ffn_inputs parts(wide_layer());  // outlives the calls: policies view its predictor and compensator
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
    EXPECT_TRUE(two_blocks(op, wide_layer(), GetParam()) == two_blocks(op, wide_layer(), executor_choice{}));
  });
}

/// A workspace for some workers serves any fewer, whatever their work units.
TEST(FfnWorkspace, FewerWorkersNeedNoMore) {
  for (const std::int64_t d : {1, 31, 256, 1000, 4096, 20000}) {
    skim::ffn_args args = shape_of(1, d, 3);
    std::size_t fewer = 1;
    for (unsigned workers = 1; workers <= 100; ++workers) {
      const std::size_t needed = skim::cpu::ffn<>{}.workspace_bytes(args, workers);
      EXPECT_GE(needed, fewer) << workers << " workers, d " << d;
      fewer = needed;
    }
  }
}

/// One for some tokens and blocks serves any fewer, however they are cut.
TEST(FfnWorkspace, FewerTokensAndBlocksNeedNoMore) {
  for_each_op([](const auto& op) {
    skim::ffn_args args = shape_of(0, 150, 220);
    std::vector<std::size_t> fewer;
    for (const std::int64_t M : {0, 1, 5, 16, 17, 100, 128, 130, 511, 512, 513, 700, 2000}) {
      args.x.extents[0] = args.out.extents[0] = M;
      std::vector<std::size_t> needed;
      for (const std::int64_t blocks : {1, 2, 3, 7, 100}) {
        args.block_tokens = blocks == 1 ? 0 : (M + blocks - 1) / blocks;
        if (block_count(args) != blocks) continue;
        needed.push_back(op.workspace_bytes(args, 3));
      }
      ASSERT_GT(needed.front(), 0u);
      EXPECT_TRUE(std::is_sorted(needed.begin(), needed.end()));
      for (std::size_t i = 0; i < fewer.size() && i < needed.size(); ++i) EXPECT_LE(fewer[i], needed[i]) << M;
      if (needed.size() >= fewer.size()) fewer = needed;
    }
  });
}

/// What `check_shape` takes has a size, what it refuses none.
TEST(FfnWorkspace, IsDefinedForEveryShape) {
  const auto sizes = [](const auto& op, const skim::ffn_args& args) {
    for (const unsigned workers : {0u, 1u, 5u, ~0u}) {
      EXPECT_EQ(op.workspace_bytes(args, workers) > 0, op.check_shape(args).ok());
      EXPECT_LE(op.workspace_bytes(args, workers), std::size_t{1} << 62);
    }
    return op.check_shape(args).ok();
  };
  const std::int64_t most = std::int64_t{1} << 24;
  const skim::cpu::ffn op{skim::oracle{}};
  for (const std::int64_t M : {std::int64_t{0}, std::int64_t{1}, most}) {
    for (const std::int64_t block_tokens : {std::int64_t{0}, std::int64_t{1}, most}) {
      for (const std::int64_t width : {std::int64_t{1}, most}) {
        skim::ffn_args args = shape_of(M, width, width);
        args.block_tokens = block_tokens;
        EXPECT_TRUE(sizes(op, args));
      }
    }
  }
  EXPECT_FALSE(sizes(op, {}));
  EXPECT_FALSE(sizes(op, shape_of(-1, 8, 8)));
  EXPECT_FALSE(sizes(op, shape_of(1, 8, most + 1)));
  EXPECT_FALSE(sizes(op, shape_of(1, -8, 8)));
  EXPECT_FALSE(sizes(skim::cpu::ffn{skim::oracle{neuron_retention::share(std::nan(""))}}, shape_of(1, 8, 8)));
  EXPECT_FALSE(sizes(skim::cpu::ffn{skim::fastforward{}}, shape_of(1, 8, 8)));
  const skim::cpu::ffn stateful{skim::static_set{}};
  EXPECT_EQ(stateful.state_bytes(shape_of(1, 8, 10)), 40u);
  EXPECT_EQ(stateful.state_bytes(shape_of(1, 8, -10)), 0u);
}

TEST(FfnWorkspace, ContentsDoNotMatter) {
  for (const unsigned char fill : {0x00, 0x7f, 0x3f}) {
    for_each_op([&](const auto& op) {
      EXPECT_TRUE(two_blocks(op, wide_layer(), {}, fill) == two_blocks(op, wide_layer(), {}))
          << "filled with " << int{fill};
    });
  }
}

/// Tokens do not see each other: a block in pieces gives the rows of the whole, whatever tile and lane they fall in.
TEST(FfnTokens, AreIndependentOfTheirBlock) {
  for_each_op([](const auto& op) {
    const ffn_case c = wide_layer();
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

/// Prompts of every kind: with an edge or without, of ragged blocks, empty, generated; and blocks that are dense beside
/// blocks that are not.
struct prompt_sample {
  std::int64_t block_tokens;
  std::vector<skim::ffn_prompt> prompts;
};
const std::vector<prompt_sample>& prompt_samples() {
  static const std::vector<prompt_sample> samples{
      {0, {{700, 3, false, false}}},
      {128, {{700, 0, true, false}}},
      {100, {{700, 7, false, false}}},
      {33,
       {{33, 0, false, false}, {100, 2, true, false}, {0, 4, true, false}, {1, 9, false, true}, {566, 1, true, false}}},
      {600, {{1, 5, false, true}, {1, 6, false, true}, {1, 0, true, false}, {697, 0, false, false}}},
      {0, {{350, 1, false, false}, {0, 0, false, false}, {350, 1, true, false}}},
  };
  return samples;
}

void set_prompts(skim::ffn_args& args, const prompt_sample& sample) {
  args.block_tokens = sample.block_tokens;
  args.prompts = sample.prompts.data();
  args.prompt_count = static_cast<std::int64_t>(sample.prompts.size());
}

/// A call's output, its steps' output, and that of a call for each of its blocks; and the state that is left.
struct many_outputs {
  bytes call, steps, apart, state, state_apart;
};

template <class Op>
many_outputs compute_blocks(const Op& op, const ffn_case& c, const prompt_sample& sample, executor_choice choice) {
  ffn_inputs together(c), stepwise(c), alone(c);
  skim::ffn_args args = together.args(), steps = stepwise.args(), apart = alone.args();
  for (skim::ffn_args* each : {&args, &steps, &apart}) set_prompts(*each, sample);
  many_outputs out;
  if (!op.check(args)) return out;  // a static set takes one prompt
  aligned_memory workspace(op.workspace_bytes(args, choice.workers)), state(op.state_bytes(args));
  aligned_memory state_apart(op.state_bytes(args));
  const std::int64_t blocks = block_count(args), f = c.f, capacity = op.list_capacity(args);
  std::vector<float> scores(static_cast<std::size_t>(blocks * (f + 5)), -1.0f);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(blocks * capacity), -1);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(blocks), -1);
  const skim::tensor_view<float, 2> view(scores.data(), {blocks, f}, {f + 5, 1});
  const skim::index_lists lists{indices.data(), counts.data(), blocks, capacity};
  run_on(choice, [&](const auto& executor) {
    EXPECT_TRUE(op.reset(args, state.get(), executor).ok());
    EXPECT_TRUE(op.reset(args, state_apart.get(), executor).ok());
    skim::path taken = skim::path::dense;
    skim::for_each_block(apart, [&](const skim::ffn_args& block, std::int64_t) {
      const skim::report report = op.run(block, state_apart.get(), workspace.get(), executor);
      EXPECT_TRUE(report.ok());
      if (report.taken == skim::path::sparse) taken = skim::path::sparse;
    });
    const skim::report report = op.run(args, state.get(), workspace.get(), executor);
    EXPECT_TRUE(report.ok());
    EXPECT_EQ(report.taken, taken);
    EXPECT_TRUE(op.score(steps, view, state.get(), workspace.get(), executor).ok());
    EXPECT_TRUE(op.choose(steps, view, lists, workspace.get(), executor).ok());
    EXPECT_TRUE(op.compute(steps, lists, workspace.get(), executor).ok());
    EXPECT_TRUE(op.compensate(steps, workspace.get(), executor).ok());
  });
  skim::for_each_block(args, [&](const skim::ffn_args& block, std::int64_t index) {
    const std::int64_t expected = runs_dense(op.selector.keep, block) ? f : 101;
    EXPECT_EQ(counts[static_cast<std::size_t>(index)], expected) << "block " << index;
  });
  EXPECT_TRUE(workspace.guards_intact() && state.guards_intact() && together.out().outside_intact());
  const auto held = [](skim::memory m) {
    const auto* const first = static_cast<const unsigned char*>(m.data);
    return bytes(first, first + m.bytes);
  };
  out = {together.out().bytes(), stepwise.out().bytes(), alone.out().bytes(), held(state.get()),
         held(state_apart.get())};
  return out;
}

/// Calls `body(op)` for each policy, with dense edges and without.
template <class Body>
void for_each_edge(const Body& body) {
  for_each_op([&](const auto& op) {
    body(op);
    auto sparse = op;
    sparse.selector.keep.dense_edges = false;
    sparse.selector.keep.sparse_decode = true;
    body(sparse);
  });
}

TEST(FfnBlocks, GiveTheBitsOfCallsForEach) {
  for (const prompt_sample& sample : prompt_samples()) {
    SCOPED_TRACE(testing::Message() << "blocks of " << sample.block_tokens);
    for_each_edge([&](const auto& op) {
      const many_outputs out = compute_blocks(op, wide_layer(), sample, {});
      EXPECT_TRUE(out.call == out.apart);
      EXPECT_TRUE(out.call == out.steps);
      EXPECT_TRUE(out.state == out.state_apart);
    });
  }
}

TEST_P(ffn_executors, leave_the_serial_bits_of_many_blocks) {
  const prompt_sample& sample = prompt_samples()[3];
  for_each_op([&](const auto& op) {
    const many_outputs out = compute_blocks(op, wide_layer(), sample, GetParam());
    const many_outputs serial = compute_blocks(op, wide_layer(), sample, {});
    EXPECT_TRUE(out.call == serial.call);
    EXPECT_TRUE(out.steps == serial.call);
    EXPECT_TRUE(out.state == serial.state);
  });
}

}  // namespace
