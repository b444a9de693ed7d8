// SPDX-License-Identifier: Apache-2.0
/// \file One constant set of neurons, from calibration. The baseline that a predictor has to beat.
#pragma once

#include <skim/neuron_selector/compensator.hpp>

namespace skim { inline namespace v0_2 {

/// Neuron selector: the top `keep` of `statistic`, such as the mean of the oracle's over calibration data; the same for
/// every block. It may have a compensator of its own, so that a comparison with `fastforward` is about the set alone.
struct calibrated_set {
  neuron_retention keep = neuron_retention::share(0.5);
  tensor_view<const float, 1> statistic;  ///< [f]
  neuron_compensator compensator;

  SKIM_INLINE constexpr report check(const ffn_args& args, pointers given = pointers::required) const {
    if (report r = detail::check_tensor(statistic, "statistic", given); !r) return r;
    return detail::check_extent(statistic, 0, args.up.extents[0], "statistic");
  }
};

}}  // namespace skim::v0_2
