// SPDX-License-Identifier: Apache-2.0
/// \file The dense FFN.
#pragma once

namespace skim {
inline namespace v0_2 {

/// Neuron selector: every block computes every neuron.
struct all_neurons {};

}  // namespace v0_2
}  // namespace skim
