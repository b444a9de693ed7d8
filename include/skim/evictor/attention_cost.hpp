// SPDX-License-Identifier: Apache-2.0
/// \file What watching attention costs: for H2O, TOVA and SnapKV.
#pragma once

#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 { namespace detail {

/// Flops of the weights of `queries` tokens' queries, and K read once.
SKIM_LOCAL cost_estimate weights_cost(const eviction_args& args, std::int64_t queries) {
  const kv_cache& kv = args.kv;
  const double n = static_cast<double>(kv.tokens), D = static_cast<double>(kv.k.dim);
  const double rows = static_cast<double>(queries * args.attended.q.extents[1]);
  return {2 * rows * n * D, static_cast<double>(kv.heads) * n *
                                static_cast<double>(bytes_of(kv.k.type, kv.k.dim) + std::int64_t{2 * sizeof(float)})};
}

}}}  // namespace skim::v0_2::detail
