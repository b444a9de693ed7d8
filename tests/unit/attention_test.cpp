// SPDX-License-Identifier: Apache-2.0
// cpu::attention against exact arithmetic on the same stored values.
#include <skim/cpu/attention.hpp>
#include <skim/cpu/simd/tile_math.hpp>
#include "support/attention_sample.hpp"
#include "support/expect_attention.hpp"

#include <gtest/gtest.h>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;

template <class Accumulate>
void expect_exact(const attention_case& c, skim::testing::arithmetic rounding) {
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<skim::dense, Accumulate> op;
  const skim::cpu::attend<Accumulate> listed;
  ASSERT_TRUE(check_indices(args, inputs.lists()).ok());
  aligned_memory workspace(inputs.lists() ? listed.workspace_bytes(args, c.block_rows, 1)
                                          : op.workspace_bytes(args, 1));
  const skim::serial_executor executor;
  const skim::report report = inputs.lists() ? listed.run(args, *inputs.lists(), workspace.get(), executor)
                                             : op.run(args, {}, workspace.get(), executor);
  ASSERT_TRUE(report.ok());

  expect_attention(c, inputs, rounding);
  EXPECT_TRUE(workspace.guards_intact());
}

void expect_exact(const attention_case& c) {
  SCOPED_TRACE(testing::Message() << c);
  const auto pairs = skim::testing::arithmetic::dot_pairs().on_normal_data();
  const auto fma = skim::testing::arithmetic::widen_fma().on_normal_data();
  const auto becomes_pairs = [&](skim::element type) {
    return type == skim::element::q8_0 || type == skim::element::int8 || (type == skim::element::bf16 && !c.scales);
  };
  const bool multiplies_pairs = SKIM_CPU_DOT_PAIRS && becomes_pairs(c.kv_type) && becomes_pairs(c.type_of_v());
  if (c.dot_pairs) {
    expect_exact<skim::accumulate::dot_pairs>(c, multiplies_pairs ? pairs : fma);
  } else {
    expect_exact<skim::accumulate::widen_fma>(c, fma);
  }
}

constexpr int shards = 8;
class attention : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, attention, testing::Range(0, shards));

TEST_P(attention, equals_the_reference) {
  const std::vector<attention_case> cases = attention_sample();
  for (std::size_t i = static_cast<std::size_t>(GetParam()) * SKIM_TEST_STRIDE; i < cases.size();
       i += shards * SKIM_TEST_STRIDE) {
    expect_exact(cases[i]);
    if (HasFailure()) return;
  }
}

/// Storage type, dimensions, Tq, Tk and group in full; every other parameter drawn.
class exhaustive_attention : public testing::TestWithParam<std::tuple<int, int>> {};
INSTANTIATE_TEST_SUITE_P(storage_and_dims, exhaustive_attention,
                         testing::Combine(testing::Range(0, static_cast<int>(std::size(cache_types))),
                                          testing::Range(0, static_cast<int>(sampled_dims().size()))));

TEST_P(exhaustive_attention, equals_the_reference) {
  const std::vector<int> sizes = attention_counts();
  std::mt19937 random(1);
  std::vector<int> row(sizes.size());
  std::tie(row[0], row[1]) = GetParam();
  for (row[2] = 0; row[2] < sizes[2]; ++row[2]) {
    for (row[3] = 0; row[3] < sizes[3]; ++row[3]) {
      for (row[4] = 0; row[4] < sizes[4]; ++row[4]) {
        for (std::size_t p = 5; p < sizes.size(); ++p)
          row[p] = static_cast<int>(random() % static_cast<unsigned>(sizes[p]));
        expect_exact(attention_case_of(row));
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
