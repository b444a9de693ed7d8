// SPDX-License-Identifier: Apache-2.0
#include "support/pairwise.hpp"

#include <gtest/gtest.h>

#include <set>

namespace {

TEST(PairwiseSample, EveryTwoValuesMeetInFewRows) {
  const std::vector<int> sizes{3, 10, 1, 7, 8, 6, 2, 2, 3};
  const skim_test::pairwise_sample sample(sizes);
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    for (std::size_t q = 0; q < p; ++q) {
      std::set<std::pair<int, int>> met;
      for (const auto& row : sample.rows()) met.insert({row[p], row[q]});
      EXPECT_EQ(met.size(), static_cast<std::size_t>(sizes[p] * sizes[q])) << "parameters " << p << " and " << q;
    }
  }
  EXPECT_LE(sample.rows().size(), 130u);  // at least 80, the two largest; the product has 120960
}

}  // namespace
