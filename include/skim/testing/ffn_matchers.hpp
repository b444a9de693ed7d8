// SPDX-License-Identifier: Apache-2.0
/// \file GoogleTest matchers for outputs of FFNs and linear layers.
#pragma once

#include <skim/testing/ffn_truth.hpp>
#include <skim/testing/matchers.hpp>

namespace skim { inline namespace v0_2 { namespace testing {

/// Matches outputs [M, d] of any type within the truth's bounds and the type's rounding. `roundings`: how often an output
/// was rounded; 2 with a compensator, which is added to a stored output.
class ffn_matcher {
 public:
  using is_gtest_matcher = void;

  ffn_matcher(ffn_truth truth, arithmetic rounding, int roundings = 1)
      : truth_(std::move(truth)), rounding_(rounding), roundings_(roundings) {}

  bool MatchAndExplain(const tensor_view<const void, 2>& out, std::ostream* why) const {
    if (out.extents[0] != truth_.M || out.extents[1] != truth_.d) {
      if (why) *why << "the extents differ";
      return false;
    }
    detail::comparison all;
    const double unit = out.type == element::f32 ? 0 : roundoff(out.type);
    for (std::int64_t t = 0; t < truth_.M; ++t) {
      for (std::int64_t c = 0; c < truth_.d; ++c) {
        const std::size_t at = static_cast<std::size_t>(t * truth_.d + c);
        const float got = load_element(out.data, out.type, out.offset(t, c));
        const double rounding = unit * (std::fabs(truth_.out[at]) + truth_.bound[at]) + smallest_step(out.type);
        all.add(t, c, static_cast<double>(got), truth_.out[at], truth_.bound[at] + rounding);
      }
    }
    return all.explain(1, rounding_.nmse + unit * unit * roundings_ * roundings_, why);
  }

  bool MatchAndExplain(const tensor_view<void, 2>& out, std::ostream* why) const {
    return MatchAndExplain(tensor_view<const void, 2>(out), why);
  }
  void DescribeTo(std::ostream* to) const { *to << "is the layer's output within rounding"; }
  void DescribeNegationTo(std::ostream* to) const { *to << "is not the layer's output within rounding"; }

 private:
  ffn_truth truth_;
  arithmetic rounding_;
  int roundings_;
};

/// A linear layer.
inline ffn_matcher matches_linear(const linear_args& args, const arithmetic& rounding = {}) {
  return ffn_matcher(multiply_exactly(args, rounding), rounding);
}

/// The FFN of all neurons.
inline ffn_matcher matches_ffn(const ffn_args& args, const arithmetic& rounding = {}) {
  return ffn_matcher(compute_exactly(args, reference::every_neuron(args), rounding), rounding);
}

}}}  // namespace skim::v0_2::testing
