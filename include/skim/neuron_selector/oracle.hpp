// SPDX-License-Identifier: Apache-2.0
/// \file The oracle: neurons chosen by what they would have contributed. A baseline, slower than the dense FFN.
#pragma once

#include <skim/ffn.hpp>

namespace skim {
inline namespace v0_2 {

/// Neuron selector: the top `keep` of GRIFFIN's statistic of the block itself. With Z = act(x gate^T) * (x up^T) [M, f] and
/// every row divided by its L2 norm, stat[j] = |Z[:, j]|_2. Rows of norm 0 count as zeros. No compensation.
struct oracle {
  neuron_retention keep = neuron_retention::share(0.5);
};

}  // namespace v0_2
}  // namespace skim
