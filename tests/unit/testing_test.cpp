// SPDX-License-Identifier: Apache-2.0
// The matchers and reports that users get: they accept what is right, and refuse what is nearly right.
#include "support/attention_case.hpp"

#include <skim/testing/captured_mass.hpp>
#include <skim/testing/matchers.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::testing::satisfies;

attention_case two_sequences() {
  attention_case c;
  c.D = 12;
  c.Dv = 9;
  c.Hk = c.G = 2;
  c.sequences = 2;
  c.lse = c.sinks = c.lengths = true;
  c.soft_cap = 8;
  c.lists = lists_kind::third;
  c.positions = positions_kind::holes;
  c.mask = skim::mask::window(20);
  return c;
}

/// Writes the reference's own result to `args.out` and `args.lse`.
void attend_by_reference(const skim::attention_args& args, const skim::index_lists* lists) {
  const std::int64_t Tq = args.q.extents[0], Hq = args.q.extents[1], Dv = args.out.extents[2];
  std::vector<double> out(static_cast<std::size_t>(Tq * Hq * Dv)), lse(static_cast<std::size_t>(Tq * Hq));
  skim::reference::attend(args, lists, {out.data(), {Tq, Hq, Dv}}, {lse.data(), {Tq, Hq}});
  for (std::int64_t row = 0; row < Tq * Hq; ++row) {
    for (std::int64_t d = 0; d < Dv; ++d) {
      skim::store_element(args.out.data, args.out.type, args.out.offset(row / Hq, row % Hq, d),
                          static_cast<float>(out[static_cast<std::size_t>(row * Dv + d)]));
    }
    if (args.lse.data) *args.lse.at(row / Hq, row % Hq) = static_cast<float>(lse[static_cast<std::size_t>(row)]);
  }
}

TEST(AttentionTruth, IsTheReference) {
  attention_inputs inputs(two_sequences());
  const skim::attention_args args = inputs.args();
  const auto truth = skim::testing::attend_exactly(args, inputs.lists());
  std::vector<double> out(truth.out.size()), lse(truth.lse.size());
  skim::reference::attend(args, inputs.lists(), {out.data(), {truth.Tq, truth.Hq, truth.Dv}},
                          {lse.data(), {truth.Tq, truth.Hq}});
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(truth.out[i], out[i], 1e-13) << i;
  for (std::size_t i = 0; i < lse.size(); ++i) ASSERT_NEAR(truth.lse[i], lse[i], 1e-13) << i;
}

TEST(AttentionTruth, OfARowThatSeesNothingIsZero) {
  attention_inputs inputs(attention_case{});
  skim::attention_args args = inputs.args();
  args.mask = skim::mask{-1, 0};  // hides even a query's own key; `check` would refuse it
  const auto truth = skim::testing::attend_exactly(args);
  EXPECT_EQ(truth.out, std::vector<double>(truth.out.size(), 0.0));
  EXPECT_EQ(truth.lse, std::vector<double>(truth.lse.size(), -std::numeric_limits<double>::infinity()));
}

class attention_matchers : public testing::TestWithParam<skim::element> {};
INSTANTIATE_TEST_SUITE_P(types, attention_matchers,
                         testing::Values(skim::element::f32, skim::element::f16, skim::element::bf16));

TEST_P(attention_matchers, accept_the_rounded_reference) {
  attention_case c = two_sequences();
  c.out_type = GetParam();
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  attend_by_reference(args, inputs.lists());
  EXPECT_TRUE(satisfies(args.out, skim::testing::matches_attention(args, inputs.lists())));
  EXPECT_TRUE(satisfies(args.lse, skim::testing::matches_lse(args, inputs.lists())));
}

TEST_P(attention_matchers, refuse_one_wrong_element_and_say_where) {
  attention_case c = two_sequences();
  c.out_type = GetParam();
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  attend_by_reference(args, inputs.lists());
  const std::int64_t at = args.out.offset(5, 3, 7);
  const float right = skim::load_element(args.out.data, args.out.type, at);
  const auto matcher = skim::testing::matches_attention(args, inputs.lists());
  const float step = static_cast<float>(skim::testing::roundoff(GetParam()));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float wrong : {right * (1 + 8 * step) + 3e-4f, right + 1, nan, std::numeric_limits<float>::infinity()}) {
    skim::store_element(args.out.data, args.out.type, at, wrong);
    const testing::AssertionResult answer = satisfies(args.out, matcher);
    EXPECT_FALSE(answer) << wrong;
    EXPECT_NE(std::string(answer.message()).find("token 5, head 3, element 7"), std::string::npos) << answer.message();
  }
}

TEST(AttentionMatchers, RefuseAnOutputThatLeavesOneKeyOut) {
  attention_case c;
  c.Tk = 1000;
  c.lists = lists_kind::every;
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  skim::index_lists lists = *inputs.lists();
  --lists.counts[0];
  attend_by_reference(args, &lists);
  ++lists.counts[0];
  EXPECT_FALSE(satisfies(args.out, skim::testing::matches_attention(args, inputs.lists())));
}

TEST(AttentionMatchers, RefuseAnNmseAboveTheLimit) {
  attention_inputs inputs(two_sequences());
  const skim::attention_args args = inputs.args();
  attend_by_reference(args, inputs.lists());
  const auto rounding = skim::testing::arithmetic::dot_pairs();  // whose bounds leave room above the limit
  EXPECT_TRUE(satisfies(args.out, skim::testing::matches_attention(args, inputs.lists(), rounding.on_normal_data())));
  for (std::int64_t i = 0; i < args.out.extents[0] * args.out.extents[1]; ++i) {
    float* const row =
        static_cast<float*>(args.out.data) + args.out.offset(i / args.out.extents[1], i % args.out.extents[1], 0);
    for (std::int64_t d = 0; d < args.out.extents[2]; ++d) row[d] *= 1.01f;
  }
  EXPECT_TRUE(satisfies(args.out, skim::testing::matches_attention(args, inputs.lists(), rounding)));
  EXPECT_FALSE(satisfies(args.out, skim::testing::matches_attention(args, inputs.lists(), rounding.on_normal_data())));
}

TEST(AttentionMatchers, RefuseAnOutputOfAnotherShape) {
  attention_inputs inputs(two_sequences());
  const skim::attention_args args = inputs.args();
  attend_by_reference(args, inputs.lists());
  skim::tensor_view<void, 3> shorter = args.out;
  --shorter.extents[0];
  EXPECT_FALSE(satisfies(shorter, skim::testing::matches_attention(args, inputs.lists())));
}

TEST(AttentionMatchers, RefuseAWrongLogSumExp) {
  attention_inputs inputs(two_sequences());
  const skim::attention_args args = inputs.args();
  attend_by_reference(args, inputs.lists());
  *args.lse.at(2, 1) += 1e-4f;
  EXPECT_FALSE(satisfies(args.lse, skim::testing::matches_lse(args, inputs.lists())));
}

// Lists: six keys at positions of their slots, three to be kept.

class top_k_lists : public testing::Test {
 protected:
  using list = std::vector<std::int64_t>;

  testing::AssertionResult accepts(const list& chosen, const std::vector<double>& scores, double bound) {
    const skim::attention_sequence sequence{kv_, 0, 1};
    const skim::testing::scored_slots scored{{0, 1, 2, 3, 4, 5}, scores, std::vector<double>(6, bound)};
    return satisfies(chosen, skim::testing::matches_top_k(keep_, sequence, 0, scored));
  }

  skim::retention keep_ = skim::retention::budget(3);

 private:
  skim::kv_view kv_ = [] {
    skim::kv_view kv;
    kv.heads = 1;
    kv.tokens = kv.capacity = 7;
    return kv;
  }();
};

TEST_F(top_k_lists, may_differ_only_within_the_bounds) {
  const std::vector<double> scores{5, 1, 4, 3, 2.99, 0};
  EXPECT_TRUE(accepts({0, 2, 3}, scores, 0));
  EXPECT_FALSE(accepts({0, 2, 4}, scores, 0));
  EXPECT_TRUE(accepts({0, 2, 4}, scores, 0.006));
  EXPECT_FALSE(accepts({0, 2, 4}, scores, 0.004));
  EXPECT_FALSE(accepts({1, 2, 3}, scores, 0.006));
}

TEST_F(top_k_lists, are_whole_ascending_and_of_candidates) {
  const std::vector<double> scores{5, 1, 4, 3, 2.99, 0};
  EXPECT_FALSE(accepts({0, 2}, scores, 0));
  EXPECT_FALSE(accepts({0, 3, 2}, scores, 0));
  EXPECT_FALSE(accepts({0, 0, 2}, scores, 0));
  EXPECT_FALSE(accepts({0, 2, 9}, scores, 10));
}

TEST_F(top_k_lists, hold_sinks_and_recent_keys) {
  keep_ = skim::retention::budget(3, 1, 1);
  const std::vector<double> scores{0, 9, 8, 7, 6, 0};
  EXPECT_TRUE(accepts({0, 1, 5}, scores, 0));
  EXPECT_FALSE(accepts({1, 2, 5}, scores, 0));
  EXPECT_FALSE(accepts({0, 1, 2}, scores, 0));
  EXPECT_FALSE(accepts({0, 2, 5}, scores, 0));
}

TEST_F(top_k_lists, rank_nan_lowest) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), low = -std::numeric_limits<double>::infinity();
  const std::vector<double> scores{nan, low, 4, 3, nan, nan};
  EXPECT_TRUE(accepts({1, 2, 3}, scores, 0));
  EXPECT_FALSE(accepts({0, 2, 3}, scores, 0));
}

TEST(CapturedMass, IsTheExponentOfTheDifference) {
  const float nothing = -std::numeric_limits<float>::infinity();
  const float dense[] = {1, 2, 3, 2, nothing, 4, 0, 5};  // [4, 2]
  const float chosen[] = {1, 1, 2, nothing, nothing, 4, 0, std::numeric_limits<float>::quiet_NaN()};
  const auto report = skim::testing::captured_mass({chosen, {4, 2}}, {dense, {4, 2}});
  ASSERT_EQ(report.heads.size(), 2u);
  EXPECT_EQ(report.undefined, 1);
  EXPECT_EQ(report.heads[0].masses, (std::vector<double>{std::exp(-1.0), 1, 1, 1}));
  EXPECT_NEAR(report.heads[0].mean, (3 + std::exp(-1.0)) / 4, 1e-15);
  EXPECT_EQ(report.heads[1].masses, (std::vector<double>{0, 0, std::exp(-1.0), 1}));
  EXPECT_EQ(report.heads[1].lowest(), 0);
  EXPECT_EQ(report.heads[1].quantile(0), 0);
  EXPECT_EQ(report.heads[1].quantile(0.5), 0);
  EXPECT_EQ(report.heads[1].quantile(0.51), std::exp(-1.0));
  EXPECT_EQ(report.heads[1].quantile(1), 1);
  EXPECT_EQ(report.lowest(), 0);
  EXPECT_NEAR(report.mean(), (report.heads[0].mean + report.heads[1].mean) / 2, 1e-15);
}

TEST(CapturedMass, MeasuresListsOnTheReference) {
  attention_case c;
  c.Tk = 60;
  c.lse = true;
  c.lists = lists_kind::third;
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  attend_by_reference(args, inputs.lists());
  std::vector<float> chosen;
  for (std::int64_t t = 0; t < c.Tq; ++t) chosen.push_back(*args.lse.at(t, 0));
  attend_by_reference(args, nullptr);
  const auto report = skim::testing::captured_mass({chosen.data(), {c.Tq, 1}}, args.lse);
  EXPECT_GT(report.lowest(), 0.05);
  EXPECT_LT(report.mean(), 0.7);
}

TEST(CapturedMass, OfNoRowsIsOne) {
  const skim::testing::captured_mass_report report = skim::testing::captured_mass({}, {});
  EXPECT_EQ(report.mean(), 1);
  EXPECT_EQ(report.lowest(), 1);
}

}  // namespace
