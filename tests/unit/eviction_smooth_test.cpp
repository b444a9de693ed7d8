// SPDX-License-Identifier: Apache-2.0
/// \file Smoothed evictions: the mean of what the bare policy scores, in order of position, before the ends are protected.

#include "support/attention_sample.hpp"
#include "support/expect_smoothed.hpp"

#include <skim/evictor/standard.hpp>
#include <skim/reference/eviction.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::compaction;
using skim::retention;
namespace reference = skim::reference;

constexpr std::int64_t budget = smoothed_budget;

void expect_every_policy(const eviction_case& c) {
  expect_smoothed(c, [](const retention& keep, std::int64_t width) { return skim::keydiff<>{keep, {}, width}; });
  expect_smoothed(c, [](const retention& keep, std::int64_t width) {
    return skim::keydiff<skim::anchor::mean>{keep, {}, width};
  });
  expect_smoothed(c, [](const retention& keep, std::int64_t width) { return skim::h2o{keep, width}; });
  expect_smoothed(c, [](const retention& keep, std::int64_t width) { return skim::tova{keep, width}; });
  expect_smoothed(c, [](const retention& keep, std::int64_t width) {
    return skim::caote<skim::h2o>{skim::h2o{keep}, false, width};
  });
  expect_smoothed(c, [](const retention& keep, std::int64_t width) {
    return skim::fast_caote<skim::keydiff<>>{skim::keydiff<>{keep}, width};
  });
}

TEST(SmoothedEvictions, AreMeansInOrderOfPosition) {
  for (const positions_kind positions : {positions_kind::shuffled, positions_kind::holes}) {
    for (const bool lengths : {false, true}) {
      eviction_case c = small_case();
      c.call.positions = positions;
      c.call.lengths = lengths;
      expect_every_policy(c);
    }
  }
}

TEST(SmoothedEvictions, OfEveryLayoutAndWay) {
  for (const cache_form form : sampled_forms) {
    for (const compaction how : {compaction::refill, compaction::stable}) {
      eviction_case c = small_case();
      c.call.layout = form.layout;
      c.call.page_size = form.page_size;
      c.how = how;
      expect_every_policy(c);
    }
  }
}

TEST(SmoothedEvictions, OfSharedHeadsAndOfOneNewToken) {
  eviction_case c = small_case();
  c.share_heads = true;
  expect_every_policy(c);
  c = small_case();
  c.call.Tq = 1;
  expect_every_policy(c);
}

/// A score that is not finite has no part in its neighbours', and its token leaves first.
TEST(SmoothedEvictions, LeaveOutWhatIsNotFinite) {
  eviction_inputs inputs(small_case());
  const skim::eviction_args args = inputs.args();
  for (const std::int64_t slot : {5, 40, 90}) {
    write_row(args.kv, args.kv.k, 0, slot, std::vector<float>(24, std::numeric_limits<float>::quiet_NaN()).data());
  }
  const auto bare = scores_of(skim::keydiff<>{retention::budget(budget)}, args, 0);
  const auto got = scores_of(skim::keydiff<>{retention::budget(budget), {}, 5}, args, 0);
  const auto exact = reference::smoothed_by_position(args.kv, 0, bare, 5);
  for (std::size_t slot = 0; slot < exact.size(); ++slot) {
    ASSERT_EQ(std::isnan(got[slot]), std::isnan(exact[slot])) << slot;
    if (std::isnan(exact[slot])) continue;
    ASSERT_NEAR(got[slot], exact[slot], 1e-6) << slot;
  }
  EXPECT_TRUE(std::isnan(got[5]));
}

TEST(SmoothedEvictions, AreChecked) {
  eviction_inputs inputs(small_case());
  const skim::eviction_args args = inputs.args();
  const retention keep = retention::budget(budget);
  const auto expect_refused = [&](const auto& policy, const char* argument) {
    const skim::cpu::eviction op{policy};
    EXPECT_FALSE(op.check(args).ok());
    EXPECT_STREQ(op.check(args).argument, argument);
    EXPECT_EQ(op.workspace_bytes(args, 1), 0u);
  };
  for (const std::int64_t width : {-1, 0, 2, 65}) {
    expect_refused(skim::keydiff<>{keep, {}, width}, "smooth");
    expect_refused(skim::h2o{keep, width}, "smooth");
    expect_refused(skim::tova{keep, width}, "smooth");
    expect_refused(skim::fast_caote<skim::h2o>{skim::h2o{keep}, width}, "smooth");
  }
  expect_refused(skim::caote<skim::h2o>{skim::h2o{keep}, true, 3}, "smooth (caote, joint)");
  expect_refused(skim::fast_caote<skim::h2o>{skim::h2o{keep, 3}, 1}, "base.smooth (within caote)");
}

TEST(StandardEvictor, IsFastCaoteOverKeyDiffWithItsEnds) {
  const skim::standard_evictor standard = skim::evictors::standard(1022);
  EXPECT_EQ(standard.smooth, 5);
  EXPECT_EQ(standard.base.smooth, 1);
  EXPECT_EQ(standard.base.keep.count, 1022);
  EXPECT_EQ(standard.base.keep.sinks, 4);
  EXPECT_EQ(standard.base.keep.recent, 256);
  eviction_inputs inputs(small_case());
  for (const std::int64_t small : {1, 2, 5, 8, 40, 102}) {  // the ends shrink
    const auto lists = lists_of(skim::evictors::standard(small), eviction_inputs(small_case()).args());
    for (const auto& list : lists) EXPECT_EQ(list.size(), static_cast<std::size_t>(small));
  }
}

}  // namespace
