// SPDX-License-Identifier: Apache-2.0
/// \file An eviction, each step of the kernel compared with the reference on what its own previous step left. Steps are seen
/// through public verbs: what `observe` and `compact` leave in the state shows in the scores.
///
/// Errors are bounded by counting roundings: u = 2^-24 is f32's, a sum over SIMD lanes rounds once per vector, once per
/// halving of the lanes and once per element of a rest, and a row's squares and products are at most |a| |b| in sum
/// (Cauchy-Schwarz).
#pragma once

#include "eviction_case.hpp"
#include "values.hpp"

#include <skim/reference/attention_weights.hpp>
#include <skim/reference/caote.hpp>
#include <skim/reference/eviction.hpp>
#include <skim/reference/keydiff.hpp>
#include <skim/reference/quoka.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/testing/matchers.hpp>

namespace skim_test {

namespace reference = skim::reference;
using reference::vector_list;

/// Exact values of one head's tokens, and how far the kernel's may lie from them.
struct bounded_values {
  std::vector<double> exact, bounds;
};

inline void expect_within(const std::vector<double>& got, const bounded_values& expected) {
  ASSERT_EQ(got.size(), expected.exact.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double exact = expected.exact[i];
    if (!std::isfinite(exact)) {
      ASSERT_TRUE(got[i] == exact || (std::isnan(got[i]) && std::isnan(exact)))
          << "slot " << i << ": " << got[i] << ", expected " << exact;
    } else {
      ASSERT_NEAR(got[i], exact, expected.bounds[i]) << "slot " << i;
    }
  }
}

// Attention weights: H2O, TOVA, SnapKV.

/// A policy whose scores are the weights that the other one has observed.
inline skim::h2o weighing(const skim::h2o& policy) {
  return policy;
}
inline skim::tova weighing(const skim::tova& policy) {
  return policy;
}
inline skim::snapkv weighing(skim::snapkv policy) {
  policy.pool = 1;
  return policy;
}

/// The weights that `run` has observed, by slot.
template <class Policy>
std::vector<double> observed_weights(const Policy& policy, eviction_run<Policy>& run, std::int64_t head) {
  eviction_run<Policy> twin(weighing(policy), run.args);
  twin.set_state(run.state_bytes());
  return twin.scores_of(head);
}

#if !defined(SKIM_TEST_WEIGHT_ROUNDOFF)  // u of a back-end's logits and exponentials
#define SKIM_TEST_WEIGHT_ROUNDOFF f32_roundoff
#endif

/// How far the weights of queries `first` and later may lie from exact ones, before they are averaged over queries. A
/// logit is off by u (D + 8) sum |q_d k_d| as in attention (skim/testing/attention_truth.hpp), and by what rounding to base
/// 2 and subtracting the log-sum-exp add: 4 u |lse|; the exponential by 2 u. Rows meet in batches of `weight_rows`, those
/// of blocks with lists of their own apart; a GPU adds no more of them one after another.
inline std::vector<double> weight_bounds(const skim::eviction_args& args, std::int64_t head, std::int64_t first) {
  const skim::attention_args call = skim::attended_call(args);
  const skim::attention_sequence sequence = skim::sequence_at(call, 0);
  const vector_list keys = reference::rows_of(call.kv, call.kv.k, head);
  const std::int64_t G = skim::group_size(call);
  const double D = static_cast<double>(call.kv.k.dim), scale = std::fabs(static_cast<double>(logit_scale(call)));
  std::vector<double> bounds(keys.size(), 0.0), total(keys.size(), 0.0);
  for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
    const vector_list queries = reference::queries_of(call, sequence, h);
    for (std::int64_t t = first; t < args.new_tokens; ++t) {
      const double lse = static_cast<double>(*call.lse.at(t, h));
      const std::vector<double> row = reference::attention_weights(call, args.read, t, h, lse);
      const std::vector<double>& q = queries[static_cast<std::size_t>(t)];
      for (std::size_t slot = 0; slot < keys.size(); ++slot) {
        if (row[slot] == 0) continue;
        const skim::testing::detail::products dot(q.data(), keys[slot].data(), call.kv.k.dim);
        const double logit = SKIM_TEST_WEIGHT_ROUNDOFF * ((D + 8) * scale * dot.size + 4 * std::fabs(lse));
        bounds[slot] += row[slot] * std::expm1(logit + 2 * SKIM_TEST_WEIGHT_ROUNDOFF) / static_cast<double>(G);
        total[slot] += row[slot] / static_cast<double>(G);
      }
    }
  }
  const double rows = static_cast<double>((args.new_tokens - first) * G);
  const double lanes = static_cast<double>(skim::cpu::simd::lanes);
  const double batch = static_cast<double>(skim::cpu::detail::weight_rows);
  const std::int64_t blocks = skim::block_count(args.new_tokens, args.read ? args.read->block_rows : 0);
  const double additions = std::min(rows, batch) / lanes + lanes / 2 + rows / batch + static_cast<double>(blocks) + 2;
  for (std::size_t slot = 0; slot < bounds.size(); ++slot) bounds[slot] += f32_roundoff * additions * total[slot];
  return bounds;
}

template <class Policy>
std::int64_t first_query(const Policy&, const skim::eviction_args&) {
  return 0;
}
inline std::int64_t first_query(const skim::tova&, const skim::eviction_args& args) {
  return args.new_tokens - 1;
}
inline std::int64_t first_query(const skim::snapkv& policy, const skim::eviction_args& args) {
  return std::max<std::int64_t>(args.new_tokens - policy.window, 0);
}

/// What `observe` should leave, from what it found.
template <class Policy>
bounded_values expected_weights(const Policy& policy, const skim::eviction_args& args, std::int64_t head,
                                const std::vector<double>& before) {
  std::vector<double> past(before.begin(), before.end() - args.new_tokens);
  bounded_values expected;
  expected.exact = reference::observe(policy, args, head, past);
  expected.bounds = weight_bounds(args, head, first_query(policy, args));
  const double rows = static_cast<double>(args.new_tokens - first_query(policy, args));
  for (std::size_t slot = 0; slot < expected.bounds.size(); ++slot) {
    if (std::is_same_v<Policy, skim::snapkv>) expected.bounds[slot] /= rows;
    expected.bounds[slot] += 4 * f32_roundoff * expected.exact[slot] + 0x1p-126;  // smaller weights become zeros
  }
  return expected;
}

template <class Policy>
void expect_observed_weights(const Policy& policy, eviction_run<Policy>& run) {
  const skim::kv_cache& kv = run.args.kv;
  run.observe();
  std::vector<std::vector<double>> before;
  for (std::int64_t h = 0; h < kv.heads; ++h) before.push_back(observed_weights(policy, run, h));
  run.observe();  // the same chunk once more: its tokens start anew, for those before it H2O adds to what it has
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    SCOPED_TRACE(testing::Message() << "observing, head " << h);
    expect_within(observed_weights(policy, run, h),
                  expected_weights(policy, run.args, h, before[static_cast<std::size_t>(h)]));
  }
}

/// Policies that `weighing` knows. Templates: a back-end without them compiles the rest.
template <class Policy>
using if_weighing = decltype(weighing(std::declval<const Policy&>()));

template <class Policy, class = if_weighing<Policy>>
void expect_observed(const Policy& policy, eviction_run<Policy>& run) {
  expect_observed_weights(policy, run);
}

template <class Policy, class = if_weighing<Policy>>
bounded_values exact_scores(const Policy& policy, eviction_run<Policy>& run, std::int64_t head) {
  bounded_values scores;
  scores.exact = reference::score(policy, run.args.kv, head, observed_weights(policy, run, head));
  for (const double x : scores.exact) {
    double bound = 0;
    if constexpr (std::is_same_v<Policy, skim::snapkv>) {
      bound = f32_roundoff * static_cast<double>(policy.pool + 1) * x + 0x1p-149;
    }
    scores.bounds.push_back(bound);
  }
  return scores;
}

// KeyDiff.

/// An anchor of any length, and how far the kernel's may lie from it, in length.
struct bounded_anchor {
  std::vector<double> row;
  double error = 0;

  /// Adds `times` times a unit key, whose components the state rounds to multiples of 2^-30 and which comes from an inverse
  /// norm that is off by u (4 + D / 8), times the element. A key without a finite length counts as zeros.
  void add(const std::vector<double>& key, double times) {
    const double D = static_cast<double>(key.size());
    const std::vector<double> unit = reference::finite_unit(key);
    row.resize(key.size(), 0.0);
    for (std::size_t d = 0; reference::is_finite(unit) && d < key.size(); ++d) row[d] += times * unit[d];
    error += std::fabs(times) * (0x1p-31 * std::sqrt(D) + f32_roundoff * (5 + D / 8));
  }
  double relative() const { return error == 0 ? 0 : error / reference::length(row); }
};

/// The kernel's documented bound for scores by exact anchors: u (D / 4 + 16).
inline bounded_values cosine_bounds(const bounded_anchor& anchor, const vector_list& keys) {
  bounded_values scores{reference::cosine_scores(anchor.row, keys), {}};
  const double D = static_cast<double>(anchor.row.size());
  scores.bounds.assign(keys.size(), f32_roundoff * (D / 4 + 16) + 2 * anchor.relative());
  return scores;
}

/// Observes as much as one chunk may be, then the chunk again.
template <class Anchor>
void expect_observed(const skim::keydiff<Anchor>&, eviction_run<skim::keydiff<Anchor>>& run) {
  if (!std::is_same_v<Anchor, skim::anchor::unit_mean>) return;
  const skim::kv_cache& kv = run.args.kv;
  const std::int64_t Tq = run.args.new_tokens;
  run.args.new_tokens = kv.lengths ? *std::min_element(kv.lengths, kv.lengths + kv.heads) : kv.tokens;
  run.observe();
  run.args.new_tokens = Tq;
  run.observe();
}

template <class Policy>
bounded_anchor anchor_of(skim::anchor::unit_mean, const eviction_run<Policy>& run, std::int64_t head,
                         const vector_list& keys) {
  bounded_anchor anchor{std::vector<double>(keys.front().size(), 0.0)};
  const std::vector<int>& observed = run.observed[static_cast<std::size_t>(head)];
  for (std::size_t slot = 0; slot < keys.size(); ++slot) {
    if (observed[slot] != 0) anchor.add(keys[slot], observed[slot]);
  }
  return anchor;
}
template <class Policy>
bounded_anchor anchor_of(skim::anchor::median, const eviction_run<Policy>&, std::int64_t, const vector_list& keys) {
  return {reference::find_anchor(skim::anchor::median{}, keys)};
}
/// How many roundings a sum over n rows carries.
inline double row_additions(double n) {
  const double apart = static_cast<double>(skim::cpu::detail::rows_summed_apart);
  return std::min(n, apart) + n / apart;
}

/// Where rows cancel, what is left of the sum carries their rounding.
template <class Policy>
bounded_anchor anchor_of(skim::anchor::mean, const eviction_run<Policy>&, std::int64_t, const vector_list& keys) {
  vector_list sizes = keys;
  for (auto& row : sizes) {
    for (double& x : row) x = std::fabs(x);
  }
  const double additions = row_additions(static_cast<double>(keys.size())) + 2;
  return {reference::find_anchor(skim::anchor::mean{}, keys),
          f32_roundoff * additions * reference::length(reference::finite_mean(sizes))};
}

template <class Anchor>
bounded_values exact_scores(const skim::keydiff<Anchor>& policy, eviction_run<skim::keydiff<Anchor>>& run,
                            std::int64_t head) {
  const skim::kv_view kv = run.args.kv;
  const vector_list keys = reference::rows_of(kv, kv.k, head);
  if (keys.empty()) return {};
  if constexpr (std::is_same_v<Anchor, skim::anchor::pairwise>) {  // two inverse norms and a product
    const double bound = f32_roundoff * (3 * static_cast<double>(kv.k.dim) / 8 + 20);
    return {reference::score(policy, keys), std::vector<double>(keys.size(), bound)};
  } else {
    return cosine_bounds(anchor_of(policy.anchor, run, head, keys), keys);
  }
}

// CAOTE.

template <class Base>
void expect_observed(const skim::caote<Base>& policy, eviction_run<skim::caote<Base>>& run) {
  eviction_run<Base> base(policy.base, run.args);
  expect_observed(policy.base, base);
  run.set_state(base.state_bytes());
}
template <class Base>
void expect_observed(const skim::fast_caote<Base>& policy, eviction_run<skim::fast_caote<Base>>& run) {
  eviction_run<Base> base(policy.base, run.args);
  expect_observed(policy.base, base);
  run.set_state(base.state_bytes());
}

inline double length_of_sizes(const std::vector<double>& hn, const vector_list& values) {
  vector_list sizes = values;
  for (auto& row : sizes) {
    for (double& x : row) x = std::fabs(x);
  }
  return reference::length(reference::weighted_center(hn, sizes));
}

/// h of one head: the base's own scores, turned by the base's hook.
template <class Policy, class Base>
std::vector<double> base_weights(const Base& base, eviction_run<Policy>& run, std::int64_t head) {
  eviction_run<Base> alone(base, run.args);
  alone.set_state(run.state_bytes());
  std::vector<double> h = alone.scores_of(head);
  for (double& x : h) x = static_cast<double>(base.caote_weight(static_cast<float>(x)));
  return h;
}

/// What a score's bound is made of: the centre is a sum of rows whose sizes sum to `sizes`; 1 - hn loses hn's own rounding; differences, squares, root and products round relative to the score.
struct caote_bound {
  double sizes, n, Dv;

  double of(double hn, double score) const {
    const double center = f32_roundoff * (row_additions(n) + 4) * sizes, left = std::max(1 - hn, 1e-6);
    const double factor = hn / left;
    return center * factor + f32_roundoff * (Dv / 8 + 20 + factor) * score + 0x1p-120;
  }
};

template <class Policy>
bounded_values bounded_caote(const Policy& policy, eviction_run<Policy>& run, std::int64_t head) {
  const skim::kv_view kv = run.args.kv;
  const vector_list values = reference::rows_of(kv, kv.v, head);
  if (values.empty()) return {};
  const skim::retention keep = kept_of_head(kept_by(policy, run.args), run.args, head);
  const std::vector<bool> stays = reference::protected_tokens(kv, head, keep);
  const std::vector<double> h = base_weights(policy.base, run, head), hn = reference::normalize(h, stays);
  const double n = static_cast<double>(values.size());
  const bool plain = std::is_same_v<Policy, skim::fast_caote<decltype(policy.base)>>;
  const std::vector<double> shares = plain ? std::vector<double>(values.size(), 1 / n) : hn;
  const caote_bound bound{length_of_sizes(shares, values), n, static_cast<double>(kv.v.dim)};
  bounded_values scores;
  scores.exact = reference::score(policy, h, values, stays);
  for (std::size_t i = 0; i < values.size(); ++i) scores.bounds.push_back(bound.of(hn[i], scores.exact[i]));
  return scores;
}

/// As `caote_bound`; the change and the weight of those that have left are summed step by step, from terms that add up to
/// at most sum hn (|x| + |v|), twice `sizes`.
struct joint_bound {
  double sizes, n, Dv, step;

  double of(double weight, double error) const {
    const double left = std::max(1 - weight, 1e-6), sums = row_additions(n) + 2 * step + 8;
    return f32_roundoff * (2 * sums * sizes / left + (Dv / 8 + 20 + (step + 2) / left) * error) + 0x1p-120;
  }
};

/// The kernel's own order of leaving: at each step the token that leaves has, within the bounds, the least error of those
/// that could leave. Returns the order as exact scores.
template <class Base>
bounded_values expect_joint_order(const skim::caote<Base>& policy, eviction_run<skim::caote<Base>>& run,
                                  std::int64_t head) {
  const skim::kv_view kv = run.args.kv;
  const vector_list values = reference::rows_of(kv, kv.v, head);
  scores_memory got(kv.heads, kv.tokens);
  run.score(got);
  bounded_values scores{got.row(head, kv.length(head)), {}};
  scores.bounds.assign(scores.exact.size(), 0.0);
  if (values.empty()) return scores;
  const skim::retention keep = kept_of_head(kept_by(policy, run.args), run.args, head);
  const std::vector<bool> stays = reference::protected_tokens(kv, head, keep);
  const std::vector<double> hn = reference::normalize(base_weights(policy.base, run, head), stays);
  const std::vector<double> center = reference::weighted_center(hn, values);
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores.exact[a] < scores.exact[b]; });
  const std::int64_t n = kv.length(head), leaving = std::max<std::int64_t>(n - keep.count, 0);
  const double sizes = length_of_sizes(hn, values);
  std::vector<bool> gone(values.size(), false);
  reference::eviction_change left(center.size());
  for (std::size_t step = 0; step < order.size(); ++step) {
    const bool leaves = static_cast<std::int64_t>(step) < leaving;
    const double expected = leaves ? static_cast<double>(step) : std::numeric_limits<double>::infinity();
    EXPECT_EQ(scores.exact[order[step]], expected);
    if (!leaves || testing::Test::HasFailure()) continue;
    const joint_bound bound{sizes, static_cast<double>(n), static_cast<double>(kv.v.dim), static_cast<double>(step)};
    double least = std::numeric_limits<double>::infinity(), own = 0, slack = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (gone[i] || stays[i]) continue;
      reference::eviction_change with = left;
      with.add(hn[i], center, values[i]);
      const double error = with.error();
      least = std::min(least, error);
      slack = std::max(slack, bound.of(with.weight, error));
      if (i == order[step]) own = error;
    }
    EXPECT_FALSE(stays[order[step]]) << "protected slot " << order[step] << " leaves";
    EXPECT_LE(own, least + 2 * slack) << "slot " << order[step] << " leaves at step " << step;
    left.leave(hn[order[step]], center, values[order[step]]);
    gone[order[step]] = true;
  }
  return scores;
}

template <class Base>
bounded_values exact_scores(const skim::caote<Base>& policy, eviction_run<skim::caote<Base>>& run, std::int64_t head) {
  return policy.joint ? expect_joint_order(policy, run, head) : bounded_caote(policy, run, head);
}
template <class Base>
bounded_values exact_scores(const skim::fast_caote<Base>& policy, eviction_run<skim::fast_caote<Base>>& run,
                            std::int64_t head) {
  return bounded_caote(policy, run, head);
}

// Policies that score nothing.

inline void expect_observed(const skim::sink_window&, eviction_run<skim::sink_window>&) {}
inline bounded_values exact_scores(const skim::sink_window&, eviction_run<skim::sink_window>& run, std::int64_t head) {
  const std::vector<double> zeros(static_cast<std::size_t>(run.args.kv.length(head)), 0.0);
  return {zeros, zeros};
}

}  // namespace skim_test
