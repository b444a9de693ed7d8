// SPDX-License-Identifier: Apache-2.0
/// \file Attention in plain double loops: the specification, and the oracle to test other kernels against.
/// Reads the stored values, rounds nothing, allocates. Call `check` and `check_indices` first; these functions do not.
#pragma once

#include <skim/attention.hpp>
#include <skim/index_lists.hpp>
#include <skim/view.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace skim {
inline namespace v0_2 {
namespace reference {

/// Slots that a chunk reads for one KV head: the listed past slots (all of them if `lists` is null), then its own.
inline std::vector<std::int64_t> slots_read(const attention_sequence& sequence, std::int64_t s, std::int64_t head,
                                            const index_lists* lists) {
  const kv_view& kv = *sequence.kv;
  const std::int64_t past = kv.length(head) - sequence.Tq;
  std::vector<std::int64_t> slots;
  if (lists) {
    const std::int64_t row = s * kv.heads + head;
    slots.assign(lists->row(row), lists->row(row) + lists->counts[row]);
  } else {
    for (std::int64_t slot = 0; slot < past; ++slot) slots.push_back(slot);
  }
  for (std::int64_t t = 0; t < sequence.Tq; ++t) slots.push_back(past + t);
  return slots;
}

/// The logit of query `t`, head `h` and the key in `slot`: scaled and soft-capped, not masked.
inline double logit(const attention_args& args, const attention_sequence& sequence, std::int64_t t, std::int64_t h,
                    std::int64_t slot) {
  const kv_view& kv = *sequence.kv;
  const std::int64_t q = args.q.offset(sequence.first_row + t, h), k = kv.row_offset(kv.k, h / group_size(args), slot);
  double dot = 0;
  for (std::int64_t d = 0; d < kv.k.dim; ++d) {
    dot += static_cast<double>(load_element(args.q.data, args.q.type, q + d)) *
           static_cast<double>(load_element(kv.k.data, kv.k.type, k + d));
  }
  dot *= static_cast<double>(logit_scale(args));
  const double cap = static_cast<double>(args.soft_cap);
  return cap > 0 ? cap * std::tanh(dot / cap) : dot;
}

/// One row: writes `out [Dv]` and returns the log-sum-exp.
inline double attend_row(const attention_args& args, const attention_sequence& sequence, std::int64_t t, std::int64_t h,
                         const std::vector<std::int64_t>& slots, double* out) {
  const kv_view& kv = *sequence.kv;
  const std::int64_t head = h / group_size(args);
  const std::int64_t query_position = kv.position(head, kv.length(head) - sequence.Tq + t);
  const double nothing = -std::numeric_limits<double>::infinity();

  std::vector<double> logits(slots.size(), nothing);
  double largest = args.sink_logits ? static_cast<double>(args.sink_logits[h]) : nothing;
  bool empty = largest == nothing;  // until a logit above -inf, or NaN, is seen
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!args.mask.visible(query_position, kv.position(head, slots[i]))) continue;
    logits[i] = logit(args, sequence, t, h, slots[i]);
    if (logits[i] > largest) largest = logits[i];
    if (logits[i] != nothing) empty = false;
  }
  for (std::int64_t d = 0; d < kv.v.dim; ++d) out[d] = 0;
  if (empty) return nothing;
  double sum = args.sink_logits ? std::exp(static_cast<double>(args.sink_logits[h]) - largest) : 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!args.mask.visible(query_position, kv.position(head, slots[i]))) continue;
    const double weight = std::exp(logits[i] - largest);
    const std::int64_t v = kv.row_offset(kv.v, head, slots[i]);
    sum += weight;
    for (std::int64_t d = 0; d < kv.v.dim; ++d) {
      out[d] += weight * static_cast<double>(load_element(kv.v.data, kv.v.type, v + d));
    }
  }
  for (std::int64_t d = 0; d < kv.v.dim; ++d) out[d] /= sum;
  return largest + std::log(sum);
}

/// Attention over the listed past keys (`lists` null: all) and the chunk's own. Writes `out [Tq, Hq, Dv]` and, if it has
/// data, `lse [Tq, Hq]`, both in double; `args.out` and `args.lse` are left alone.
inline void attend(const attention_args& args, const index_lists* lists, tensor_view<double, 3> out,
                   tensor_view<double, 2> lse = {}) {
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    const attention_sequence sequence = sequence_at(args, s);
    for (std::int64_t h = 0; h < args.q.extents[1]; ++h) {
      const auto slots = slots_read(sequence, s, h / group_size(args), lists);
      for (std::int64_t t = 0; t < sequence.Tq; ++t) {
        const double sum = attend_row(args, sequence, t, h, slots, out.at(sequence.first_row + t, h));
        if (lse.data) *lse.at(sequence.first_row + t, h) = sum;
      }
    }
  }
}

}  // namespace reference
}  // namespace v0_2
}  // namespace skim
