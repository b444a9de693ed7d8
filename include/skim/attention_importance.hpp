// SPDX-License-Identifier: Apache-2.0
/// \file How much a layer's attention depends on more than the prompt's beginning: what the FFN's layer schedule goes by
/// (arXiv 2602.00397, section 3.3; neuron_selector/schedule.hpp).
#pragma once

#include <skim/attention.hpp>

namespace skim { inline namespace v0_2 {

/// Arguments of one call: one layer, one chunk, after its attention, whose log-sum-exp says what each weight is a share of.
///
///     *sum += over query rows and heads: the attention mass that keys at positions from `first` on receive
///
/// A layer's importance is the sum over all chunks of a prompt, and over prompts; the paper's mean over heads and prompts
/// differs by a factor that the schedule does not see. The mass on 128 of t keys falls with t in any layer that has no sink
/// there, and the contrast between layers with it: such models are better told by prompts' first thousand tokens.
struct attention_importance_args {
  /// The attention call that the chunk has just run: q, `lse`, the cache, mask, scale, soft cap and sink logits are read;
  /// values and `out` are not. One sequence.
  attention_args attended;
  const index_lists* read = nullptr;  ///< the past keys that the call attended to; null: all
  std::int64_t first = 128;           ///< the prompt's beginning
  double* sum = nullptr;              ///< [1], zero before a layer's first chunk
};

/// O(1), follows no pointer. An empty chunk is valid.
SKIM_LOCAL report check(const attention_importance_args& args, pointers given = pointers::required) {
  using namespace detail;
  if (args.attended.sequences) {
    return fault(status::unsupported, "attended.sequence_count", args.attended.sequence_count, 1);
  }
  if (args.attended.batch.sequences != 0) {
    return fault(status::unsupported, "attended.batch.sequences", args.attended.batch.sequences, 0);
  }
  if (report r = check_chunk(args.attended, given); !r) return r;
  if (args.first < 0) return fault(status::bad_value, "first", args.first, 0, "at least");
  if (given == pointers::ignored) return {};
  if (!args.attended.lse.data && args.attended.q.extents[0] > 0) return null_fault("attended.lse.data");
  if (!args.sum) return null_fault("sum");
  if (report r = check_array("sum", args.sum); !r) return r;
  return check_read(args.attended, args.read);
}

/// Reads what `check` may not: block table, lengths, the lists that attention read. Host memory only.
SKIM_LOCAL report check_indices(const attention_importance_args& args) {
  if (report r = check(args); !r) return r;
  return detail::check_chunk_indices(args.attended, args.read);
}

}}  // namespace skim::v0_2
