// SPDX-License-Identifier: Apache-2.0
/// \file The scores of evictors in plain double loops, one function per stage, so that a kernel can be compared stage by
/// stage: KeyDiff (arXiv 2504.15364), the attention weights that H2O, TOVA and SnapKV sum, CAOTE (arXiv 2504.14051).
/// One KV head at a time; vectors over tokens are in the order of slots. Allocates.
#pragma once

#include <skim/eviction.hpp>
#include <skim/evictor/caote.hpp>
#include <skim/evictor/h2o.hpp>
#include <skim/evictor/keydiff.hpp>
#include <skim/evictor/snapkv.hpp>
#include <skim/evictor/tova.hpp>
#include <skim/reference/quoka.hpp>

namespace skim {
inline namespace v0 {
namespace reference {

/// The rows of K or V that a head holds, `[n][dim]`.
inline vector_list rows_of(const kv_view& kv, const kv_tensor& tensor, std::int64_t head) {
  vector_list rows(static_cast<std::size_t>(kv.length(head)));
  for (std::size_t slot = 0; slot < rows.size(); ++slot) {
    const std::int64_t row = kv.row_offset(tensor, head, static_cast<std::int64_t>(slot));
    for (std::int64_t d = 0; d < tensor.dim; ++d) {
      rows[slot].push_back(static_cast<double>(load_element(tensor.data, tensor.type, row + d)));
    }
  }
  return rows;
}

inline bool is_finite(const std::vector<double>& row) {
  return std::all_of(row.begin(), row.end(), [](double x) { return std::isfinite(x); });
}

inline double length(const std::vector<double>& row) {
  return std::sqrt(dot(row, row));
}

// KeyDiff.

/// x / max(|x|, 1e-12); NaN for a row with an infinity or NaN.
inline std::vector<double> guarded_unit(std::vector<double> row) {
  const double norm = is_finite(row) ? std::max(length(row), 1e-12) : std::numeric_limits<double>::quiet_NaN();
  for (double& x : row) x /= norm;
  return row;
}

/// The mean of the rows, those with an infinity or NaN counting as zeros.
inline std::vector<double> finite_mean(vector_list rows) {
  for (auto& row : rows) {
    if (!is_finite(row)) row.assign(row.size(), 0.0);
  }
  return mean(rows);
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

// Attention weights.

/// The softmax weights `[n]` that query `t`, head `h` gives to its KV head's tokens, by the row's log-sum-exp. Keys that
/// are masked or were not read have weight 0, as have all keys of a row that saw none.
inline std::vector<double> attention_weights(const attention_args& args, const index_lists* read, std::int64_t t,
                                             std::int64_t h, double lse) {
  const attention_sequence sequence = sequence_at(args, 0);
  const kv_view& kv = *sequence.kv;
  const std::int64_t head = h / group_size(args), position = kv.position(head, kv.length(head) - sequence.Tq + t);
  std::vector<double> weights(static_cast<std::size_t>(kv.length(head)), 0.0);
  if (std::isinf(lse)) return weights;
  for (const std::int64_t slot : slots_read(sequence, 0, head, read)) {
    if (!args.mask.visible(position, kv.position(head, slot))) continue;
    const double logit = reference::logit(args, sequence, t, h, slot);
    const bool nothing = logit == -std::numeric_limits<double>::infinity();
    weights[static_cast<std::size_t>(slot)] = nothing ? 0 : std::exp(logit - lse);
  }
  return weights;
}

/// Weights `[n]` from the queries `first` to the last, summed over them, meaned over the group's query heads.
inline std::vector<double> group_weights(const eviction_args& args, std::int64_t head, std::int64_t first) {
  const attention_args& call = args.attended;
  const std::int64_t G = group_size(call);
  std::vector<double> sums(static_cast<std::size_t>(call.kv.length(head)), 0.0);
  for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
    for (std::int64_t t = first; t < new_tokens(args); ++t) {
      const double lse = static_cast<double>(*call.lse.at(t, h));
      const std::vector<double> row = attention_weights(call, args.read, t, h, lse);
      for (std::size_t slot = 0; slot < sums.size(); ++slot) sums[slot] += row[slot] / static_cast<double>(G);
    }
  }
  return sums;
}

/// What a policy knows of a head's tokens `[n]` after the chunk; `before [n - Tq]`: what it knew. An empty chunk changes
/// nothing.
inline std::vector<double> observe(const h2o&, const eviction_args& args, std::int64_t head,
                                   std::vector<double> before) {
  std::vector<double> sums = group_weights(args, head, 0);
  for (std::size_t slot = 0; slot < before.size(); ++slot) sums[slot] += before[slot];
  return sums;
}

inline std::vector<double> observe(const tova&, const eviction_args& args, std::int64_t head,
                                   std::vector<double> before) {
  return new_tokens(args) == 0 ? before : group_weights(args, head, new_tokens(args) - 1);
}

inline std::vector<double> observe(const snapkv& policy, const eviction_args& args, std::int64_t head,
                                   std::vector<double> before) {
  if (new_tokens(args) == 0) return before;
  const std::int64_t rows = std::min(policy.window, new_tokens(args));
  std::vector<double> weights = group_weights(args, head, new_tokens(args) - rows);
  for (double& weight : weights) weight /= static_cast<double>(rows);
  return weights;
}

/// Slots of a head by ascending position.
inline std::vector<std::size_t> by_position(const kv_view& kv, std::int64_t head) {
  std::vector<std::size_t> order(static_cast<std::size_t>(kv.length(head)));
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return kv.position(head, static_cast<std::int64_t>(a)) < kv.position(head, static_cast<std::int64_t>(b));
  });
  return order;
}

inline std::vector<double> score(const h2o&, const kv_view&, std::int64_t, const std::vector<double>& sums) {
  return sums;
}
inline std::vector<double> score(const tova&, const kv_view&, std::int64_t, const std::vector<double>& weights) {
  return weights;
}
/// Average-pooled in the order of positions, zeros beyond the ends.
inline std::vector<double> score(const snapkv& policy, const kv_view& kv, std::int64_t head,
                                 const std::vector<double>& weights) {
  const std::vector<std::size_t> order = by_position(kv, head);
  const std::int64_t n = static_cast<std::int64_t>(order.size()), reach = policy.pool / 2;
  std::vector<double> pooled(order.size(), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (std::int64_t j = std::max<std::int64_t>(i - reach, 0); j <= std::min(i + reach, n - 1); ++j) {
      sum += weights[order[static_cast<std::size_t>(j)]];
    }
    pooled[order[static_cast<std::size_t>(i)]] = sum / static_cast<double>(policy.pool);
  }
  return pooled;
}

// CAOTE.

/// Tokens that stay whatever their score: the `sinks` lowest positions and the `recent` highest.
inline std::vector<bool> protected_tokens(const kv_view& kv, std::int64_t head, const retention& keep) {
  const std::vector<std::size_t> order = by_position(kv, head);
  const std::int64_t n = static_cast<std::int64_t>(order.size());
  std::vector<bool> stays(order.size(), false);
  for (std::int64_t i = 0; i < n; ++i) {
    if (i < keep.sinks || i >= n - keep.recent) stays[order[static_cast<std::size_t>(i)]] = true;
  }
  return stays;
}

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
  double error() const { return length(sum) / std::max(1 - weight, 1e-6); }
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

}  // namespace reference
}  // namespace v0
}  // namespace skim
