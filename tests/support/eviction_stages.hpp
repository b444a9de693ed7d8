// SPDX-License-Identifier: Apache-2.0
/// \file An eviction, each step of the kernel compared with the reference on what its own previous step left.
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

/// The state of a policy that watches attention, by slot.
inline std::vector<double> state_weights(const skim::kv_view& kv, std::int64_t head, skim::memory state) {
  const float* const weights = skim::cpu::detail::weight_state::at(kv, state).weights + head * kv.capacity;
  std::vector<double> by_slot;
  for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
    by_slot.push_back(static_cast<double>(weights[kv.metadata_row(slot)]));
  }
  return by_slot;
}

/// How far the weights of queries `first` and later may lie from exact ones, before they are averaged over queries. A
/// logit is off by u (D + 8) sum |q_d k_d| as in attention (skim/testing/attention_truth.hpp), and by what rounding to base
/// 2 and subtracting the log-sum-exp add: 4 u |lse|; the exponential by 2 u. Rows meet in tiles of 512.
inline std::vector<double> weight_bounds(const skim::eviction_args& args, std::int64_t head, std::int64_t first) {
  const skim::attention_args& call = args.attended;
  const skim::attention_sequence sequence = skim::sequence_at(call, 0);
  const vector_list keys = reference::rows_of(call.kv, call.kv.k, head);
  const std::int64_t G = skim::group_size(call);
  const double D = static_cast<double>(call.kv.k.dim), scale = std::fabs(static_cast<double>(logit_scale(call)));
  std::vector<double> bounds(keys.size(), 0.0), total(keys.size(), 0.0);
  for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
    const vector_list queries = reference::queries_of(call, sequence, h);
    for (std::int64_t t = first; t < skim::new_tokens(args); ++t) {
      const double lse = static_cast<double>(*call.lse.at(t, h));
      const std::vector<double> row = reference::attention_weights(call, args.read, t, h, lse);
      const std::vector<double>& q = queries[static_cast<std::size_t>(t)];
      for (std::size_t slot = 0; slot < keys.size(); ++slot) {
        if (row[slot] == 0) continue;
        const skim::testing::detail::products dot(q.data(), keys[slot].data(), call.kv.k.dim);
        const double logit = f32_roundoff * ((D + 8) * scale * dot.size + 4 * std::fabs(lse));
        bounds[slot] += row[slot] * std::expm1(logit + 2 * f32_roundoff) / static_cast<double>(G);
        total[slot] += row[slot] / static_cast<double>(G);
      }
    }
  }
  const double rows = static_cast<double>((skim::new_tokens(args) - first) * G);
  const double lanes = static_cast<double>(skim::cpu::simd::lanes);
  const double additions = std::min(rows, 512.0) / lanes + lanes / 2 + rows / 512 + 3;
  for (std::size_t slot = 0; slot < bounds.size(); ++slot) bounds[slot] += f32_roundoff * additions * total[slot];
  return bounds;
}

template <class Policy>
std::int64_t first_query(const Policy&, const skim::eviction_args&) {
  return 0;
}
inline std::int64_t first_query(const skim::tova&, const skim::eviction_args& args) {
  return skim::new_tokens(args) - 1;
}
inline std::int64_t first_query(const skim::snapkv& policy, const skim::eviction_args& args) {
  return std::max<std::int64_t>(skim::new_tokens(args) - policy.window, 0);
}

/// What `observe` should leave, from what it found.
template <class Policy>
bounded_values expected_weights(const Policy& policy, const skim::eviction_args& args, std::int64_t head,
                                const std::vector<double>& before) {
  std::vector<double> past(before.begin(), before.end() - skim::new_tokens(args));
  bounded_values expected;
  expected.exact = reference::observe(policy, args, head, past);
  expected.bounds = weight_bounds(args, head, first_query(policy, args));
  const double rows = static_cast<double>(skim::new_tokens(args) - first_query(policy, args));
  for (std::size_t slot = 0; slot < expected.bounds.size(); ++slot) {
    if (std::is_same_v<Policy, skim::snapkv>) expected.bounds[slot] /= rows;
    expected.bounds[slot] += 4 * f32_roundoff * expected.exact[slot] + 0x1p-126;  // smaller weights become zeros
  }
  return expected;
}

template <class Policy>
void expect_observed_weights(const Policy& policy, eviction_run<Policy>& run) {
  const skim::kv_view& kv = run.args.attended.kv;
  run.observe();
  std::vector<std::vector<double>> before;
  for (std::int64_t h = 0; h < kv.heads; ++h) before.push_back(state_weights(kv, h, run.state.get()));
  run.observe();  // the same chunk once more: its tokens start anew, for those before it H2O adds to what it has
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    SCOPED_TRACE(testing::Message() << "observing, head " << h);
    expect_within(state_weights(kv, h, run.state.get()),
                  expected_weights(policy, run.args, h, before[static_cast<std::size_t>(h)]));
  }
}

inline void expect_observed(const skim::h2o& policy, eviction_run<skim::h2o>& run) {
  expect_observed_weights(policy, run);
}
inline void expect_observed(const skim::tova& policy, eviction_run<skim::tova>& run) {
  expect_observed_weights(policy, run);
}
inline void expect_observed(const skim::snapkv& policy, eviction_run<skim::snapkv>& run) {
  expect_observed_weights(policy, run);
}

inline bounded_values exact_scores(const skim::h2o& policy, eviction_run<skim::h2o>& run, std::int64_t head) {
  const skim::kv_view& kv = run.args.attended.kv;
  const std::vector<double> exact = reference::score(policy, kv, head, state_weights(kv, head, run.state.get()));
  return {exact, std::vector<double>(exact.size(), 0.0)};
}
inline bounded_values exact_scores(const skim::tova& policy, eviction_run<skim::tova>& run, std::int64_t head) {
  const skim::kv_view& kv = run.args.attended.kv;
  const std::vector<double> exact = reference::score(policy, kv, head, state_weights(kv, head, run.state.get()));
  return {exact, std::vector<double>(exact.size(), 0.0)};
}
inline bounded_values exact_scores(const skim::snapkv& policy, eviction_run<skim::snapkv>& run, std::int64_t head) {
  const skim::kv_view& kv = run.args.attended.kv;
  bounded_values scores;
  scores.exact = reference::score(policy, kv, head, state_weights(kv, head, run.state.get()));
  for (const double x : scores.exact) {
    scores.bounds.push_back(f32_roundoff * static_cast<double>(policy.pool + 1) * x + 0x1p-149);
  }
  return scores;
}

// KeyDiff.

inline std::vector<double> state_sum(const skim::kv_view& kv, std::int64_t head, skim::memory state) {
  const std::int64_t* const sum = skim::cpu::detail::unit_key_sums::at(kv, state).sums + head * kv.k.dim;
  return {sum, sum + kv.k.dim};
}

/// after - before = sign * the sum of the unit keys in `slots`, in units of 2^-30. A component is rounded to an integer and
/// comes from an inverse norm that is off by u (4 + D / 8), times the element.
inline void expect_sums_moved(const skim::kv_view& kv, std::int64_t head, const std::vector<std::int64_t>& slots,
                              const std::vector<double>& before, const std::vector<double>& after, double sign) {
  const vector_list keys = reference::rows_of(kv, kv.k, head);
  const double D = static_cast<double>(kv.k.dim), relative = f32_roundoff * (5 + D / 8);
  for (std::size_t d = 0; d < before.size(); ++d) {
    double sum = 0, bound = 0;
    for (const std::int64_t slot : slots) {
      const std::vector<double> unit = reference::guarded_unit(keys[static_cast<std::size_t>(slot)]);
      const double component = reference::is_finite(unit) ? unit[d] * 0x1p30 : 0;
      sum += component;
      bound += 0.5 + relative * std::fabs(component);
    }
    ASSERT_NEAR(after[d] - before[d], sign * sum, bound) << "head " << head << ", dimension " << d;
  }
}

template <class Anchor>
void expect_observed(const skim::keydiff<Anchor>&, eviction_run<skim::keydiff<Anchor>>& run) {
  if (!std::is_same_v<Anchor, skim::anchor::unit_mean>) return;
  const skim::kv_view& kv = run.args.attended.kv;
  const std::int64_t Tq = skim::new_tokens(run.args);
  run.args.attended.q.extents[0] = kv.lengths ? *std::min_element(kv.lengths, kv.lengths + kv.heads) : kv.tokens;
  run.observe();  // what stands before the chunk, or most of it
  run.args.attended.q.extents[0] = Tq;
  vector_list before;
  for (std::int64_t h = 0; h < kv.heads; ++h) before.push_back(state_sum(kv, h, run.state.get()));
  run.observe();
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    SCOPED_TRACE("observing");
    std::vector<std::int64_t> chunk(static_cast<std::size_t>(Tq));
    std::iota(chunk.begin(), chunk.end(), kv.length(h) - Tq);
    expect_sums_moved(kv, h, chunk, before[static_cast<std::size_t>(h)], state_sum(kv, h, run.state.get()), 1);
  }
}

/// An anchor and how far the kernel's may lie from it, relative to its length.
struct bounded_anchor {
  std::vector<double> row;
  double bound;
};

inline bounded_anchor anchor_of(skim::anchor::unit_mean, const skim::kv_view& kv, std::int64_t head, skim::memory state,
                                const vector_list&) {
  return {state_sum(kv, head, state), 0};
}
inline bounded_anchor anchor_of(skim::anchor::median, const skim::kv_view&, std::int64_t, skim::memory,
                                const vector_list& keys) {
  return {reference::find_anchor(skim::anchor::median{}, keys), 0};
}
/// Summed in blocks of 256 rows; where rows cancel, what is left of the sum carries their rounding.
inline bounded_anchor anchor_of(skim::anchor::mean, const skim::kv_view&, std::int64_t, skim::memory,
                                const vector_list& keys) {
  bounded_anchor anchor{reference::find_anchor(skim::anchor::mean{}, keys), 0};
  vector_list sizes = keys;
  for (auto& row : sizes) {
    for (double& x : row) x = std::fabs(x);
  }
  const double n = static_cast<double>(keys.size()), left = reference::length(anchor.row);
  const double added = f32_roundoff * (std::min(n, 256.0) + n / 256 + 2);
  anchor.bound = added * reference::length(reference::finite_mean(sizes)) / std::max(left, 1e-12);
  return anchor;
}

/// The kernel's documented bound for exact anchors: u (D / 4 + 16).
template <class Anchor>
bounded_values exact_scores(const skim::keydiff<Anchor>& policy, eviction_run<skim::keydiff<Anchor>>& run,
                            std::int64_t head) {
  const skim::kv_view& kv = run.args.attended.kv;
  const vector_list keys = reference::rows_of(kv, kv.k, head);
  const double D = static_cast<double>(kv.k.dim);
  if (keys.empty()) return {};
  bounded_values scores;
  double bound = f32_roundoff * (3 * D / 8 + 20);  // pairwise: two inverse norms and a product
  if constexpr (std::is_same_v<Anchor, skim::anchor::pairwise>) {
    scores.exact = reference::score(policy, keys);
  } else {
    const bounded_anchor anchor = anchor_of(policy.anchor, kv, head, run.state.get(), keys);
    scores.exact = reference::cosine_scores(anchor.row, keys);
    bound = f32_roundoff * (D / 4 + 16) + 2 * anchor.bound;
  }
  scores.bounds.assign(keys.size(), bound);
  return scores;
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
  const skim::kv_view& kv = run.args.attended.kv;
  eviction_run<Base> alone(base, run.args);
  alone.set_state(run.state_bytes());
  scores_memory scores(kv.heads, kv.tokens);
  alone.score(scores);
  std::vector<double> h;
  for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
    const float score = *scores.view().at(head, slot);
    h.push_back(static_cast<double>(skim::cpu::evictor_kernel<Base>::weight(base, score)));
  }
  return h;
}

/// What a score's bound is made of: the centre is a sum in blocks of 256 rows whose sizes sum to `sizes`; 1 - hn loses hn's
/// own rounding; differences, squares, root and products round relative to the score.
struct caote_bound {
  double sizes, n, Dv;

  double of(double hn, double score) const {
    const double center = f32_roundoff * (std::min(n, 256.0) + n / 256 + 4) * sizes, left = std::max(1 - hn, 1e-6);
    const double factor = hn / left;
    return center * factor + f32_roundoff * (Dv / 8 + 20 + factor) * score + 0x1p-120;
  }
};

template <class Policy>
bounded_values bounded_caote(const Policy& policy, eviction_run<Policy>& run, std::int64_t head) {
  const skim::kv_view& kv = run.args.attended.kv;
  const vector_list values = reference::rows_of(kv, kv.v, head);
  if (values.empty()) return {};
  const skim::retention keep = kept_by(skim::cpu::evictor_kernel<Policy>::keep(policy), run.args, head);
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
    const double left = std::max(1 - weight, 1e-6), sums = std::min(n, 256.0) + n / 256 + 2 * step + 8;
    return f32_roundoff * (2 * sums * sizes / left + (Dv / 8 + 20 + (step + 2) / left) * error) + 0x1p-120;
  }
};

/// The kernel's own order of leaving: at each step the token that leaves has, within the bounds, the least error of those
/// that could leave. Returns the order as exact scores.
template <class Base>
bounded_values expect_joint_order(const skim::caote<Base>& policy, eviction_run<skim::caote<Base>>& run,
                                  std::int64_t head) {
  const skim::kv_view& kv = run.args.attended.kv;
  const vector_list values = reference::rows_of(kv, kv.v, head);
  scores_memory got(kv.heads, kv.tokens);
  run.score(got);
  bounded_values scores{got.row(head, kv.length(head)), {}};
  scores.bounds.assign(scores.exact.size(), 0.0);
  if (values.empty()) return scores;
  const skim::retention keep = kept_by(skim::cpu::evictor_kernel<skim::caote<Base>>::keep(policy), run.args, head);
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
  const std::vector<double> zeros(static_cast<std::size_t>(run.args.attended.kv.length(head)), 0.0);
  return {zeros, zeros};
}

}  // namespace skim_test
