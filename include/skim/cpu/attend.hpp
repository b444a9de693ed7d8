// SPDX-License-Identifier: Apache-2.0
/// \file Attention over given index lists on the CPU: `cpu::attend<Accumulate>`.
#pragma once

#include <skim/cpu/kernel/attend.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Attention of a chunk to the past keys that somebody's lists name, and to its own. It does not know who chose them.
///
/// Storage f32, f16, bf16, q8_0 or int8, of K and V apart; logits, softmax and output accumulate in f32. With `widen_fma`
/// an output differs from exact arithmetic on the stored values by at most
/// (expm1(2 delta) + 2^-24 (32 + n / 16)) sum_j p_j |v_j|, where delta = 2^-24 (D + 8) A, A is the row's largest
/// `scale * sum_d |q_d k_d|` and n its number of keys; biases, slopes and sinks add to it (testing/attention_truth.hpp,
/// which has the bounds of `dot_pairs` too), as does 2^-125 sum_j |v_j|, since weights below 2^-126 of the largest count
/// as 0, and 16-bit outputs their rounding.
/// On standard normal data the NMSE of 64 outputs or more is below 1e-10.
///
/// Nothing here allocates, throws or starts a thread. `out` and `lse` must not overlap the inputs or each other. With
/// equal arguments every executor and every number of workers gives the same bits; so does a sequence alone, in any batch,
/// and as a block of a longer call.
template <class Accumulate = accumulate::widen_fma>
struct attend {
  Accumulate accumulate{};

  /// O(1) (O(sequences) for several): reads no pointer but the sequence descriptors and a batch's numbers.
  report check(const attention_args& args) const {
    if (report r = skim::check(args); !r) return r;
    return detail::check_batch_indices(args);  // which kernels read; they do not look at block tables
  }
  /// The same before there is memory: pointers to tensors and tables may be null.
  report check_shape(const attention_args& args) const { return skim::check_shape(args); }

  /// Scratch of `run`, for lists of any content; 64-byte aligned, any contents. A call with fewer rows, tokens, sequences or
  /// workers needs no more. 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const attention_args& args, std::int64_t block_rows, unsigned workers) const {
    if (!check_shape(args) || sequence_count(args) == 0) return 0;
    return detail::attend_bytes(args, block_rows, workers);
  }

  /// Of attending to as many past keys per KV head and block as the lists have room for.
  cost_estimate cost(const attention_args& args, const index_lists& lists) const {
    cost_estimate total;
    for_each_block(args, lists.block_rows, [&](const attention_sequence& block, std::int64_t) {
      total = total + attend_cost(args, block, detail::smaller(block.Tk(), lists.capacity));
    });
    return total;
  }

  /// Valid list contents are its precondition (`check_indices`). Statuses: those of `check`, short_workspace.
  report run(const attention_args& args, const index_lists& lists, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    report answer;
    answer.taken = path::sparse;
    if (sequence_count(args) == 0) return answer;
    if (report r = detail::check_range("lists.block_rows", lists.block_rows, 0, detail::largest_index); !r) return r;
    if (report r = detail::check_room(lists, list_rows(args, lists.block_rows), 0); !r) return r;
    const std::size_t needed = detail::attend_bytes(args, lists.block_rows, executor.concurrency());
    if (report r = detail::check_workspace(workspace, needed); !r) return r;
    detail::attend_keys<Accumulate>(args, &lists, lists.block_rows, workspace.data, executor);
    return answer;
  }
};

template <class Accumulate>
attend(Accumulate) -> attend<Accumulate>;

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
