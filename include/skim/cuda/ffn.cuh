// SPDX-License-Identifier: Apache-2.0
/// \file The FFN operation on a GPU: `cuda::ffn<NeuronSelector>`.
#pragma once

#include <skim/cuda/arch/choose_in_cluster.cuh>
#include <skim/cuda/kernel/ffn.cuh>
#include <skim/cuda/kernel/predict.cuh>
#include <skim/cuda/neuron_selector/all_neurons.cuh>
#include <skim/policy.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {

/// The FFN of blocks of tokens, each on the neurons that `NeuronSelector` names for it, as `cpu::ffn`: `run` is `score` and
/// `choose`, of the blocks that are not dense, then `compute`, which adds the policy's compensation in the same sums
/// (FastForward, arXiv 2602.00397, section 3). Arguments are those of the CPU; what they point to, lists, scores and
/// workspace are memory of the device, but for `prompts`, which the host reads. Policies are those that have a header in
/// skim/cuda/neuron_selector.
///
/// f16 and bf16 weights with 16-byte aligned rows, d and the compensator's width multiples of 8, and one type for all of them
/// go through tensor cores: x is rounded to the weights' type if it has another, products are exact, sums f32, and a neuron's
/// value is rounded to the weights' type (f16's values must stay below 65504). Beside these an output differs from exact
/// arithmetic by what testing/ffn_truth.hpp says for sums of roundoff 2^-22. All else is multiplied in f32 and held to that
/// bound with 2^-24.
///
/// Nothing is allocated or synchronised: calls may be captured in a graph. Equal arguments give equal bits, a list of all
/// neurons those of the dense FFN, and a call of several blocks those of calls for each.
template <class NeuronSelector = all_neurons>
struct ffn {
  NeuronSelector selector{};

  using kernel = score_kernel<NeuronSelector>;

  /// O(1), O(prompts) for several; follows no pointer but `prompts`.
  launch_report check(const ffn_args& args) const { return check_all(args, pointers::required); }

  /// The same before there is memory.
  launch_report check_shape(const ffn_args& args) const { return check_all(args, pointers::ignored); }

  /// What makes up for the neurons that sparse blocks leave out; empty if the policy has none.
  neuron_compensator compensator() const {
    if constexpr (skim::detail::has<skim::detail::compensator_member, NeuronSelector>) return selector.compensator;
    return {};
  }

  /// No policy that has a kernel here keeps anything between calls.
  std::size_t state_bytes(const ffn_args&) const { return 0; }

  /// Scratch of `run` and of each step on the device; 64-byte aligned, any contents. It holds the values of all neurons for
  /// up to 4096 tokens, and scores and lists of up to 256 blocks. 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const ffn_args& args) const { return check_shape(args) ? bytes_needed(args) : 0; }

  /// The row length that lists for `choose` need: f if a block is dense.
  std::int64_t list_capacity(const ffn_args& args) const {
    std::int64_t longest = 0;
    for_each_block(args,
                   [&](const ffn_args& block, std::int64_t) { longest = detail::greater(longest, neurons_of(block)); });
    return longest;
  }

  /// Computes all blocks, dense those of which `keep` says so; the report says whether any was not. Statuses: those of
  /// `check`, short_workspace.
  launch_report run(const ffn_args& args, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check_call(args, workspace); !r) return r;
    launch_report answer;
    bool some_dense = false, some_sparse = false;
    for_each_block(args,
                   [&](const ffn_args& block, std::int64_t) { (is_dense(block) ? some_dense : some_sparse) = true; });
    answer.taken = some_sparse ? path::sparse : path::dense;
    if (args.x.extents[0] == 0) return answer;
    detail::launcher launch(stream);
    const std::int64_t f = args.up.extents[0], longest = some_dense ? f : kept(f);
    skim::detail::arena arena(workspace.data);
    index_lists lists;
    float* scores = nullptr;
    if (some_sparse) {
      scores = arena.template take<float>(most_lists(args) * score_stride(f));
      lists.rows = most_lists(args);
      lists.capacity = kept(f);
      lists.indices = arena.template take<std::int32_t>(lists.rows * lists.capacity);
      lists.counts = arena.template take<std::int32_t>(lists.rows);
    }
    void* const rest = static_cast<char*>(workspace.data) + arena.used();
    const auto plan = [&](const ffn_args& block) {
      const bool dense = is_dense(block);
      return detail::block_plan{!dense, static_cast<int>(neurons_of(block)), !dense};
    };
    detail::for_each_runs(args, false, plan, [&](const detail::ffn_runs& runs) {
      if (runs.lists > 0) {
        kernel::score(selector, args, runs, scores, score_stride(f), rest, launch);
        choose_lists(runs, scores, score_stride(f), true, static_cast<int>(f), lists, launch);
      }
      skim::detail::arena products(rest);
      const detail::ffn_scratch scratch(args, compensator(), longest, products);
      index_lists known = lists;
      known.counts = nullptr;  // as long as the policy says
      detail::compute_runs(args, compensator(), runs, known, longest, scratch, launch);
    });
    answer.error = launch.error();
    return answer;
  }

  /// scores [blocks, f], memory of the device: what the policy thinks of each neuron for each block, dense or not; the
  /// highest are computed. Statuses: those of `run`, bad_extent for scores of another shape.
  launch_report score(const ffn_args& args, tensor_view<float, 2> scores, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check_call(args, workspace); !r) return r;
    if (report r = check_scores(args, scores); !r) return r;
    if (report r = skim::detail::check_apart(scores, "scores"); !r) return r;
    detail::launcher launch(stream);
    for_all_blocks(args, [&](const detail::ffn_runs& runs) {
      kernel::score(selector, args, runs, scores.at(runs.first_list), scores.strides[0], workspace.data, launch);
    });
    return launch_report(report{}, launch.error());
  }

  /// Writes a list row for each block: the neurons of highest score, as many as the policy keeps, ascending, ties to the
  /// lower one, NaN last; for a dense block all neurons. `lists` has rows of at least `list_capacity(args)`. Statuses:
  /// those of `check`, and bad_extent for scores or lists of another shape.
  launch_report choose(const ffn_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                       cudaStream_t stream) const {
    if (launch_report r = check(args); !r) return r;
    if (report r = check_scores(args, scores); !r) return r;
    if (report r = skim::detail::check_room(lists, block_count(args), list_capacity(args)); !r) return r;
    detail::launcher launch(stream);
    const bool by_four = scores.strides[0] % 4 == 0 && scores.strides[0] >= args.up.extents[0] &&
                         scores.strides[0] <= skim::detail::largest_index &&
                         reinterpret_cast<std::uintptr_t>(scores.data) % 16 == 0 && args.up.extents[0] % 4 == 0;
    for_all_blocks(args, [&](const detail::ffn_runs& runs) {
      choose_lists(runs, scores.at(runs.first_list), scores.strides[0], by_four, static_cast<int>(args.up.extents[0]),
                   lists, launch);
    });
    return launch_report(report{}, launch.error());
  }

  /// out = the FFN of each block's listed neurons and, for the blocks that are not dense, the policy's compensation: act(x c1)
  /// c2. Valid list contents, see `check_indices`, are its precondition. Statuses: those of `check`, short_workspace,
  /// bad_extent for lists of another shape.
  launch_report compute(const ffn_args& args, const index_lists& lists, memory workspace, cudaStream_t stream) const {
    if (launch_report r = check_call(args, workspace); !r) return r;
    if (report r = skim::detail::check_room(lists, block_count(args), 0); !r) return r;
    detail::launcher launch(stream);
    skim::detail::arena arena(workspace.data);
    const std::int64_t longest = detail::smaller(lists.capacity, args.up.extents[0]);
    const detail::ffn_scratch scratch(args, compensator(), longest, arena);
    for_all_blocks(args, [&](const detail::ffn_runs& runs) {
      detail::compute_runs(args, compensator(), runs, lists, longest, scratch, launch);
    });
    launch_report answer(report{}, launch.error());
    answer.taken = path::sparse;
    return answer;
  }

 private:
  bool is_dense(const ffn_args& block) const { return runs_dense(selector.keep, block); }
  std::int64_t kept(std::int64_t f) const { return detail::smaller(neuron_retention(selector.keep).neurons(f), f); }
  std::int64_t neurons_of(const ffn_args& block) const {
    return is_dense(block) ? block.up.extents[0] : kept(block.up.extents[0]);
  }

  static std::int64_t score_stride(std::int64_t f) { return detail::pieces(f, 4) * 4; }
  static std::int64_t most_lists(const ffn_args& args) {
    return detail::smaller(block_count(args), detail::ffn_runs::most_lists);
  }

  /// Calls `body(runs)`, each block with a list.
  template <class Body>
  void for_all_blocks(const ffn_args& args, const Body& body) const {
    const auto plan = [&](const ffn_args& block) {
      return detail::block_plan{true, static_cast<int>(neurons_of(block)), !is_dense(block)};
    };
    detail::for_each_runs(args, true, plan, body);
  }

  static void choose_lists(const detail::ffn_runs& runs, const float* scores, std::int64_t stride, bool by_four, int f,
                           const index_lists& lists, detail::launcher& launch) {
    using namespace detail;
    const neuron_rows rows{scores, stride, by_four, f, lists, runs};
    if (!choose_by_clusters(rows, f, runs.lists, launch)) choose_by_blocks(rows, runs.lists, launch);
  }

  std::size_t bytes_needed(const ffn_args& args) const {
    const std::int64_t f = args.up.extents[0];
    skim::detail::arena kept_between, products;
    if (kept(f) < f) {
      static_cast<void>(kept_between.template take<float>(most_lists(args) * score_stride(f)));
      static_cast<void>(kept_between.template take<std::int32_t>(most_lists(args) * kept(f)));
      static_cast<void>(kept_between.template take<std::int32_t>(most_lists(args)));
    }
    static_cast<void>(detail::ffn_scratch(args, compensator(), f, products));
    const std::size_t score = kernel::workspace_bytes(selector, args);
    return kept_between.used() + (score > products.used() ? score : products.used());
  }

  launch_report check_all(const ffn_args& args, pointers given) const {
    if (report r = skim::check(args, given); !r) return r;
    if (report r = skim::check(compensator(), args.x.extents[1], given); !r) return r;
    if (report r = skim::check(neuron_retention(selector.keep)); !r) return r;
    if (report r = skim::detail::check_selector(selector, args, given); !r) return r;
    if (report r = detail::check_limits(args, compensator()); !r) return r;
    return kernel::check(selector);
  }
  launch_report check_call(const ffn_args& args, memory workspace) const {
    if (launch_report r = check(args); !r) return r;
    return skim::detail::check_workspace(workspace, bytes_needed(args));
  }

  static report check_scores(const ffn_args& args, const tensor_view<const float, 2>& scores) {
    using namespace skim::detail;
    if (report r = check_tensor(scores, "scores"); !r) return r;
    if (report r = check_extent(scores, 0, block_count(args), "scores"); !r) return r;
    return check_extent(scores, 1, args.up.extents[0], "scores");
  }
};

template <class NeuronSelector>
ffn(NeuronSelector) -> ffn<NeuronSelector>;

}}}  // namespace skim::v0_2::cuda
