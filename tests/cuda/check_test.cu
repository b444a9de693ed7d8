// SPDX-License-Identifier: Apache-2.0
// What skim::cuda says before there is a GPU: sizes, and refusals by name.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>

#include "bf16_case.hpp"
#include "refusal.hpp"

#include <gtest/gtest.h>

namespace {

using namespace skim_test;

attention_case small_case() {
  return bf16_case(64, 40, 300, 3);
}

TEST(CudaCheck, NamesWhatItRefuses) {
  const auto refusal = [&](const attention_case& c, const skim::quoka& policy) {
    attention_inputs inputs(c);
    return refusal_of(skim::cuda::attention<skim::quoka>{policy}.check(inputs.args()));
  };
  EXPECT_EQ(refusal(small_case(), {}), "ok");
  attention_case c = small_case();
  c.bias = bias_kind::shared;
  EXPECT_EQ(refusal(c, {}), "unsupported: bias (on a GPU) is 1, expected 0");
  c = small_case();
  c.slopes = true;
  EXPECT_EQ(refusal(c, {}), "unsupported: alibi_slopes (on a GPU) is 1, expected 0");
  for (const skim::element type : {skim::element::q8_0, skim::element::int8}) {
    c = small_case();
    c.v_type = type;
    fit_stored_types(c);
    EXPECT_EQ(refusal(c, {}),
              std::string("unsupported: kv.v.type is ") + to_string(type) + ", expected f32, f16 or bf16 on a GPU");
  }
  c = small_case();
  c.batch = true;
  c.sequences = 3;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  EXPECT_EQ(refusal(c, {}), "ok");
  {
    attention_inputs inputs(c);
    skim::attention_args args = inputs.args();
    args.batch.table_stride = std::int64_t{1} << 26;
    EXPECT_EQ(refusal_of(skim::cuda::attend{}.check(args)),
              "unsupported: batch.table_stride (times sequences and page_size) is 67108864, expected at most 22369621");
  }
  c = small_case();
  c.positions = positions_kind::holes;
  EXPECT_EQ(refusal(c, {}), "unsupported: kv.positions (on a GPU) is 1, expected 0");
  c = small_case();
  c.D = c.Dv = 600;
  EXPECT_EQ(refusal(c, {}), "unsupported: kv.k.dim is 600, expected at most 576");
  using skim::quoka;
  namespace queries = skim::queries;
  EXPECT_EQ(refusal(small_case(), quoka::paper()), "ok");
  EXPECT_EQ(refusal(small_case(), quoka::paper(queries::newest(20))), "ok");
  EXPECT_EQ(refusal(small_case(), quoka::paper(queries::farthest_point(8))),
            "unsupported: queries.choice (on a GPU) is another, expected lowest_cosine, newest or all of group means");
  quoka other;
  other.queries = queries::random(16, 1, skim::query_rows::own);
  EXPECT_EQ(refusal(small_case(), other),
            "unsupported: queries.choice (on a GPU) is another, expected needed, or all of own rows");
  other = {};
  other.similarity = skim::similarity::cosine;
  EXPECT_EQ(refusal(small_case(), other),
            "unsupported: similarity (on a GPU) is another, expected standardised with own rows");
  other = quoka::paper();
  other.similarity = skim::similarity::dot;
  EXPECT_EQ(refusal(small_case(), other),
            "unsupported: similarity (on a GPU) is another, expected cosine with group means");
  other = quoka::paper();
  other.reduce = skim::reduction::mean;
  EXPECT_EQ(refusal(small_case(), other), "unsupported: reduce (on a GPU) is mean, expected max");
  skim::quoka many;
  many.queries.n = 8000;
  c = small_case();
  c.G = 16;
  c.Tq = 1000;
  many.keep.every = 0;
  EXPECT_EQ(refusal(c, many),
            "unsupported: queries.n (on a GPU, with so many rows in a block) is 8000, expected near 64");
  many.queries.n = 16000;  // every row: nothing is picked
  EXPECT_EQ(refusal(c, many), "ok");
  many.queries.n = 64;
  EXPECT_EQ(refusal(c, many), "ok");
  many.queries.choice = skim::query_choice::all;
  EXPECT_EQ(refusal(c, many), "ok");
  skim::quoka none;
  none.keep.count = 0;
  EXPECT_EQ(refusal(small_case(), none), "value out of range: keep.count is 0, expected at least 1");
}

TEST(CudaCheck, AShortWorkspaceOrListIsNamedAndNothingIsLaunched) {
  attention_inputs inputs(small_case());
  const skim::attention_args args = inputs.args();
  const skim::cuda::attention<skim::quoka> op;
  const std::size_t needed = op.workspace_bytes(args);
  ASSERT_GT(needed, 0u);
  aligned_memory memory(needed);
  const skim::memory shorter{memory.data(), needed - 1};
  EXPECT_EQ(refusal_of(op.run(args, shorter, nullptr)), short_workspace(needed));
  std::int32_t indices[1], counts[4];
  skim::index_lists lists;
  lists.indices = indices;
  lists.counts = counts;
  lists.rows = 2;
  lists.capacity = 1;
  lists.block_rows = op.block_rows();
  EXPECT_EQ(refusal_of(op.select(args, lists, memory.get(), nullptr)).substr(0, 12), "bad extent: ");
  lists.block_rows = 7;
  EXPECT_EQ(refusal_of(op.select(args, lists, memory.get(), nullptr)),
            "value out of range: lists.block_rows is 7, expected " + std::to_string(op.block_rows()));
}

/// What is asked for before there is memory serves caches at any address.
TEST(CudaCheck, TheWorkspaceOfAShapeServesEveryAddress) {
  attention_case c = small_case();
  c.Tk = 5000;
  attention_inputs aligned(c);
  c.shift = 1;  // rows that no 16 bytes can be copied of
  attention_inputs shifted(c);
  skim::attention_args shape = aligned.args();
  shape.kv.k.data = shape.kv.v.data = nullptr;
  shape.q.data = nullptr;
  shape.out.data = nullptr;
  const skim::cuda::attend op;
  EXPECT_GT(op.workspace_bytes(shape), 0u);
  EXPECT_EQ(op.workspace_bytes(shape), op.workspace_bytes(aligned.args()));
  EXPECT_GE(op.workspace_bytes(shape), op.workspace_bytes(shifted.args()));
}

/// Behind fewer tokens than where the sparse path was measured to win, blocks read everything unless told otherwise.
TEST(CudaCheck, ListsHaveRoomForBlocksThatReadEverything) {
  attention_inputs inputs(small_case());
  EXPECT_EQ(skim::cuda::attention<skim::quoka>{}.list_capacity(inputs.args()), 340);
  skim::quoka policy;
  policy.keep = skim::retention::preset(50).dense_under(0);
  EXPECT_EQ(skim::cuda::attention<skim::quoka>{policy}.list_capacity(inputs.args()), 50);
}

/// Splits of keys: as many as there is work for, none where rows alone fill the GPU, and one at least.
TEST(CudaCheck, SplitsFollowFromTheShape) {
  using skim::cuda::detail::splits_of;
  EXPECT_EQ(splits_of(4, 8, 128), 4);
  EXPECT_EQ(splits_of(1, 8, 128), 16);
  EXPECT_EQ(splits_of(1, 8, 8), 2);
  EXPECT_EQ(splits_of(1, 8, 3), 1);
  EXPECT_EQ(splits_of(1, 1, 100000), 64);
  EXPECT_EQ(splits_of(16, 8, 100000), 1);
  EXPECT_EQ(splits_of(1000, 8, 100000), 1);
  EXPECT_EQ(splits_of(1, 1, 0), 1);
}

/// Moments of blocks with a shorter past than the longest have no more samples than the longest's scratch has room for.
TEST(CudaCheck, SamplesOfMomentsNeverShrinkWithThePast) {
  using skim::cuda::detail::moments_tile;
  std::int64_t most = 0;
  for (std::int64_t past = 0; past < 5000; ++past) {
    const std::int64_t sampled = past > 16 ? (past - 17) / 32 + 1 : 0, samples = sampled >= 32 ? sampled : past;
    most = std::max(most, samples);
    ASSERT_GE(moments_tile::most(past), most) << past;
  }
}

}  // namespace
