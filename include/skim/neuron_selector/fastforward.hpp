// SPDX-License-Identifier: Apache-2.0
/// \file FastForward: a predictor names the neurons of a block, a compensator makes up for the rest (arXiv 2602.00397).
#pragma once

#include <skim/neuron_selector/compensator.hpp>

namespace skim { inline namespace v0_2 {

/// One logit per neuron from one block (section 3.1):
///
///     w = softmax_t(x[t] . query / sqrt(d))    a = sum_t w[t] x[t]    s = relu(a w1) w2
///
/// The paper's r is d / 16 rounded up to a power of two. Element types are free; arithmetic is f32. An empty block has a = 0.
struct neuron_predictor {
  tensor_view<const void, 1> query;  ///< [d]
  tensor_view<const void, 2> w1;     ///< [d, r]
  tensor_view<const void, 2> w2;     ///< [r, f]
};

/// r of the paper: d / 16, rounded up to a power of two.
SKIM_HD SKIM_INLINE constexpr std::int64_t predictor_rank(std::int64_t d) {
  std::int64_t r = 1;
  while (r * 16 < d) r *= 2;
  return r;
}

SKIM_LOCAL constexpr report check(const neuron_predictor& predictor, std::int64_t d, std::int64_t f,
                                  pointers given = pointers::required) {
  using namespace detail;
  if (report r = check_tensor(predictor.query, "predictor.query", given); !r) return r;
  if (report r = check_type(predictor.query.type, "predictor.query"); !r) return r;
  if (report r = check_extent(predictor.query, 0, d, "predictor.query"); !r) return r;
  if (report r = check_width(predictor.w1, 1, "predictor.w1"); !r) return r;
  const std::int64_t rank = predictor.w1.extents[1];
  if (report r = check_matrix(predictor.w1, d, rank, "predictor.w1", given); !r) return r;
  return check_matrix(predictor.w2, rank, f, "predictor.w2", given);
}

/// Neuron selector: the top `keep` of the predictor's logits, one list for the whole block, ties to the lower neuron;
/// sparse blocks are compensated, dense ones are not. Fit both parts with calibrate/fastforward.hpp.
struct fastforward {
  neuron_retention keep = neuron_retention::share(0.5);
  neuron_predictor predictor;
  neuron_compensator compensator;

  SKIM_INLINE constexpr report check(const ffn_args& args, pointers given = pointers::required) const {
    return skim::check(predictor, args.x.extents[1], args.up.extents[0], given);
  }

  /// x is looked at twice, the predictor's weights are read once.
  SKIM_INLINE cost_estimate cost(const ffn_args& args) const {
    const double d = static_cast<double>(args.x.extents[1]), f = static_cast<double>(args.up.extents[0]);
    const double rank = static_cast<double>(predictor.w1.extents[1]), blocks = static_cast<double>(block_count(args));
    return {4 * static_cast<double>(args.x.extents[0]) * d + 2 * blocks * rank * (d + f),
            d * static_cast<double>(bytes_of(predictor.w1.type, predictor.w1.extents[1])) +
                rank * static_cast<double>(bytes_of(predictor.w2.type, args.up.extents[0]))};
  }
};

}}  // namespace skim::v0_2
