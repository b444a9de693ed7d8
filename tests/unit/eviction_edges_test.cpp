// SPDX-License-Identifier: Apache-2.0
// Evictions where floating point ends: weights near one, tiny and huge keys, NaN and infinities.
#include "support/eviction_small.hpp"
#include "support/eviction_stages.hpp"

namespace {

using namespace skim_test;
using skim::retention;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

TEST(CaoteEdges, AWeightOfOneIsFinite) {
  eviction_inputs inputs(small_case());
  const auto policy = skim::caote{constant_weights{retention::budget(30), 0, 17}};  // all weight on position 17
  for (const double score : scores_of(policy, inputs.args(), 0)) EXPECT_TRUE(std::isfinite(score)) << score;
  for (const double score : scores_of(skim::fast_caote{policy.base}, inputs.args(), 0)) {
    EXPECT_TRUE(std::isfinite(score)) << score;
  }
  const auto joint = skim::caote{policy.base, true};
  EXPECT_EQ(lists_of(joint, inputs.args())[0].size(), 30u);
}

/// Nearly all weight on one token: what is left of 1 - hn and of the centre's distance carries their rounding.
TEST(CaoteEdges, AWeightNearOneIsWithinItsBound) {
  eviction_inputs inputs(small_case());
  for (const float value : {1e-4f, 5e-6f, 1e-7f}) {
    const auto policy = skim::caote{constant_weights{retention::budget(30), value, 17}};
    eviction_run<skim::caote<constant_weights>> run(policy, inputs.args());
    scores_memory scores(2, 102);
    run.score(scores);
    for (std::int64_t h = 0; h < 2; ++h) expect_within(scores.row(h, 102), exact_scores(policy, run, h));
  }
}

/// A power of two in all values is one in all scores, and changes no choice: but where scores are no f32 numbers.
TEST(CaoteEdges, ValuesOfEverySizeCountByTheirDistance) {
  const retention keep = retention::budget(30);
  const auto at_size = [](int exponent, const auto& policy, auto&& look) {
    eviction_inputs inputs(small_case());
    const skim::kv_cache kv = inputs.args().kv;
    for (std::int64_t h = 0; h < kv.heads; ++h) {
      for (std::int64_t slot = 0; slot < kv.length(h); ++slot) {
        std::vector<float> value;
        for (const double x : reference::row_of(kv, kv.v, h, slot))
          value.push_back(static_cast<float>(std::ldexp(x, exponent)));
        write_row(kv, kv.v, h, slot, value.data());
      }
    }
    look(scores_of(policy, inputs.args(), 0), lists_of(policy, inputs.args()));
  };
  const auto expect_same = [&](const auto& policy, bool scores_are_distances) {
    at_size(0, policy, [&](const std::vector<double>& plain, const auto& plain_lists) {
      for (const int exponent : {-100, -80, -70, -60, 58, 63, 70, 120}) {
        SCOPED_TRACE(testing::Message() << "values times 2^" << exponent);
        at_size(exponent, policy, [&](const std::vector<double>& scores, const auto& lists) {
          EXPECT_EQ(lists, plain_lists);
          for (std::size_t i = 0; i < plain.size(); ++i) {
            const double expected = scores_are_distances ? std::ldexp(plain[i], exponent) : plain[i];
            EXPECT_TRUE(scores[i] == expected || std::fabs(scores[i] - expected) <= expected * 1e-5)
                << scores[i] << " for " << expected << " in slot " << i;
          }
        });
      }
    });
  };
  expect_same(skim::caote{skim::keydiff<>{keep}}, true);
  expect_same(skim::fast_caote{skim::keydiff<>{keep}}, true);
  expect_same(skim::evictors::standard(30), true);
  expect_same(skim::caote{skim::keydiff<>{keep}, true}, false);  // scores are the order of leaving
}

/// Keys count by their direction, however short or long they are; zeros have none.
TEST(KeydiffEdges, TinyAndHugeKeysAreWithinTheirBounds) {
  for (const float size : {0.0f, 1e-42f, 1e-38f, 1e-25f, 1e-14f, 1e15f, 1e25f, 1e36f}) {
    for (const int kind : {0, 1, 2, 3}) {
      const bool norms = kind % 2 != 0, every = kind / 2 != 0 && size > 1e-30f;  // f32 sums of shorter ones lose digits
      eviction_case c = whole_case(60);
      c.call.inverse_norms = norms;
      const auto expect_bounds = [&](const auto& policy) {
        eviction_inputs inputs(c);
        const skim::kv_cache kv = inputs.args().kv;
        for (std::int64_t slot = every ? 0 : 3; slot < 60; slot += every ? 1 : 28) {
          std::vector<float> key = normal_values(24, static_cast<unsigned>(slot));
          for (float& x : key) x *= size;
          for (std::int64_t h = 0; h < 2; ++h) {
            write_row(kv, kv.k, h, slot, key.data());
            const double length = reference::length({key.begin(), key.end()});
            if (!norms) continue;
            kv.inverse_norms[h * kv.inverse_norms_stride + kv.metadata_row(slot)] =
                length == 0 ? 0.0f : static_cast<float>(1 / length);
          }
        }
        eviction_run<std::decay_t<decltype(policy)>> run(policy, inputs.args());
        run.observe();
        scores_memory scores(2, 60);
        run.score(scores);
        for (std::int64_t h = 0; h < 2; ++h) {
          SCOPED_TRACE(testing::Message() << "size " << size << ", norms " << norms << ", head " << h);
          expect_within(scores.row(h, 60), exact_scores(policy, run, h));
        }
      };
      expect_bounds(skim::keydiff<>{retention::budget(20)});
      expect_bounds(skim::keydiff<skim::anchor::pairwise>{retention::budget(20)});
      expect_bounds(skim::keydiff<skim::anchor::median>{retention::budget(20)});
      expect_bounds(skim::keydiff<skim::anchor::mean>{retention::budget(20)});
    }
  }
}

/// A row of halves with `value` among them.
void set_row(const skim::kv_cache& kv, const skim::kv_cache_tensor& tensor, std::int64_t slot, float value) {
  std::vector<float> row(static_cast<std::size_t>(tensor.dim), 0.5f);
  row[3] = value;
  for (std::int64_t h = 0; h < kv.heads; ++h) write_row(kv, tensor, h, slot, row.data());
}

const std::vector<std::int64_t> strange_slots{0, 1, 40, 63, 64, 101};

/// The slots other than these.
std::vector<std::int64_t> other_slots(std::int64_t n) {
  std::vector<std::int64_t> others;
  for (std::int64_t slot = 0; slot < n; ++slot) {
    if (!std::binary_search(strange_slots.begin(), strange_slots.end(), slot)) others.push_back(slot);
  }
  return others;
}

class strange_rows : public testing::TestWithParam<std::tuple<float, bool, skim::element>> {};
INSTANTIATE_TEST_SUITE_P(values_norms_types, strange_rows,
                         testing::Combine(testing::Values(not_a_number, infinity, -infinity), testing::Bool(),
                                          testing::Values(skim::element::f32, skim::element::f16,
                                                          skim::element::bf16)));

/// KeyDiff: a key with a NaN or an infinity scores NaN, leaves first, and moves no other key's score.
TEST_P(strange_rows, of_keys_leave_first_under_keydiff) {
  const auto value = std::get<0>(GetParam());
  const auto norms = std::get<1>(GetParam());
  const auto type = std::get<2>(GetParam());
  eviction_case c = whole_case(102);
  c.call.inverse_norms = norms;
  c.call.kv_type = type;
  const auto expect_order = [&](const auto& policy) {
    eviction_inputs inputs(c);
    const skim::kv_cache kv = inputs.args().kv;
    for (const std::int64_t slot : strange_slots) {
      set_row(kv, kv.k, slot, value);
      const float inverse = std::isnan(value) ? not_a_number : 0.0f;  // as `append` records them
      for (std::int64_t h = 0; norms && h < 2; ++h) {
        kv.inverse_norms[h * kv.inverse_norms_stride + kv.metadata_row(slot)] = inverse;
      }
    }
    eviction_run<std::decay_t<decltype(policy)>> run(policy, inputs.args());
    run.observe();
    scores_memory scores(2, 102);
    run.score(scores);
    for (std::int64_t h = 0; h < 2; ++h) {
      const std::vector<double> got = scores.row(h, 102);
      expect_within(got, exact_scores(policy, run, h));
      for (std::int64_t slot = 0; slot < 102; ++slot) {
        const bool strange = std::binary_search(strange_slots.begin(), strange_slots.end(), slot);
        EXPECT_EQ(std::isnan(got[static_cast<std::size_t>(slot)]), strange) << "slot " << slot;
      }
    }
    EXPECT_EQ(lists_of(policy, inputs.args())[1], other_slots(102));
  };
  const retention keep = retention::budget(96);
  expect_order(skim::keydiff<>{keep});
  expect_order(skim::keydiff<skim::anchor::mean>{keep});
  expect_order(skim::keydiff<skim::anchor::pairwise>{keep});
  expect_order(skim::keydiff<skim::anchor::median>{keep});
}

/// CAOTE: a value with a NaN leaves first, one with an infinity, which no output can do without, last. Neither is part of
/// the centre.
TEST_P(strange_rows, of_values_leave_first_or_last_under_caote) {
  const auto value = std::get<0>(GetParam());
  const auto norms = std::get<1>(GetParam());
  const auto type = std::get<2>(GetParam());
  eviction_case c = whole_case(102);
  c.call.kv_type = type;
  const auto expect_order = [&, value = value](const auto& policy) {
    eviction_inputs inputs(c);
    const skim::kv_cache kv = inputs.args().kv;
    for (const std::int64_t slot : strange_slots) set_row(kv, kv.v, slot, value);
    EXPECT_EQ(lists_of(policy, inputs.args())[1], std::isnan(value) ? other_slots(102) : strange_slots);
  };
  const auto equal = constant_weights{retention::budget(std::isnan(value) ? 96 : 6), 1};
  expect_order(skim::caote{equal});
  expect_order(skim::caote{equal, true});
  expect_order(skim::fast_caote{equal});
  static_cast<void>(norms);
}

/// Any key may be strange under attention: the order is defined and the same each time, nothing crashes.
TEST_P(strange_rows, of_keys_give_a_defined_order_everywhere) {
  const auto value = std::get<0>(GetParam());
  const auto norms = std::get<1>(GetParam());
  const auto type = std::get<2>(GetParam());
  eviction_case c = small_case();
  c.call.kv_type = type;
  for_every_policy(retention::budget(30), [&, value = value](const auto& policy) {
    std::vector<std::vector<std::int64_t>> lists[2];
    for (auto& list : lists) {
      eviction_inputs inputs(c);
      skim::eviction_args args = inputs.args();
      for (const std::int64_t slot : strange_slots) {
        set_row(args.kv, args.kv.k, slot, value);
        set_row(args.kv, args.kv.v, slot, value);
      }
      inputs.attend(args.attended, nullptr);
      list = lists_of(policy, args);
      EXPECT_EQ(list[0].size(), 30u);
    }
    EXPECT_EQ(lists[0], lists[1]);
  });
  static_cast<void>(norms);
}

/// Of logits near 1e8 a rounding may be 8; a softmax weight is at most 1 all the same, and a query's are added once.
TEST(AttentionWeights, OfHugeLogitsAreAtMostOne) {
  eviction_case c = small_case();
  c.call.scale = 1e7f;
  eviction_inputs inputs(c);
  const skim::eviction_args args = inputs.args();
  for (std::int64_t h = 0; h < 2; ++h) {
    for (const double weight : scores_of(skim::h2o{retention::budget(30)}, args, h)) {
      EXPECT_LE(weight, 12 * (1 + 0x1p-20));  // 12 queries
    }
    for (const double weight : scores_of(skim::tova{retention::budget(30)}, args, h)) EXPECT_LE(weight, 1 + 0x1p-20);
  }
}

/// A row whose log-sum-exp is NaN has no say: the others' weights are what they would be without it.
TEST(AttentionWeights, OfRowsThatAreLostAreZero) {
  eviction_case c = small_case();
  c.call.positions = positions_kind::holes;
  c.call.mask = skim::mask::window(9);
  eviction_inputs inputs(c);
  const skim::eviction_args args = inputs.args();
  for (std::int64_t h = 0; h < 4; ++h) *args.attended.lse.at(7, h) = not_a_number;
  eviction_run<skim::h2o> run(skim::h2o{retention::budget(30)}, args);
  run.observe();
  for (std::int64_t h = 0; h < 2; ++h) {
    const std::vector<double> got = run.scores_of(h);
    const std::vector<double> exact = reference::observe(skim::h2o{}, args, h, std::vector<double>(90, 0.0));
    for (std::size_t slot = 0; slot < got.size(); ++slot) {
      EXPECT_NEAR(got[slot], exact[slot], 1e-5) << "slot " << slot;
    }
  }
}

}  // namespace
