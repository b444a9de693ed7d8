// SPDX-License-Identifier: Apache-2.0
/// \file CAOTE (arXiv 2504.14051) in plain double loops, one function per stage. One KV head at a time; vectors over tokens are
/// in the order of slots. Allocates.
#pragma once

#include <skim/evictor/caote.hpp>
#include <skim/reference/eviction.hpp>
#include <skim/reference/vectors.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// hn = h / sum h. Protected tokens have h = 0, as has an h that is NaN or negative; where no h is positive, the
/// unprotected tokens are equal.
inline std::vector<double> normalize(std::vector<double> h, const std::vector<bool>& stays) {
  double total = 0;
  for (std::size_t i = 0; i < h.size(); ++i) {
    if (stays[i] || !(h[i] > 0)) h[i] = 0;
    total += h[i];
  }
  const double others = static_cast<double>(std::count(stays.begin(), stays.end(), false));
  for (std::size_t i = 0; i < h.size(); ++i) {
    if (!stays[i]) h[i] = total > 0 ? h[i] / total : 1 / others;
  }
  return h;
}

/// CAOTE's centre: sum_i hn_i v_i. Values with an infinity or NaN count as zeros here and in `finite_mean`, which is
/// FastCAOTE's.
inline std::vector<double> weighted_center(const std::vector<double>& hn, const vector_list& values) {
  std::vector<double> center(values.front().size(), 0.0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    for (std::size_t d = 0; is_finite(values[i]) && d < center.size(); ++d) center[d] += hn[i] * values[i][d];
  }
  return center;
}

/// What leaves with a set of tokens.
struct eviction_change {
  std::vector<double> sum;  ///< sum over the set of hn_i (x - v_i), x being the centre
  double weight = 0;        ///< sum over the set of hn_i

  explicit eviction_change(std::size_t Dv) : sum(Dv, 0.0) {}

  void add(double hn, const std::vector<double>& center, const std::vector<double>& value) {
    for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += hn * (center[d] - value[d]);
    weight += hn;
  }
  /// As `add`, for good: a value with an infinity or NaN, which the centre leaves out, takes only its weight along.
  void leave(double hn, const std::vector<double>& center, const std::vector<double>& value) {
    if (is_finite(value)) return add(hn, center, value);
    weight += hn;
  }
  /// How far the output moves if the set leaves; the remaining weight is at least 1e-6.
  double error() const { return length(sum) / (std::max)(1 - weight, 1e-6); }
};

/// c_i = hn_i / (1 - hn_i) |x - v_i|, and +inf for protected tokens.
inline std::vector<double> score_outputs(const std::vector<double>& hn, const std::vector<double>& center,
                                         const vector_list& values, const std::vector<bool>& stays) {
  std::vector<double> scores;
  for (std::size_t i = 0; i < values.size(); ++i) {
    eviction_change alone(center.size());
    alone.add(hn[i], center, values[i]);
    scores.push_back(stays[i] ? std::numeric_limits<double>::infinity() : alone.error());
  }
  return scores;
}

/// `h [n]`: the base's scores, KeyDiff's as 1 - cos.
template <class Base>
std::vector<double> score(const caote<Base>&, const std::vector<double>& h, const vector_list& values,
                          const std::vector<bool>& stays) {
  const std::vector<double> hn = normalize(h, stays);
  return score_outputs(hn, weighted_center(hn, values), values, stays);
}
template <class Base>
std::vector<double> score(const fast_caote<Base>&, const std::vector<double>& h, const vector_list& values,
                          const std::vector<bool>& stays) {
  return score_outputs(normalize(h, stays), finite_mean(values), values, stays);
}

/// The joint form: the first `leaving` tokens in the order in which they leave, each with the least error of all that
/// have left. NaN leaves first; of equal errors the later position.
inline std::vector<std::int64_t> leave_jointly(const kv_view& kv, std::int64_t head, const std::vector<double>& hn,
                                               const std::vector<bool>& stays, std::int64_t leaving) {
  const vector_list values = rows_of(kv, kv.v, head);
  const std::vector<double> center = weighted_center(hn, values);
  std::vector<std::size_t> candidates = by_position(kv, head);
  std::reverse(candidates.begin(), candidates.end());
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), [&](std::size_t i) { return stays[i]; }),
                   candidates.end());
  eviction_change left(center.size());
  std::vector<std::int64_t> order;
  while (static_cast<std::int64_t>(order.size()) < leaving && !candidates.empty()) {
    std::vector<double> errors;
    for (const std::size_t i : candidates) {
      eviction_change with = left;
      with.add(hn[i], center, values[i]);
      errors.push_back(with.error());
    }
    const auto least = std::min_element(errors.begin(), errors.end(),
                                        [](double a, double b) { return std::isnan(a) ? !std::isnan(b) : a < b; });
    const auto chosen = candidates.begin() + (least - errors.begin());
    left.leave(hn[*chosen], center, values[*chosen]);
    order.push_back(static_cast<std::int64_t>(*chosen));
    candidates.erase(chosen);
  }
  return order;
}

}}}  // namespace skim::v0_2::reference
