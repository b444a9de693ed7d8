// SPDX-License-Identifier: Apache-2.0
/// \file The FFN operation on the CPU: `cpu::ffn<NeuronSelector, Accumulate>`.
#pragma once

#include <skim/cpu/kernel/compute_neurons.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/neuron_selector/all_neurons.hpp>
#include <skim/math/order.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

namespace detail {

template <class P>
using neuron_keep_member = decltype(neuron_retention{std::declval<const P&>().keep});
/// Named where a header of the library specialises `score_kernel`.
template <class P>
using library_score = decltype(&score_kernel<P>::score);

template <class P>
inline constexpr bool has_score = has<score_member, P, ffn_args, executor_ref> || has<library_score, P>;

/// A list out of order would read weights that are not there, and looking costs nothing beside multiplying.
SKIM_NOINLINE inline report check_lists(const index_lists& lists, std::int64_t f) {
  return check_neurons(lists, f);
}

/// Lists the `count` highest of `scores` [f], ties to the lower neuron, or all. Returns how many.
SKIM_NOINLINE inline std::int64_t choose_neurons(const float* scores, std::int64_t f, std::int64_t count,
                                                 const rank_scratch& scratch, std::int32_t* list) {
  std::int64_t length = 0;
  const auto take = [&](std::int64_t j) SKIM_LAMBDA_INLINE { list[length++] = static_cast<std::int32_t>(j); };
  if (count >= f) {
    for (std::int64_t j = 0; j < f; ++j) take(j);
    return length;
  }
  rank_scores(scores, f, scratch.ranks);
  const stored_ranks rank{scratch.ranks};
  take_above(rank, f, find_threshold(rank, f, count, scratch.histogram), take);
  return length;
}

}  // namespace detail

/// The FFN of blocks of tokens, each on the neurons that `NeuronSelector` names for it. A plain value; make one per layer.
///
/// The steps are public, together they are `run`: `score` gives every neuron of every block a score, `choose` takes the
/// highest of those blocks that are not dense, `compute` is the FFN of the chosen ones, `compensate` adds to the same
/// blocks what the policy says of the rest.
///
/// Storage: any stored types; sums accumulate in f32. With `widen_fma` an output differs from exact arithmetic on the
/// stored values by no more than testing/ffn_truth.hpp says; with `dot_pairs` (bf16 weights) inputs and neuron values are
/// rounded to bf16; 16-bit outputs add their rounding. On normal data the NMSE of 64 outputs or more is below 1e-10, with
/// `dot_pairs` below 5e-5.
///
/// Nothing here allocates, throws or starts a thread. `out` must not overlap the inputs. With equal arguments every
/// executor and every number of workers gives the same bits, a list of all neurons gives those of the dense FFN, and a
/// call of several blocks those of calls for each.
template <class NeuronSelector = all_neurons, class Accumulate = accumulate::widen_fma>
struct ffn {
  static_assert(detail::has<detail::neuron_keep_member, NeuronSelector>,
                "a neuron selector needs a member: neuron_retention keep");
  static_assert(detail::has<skim::detail::check_member, NeuronSelector, ffn_args>,
                "a neuron selector needs: report check(const ffn_args&) const");
  static_assert(detail::has_score<NeuronSelector>,
                "a neuron selector needs: void score(const ffn_args&, tensor_view<float, 2> scores, memory state, "
                "memory workspace, executor_ref) const; one of the library: its header in skim/cpu/neuron_selector");

  NeuronSelector selector{};
  Accumulate accumulate{};

  using kernel = score_kernel<NeuronSelector>;

  /// O(1), O(prompts) for several; follows no pointer but `prompts`.
  report check(const ffn_args& args) const { return check_all(args, pointers::required); }

  /// The same before there is memory: pointers may be null, those of the policy's own tensors too where its `check` takes
  /// `pointers`.
  report check_shape(const ffn_args& args) const { return check_all(args, pointers::ignored); }

  /// What makes up for the neurons that sparse blocks leave out; empty if the policy has none.
  neuron_compensator compensator() const {
    if constexpr (detail::has<detail::compensator_member, NeuronSelector>) return selector.compensator;
    return {};
  }

  /// Bytes that the policy keeps between calls, per layer; 0 for what `check_shape` refuses.
  std::size_t state_bytes(const ffn_args& args) const { return check_shape(args) ? bytes_of_state(args) : 0; }

  /// Scratch of `run` and of each step with at most `workers` workers; 64-byte aligned, any contents. It holds the values
  /// of all neurons for up to 512 tokens, and scores and lists for each block. Never larger for fewer tokens, blocks or
  /// workers; 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const ffn_args& args, unsigned workers) const {
    return check_shape(args) ? bytes_of_workspace(args, workers > 0 ? workers : 1) : 0;
  }

  /// The row length that lists for `choose` need: f if a block is dense.
  std::int64_t list_capacity(const ffn_args& args) const {
    std::int64_t longest = 0;
    for_each_block(args,
                   [&](const ffn_args& block, std::int64_t) { longest = detail::greater(longest, neurons_of(block)); });
    return longest;
  }

  cost_estimate cost(const ffn_args& args) const {
    cost_estimate total = leaves_out(args) ? cost_of(selector, args) : cost_estimate{};
    for_each_block(args, [&](const ffn_args& block, std::int64_t) {
      if (!is_dense(block)) total = total + ffn_cost(block, neurons_of(block));
    });
    for_rows(args, true, [&](const ffn_args& dense) { total = total + ffn_cost(dense, args.up.extents[0]); });
    if (!compensates(compensator())) return total;
    for_rows(args, false, [&](const ffn_args& some) { total = total + compensation_cost(compensator(), some); });
    return total;
  }

  /// Makes the state that of a prompt's beginning. Statuses: those of `check`, short_state.
  report reset(const ffn_args& args, memory state, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_state(state, bytes_of_state(args)); !r) return r;
    kernel::reset(selector, args, state, executor);
    return {};
  }

  /// Computes all blocks, dense those of which `keep` says so; the report says whether any was not. Statuses: those of
  /// `check`, short_workspace, short_state.
  report run(const ffn_args& args, memory state, memory workspace, executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor); !r) return r;
    report answer;
    answer.taken = leaves_out(args) ? path::sparse : path::dense;
    if (args.x.extents[0] == 0) return answer;
    const std::int64_t f = args.up.extents[0];
    detail::arena arena(workspace.data);
    tensor_view<float, 2> scores;
    index_lists lists;
    if (answer.taken == path::sparse) {
      scores = take_scores(arena, args);
      lists = take_lists(arena, args);
    }
    const memory rest{static_cast<char*>(workspace.data) + arena.used(), workspace.bytes - arena.used()};
    score_blocks(args, scores, state, rest, executor);
    if (answer.taken == path::sparse) choose_lists(args, scores, lists, rest.data, executor);
    for_rows(args, true, [&](const ffn_args& dense) { compute_list(dense, nullptr, f, rest.data, executor); });
    for_each_block(args, [&](const ffn_args& block, std::int64_t index) {
      if (!is_dense(block)) compute_list(block, lists.row(index), neurons_of(block), rest.data, executor);
    });
    add_compensation(args, rest.data, executor);
    return answer;
  }

  /// scores [blocks, f]: what the policy thinks of each neuron for each block, dense or not; the highest are computed.
  /// Statuses: those of `run`.
  report score(const ffn_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
               executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor); !r) return r;
    if (report r = check_scores(args, scores); !r) return r;
    if (report r = detail::check_apart(scores, "scores"); !r) return r;
    kernel::score(selector, args, scores, state, workspace, executor);
    return {};
  }

  /// Writes a list row for each block: the neurons of highest score, as many as the policy keeps, ascending, ties to the
  /// lower one, NaN last; for a dense block all neurons. `lists` has rows of at least `list_capacity(args)`. Statuses:
  /// those of `check`, short_workspace, and bad_extent for scores or lists of another shape.
  report choose(const ffn_args& args, tensor_view<const float, 2> scores, const index_lists& lists, memory workspace,
                executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor); !r) return r;
    if (report r = check_scores(args, scores); !r) return r;
    if (report r = detail::check_room(lists, block_count(args), list_capacity(args)); !r) return r;
    choose_lists(args, scores, lists, workspace.data, executor);
    return {};
  }

  /// out = the FFN of each block's listed neurons, zeros for an empty list. Statuses: those of `check`, short_workspace,
  /// bad_extent for lists of another shape, and bad_index for one that does not ascend within [0, f).
  report compute(const ffn_args& args, const index_lists& lists, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor); !r) return r;
    if (report r = detail::check_room(lists, block_count(args), 0); !r) return r;
    if (report r = detail::check_lists(lists, args.up.extents[0]); !r) return r;
    for_each_block(args, [&](const ffn_args& block, std::int64_t index) {
      compute_list(block, lists.row(index), lists.counts[index], workspace.data, executor);
    });
    report answer;
    answer.taken = path::sparse;
    return answer;
  }

  /// out += the policy's compensation of the blocks that are not dense; nothing where it has none. Statuses: those of
  /// `check`, short_workspace.
  report compensate(const ffn_args& args, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor); !r) return r;
    add_compensation(args, workspace.data, executor);
    return {};
  }

 private:
  bool is_dense(const ffn_args& block) const { return runs_dense(selector.keep, block); }

  /// How many neurons a block computes.
  std::int64_t neurons_of(const ffn_args& block) const {
    const std::int64_t f = block.up.extents[0];
    return is_dense(block) ? f : detail::smaller(neuron_retention(selector.keep).neurons(f), f);
  }

  /// True if some block is not dense.
  bool leaves_out(const ffn_args& args) const {
    bool some = false;
    for_each_block(args, [&](const ffn_args& block, std::int64_t) { some = some || !is_dense(block); });
    return some;
  }

  /// Calls `body(rows)` with the rows of blocks that follow each other and are all dense, or all not.
  template <class Body>
  void for_rows(const ffn_args& args, bool dense, const Body& body) const {
    std::int64_t first = 0, end = 0;
    const auto pass = [&] {
      ffn_args some = args;
      some.x = rows(args.x, first, end - first);
      some.out = rows(args.out, first, end - first);
      if (end > first) body(some);
    };
    for_each_block(args, [&](const ffn_args& block, std::int64_t) {
      if (is_dense(block) != dense) {
        pass();
        first = end + block.x.extents[0];
        end = first;
      } else {
        end += block.x.extents[0];
      }
    });
    pass();
  }

  /// Scores the sparse blocks and shows the policy the dense ones. One that keeps a state gets them in turn.
  void score_blocks(const ffn_args& args, const tensor_view<float, 2>& scores, memory state, memory workspace,
                    executor_ref executor) const {
    if (bytes_of_state(args) == 0) {
      if (leaves_out(args)) kernel::score(selector, args, scores, state, workspace, executor);
      return;
    }
    for_each_block(args, [&](const ffn_args& block, std::int64_t index) {
      if (!is_dense(block)) {
        kernel::score(selector, block, rows(scores, index, 1), state, workspace, executor);
      } else if (block.x.extents[0] > 0) {
        kernel::observe(selector, block, state, workspace, executor);
      }
    });
  }

  void choose_lists(const ffn_args& args, const tensor_view<const float, 2>& scores, const index_lists& lists,
                    void* workspace, executor_ref executor) const {
    const std::int64_t f = args.up.extents[0];
    const std::size_t bytes = choice_bytes(f);
    parallel_for_blocks(args, executor, [&](const ffn_args& block, std::int64_t index, unsigned worker) {
      detail::arena arena(detail::worker_piece(workspace, bytes, worker));
      const detail::rank_scratch scratch(arena, f);
      const std::int64_t length =
          detail::choose_neurons(scores.at(index), f, neurons_of(block), scratch, lists.row(index));
      lists.counts[index] = static_cast<std::int32_t>(length);
    });
  }

  void compute_list(const ffn_args& some, const std::int32_t* list, std::int64_t count, void* workspace,
                    executor_ref executor) const {
    simd::with_math(accumulate, some.up.type, [&](auto math) {
      detail::compute_neurons<decltype(math)>(some, list, count, workspace, executor);
    });
  }

  void add_compensation(const ffn_args& args, void* workspace, executor_ref executor) const {
    const neuron_compensator added = compensator();
    if (!compensates(added)) return;
    for_rows(args, false, [&](const ffn_args& some) {
      simd::with_math(accumulate, added.c1.type,
                      [&](auto math) { detail::compensate_neurons<decltype(math)>(some, added, workspace, executor); });
    });
  }

  static std::size_t choice_bytes(std::int64_t f) {
    detail::arena arena;
    detail::rank_scratch(arena, f);
    return arena.used();
  }

  /// What `run` keeps between its steps, at the front of its workspace.
  static tensor_view<float, 2> take_scores(detail::arena& arena, const ffn_args& args) {
    const std::int64_t blocks = block_count(args), f = args.up.extents[0];
    return {arena.take<float>(blocks * f), {blocks, f}};
  }
  static index_lists take_lists(detail::arena& arena, const ffn_args& args) {
    index_lists lists;
    lists.rows = block_count(args);
    lists.capacity = args.up.extents[0];
    lists.indices = arena.take<std::int32_t>(lists.rows * lists.capacity);
    lists.counts = arena.take<std::int32_t>(lists.rows);
    return lists;
  }

  std::size_t bytes_of_state(const ffn_args& args) const { return kernel::state_bytes(selector, args); }

  std::size_t bytes_of_workspace(const ffn_args& args, unsigned workers) const {
    const std::int64_t f = args.up.extents[0];
    std::size_t step = detail::compute_bytes(accumulate, args, args.up.type, f, workers);
    const auto longest = [&step](std::size_t bytes) { step = bytes > step ? bytes : step; };
    longest(kernel::workspace_bytes(selector, args, workers));
    longest(choice_bytes(f) * workers);
    if (const neuron_compensator added = compensator(); compensates(added)) {
      longest(detail::compute_bytes(accumulate, args, added.c1.type, added.c1.extents[1], workers));
    }
    detail::arena arena;
    if (neuron_retention(selector.keep).neurons(f) < f) {
      take_scores(arena, args);
      take_lists(arena, args);
    }
    return arena.used() + step;
  }

  report check_all(const ffn_args& args, pointers given) const {
    if (report r = skim::check(args, given); !r) return r;
    if (report r = skim::check(compensator(), args.x.extents[1], given); !r) return r;
    if (report r = skim::check(neuron_retention(selector.keep)); !r) return r;
    return skim::detail::check_selector(selector, args, given);
  }

  report check_workspace(const ffn_args& args, memory workspace, executor_ref executor) const {
    return detail::check_workspace(workspace, bytes_of_workspace(args, executor.concurrency()));
  }

  report check_call(const ffn_args& args, memory state, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = check_workspace(args, workspace, executor); !r) return r;
    return detail::check_state(state, bytes_of_state(args));
  }

  static report check_scores(const ffn_args& args, const tensor_view<const float, 2>& scores) {
    if (report r = detail::check_tensor(scores, "scores"); !r) return r;
    if (report r = detail::check_extent(scores, 0, block_count(args), "scores"); !r) return r;
    return detail::check_extent(scores, 1, args.up.extents[0], "scores");
  }
};

template <class NeuronSelector>
ffn(NeuronSelector) -> ffn<NeuronSelector>;
template <class NeuronSelector, class Accumulate>
ffn(NeuronSelector, Accumulate) -> ffn<NeuronSelector, Accumulate>;

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
