// SPDX-License-Identifier: Apache-2.0
/// \file GoogleTest matchers for kernels of your own: compare them with exact arithmetic, within a computed error bound.
///
///   #include <skim/testing/matchers.hpp>
///   EXPECT_THAT(args.out, skim::testing::matches_attention(args));                    // with GoogleMock
///   EXPECT_TRUE(skim::testing::satisfies(args.out, matches_attention(args, &lists)));  // GoogleTest alone
///
/// A failure prints the worst element: where it is, what it should be and what it may differ by. The expectation is
/// computed when the matcher is made, so inputs may change afterwards.
#pragma once

#include <skim/reference/quoka.hpp>
#include <skim/testing/attention_truth.hpp>

#include <gtest/gtest.h>

#include <sstream>
#include <utility>

namespace skim { inline namespace v0_2 { namespace testing {

/// What EXPECT_THAT does, for programs without GoogleMock.
template <class Value, class Matcher>
::testing::AssertionResult satisfies(const Value& value, const Matcher& matcher) {
  std::ostringstream why;
  if (matcher.MatchAndExplain(value, &why)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << why.str();
}

namespace detail {

/// The element that lies farthest outside its bound (or, if none does, comes closest to it), and the squared errors.
class comparison {
 public:
  void add(std::int64_t row, std::int64_t column, double got, double expected, double bound) {
    double excess;
    if (std::isfinite(expected)) {
      const double error = std::fabs(got - expected);
      squared_error_ += error * error;
      squared_size_ += expected * expected;
      ++numbers_;
      excess = error == 0 ? 0 : error / bound;
    } else {  // an infinity or NaN that the reference has too: the same one
      excess =
          got == expected || (std::isnan(got) && std::isnan(expected)) ? 0 : std::numeric_limits<double>::infinity();
    }
    if (excess <= excess_) return;  // false for NaN, which becomes the worst
    if (std::isnan(excess_)) return;
    excess_ = excess;
    row_ = row;
    column_ = column;
    got_ = got;
    expected_ = expected;
    bound_ = bound;
  }

  /// Of few numbers the ratio says how small they happen to be, not how they were computed: 0 below 64.
  double nmse() const { return squared_error_ == 0 || numbers_ < 64 ? 0 : squared_error_ / squared_size_; }

  /// `Hq` splits a row into token and head; a negative column is not printed.
  bool explain(std::int64_t Hq, double nmse_limit, std::ostream* to) const {
    const bool inside = excess_ <= 1, close = nmse() <= nmse_limit;
    if (to && !(inside && close)) {
      *to << "nmse " << nmse() << " (limit " << nmse_limit << "); worst at token " << row_ / Hq << ", head "
          << row_ % Hq;
      if (column_ >= 0) *to << ", element " << column_;
      *to << ": " << got_ << ", expected " << expected_ << " within " << bound_;
    }
    return inside && close;
  }

 private:
  double excess_ = -1, squared_error_ = 0, squared_size_ = 0;
  std::int64_t numbers_ = 0, row_ = 0, column_ = -1;
  double got_ = 0, expected_ = 0, bound_ = 0;
};

}  // namespace detail

/// Matches an output [Tq, Hq, Dv] of any element type.
class attention_matcher {
 public:
  using is_gtest_matcher = void;

  attention_matcher(attention_truth truth, arithmetic rounding) : truth_(std::move(truth)), rounding_(rounding) {}

  bool MatchAndExplain(const tensor_view<const void, 3>& out, std::ostream* why) const {
    if (out.extents[0] != truth_.Tq || out.extents[1] != truth_.Hq || out.extents[2] != truth_.Dv) {
      if (why) *why << "the extents differ";
      return false;
    }
    detail::comparison all;
    const double unit = out.type == element::f32 ? 0 : roundoff(out.type);  // f32's own is among the sums
    for (std::int64_t row = 0; row < truth_.Tq * truth_.Hq; ++row) {
      for (std::int64_t d = 0; d < truth_.Dv; ++d) {
        const std::size_t at = static_cast<std::size_t>(row * truth_.Dv + d);
        const double expected = truth_.out[at], bound = truth_.out_bound[at];
        const float got = load_element(out.data, out.type, out.offset(row / truth_.Hq, row % truth_.Hq, d));
        const double rounding = unit * (std::fabs(expected) + bound) + smallest_step(out.type);
        all.add(row, d, static_cast<double>(got), expected, bound + rounding);
      }
    }
    return all.explain(truth_.Hq, rounding_.nmse + unit * unit, why);
  }

  bool MatchAndExplain(const tensor_view<void, 3>& out, std::ostream* why) const {
    return MatchAndExplain(tensor_view<const void, 3>(out), why);
  }
  void DescribeTo(std::ostream* to) const { *to << "is attention within rounding"; }
  void DescribeNegationTo(std::ostream* to) const { *to << "is not attention within rounding"; }

 private:
  attention_truth truth_;
  arithmetic rounding_;
};

/// Attention over all keys (`lists` null), or over the listed past keys and the chunk's own.
inline attention_matcher matches_attention(const attention_args& args, const index_lists* lists = nullptr,
                                           const arithmetic& rounding = {}) {
  return attention_matcher(attend_exactly(args, lists, rounding), rounding);
}

/// Matches log-sum-exps [Tq, Hq].
class lse_matcher {
 public:
  using is_gtest_matcher = void;

  explicit lse_matcher(attention_truth truth) : truth_(std::move(truth)) {}

  bool MatchAndExplain(const tensor_view<const float, 2>& lse, std::ostream* why) const {
    if (lse.extents[0] != truth_.Tq || lse.extents[1] != truth_.Hq) {
      if (why) *why << "the extents differ";
      return false;
    }
    detail::comparison all;
    for (std::int64_t row = 0; row < truth_.Tq * truth_.Hq; ++row) {
      const std::size_t at = static_cast<std::size_t>(row);
      const float got = *lse.at(row / truth_.Hq, row % truth_.Hq);
      all.add(row, -1, static_cast<double>(got), truth_.lse[at], truth_.lse_bound[at]);
    }
    return all.explain(truth_.Hq, std::numeric_limits<double>::infinity(), why);
  }
  bool MatchAndExplain(const tensor_view<float, 2>& lse, std::ostream* why) const {
    return MatchAndExplain(tensor_view<const float, 2>(lse), why);
  }
  void DescribeTo(std::ostream* to) const { *to << "is the log-sum-exp of attention within rounding"; }
  void DescribeNegationTo(std::ostream* to) const { *to << "is not the log-sum-exp of attention within rounding"; }

 private:
  attention_truth truth_;
};

inline lse_matcher matches_lse(const attention_args& args, const index_lists* lists = nullptr,
                               const arithmetic& rounding = {}) {
  return lse_matcher(attend_exactly(args, lists, rounding));
}

/// What a top-k over one KV head's keys starts from: candidates and, in double precision, their scores.
struct scored_slots {
  std::vector<std::int64_t> candidates;  ///< ascending
  std::vector<double> scores;            ///< [candidates.size()]
  std::vector<double> bounds;            ///< [candidates.size()]: how far the kernel's own score may lie from `scores`
};

/// Matches a list of slots: the right number, ascending, with every sink and recent key, and, of the others, none whose
/// score lies farther below that of a key left out than their two bounds together.
class top_k_matcher {
 public:
  using is_gtest_matcher = void;

  top_k_matcher(const retention& keep, const attention_sequence& block, std::int64_t head, scored_slots scored)
      : scored_(std::move(scored)) {
    expected_ = reference::top_k(keep, block, head, scored_.candidates, scored_.scores);
    if (expected_.size() == scored_.candidates.size()) {
      forced_ = expected_;
      return;
    }
    std::vector<std::int64_t> by_age = scored_.candidates;
    std::stable_sort(by_age.begin(), by_age.end(), [&](std::int64_t a, std::int64_t b) {
      return block.kv.position(head, a) < block.kv.position(head, b);
    });
    forced_.assign(by_age.begin(), by_age.begin() + keep.sinks);
    forced_.insert(forced_.end(), by_age.end() - keep.recent, by_age.end());
    std::sort(forced_.begin(), forced_.end());
  }

  bool MatchAndExplain(const std::vector<std::int64_t>& list, std::ostream* why) const {
    if (list.size() != expected_.size()) {
      if (why) *why << list.size() << " slots, expected " << expected_.size();
      return false;
    }
    for (std::size_t i = 1; i < list.size(); ++i) {
      if (list[i - 1] < list[i]) continue;
      if (why) *why << "slot " << list[i] << " at place " << i << " does not ascend";
      return false;
    }
    const auto listed = [&](std::int64_t slot) { return std::binary_search(list.begin(), list.end(), slot); };
    for (const std::int64_t slot : list) {
      if (std::binary_search(scored_.candidates.begin(), scored_.candidates.end(), slot)) continue;
      if (why) *why << "slot " << slot << " is no candidate";
      return false;
    }
    for (const std::int64_t slot : forced_) {
      if (listed(slot)) continue;
      if (why) *why << "slot " << slot << " is a sink or recent key and is missing";
      return false;
    }
    return explain_scores(listed, why);
  }

  void DescribeTo(std::ostream* to) const { *to << "is the top-k within the scores' error bounds"; }
  void DescribeNegationTo(std::ostream* to) const { *to << "is not the top-k within the scores' error bounds"; }

 private:
  /// NaN ranks below every number; a NaN in `scores` is one for the kernel too.
  template <class Listed>
  bool explain_scores(const Listed& listed, std::ostream* why) const {
    const double nothing = -std::numeric_limits<double>::infinity();
    std::size_t low = scored_.candidates.size(), high = low;
    double lowest = std::numeric_limits<double>::infinity(), highest = nothing;
    bool undefined = false;
    for (std::size_t i = 0; i < scored_.candidates.size(); ++i) {
      const double score = scored_.scores[i], bound = scored_.bounds[i];
      if (std::binary_search(forced_.begin(), forced_.end(), scored_.candidates[i])) continue;
      if (listed(scored_.candidates[i])) {
        undefined = undefined || std::isnan(score);
        if (std::isnan(score) || score + bound < lowest) low = i;
        lowest = (std::min)(lowest, std::isnan(score) ? nothing : score + bound);
      } else if (!std::isnan(score) && (high == scored_.candidates.size() || score - bound > highest)) {
        high = i;
        highest = score - bound;
      }
    }
    const bool left_out_number = high != scored_.candidates.size();
    if (lowest >= highest && !(undefined && left_out_number)) return true;
    if (why) {
      *why << "slot " << scored_.candidates[low] << " (score " << scored_.scores[low] << " within "
           << scored_.bounds[low] << ") is listed, slot " << scored_.candidates[high] << " (score "
           << scored_.scores[high] << " within " << scored_.bounds[high] << ") is not";
    }
    return false;
  }

  scored_slots scored_;
  std::vector<std::int64_t> expected_, forced_;
};

inline top_k_matcher matches_top_k(const retention& keep, const attention_sequence& block, std::int64_t head,
                                   scored_slots scored) {
  return top_k_matcher(keep, block, head, std::move(scored));
}

}}}  // namespace skim::v0_2::testing
