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
  skim::quoka policy;
};

const std::vector<retention> sampled_retentions{
    retention::budget(1),         retention::budget(40),         retention::budget(40, 4), retention::budget(40, 0, 9),
    retention::budget(20, 4, 16), retention::share(0.25),        retention::preset(50),    retention::preset_share(0.1),
    retention::share(0.1, 2, 5),  retention::budget(300, 4, 128)};

struct rule_kind {
  skim::query_choice choice;
  skim::query_rows rows;
};
using skim::query_choice;
constexpr rule_kind every_kind[] = {{query_choice::lowest_cosine, skim::query_rows::group_means},
                                    {query_choice::group_lowest_cosine, skim::query_rows::group_means},
                                    {query_choice::farthest_point, skim::query_rows::group_means},
                                    {query_choice::random, skim::query_rows::group_means},
                                    {query_choice::newest, skim::query_rows::group_means},
                                    {query_choice::all, skim::query_rows::group_means},
                                    {query_choice::needed, skim::query_rows::own},
                                    {query_choice::random, skim::query_rows::own},
                                    {query_choice::newest, skim::query_rows::own},
                                    {query_choice::all, skim::query_rows::own}};

/// Makes of what does not go together what does.
void make_valid(skim::quoka& policy) {
  if (policy.similarity != skim::similarity::standardised) return;
  if (policy.queries.choice == query_choice::lowest_cosine) policy.queries = queries::needed(policy.queries.n);
  policy.reduce = skim::reduction::max;
}

std::vector<quoka_case> quoka_sample() {
  const std::vector<head_dims> dims = sampled_dims();
  const std::vector<std::int64_t> Tq{1, 2, 7, 16, 17, 64, 128}, Tk{0, 1, 17, 113, 1000, 4097};
  const std::vector<std::int64_t> n{1, 2, 3, 4, 16, 17, 33}, groups{1, 3, 4, 7}, every{0, 3, 50};
  const auto count = [](const auto& values) { return static_cast<int>(std::size(values)); };
  const int masks = count(sampled_masks), forms = count(sampled_forms);
  const pairwise_sample sample({count(every_kind),
                                3,
                                2,
                                3,
                                count(n),
                                count(sampled_retentions),
                                3,
                                count(every),
                                count(dims),
                                count(Tq),
                                count(Tk),
                                count(groups),
                                3,
                                count(cache_types),
                                3,
                                3,
                                2,
                                forms,
                                masks,
                                2,
                                5,
                                2,
                                3});
  std::vector<quoka_case> cases;
  for (const auto& row : sample.rows()) {
    const int* next = row.data();
    const auto take = [&next] { return static_cast<std::size_t>(*next++); };
    quoka_case c;
    const rule_kind kind = every_kind[take()];
    c.policy.queries.choice = kind.choice;
    c.policy.queries.rows = kind.rows;
    c.policy.queries.seed = 5;
    c.policy.similarity = static_cast<skim::similarity>(take());
    c.policy.reduce = static_cast<skim::reduction>(take());
    c.policy.smooth = std::int64_t{1} + 2 * static_cast<std::int64_t>(take());
    c.policy.queries.n = n[take()];
    const retention keep = sampled_retentions[take()];
    const std::size_t bounds = take();  // below which blocks are dense: none, measured, given
    c.policy.keep = bounds == 0 ? keep.dense_under(0) : bounds == 1 ? keep : keep.dense_under(200, 4);
    c.policy.keep.every = every[take()];
    const head_dims size = dims[take()];
    c.call.D = size.D;
    c.call.Dv = size.Dv;
    c.call.Tq = Tq[take()];
    c.call.Tk = Tk[take()];
    c.call.G = groups[take()];
    c.call.Hk = static_cast<std::int64_t>(take()) + 1;
    c.call.kv_type = cache_types[take()];
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
    const std::size_t sequences = take();
    c.call.sequences = sequences == 0 ? 1 : 3;
    c.call.batch = sequences == 2;
    make_valid(c.call);
    make_valid(c.policy);
    // Every block scores all keys, and the reference takes its time: short blocks of long calls have a short past.
    if (c.policy.keep.every == 3 && c.call.Tk > 1000 && c.call.Tq > 17) c.call.Tk = 300;
    cases.push_back(c);
  }
  return cases;
}

std::ostream& operator<<(std::ostream& to, const quoka_case& c) {
  const retention& keep = c.policy.keep;
  return to << "rule " << static_cast<int>(c.policy.queries.choice) << " of rows "
            << static_cast<int>(c.policy.queries.rows) << ", smooth " << c.policy.smooth << ", n " << c.policy.queries.n
            << ", similarity " << static_cast<int>(c.policy.similarity) << ", reduction "
            << static_cast<int>(c.policy.reduce) << ", keep " << keep.count << " or " << keep.fraction << ", sinks "
            << keep.sinks << ", recent " << keep.recent << ", every " << keep.every << ", dense below "
            << keep.dense_below << " and " << keep.rows_below << "; " << c.call;
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
    expect_selection(cases[i].policy, inputs.args());
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
  for (const rule_kind kind : every_kind) {
    for (const skim::similarity measure :
         {skim::similarity::cosine, skim::similarity::dot, skim::similarity::standardised}) {
      for (const skim::reduction reduce : {skim::reduction::max, skim::reduction::mean}) {
        for (const std::int64_t n : {1, 5, 12}) {
          SCOPED_TRACE(testing::Message()
                       << "rule " << static_cast<int>(kind.choice) << ", similarity " << static_cast<int>(measure)
                       << ", reduction " << static_cast<int>(reduce) << ", n " << n);
          const retention keep = retention::budget(20, 2, 3).dense_under(0);
          skim::quoka policy = skim::quoka::paper({kind.choice, n, 5, kind.rows}, keep, measure, reduce);
          make_valid(policy);
          if (measure == skim::similarity::standardised) policy.smooth = 3;
          expect_selection(policy, args);
        }
      }
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

void set_key(const skim::kv_cache& kv, std::int64_t slot, float value) {
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    write_row(kv, kv.k, h, slot, std::vector<float>(static_cast<std::size_t>(kv.k.dim), value).data());
  }
}

TEST(Quoka, ZeroQueriesAndKeysHaveZeroUnitVectors) {
  attention_inputs inputs(plain_call());
  for (const std::int64_t t : {0, 3, 11}) set_queries(inputs, t, [](std::int64_t, std::int64_t) { return 0.0f; });
  for (const std::int64_t slot : {0, 17, 64, 89}) set_key(inputs.writable(0), slot, 0.0f);
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
  const skim::quoka policy = skim::quoka::paper(queries::lowest_cosine(5), retention::budget(20));
  const skim::attention_sequence sequence = skim::sequence_at(args, 0);
  for (std::int64_t h = 0; h < 4; ++h) {
    const auto expected = skim::reference::lowest_cosine_rows(skim::reference::queries_of(args, sequence, h), 5);
    const stage_check check{policy, args, sequence, h / 2};
    EXPECT_EQ(check.tokens_of_query_head(h), expected) << "head " << h;
  }
}

TEST(Quoka, EqualKeysPreferTheEarlierPosition) {
  attention_case c = plain_call();
  c.positions = positions_kind::shuffled;
  c.mask = skim::mask::full();
  attention_inputs inputs(c);
  for (std::int64_t slot = 0; slot < 90; ++slot) set_key(inputs.writable(0), slot, slot % 4 == 0 ? 2.0f : 1.0f);
  expect_every_policy(inputs.args());
}

class unusual_keys : public testing::TestWithParam<std::tuple<float, bool>> {};
INSTANTIATE_TEST_SUITE_P(values_and_norms, unusual_keys,
                         testing::Combine(testing::Values(std::numeric_limits<float>::quiet_NaN(),
                                                          std::numeric_limits<float>::infinity(), 1e15f, 1e-15f, 1e22f,
                                                          1e-25f, 1e-40f),
                                          testing::Bool()));

TEST_P(unusual_keys, rank_as_their_scores_do) {
  attention_case c = plain_call();
  c.inverse_norms = std::get<1>(GetParam());
  attention_inputs inputs(c);
  const skim::kv_cache& kv = inputs.writable(0);
  for (const std::int64_t slot : {0, 5, 40, 70, 89}) {
    set_key(kv, slot, std::get<0>(GetParam()));
    for (std::int64_t h = 0; h < kv.heads && kv.inverse_norms; ++h) {
      const double length = std::sqrt(static_cast<double>(kv.k.dim)) * static_cast<double>(std::get<0>(GetParam()));
      kv.inverse_norms[h * kv.inverse_norms_stride + slot] = static_cast<float>(1 / length);
    }
  }
  expect_every_policy(inputs.args());
}

/// A norm that is stored as infinity, zero or NaN says nothing: the key does.
TEST(Quoka, UnusableStoredNormsAreFoundFromTheKey) {
  attention_case c = plain_call();
  c.inverse_norms = true;
  attention_inputs inputs(c);
  const skim::kv_cache& kv = inputs.writable(0);
  for (const std::int64_t slot : {0, 5, 40, 70, 89}) {
    for (std::int64_t h = 0; h < kv.heads; ++h) {
      const float stored[] = {std::numeric_limits<float>::infinity(), 0, std::numeric_limits<float>::quiet_NaN()};
      kv.inverse_norms[h * kv.inverse_norms_stride + slot] = stored[slot % 3];
    }
  }
  expect_every_policy(inputs.args());
}

/// Multiplies the queries of token t by `factor`, those of head h only if `h` is not negative.
void scale_queries(attention_inputs& inputs, std::int64_t t, float factor, std::int64_t only = -1) {
  const auto q = inputs.q().view();
  set_queries(inputs, t, [&](std::int64_t h, std::int64_t d) {
    const float value = skim::load_element(q.data, q.type, q.offset(t, h, d));
    return only < 0 || h == only ? value * factor : value;
  });
}

TEST(Quoka, QueriesOfEverySizeCountByTheirDirection) {
  for (const float size : {1e-25f, 1e22f, 1e-40f, 1e37f}) {
    SCOPED_TRACE(size);
    attention_inputs some(plain_call()), all(plain_call());
    for (const std::int64_t t : {1, 4, 5, 9}) scale_queries(some, t, size);
    for (std::int64_t t = 0; t < 12; ++t) scale_queries(all, t, size);
    expect_every_policy(some.args());
    expect_every_policy(all.args());
  }
}

TEST(Quoka, QueriesWithANanOrAnInfinityHaveNoSay) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const std::int64_t only : {-1, 1}) {  // all heads, or one of a group
    std::vector<std::vector<std::int64_t>> lists;
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
      SCOPED_TRACE(testing::Message() << "only head " << only << ", factor " << bad);
      attention_case c = plain_call();
      c.Tq = 32;
      attention_inputs inputs(c);
      for (const std::int64_t t : {0, 7, 20, 31}) scale_queries(inputs, t, bad, only);
      expect_every_policy(inputs.args());

      const skim::cpu::attention op{
          skim::quoka::paper(queries::lowest_cosine(30), retention::budget(50).dense_under(0))};
      selected_lists selected(op, inputs.args());
      aligned_memory workspace(op.workspace_bytes(inputs.args(), 1));
      ASSERT_TRUE(op.select(inputs.args(), selected.lists, {}, workspace.get(), skim::serial_executor{}).ok());
      lists.push_back(selected.row(0));
      const skim::attention_args args = inputs.args();
      EXPECT_EQ(lists.back(), skim::reference::select(op.selector, args, skim::sequence_at(args, 0), 0))
          << "no near ties here: the list of every processor";
    }
    EXPECT_NE(lists[0].back(), 49) << "the first slots say that nothing was chosen";
    EXPECT_EQ(lists[0], lists[1]);
    EXPECT_EQ(lists[0], lists[2]);
  }
}

/// Where no query has a say, all keys score the same.
TEST(Quoka, AChunkOfNanKeepsTheEarliest) {
  attention_inputs inputs(plain_call());
  for (std::int64_t t = 0; t < 12; ++t) scale_queries(inputs, t, std::numeric_limits<float>::quiet_NaN());
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
    set_key(inputs.writable(0), slot, slot % 3 == 1 ? -infinity : std::numeric_limits<float>::quiet_NaN());
  }
  const skim::attention_args args = inputs.args();
  std::vector<std::int64_t> expected;
  for (std::int64_t i = 0; i < 13; ++i) expected.push_back(3 * i + 1);
  for (const skim::query_rule rule : {queries::all(), queries::newest(2), queries::newest(12)}) {
    const retention keep = retention::budget(13).dense_under(0);
    const skim::cpu::attention op{skim::quoka::paper(rule, keep, skim::similarity::dot)};
    selected_lists selected(op, args);
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.select(args, selected.lists, {}, workspace.get(), skim::serial_executor{}).ok());
    for (std::int64_t head = 0; head < 2; ++head) EXPECT_EQ(selected.row(head), expected) << "n " << rule.n;
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
  queries::draw_rows(queries::random(8, 1), 50, 100, a.data());
  queries::draw_rows(queries::random(8, 1), 50, 100, b.data());
  queries::draw_rows(queries::random(8, 2), 50, 100, c.data());
  queries::draw_rows(queries::random(8, 1), 50, 228, d.data());
  for (auto* tokens : {&a, &b, &c, &d}) {
    tokens->resize(8);
    std::sort(tokens->begin(), tokens->end());
    EXPECT_EQ(std::unique(tokens->begin(), tokens->end()), tokens->end()) << "without replacement";
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_NE(a, d);
}

/// Which way a call with this retention goes.
skim::path path_taken(attention_inputs& inputs, const retention& keep) {
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention op{skim::quoka::paper(queries::lowest_cosine(4), keep)};
  aligned_memory workspace(op.workspace_bytes(args, 1));
  const skim::report r = op.run(args, {}, workspace.get(), skim::serial_executor{});
  EXPECT_TRUE(r.ok());
  return r.taken;
}

TEST(DenseBlocks, AreThoseWithAShortPast) {
  attention_inputs inputs(plain_call());  // 12 rows behind 90
  const auto taken = [&](std::int64_t budget, std::int64_t dense_below) {
    return path_taken(inputs, retention::budget(budget).dense_under(dense_below));
  };
  EXPECT_EQ(taken(89, 0), skim::path::sparse);
  EXPECT_EQ(taken(90, 0), skim::path::dense);
  EXPECT_EQ(taken(30, 90), skim::path::sparse);
  EXPECT_EQ(taken(30, 91), skim::path::dense);
  EXPECT_EQ(taken(45, -1), skim::path::sparse);
  EXPECT_EQ(taken(46, -1), skim::path::dense);
}

TEST(DenseBlocks, AreThoseOfFewRows) {
  attention_inputs inputs(plain_call());
  const auto taken = [&](std::int64_t rows_below, std::int64_t every) {
    return path_taken(inputs, retention::budget(30).dense_under(0, rows_below).for_every(every));
  };
  EXPECT_EQ(taken(0, 0), skim::path::sparse);
  EXPECT_EQ(taken(12, 0), skim::path::sparse);
  EXPECT_EQ(taken(13, 0), skim::path::dense);
  EXPECT_EQ(taken(12, 6), skim::path::dense);
  EXPECT_EQ(taken(6, 6), skim::path::sparse);
  EXPECT_EQ(taken(5, 10), skim::path::sparse) << "the block of 10 rows, not that of 2";
  EXPECT_EQ(taken(-1, 0), skim::path::sparse);
}

/// Each block compares its own past: a call is sparse if one block is, whose neighbours list everything.
TEST(DenseBlocks, AreToldBlockByBlock) {
  attention_case c = plain_call();
  c.Tq = 40;
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention op{
      skim::quoka::paper(queries::lowest_cosine(4), retention::budget(30).dense_under(111).for_every(10))};
  selected_lists selected(op, args);
  EXPECT_EQ(selected.lists.rows, 4 * 2);
  EXPECT_EQ(selected.lists.capacity, 110) << "below which nothing is thinned";
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.select(args, selected.lists, {}, workspace.get(), skim::serial_executor{}).ok());
  const std::vector<std::int32_t> counts(selected.counts.begin(), selected.counts.end() - 1);
  EXPECT_EQ(counts, (std::vector<std::int32_t>{90, 90, 100, 100, 110, 110, 30, 30}));
  EXPECT_EQ(op.run(args, {}, workspace.get(), skim::serial_executor{}).taken, skim::path::sparse);
}

/// Generation rows beside a prompt's chunk: each thinned only if it is worth it.
TEST(DenseBlocks, OfGenerationStandBesideAPrompt) {
  attention_case c = plain_call();
  c.sequences = 3;
  c.Tk = 600;  // 12 rows behind 600, none behind 300, 7 behind 200
  attention_inputs inputs(c);
  skim::attention_args args = inputs.args();
  const std::int64_t offsets[] = {0, 12, 12, 13};  // the last has one row: what a model generates
  args.offsets = offsets;
  args.q.extents[0] = args.out.extents[0] = 13;
  const skim::cpu::attention op{skim::quoka::paper(queries::lowest_cosine(4), retention::budget(50).dense_under(0, 4))};
  ASSERT_TRUE(op.check(args).ok());
  selected_lists selected(op, args);
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.select(args, selected.lists, {}, workspace.get(), skim::serial_executor{}).ok());
  const std::vector<std::int32_t> counts(selected.counts.begin(), selected.counts.end() - 1);
  EXPECT_EQ(counts, (std::vector<std::int32_t>{50, 50, 0, 0, 206, 206}));
  EXPECT_EQ(op.run(args, {}, workspace.get(), skim::serial_executor{}).taken, skim::path::sparse);
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::matches_attention(args, &selected.lists)));
}

}  // namespace
