// SPDX-License-Identifier: Apache-2.0
/// \file One eviction, all of it: each step against the reference, then `run` against the steps.
#pragma once

#include "eviction_stages.hpp"

namespace skim_test {

template <class Policy>
constexpr reference::ties ties_of =
    skim::prefers_later<Policy> || skim::scores_alike<Policy> ? reference::ties::later : reference::ties::earlier;

/// From the scores, the list: exactly the reference's on the kernel's own scores, and on exact scores within the bounds.
template <class Policy>
void expect_kept(const Policy& policy, eviction_run<Policy>& run, scores_memory& scores, lists_memory& kept) {
  const skim::kv_view kv = run.args.kv;
  run.choose(scores.view(), kept);
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    SCOPED_TRACE(testing::Message() << "keeping, head " << h);
    const skim::retention keep = kept_of_head(kept_by(policy, run.args), run.args, h);
    const std::vector<std::int64_t> list = kept.row(h);
    EXPECT_EQ(list, reference::keep_tokens(kv, h, keep, scores.row(h, kv.length(h)), ties_of<Policy>));
    const std::int64_t budget = run.args.budgets ? run.args.budgets[h] : kept_by(policy, run.args).count;
    EXPECT_EQ(static_cast<std::int64_t>(list.size()), std::min(kv.length(h), budget));
    const bounded_values exact = exact_scores(policy, run, h);
    skim::testing::scored_slots scored{{}, exact.exact, exact.bounds};
    for (std::int64_t slot = 0; slot < kv.length(h); ++slot) scored.candidates.push_back(slot);
    const skim::attention_sequence whole{kv, 0, 0};
    EXPECT_TRUE(skim::testing::satisfies(list, skim::testing::matches_top_k(keep, whole, h, scored)));
  }
}

/// Heads that share one list, by the mean of their scores.
template <class Policy>
void expect_kept_together(const Policy& policy, eviction_run<Policy>& run, scores_memory& scores, lists_memory& kept) {
  const skim::kv_view kv = run.args.kv;
  scores_memory pooled(1, kv.tokens);
  ASSERT_TRUE(skim::cpu::pool_scores(scores.view(), pooled.view(), skim::serial_executor{}).ok());
  vector_list rows;
  for (std::int64_t h = 0; h < kv.heads; ++h) rows.push_back(scores.row(h, kv.tokens));
  bounded_values mean{reference::pool_heads(rows), {}};
  for (std::size_t slot = 0; slot < mean.exact.size(); ++slot) {
    double sizes = 0;
    for (const auto& row : rows) sizes += std::fabs(row[slot]);
    mean.bounds.push_back(f32_roundoff * static_cast<double>(kv.heads + 2) * sizes);
  }
  const std::vector<double> own = pooled.row(0, kv.tokens);
  expect_within(own, mean);

  run.choose(scores.view(), kept);
  const std::vector<std::int64_t> list = kept.row(0);
  run.choose(pooled.view(), kept);
  EXPECT_EQ(kept.row(0), list);
  const skim::retention keep = kept_by(policy, run.args);
  if (run.args.how == skim::compaction::pages) {
    // Means over a page's tokens round too, so near ties may fall the other way: sums of few small numbers do not.
    scores_memory rough(1, kv.tokens);
    for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
      const double score = own[static_cast<std::size_t>(slot)];
      const bool whole = std::isfinite(score) && std::fabs(score) < 1e4;
      *rough.view().at(0, slot) = whole ? static_cast<float>(std::floor(score * 64) / 64) : static_cast<float>(score);
    }
    run.choose(rough.view(), kept);
    const std::vector<double> few = rough.row(0, kv.tokens);
    EXPECT_EQ(kept.row(0), reference::keep_pages(kv, keep, few, ties_of<Policy>));
  } else {
    EXPECT_EQ(list, reference::keep_tokens(kv, 0, keep, own, ties_of<Policy>));
  }
}

/// State follows the tokens: what a policy with state must know after compaction, taken before it.
template <class Policy>
struct state_check {
  state_check(const Policy&, eviction_run<Policy>&, const lists_memory&) {}
  void expect(const Policy&, eviction_run<Policy>&) const {}
};

/// The slots that stand one after another after compaction, by head.
template <class Policy>
std::vector<std::int64_t> survivors(const eviction_run<Policy>& run, const lists_memory& kept, std::int64_t head) {
  return reference::slots_after(run.args.how, kept.row(run.args.share_heads ? 0 : head));
}

/// Weights move with their tokens.
template <class Policy>
struct weights_check {
  std::vector<std::vector<double>> expected;

  weights_check(const Policy& policy, eviction_run<Policy>& run, const lists_memory& kept) {
    for (std::int64_t h = 0; h < run.args.kv.heads; ++h) {
      const std::vector<double> before = observed_weights(policy, run, h);
      expected.emplace_back();
      for (const std::int64_t slot : survivors(run, kept, h)) {
        expected.back().push_back(before[static_cast<std::size_t>(slot)]);
      }
    }
  }
  void expect(const Policy& policy, eviction_run<Policy>& run) const {
    for (std::int64_t h = 0; h < run.args.kv.heads; ++h) {
      ASSERT_EQ(observed_weights(policy, run, h), expected[static_cast<std::size_t>(h)]) << "head " << h;
    }
  }
};
template <>
struct state_check<skim::h2o> : weights_check<skim::h2o> {
  using weights_check::weights_check;
};
template <>
struct state_check<skim::tova> : weights_check<skim::tova> {
  using weights_check::weights_check;
};
template <>
struct state_check<skim::snapkv> : weights_check<skim::snapkv> {
  using weights_check::weights_check;
};

/// KeyDiff's sums lose the keys of the evicted.
template <>
struct state_check<skim::keydiff<>> {
  std::vector<bounded_anchor> expected;

  state_check(const skim::keydiff<>& policy, eviction_run<skim::keydiff<>>& run, const lists_memory& kept) {
    const skim::kv_view kv = run.args.kv;
    for (std::int64_t h = 0; h < kv.heads; ++h) {
      const vector_list keys = reference::rows_of(kv, kv.k, h);
      expected.push_back(keys.empty() ? bounded_anchor{} : anchor_of(policy.anchor, run, h, keys));
      std::vector<std::int64_t> stay = survivors(run, kept, h);
      std::sort(stay.begin(), stay.end());
      for (std::int64_t slot = 0; slot < kv.length(h); ++slot) {
        if (std::binary_search(stay.begin(), stay.end(), slot)) continue;
        expected.back().add(keys[static_cast<std::size_t>(slot)], -1);
      }
    }
  }
  void expect(const skim::keydiff<>&, eviction_run<skim::keydiff<>>& run) const {
    const skim::kv_view kv = run.args.kv;
    for (std::int64_t h = 0; h < kv.heads; ++h) {
      SCOPED_TRACE("scoring what is left");
      const vector_list keys = reference::rows_of(kv, kv.k, h);
      if (!keys.empty()) expect_within(run.scores_of(h), cosine_bounds(expected[static_cast<std::size_t>(h)], keys));
    }
  }
};

/// The steps one by one, then `run` on the same inputs.
template <class Policy>
void expect_eviction(const Policy& policy, const eviction_case& c) {
  eviction_inputs inputs(c);
  if (c.budgets) inputs.set_budgets(kept_by(policy, inputs.args()));
  const skim::eviction_args args = inputs.args();
  const skim::kv_view kv = args.kv;
  const skim::policy_needs all{true, true, true};
  const auto out = inputs.call().out().bytes(), lse = inputs.call().lse().bytes();
  eviction_run<Policy> steps(policy, args);
  ASSERT_TRUE(steps.op.check(args).ok());
  ASSERT_TRUE(check_indices(args, kept_by(policy, args), all).ok());

  expect_observed(policy, steps);
  if (testing::Test::HasFailure()) return;
  scores_memory scores(kv.heads, kv.tokens);
  steps.score(scores);
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    SCOPED_TRACE(testing::Message() << "scoring, head " << h);
    expect_within(scores.row(h, kv.length(h)), exact_scores(policy, steps, h));
    EXPECT_TRUE(scores.untouched_behind(h, kv.length(h)));
  }
  lists_memory kept(skim::list_rows(args), steps.op.list_capacity(args));
  if (c.share_heads) {
    expect_kept_together(policy, steps, scores, kept);
    steps.choose(scores.view(), kept);
  } else {
    expect_kept(policy, steps, scores, kept);
  }
  const cache_snapshot before = inputs.snapshot();
  const cache_snapshot expected = compacted(before, inputs.call().cache(0), args, kept);
  const state_check<Policy> state(policy, steps, kept);
  steps.compact(kept);
  EXPECT_TRUE(inputs.snapshot() == expected) << "compacting the cache";
  steps.shrink(kept);
  state.expect(policy, steps);
  EXPECT_TRUE(kept.guards_intact());
  EXPECT_TRUE(steps.guards_intact());

  eviction_inputs fresh(c);
  if (c.budgets) fresh.set_budgets(kept_by(policy, fresh.args()));
  eviction_run<Policy> whole(policy, fresh.args()), observer(policy, fresh.args());
  whole.observe();  // `run` observes once more, as the steps did
  observer.observe();
  observer.observe();
  scores_memory same(kv.heads, kv.tokens);
  observer.score(same);
  lists_memory stepped(skim::list_rows(args), steps.op.list_capacity(args));
  observer.choose(same.view(), stepped);
  lists_memory lists(skim::list_rows(args), steps.op.list_capacity(args));
  const skim::report report = whole.run(lists);
  ASSERT_TRUE(report.ok());
  for (std::int64_t r = 0; r < skim::list_rows(args); ++r) EXPECT_EQ(lists.row(r), stepped.row(r));
  EXPECT_TRUE(fresh.snapshot() == compacted(before, fresh.call().cache(0), fresh.args(), lists)) << "run";
  bool evicts = false;
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    const std::int64_t budget = kept_of_head(kept_by(policy, fresh.args()), fresh.args(), h).count;
    evicts = evicts || kv.length(h) > budget;
  }
  // A back-end that cannot look at lengths may take the sparse path where nothing has to leave.
  constexpr bool looks = std::is_same_v<decltype(whole.op), skim::cpu::eviction<Policy>>;
  if (evicts || looks) {
    EXPECT_EQ(report.taken, evicts ? skim::path::sparse : skim::path::dense);
  }
  EXPECT_TRUE(lists.guards_intact());
  EXPECT_TRUE(whole.guards_intact());
  EXPECT_EQ(inputs.call().out().bytes(), out);
  EXPECT_EQ(inputs.call().lse().bytes(), lse);
}

}  // namespace skim_test
