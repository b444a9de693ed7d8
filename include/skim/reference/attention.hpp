// SPDX-License-Identifier: Apache-2.0
/// \file Attention in plain double loops: the specification, and the oracle to test other kernels against.
/// Reads the stored values, rounds nothing, allocates. Call `check` and `check_indices` first; these functions do not.
#pragma once

#include <skim/attention.hpp>
#include <skim/index_lists.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/view.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// Slots that block `index` of the call reads for one KV head: the listed past slots (all of them if `lists` is null), then
/// its own.
inline std::vector<std::int64_t> slots_read(const attention_sequence& block, std::int64_t index, std::int64_t head,
                                            const index_lists* lists) {
  const std::int64_t past = block.past(head);
  std::vector<std::int64_t> slot_ids;
  if (lists) {
    const std::int64_t row = index * block.kv.heads + head;
    slot_ids.assign(lists->row(row), lists->row(row) + lists->counts[row]);
  } else {
    for (std::int64_t slot = 0; slot < past; ++slot) slot_ids.push_back(slot);
  }
  for (std::int64_t t = 0; t < block.Tq; ++t) slot_ids.push_back(past + t);
  return slot_ids;
}

/// The query of token `t` of the block, head `h`.
inline std::vector<double> query_of(const attention_args& args, const attention_sequence& block, std::int64_t t,
                                    std::int64_t h) {
  return values_of({args.q.at(block.first_row + t, h), args.q.type}, args.q.extents[2]);
}

/// The position of token `t` of the block.
inline std::int64_t query_position(const attention_sequence& block, std::int64_t head, std::int64_t t) {
  return block.kv.position(head, block.past(head) + t);
}

/// What the call's bias adds to a logit; 0 without one.
inline double bias(const attention_args& args, const attention_sequence& block, std::int64_t t, std::int64_t h,
                   std::int64_t slot) {
  if (!has_bias(args)) return 0;
  const std::int64_t at = args.bias.offset(args.bias.extents[0] == 1 ? 0 : h, block.first_row + t, slot);
  return static_cast<double>(load_element(args.bias.data, args.bias.type, at));
}

/// What the slope of head `h` takes from a logit.
inline double distance_penalty(const attention_args& args, const attention_sequence& block, std::int64_t t,
                               std::int64_t h, std::int64_t slot) {
  if (!args.alibi_slopes) return 0;
  const std::int64_t head = h / group_size(args);
  const std::int64_t distance = query_position(block, head, t) - block.kv.position(head, slot);
  return static_cast<double>(args.alibi_slopes[h]) * std::fabs(static_cast<double>(distance));
}

/// Whether mask and bias let query `t`, head `h` see the key in `slot`. Nothing of a key that is not seen matters, NaN
/// neither.
inline bool sees(const attention_args& args, const attention_sequence& block, std::int64_t t, std::int64_t h,
                 std::int64_t slot) {
  const std::int64_t head = h / group_size(args);
  return args.mask.visible(query_position(block, head, t), block.kv.position(head, slot)) &&
         bias(args, block, t, h, slot) != -std::numeric_limits<double>::infinity();
}

/// The logit of query `t`, head `h` and the key in `slot`, which it sees: scaled, soft-capped, with bias and slope.
inline double logit(const attention_args& args, const attention_sequence& block, std::int64_t t, std::int64_t h,
                    std::int64_t slot) {
  const kv_view& kv = block.kv;
  const double product = static_cast<double>(logit_scale(args)) *
                         dot(query_of(args, block, t, h), row_of(kv, kv.k, h / group_size(args), slot));
  const double cap = static_cast<double>(args.soft_cap);
  return (cap > 0 ? cap * std::tanh(product / cap) : product) + bias(args, block, t, h, slot) -
         distance_penalty(args, block, t, h, slot);
}

/// One row: writes `out [Dv]` and returns the log-sum-exp.
inline double attend_row(const attention_args& args, const attention_sequence& block, std::int64_t t, std::int64_t h,
                         const std::vector<std::int64_t>& slot_ids, double* out) {
  const kv_view& kv = block.kv;
  const double nothing = -std::numeric_limits<double>::infinity();
  const double sink = args.sink_logits ? static_cast<double>(args.sink_logits[h]) : nothing;

  std::vector<double> logits(slot_ids.size(), nothing);
  double largest = sink;
  bool empty = largest == nothing;  // until a logit above -inf, or NaN, is seen
  for (std::size_t i = 0; i < slot_ids.size(); ++i) {
    if (!sees(args, block, t, h, slot_ids[i])) continue;
    logits[i] = logit(args, block, t, h, slot_ids[i]);
    if (logits[i] > largest) largest = logits[i];
    if (logits[i] != nothing) empty = false;
  }
  for (std::int64_t d = 0; d < kv.v.dim; ++d) out[d] = 0;
  if (empty) return nothing;
  double sum = std::exp(sink - largest);
  for (std::size_t i = 0; i < slot_ids.size(); ++i) {
    if (!sees(args, block, t, h, slot_ids[i])) continue;
    const double weight = std::exp(logits[i] - largest);
    const std::vector<double> v = row_of(kv, kv.v, h / group_size(args), slot_ids[i]);
    sum += weight;
    for (std::size_t d = 0; d < v.size(); ++d) out[d] += weight * v[d];
  }
  for (std::int64_t d = 0; d < kv.v.dim; ++d) out[d] /= sum;
  return largest + std::log(sum);
}

/// Attention over the listed past keys (`lists` null: all) and each block's own. Writes `out [Tq, Hq, Dv]` and, if it has
/// data, `lse [Tq, Hq]`, both in double; `args.out` and `args.lse` are left alone.
inline void attend(const attention_args& args, const index_lists* lists, tensor_view<double, 3> out,
                   tensor_view<double, 2> lse = {}) {
  for_each_block(args, lists ? lists->block_rows : 0, [&](const attention_sequence& block, std::int64_t index) {
    for (std::int64_t h = 0; h < args.q.extents[1]; ++h) {
      const auto slot_ids = slots_read(block, index, h / group_size(args), lists);
      for (std::int64_t t = 0; t < block.Tq; ++t) {
        const double sum = attend_row(args, block, t, h, slot_ids, out.at(block.first_row + t, h));
        if (lse.data) *lse.at(block.first_row + t, h) = sum;
      }
    }
  });
}

}}}  // namespace skim::v0_2::reference
