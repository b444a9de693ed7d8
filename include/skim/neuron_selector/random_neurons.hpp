// SPDX-License-Identifier: Apache-2.0
/// \file A control: neurons drawn at random.
#pragma once

#include <skim/ffn.hpp>

namespace skim {
inline namespace v0_2 {

/// Neuron selector: `keep` neurons drawn without replacement, anew for each block; the same for the same seed and block.
struct random_neurons {
  neuron_retention keep = neuron_retention::share(0.5);
  std::uint64_t seed = 0;
};

}  // namespace v0_2
}  // namespace skim
