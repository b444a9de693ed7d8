// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's scores on the CPU: choose queries, score keys (arXiv 2602.08722, Algorithm 1, steps 1 to 4).
#pragma once

#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/cpu/selector/quoka_score.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// The queries that score, and each worker's scratch; the two loops use that one after another.
struct quoka_scratch {
  float* qbar;    // [blocks * Hk, kept, padded D]
  char* workers;  // [workers, worker_bytes]
  std::size_t row, worker_bytes;

  quoka_scratch(arena& arena, const quoka& policy, const attention_args& args, unsigned count) {
    const std::int64_t D = args.q.extents[2], most = most_rows(args), every = policy.keep.every;
    const std::int64_t rows = every > 0 ? smaller(every, most) : most, kept = policy.queries.kept(rows);
    row = static_cast<std::size_t>(kept * padded_row(D));
    qbar = arena.take<float>(saturated(sequence_count(args) * first_view(args).heads, kept * padded_row(D)));
    detail::arena choosing, scoring;
    choose_scratch(choosing, rows, D);
    score_scratch(scoring, kept, D);
    worker_bytes = choosing.used() > scoring.used() ? choosing.used() : scoring.used();
    workers = arena.take<char>(saturated(static_cast<std::int64_t>(worker_bytes), count));
  }

  float* qbar_of(std::int64_t r) const { return qbar + static_cast<std::size_t>(r) * row; }
};

}  // namespace detail

/// Scores are f32: within 2^-24 (D / 8 + G + 12) of exact arithmetic on the stored keys and the chosen queries.
template <>
struct score_kernel<quoka> : own_hooks<quoka, executor_ref> {
  static std::size_t workspace_bytes(const quoka& policy, const attention_args& args, unsigned workers) {
    detail::arena arena;
    detail::quoka_scratch(arena, policy, args, workers);
    return arena.used();
  }

  static void score(const quoka& policy, const attention_blocks& blocks, tensor_view<float, 2> scores, memory,
                    memory workspace, executor_ref executor) {
    const attention_args& args = *blocks.args;
    detail::arena arena(workspace.data);
    const detail::quoka_scratch scratch(arena, policy, args, executor.concurrency());
    const std::int64_t heads = first_view(args).heads, rows = blocks.count() * heads, D = args.q.extents[2];

    executor.parallel_for(rows, [&](std::int64_t r, unsigned worker) {
      const attention_sequence block = blocks.at(r / heads);
      if (keeps_all(policy, block, r % heads)) return;
      detail::arena piece(detail::worker_piece(scratch.workers, scratch.worker_bytes, worker));
      const detail::choose_scratch place(piece, block.Tq, D);
      detail::choose_queries(policy.queries, args, block, r % heads, place, scratch.qbar_of(r));
    });

    const std::int64_t longest = detail::smaller(scores.extents[1], longest_past(args, policy.keep.every));
    const std::int64_t units = (longest + detail::score_keys - 1) / detail::score_keys;
    executor.parallel_for(rows * units, [&](std::int64_t unit, unsigned worker) {
      const std::int64_t r = unit / units, head = r % heads, begin = unit % units * detail::score_keys;
      const attention_sequence block = blocks.at(r / heads);
      const std::int64_t past = block.past(head);
      if (begin >= past || keeps_all(policy, block, head)) return;
      detail::arena piece(detail::worker_piece(scratch.workers, scratch.worker_bytes, worker));
      const std::int64_t kept = policy.queries.kept(block.Tq);
      const detail::score_scratch place(piece, kept, D);
      const detail::score_job job{&block.kv,
                                  head,
                                  begin,
                                  detail::smaller(past, begin + detail::score_keys),
                                  detail::chunk_sight(args, block, head).hull(),
                                  args.mask.left < mask::unbounded};
      const auto packed = detail::pack_queries(policy.reduce, scratch.qbar_of(r), kept, D, place.packed);
      detail::score_slots(job, policy.similarity, packed, place, scores.at(r));
    });
  }

 private:
  /// Nothing to score: the block is empty, reads everything, or its budget covers what this head holds.
  static bool keeps_all(const quoka& policy, const attention_sequence& block, std::int64_t head) {
    const std::int64_t past = block.past(head);
    return block.Tq == 0 || past <= policy.keep.keys(past) || detail::reads_all(policy.keep, block);
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
