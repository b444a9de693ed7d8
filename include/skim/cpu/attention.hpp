// SPDX-License-Identifier: Apache-2.0
/// \file The attention operation on the CPU: `cpu::attention<Selector, Accumulate>`.
#pragma once

#include <skim/cpu/attend.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/selector/dense.hpp>

#include <limits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Attention of a chunk over the keys that `Selector` chooses. A plain value; make one per layer.
///
/// The steps are public, together they are `run`: `score` gives every past key a score, `choose` takes the highest (both are
/// `select`), `attend` reads what was chosen. Error bound, bits and memory: see `cpu::attend`.
template <class Selector = dense, class Accumulate = accumulate::widen_fma>
struct attention {
  static constexpr bool lists_itself = gives_lists<Selector, attention_args, executor_ref>;
  static_assert(skim::detail::has<skim::detail::check_member, Selector, attention_args>,
                "a selector policy needs: report check(const attention_args&) const");
  static_assert(lists_itself || skim::detail::keeps<Selector>,
                "a selector policy needs: retention keep, and score; or list_capacity and select");
  static_assert(!lists_itself || skim::detail::has<skim::detail::capacity_member, Selector, attention_args>,
                "a selector policy that gives lists needs: std::int64_t list_capacity(const attention_args&) const");

  Selector selector{};
  Accumulate accumulate{};

  using kernel = score_kernel<Selector>;

  /// O(1) (O(sequences) for several): reads no pointer but the sequence descriptors and a batch's numbers.
  report check(const attention_args& args) const {
    if (report r = cpu::attend<Accumulate>{}.check(args); !r) return r;
    return check_selector(args);
  }
  /// The same before there is memory; see `skim::check_shape`.
  report check_shape(const attention_args& args) const {
    if (report r = skim::check_shape(args); !r) return r;
    return check_selector(args);
  }

  policy_needs needs() const { return needs_of(selector); }

  /// Rows of q that choose together: `block_rows` of lists for `select`. 0 = all of a sequence.
  std::int64_t block_rows() const {
    if constexpr (lists_itself) return 0;
    if constexpr (!lists_itself) return kept_by(selector, 0).every;
  }

  /// The row length that lists for `select` need; a call with fewer tokens, however few rows it has, needs no longer ones.
  std::int64_t list_capacity(const attention_args& args) const {
    if (sequence_count(args) == 0) return 0;
    if constexpr (lists_itself) {
      return selector.list_capacity(args);
    } else {
      const std::int64_t most = most_tokens(args);
      const retention keep = kept_by(selector, most);
      return skim::list_capacity(keep, most, detail::crossing_of(keep, most));
    }
  }

  /// Bytes that the selector keeps between calls, per layer.
  std::size_t state_bytes(const attention_args& args) const { return check_shape(args) ? bytes_of_state(args) : 0; }

  /// Scratch for `run` and each of its steps with at most `workers` workers; 64-byte aligned, any contents. A call with fewer
  /// rows, tokens, sequences or workers needs no more. 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const attention_args& args, unsigned workers) const {
    return check_shape(args) ? bytes_needed(args, workers) : 0;
  }

  cost_estimate cost(const attention_args& args) const {
    const bool all = runs_dense(args);
    cost_estimate total = all ? cost_estimate{} : cost_of(selector, args);
    const std::int64_t capacity = list_capacity(args);
    for_each_block(args, block_rows(), [&](const attention_sequence& block, std::int64_t) {
      const std::int64_t past = block.Tk();
      std::int64_t keys = detail::smaller(past, capacity);
      if constexpr (!lists_itself)
        keys = reads_all(block) ? past : detail::smaller(past, kept_by(selector, past).keys(past));
      total = total + attend_cost(args, block, keys);
    });
    return total;
  }

  /// Makes the selector's state that of a prompt's beginning. Statuses: those of `check`, short_state.
  report reset(const attention_args& args, memory state, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_state(state, bytes_of_state(args)); !r) return r;
    kernel::reset(selector, args, state, executor);
    return {};
  }

  /// Selects, then attends; the report says whether anything was left out. Statuses: those of `check`, short_workspace,
  /// short_state.
  report run(const attention_args& args, memory state, memory workspace, executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (sequence_count(args) == 0) return taken(path::dense);
    report answer = taken(path::dense);
    for_each_group(args, executor.concurrency(), [&](const attention_args& part, std::int64_t, std::int64_t) {
      if (runs_dense(part)) {
        detail::attend_keys<Accumulate>(part, nullptr, block_rows(), workspace.data, executor);
        return;
      }
      detail::arena arena(workspace.data);
      const index_lists lists = lists_in(part, arena);
      const memory rest = behind(arena, workspace);
      select_group(part, lists, state, rest, executor);
      detail::attend_keys<Accumulate>(part, &lists, block_rows(), rest.data, executor);
      answer.taken = path::sparse;
    });
    return answer;
  }

  /// Writes the slots that each block of the chunk reads to `lists`, whose capacity is at least `list_capacity(args)` and
  /// whose `block_rows` are ours. What a block reads that runs dense is everything.
  report select(const attention_args& args, const index_lists& lists, memory state, memory workspace,
                executor_ref executor) const {
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (sequence_count(args) == 0) return taken(path::sparse);
    if (report r = check_lists(args, lists); !r) return r;
    for_each_group(args, executor.concurrency(), [&](const attention_args& part, std::int64_t, std::int64_t before) {
      index_lists own = lists;
      own.indices += before * first_view(args).heads * lists.capacity;
      own.counts += before * first_view(args).heads;
      select_group(part, own, state, workspace, executor);
    });
    return taken(path::sparse);
  }

  /// scores [sequences * Hk, longest past]: those of the keys behind block `round` of each sequence, by slot; the highest are
  /// chosen. Where a block runs dense, or a head's budget covers its past, nothing is written.
  report score(const attention_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
               executor_ref executor, std::int64_t round = 0) const {
    static_assert(!lists_itself, "this selector gives lists and scores nothing");
    if (report r = check_call(args, state, workspace, executor.concurrency()); !r) return r;
    if (sequence_count(args) == 0) return {};
    if (report r = check_scores(args, scores); !r) return r;
    if (report r = detail::check_apart(scores, "scores"); !r) return r;
    if (round < 0) return fault(status::bad_value, "round", round, 0, "at least");
    for_each_group(args, executor.concurrency(), [&](const attention_args& part, std::int64_t first, std::int64_t) {
      const std::int64_t heads = first_view(part).heads, count = sequence_count(part);
      score_blocks({&part, block_rows(), round}, rows(scores, first * heads, count * heads), state, workspace,
                   executor);
    });
    return {};
  }

  /// Writes the lists of block `round` of each sequence from its scores: sinks, recent keys and the highest scores, as many as
  /// the policy keeps. NaN ranks below -inf, -0 = +0; equal scores prefer the earlier position.
  report choose(const attention_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                memory workspace, executor_ref executor, std::int64_t round = 0) const {
    static_assert(!lists_itself, "this selector gives lists and scores nothing");
    if (report r = check(args); !r) return r;
    if (report r = detail::check_workspace(workspace, bytes_needed(args, executor.concurrency())); !r) return r;
    if (sequence_count(args) == 0) return {};
    if (report r = check_scores(args, scores); !r) return r;
    if (round < 0) return fault(status::bad_value, "round", round, 0, "at least");
    if (report r = check_lists(args, lists); !r) return r;
    detail::arena arena(workspace.data);
    std::int64_t* const first_blocks = arena.take<std::int64_t>(sequence_count(args));
    count_blocks(args, first_blocks, executor);
    choose_blocks({&args, block_rows(), round}, scores, lists, first_blocks, behind(arena, workspace), executor);
    return {};
  }

 private:
  std::size_t bytes_of_state(const attention_args& args) const {
    return sequence_count(args) == 0 ? 0 : kernel::state_bytes(selector, args);
  }

  /// Of checked arguments.
  std::size_t bytes_needed(const attention_args& args, unsigned workers) const {
    if (sequence_count(args) == 0) return 0;
    const std::size_t attend = detail::attend_bytes(args, block_rows(), workers);
    if constexpr (std::is_same_v<Selector, dense>) return attend;
    detail::arena arena;
    const std::int64_t rows = list_rows(args, block_rows()), all = detail::saturated(rows, list_capacity(args));
    const std::int64_t grouped = detail::saturated(first_view(args).heads, group_tokens(args, workers));
    arena.take<std::int32_t>(args.sequences ? detail::smaller(all, grouped) : all);
    arena.take<std::int32_t>(rows);
    const std::size_t lists = arena.used(), select = select_bytes(args, workers);
    const std::size_t steps = select > attend ? select : attend;
    return steps > ~std::size_t{0} - lists ? ~std::size_t{0} : lists + steps;
  }

  report check_selector(const attention_args& args) const {
    if (sequence_count(args) == 0) return {};
    if constexpr (!lists_itself) {
      if (report r = skim::check(kept_by(selector, most_tokens(args))); !r) return r;
    }
    return selector.check(args);
  }

  bool reads_all(const attention_sequence& block) const {
    if constexpr (lists_itself) return false;
    if constexpr (!lists_itself) return detail::reads_all(kept_by(selector, block.Tk()), block);
  }

  /// Every block has nothing to leave out. Otherwise all go through the lists, where a dense block's hold all keys.
  bool runs_dense(const attention_args& args) const {
    bool all = true;
    for_each_block(args, block_rows(), [&](const attention_sequence& block, std::int64_t) { all &= reads_all(block); });
    return all;
  }

  index_lists lists_in(const attention_args& args, detail::arena& arena) const {
    index_lists lists;
    lists.block_rows = block_rows();
    lists.rows = list_rows(args, lists.block_rows);
    lists.capacity = list_capacity(args);
    lists.indices = arena.take<std::int32_t>(detail::saturated(lists.rows, lists.capacity));
    lists.counts = arena.take<std::int32_t>(lists.rows);
    return lists;
  }

  static memory behind(const detail::arena& front, memory all) {
    return {static_cast<char*>(all.data) + front.used(), all.bytes - front.used()};
  }

  static constexpr std::int64_t all_of_it = (std::numeric_limits<std::int64_t>::max)();

  /// What keeps a state, gives lists itself or selects nothing sees the whole call.
  std::int64_t group_tokens(const attention_args& args, unsigned workers) const {
    if (lists_itself || std::is_same_v<Selector, dense> || kernel::state_bytes(selector, args) > 0) return all_of_it;
    return detail::group_tokens(args, block_rows(), workers);
  }

  /// Sequences [first, first + count) of a call, in the same q and out. `offsets` do not begin at 0.
  static attention_args part_of(attention_args args, std::int64_t first, std::int64_t count) {
    if (args.sequences) {
      args.sequences += first;
      args.offsets += first;
      args.sequence_count = count;
    } else if (args.batch.sequences > 0) {
      args.batch.block_tables += first * args.batch.table_stride;
      args.batch.tokens += first;
      args.batch.offsets += first;
      args.batch.sequences = count;
    }
    return args;
  }

  /// Calls `body(part, sequences before it, blocks before it)` for runs of sequences: scores and lists are laid out by the
  /// longest of a run, and one long prompt must not make all short ones as long; nor are all sequences to be walked as often
  /// as the one of most blocks.
  template <class Body>
  void for_each_group(const attention_args& args, unsigned workers, const Body& body) const {
    const std::int64_t sequences = sequence_count(args), room = group_tokens(args, workers);
    for (std::int64_t first = 0, before = 0, count = 0, blocks = 0; first < sequences;
         first += count, before += blocks) {
      std::int64_t longest = 0, rounds = 0;
      for (count = blocks = 0; first + count < sequences; ++count) {
        const attention_sequence next = sequence_at(args, first + count);
        const std::int64_t own = block_count(next.Tq, block_rows()), with_next = blocks + own;
        longest = detail::greater(longest, args.sequences ? next.kv.tokens : args.kv.tokens);
        rounds = detail::greater(rounds, own);
        const bool too_long = detail::saturated(with_next, longest) > room;
        const bool uneven = room < all_of_it && detail::saturated(rounds, count + 1) > 2 * with_next + 1024;
        if (count > 0 && (too_long || uneven)) break;
        blocks = with_next;
      }
      body(part_of(args, first, count), first, before);
    }
  }

  std::size_t choose_bytes(const attention_args& args) const {
    detail::arena arena;
    detail::rank_scratch(arena, most_tokens(args));
    return arena.used();
  }

  /// Scratch of selecting, behind the lists.
  std::size_t select_bytes(const attention_args& args, unsigned workers) const {
    std::size_t step = kernel::workspace_bytes(selector, args, workers);
    if constexpr (lists_itself) return step;
    detail::arena arena;
    arena.take<std::int64_t>(sequence_count(args));
    const std::int64_t tokens = detail::saturated(sequence_count(args), most_tokens(args));
    arena.take<float>(detail::saturated(first_view(args).heads, detail::smaller(tokens, group_tokens(args, workers))));
    const std::size_t front = arena.used();
    const std::size_t choosing =
        static_cast<std::size_t>(detail::saturated(static_cast<std::int64_t>(choose_bytes(args)), workers));
    if (choosing > step) step = choosing;
    return step > ~std::size_t{0} - front ? ~std::size_t{0} : front + step;
  }

  void select_group(const attention_args& args, const index_lists& lists, memory state, memory workspace,
                    executor_ref executor) const {
    if constexpr (lists_itself) {
      selector.select(args, lists, state, workspace, executor);
    } else {
      detail::arena arena(workspace.data);
      std::int64_t* const first_blocks = arena.take<std::int64_t>(sequence_count(args));
      const std::int64_t rows = sequence_count(args) * first_view(args).heads, most = most_tokens(args);
      const tensor_view<float, 2> scores(arena.take<float>(rows * most), {rows, most});
      const memory rest = behind(arena, workspace);
      const std::int64_t rounds = block_count(most_rows(args), block_rows());
      count_blocks(args, first_blocks, executor);
      for (std::int64_t round = 0; round < rounds; ++round) {
        const attention_blocks blocks{&args, block_rows(), round};
        if (!keep_decides(args)) score_blocks(blocks, scores, state, rest, executor);
        choose_blocks(blocks, scores, lists, first_blocks, rest, executor);
      }
    }
  }

  /// Sinks and recent keys fill the budget: scores would not be looked at.
  bool keep_decides(const attention_args& args) const {
    if (scores_alike<Selector>) return true;
    const std::int64_t past = longest_past(args, block_rows());
    const retention keep = kept_by(selector, past);
    return keep.sinks + keep.recent >= keep.keys(past);
  }

  void score_blocks(const attention_blocks& blocks, tensor_view<float, 2> scores, memory state, memory workspace,
                    executor_ref executor) const {
    if constexpr (scores_alike<Selector>) {
      detail::score_alike(scores, executor);
    } else {
      kernel::score(selector, blocks, scores, state, workspace, executor);
    }
  }

  void choose_blocks(const attention_blocks& blocks, tensor_view<const float, 2> scores, const index_lists& lists,
                     const std::int64_t* first_blocks, memory workspace, executor_ref executor) const {
    const attention_args& args = *blocks.args;
    const std::int64_t heads = first_view(args).heads, longest = longest_past(args, block_rows());
    const std::size_t bytes = choose_bytes(args);
    const bool scored = !keep_decides(args);
    executor.parallel_for(blocks.count() * heads, [&](std::int64_t r, unsigned worker) {
      const std::int64_t s = r / heads, head = r % heads;
      const attention_sequence block = blocks.at(s);
      if (blocks.round >= block_count(sequence_at(args, s).Tq, blocks.block_rows)) return;
      const std::int64_t row = (first_blocks[s] + blocks.round) * heads + head;
      if (block.Tq > 0 && reads_all(block)) return detail::list_all(block.past(head), lists, row);
      detail::arena arena(detail::worker_piece(workspace.data, bytes, worker));
      const detail::rank_scratch scratch(arena, longest);
      const retention keep = kept_by(selector, block.past(head));
      const bool ranked = scored && block.past(head) > keep.keys(block.past(head));
      lists.counts[row] = static_cast<std::int32_t>(
          detail::top_k(args, block, head, keep, ranked ? scores.at(r) : nullptr, scratch, lists.row(row)));
    });
  }

  void count_blocks(const attention_args& args, std::int64_t* first_blocks, executor_ref executor) const {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      std::int64_t blocks = 0;
      for (std::int64_t s = 0; s < sequence_count(args); ++s) {
        first_blocks[s] = blocks;
        blocks += block_count(sequence_at(args, s).Tq, block_rows());
      }
    });
  }

  static report taken(path way) {
    report r;
    r.taken = way;
    return r;
  }

  report check_call(const attention_args& args, memory state, memory workspace, unsigned workers) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_workspace(workspace, bytes_needed(args, workers)); !r) return r;
    return detail::check_state(state, bytes_of_state(args));
  }

  report check_lists(const attention_args& args, const index_lists& lists) const {
    if (lists.block_rows != block_rows()) {
      return fault(status::bad_value, "lists.block_rows", lists.block_rows, block_rows());
    }
    return detail::check_room(lists, list_rows(args, block_rows()), list_capacity(args));
  }

  report check_scores(const attention_args& args, tensor_view<const float, 2> scores) const {
    if (report r = detail::check_tensor(scores, "scores"); !r) return r;
    if (report r = detail::check_extent(scores, 0, sequence_count(args) * first_view(args).heads, "scores"); !r)
      return r;
    const std::int64_t past = longest_past(args, block_rows());
    if (scores.extents[1] >= past) return {};
    return detail::part_fault(status::bad_extent, "scores", part::extents, 1, scores.extents[1], past, "at least");
  }
};

template <class Selector>
attention(Selector) -> attention<Selector>;
template <class Selector, class Accumulate>
attention(Selector, Accumulate) -> attention<Selector, Accumulate>;

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
