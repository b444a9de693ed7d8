// SPDX-License-Identifier: Apache-2.0
/// \file The FFN operation on the CPU: `cpu::ffn<NeuronSelector, Accumulate>`.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/compute_neurons.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/neuron_selector.hpp>
#include <skim/cpu/neuron_selector/all_neurons.hpp>
#include <skim/ffn.hpp>
#include <skim/index_lists.hpp>
#include <skim/math/accumulate.hpp>
#include <skim/math/order.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// `skim::check`, inlined once into a function of this feature set.
SKIM_NOINLINE inline report check_ffn(const ffn_args& args) {
  return skim::check(args);
}

/// A list out of order would read weights that are not there, and looking costs nothing beside multiplying.
SKIM_NOINLINE inline report check_list(const index_lists& lists, std::int64_t f) {
  return check_neurons(lists, f);
}

/// The `count` highest of `scores`, 1 <= count < f; ties to the lower neuron.
SKIM_NOINLINE inline void choose_neurons(const tensor_view<const float, 1>& scores, std::int64_t count,
                                         const index_lists& lists, const rank_scratch& scratch) {
  const std::int64_t f = scores.extents[0];
  for (std::int64_t j = 0; j < f; ++j) scratch.ranks[j] = rank_bits(*scores.at(j));
  const auto rank = [&](std::int64_t j) SKIM_LAMBDA_INLINE { return scratch.ranks[j]; };
  std::int64_t length = 0;
  take_above(rank, f, find_threshold(rank, f, count, scratch.histogram),
             [&](std::int64_t j) SKIM_LAMBDA_INLINE { lists.indices[length++] = static_cast<std::int32_t>(j); });
  lists.counts[0] = static_cast<std::int32_t>(length);
}

}  // namespace detail

/// The FFN of one block of tokens on the neurons that `NeuronSelector` names. A plain value; make one per layer.
///
/// The steps are public, together they are `run`: `predict` gives every neuron a score, `choose` takes the highest,
/// `compute` is the FFN of the chosen ones, `compensate` adds what the policy says of the rest.
///
/// Storage f32, f16 or bf16; sums accumulate in f32. With `widen_fma` an output differs from exact arithmetic on the
/// stored values by no more than testing/ffn_truth.hpp says, NMSE <= 1e-10 over 64 outputs or more; with `dot_pairs`
/// (bf16 weights) inputs and neuron values are rounded to bf16, NMSE <= 5e-5; 16-bit outputs add their rounding.
///
/// Nothing here allocates, throws or starts a thread. `out` must not overlap the inputs. With equal arguments every
/// executor and every number of workers gives the same bits, and a list of all neurons gives those of the dense FFN.
template <class NeuronSelector = all_neurons, class Accumulate = accumulate::widen_fma>
struct ffn {
  NeuronSelector selector{};
  Accumulate accumulate{};

  using kernel = neuron_selector_kernel<NeuronSelector>;

  /// O(1), follows no pointer.
  report check(const ffn_args& args) const {
    if (report r = detail::check_ffn(args); !r) return r;
    if (report r = skim::check(kernel::compensator(selector), args.x.extents[1]); !r) return r;
    return kernel::check(selector, args);
  }

  /// Bytes that the policy keeps between blocks, per layer.
  std::size_t state_bytes(const ffn_args& args) const { return kernel::state_bytes(selector, args); }

  /// Scratch of `run` and of each step with at most `workers` workers; 64-byte aligned, any contents. It holds the values
  /// of all neurons for up to 512 tokens.
  std::size_t workspace_bytes(const ffn_args& args, unsigned workers) const {
    const std::int64_t f = args.up.extents[0];
    std::size_t step = detail::compute_bytes(accumulate, args, args.up.type, f, workers);
    const auto longest = [&step](std::size_t bytes) { step = bytes > step ? bytes : step; };
    longest(kernel::workspace_bytes(selector, args, workers));
    detail::arena choosing;
    detail::rank_scratch(choosing, f);
    longest(choosing.used());
    const neuron_compensator compensator = kernel::compensator(selector);
    if (compensates(compensator)) {
      longest(detail::compute_bytes(accumulate, args, compensator.c1.type, compensator.c1.extents[1], workers));
    }
    detail::arena arena;
    call_scratch(arena, f);
    return arena.used() + step;
  }

  /// The row length that a list for `choose` needs.
  std::int64_t list_capacity(const ffn_args& args) const {
    return detail::smaller(kernel::keep(selector).neurons(args.up.extents[0]), args.up.extents[0]);
  }

  cost_estimate cost(const ffn_args& args) const {
    if (runs_dense(args)) return ffn_cost(args, args.up.extents[0]);
    cost_estimate total = kernel::cost(selector, args) + ffn_cost(args, list_capacity(args));
    if (const neuron_compensator compensator = kernel::compensator(selector); compensates(compensator)) {
      const double weights = 2 * static_cast<double>(compensator.c1.extents[1] * args.x.extents[1]);
      total = total + cost_estimate{2 * static_cast<double>(args.x.extents[0]) * weights,
                                    weights * static_cast<double>(element_bytes(compensator.c1.type))};
    }
    return total;
  }

  /// Makes the state that of a prompt's beginning. Statuses: those of `check`, short_state.
  report reset(const ffn_args& args, memory state, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_state(state, state_bytes(args)); !r) return r;
    kernel::reset(selector, args, state, executor);
    return {};
  }

  /// Computes the block: dense where the policy's `keep` says so. Statuses: those of `check`, short_workspace,
  /// short_state.
  report run(const ffn_args& args, memory state, memory workspace, executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    report answer;
    answer.taken = runs_dense(args) ? path::dense : path::sparse;
    if (args.x.extents[0] == 0) return answer;
    if (answer.taken == path::dense) {
      kernel::observe(selector, args, state, workspace, executor);
      compute_list(args, nullptr, args.up.extents[0], workspace.data, executor);
      return answer;
    }
    detail::arena arena(workspace.data);
    const call_scratch own(arena, args.up.extents[0]);
    const memory rest{static_cast<char*>(workspace.data) + arena.used(), workspace.bytes - arena.used()};
    kernel::predict(selector, args, own.scores, state, rest, executor);
    choose_list(args, own.scores, own.lists, rest.data, executor);
    compute_list(args, own.lists.indices, own.lists.counts[0], rest.data, executor);
    if (compensates(kernel::compensator(selector))) add_compensation(args, rest.data, executor);
    return answer;
  }

  /// scores [f]: what the policy thinks of each neuron for this block; the highest are computed.
  report predict(const ffn_args& args, tensor_view<float, 1> scores, memory state, memory workspace,
                 executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (report r = check_scores(args, scores); !r) return r;
    kernel::predict(selector, args, scores, state, workspace, executor);
    return {};
  }

  /// Writes the neurons of highest score, as many as the policy keeps, ascending, ties to the lower one, NaN last.
  /// `lists` is one row of at least `list_capacity(args)`.
  report choose(const ffn_args& args, tensor_view<const float, 1> scores, const index_lists& lists, memory workspace,
                executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor.concurrency()); !r) return r;
    if (report r = check_scores(args, scores); !r) return r;
    if (report r = detail::check_room(lists, 1, list_capacity(args)); !r) return r;
    choose_list(args, scores, lists, workspace.data, executor);
    return {};
  }

  /// out = the FFN of the listed neurons, zeros for an empty list. Statuses: those of `check`, short_workspace, and
  /// bad_index for a list that does not ascend within [0, f).
  report compute(const ffn_args& args, const index_lists& lists, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor.concurrency()); !r) return r;
    if (report r = detail::check_room(lists, 1, 0); !r) return r;
    if (report r = detail::check_list(lists, args.up.extents[0]); !r) return r;
    compute_list(args, lists.indices, lists.counts[0], workspace.data, executor);
    report answer;
    answer.taken = path::sparse;
    return answer;
  }

  /// out += the policy's compensation of this block; nothing where it has none.
  report compensate(const ffn_args& args, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor.concurrency()); !r) return r;
    if (compensates(kernel::compensator(selector))) add_compensation(args, workspace.data, executor);
    return {};
  }

 private:
  /// What `run` keeps between its steps, at the front of its workspace.
  struct call_scratch {
    tensor_view<float, 1> scores;
    index_lists lists;

    call_scratch(detail::arena& arena, std::int64_t f) {
      scores = tensor_view<float, 1>(arena.take<float>(f), {f});
      lists.rows = 1;
      lists.capacity = f;
      lists.indices = arena.take<std::int32_t>(f);
      lists.counts = arena.take<std::int32_t>(1);
    }
  };

  bool runs_dense(const ffn_args& args) const { return skim::runs_dense(kernel::keep(selector), args); }

  void choose_list(const ffn_args& args, tensor_view<const float, 1> scores, const index_lists& lists, void* workspace,
                   executor_ref executor) const {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      detail::arena arena(workspace);
      const detail::rank_scratch scratch(arena, args.up.extents[0]);
      detail::choose_neurons(scores, list_capacity(args), lists, scratch);
    });
  }

  void compute_list(const ffn_args& args, const std::int32_t* list, std::int64_t count, void* workspace,
                    executor_ref executor) const {
    detail::with_math(accumulate, args.up.type, [&](auto math) {
      detail::compute_neurons<decltype(math)>(args, list, count, workspace, executor);
    });
  }

  void add_compensation(const ffn_args& args, void* workspace, executor_ref executor) const {
    const neuron_compensator compensator = kernel::compensator(selector);
    detail::with_math(accumulate, compensator.c1.type, [&](auto math) {
      detail::compensate_neurons<decltype(math)>(args, compensator, workspace, executor);
    });
  }

  report check_workspace(const ffn_args& args, memory workspace, unsigned workers) const {
    return detail::check_workspace(workspace, workspace_bytes(args, workers));
  }

  report check_call(const ffn_args& args, memory state, memory workspace, unsigned workers) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, workers); !r) return r;
    return detail::check_state(state, state_bytes(args));
  }

  static report check_scores(const ffn_args& args, tensor_view<const float, 1> scores) {
    const std::int64_t f = args.up.extents[0];
    if (report r = detail::check_tensor(scores, {"scores.extents[0]", "scores.strides[0]", "scores.data"}); !r)
      return r;
    if (scores.extents[0] != f) return fault(status::bad_extent, "scores.extents[0]", scores.extents[0], f);
    return {};
  }
};

template <class NeuronSelector>
ffn(NeuronSelector) -> ffn<NeuronSelector>;
template <class NeuronSelector, class Accumulate>
ffn(NeuronSelector, Accumulate) -> ffn<NeuronSelector, Accumulate>;

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
