// SPDX-License-Identifier: Apache-2.0
// Costs against counts by hand.
#include "support/attention_case.hpp"

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/version.hpp>

#include <gtest/gtest.h>

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
      skim::quoka{skim::queries::lowest_cosine(2), skim::retention::budget(30).dense_under(0)}};
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
  const skim::cpu::attention op{skim::quoka{skim::queries::lowest_cosine(2), keep}};
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
  const skim::cpu::attention op{skim::quoka{skim::queries::lowest_cosine(2), skim::retention::budget(100)}};
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
  EXPECT_EQ(capacity(skim::retention::budget(1000)), 100);
  EXPECT_EQ(capacity(skim::retention::share(0.105)), 11);
}

TEST(Version, IsOneNumberInTwoForms) {
  EXPECT_EQ(skim::version.major_version, SKIM_VERSION_MAJOR);
  EXPECT_EQ(skim::version.minor_version, SKIM_VERSION_MINOR);
  EXPECT_EQ(skim::version.patch_version, SKIM_VERSION_PATCH);
}

}  // namespace
