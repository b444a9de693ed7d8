// SPDX-License-Identifier: Apache-2.0
// QUOKA and sink_window on the CPU against the reference.
#include "support/attention_sample.hpp"
#include "support/quoka_stages.hpp"

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
using skim::retention;
namespace queries = skim::queries;

struct quoka_case {
  attention_case call;
  int policy = 0;
  std::int64_t n = 0;
  retention keep;
};

const std::vector<retention> sampled_retentions{
    retention::budget(1),         retention::budget(40),  retention::budget(40, 4),    retention::budget(40, 0, 9),
    retention::budget(20, 4, 16), retention::share(0.25), retention::share(0.1, 2, 5), retention::budget(300, 4, 128)};

/// Rules and arithmetic meet at `qbar` only, so not every pair of them is a policy here: each takes long to compile.
constexpr int policies = 11;

void expect_stages(const quoka_case& c, const skim::attention_args& args) {
  using skim::quoka;
  const skim::similarity::cosine cosine;
  const skim::similarity::dot dot;
  const skim::reduce::mean mean;
  switch (c.policy) {
    case 0:
      return expect_selection(quoka{queries::lowest_cosine(c.n), c.keep}, args);
    case 1:
      return expect_selection(quoka{queries::group_lowest_cosine(c.n), c.keep}, args);
    case 2:
      return expect_selection(quoka{queries::farthest_point(c.n), c.keep}, args);
    case 3:
      return expect_selection(quoka{queries::random(c.n, 5), c.keep}, args);
    case 4:
      return expect_selection(quoka{queries::newest(c.n), c.keep}, args);
    case 5:
      return expect_selection(quoka{queries::all(), c.keep}, args);
    case 6:
      return expect_selection(quoka{queries::lowest_cosine(c.n), c.keep, dot}, args);
    case 7:
      return expect_selection(quoka{queries::all(), c.keep, dot}, args);
    case 8:
      return expect_selection(quoka{queries::farthest_point(c.n), c.keep, dot, mean}, args);
    case 9:
      return expect_selection(quoka{queries::lowest_cosine(c.n), c.keep, cosine, mean}, args);
    default:
      return expect_selection(quoka{queries::newest(c.n), c.keep, dot, mean}, args);
  }
}

std::vector<quoka_case> quoka_sample() {
  const std::vector<head_dims> dims = sampled_dims();
  const std::vector<std::int64_t> Tq{1, 2, 7, 16, 17, 64, 128}, Tk{0, 1, 17, 113, 1000, 4097};
  const std::vector<std::int64_t> n{1, 2, 3, 4, 16, 17, 33}, groups{1, 3, 4, 7};
  const auto count = [](const auto& values) { return static_cast<int>(values.size()); };
  const int masks = count(sampled_masks), forms = count(sampled_forms);
  const pairwise_sample sample({policies, count(n), count(sampled_retentions), count(dims), count(Tq), count(Tk),
                                count(groups), 3, 3, 3, 3, 2, forms, masks, 2, 5, 2, 2});
  std::vector<quoka_case> cases;
  for (const auto& row : sample.rows()) {
    const int* next = row.data();
    const auto take = [&next] { return static_cast<std::size_t>(*next++); };
    quoka_case c;
    c.policy = static_cast<int>(take());
    c.n = n[take()];
    c.keep = sampled_retentions[take()];
    const head_dims size = dims[take()];
    c.call.D = size.D;
    c.call.Dv = size.Dv;
    c.call.Tq = Tq[take()];
    c.call.Tk = Tk[take()];
    c.call.G = groups[take()];
    c.call.Hk = static_cast<std::int64_t>(take()) + 1;
    c.call.kv_type = element_types[take()];
    c.call.q_type = element_types[take()];
    c.call.kv_order = static_cast<memory_order>(take());
    c.call.padding = take() ? 3 : 0;
    const cache_form form = sampled_forms[take()];
    c.call.layout = form.layout;
    c.call.page_size = form.page_size;
    c.call.mask = sampled_masks[take()];
    c.call.lengths = take();
    c.call.positions = static_cast<positions_kind>(take());
    c.call.inverse_norms = take();
    c.call.sequences = take() ? 3 : 1;
    cases.push_back(c);
  }
  return cases;
}

std::ostream& operator<<(std::ostream& to, const quoka_case& c) {
  return to << "policy " << c.policy << ", n " << c.n << ", keep " << c.keep.count << " or " << c.keep.fraction
            << ", sinks " << c.keep.sinks << ", recent " << c.keep.recent << "; " << c.call;
}

constexpr int shards = 4;
class quoka_selection : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, quoka_selection, testing::Range(0, shards));

TEST_P(quoka_selection, equals_the_reference_stage_by_stage) {
  const std::vector<quoka_case> cases = quoka_sample();
  for (std::size_t i = static_cast<std::size_t>(GetParam()) * SKIM_TEST_STRIDE; i < cases.size();
       i += shards * SKIM_TEST_STRIDE) {
    SCOPED_TRACE(testing::Message() << cases[i]);
    attention_inputs inputs(cases[i].call);
    expect_stages(cases[i], inputs.args());
    if (HasFailure()) return;
  }
}

// Inputs that a sample of normal values does not hold.

attention_case plain_call() {
  attention_case c;
  c.Tq = 12;
  c.Tk = 90;
  c.G = 2;
  c.Hk = 2;
  c.D = 24;
  return c;
}

/// Every policy, choosing some of the tokens and some of the keys.
void expect_every_policy(const skim::attention_args& args) {
  for (int policy = 0; policy < policies; ++policy) {
    quoka_case c;
    c.policy = policy;
    c.keep = retention::budget(20, 2, 3);
    for (const std::int64_t n : {1, 5, 12}) {
      c.n = n;
      SCOPED_TRACE(testing::Message() << "policy " << policy << ", n " << n);
      expect_stages(c, args);
    }
  }
}

/// Calls `set(row)` with the query of token t and every head.
template <class Set>
void set_queries(attention_inputs& inputs, std::int64_t t, const Set& set) {
  const auto q = inputs.q().view();
  for (std::int64_t h = 0; h < q.extents[1]; ++h) {
    for (std::int64_t d = 0; d < q.extents[2]; ++d) {
      skim::store_element(q.data, q.type, q.offset(t, h, d), set(h, d));
    }
  }
}

void set_key(const skim::kv_view& kv, std::int64_t slot, float value) {
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    write_row(kv, kv.k, h, slot, std::vector<float>(static_cast<std::size_t>(kv.k.dim), value).data());
  }
}

TEST(Quoka, ZeroQueriesAndKeysHaveZeroUnitVectors) {
  attention_inputs inputs(plain_call());
  for (const std::int64_t t : {0, 3, 11}) set_queries(inputs, t, [](std::int64_t, std::int64_t) { return 0.0f; });
  for (const std::int64_t slot : {0, 17, 64, 89}) set_key(inputs.view(0), slot, 0.0f);
  expect_every_policy(inputs.args());
}

TEST(Quoka, AllZeroChunkScoresEveryKeyZeroAndKeepsTheEarliest) {
  attention_inputs inputs(plain_call());
  for (std::int64_t t = 0; t < 12; ++t) set_queries(inputs, t, [](std::int64_t, std::int64_t) { return 0.0f; });
  expect_every_policy(inputs.args());
}

TEST(Quoka, EqualQueriesTieToTheLowerToken) {
  attention_inputs inputs(plain_call());
  for (std::int64_t t = 0; t < 12; ++t) {
    set_queries(inputs, t,
                [t](std::int64_t h, std::int64_t d) { return static_cast<float>((h + d) % 5 - 2 + t % 3 * d); });
  }
  const skim::attention_args args = inputs.args();
  expect_every_policy(args);

  // Three distinct queries, four times each: ties are exact, so the choice is the reference's own.
  const auto policy = skim::quoka{queries::lowest_cosine(5), retention::budget(20)};
  const skim::cpu::attention op{policy};
  std::vector<std::int32_t> indices(40), counts(2);
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(
      op.select(args, {indices.data(), counts.data(), 2, 20}, {}, workspace.get(), skim::serial_executor{}).ok());
  const auto stages = skim::cpu::selector_kernel<std::decay_t<decltype(policy)>>::stages(policy, args, workspace.get());
  const skim::attention_sequence sequence = skim::sequence_at(args, 0);
  for (std::int64_t h = 0; h < 4; ++h) {
    const std::int32_t* const tokens = stages.tokens_of(h / 2) + h % 2 * 5;
    const auto expected = skim::reference::lowest_cosine_rows(skim::reference::queries_of(args, sequence, h), 5);
    EXPECT_EQ(std::vector<std::int64_t>(tokens, tokens + 5), expected) << "head " << h;
  }
}

TEST(Quoka, EqualKeysPreferTheEarlierPosition) {
  attention_case c = plain_call();
  c.positions = positions_kind::shuffled;
  c.mask = skim::mask::full();
  attention_inputs inputs(c);
  for (std::int64_t slot = 0; slot < 90; ++slot) set_key(inputs.view(0), slot, slot % 4 == 0 ? 2.0f : 1.0f);
  expect_every_policy(inputs.args());
}

class unusual_keys : public testing::TestWithParam<std::tuple<float, bool>> {};
INSTANTIATE_TEST_SUITE_P(values_and_norms, unusual_keys,
                         testing::Combine(testing::Values(std::numeric_limits<float>::quiet_NaN(),
                                                          std::numeric_limits<float>::infinity(), 1e15f, 1e-15f),
                                          testing::Bool()));

TEST_P(unusual_keys, rank_as_their_scores_do) {
  attention_case c = plain_call();
  c.inverse_norms = std::get<1>(GetParam());
  attention_inputs inputs(c);
  const skim::kv_view& kv = inputs.view(0);
  for (const std::int64_t slot : {0, 5, 40, 70, 89}) {
    set_key(kv, slot, std::get<0>(GetParam()));
    for (std::int64_t h = 0; h < kv.heads && kv.inverse_norms; ++h) {
      const double length = std::sqrt(static_cast<double>(kv.k.dim)) * static_cast<double>(std::get<0>(GetParam()));
      kv.inverse_norms[h * kv.inverse_norms_stride + slot] = static_cast<float>(1 / length);
    }
  }
  expect_every_policy(inputs.args());
}

TEST(Quoka, NanRanksBelowMinusInfinity) {
  attention_case c = plain_call();
  c.Tk = 40;
  attention_inputs inputs(c);
  set_queries(inputs, 0, [](std::int64_t, std::int64_t) { return 1.0f; });
  for (std::int64_t t = 1; t < 12; ++t)
    set_queries(inputs, t, [](std::int64_t, std::int64_t d) { return d == 0 ? 2.0f : 1.0f; });
  // Every key scores NaN or, having an infinity that meets positive queries only, -inf.
  for (std::int64_t slot = 0; slot < 40; ++slot) {
    const float infinity = std::numeric_limits<float>::infinity();
    set_key(inputs.view(0), slot, slot % 3 == 1 ? -infinity : std::numeric_limits<float>::quiet_NaN());
  }
  const skim::attention_args args = inputs.args();
  for (const std::int64_t n : {2, 12}) {
    const skim::cpu::attention op{skim::quoka{queries::all(), retention::budget(13), skim::similarity::dot}};
    const skim::cpu::attention few{skim::quoka{queries::newest(n), retention::budget(13), skim::similarity::dot}};
    std::vector<std::int32_t> indices(26), counts(2);
    const skim::index_lists lists{indices.data(), counts.data(), 2, 13};
    std::vector<std::int32_t> expected;
    for (std::int32_t i = 0; i < 26; ++i) expected.push_back(3 * (i % 13) + 1);
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.select(args, lists, {}, workspace.get(), skim::serial_executor{}).ok());
    EXPECT_EQ(indices, expected);
    ASSERT_TRUE(few.select(args, lists, {}, workspace.get(), skim::serial_executor{}).ok());
    EXPECT_EQ(indices, expected) << "n " << n;
  }
}

TEST(Quoka, AnEmptyChunkSelectsNothing) {
  attention_case c = plain_call();
  c.Tq = 0;
  attention_inputs inputs(c);
  expect_every_policy(inputs.args());
}

TEST(Quoka, RandomTokensDependOnSeedAndPlaceOnly) {
  std::vector<std::int32_t> a(50), b(50), c(50), d(50);
  queries::choose(queries::random(8, 1), 50, 100, a.data());
  queries::choose(queries::random(8, 1), 50, 100, b.data());
  queries::choose(queries::random(8, 2), 50, 100, c.data());
  queries::choose(queries::random(8, 1), 50, 228, d.data());
  for (auto* tokens : {&a, &b, &c, &d}) {
    tokens->resize(8);
    std::sort(tokens->begin(), tokens->end());
    EXPECT_EQ(std::unique(tokens->begin(), tokens->end()), tokens->end()) << "without replacement";
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_NE(a, d);
}

TEST(Quoka, DenseBelowDecidesWhichPathIsTaken) {
  attention_inputs inputs(plain_call());
  skim::attention_args args = inputs.args();
  aligned_memory workspace(1 << 20);
  const auto path_taken = [&](std::int64_t dense_below, std::int64_t budget) {
    args.dense_below = dense_below;
    const skim::cpu::attention call{skim::quoka{queries::lowest_cosine(4), retention::budget(budget)}};
    const skim::report r = call.run(args, {}, workspace.get(), skim::serial_executor{});
    EXPECT_TRUE(r.ok());
    return r.taken;
  };
  EXPECT_EQ(path_taken(0, 89), skim::path::sparse);
  EXPECT_EQ(path_taken(0, 90), skim::path::dense);
  EXPECT_EQ(path_taken(90, 30), skim::path::sparse);
  EXPECT_EQ(path_taken(91, 30), skim::path::dense);
  EXPECT_EQ(path_taken(-1, 45), skim::path::sparse);
  EXPECT_EQ(path_taken(-1, 46), skim::path::dense);
}

}  // namespace
