// SPDX-License-Identifier: Apache-2.0
/// \file Vectors and lists of them, as the other references use them. Allocates.
#pragma once

#include <skim/kv_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

using vector_list = std::vector<std::vector<double>>;

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// x / |x|; the zero vector for a zero vector, NaN for a vector that holds one.
inline std::vector<double> unit(std::vector<double> x) {
  const double norm = std::sqrt(dot(x, x));
  for (double& value : x) value = norm == 0 ? 0 : value / norm;
  return x;
}

inline double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  return dot(unit(a), unit(b));
}

inline std::vector<double> mean(const vector_list& rows) {
  std::vector<double> sum(rows.front().size(), 0.0);
  for (const auto& row : rows) {
    for (std::size_t d = 0; d < row.size(); ++d) sum[d] += row[d];
  }
  for (double& value : sum) value /= static_cast<double>(rows.size());
  return sum;
}

inline double squared_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return sum;
}

inline bool is_finite(const std::vector<double>& row) {
  return std::all_of(row.begin(), row.end(), [](double x) { return std::isfinite(x); });
}

inline double length(const std::vector<double>& row) {
  return std::sqrt(dot(row, row));
}

/// The mean of the rows, those with an infinity or NaN counting as zeros.
inline std::vector<double> finite_mean(vector_list rows) {
  for (auto& row : rows) {
    if (!is_finite(row)) row.assign(row.size(), 0.0);
  }
  return mean(rows);
}

/// The mean of each score and its neighbours, `width` in all, of those that exist and are finite; NaN stays.
inline std::vector<double> smoothed(const std::vector<double>& scores, std::int64_t width) {
  const std::int64_t n = static_cast<std::int64_t>(scores.size()), half = width / 2;
  std::vector<double> answer;
  for (std::int64_t i = 0; i < n; ++i) {
    double sum = 0, count = 0;
    for (std::int64_t j = (std::max)(i - half, std::int64_t{0}); j <= (std::min)(i + half, n - 1); ++j) {
      const double score = scores[static_cast<std::size_t>(j)];
      if (!std::isfinite(score)) continue;
      sum += score;
      count += 1;
    }
    const bool counts = std::isfinite(scores[static_cast<std::size_t>(i)]);
    answer.push_back(counts ? sum / count : std::numeric_limits<double>::quiet_NaN());
  }
  return answer;
}

/// A row as it is stored: its elements times its scale.
inline std::vector<double> values_of(const stored_row& row, std::int64_t n) {
  std::vector<double> values;
  for (std::int64_t d = 0; d < n; ++d) {
    values.push_back(static_cast<double>(load_element(row.data, row.type, d)) * static_cast<double>(row.scale));
  }
  return values;
}

/// The key or value of one token.
inline std::vector<double> row_of(const kv_view& kv, const kv_tensor& tensor, std::int64_t head, std::int64_t slot) {
  return values_of(kv.row(tensor, head, slot), tensor.dim);
}

/// The rows of K or V that a head holds, `[n][dim]`.
inline vector_list rows_of(const kv_view& kv, const kv_tensor& tensor, std::int64_t head) {
  vector_list rows;
  for (std::int64_t slot = 0; slot < kv.length(head); ++slot) rows.push_back(row_of(kv, tensor, head, slot));
  return rows;
}

}}}  // namespace skim::v0_2::reference
