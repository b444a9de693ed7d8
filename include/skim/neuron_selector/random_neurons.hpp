// SPDX-License-Identifier: Apache-2.0
/// \file A control: neurons drawn at random.
#pragma once

#include <skim/ffn.hpp>

namespace skim { inline namespace v0_2 {

/// Neuron selector: `keep` neurons drawn without replacement, anew for each block; the same for the same seed and number
/// of the block in its prompt.
struct random_neurons {
  neuron_retention keep = neuron_retention::share(0.5);
  std::uint64_t seed = 0;

  SKIM_INLINE report check(const ffn_args&) const { return {}; }
};

}}  // namespace skim::v0_2
