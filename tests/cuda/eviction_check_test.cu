// SPDX-License-Identifier: Apache-2.0
// What cuda::eviction says before there is a GPU: sizes, and refusals by name.
#include <skim/cuda/eviction.cuh>
#include <skim/cuda/evictor/caote.cuh>
#include <skim/cuda/evictor/h2o.cuh>
#include <skim/cuda/evictor/keydiff.cuh>
#include <skim/cuda/evictor/random_tokens.cuh>
#include <skim/cuda/evictor/snapkv.cuh>
#include <skim/selector/sink_window.hpp>

#include "refusal.hpp"
#include "support/eviction_small.hpp"

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::keydiff;
using skim::retention;

TEST(CudaEvictionCheck, NamesWhatItRefuses) {
  eviction_inputs inputs(small_case());
  const skim::cuda::eviction op{keydiff<>{retention::budget(40)}};
  skim::eviction_args args = inputs.args();
  EXPECT_EQ(refusal_of(op.check(args)), "ok");
  args.kv.positions = nullptr;
  EXPECT_EQ(op.check(args).code, skim::status::null_pointer);
  EXPECT_EQ(refusal_of(op.check_shape(args)), "ok");
  args = inputs.args();
  args.kv.v.type = skim::element::int8;
  EXPECT_EQ(refusal_of(op.check(args)), "unsupported: kv.v.type is int8, expected f32, f16 or bf16 on a GPU");
  args = inputs.args();
  args.budgets = reinterpret_cast<const std::int32_t*>(1);
  args.share_heads = true;
  EXPECT_EQ(op.check(args).code, skim::status::bad_value);

  eviction_case paged = small_case();
  paged.call.layout = skim::kv_layout::paged;
  paged.call.page_size = 8;
  paged.call.positions = positions_kind::shared_holes;
  paged.how = skim::compaction::pages;
  paged.share_heads = true;
  eviction_inputs of_pages(paged);
  EXPECT_EQ(refusal_of(op.check(of_pages.args())), "unsupported: how (on a GPU) is pages, expected refill or stable");

  const skim::cuda::eviction joint{skim::caote{keydiff<>{retention::budget(40)}, true}};
  EXPECT_EQ(refusal_of(joint.check(inputs.args())), "unsupported: joint (on a GPU) is 1, expected 0");
  const skim::cuda::eviction even{keydiff<>{retention::budget(40), {}, 4}};
  EXPECT_EQ(even.check(inputs.args()).code, skim::status::bad_value);
}

/// Policies that look at attention, alone and below CAOTE.
TEST(CudaEvictionCheck, NamesWhatOfAttentionItRefuses) {
  eviction_case sloped = small_case(), biased = small_case();
  sloped.call.slopes = true;
  biased.call.bias = bias_kind::shared;
  eviction_inputs inputs(small_case()), with_slopes(sloped), with_bias(biased);
  const auto expect_refused = [&](const auto& op) {
    skim::eviction_args args = inputs.args();
    EXPECT_EQ(refusal_of(op.check(args)), "ok");
    EXPECT_EQ(refusal_of(op.check(with_slopes.args())),
              "unsupported: attended.alibi_slopes (on a GPU) is 1, expected 0");
    EXPECT_EQ(refusal_of(op.check(with_bias.args())), "unsupported: attended.bias (on a GPU) is 1, expected 0");
    args.attended.lse.data = nullptr;
    EXPECT_EQ(op.check(args).code, skim::status::null_pointer);
    args = inputs.args();
    skim::index_lists read;
    read.block_rows = -1;
    args.read = &read;
    aligned_memory state(op.state_bytes(args)), workspace(op.workspace_bytes(args));
    EXPECT_EQ(op.observe(args, state.get(), workspace.get(), nullptr).code, skim::status::bad_extent);
    lists_memory lists(args.kv.heads, op.list_capacity(args));
    EXPECT_EQ(op.run(args, lists.lists, state.get(), workspace.get(), nullptr).code, skim::status::bad_extent);
  };
  expect_refused(skim::cuda::eviction{skim::h2o{retention::budget(40)}});
  expect_refused(skim::cuda::eviction{skim::fast_caote{skim::snapkv{retention::budget(40)}}});

  eviction_case wide = small_case();
  wide.call.D = wide.call.Dv = 577;
  wide.call.Tk = 3;
  eviction_inputs of_wide(wide);
  const skim::cuda::eviction op{skim::h2o{retention::budget(40)}};
  EXPECT_EQ(refusal_of(op.check(of_wide.args())), "unsupported: kv.k.dim is 577, expected at most 576");
}

TEST(CudaEvictionCheck, ShortMemoryAndListsAreNamedAndNothingIsLaunched) {
  eviction_inputs inputs(small_case());
  const skim::eviction_args args = inputs.args();
  const skim::cuda::eviction op{skim::fast_caote{keydiff<>{retention::budget(40, 4, 10)}, 5}};
  const cache_snapshot before = inputs.snapshot();
  aligned_memory state(op.state_bytes(args)), workspace(op.workspace_bytes(args));
  lists_memory lists(args.kv.heads, op.list_capacity(args)), narrow(args.kv.heads, op.list_capacity(args) - 1);
  const skim::memory short_state{state.data(), op.state_bytes(args) - 1};
  const skim::memory short_workspace{workspace.data(), op.workspace_bytes(args) - 1};
  EXPECT_EQ(op.run(args, lists.lists, short_state, workspace.get(), nullptr).code, skim::status::short_state);
  EXPECT_EQ(op.run(args, lists.lists, state.get(), short_workspace, nullptr).code, skim::status::short_workspace);
  EXPECT_EQ(op.run(args, narrow.lists, state.get(), workspace.get(), nullptr).code, skim::status::bad_extent);
  EXPECT_EQ(op.reset(args, short_state, nullptr).code, skim::status::short_state);
  scores_memory scores(args.kv.heads, args.kv.tokens - 1);
  EXPECT_EQ(op.score(args, scores.view(), state.get(), workspace.get(), nullptr).code, skim::status::bad_extent);
  EXPECT_TRUE(inputs.snapshot() == before);
}

TEST(CudaEvictionCheck, PoliciesThatKeepNothingAskForNoState) {
  eviction_inputs inputs(small_case());
  const skim::eviction_args args = inputs.args();
  const auto expect_stateless = [&](const auto& op) {
    EXPECT_EQ(refusal_of(op.check(args)), "ok");
    EXPECT_EQ(op.state_bytes(args), 0u);
    EXPECT_GT(op.workspace_bytes(args), 0u);
  };
  expect_stateless(skim::cuda::eviction{skim::random_tokens{retention::budget(40), 3}});
  expect_stateless(skim::cuda::eviction{skim::sink_window{retention::budget(40, 4)}});
  const skim::cuda::eviction with_recent{skim::sink_window{retention::budget(40, 4, 5)}};
  EXPECT_EQ(with_recent.check(args).code, skim::status::bad_value);
}

TEST(CudaEvictionCheck, SizesFollowFromShapes) {
  eviction_inputs inputs(small_case());
  skim::eviction_args args = inputs.args();
  const skim::cuda::eviction bare{keydiff<>{retention::budget(40)}};
  const skim::cuda::eviction smoothed{keydiff<>{retention::budget(40), {}, 5}};
  EXPECT_EQ(bare.state_bytes(args), static_cast<std::size_t>(args.kv.heads * args.kv.k.dim) * sizeof(std::int64_t));
  EXPECT_GT(smoothed.workspace_bytes(args), bare.workspace_bytes(args));
  EXPECT_EQ(bare.list_capacity(args), 40);
  const skim::cuda::eviction watching{skim::h2o{retention::budget(40)}};
  EXPECT_GE(watching.state_bytes(args), static_cast<std::size_t>(args.kv.heads * args.kv.capacity) * sizeof(float));
  args.kv.tokens = 20;
  EXPECT_EQ(bare.list_capacity(args), 20);
  args.kv.heads = 0;
  EXPECT_EQ(bare.workspace_bytes(args), 0u);
}

}  // namespace
