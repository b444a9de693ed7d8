// SPDX-License-Identifier: Apache-2.0
/// \file The oracle: neurons chosen by what they would have contributed. A baseline, slower than the dense FFN.
#pragma once

#include <skim/ffn.hpp>

namespace skim { inline namespace v0_2 {

/// Neuron selector: the top `keep` of GRIFFIN's statistic of the block itself. With Z = act(x gate^T) * (x up^T) [M, f] and
/// every row divided by its L2 norm, stat[j] = |Z[:, j]|_2. Rows of norm 0 count as zeros, as do
/// those with an infinity or NaN. No compensation.
struct oracle {
  neuron_retention keep = neuron_retention::share(0.5);

  SKIM_INLINE report check(const ffn_args&) const { return {}; }

  /// All but the down projection.
  SKIM_INLINE cost_estimate cost(const ffn_args& args) const {
    const cost_estimate all = ffn_cost(args, args.up.extents[0]);
    const double share = is_gated(args) ? 2.0 / 3 : 0.5;
    return {all.flops * share, all.bytes * share};
  }
};

}}  // namespace skim::v0_2
