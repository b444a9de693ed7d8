// SPDX-License-Identifier: Apache-2.0
/// \file The FFN and the choice of its neurons in plain double loops: the specification, and the oracle to test other
/// kernels against. Reads the stored values, rounds nothing, allocates. Call `check` first; these functions do not. They
/// take the rows of a call as one block: for several, see `for_each_block`.
#pragma once

#include <skim/ffn.hpp>
#include <skim/math/order.hpp>
#include <skim/reference/linear.hpp>

#include <algorithm>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// All neurons, ascending.
inline std::vector<std::int32_t> every_neuron(const ffn_args& args) {
  std::vector<std::int32_t> neurons(static_cast<std::size_t>(args.up.extents[0]));
  for (std::size_t j = 0; j < neurons.size(); ++j) neurons[j] = static_cast<std::int32_t>(j);
  return neurons;
}

/// z [M, neurons] = act(x gate^T) * (x up^T), or act(x up^T) if there is no gate.
inline std::vector<double> neuron_values(const ffn_args& args, const std::vector<std::int32_t>& neurons) {
  std::vector<double> z;
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1];
  for (std::int64_t t = 0; t < M; ++t) {
    for (const std::int32_t j : neurons) {
      double gate = 0, up = 0;
      for (std::int64_t i = 0; i < d; ++i) {
        const double x = element_at(args.x, t, i);
        up += x * element_at(args.up, j, i);
        if (is_gated(args)) gate += x * element_at(args.gate, j, i);
      }
      z.push_back(is_gated(args) ? activate(args.act, gate) * up : activate(args.act, up));
    }
  }
  return z;
}

/// The FFN of some neurons: [M, d].
inline std::vector<double> ffn(const ffn_args& args, const std::vector<std::int32_t>& neurons) {
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1];
  const std::vector<double> z = neuron_values(args, neurons);
  std::vector<double> out(static_cast<std::size_t>(M * d));
  for (std::int64_t t = 0; t < M; ++t) {
    for (std::size_t n = 0; n < neurons.size(); ++n) {
      const double value = z[static_cast<std::size_t>(t) * neurons.size() + n];
      for (std::int64_t c = 0; c < d; ++c) {
        out[static_cast<std::size_t>(t * d + c)] += value * element_at(args.down, neurons[n], c);
      }
    }
  }
  return out;
}

/// The `count` neurons of highest score (all, if there are no more), ascending; ties to the lower neuron, NaN last.
inline std::vector<std::int32_t> top_neurons(const std::vector<float>& scores, std::int64_t count) {
  std::vector<std::int32_t> order(scores.size());
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = static_cast<std::int32_t>(j);
  std::stable_sort(order.begin(), order.end(), [&scores](std::int32_t a, std::int32_t b) {
    return rank_bits(scores[static_cast<std::size_t>(a)]) > rank_bits(scores[static_cast<std::size_t>(b)]);
  });
  if (count < static_cast<std::int64_t>(order.size())) order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

}}}  // namespace skim::v0_2::reference
