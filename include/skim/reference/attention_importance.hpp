// SPDX-License-Identifier: Apache-2.0
/// \file The attention mass outside a prompt's beginning, from the full attention matrix in double. It does not use the
/// log-sum-exp; allocates.
#pragma once

#include <skim/attention.hpp>
#include <skim/attention_importance.hpp>
#include <skim/reference/attention.hpp>
#include <skim/view.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// The part of the row of query `t`, head `h` of a block that falls on keys at positions from `first` on. `slots`: what the
/// block reads. A sink logit takes its part of the row, but is no key; a row that sees nothing gives nothing.
inline double mass_outside(const attention_importance_args& args, const attention_sequence& block, std::int64_t t,
                           std::int64_t h, const std::vector<std::int64_t>& slot_ids) {
  const attention_args& call = args.attended;
  const std::int64_t head = h / group_size(call);
  const double nothing = -std::numeric_limits<double>::infinity();
  const double sink = call.sink_logits ? static_cast<double>(call.sink_logits[h]) : nothing;
  std::vector<std::int64_t> positions;
  std::vector<double> logits;
  double largest = sink;
  for (const std::int64_t slot : slot_ids) {
    if (!sees(call, block, t, h, slot)) continue;
    positions.push_back(block.kv.position(head, slot));
    logits.push_back(logit(call, block, t, h, slot));
    if (logits.back() > largest) largest = logits.back();
  }
  if (largest == nothing) return 0;
  double all = std::exp(sink - largest), outside = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(logits[i] - largest);
    all += weight;
    if (positions[i] >= args.first) outside += weight;
  }
  return outside / all;
}

/// What one call adds to `args.sum`, which it leaves alone.
inline double attention_importance(const attention_importance_args& args) {
  const attention_args& call = args.attended;
  double sum = 0;
  for_each_block(call, args.read ? args.read->block_rows : 0, [&](const attention_sequence& block, std::int64_t index) {
    for (std::int64_t h = 0; h < call.q.extents[1]; ++h) {
      const auto slot_ids = slots_read(block, index, h / group_size(call), args.read);
      for (std::int64_t t = 0; t < block.Tq; ++t) sum += mass_outside(args, block, t, h, slot_ids);
    }
  });
  return sum;
}

}}}  // namespace skim::v0_2::reference
