// SPDX-License-Identifier: Apache-2.0
// A mask's shortcuts for tiles agree with its definition.
#include <skim/math/mask.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace {

using skim::mask;
using skim::position_range;

constexpr std::int64_t size = 40;

/// sums[q][k]: how many pairs of [0, q) x [0, k) are visible.
std::vector<std::vector<int>> visible_sums(const mask& see) {
  std::vector<std::vector<int>> sums(size + 1, std::vector<int>(size + 1, 0));
  for (std::size_t q = 0; q < size; ++q) {
    for (std::size_t k = 0; k < size; ++k) {
      const int one = see.visible(static_cast<std::int64_t>(q), static_cast<std::int64_t>(k));
      sums[q + 1][k + 1] = sums[q][k + 1] + sums[q + 1][k] - sums[q][k] + one;
    }
  }
  return sums;
}

class masks : public testing::TestWithParam<mask> {};
INSTANTIATE_TEST_SUITE_P(kinds, masks,
                         testing::Values(mask::causal(), mask::full(), mask::window(1), mask::window(2),
                                         mask::window(7), mask::window(40), mask::window(1000), mask{0, 5}, mask{3, 3},
                                         mask{9, 2}, mask{0, mask::unbounded}, mask{39, 39}, mask{5, mask::unbounded}));

TEST_P(masks, cover_and_bound_tiles_as_brute_force_says) {
  const mask see = GetParam();
  const auto sums = visible_sums(see);
  const auto visible = [&](position_range q, position_range k) {
    const auto at = [&](std::int64_t a, std::int64_t b) {
      return sums[static_cast<std::size_t>(a)][static_cast<std::size_t>(b)];
    };
    return at(q.end, k.end) - at(q.begin, k.end) - at(q.end, k.begin) + at(q.begin, k.begin);
  };
  for (std::int64_t q0 = 0; q0 < size; ++q0) {
    for (std::int64_t q1 = q0 + 1; q1 <= size; ++q1) {
      const position_range q{q0, q1}, keys = see.keys(q);
      for (std::int64_t k = 0; k < size; ++k) {
        const bool inside = keys.begin <= k && k < keys.end;
        ASSERT_EQ(inside, visible(q, {k, k + 1}) > 0) << "queries " << q0 << " to " << q1 << ", key " << k;
      }
      for (std::int64_t k0 = 0; k0 < size; ++k0) {
        for (std::int64_t k1 = k0 + 1; k1 <= size; ++k1) {
          ASSERT_EQ(see.covers(q, {k0, k1}), visible(q, {k0, k1}) == (q1 - q0) * (k1 - k0))
              << "queries " << q0 << " to " << q1 << ", keys " << k0 << " to " << k1;
        }
      }
    }
  }
}

TEST(Masks, AreWhatTheirNamesSay) {
  EXPECT_TRUE(mask::causal().visible(5, 5));
  EXPECT_TRUE(mask::causal().visible(5, 0));
  EXPECT_FALSE(mask::causal().visible(5, 6));
  EXPECT_TRUE(mask::window(3).visible(5, 3));
  EXPECT_FALSE(mask::window(3).visible(5, 2));
  EXPECT_FALSE(mask::window(3).visible(5, 6));
  EXPECT_TRUE(mask::full().visible(0, 2147483647));
  EXPECT_TRUE(mask::full().visible(2147483647, 0));
}

}  // namespace
