// SPDX-License-Identifier: Apache-2.0
/// \file FastForward: a predictor names the neurons of a block, a compensator makes up for the rest (arXiv 2602.00397).
#pragma once

#include <skim/ffn.hpp>

namespace skim {
inline namespace v0_2 {

/// One logit per neuron from one block (section 3.1):
///
///     w = softmax_t(x[t] . query / sqrt(d))    a = sum_t w[t] x[t]    s = relu(a w1) w2
///
/// The paper's r is d / 16 rounded up to a power of two. Element types are free; arithmetic is f32.
struct neuron_predictor {
  tensor_view<const void, 1> query;  ///< [d]
  tensor_view<const void, 2> w1;     ///< [d, r]
  tensor_view<const void, 2> w2;     ///< [r, f]
};

/// A small FFN beside the sparse one (section 3.2), token by token, not told which neurons were dropped:
///
///     out += act(x c1) c2
///
/// The paper's c is d / 8. `c1` and `c2` have one element type.
struct neuron_compensator {
  tensor_view<const void, 2> c1;  ///< [d, c], or empty: no compensation
  tensor_view<const void, 2> c2;  ///< [c, d]
  activation act = activation::silu;
};

/// Neuron selector: the top `keep` of the predictor's logits, one list for the whole block, ties to the lower neuron;
/// sparse blocks are compensated, dense ones are not. Fit both parts with calibrate/fastforward.hpp.
struct fastforward {
  neuron_retention keep = neuron_retention::share(0.5);
  neuron_predictor predictor;
  neuron_compensator compensator;
};

/// r of the paper: d / 16, rounded up to a power of two.
SKIM_HD constexpr std::int64_t predictor_rank(std::int64_t d) {
  std::int64_t r = 1;
  while (r * 16 < d) r *= 2;
  return r;
}

/// c of the paper: d / 8, at least 1.
SKIM_HD constexpr std::int64_t compensator_width(std::int64_t d) {
  return d < 8 ? 1 : d / 8;
}

SKIM_INLINE constexpr report check(const neuron_predictor& predictor, std::int64_t d, std::int64_t f) {
  using namespace detail;
  if (report r = check_tensor(predictor.query,
                              {"predictor.query.extents[0]", "predictor.query.strides[0]", "predictor.query.data"});
      !r) {
    return r;
  }
  if (predictor.query.type == element::none) {
    return fault(status::bad_type, "predictor.query.type", 0, static_cast<int>(element::f32), "at least");
  }
  if (predictor.query.extents[0] != d) {
    return fault(status::bad_extent, "predictor.query.extents[0]", predictor.query.extents[0], d);
  }
  const std::int64_t rank = predictor.w1.extents[1];
  if (rank < 1) return fault(status::bad_extent, "predictor.w1.extents[1]", rank, 1, "at least");
  if (rank > largest_width)
    return fault(status::unsupported, "predictor.w1.extents[1]", rank, largest_width, "at most");
  if (report r = check_matrix(predictor.w1, d, rank,
                              {"predictor.w1.extents[0]", "predictor.w1.extents[1]", "predictor.w1.strides[1]",
                               "predictor.w1.data", "predictor.w1.type"});
      !r) {
    return r;
  }
  return check_matrix(predictor.w2, rank, f,
                      {"predictor.w2.extents[0]", "predictor.w2.extents[1]", "predictor.w2.strides[1]",
                       "predictor.w2.data", "predictor.w2.type"});
}

SKIM_HD SKIM_INLINE bool compensates(const neuron_compensator& compensator) {
  return compensator.c1.data != nullptr;
}

SKIM_INLINE constexpr report check(const neuron_compensator& compensator, std::int64_t d) {
  using namespace detail;
  const std::int64_t width = compensator.c1.extents[1];
  if (compensator.c1.data == nullptr) {
    return width == 0 ? report{} : null_fault("compensator.c1.data");
  }
  if (width < 1) return fault(status::bad_extent, "compensator.c1.extents[1]", width, 1, "at least");
  if (width > largest_width) {
    return fault(status::unsupported, "compensator.c1.extents[1]", width, largest_width, "at most");
  }
  if (report r = check_matrix(compensator.c1, d, width,
                              {"compensator.c1.extents[0]", "compensator.c1.extents[1]", "compensator.c1.strides[1]",
                               "compensator.c1.data", "compensator.c1.type"});
      !r) {
    return r;
  }
  if (report r = check_matrix(compensator.c2, width, d,
                              {"compensator.c2.extents[0]", "compensator.c2.extents[1]", "compensator.c2.strides[1]",
                               "compensator.c2.data", "compensator.c2.type"});
      !r) {
    return r;
  }
  if (compensator.act > activation::relu_squared) {
    return fault(status::bad_value, "compensator.act", static_cast<int>(compensator.act),
                 static_cast<int>(activation::relu_squared), "at most");
  }
  return check_same_type(compensator.c2.type, compensator.c1.type, "compensator.c2.type");
}

}  // namespace v0_2
}  // namespace skim
