// SPDX-License-Identifier: Apache-2.0
/// \file GRIFFIN's static set: the prompt's first block decides for all. A baseline.
#pragma once

#include <skim/ffn.hpp>

namespace skim {
inline namespace v0_2 {

/// Neuron selector: block 0 runs dense and leaves its statistic (see `oracle`) in the state, f32 [f]; later blocks compute
/// its top `keep`. A state that has seen no block 0 names the lowest neurons.
struct static_set {
  neuron_retention keep = neuron_retention::share(0.5);
};

}  // namespace v0_2
}  // namespace skim
