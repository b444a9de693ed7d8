// SPDX-License-Identifier: Apache-2.0
/// \file A sample of a product of parameters in which every two values of every two parameters meet.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace skim_test {

/// Greedy: each row starts from a pair not yet met and takes, parameter by parameter, the value that meets most others.
class pairwise_sample {
 public:
  /// Parameter p has `sizes[p]` values.
  explicit pairwise_sample(const std::vector<int>& sizes) : sizes_(sizes) {
    for (const int size : sizes) {
      starts_.push_back(values_);
      values_ += static_cast<std::size_t>(size);
    }
    met_.assign(values_ * values_, false);
    for (std::size_t p = 0; p < sizes.size(); ++p) {
      for (std::size_t q = 0; q < p; ++q) {
        for (int a = 0; a < sizes[p]; ++a) {
          for (int b = 0; b < sizes[q]; ++b) cover_starting_with(p, a, q, b);
        }
      }
    }
  }

  /// Row by row, the value index of each parameter.
  const std::vector<std::vector<int>>& rows() const { return rows_; }

 private:
  std::size_t place(std::size_t p, int a, std::size_t q, int b) const {
    const std::size_t first = starts_[p] + static_cast<std::size_t>(a),
                      second = starts_[q] + static_cast<std::size_t>(b);
    return first < second ? first * values_ + second : second * values_ + first;
  }

  void cover_starting_with(std::size_t p, int a, std::size_t q, int b) {
    if (met_[place(p, a, q, b)]) return;
    std::vector<int> row(sizes_.size(), -1);
    row[p] = a;
    row[q] = b;
    for (std::size_t r = 0; r < row.size(); ++r) {
      if (row[r] < 0) row[r] = best_value(row, r);
    }
    for (std::size_t r = 0; r < row.size(); ++r) {
      for (std::size_t s = 0; s < r; ++s) met_[place(r, row[r], s, row[s])] = true;
    }
    rows_.push_back(row);
  }

  int best_value(const std::vector<int>& row, std::size_t r) {
    const int shift = static_cast<int>(random_() % static_cast<unsigned>(sizes_[r]));  // equals: not always the first
    int best = 0, most = -1;
    for (int i = 0; i < sizes_[r]; ++i) {
      const int value = (i + shift) % sizes_[r];
      int fresh = 0;
      for (std::size_t s = 0; s < row.size(); ++s) {
        if (s != r && row[s] >= 0 && !met_[place(r, value, s, row[s])]) ++fresh;
      }
      if (fresh > most) {
        most = fresh;
        best = value;
      }
    }
    return best;
  }

  std::vector<int> sizes_;
  std::vector<std::size_t> starts_;
  std::size_t values_ = 0;
  std::vector<bool> met_;
  std::vector<std::vector<int>> rows_;
  std::mt19937 random_{1};
};

}  // namespace skim_test
