// SPDX-License-Identifier: Apache-2.0
// Calls that must agree: bit for bit, or within the error bound.
#include "calls.hpp"

#include <skim/testing/matchers.hpp>

namespace {

using namespace skim_test;
using skim::testing::satisfies;

/// A budget that covers every head's past runs dense; in a call of several sequences, the short ones' lists hold all keys.
TEST(Budget, ThatCoversEverythingIsDenseBitForBit) {
  for_sampled_calls(2, [](const attention_case& sampled) {
    attention_case c = sampled;
    c.lists = lists_kind::none;
    if (c.Tq == 0) return;
    attention_inputs dense_inputs(c), inputs(c), share_inputs(c);
    const result expected = attend(skim::cpu::attention<>{}, c, dense_inputs);
    const skim::cpu::attention op{
        skim::quoka::paper(skim::queries::lowest_cosine(4), skim::retention::budget(c.Tk + 1))};
    EXPECT_EQ(attend(op, c, inputs), expected);
    const skim::cpu::attention share{
        skim::quoka::paper(skim::queries::newest(4), skim::retention::share(1).dense_under(0))};
    EXPECT_EQ(attend(share, c, share_inputs), expected);
  });
}

TEST(Budget, ThatCoversOneOfTwoSequencesLeavesThatOneExact) {
  for (const bool lengths : {false, true}) {
    attention_case c;
    c.Tq = 9;
    c.Tk = 3000;  // and 1500, with an empty chunk, and 1000
    c.sequences = 3;
    c.Hk = 2;
    c.lengths = lengths;
    attention_inputs inputs(c);
    skim::attention_args args = inputs.args();
    const skim::cpu::attention op{
        skim::quoka::paper(skim::queries::lowest_cosine(4), skim::retention::budget(1600).dense_under(0))};
    attend(op, c, inputs);
    const auto truth = skim::testing::attend_exactly(args);
    const std::int64_t first = args.offsets[2], Tq = args.offsets[3] - first;
    ASSERT_GT(Tq, 0);
    for (std::int64_t i = 0; i < Tq * c.Hq() * c.Dv; ++i) {
      const std::int64_t row = first + i / (c.Hq() * c.Dv), h = i / c.Dv % c.Hq(), d = i % c.Dv;
      const std::size_t at = static_cast<std::size_t>((row * c.Hq() + h) * c.Dv + d);
      const float got = skim::load_element(args.out.data, args.out.type, args.out.offset(row, h, d));
      ASSERT_NEAR(static_cast<double>(got), truth.out[at], truth.out_bound[at]);
    }
  }
}

TEST(Lists, OfEveryKeyAreDenseBitForBit) {
  for_sampled_calls(2, [](const attention_case& sampled) {
    attention_case c = sampled;
    c.lists = lists_kind::none;
    c.block_rows = 0;
    attention_inputs dense_inputs(c);
    const result expected = attend(c, dense_inputs);
    c.lists = lists_kind::every;
    attention_inputs inputs(c);
    EXPECT_EQ(attend(c, inputs), expected);
  });
}

/// `run` is `select` followed by `attend`, and what it attends to is what it selected.
TEST(Run, IsSelectThenAttend) {
  for (const std::int64_t Tk : {100, 700, 4097}) {
    attention_case c;
    c.Tq = 20;
    c.Tk = Tk;
    c.G = 3;
    c.Hk = 2;
    c.lse = c.lengths = true;
    c.sequences = 3;
    c.kv_type = skim::element::bf16;
    for (const std::int64_t every : {0, 8}) {
      SCOPED_TRACE(testing::Message() << "Tk " << Tk << ", every " << every);
      const skim::retention keep = skim::retention::budget(80, 4, 16).dense_under(120).for_every(every);
      const skim::cpu::attention op{skim::quoka::paper(skim::queries::farthest_point(6), keep)};
      attention_inputs inputs(c), again(c);
      const result expected = attend(op, c, inputs);
      const skim::attention_args args = again.args();
      const std::int64_t rows = skim::list_rows(args, op.block_rows()), capacity = op.list_capacity(args);
      std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity)),
          counts(static_cast<std::size_t>(rows));
      const skim::index_lists lists{indices.data(), counts.data(), rows, capacity, op.block_rows()};
      aligned_memory workspace(op.workspace_bytes(args, 1));
      ASSERT_TRUE(op.select(args, lists, {}, workspace.get(), skim::serial_executor{}).ok());
      ASSERT_TRUE(check_indices(args, &lists).ok());
      const skim::cpu::attend<> listed;
      aligned_memory scratch(listed.workspace_bytes(args, every, 1));
      ASSERT_TRUE(listed.run(args, lists, scratch.get(), skim::serial_executor{}).ok());
      EXPECT_EQ(result_of(again), expected);
      EXPECT_TRUE(satisfies(args.out, skim::testing::matches_attention(args, &lists)));
      EXPECT_TRUE(satisfies(args.lse, skim::testing::matches_lse(args, &lists)));
    }
  }
}

/// With no mask the order of keys does not matter: each order is within the bound of the same exact result.
TEST(Keys, MayBePermuted) {
  for_sampled_calls(3, [](const attention_case& sampled) {
    attention_case c = sampled;
    c.mask = skim::mask::full();
    c.lists = lists_kind::none;
    c.dot_pairs = c.slopes = false;
    c.bias = bias_kind::none;  // which is by slot, as slopes are by position
    attention_inputs inputs(c);
    const auto matcher = skim::testing::matches_attention(inputs.args());
    std::mt19937 random(5);
    for (std::int64_t s = 0; s < c.sequences; ++s) {
      const skim::kv_cache& kv = inputs.writable(s);
      for (std::int64_t head = 0; head < c.Hk; ++head) {
        for (std::int64_t slot = kv.length(head) - 1; slot > 0; --slot) {
          const std::int64_t other = static_cast<std::int64_t>(random()) % (slot + 1);
          const auto swap_rows = [&](const skim::kv_cache_tensor& tensor) {
            char* const a = static_cast<char*>(kv.row_address(tensor, head, slot));
            std::swap_ranges(a, a + skim::bytes_of(tensor.type, tensor.dim),
                             static_cast<char*>(kv.row_address(tensor, head, other)));
            if (tensor.scales) std::swap(kv.scale(tensor, head, slot), kv.scale(tensor, head, other));
          };
          swap_rows(kv.k);
          if (!kv.values_in_keys) swap_rows(kv.v);
        }
      }
    }
    attend(c, inputs);
    EXPECT_TRUE(satisfies(inputs.args().out, matcher));
  });
}

/// Attention over two parts of the keys, merged by their log-sum-exps, is attention over all of them.
class split : public testing::TestWithParam<std::tuple<std::int64_t, bool>> {};
INSTANTIATE_TEST_SUITE_P(places, split,
                         testing::Combine(testing::Values<std::int64_t>(11, 64, 100, 777, 1500, 1989),
                                          testing::Bool()));

TEST_P(split, calls_merge_by_log_sum_exp) {
  const auto [place, sinks] = GetParam();
  attention_case c;
  c.Tq = 11;
  c.Tk = 1989;
  c.G = 3;
  c.Hk = 2;
  c.D = 48;
  c.Dv = 40;
  c.mask = skim::mask::full();
  c.lse = true;
  c.sinks = sinks;
  attention_inputs whole(c), low(c), high(c);
  const auto truth = skim::testing::attend_exactly(whole.args());
  // With no mask, a view of some rows is a cache like any other, whoever's queries it meets.
  skim::attention_args part[] = {low.args(), high.args()};
  part[0].kv.tokens = place;
  part[1].kv = skim::rows(part[1].kv, place, c.Tk + c.Tq - place);
  part[1].sink_logits = nullptr;  // counted once
  const skim::cpu::attention<> op;
  for (const skim::attention_args& args : part) {
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.run(args, {}, workspace.get(), skim::serial_executor{}).ok());
  }
  for (std::int64_t row = 0; row < c.Tq * c.Hq(); ++row) {
    const std::int64_t t = row / c.Hq(), h = row % c.Hq();
    const double a = static_cast<double>(*part[0].lse.at(t, h)), b = static_cast<double>(*part[1].lse.at(t, h));
    const double lse = std::max(a, b) + std::log1p(std::exp(-std::fabs(a - b)));
    const std::size_t at = static_cast<std::size_t>(row);
    ASSERT_NEAR(lse, truth.lse[at], truth.lse_bound[at]) << "token " << t << ", head " << h;
    for (std::int64_t d = 0; d < c.Dv; ++d) {
      const auto out = [&](const skim::attention_args& args) {
        return static_cast<double>(skim::load_element(args.out.data, args.out.type, args.out.offset(t, h, d)));
      };
      const double merged = std::exp(a - lse) * out(part[0]) + std::exp(b - lse) * out(part[1]);
      const std::size_t element = static_cast<std::size_t>(row * c.Dv + d);
      ASSERT_NEAR(merged, truth.out[element], 2 * truth.out_bound[element])
          << "token " << t << ", head " << h << ", element " << d;
    }
  }
}

/// Tokens appended chunk by chunk and attended to are what one call over the whole text gives.
TEST(Chunks, OfATextGiveWhatOneCallGives) {
  attention_case c;
  c.Tk = 0;
  c.Tq = 150;
  c.G = 2;
  c.Hk = 2;
  attention_inputs inputs(c);
  const skim::attention_args whole = inputs.args();
  const auto matcher = skim::testing::matches_attention(whole);
  const skim::cpu::attention<> op;
  aligned_memory workspace(op.workspace_bytes(whole, 1));
  for (std::int64_t begin = 0; begin < c.Tq; begin += 37) {
    const std::int64_t rows = std::min<std::int64_t>(37, c.Tq - begin);
    skim::attention_args args = whole;
    args.q = skim::rows(whole.q, begin, rows);
    args.out = skim::rows(whole.out, begin, rows);
    args.kv = skim::prefix(whole.kv, c.Tq - begin - rows);
    ASSERT_TRUE(op.run(args, {}, workspace.get(), skim::serial_executor{}).ok());
  }
  EXPECT_TRUE(satisfies(whole.out, matcher));
}

}  // namespace
