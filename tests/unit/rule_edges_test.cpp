// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's own rule where its stages have little to work on, or something unusual: each against the reference.

#include "support/quoka_stages.hpp"

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::retention;
namespace queries = skim::queries;

attention_case block_of_rows(std::int64_t Tq, std::int64_t Tk) {
  attention_case c;
  c.Tq = Tq;
  c.Tk = Tk;
  c.G = 3;
  c.Hk = 2;
  c.D = c.Dv = 24;
  return c;
}

skim::quoka ours(std::int64_t n, const retention& keep) {
  return {queries::needed(n), keep.dense_under(0)};
}

void set_query(attention_inputs& inputs, std::int64_t t, std::int64_t h, float value) {
  const auto q = inputs.q().view();
  for (std::int64_t d = 0; d < q.extents[2]; ++d) skim::store_element(q.data, q.type, q.offset(t, h, d), value);
}

void scale_all(attention_inputs& inputs, float queries, float keys) {
  const auto q = inputs.q().view();
  for (std::int64_t t = 0; t < q.extents[0]; ++t) {
    for (std::int64_t h = 0; h < q.extents[1]; ++h) {
      for (std::int64_t d = 0; d < q.extents[2]; ++d) {
        const std::int64_t at = q.offset(t, h, d);
        skim::store_element(q.data, q.type, at, skim::load_element(q.data, q.type, at) * queries);
      }
    }
  }
  const skim::kv_cache& kv = inputs.writable(0);
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
      std::vector<float> row;
      for (const double x : reference::row_of(inputs.view(0), inputs.view(0).k, h, slot))
        row.push_back(static_cast<float>(x) * keys);
      write_row(kv, kv.k, h, slot, row.data());
    }
  }
}

void set_key(attention_inputs& inputs, std::int64_t slot, float value) {
  const skim::kv_cache& kv = inputs.writable(0);
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    write_row(kv, kv.k, h, slot, std::vector<float>(static_cast<std::size_t>(kv.k.dim), value).data());
  }
}

TEST(OwnRule, OfEveryBudget) {
  attention_inputs inputs(block_of_rows(40, 700));
  for (const std::int64_t budget : {1, 2, 9, 64, 100, 300, 699}) {
    SCOPED_TRACE(budget);
    expect_selection(ours(12, retention::preset(budget)), inputs.args());
  }
  for (const double share : {0.01, 0.001, 0.5}) {
    SCOPED_TRACE(share);
    expect_selection(ours(12, retention::preset_share(share)), inputs.args());
  }
}

TEST(OwnRule, PresetsShrinkRecentToAQuarterAndBothToHalf) {
  const auto ends = [](const retention& keep, std::int64_t n) {
    return std::pair(keep.among(n).sinks, keep.among(n).recent);
  };
  EXPECT_EQ(ends(retention::preset(512), 8192), std::pair(std::int64_t{4}, std::int64_t{128}));
  EXPECT_EQ(ends(retention::preset(511), 8192), std::pair(std::int64_t{4}, std::int64_t{128}));
  EXPECT_EQ(ends(retention::preset(256), 8192), std::pair(std::int64_t{4}, std::int64_t{64}));
  EXPECT_EQ(ends(retention::preset(13), 8192), std::pair(std::int64_t{4}, std::int64_t{2}));
  EXPECT_EQ(ends(retention::preset(9), 8192), std::pair(std::int64_t{4}, std::int64_t{0}));
  EXPECT_EQ(ends(retention::preset(5), 8192), std::pair(std::int64_t{2}, std::int64_t{0}));
  EXPECT_EQ(ends(retention::preset(1), 8192), std::pair(std::int64_t{0}, std::int64_t{0}));
  EXPECT_EQ(ends(retention::preset_share(0.01), 8192), std::pair(std::int64_t{4}, std::int64_t{21}));
  EXPECT_EQ(ends(retention::preset_share(0.01), 100), std::pair(std::int64_t{0}, std::int64_t{0}));
  EXPECT_EQ(retention::preset_share(0.01).keys(8192), 82);
  for (std::int64_t budget = 1; budget < 140; ++budget) EXPECT_TRUE(skim::check(retention::preset(budget))) << budget;
  EXPECT_EQ(ends(retention::budget(200, 4, 128), 8192), std::pair(std::int64_t{4}, std::int64_t{128}));
}

TEST(OwnRule, OfEveryNumberOfCandidates) {
  for (std::int64_t Tk = 0; Tk <= 40; ++Tk) {
    SCOPED_TRACE(Tk);
    attention_inputs inputs(block_of_rows(30, Tk));
    expect_selection(ours(12, retention::preset(7)), inputs.args());
    if (HasFailure()) return;
  }
  for (const std::int64_t Tk :
       {63, 64, 65, 127, 128, 129, 1008, 1009, 1010, 1041}) {  // where samples begin to thin out
    SCOPED_TRACE(Tk);
    attention_inputs inputs(block_of_rows(30, Tk));
    expect_selection(ours(12, retention::preset(50)), inputs.args());
    if (HasFailure()) return;
  }
}

TEST(OwnRule, OfEveryNumberOfQueriesAndSamples) {
  attention_inputs inputs(block_of_rows(60, 200));
  for (const std::int64_t n : {1, 2, 3, 6, 64, 130, 179, 180}) {
    for (const std::int64_t samples : {3, 64}) {
      SCOPED_TRACE(testing::Message() << n << " queries, " << samples << " samples");
      skim::quoka policy = ours(n, retention::preset(50));
      policy.queries.samples = samples;
      expect_selection(policy, inputs.args());
      if (HasFailure()) return;
    }
  }
}

/// More queries than there are rows need no more memory than all rows do.
TEST(OwnRule, OfMoreQueriesThanRowsNeedsWhatAllRowsNeed) {
  attention_inputs inputs(block_of_rows(60, 400));
  const auto bytes = [&](std::int64_t n) {
    return skim::cpu::attention<skim::quoka>{ours(n, retention::preset(50))}.workspace_bytes(inputs.args(), 2);
  };
  EXPECT_EQ(bytes(std::int64_t{1} << 31), 0u);  // which `check` refuses
  EXPECT_EQ(bytes((std::int64_t{1} << 31) - 1), bytes(1000));
  EXPECT_LE(bytes(180), bytes(1000));
}

TEST(OwnRule, OfEveryGroup) {
  for (const std::int64_t G : {1, 2, 5, 128}) {
    for (const std::int64_t Tq : {1, 2, 17}) {
      SCOPED_TRACE(testing::Message() << "G " << G << ", Tq " << Tq);
      attention_case c = block_of_rows(Tq, 300);
      c.G = G;
      attention_inputs inputs(c);
      expect_selection(ours(10, retention::preset(50)), inputs.args());
      if (HasFailure()) return;
    }
  }
}

TEST(OwnRule, OfRowsThatAreAllAlike) {
  for (const float value : {0.0f, 1.0f, 0.3f}) {
    SCOPED_TRACE(value);
    attention_inputs inputs(block_of_rows(40, 300));
    for (std::int64_t t = 0; t < 40; ++t) {
      for (std::int64_t h = 0; h < 6; ++h) set_query(inputs, t, h, value);
    }
    expect_selection(ours(12, retention::preset(50)), inputs.args());
  }
}

/// No query scores: the newest keys stay.
TEST(OwnRule, OfKeysThatAreAllAlike) {
  for (const float value : {0.0f, 1.0f}) {
    SCOPED_TRACE(value);
    attention_inputs inputs(block_of_rows(40, 300));
    for (std::int64_t slot = 0; slot < 340; ++slot) set_key(inputs, slot, value);
    const skim::attention_args args = inputs.args();
    const skim::cpu::attention<skim::quoka> op{ours(12, retention::budget(50, 4))};
    expect_selection(op.selector, args);
    selected_lists lists(op, args);
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.select(args, lists.lists, {}, workspace.get(), skim::serial_executor{}).ok());
    std::vector<std::int64_t> newest{0, 1, 2, 3};
    for (std::int64_t slot = 254; slot < 300; ++slot) newest.push_back(slot);
    EXPECT_EQ(lists.row(0), newest);
  }
}

TEST(OwnRule, OfNumbersThatAreNone) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
    SCOPED_TRACE(value);
    attention_inputs rows(block_of_rows(40, 300)), sampled(block_of_rows(40, 300)), own(block_of_rows(40, 300));
    for (const std::int64_t t : {0, 7, 39}) set_query(rows, t, 1, value);
    expect_selection(ours(12, retention::preset(50)), rows.args());
    for (std::int64_t slot = 0; slot < 300; slot += 4)
      set_key(sampled, slot, value);  // among them all that are sampled
    expect_selection(ours(12, retention::preset(50)), sampled.args());
    for (const std::int64_t slot : {300, 305, 339}) set_key(own, slot, value);
    expect_selection(ours(12, retention::preset(50)), own.args());
    // A head without a finite row; fewer finite rows than queries; none.
    for (std::int64_t t = 0; t < 40; ++t) set_query(rows, t, 0, value);
    expect_selection(ours(12, retention::preset(50)), rows.args());
    for (std::int64_t t = 4; t < 40; ++t) {
      for (std::int64_t h = 0; h < 6; ++h) set_query(rows, t, h, value);
    }
    expect_selection(ours(12, retention::preset(50)), rows.args());
    for (std::int64_t t = 0; t < 4; ++t) {
      for (std::int64_t h = 0; h < 6; ++h) set_query(rows, t, h, value);
    }
    expect_selection(ours(12, retention::preset(50)), rows.args());
  }
}

TEST(OwnRule, OfEverySize) {
  for (const auto& [query, key] : std::initializer_list<std::pair<float, float>>{{1e-20f, 1},
                                                                                 {1e18f, 1},
                                                                                 {1, 1e-20f},
                                                                                 {1, 1e18f},
                                                                                 {1e-20f, 1e18f},
                                                                                 {1e18f, 1e-20f},
                                                                                 {1e-18f, 1e-18f},
                                                                                 {1, 1e-37f},
                                                                                 {1e-30f, 1e-40f},
                                                                                 {1e18f, 1e-42f}}) {
    SCOPED_TRACE(testing::Message() << query << " and " << key);
    attention_inputs inputs(block_of_rows(40, 300));
    scale_all(inputs, query, key);
    expect_selection(ours(12, retention::preset(50)), inputs.args());
  }
}

/// Some queries look at a part of the keys' dimensions that is much smaller than what the others look at.
TEST(OwnRule, OfQueriesThatSeeDifferentSizes) {
  for (const float size : {1e-20f, 1e-23f, 1e-26f}) {
    SCOPED_TRACE(testing::Message() << size);
    attention_inputs inputs(block_of_rows(40, 300));
    const auto q = inputs.q().view();
    const std::int64_t half = q.extents[2] / 2;
    for (std::int64_t t = 0; t < q.extents[0]; ++t) {
      for (std::int64_t h = 0; h < q.extents[1]; ++h) {
        for (std::int64_t d = 0; d < q.extents[2]; ++d) {
          if ((d < half) == (t % 2 == 0)) skim::store_element(q.data, q.type, q.offset(t, h, d), 0.0f);
        }
      }
    }
    const skim::kv_cache& kv = inputs.writable(0);
    for (std::int64_t h = 0; h < kv.heads; ++h) {
      for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
        std::vector<float> row;
        for (const double x : reference::row_of(inputs.view(0), inputs.view(0).k, h, slot))
          row.push_back(static_cast<float>(x) * (static_cast<std::int64_t>(row.size()) < half ? size : 1.0f));
        write_row(kv, kv.k, h, slot, row.data());
      }
    }
    expect_selection(ours(12, retention::preset(50)), inputs.args());
  }
}

/// Positions in any order, with a window that hides some, and heads of unequal length.
TEST(OwnRule, GoesByPosition) {
  for (const positions_kind positions : {positions_kind::shuffled, positions_kind::holes}) {
    for (const skim::mask see : {skim::mask::causal(), skim::mask::window(150), skim::mask::full()}) {
      attention_case c = block_of_rows(40, 300);
      c.positions = positions;
      c.mask = see;
      c.lengths = true;
      SCOPED_TRACE(testing::Message() << c);
      attention_inputs inputs(c);
      skim::quoka policy = ours(12, retention::preset(50));
      for (const std::int64_t width : {1, 3, 63}) {
        policy.smooth = width;
        expect_selection(policy, inputs.args());
      }
    }
  }
}

}  // namespace
