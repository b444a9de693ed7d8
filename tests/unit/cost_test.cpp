// SPDX-License-Identifier: Apache-2.0
// Costs against counts by hand.
#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/version.hpp>
#include "support/attention_sample.hpp"

#include <gtest/gtest.h>

#include <functional>

namespace {

using namespace skim_test;

attention_case call() {
  attention_case c;
  c.Tq = 4;
  c.Tk = 100;
  c.Hk = 2;
  c.G = 3;
  c.D = 8;
  c.Dv = 6;
  c.kv_type = skim::element::bf16;
  return c;
}

TEST(Cost, OfDenseAttention) {
  attention_inputs inputs(call());
  const skim::cost_estimate cost = skim::cpu::attention<>{}.cost(inputs.args());
  // Each of 6 heads multiplies 4 queries with 100 past keys, and 1 + 2 + 3 + 4 of the chunk's own.
  EXPECT_EQ(cost.flops, 2 * 6 * (8 + 6) * (400 + 10));
  // K and V once per KV head, q and out once.
  EXPECT_EQ(cost.bytes, 2 * 104 * (8 + 6) * 2 + 4 * 6 * (8 + 6) * 4);
}

TEST(Cost, OfFullAttentionCountsTheWholeChunk) {
  attention_case c = call();
  c.mask = skim::mask::full();
  attention_inputs inputs(c);
  EXPECT_EQ(skim::cpu::attention<>{}.cost(inputs.args()).flops, 2 * 6 * (8 + 6) * (400 + 16));
}

TEST(Cost, OfQuokaIsScoringAndTheBudget) {
  attention_inputs inputs(call());
  const skim::cpu::attention op{
      skim::quoka::paper(skim::queries::lowest_cosine(2), skim::retention::budget(30).dense_under(0))};
  const skim::cost_estimate cost = op.cost(inputs.args());
  const double scoring = 2 * 2 * 2 * 8 * 100, choosing = 6 * 4 * 6 * 8;
  EXPECT_EQ(cost.flops, scoring + choosing + 2 * 6 * (8 + 6) * (4 * 30 + 10));
  const double keys = 2 * 100 * (8 * 2 + 4), queries = 4 * 6 * 8 * 4;
  EXPECT_EQ(cost.bytes, keys + queries + 2 * 34 * (8 + 6) * 2 + 4 * 6 * (8 + 6) * 4);
}

TEST(Cost, OfValuesInKeysReadsThemOnce) {
  attention_case c = call();
  c.values_in_keys = true;
  attention_inputs inputs(c);
  EXPECT_EQ(skim::cpu::attention<>{}.cost(inputs.args()).bytes, 2 * 104 * 8 * 2 + 4 * 6 * (8 + 6) * 4);
}

TEST(Cost, OfBlocksIsTheirSum) {
  attention_inputs inputs(call());
  const skim::retention keep = skim::retention::budget(30).dense_under(0).for_every(2);
  const skim::cpu::attention op{skim::quoka::paper(skim::queries::lowest_cosine(2), keep)};
  // Two blocks of 2 rows: behind 100 and behind 102 keys, 30 of which each reads.
  const double scoring = 2 * 2 * 2 * 8 * (100 + 102), choosing = 6 * 4 * 6 * 8;
  EXPECT_EQ(op.cost(inputs.args()).flops, scoring + choosing + 2 * 6 * (8 + 6) * 2 * (2 * 30 + 3));
}

TEST(Cost, OfAttendIsThatOfFullLists) {
  attention_inputs inputs(call());
  skim::index_lists lists;
  lists.rows = 2;
  lists.capacity = 30;
  EXPECT_EQ(skim::cpu::attend<>{}.cost(inputs.args(), lists).flops, 2 * 6 * (8 + 6) * (4 * 30 + 10));
}

TEST(Cost, OfACallThatRunsDenseIsTheDenseOne) {
  attention_inputs inputs(call());
  const skim::cpu::attention op{skim::quoka::paper(skim::queries::lowest_cosine(2), skim::retention::budget(100))};
  EXPECT_EQ(op.cost(inputs.args()).flops, skim::cpu::attention<>{}.cost(inputs.args()).flops);
  EXPECT_EQ(op.cost(inputs.args()).bytes, skim::cpu::attention<>{}.cost(inputs.args()).bytes);
}

TEST(Cost, OfAppend) {
  cache_shape shape{2, 8, 6, 10};
  shape.type = skim::element::f16;
  shape.inverse_norms = true;
  cache_storage cache(shape);
  strided_tensor k({4, 2, 8}), v({4, 2, 6});
  skim::append_args args;
  args.k = k.view();
  args.v = v.view();
  args.kv = cache.view(4);
  EXPECT_EQ(cost(args).flops, 2 * 8 * 8);
  EXPECT_EQ(cost(args).bytes, 8 * (8 + 6) * (4 + 2));
}

TEST(Sizes, ListCapacityIsTheLongestList) {
  attention_case c = call();
  c.sequences = 3;  // pasts of 100, 50 and 33
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const auto capacity = [&](skim::retention keep) {
    return skim::cpu::attention{skim::sink_window{keep.dense_under(0)}}.list_capacity(args);
  };
  EXPECT_EQ(capacity(skim::retention::budget(30)), 30);
  EXPECT_EQ(capacity(skim::retention::budget(60)), 60);
  EXPECT_EQ(capacity(skim::retention::budget(1000)), 104) << "of all tokens: a call of fewer rows has the longer past";
  EXPECT_EQ(capacity(skim::retention::share(0.105)), 11);
}

// Sizes before there is memory, and for anything.

/// The call without any pointer but to descriptors. `views [sequences]` is its memory.
skim::attention_args without_memory(skim::attention_args args, std::vector<skim::kv_view>& views) {
  const auto forget = [](skim::kv_view& kv) {
    kv.k.data = kv.v.data = nullptr;
    kv.k.scales = kv.v.scales = nullptr;
    kv.block_table = kv.lengths = kv.positions = nullptr;
    kv.inverse_norms = nullptr;
    kv.first_position = 0;
  };
  if (args.sequences) {
    views.assign(args.sequences, args.sequences + args.sequence_count);
    for (skim::kv_view& kv : views) forget(kv);
    args.sequences = views.data();
  }
  forget(args.kv);
  args.q.data = args.bias.data = nullptr;
  args.out.data = nullptr;
  args.lse.data = nullptr;
  args.sink_logits = args.alibi_slopes = nullptr;
  args.batch.block_tables = args.batch.tokens = args.batch.offsets = nullptr;
  return args;
}

using size_function = std::function<std::size_t(const skim::attention_args& args, unsigned workers)>;

/// `workspace_bytes` of every operation on attention, once for each kind of selector and of blocks.
const std::vector<size_function>& every_size() {
  static const std::vector<size_function> all = [] {
    using skim::retention;
    std::vector<size_function> sizes;
    const auto add = [&](const auto& op) {
      sizes.push_back([op](const auto& args, unsigned workers) { return op.workspace_bytes(args, workers); });
    };
    for (const std::int64_t rows : {0, 3, 100}) {
      sizes.push_back([rows](const auto& args, unsigned workers) {
        return skim::cpu::attend<>{}.workspace_bytes(args, rows, workers);
      });
    }
    add(skim::cpu::attention<>{});
    add(skim::cpu::attention<skim::dense, skim::accumulate::dot_pairs>{});
    const retention keeps[] = {retention::budget(50), retention::share(0.25, 4, 20).dense_under(0),
                               retention::budget(50).dense_under(700, 5)};
    for (const retention& keep : keeps) {
      for (const std::int64_t every : {0, 7, 128}) {
        for (const skim::query_rule rule : {skim::queries::farthest_point(9), skim::queries::all()}) {
          add(skim::cpu::attention{skim::quoka::paper(rule, keep.for_every(every))});
        }
      }
    }
    add(skim::cpu::attention{skim::quoka{}});
    add(skim::cpu::attention{skim::quoka{skim::queries::needed(9), retention::preset(50).dense_under(0).for_every(7)}});
    add(skim::cpu::attention{skim::quoka{skim::queries::all(skim::query_rows::own), retention::preset_share(0.1)}});
    add(skim::cpu::attention{skim::sink_window{retention::budget(50, 4).for_every(30)}});
    return sizes;
  }();
  return all;
}

TEST(Sizes, AreKnownBeforeThereIsMemory) {
  for (const attention_case& c : attention_sample()) {
    if (c.Hk * c.G * c.Tq * c.Tk > 1000000) continue;
    SCOPED_TRACE(testing::Message() << c);
    attention_inputs inputs(c);
    const skim::attention_args args = inputs.args();
    std::vector<skim::kv_view> views;
    const skim::attention_args shape = without_memory(args, views);
    EXPECT_TRUE(check_shape(args).ok());
    char line[300];
    ASSERT_TRUE(check_shape(shape).ok()) << describe(check_shape(shape), line, sizeof line);
    EXPECT_FALSE(check(shape).ok() && shape.q.extents[0] > 0);
    for (const size_function& bytes : every_size()) {
      EXPECT_EQ(bytes(shape, 3), bytes(args, 3));
      EXPECT_LE(bytes(shape, 0), bytes(args, 1));
      EXPECT_GT(bytes(shape, 1), 0u);
    }
    if (HasFailure()) return;
  }
}

/// A call without memory: one sequence, or a batch.
skim::attention_args shape_of(std::int64_t sequences, std::int64_t Tq, std::int64_t tokens, std::int64_t Hk,
                              std::int64_t G, std::int64_t D, std::int64_t Dv) {
  skim::attention_args args;
  const std::int64_t capacity = (tokens + 15) / 16 * 16;
  args.kv = skim::paged_kv({nullptr, {1 << 20, 16, Hk, D}, skim::element::bf16},
                           {nullptr, {1 << 20, 16, Hk, Dv}, skim::element::bf16}, nullptr, capacity / 16, tokens);
  const std::int64_t rows = sequences > 0 ? sequences * Tq : Tq;
  args.q = {nullptr, {rows, Hk * G, D}, skim::element::f32};
  args.out = {nullptr, {rows, Hk * G, Dv}, skim::element::f32};
  args.batch.sequences = sequences;
  args.batch.most_rows = Tq;
  args.batch.table_stride = capacity / 16;
  return args;
}

/// A host reserves for its largest call, and never again.
TEST(Sizes, OfSmallerCallsAreSmaller) {
  std::mt19937 random(4);
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % static_cast<unsigned>(n)); };
  for (int round = 0; round < 300; ++round) {
    const std::int64_t Hk = below(4) + 1, G = below(5) + 1, D = below(200) + 1, Dv = below(200) + 1;
    const std::int64_t largest[] = {below(5), below(700) + 1, below(9000) + 700};
    const unsigned workers = random() % 9 + 1;
    const skim::attention_args most = shape_of(largest[0], largest[1], largest[2], Hk, G, D, Dv);
    ASSERT_TRUE(check_shape(most).ok());
    std::vector<std::size_t> reserved;
    for (const size_function& bytes : every_size()) reserved.push_back(bytes(most, workers));
    for (int smaller = 0; smaller < 4; ++smaller) {
      const std::int64_t Tq = below(largest[1] + 1);
      const std::int64_t tokens = random() % 2 ? largest[2] : Tq + below(largest[2] - Tq + 1);
      const std::int64_t sequences = largest[0] == 0 ? 0 : below(largest[0]) + 1;
      const unsigned fewer = random() % workers + 1;
      const skim::attention_args args = shape_of(sequences, Tq, tokens, Hk, G, D, Dv);
      ASSERT_TRUE(check_shape(args).ok());
      for (std::size_t i = 0; i < reserved.size(); ++i) {
        ASSERT_LE(every_size()[i](args, fewer), reserved[i])
            << "operation " << i << ": " << sequences << " sequences of " << Tq << " rows, " << tokens << " tokens, "
            << fewer << " workers, against " << largest[0] << " of " << largest[1] << ", " << largest[2] << ", "
            << workers;
      }
    }
  }
}

/// The reserved memory is enough, exactly as it is: prompts chunk by chunk, the last chunk shorter, then one token at a time.
TEST(Sizes, ReservedForTheLargestCallServeAll) {
  attention_case c = call();
  c.Hk = 1;
  c.Tq = 200;
  c.Tk = 2000;
  c.lse = true;
  const skim::retention keep = skim::retention::budget(300, 4, 20).for_every(64);
  const skim::cpu::attention op{skim::quoka::paper(skim::queries::farthest_point(9), keep)};
  const skim::cpu::attention<> dense_op;
  const skim::cpu::attend<> listed;
  attention_inputs largest(c);
  const std::size_t bytes = op.workspace_bytes(largest.args(), 1);
  const std::size_t dense_bytes = dense_op.workspace_bytes(largest.args(), 1);
  const std::size_t listed_bytes = listed.workspace_bytes(largest.args(), 64, 1);
  const skim::serial_executor serial;
  for (const std::int64_t Tk : {0, 1, 500, 1999, 2000, 2199}) {
    for (const std::int64_t Tq : {1, 2, 63, 64, 65, 199, 200}) {
      if (Tq + Tk > 2200) continue;
      attention_case smaller = c;
      smaller.Tq = Tq;
      smaller.Tk = Tk;
      smaller.lists = lists_kind::third;
      smaller.block_rows = 64;
      attention_inputs inputs(smaller);
      const skim::attention_args args = inputs.args();
      aligned_memory workspace(bytes), dense_workspace(dense_bytes), listed_workspace(listed_bytes);
      EXPECT_TRUE(op.run(args, {}, workspace.get(), serial).ok());
      EXPECT_TRUE(dense_op.run(args, {}, dense_workspace.get(), serial).ok());
      EXPECT_TRUE(listed.run(args, *inputs.lists(), listed_workspace.get(), serial).ok());
      EXPECT_TRUE(workspace.guards_intact() && dense_workspace.guards_intact() && listed_workspace.guards_intact());
    }
  }
}

/// Arguments that nobody means, one to four at a time: sizes of 0, or of a call that `check_shape` accepts; no signal.
TEST(Sizes, OfAbsurdArgumentsAreZero) {
  const std::int64_t absurd[] = {0,
                                 1,
                                 -1,
                                 2,
                                 7,
                                 -64,
                                 4096,
                                 65536,
                                 (std::int64_t{1} << 31) - 1,
                                 std::int64_t{1} << 31,
                                 std::int64_t{1} << 60,
                                 std::numeric_limits<std::int64_t>::max(),
                                 std::numeric_limits<std::int64_t>::min()};
  std::mt19937 random(9);
  const auto any = [&] { return absurd[random() % std::size(absurd)]; };
  int accepted = 0;
  for (int round = 0; round < 10000; ++round) {
    skim::attention_args args = shape_of(round % 3, 5, 100, 2, 3, 8, 6);
    args.bias = {nullptr, {round % 2, args.q.extents[0], 100}, skim::element::f16};
    std::int64_t* const numbers[] = {
        &args.q.extents[0],     &args.q.extents[1],       &args.q.extents[2],        &args.q.strides[0],
        &args.q.strides[2],     &args.out.extents[0],     &args.out.extents[1],      &args.out.extents[2],
        &args.out.strides[1],   &args.kv.heads,           &args.kv.tokens,           &args.kv.capacity,
        &args.kv.page_size,     &args.kv.pages,           &args.kv.ring_start,       &args.kv.k.dim,
        &args.kv.k.rows,        &args.kv.k.heads,         &args.kv.k.pages,          &args.kv.k.row_stride,
        &args.kv.v.page_stride, &args.kv.v.dim,           &args.kv.v.head_stride,    &args.kv.first_position,
        &args.kv.lengths_ahead, &args.mask.left,          &args.mask.right,          &args.batch.sequences,
        &args.batch.most_rows,  &args.batch.table_stride, &args.kv.positions_stride, &args.bias.extents[0],
        &args.bias.extents[2],  &args.bias.strides[0],    &args.kv.v.dim_stride,     &args.sequence_count};
    for (unsigned change = random() % 4 + 1; change > 0; --change) *numbers[random() % std::size(numbers)] = any();
    if (random() % 8 == 0) {  // all that counts tokens together, or little is accepted
      const std::int64_t tokens = any();
      args.kv.tokens = args.kv.capacity = tokens;
      args.kv.page_size = 1;
      args.batch.table_stride = tokens;
    }
    if (random() % 8 == 0) args.kv.layout = static_cast<skim::kv_layout>(random() % 4);
    if (random() % 8 == 0) args.q.type = static_cast<skim::element>(random() % 300);
    if (random() % 8 == 0) args.kv.k.type = args.kv.v.type = static_cast<skim::element>(random() % 5);
    const skim::retention keep = random() % 4 == 0 ? skim::retention::preset(50) : skim::retention::budget(50);
    skim::quoka policy{skim::queries::needed(9), keep};
    if (random() % 2) {
      const auto choice = static_cast<skim::query_choice>(random() % 6 + 1);
      policy = skim::quoka::paper({choice, 9, 0, skim::query_rows::group_means}, keep);
    }
    if (random() % 2) policy.keep.every = any();
    if (random() % 4 == 0) policy.keep.count = any();
    if (random() % 4 == 0) policy.keep.dense_below = any();
    if (random() % 4 == 0) policy.keep.rows_below = any();
    if (random() % 4 == 0) policy.queries.n = any();
    if (random() % 8 == 0) policy.keep.sinks = any();
    const unsigned workers = random() % 4 == 0 ? ~0u : random() % 9;
    const skim::cpu::attention op{policy};
    const bool good = op.check_shape(args).ok();
    accepted += good;
    EXPECT_TRUE(good || op.workspace_bytes(args, workers) == 0);
    EXPECT_EQ(op.state_bytes(args), 0u);
    EXPECT_TRUE(good || check_shape(args) || skim::cpu::attention<>{}.workspace_bytes(args, workers) == 0);
    const std::size_t listed = skim::cpu::attend<>{}.workspace_bytes(args, any(), workers);
    EXPECT_TRUE(check_shape(args) || listed == 0);
    if (good) {
      EXPECT_GE(op.workspace_bytes(args, workers), skim::cpu::attention<>{}.workspace_bytes(args, 0));
    }
  }
  EXPECT_GT(accepted, 300) << "or this tests little";
}

TEST(Version, IsOneNumberInTwoForms) {
  EXPECT_EQ(skim::version.major_version, SKIM_VERSION_MAJOR);
  EXPECT_EQ(skim::version.minor_version, SKIM_VERSION_MINOR);
  EXPECT_EQ(skim::version.patch_version, SKIM_VERSION_PATCH);
}

}  // namespace
