// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff (arXiv 2504.15364) in plain double loops, one function per stage. One KV head at a time; vectors over tokens
/// are in the order of slots. Allocates.
#pragma once

#include <skim/evictor/keydiff.hpp>
#include <skim/reference/vectors.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// x / max(|x|, 1e-12); NaN for a row with an infinity or NaN.
inline std::vector<double> guarded_unit(std::vector<double> row) {
  const double norm = is_finite(row) ? (std::max)(length(row), 1e-12) : std::numeric_limits<double>::quiet_NaN();
  for (double& x : row) x /= norm;
  return row;
}

inline std::vector<double> find_anchor(anchor::unit_mean, const vector_list& keys) {
  vector_list units;
  for (const auto& key : keys) units.push_back(guarded_unit(key));
  return finite_mean(units);
}

inline std::vector<double> find_anchor(anchor::mean, const vector_list& keys) {
  return finite_mean(keys);
}

/// By dimension the (n + 1) / 2-th smallest, NaN before all numbers.
inline std::vector<double> find_anchor(anchor::median, const vector_list& keys) {
  std::vector<double> anchor;
  for (std::size_t d = 0; d < keys.front().size(); ++d) {
    std::vector<double> column;
    for (const auto& key : keys) column.push_back(key[d]);
    std::sort(column.begin(), column.end(), [](double a, double b) { return std::isnan(a) ? !std::isnan(b) : a < b; });
    anchor.push_back(column[(column.size() + 1) / 2 - 1]);
  }
  return anchor;
}

/// -cos(anchor, k_i).
inline std::vector<double> cosine_scores(const std::vector<double>& anchor, const vector_list& keys) {
  std::vector<double> scores;
  const std::vector<double> direction = guarded_unit(anchor);
  for (const auto& key : keys) scores.push_back(-dot(direction, guarded_unit(key)));
  return scores;
}

template <class Anchor>
std::vector<double> score(const keydiff<Anchor>& policy, const vector_list& keys) {
  return cosine_scores(find_anchor(policy.anchor, keys), keys);
}

/// Minus the mean cosine to all keys, its own among them.
inline std::vector<double> score(const keydiff<anchor::pairwise>&, const vector_list& keys) {
  vector_list units;
  for (const auto& key : keys) units.push_back(guarded_unit(key));
  std::vector<double> scores;
  for (const auto& key : units) {
    double sum = 0;
    for (const auto& other : units) sum += is_finite(other) ? dot(key, other) : 0;
    scores.push_back(is_finite(key) ? -sum / static_cast<double>(units.size())
                                    : std::numeric_limits<double>::quiet_NaN());
  }
  return scores;
}

}}}  // namespace skim::v0_2::reference
