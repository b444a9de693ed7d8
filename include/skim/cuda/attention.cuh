// SPDX-License-Identifier: Apache-2.0
/// \file The attention operation on a GPU: `cuda::attention<Selector>`.
#pragma once

#include <skim/cuda/attend.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/policy.hpp>
#include <skim/selector/dense.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Attention of a chunk over the keys that `Selector` chooses, as `cpu::attention`: `run` is `select`, then `attend`. What
/// arguments point to, lists and workspace are memory of the device; see `cuda::attend`.
///
/// The host's most decides what is dense: a call where no block could leave anything out if it had `kv.tokens`, and of a batch
/// `most_rows`; and a block by its sequence's `kv.tokens`, whatever `lengths` say, or by the batch's own `tokens`. So a graph
/// that was captured for a long cache stays sparse while that is short, but that a budget which covers a head's past lists all
/// of it; one that was captured for a short cache stays dense. A replay has the bits of a call with as few `kv.tokens` where
/// both judge alike, and where the budget covers the past unless a window hides some of it: then sums are cut elsewhere.
///
/// `select` numbers a batch's lists by the blocks that there are, and leaves the rows behind them empty. A sequence of a batch
/// has the bits that it has alone if `every` is set, or if the kernels for blocks of `most_rows` are those for its own; its
/// keys are read once for each block of rows, not for four of them.
template <class Selector = dense>
struct attention {
  Selector selector{};

  using kernel = score_kernel<Selector>;

  launch_report check(const attention_args& args) const {
    if (launch_report r = cuda::attend{}.check(args); !r) return r;
    return check_selector(args);
  }
  launch_report check_shape(const attention_args& args) const {
    if (launch_report r = cuda::attend{}.check_shape(args); !r) return r;
    return check_selector(args);
  }

  /// Rows of q that choose together: `block_rows` of lists for `select`. 0 = all of a sequence.
  std::int64_t block_rows() const { return selector.keep.every; }

  /// The row length that lists for `select` need.
  std::int64_t list_capacity(const attention_args& args) const {
    return sequence_count(args) == 0 ? 0
                                     : skim::list_capacity(selector.keep, most_tokens(args), detail::measured_crossing);
  }

  /// Scratch of `run` and `select` on the device. 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const attention_args& args) const { return check_shape(args) ? bytes_needed(args) : 0; }

  launch_report run(const attention_args& args, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check(args); !r) return r;
    if (report r = skim::detail::check_workspace(workspace, bytes_needed(args)); !r) return r;
    detail::launcher launch(stream);
    const bool dense = runs_dense(args);
    if (dense) {
      detail::attend_keys(args, nullptr, block_rows(), workspace.data, launch);
    } else {
      skim::detail::arena arena(workspace.data);
      const index_lists lists = lists_in(args, arena);
      void* const rest = static_cast<char*>(workspace.data) + arena.used();
      select_lists(args, lists, rest, launch);
      detail::attend_keys(args, &lists, lists.block_rows, rest, launch);
    }
    launch_report answer(report{}, launch.error());
    answer.taken = dense ? path::dense : path::sparse;
    return answer;
  }

  /// Writes the slots that each block reads to `lists`, whose `block_rows` are ours.
  launch_report select(const attention_args& args, const index_lists& lists, memory workspace,
                       cudaStream_t stream) const {
    using namespace skim::detail;
    if (launch_report r = check(args); !r) return r;
    if (report r = check_workspace(workspace, bytes_needed(args)); !r) return r;
    if (lists.block_rows != block_rows()) {
      return fault(status::bad_value, "lists.block_rows", lists.block_rows, block_rows());
    }
    if (report r = check_room(lists, list_rows(args, lists.block_rows), list_capacity(args)); !r) return r;
    detail::launcher launch(stream);
    select_lists(args, lists, workspace.data, launch);
    launch_report answer(report{}, launch.error());
    answer.taken = path::sparse;
    return answer;
  }

 private:
  launch_report check_selector(const attention_args& args) const {
    if (sequence_count(args) == 0) return report{};
    if (report r = skim::check(selector.keep); !r) return r;
    if (report r = selector.check(args); !r) return r;
    return kernel::check(selector, args);
  }

  /// Every block has nothing to leave out, as far as the host knows.
  bool runs_dense(const attention_args& args) const {
    if (detail::is_batch(args)) {
      return skim::runs_dense(selector.keep, args.kv.tokens, args.batch.most_rows, detail::measured_crossing);
    }
    bool all = true;
    for_each_block(args, block_rows(), [&](const attention_sequence& block, std::int64_t) {
      all &= skim::runs_dense(selector.keep, block.Tk(), block.Tq, detail::measured_crossing);
    });
    return all;
  }

  index_lists lists_in(const attention_args& args, skim::detail::arena& arena) const {
    index_lists lists;
    lists.block_rows = block_rows();
    lists.rows = list_rows(args, lists.block_rows);
    lists.capacity = list_capacity(args);
    lists.indices = arena.template take<std::int32_t>(lists.rows * lists.capacity);
    lists.counts = arena.template take<std::int32_t>(lists.rows);
    return lists;
  }

  std::size_t bytes_needed(const attention_args& args) const {
    if (sequence_count(args) == 0) return 0;
    skim::detail::arena arena;
    static_cast<void>(lists_in(args, arena));
    const std::size_t select = kernel::workspace_bytes(selector, args);
    const std::size_t attend = detail::attend_bytes(args, block_rows());
    return arena.used() + (select > attend ? select : attend);
  }

  void select_lists(const attention_args& args, const index_lists& lists, void* workspace,
                    detail::launcher& launch) const {
    std::int64_t list_row = 0;
    for (std::int64_t s = 0; s < detail::known_sequences(args); ++s) {
      const attention_sequence sequence = detail::known_sequence(args, s);
      kernel::select(selector, args, sequence, lists, list_row, workspace, launch);
      list_row += block_count(sequence.Tq, block_rows()) * sequence.kv.heads;
    }
  }
};

/// Everything: `cuda::attend` without lists.
template <>
struct attention<dense> {
  dense selector{};

  launch_report check(const attention_args& args) const { return cuda::attend{}.check(args); }
  launch_report check_shape(const attention_args& args) const { return cuda::attend{}.check_shape(args); }
  std::size_t workspace_bytes(const attention_args& args) const { return cuda::attend{}.workspace_bytes(args); }
  launch_report run(const attention_args& args, memory workspace, cudaStream_t stream) const {
    return cuda::attend{}.run(args, workspace, stream);
  }
};

template <class Selector>
attention(Selector) -> attention<Selector>;

}}}  // namespace skim::v0_2::cuda
