// SPDX-License-Identifier: Apache-2.0
/// \file Attention over given index lists on a GPU: `cuda::attend`.
#pragma once

#include <skim/cuda/kernel/attend.cuh>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Attention of a chunk to the past keys that somebody's lists name, and to its own, as `cpu::attend`. Arguments are the
/// same; what they point to is memory of the device, but for `sequences` and `offsets`, which the host reads.
///
/// f16 and bf16 caches of one type for K and V, 16-byte aligned rows and a head dimension of 64, 80, 96, 128, 192 or 256 go
/// through tensor cores: q is rounded to the cache's type, products are exact, sums f32, and the softmax's weights are
/// rounded to the cache's type before they meet values. Beside q's rounding an output differs from exact arithmetic by at
/// most (expm1(2 delta) + u + 2^-22 (32 + n / 16)) sum_j p_j |v_j|, delta = 2^-22 (D + 8) A, A the row's largest
/// `scale * sum_d |q_d k_d|`, n its number of keys, u 2^-8 for bf16 and 2^-11 for f16; f16 weights lose 2^-25 each. Values of
/// keys that the mask hides from some rows of a tile, not from all, must be finite. All else is multiplied in f32 and held to
/// the bound of `cpu::attend` with 2^-22 in place of 2^-24.
///
/// Nothing is allocated or synchronised: calls may be captured in a graph. Equal arguments give equal bits, and a sequence
/// those that it has alone or in any batch. Not supported, and refused by name: bias, slopes.
///
/// One graph serves a growing cache: kernels read `kv.lengths`, tables, positions, lists and a batch's arrays when they run,
/// and cuts follow from what those say, so that a replay has the bits of a call that was made for it. The host reads none of
/// them: `kv.tokens` is then the most tokens that a head has, from which follow the scratch, the grid, and what `check` says.
/// Whether arrays are valid, `cuda::check_indices` finds out on the device.
///
/// Sequences of a `kv_batch` are attended to in one launch, or in several where results of splits would fill more than 256 MiB
/// of scratch. Lists are numbered on the device by the blocks that there are, as tier 0 says: those of a sequence stand behind
/// those of the sequences before it, and rows behind the last are not read. Tables of all sequences have 2^30 slots at most.
struct attend {
  /// Reads no pointer but the sequence descriptors.
  launch_report check(const attention_args& args) const {
    if (report r = skim::check(args); !r) return r;
    return detail::check_limits(args);
  }
  launch_report check_shape(const attention_args& args) const {
    if (report r = skim::check_shape(args); !r) return r;
    return detail::check_limits(args);
  }

  /// Scratch of `run` on the device, for lists of any content; 64-byte aligned, any contents. 0 for what `check_shape`
  /// refuses.
  std::size_t workspace_bytes(const attention_args& args, std::int64_t block_rows = 0) const {
    return check_shape(args) ? detail::attend_bytes(args, block_rows) : 0;
  }

  /// Enqueues attention to the listed keys. Valid list contents are its precondition.
  launch_report run(const attention_args& args, const index_lists& lists, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check(args); !r) return r;
    if (report r = skim::detail::check_range("lists.block_rows", lists.block_rows, 0, skim::detail::largest_index);
        !r) {
      return r;
    }
    if (report r = skim::detail::check_room(lists, list_rows(args, lists.block_rows), 0); !r) return r;
    return enqueue(args, &lists, lists.block_rows, workspace, stream, path::sparse);
  }

  /// Enqueues attention to everything.
  launch_report run(const attention_args& args, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check(args); !r) return r;
    return enqueue(args, nullptr, 0, workspace, stream, path::dense);
  }

 private:
  static launch_report enqueue(const attention_args& args, const index_lists* lists, std::int64_t block_rows,
                               memory workspace, cudaStream_t stream, path taken) {
    const std::size_t needed = detail::attend_bytes(args, block_rows);
    if (report r = skim::detail::check_workspace(workspace, needed); !r) return r;
    detail::launcher launch(stream);
    detail::attend_keys(args, lists, block_rows, workspace.data, launch);
    launch_report answer(report{}, launch.error());
    answer.taken = taken;
    return answer;
  }
};

}}}  // namespace skim::v0_2::cuda
