// SPDX-License-Identifier: Apache-2.0
/// \file The attention operation on the CPU: `cpu::attention<Selector, Accumulate>`.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/attend.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/selector.hpp>
#include <skim/cpu/selector/dense.hpp>
#include <skim/index_lists.hpp>
#include <skim/math/accumulate.hpp>
#include <skim/workspace.hpp>

#include <utility>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// `skim::check`, inlined once into a function of this feature set.
SKIM_NOINLINE inline report check_arguments(const attention_args& args) {
  return skim::check(args);
}

}  // namespace detail

/// Attention of a chunk over the keys that `Selector` chooses. A plain value; make one per layer.
///
/// Storage f32, f16 or bf16; logits, softmax and output accumulate in f32. With `widen_fma` an output differs from exact
/// arithmetic on the stored values by at most (expm1(2 delta) + 2^-24 (32 + n / 16)) sum_j p_j |v_j|, where
/// delta = 2^-24 (D + 8) A, A is the row's largest `scale * sum_d |q_d k_d|` and n its number of keys; NMSE <= 1e-10
/// over 64 outputs or more; 16-bit outputs add their rounding. `dot_pairs`: see there (bounds by element:
/// testing/attention_truth.hpp).
///
/// Nothing here allocates, throws or starts a thread. `out` and `lse` must not overlap the inputs or each other. With
/// equal arguments every executor and every number of workers gives the same bits.
template <class Selector = dense, class Accumulate = accumulate::widen_fma>
struct attention {
  Selector selector{};
  Accumulate accumulate{};

  using kernel = selector_kernel<Selector>;

  /// O(1) (O(sequences) for several): reads no pointer but the sequence descriptors.
  report check(const attention_args& args) const {
    if (report r = detail::check_arguments(args); !r) return r;
    if (sequence_count(args) == 0) return {};
    return kernel::check(selector, args);
  }

  /// Bytes that the selector keeps between calls, per layer.
  std::size_t state_bytes(const attention_args& args) const {
    return sequence_count(args) == 0 ? 0 : kernel::state_bytes(selector, args);
  }

  /// Scratch for `run`, `select` and `attend` with at most `workers` workers; 64-byte aligned, any contents. Grows with Tk.
  std::size_t workspace_bytes(const attention_args& args, unsigned workers) const {
    if (sequence_count(args) == 0) return 0;
    const std::size_t attend = detail::attend_bytes<Accumulate>(args, workers);
    if (runs_dense(args)) return attend;
    const std::size_t select = kernel::workspace_bytes(selector, args, workers);
    return lists_in(args, nullptr).second + (select > attend ? select : attend);
  }

  /// The row length that lists for `select` need.
  std::int64_t list_capacity(const attention_args& args) const {
    return sequence_count(args) == 0 ? 0 : kernel::list_capacity(selector, args);
  }

  cost_estimate cost(const attention_args& args) const {
    const bool all = runs_dense(args);
    cost_estimate total = all ? cost_estimate{} : kernel::cost(selector, args);
    for (std::int64_t s = 0; s < sequence_count(args); ++s) {
      const std::int64_t Tk = sequence_at(args, s).Tk();
      total = total + attend_cost(args, s, all ? Tk : detail::smaller(Tk, list_capacity(args)));
    }
    return total;
  }

  /// Selects, then attends; the report says whether anything was left out. Statuses: those of `check`, short_workspace,
  /// short_state.
  report run(const attention_args& args, memory state, memory workspace, executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (sequence_count(args) == 0 || runs_dense(args)) {
      if (sequence_count(args) > 0) detail::attend<Accumulate>(args, nullptr, workspace.data, executor);
      return taken(path::dense);
    }
    const auto [lists, used] = lists_in(args, workspace.data);
    const memory rest{static_cast<char*>(workspace.data) + used, workspace.bytes - used};
    kernel::select(selector, args, lists, state, rest, executor);
    detail::attend<Accumulate>(args, &lists, rest.data, executor);
    return taken(path::sparse);
  }

  /// Writes the slots that the chunk reads to `lists`, whose capacity is at least `list_capacity(args)`.
  report select(const attention_args& args, const index_lists& lists, memory state, memory workspace,
                executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (sequence_count(args) == 0) return taken(path::sparse);
    if (report r = detail::check_room(lists, list_rows(args), list_capacity(args)); !r) return r;
    kernel::select(selector, args, lists, state, workspace, executor);
    return taken(path::sparse);
  }

  /// Attends to the listed past keys and the chunk's own. Valid list contents are its precondition (`check_indices`).
  report attend(const attention_args& args, const index_lists& lists, memory workspace,
                executor_ref executor) const {
    if (report r = detail::check_arguments(args); !r) return r;
    if (sequence_count(args) == 0) return taken(path::sparse);
    if (report r = detail::check_room(lists, list_rows(args), 0); !r) return r;
    const std::size_t needed = detail::attend_bytes<Accumulate>(args, executor.concurrency());
    if (report r = detail::check_workspace(workspace, needed); !r) return r;
    detail::attend<Accumulate>(args, &lists, workspace.data, executor);
    return taken(path::sparse);
  }

 private:
  /// Every sequence has nothing to leave out. Otherwise all go through the lists, where a short sequence's hold all keys.
  bool runs_dense(const attention_args& args) const {
    for (std::int64_t s = 0; s < sequence_count(args); ++s) {
      if (!kernel::runs_dense(selector, args, sequence_at(args, s).Tk())) return false;
    }
    return true;
  }

  /// The lists of a `run`, at the front of its workspace, and the bytes they take.
  std::pair<index_lists, std::size_t> lists_in(const attention_args& args, void* workspace) const {
    detail::arena arena(workspace);
    index_lists lists;
    lists.rows = list_rows(args);
    lists.capacity = list_capacity(args);
    lists.indices = arena.take<std::int32_t>(lists.rows * lists.capacity);
    lists.counts = arena.take<std::int32_t>(lists.rows);
    return {lists, arena.used()};
  }

  static std::int64_t list_rows(const attention_args& args) { return sequence_count(args) * first_view(args).heads; }

  static report taken(path way) {
    report r;
    r.taken = way;
    return r;
  }

  report check_call(const attention_args& args, memory state, memory workspace, unsigned workers) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_workspace(workspace, workspace_bytes(args, workers)); !r) return r;
    return detail::check_state(state, state_bytes(args));
  }
};

template <class Selector>
attention(Selector) -> attention<Selector>;
template <class Selector, class Accumulate>
attention(Selector, Accumulate) -> attention<Selector, Accumulate>;

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
