// SPDX-License-Identifier: Apache-2.0
// What cuda::ffn says before there is a GPU: sizes, refusals by name, and how blocks are cut.
#include <skim/cuda/ffn.cuh>
#include <skim/cuda/neuron_selector/fastforward.cuh>

#include "refusal.hpp"
#include "support/ffn_case.hpp"

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::neuron_retention;

TEST(CudaFfnCheck, NamesWhatItRefuses) {
  ffn_inputs inputs{ffn_case{}};
  const skim::cuda::ffn op{skim::fastforward{neuron_retention::share(0.5), inputs.predictor(), inputs.compensator()}};
  skim::ffn_args args = inputs.args();
  EXPECT_EQ(refusal_of(op.check(args)), "ok");
  args.out.type = skim::element::none;
  EXPECT_EQ(op.check(args).code, skim::status::bad_type);
  args = inputs.args();
  args.down.extents[0] -= 1;
  EXPECT_EQ(op.check(args).code, skim::status::bad_extent);
  args = inputs.args();
  args.up.data = nullptr;
  EXPECT_EQ(op.check(args).code, skim::status::null_pointer);
  EXPECT_EQ(refusal_of(op.check_shape(args)), "ok");
  args = inputs.args();
  skim::cuda::ffn narrow = op;
  narrow.selector.predictor.w2.extents[1] -= 1;
  EXPECT_EQ(narrow.check(args).code, skim::status::bad_extent);
  EXPECT_EQ(narrow.workspace_bytes(args), 0u);
  narrow = op;
  narrow.selector.keep = neuron_retention::budget(-1);
  EXPECT_EQ(narrow.check(args).code, skim::status::bad_value);
  narrow = op;
  narrow.selector.compensator.c2.extents[0] += 1;
  EXPECT_EQ(narrow.check(args).code, skim::status::bad_extent);
}

TEST(CudaFfnCheck, AShortWorkspaceOrListIsNamedAndNothingIsLaunched) {
  ffn_case c;
  ffn_inputs inputs(c);
  const skim::ffn_args args = inputs.args();
  const skim::cuda::ffn op{skim::fastforward{neuron_retention::budget(9), inputs.predictor(), inputs.compensator()}};
  const std::vector<unsigned char> before = inputs.out().bytes();
  const std::size_t needed = op.workspace_bytes(args);
  ASSERT_GT(needed, 0u);
  aligned_memory memory(needed);
  const skim::memory shorter{memory.data(), needed - 1};
  EXPECT_EQ(refusal_of(op.run(args, shorter, nullptr)), short_workspace(needed));
  std::vector<float> scores(static_cast<std::size_t>(c.f));
  std::vector<std::int32_t> list(9), count(1);
  EXPECT_EQ(op.score(args, {scores.data(), {1, c.f - 1}}, memory.get(), nullptr).code, skim::status::bad_extent);
  EXPECT_EQ(op.choose(args, {scores.data(), {1, c.f}}, {list.data(), count.data(), 1, 8}, nullptr).code,
            skim::status::bad_extent);
  EXPECT_EQ(op.compute(args, {list.data(), count.data(), 2, 9}, memory.get(), nullptr).code, skim::status::bad_extent);
  EXPECT_EQ(inputs.out().bytes(), before);
}

/// What is asked for before there is memory serves tensors at any address.
TEST(CudaFfnCheck, TheWorkspaceOfAShapeServesEveryAddress) {
  for (const skim::element type : {skim::element::f32, skim::element::f16, skim::element::bf16}) {
    ffn_case c;
    c.weights = type;
    ffn_inputs inputs(c);
    const skim::cuda::ffn op{skim::fastforward{neuron_retention::budget(9), inputs.predictor(), inputs.compensator()}};
    skim::ffn_args shape = inputs.args();
    shape.x.data = shape.gate.data = shape.up.data = shape.down.data = nullptr;
    shape.out.data = nullptr;
    EXPECT_GT(op.workspace_bytes(shape), 0u);
    EXPECT_EQ(op.workspace_bytes(shape), op.workspace_bytes(inputs.args()));
  }
}

TEST(CudaFfnCheck, SegmentsFollowFromTheShape) {
  using skim::cuda::detail::segments_of;
  EXPECT_EQ(segments_of(120, 32), 4);
  EXPECT_EQ(segments_of(232, 64), 2);
  EXPECT_EQ(segments_of(1000, 4), 8);
  EXPECT_EQ(segments_of(20, 4), 2);
  EXPECT_EQ(segments_of(7, 1), 1);
  EXPECT_EQ(segments_of(0, 1), 1);
  EXPECT_EQ(segments_of(1000, 200), 1);
}

/// Every row of every block comes once, in order, in passes that kernels' parameters have room for.
TEST(CudaFfnCheck, RunsHoldEveryBlockOnce) {
  using namespace skim::cuda::detail;
  std::vector<skim::ffn_prompt> prompts;
  std::int64_t M = 0;
  for (std::int64_t p = 0; p < 300; ++p) {
    prompts.push_back({p * 37 % 200, p % 3, p % 4 == 0, p % 7 == 0});
    M += prompts.back().rows;
  }
  prompts.push_back({9000, 1, true, false});
  M += 9000;
  for (const std::int64_t block_tokens : {0, 1, 100, 128, 5000}) {
    skim::ffn_args args;
    args.x = {nullptr, {M, 8}, skim::element::f32};
    args.up = {nullptr, {100, 8}, skim::element::f32};
    args.prompts = prompts.data();
    args.prompt_count = 301;
    args.block_tokens = block_tokens;
    const neuron_retention keep = neuron_retention::budget(10);
    for (const bool by_block : {true, false}) {
      std::int64_t row = 0, lists = 0, rows = 0;
      const auto plan = [&](const skim::ffn_args& block) {
        const bool dense = runs_dense(keep, block);
        return block_plan{by_block || !dense, 10, !dense};
      };
      for_each_runs(args, by_block, plan, [&](const ffn_runs& runs) {
        ASSERT_LE(runs.count, ffn_runs::most);
        ASSERT_LE(runs.lists, ffn_runs::most_lists);
        ASSERT_EQ(runs.first_row, row);
        row += runs.rows;
        if (by_block) ASSERT_EQ(runs.first_list, lists);
        lists += runs.lists;
        std::int64_t own = 0;
        for_parts(runs, 4096, [&](const ffn_runs& part) {
          ASSERT_LE(part.rows, 4096);
          ASSERT_EQ(part.first_row, runs.first_row + own);
          std::int64_t tiles = 0, at = 0;
          for (int i = 0; i < part.count; ++i) {
            const ffn_run& run = part.run[i];
            ASSERT_EQ(run.first_tile, tiles);
            ASSERT_EQ(run.first_row, at);
            at += run.rows;
            tiles += run.rows / run.block_rows * run.tiles_of_block + pieces(run.rows % run.block_rows, 128);
          }
          ASSERT_EQ(tiles, part.tiles);
          ASSERT_EQ(at, part.rows);
          own += part.rows;
        });
        ASSERT_EQ(own, runs.rows);
        rows += own;
      });
      EXPECT_EQ(rows, M);
      if (by_block) EXPECT_EQ(lists, block_count(args));
    }
  }
}

}  // namespace
