// SPDX-License-Identifier: Apache-2.0
// Attention where floating point or positions end.
#include "support/attention_case.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/testing/matchers.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::testing::satisfies;

constexpr float infinity = std::numeric_limits<float>::infinity();

void attend(const skim::attention_args& args) {
  const skim::cpu::attention<> op;
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(args, {}, workspace.get(), skim::serial_executor{}).ok());
}

void expect_exact(const skim::attention_args& args) {
  attend(args);
  EXPECT_TRUE(satisfies(args.out, skim::testing::matches_attention(args)));
  EXPECT_TRUE(satisfies(args.lse, skim::testing::matches_lse(args)));
}

attention_case small_call() {
  attention_case c;
  c.Tq = 5;
  c.Tk = 70;
  c.G = 2;
  c.D = c.Dv = 8;
  c.lse = true;
  return c;
}

void set_every(const skim::kv_cache& kv, const skim::kv_cache_tensor& tensor, float value) {
  for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
    write_row(kv, tensor, 0, slot, std::vector<float>(static_cast<std::size_t>(tensor.dim), value).data());
  }
}

TEST(AttentionEdges, OneKeyIsItsValue) {
  attention_case c = small_call();
  c.Tq = 1;
  c.Tk = 0;
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  expect_exact(args);
  for (std::int64_t d = 0; d < c.Dv; ++d) {
    const float v = skim::load_element(args.kv.v.data, args.kv.v.type, d);
    EXPECT_EQ(skim::load_element(args.out.data, args.out.type, args.out.offset(0, 1, d)), v);
  }
}

TEST(AttentionEdges, LargeLogitsLeaveOneKey) {
  for (const float scale : {1e3f, -1e3f, 1e5f}) {
    attention_case c = small_call();
    c.scale = scale;
    attention_inputs inputs(c);
    attend(inputs.args());
    const auto truth = skim::testing::attend_exactly(inputs.args());
    const skim::attention_args args = inputs.args();
    for (std::int64_t i = 0; i < c.Tq * c.Hq() * c.Dv; ++i) {
      const std::int64_t row = i / c.Dv;
      const float got =
          skim::load_element(args.out.data, args.out.type, args.out.offset(row / c.Hq(), row % c.Hq(), i % c.Dv));
      const std::size_t at = static_cast<std::size_t>(i);
      ASSERT_NEAR(static_cast<double>(got), truth.out[at], truth.out_bound[at] + 1e-30) << "element " << i;
    }
  }
}

/// Whatever its payload and the place of the key, a NaN that a row sees is in its output and its log-sum-exp; rows behind a
/// window stay clean.
TEST(AttentionEdges, AVisibleNanIsInTheResult) {
  for (const std::uint32_t bits : {0x7fc00000u, 0x7fc00001u, 0x7f800001u, 0x7fffffffu, 0xffffffffu}) {
    for (const std::int64_t slot : {0, 3, 70}) {
      attention_case c = small_call();
      c.mask = skim::mask::window(72);  // the last rows do not see the first keys
      attention_inputs inputs(c);
      const skim::kv_cache& kv = inputs.writable(0);
      write_row(kv, kv.k, 0, slot, std::vector<float>(8, skim::detail::float_from_bits(bits)).data());
      const skim::attention_args args = inputs.args();
      attend(args);
      for (std::int64_t t = 0; t < c.Tq; ++t) {
        const bool sees = slot <= 70 + t && slot > 70 + t - 72;
        for (std::int64_t h = 0; h < c.Hq(); ++h) {
          const float out = skim::load_element(args.out.data, args.out.type, args.out.offset(t, h, 5));
          EXPECT_EQ(std::isnan(out), sees) << std::hex << bits << ", slot " << slot << ", row " << t;
          EXPECT_EQ(std::isnan(*args.lse.at(t, h)), sees) << std::hex << bits << ", slot " << slot << ", row " << t;
        }
      }
    }
  }
}

/// Tiles beyond the first rescale what is there.
TEST(AttentionEdges, AHundredKeysAreWithinTheBounds) {
  for (const float cap : {0.0f, 20.0f}) {
    attention_case c = small_call();
    c.Tq = 4;
    c.Tk = 100;
    c.D = c.Dv = 16;
    c.soft_cap = cap;
    attention_inputs inputs(c);
    expect_exact(inputs.args());
  }
}

TEST(AttentionEdges, TheLeastSoftCapIsFinite) {
  for (const float cap : {0x1p-126f, 1e-30f, 1e29f}) {
    attention_case c = small_call();
    c.soft_cap = cap;
    attention_inputs inputs(c);
    expect_exact(inputs.args());
  }
}

TEST(AttentionEdges, RowsWhoseLogitsAreAllMinusInfinityAreZero) {
  for (const bool sinks : {false, true}) {
    attention_case c = small_call();
    c.sinks = sinks;
    attention_inputs inputs(c);
    const skim::attention_args args = inputs.args();
    inputs.q().fill(std::vector<float>(static_cast<std::size_t>(c.Tq * c.Hq() * c.D), 1.0f));
    set_every(inputs.writable(0), inputs.writable(0).k, -infinity);
    expect_exact(args);
    std::vector<double> reference(static_cast<std::size_t>(c.Tq * c.Hq() * c.Dv), -1.0);
    skim::reference::attend(args, nullptr, {reference.data(), {c.Tq, c.Hq(), c.Dv}});
    EXPECT_EQ(reference, std::vector<double>(reference.size(), 0.0));
    for (std::int64_t t = 0; t < c.Tq; ++t) {
      for (std::int64_t h = 0; h < c.Hq(); ++h) {
        EXPECT_EQ(skim::load_element(args.out.data, args.out.type, args.out.offset(t, h, 3)), 0.0f);
        const float expected = sinks ? args.sink_logits[h] : -infinity;
        EXPECT_NEAR(std::exp(*args.lse.at(t, h)), std::exp(expected), 1e-6f);
      }
    }
  }
}

TEST(AttentionEdges, SinksFromMinusInfinityToTheLargest) {
  for (const float sink : {-infinity, -1e30f, -100.0f, 0.0f, 50.0f, 1e30f}) {
    attention_inputs inputs(small_call());
    skim::attention_args args = inputs.args();
    const float logits[] = {sink, sink};
    args.sink_logits = logits;
    expect_exact(args);
  }
}

/// Logits near zero, whose own error is next to nothing, beside a sink that takes nearly all or half of the weight.
TEST(AttentionEdges, ASinkAddsItsOwnError) {
  for (float sink = 1.7f; sink < 80; sink += 0.3f) {
    attention_case c = small_call();
    c.Tk = 10;
    c.scale = 0.01f;
    attention_inputs inputs(c);
    skim::attention_args args = inputs.args();
    const float logits[] = {sink, -sink};
    args.sink_logits = logits;
    expect_exact(args);
  }
}

/// What is left where values cancel is rounding; the bounds go by what was added.
TEST(AttentionEdges, ValuesThatCancelAreWithinTheBounds) {
  attention_case c = small_call();
  c.Tq = 16;
  c.Tk = 112;
  c.mask = skim::mask::full();
  c.scale = 1e-4f;
  attention_inputs inputs(c);
  const skim::kv_cache& kv = inputs.writable(0);
  for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
    write_row(kv, kv.v, 0, slot, std::vector<float>(8, slot % 2 == 0 ? 1.0f : -1.0f).data());
  }
  expect_exact(inputs.args());
}

class value_sizes : public testing::TestWithParam<std::tuple<skim::element, float>> {};
INSTANTIATE_TEST_SUITE_P(types_and_sizes, value_sizes,
                         testing::Combine(testing::Values(skim::element::f32, skim::element::f16, skim::element::bf16),
                                          testing::Values(65504.0f, 1.0f, -3.0f, 6e-5f, 6e-8f)));

TEST_P(value_sizes, that_are_equal_stay_what_they_are) {
  attention_case c = small_call();
  std::tie(c.kv_type, std::ignore) = GetParam();
  c.out_type = c.kv_type;
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  set_every(inputs.writable(0), inputs.writable(0).v, std::get<1>(GetParam()));
  expect_exact(args);
}

TEST(AttentionEdges, ZeroQueriesAverage) {
  attention_inputs inputs(small_call());
  inputs.q().fill(std::vector<float>(5 * 2 * 8, 0.0f));
  expect_exact(inputs.args());
}

class last_positions : public testing::TestWithParam<skim::mask> {};
INSTANTIATE_TEST_SUITE_P(masks, last_positions,
                         testing::Values(skim::mask::causal(), skim::mask::full(), skim::mask::window(3),
                                         skim::mask{2, 4}, skim::mask{0, skim::mask::unbounded}));

TEST_P(last_positions, of_32_bits_are_masked_rightly) {
  attention_case c = small_call();
  c.mask = GetParam();
  attention_inputs inputs(c);
  skim::attention_args args = inputs.args();
  args.kv.first_position = skim::detail::largest_index - args.kv.tokens;
  expect_exact(args);
  std::vector<std::int32_t> positions;
  for (std::int64_t i = args.kv.tokens; i > 0; --i) {
    positions.push_back(static_cast<std::int32_t>(skim::detail::largest_index - i + 1));
  }
  args.kv.positions = positions.data();  // the newest has the largest number of 32 bits
  args.kv.positions_stride = 0;
  expect_exact(args);
}

TEST(AttentionEdges, OutputMayLieInOneBufferWithPaddingBetweenItsHeads) {
  attention_case c = small_call();
  std::vector<float> both(static_cast<std::size_t>(c.Tq * 2 * c.Hq() * c.Dv), -9.0f);
  attention_inputs inputs(c);
  skim::attention_args args = inputs.args();
  args.out = skim::tensor_view<float, 3>(both.data(), {c.Tq, c.Hq(), c.Dv}, {2 * c.Hq() * c.Dv, 2 * c.Dv, 1});
  expect_exact(args);
  for (std::int64_t i = 0; i < c.Tq * c.Hq(); ++i) {
    for (std::int64_t d = c.Dv; d < 2 * c.Dv; ++d) EXPECT_EQ(both[static_cast<std::size_t>(i * 2 * c.Dv + d)], -9.0f);
  }
}

}  // namespace
