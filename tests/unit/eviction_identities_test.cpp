// SPDX-License-Identifier: Apache-2.0
// What must hold of evictions whatever computes them: the papers' identities, streaming, protection, budgets,
// compaction.
#include "support/bounded_layer.hpp"
#include "support/eviction_small.hpp"
#include "support/eviction_stages.hpp"

namespace {

using namespace skim_test;
using skim::compaction;
using skim::retention;

// KeyDiff: sum_j cos(k_i, k_j) = n |mu| cos(mu, k_i).

TEST(KeydiffIdentity, UnitMeanIsThePairwiseSum) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    eviction_inputs inputs(whole_case(61), seed);
    const skim::eviction_args args = inputs.args();
    for (std::int64_t h = 0; h < 2; ++h) {
      const vector_list keys = reference::rows_of(args.kv, args.kv.k, h);
      const double mu = reference::length(reference::find_anchor(skim::anchor::unit_mean{}, keys));
      const std::vector<double> pairs = reference::score(skim::keydiff<skim::anchor::pairwise>{}, keys);
      const std::vector<double> means = reference::score(skim::keydiff<>{}, keys);
      const std::vector<double> kernel_pairs = scores_of(skim::keydiff<skim::anchor::pairwise>{}, args, h);
      const std::vector<double> kernel_means = scores_of(skim::keydiff<>{}, args, h);
      // The kernel's own bounds, the anchor's being |sum error| / |sum|: 2^-30 sqrt(D) + 2^-24 (5 + D / 8) a key.
      const double D = 24, anchor = (0x1p-30 * std::sqrt(D) + f32_roundoff * (5 + D / 8)) / mu;
      const double bound = f32_roundoff * (3 * D / 8 + 20) + mu * (f32_roundoff * (D / 4 + 16) + 2 * anchor);
      for (std::size_t i = 0; i < keys.size(); ++i) {
        EXPECT_NEAR(pairs[i], mu * means[i], 1e-14);
        EXPECT_NEAR(kernel_pairs[i], mu * kernel_means[i], bound);
      }
    }
  }
}

// CAOTE: the score is the change of the output when the token is really removed.

/// Keys and values of one head as plain rows, with one query that sees them all.
struct plain_cache {
  std::int64_t n, D, Dv;
  std::vector<float> q, k, v;

  plain_cache(std::int64_t tokens, std::int64_t k_dim, std::int64_t v_dim, unsigned seed)
      : n(tokens),
        D(k_dim),
        Dv(v_dim),
        q(normal_values(k_dim, seed)),
        k(normal_values(tokens * k_dim, seed + 1)),
        v(normal_values(tokens * v_dim, seed + 2)) {}

  void remove(std::int64_t token) {
    k.erase(k.begin() + token * D, k.begin() + (token + 1) * D);
    v.erase(v.begin() + token * Dv, v.begin() + (token + 1) * Dv);
    --n;
  }

  skim::kv_cache kv() {
    return skim::contiguous_cache(skim::tensor_view<float, 3>(k.data(), {n, 1, D}),
                                  skim::tensor_view<float, 3>(v.data(), {n, 1, Dv}), n);
  }

  skim::attention_args args() {
    skim::attention_args args;
    args.q = skim::tensor_view<float, 3>(q.data(), {1, 1, D});
    args.kv = kv();
    args.mask = skim::mask::full();
    return args;
  }

  std::vector<double> output(double* lse = nullptr) {
    std::vector<double> out(static_cast<std::size_t>(Dv));
    double sum = 0;
    reference::attend(args(), nullptr, {out.data(), {1, 1, Dv}}, {&sum, {1, 1}});
    if (lse) *lse = sum;
    return out;
  }
};

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  return std::sqrt(reference::squared_distance(a, b));
}

TEST(CaoteIdentity, ScoresAreTheChangesOfRemovingTokens) {
  for (const std::int64_t n : {2, 3, 40, 300}) {
    plain_cache cache(n, 16, 12, static_cast<unsigned>(n));
    double lse = 0;
    const std::vector<double> before = cache.output(&lse);
    const std::vector<double> A = reference::attention_weights(cache.args(), nullptr, 0, 0, lse);
    const vector_list values = reference::rows_of(cache.args().kv, cache.args().kv.v, 0);
    const std::vector<double> scores =
        reference::score(skim::caote<skim::tova>{}, A, values, std::vector<bool>(values.size(), false));
    for (std::int64_t token = 0; token < n; ++token) {
      plain_cache without = cache;
      without.remove(token);
      const double change = distance(before, without.output());
      EXPECT_NEAR(scores[static_cast<std::size_t>(token)], change, 1e-12 * reference::length(before)) << "n " << n;
    }
  }
}

TEST(CaoteIdentity, JointErrorsAreTheChangesOfRemovingSets) {
  plain_cache cache(60, 16, 12, 5);
  double lse = 0;
  const std::vector<double> before = cache.output(&lse);
  const std::vector<double> A = reference::attention_weights(cache.args(), nullptr, 0, 0, lse);
  const vector_list values = reference::rows_of(cache.args().kv, cache.args().kv.v, 0);
  const std::vector<double> center = reference::weighted_center(A, values);
  std::mt19937 random(1);
  for (const std::int64_t size : {1, 2, 5, 30, 59}) {
    std::vector<std::int64_t> tokens(60);
    std::iota(tokens.begin(), tokens.end(), std::int64_t{0});
    std::shuffle(tokens.begin(), tokens.end(), random);
    tokens.resize(static_cast<std::size_t>(size));
    std::sort(tokens.rbegin(), tokens.rend());  // from the last on, so that places stay
    reference::eviction_change left(12);
    plain_cache without = cache;
    for (const std::int64_t token : tokens) {
      left.add(A[static_cast<std::size_t>(token)], center, values[static_cast<std::size_t>(token)]);
      without.remove(token);
    }
    EXPECT_NEAR(left.error(), distance(before, without.output()), 1e-12 * reference::length(before)) << size;
  }
}

/// The greedy order removes at each step what moves the output least, measured by removal.
TEST(CaoteIdentity, TheJointOrderIsGreedy) {
  plain_cache cache(20, 8, 6, 9);
  double lse = 0;
  const std::vector<double> before = cache.output(&lse);
  const std::vector<double> A = reference::attention_weights(cache.args(), nullptr, 0, 0, lse);
  const std::vector<std::int64_t> order =
      reference::leave_jointly(cache.args().kv, 0, A, std::vector<bool>(20, false), 19);
  ASSERT_EQ(order.size(), 19u);
  std::vector<std::int64_t> left;
  const auto change = [&](std::int64_t next) {
    std::vector<std::int64_t> set = left;
    set.push_back(next);
    std::sort(set.rbegin(), set.rend());
    plain_cache without = cache;
    for (const std::int64_t token : set) without.remove(token);
    return distance(before, without.output());
  };
  for (const std::int64_t chosen : order) {
    for (std::int64_t other = 0; other < 20; ++other) {
      if (std::count(left.begin(), left.end(), other) == 0) {
        EXPECT_LE(change(chosen), change(other) + 1e-12);
      }
    }
    left.push_back(chosen);
  }
}

/// The kernel's score of one query's attention, against removal: CAOTE's own bound, and what the error e of the weights
/// does to hn / (1 - hn) and to the centre.
TEST(CaoteIdentity, TheKernelMeasuresRemoval) {
  plain_cache cache(200, 32, 24, 3);
  skim::attention_args call = cache.args();
  std::vector<float> out(24), lse(1);
  std::vector<std::int32_t> positions(200);
  std::iota(positions.begin(), positions.end(), 0);
  call.out = skim::tensor_view<float, 3>(out.data(), {1, 1, 24});
  call.lse = skim::tensor_view<float, 2>(lse.data(), {1, 1});
  call.kv.positions = positions.data();
  eviction_inputs::attend(call, nullptr);
  skim::eviction_args args;
  args.kv = cache.kv();
  args.kv.positions = positions.data();
  args.new_tokens = 1;
  args.attended = call;
  const std::vector<double> scores = scores_of(skim::caote{skim::tova{retention::budget(10)}}, args, 0);
  const std::vector<double> before = cache.output();
  const vector_list values = reference::rows_of(call.kv, call.kv.v, 0);
  const std::vector<double> A = reference::attention_weights(call, nullptr, 0, 0, static_cast<double>(lse[0]));
  const std::vector<double> errors = weight_bounds(args, 0, 0);
  double e = 0;  // relative; of the sum of weights, by which they are divided, too
  for (std::size_t i = 0; i < A.size(); ++i) e = std::max(e, 2 * errors[i] / A[i]);
  e += skim::testing::attend_exactly(call).lse_bound[0];
  const caote_bound bound{length_of_sizes(A, values), 200, 24};
  for (std::int64_t token = 0; token < 200; ++token) {
    plain_cache without = cache;
    without.remove(token);
    const std::size_t i = static_cast<std::size_t>(token);
    const double change = distance(before, without.output()), left = 1 - A[i];
    const double of_weights = e * change / left + A[i] / left * 2 * e * bound.sizes;
    EXPECT_NEAR(scores[i], change, bound.of(A[i], change) + of_weights) << "token " << token;
  }
}

TEST(FastCaote, MeasuresFromThePlainMean) {
  const vector_list values{{1}, {2}, {6}};  // mean 3
  const std::vector<double> h{0.2, 0.3, 0.5};
  const std::vector<bool> none(3, false), last{false, false, true};
  const std::vector<double> scores = reference::score(skim::fast_caote<skim::tova>{}, h, values, none);
  EXPECT_NEAR(scores[0], 0.2 / 0.8 * 2, 1e-15);
  EXPECT_NEAR(scores[1], 0.3 / 0.7 * 1, 1e-15);
  EXPECT_NEAR(scores[2], 0.5 / 0.5 * 3, 1e-15);
  const std::vector<double> kept = reference::score(skim::fast_caote<skim::tova>{}, h, values, last);
  EXPECT_NEAR(kept[0], 0.4 / 0.6 * 2, 1e-15);  // a protected value keeps its place in the mean, its weight goes
  EXPECT_NEAR(kept[1], 0.6 / 0.4 * 1, 1e-15);
  EXPECT_EQ(kept[2], std::numeric_limits<double>::infinity());
}

/// With equal weights both centres are the plain mean.
TEST(FastCaote, IsCaoteWhereAllWeightsAreEqual) {
  eviction_inputs inputs(small_case());
  const auto nothing = constant_weights{retention::budget(20), 0};
  const std::vector<double> a = scores_of(skim::caote{nothing}, inputs.args(), 1);
  const std::vector<double> b = scores_of(skim::fast_caote{nothing}, inputs.args(), 1);
  const skim::kv_view kv = inputs.args().kv;
  const vector_list values = reference::rows_of(kv, kv.v, 1);
  const double n = static_cast<double>(values.size());
  const std::vector<double> center = reference::finite_mean(values);
  const caote_bound bound{length_of_sizes(std::vector<double>(values.size(), 1 / n), values), n, 24};
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double exact = 1 / (n - 1) * distance(center, values[i]);
    EXPECT_NEAR(a[i], exact, bound.of(1 / n, exact));
    EXPECT_NEAR(b[i], exact, bound.of(1 / n, exact));
  }
}

// H2O.

/// Every query gives away a weight of 1: nothing is lost while nothing is evicted.
TEST(H2oIdentity, SumsToTheNumberOfQueries) {
  bounded_text text(2, 3, 16, 400);
  bounded_layer<skim::h2o> layer(text, skim::h2o{retention::budget(400)}, 400, compaction::refill);
  const double logit = text.largest_logit();
  std::int64_t queries = 0;
  for (const std::int64_t Tq : {1, 64, 7, 128, 33, 1, 90}) {
    layer.step(Tq, true);
    queries += Tq;
    scores_memory scores(2, layer.cache.kv().tokens);
    layer.score(scores);
    for (std::int64_t h = 0; h < 2; ++h) {
      const std::vector<double> sums = scores.row(h, layer.cache.kv().tokens);
      // Of each query, relative: its logits by u (D + 8) |logit|, here and in the log-sum-exp; that by 4 u |lse| and its
      // own sum, u (32 + n / 16); then one addition for each row of a tile.
      const double n = static_cast<double>(queries), lse = logit + std::log(n);
      const double each = f32_roundoff * (2 * (16 + 8) * logit + 8 * lse + 32 + n / 16 + 512);
      EXPECT_NEAR(std::accumulate(sums.begin(), sums.end(), 0.0), n, n * each) << "after " << queries;
    }
  }
}

// Streaming.

/// A score that does not look at the other tokens: whoever is among the best of all was never below the budget's best of
/// some, so chunks of any length end with the one-shot choice.
class streaming : public testing::TestWithParam<std::tuple<std::int64_t, compaction>> {};
INSTANTIATE_TEST_SUITE_P(chunks, streaming,
                         testing::Combine(testing::Values(1, 7, 64, 128),
                                          testing::Values(compaction::refill, compaction::stable)));

TEST_P(streaming, of_independent_scores_is_the_top_k_of_all) {
  const auto chunk = std::get<0>(GetParam());
  const auto how = std::get<1>(GetParam());
  const std::int64_t total = 700, budget = 90;
  for (const bool later : {false, true}) {
    for (const std::int64_t sinks : {0, 5}) {
      const retention keep = retention::budget(budget, sinks);
      bounded_text text(2, 1, 4, total);
      const auto stream = [&](const auto& policy) {
        bounded_layer<std::decay_t<decltype(policy)>> layer(text, policy, budget + chunk, how);
        for (std::int64_t done = 0; done < total; done += chunk) layer.step(std::min(chunk, total - done), false);
        EXPECT_EQ(layer.cache.kv().tokens, budget);
        return std::vector<std::vector<std::int64_t>>{layer.sorted_positions(0), layer.sorted_positions(1)};
      };
      const auto got = later ? stream(hashed_tokens<true>{keep}) : stream(hashed_tokens<false>{keep});
      // One shot: a view without stored positions is enough for the reference.
      skim::kv_view all;
      all.tokens = total;
      std::vector<double> scores;
      for (std::int64_t p = 0; p < total; ++p) scores.push_back(static_cast<double>(hashed_score(p)));
      const auto expected =
          reference::keep_tokens(all, 0, keep, scores, later ? reference::ties::later : reference::ties::earlier);
      EXPECT_EQ(got[0], expected) << "sinks " << sinks;
      EXPECT_EQ(got[1], expected) << "sinks " << sinks;
    }
  }
}

// Protection, budgets, equal scores.

TEST(Protected, TokensSurviveEveryPolicy) {
  const std::int64_t sinks = 3, recent = 5;
  for (const compaction how : {compaction::refill, compaction::stable}) {
    for_every_policy(retention::budget(20, sinks, recent), [&](const auto& policy) {
      bounded_text text(2, 2, 8, 120);
      bounded_layer<std::decay_t<decltype(policy)>> layer(text, policy, 20 + 13, how);
      for (std::int64_t done = 0; done < 117; done += 13) {
        layer.step(13, true);
        for (std::int64_t h = 0; h < 2; ++h) {
          const std::vector<std::int64_t> positions = layer.sorted_positions(h);
          ASSERT_EQ(static_cast<std::int64_t>(positions.size()), std::min<std::int64_t>(20, done + 13));
          for (std::int64_t i = 0; i < sinks; ++i) EXPECT_EQ(positions[static_cast<std::size_t>(i)], i);
          for (std::int64_t i = 0; i < recent; ++i) {
            EXPECT_EQ(positions[positions.size() - 1 - static_cast<std::size_t>(i)], done + 12 - i);
          }
        }
      }
    });
  }
}

/// SnapKV's window is protected without being asked for.
TEST(Protected, WindowsSurvive) {
  bounded_text text(2, 2, 8, 120);
  bounded_layer<skim::snapkv> layer(text, skim::snapkv{retention::budget(20, 1), 9, 3}, 20 + 13, compaction::refill);
  for (std::int64_t done = 0; done < 117; done += 13) {
    layer.step(13, true);
    const std::vector<std::int64_t> positions = layer.sorted_positions(1);
    EXPECT_EQ(positions.front(), 0);
    EXPECT_EQ(std::vector<std::int64_t>(positions.end() - 9, positions.end()), run_of_positions(done + 4, 9));
  }
}

TEST(Budgets, ThatCoverEverythingEvictNothing) {
  for (const std::int64_t budget : {102, 103, 4000}) {
    for_every_policy(retention::budget(budget), [&](const auto& policy) {
      eviction_inputs inputs(small_case());
      const cache_snapshot before = inputs.snapshot();
      const skim::eviction_args args = inputs.args();
      eviction_run<std::decay_t<decltype(policy)>> run(policy, args);
      lists_memory kept(2, run.op.list_capacity(args));
      const skim::report report = run.run(kept);
      EXPECT_TRUE(report.ok());
      EXPECT_EQ(report.taken, skim::path::dense);
      std::vector<std::int64_t> every(102);
      std::iota(every.begin(), every.end(), std::int64_t{0});
      EXPECT_EQ(kept.row(0), every);
      EXPECT_EQ(kept.row(1), every);
      EXPECT_TRUE(inputs.snapshot() == before);
    });
  }
}

TEST(Budgets, OfOneKeepTheBestToken) {
  for_every_policy(retention::budget(1), [&](const auto& policy) {
    eviction_inputs inputs(small_case()), again(small_case());
    const auto lists = lists_of(policy, inputs.args());
    for (std::int64_t h = 0; h < 2; ++h) {
      const skim::eviction_args args = again.args();
      const std::vector<double> scores = scores_of(policy, args, h);
      using type = std::decay_t<decltype(policy)>;
      const bool later = skim::prefers_later<type> || skim::scores_alike<type>;
      const reference::ties prefer = later ? reference::ties::later : reference::ties::earlier;
      EXPECT_EQ(lists[static_cast<std::size_t>(h)],
                reference::keep_tokens(args.kv, h, kept_by(policy, args), scores, prefer));
    }
  });
}

TEST(Budgets, OneTokenStays) {
  for_every_policy(retention::budget(1), [&](const auto& policy) {
    eviction_case c = small_case();
    c.call.Tq = 1;
    c.call.Tk = 0;
    eviction_inputs inputs(c);
    EXPECT_EQ(lists_of(policy, inputs.args()), (std::vector<std::vector<std::int64_t>>{{0}, {0}}));
  });
}

TEST(Budgets, AnEmptyCacheStaysEmpty) {
  for_every_policy(retention::budget(1), [&](const auto& policy) {
    eviction_case c = small_case();
    c.call.Tq = c.call.Tk = 0;
    eviction_inputs inputs(c);
    EXPECT_EQ(lists_of(policy, inputs.args()), (std::vector<std::vector<std::int64_t>>{{}, {}}));
  });
}

/// Eviction without new tokens, as after raising the pressure on memory: policies go by what they saw last.
TEST(Budgets, AnEmptyChunkMayEvict) {
  for_every_policy(retention::budget(30), [&](const auto& policy) {
    eviction_inputs inputs(small_case());
    skim::eviction_args args = inputs.args();
    eviction_run<std::decay_t<decltype(policy)>> run(policy, args);
    run.observe();
    scores_memory scores(2, 102);
    run.score(scores);
    run.args.new_tokens = run.args.attended.q.extents[0] = run.args.attended.lse.extents[0] = 0;
    lists_memory kept(2, 30);
    EXPECT_TRUE(run.run(kept).ok());
    lists_memory expected(2, 30);
    eviction_inputs again(small_case());
    eviction_run<std::decay_t<decltype(policy)>> chooser(policy, again.args());
    chooser.choose(scores.view(), expected);
    EXPECT_EQ(kept.row(0), expected.row(0));
    EXPECT_EQ(kept.row(1), expected.row(1));
  });
}

std::vector<std::int64_t> kept_positions(const skim::kv_view& kv, std::int64_t head, std::int64_t count) {
  std::vector<std::int64_t> positions;
  for (std::int64_t slot = 0; slot < count; ++slot) positions.push_back(kv.position(head, slot));
  std::sort(positions.begin(), positions.end());
  return positions;
}

TEST(EqualScores, KeepTheEarlierPositionsOrTheLater) {
  const retention keep = retention::budget(30);
  eviction_inputs a(small_case()), b(small_case()), c(small_case()), d(small_case());
  lists_of(constant_weights{keep, 1}, a.args());
  EXPECT_EQ(kept_positions(a.args().kv, 1, 30), run_of_positions(0, 30));
  lists_of(skim::caote{constant_weights{keep, 0}, true}, b.args());
  lists_of(skim::sink_window{retention::budget(30, 4)}, c.args());
  std::vector<std::int64_t> window = run_of_positions(76, 26);
  window.insert(window.begin(), {0, 1, 2, 3});
  EXPECT_EQ(kept_positions(c.args().kv, 1, 30), window);
  // KeyDiff: keys that are all the same score the same.
  const skim::kv_cache kv = d.args().kv;
  for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
    for (std::int64_t h = 0; h < 2; ++h) write_row(kv, kv.k, h, slot, std::vector<float>(24, 0.5f).data());
  }
  lists_of(skim::keydiff<>{keep}, d.args());
  EXPECT_EQ(kept_positions(d.args().kv, 1, 30), run_of_positions(72, 30));
}

TEST(EqualScores, OfNegativeAndPositiveZeroTie) {
  eviction_inputs inputs(small_case());
  scores_memory scores(2, 102);
  for (std::int64_t slot = 0; slot < 102; ++slot) {
    for (std::int64_t h = 0; h < 2; ++h) *scores.view().at(h, slot) = slot % 2 == 0 ? 0.0f : -0.0f;
  }
  eviction_run<skim::tova> run(skim::tova{retention::budget(30)}, inputs.args());
  lists_memory kept(2, 30);
  run.choose(scores.view(), kept);
  run.compact(kept);
  EXPECT_EQ(kept_positions(inputs.args().kv, 0, 30), run_of_positions(0, 30));
}

TEST(RandomTokens, DependOnSeedHeadAndPosition) {
  const auto draw = [](std::uint64_t seed, bool share, std::int64_t head) {
    eviction_inputs inputs(small_case());
    skim::eviction_args args = inputs.args();
    args.share_heads = share;
    const std::vector<double> by_slot = scores_of(skim::random_tokens{retention::budget(10), seed}, args, head);
    std::vector<double> lots;  // by position: heads hold the same ones in other slots
    for (const std::size_t slot : reference::by_position(args.kv, head)) lots.push_back(by_slot[slot]);
    return lots;
  };
  EXPECT_EQ(draw(1, false, 0), draw(1, false, 0));
  EXPECT_NE(draw(1, false, 0), draw(2, false, 0));
  EXPECT_NE(draw(1, false, 0), draw(1, false, 1));
  EXPECT_EQ(draw(1, true, 0), draw(1, true, 1)) << "means over heads would draw everyone to the middle";
  std::vector<double> lots = draw(1, false, 0);
  const double mean = std::accumulate(lots.begin(), lots.end(), 0.0) / 102;
  EXPECT_NEAR(mean, 0.5, 4 * std::sqrt(1.0 / 12 / 102));  // four standard errors
  std::sort(lots.begin(), lots.end());
  EXPECT_EQ(std::unique(lots.begin(), lots.end()), lots.end());
  EXPECT_TRUE(lots.front() >= 0 && lots.back() < 1);
}

// Compaction.

/// Refill and stable keep the same tokens in other slots: attention over either is exact within its bounds.
TEST(Compaction, RefillAndStableAttendAlike) {
  for (const skim::element type : {skim::element::f32, skim::element::f16, skim::element::bf16}) {
    bounded_text text(2, 3, 16, 200, type);
    const skim::keydiff<> policy{retention::budget(50, 2, 6)};
    bounded_layer<skim::keydiff<>> refill(text, policy, 50 + 17, compaction::refill);
    bounded_layer<skim::keydiff<>> stable(text, policy, 50 + 17, compaction::stable);
    bool moved = false;
    for (std::int64_t done = 0; done + 17 <= 200; done += 17) {
      for (auto* layer : {&refill, &stable}) {
        layer->append(17);
        layer->attend();
        const auto truth = skim::testing::attend_exactly(layer->attended);
        EXPECT_TRUE(skim::testing::satisfies(layer->attended.out, skim::testing::attention_matcher(truth, {})));
      }
      const auto a = skim::testing::attend_exactly(refill.attended), b = skim::testing::attend_exactly(stable.attended);
      for (std::size_t i = 0; i < a.out.size(); ++i) {
        ASSERT_NEAR(a.out[i], b.out[i], 1e-12);
        ASSERT_NEAR(static_cast<double>(refill.out[i]), static_cast<double>(stable.out[i]),
                    a.out_bound[i] + b.out_bound[i] + 2 * f32_roundoff * std::fabs(a.out[i]));
      }
      refill.evict();
      stable.evict();
      for (std::int64_t h = 0; h < 2; ++h) {
        EXPECT_EQ(refill.sorted_positions(h), stable.sorted_positions(h));
        moved = moved || refill.positions(h) != stable.positions(h);
        EXPECT_EQ(stable.positions(h), stable.sorted_positions(h)) << "stable keeps the order of time";
      }
    }
    EXPECT_TRUE(moved) << "caches in which nothing moved prove nothing";
  }
}

}  // namespace
