// SPDX-License-Identifier: Apache-2.0
/// \file GRIFFIN's static set: the prompt's first block decides for all. A baseline.
#pragma once

#include <skim/ffn.hpp>

namespace skim { inline namespace v0_2 {

/// Neuron selector: block 0 runs dense and leaves its statistic (see `oracle`) in the state, f32 [f]; later blocks compute
/// its top `keep`. A state that has seen no block 0 names the lowest neurons. One prompt per call: a state holds the
/// statistic of one.
struct static_set {
  neuron_retention keep = neuron_retention::share(0.5);

  SKIM_INLINE constexpr report check(const ffn_args& args) const {
    if (prompt_count(args) <= 1) return {};
    return fault(status::unsupported, "prompt_count", args.prompt_count, 1, "at most");
  }
};

}}  // namespace skim::v0_2
