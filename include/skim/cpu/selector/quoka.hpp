// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's selection on the CPU: choose queries, score keys, top-k (arXiv 2602.08722, Algorithm 1).
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/selector.hpp>
#include <skim/cpu/selector/quoka_queries.hpp>
#include <skim/cpu/selector/quoka_score.hpp>
#include <skim/index_lists.hpp>
#include <skim/math/mask.hpp>
#include <skim/selector/quoka.hpp>
#include <skim/workspace.hpp>

#include <type_traits>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

/// What each stage of a selection leaves in the workspace, for tests and studies. Row r = sequence * Hk + KV head.
struct quoka_stages {
  std::int32_t* tokens;  ///< [rows, G or 1, n]: tokens chosen per query head (`lowest_cosine`) or per KV head
  float* qbar;           ///< [rows, most queries, row]: the queries that score
  float* scores;         ///< [rows, longest past]
  std::int64_t rows, most_queries, row, longest_past, tokens_per_row;

  quoka_stages(detail::arena& arena, const attention_args& args, std::int64_t kept) {
    rows = sequence_count(args) * first_view(args).heads;
    most_queries = kept;
    row = detail::padded_row(args.q.extents[2]);
    longest_past = detail::longest_past(args);
    tokens_per_row = kept * group_size(args);
    tokens = arena.take<std::int32_t>(rows * tokens_per_row);
    qbar = arena.take<float>(rows * most_queries * row);
    scores = arena.take<float>(rows * longest_past);
  }

  float* qbar_of(std::int64_t r) const { return qbar + r * most_queries * row; }
  float* scores_of(std::int64_t r) const { return scores + r * longest_past; }
  std::int32_t* tokens_of(std::int64_t r) const { return tokens + r * tokens_per_row; }
};

/// Scores are f32: within 2^-24 (D / 8 + G + 12) of exact arithmetic on the stored keys and the chosen queries.
template <class Queries, class Similarity, class Reduce>
struct selector_kernel<quoka<Queries, Similarity, Reduce>> {
  using policy_type = quoka<Queries, Similarity, Reduce>;

  static report check(const policy_type& policy, const attention_args&) {
    if constexpr (!std::is_same_v<Queries, queries::all>) {
      if (policy.queries.n < 1) return fault(status::bad_value, "queries.n", policy.queries.n, 1, "at least");
    }
    return skim::check(policy.keep);
  }
  static std::int64_t list_capacity(const policy_type& policy, const attention_args& args) {
    return skim::list_capacity(policy.keep, args);
  }
  static std::size_t state_bytes(const policy_type&, const attention_args&) { return 0; }
  static bool runs_dense(const policy_type& policy, const attention_args& args, std::int64_t Tk) {
    return skim::runs_dense(policy.keep, args, Tk);
  }

  /// Scoring multiplies every past key with every chosen query and reads K once; choosing is small beside it.
  static cost_estimate cost(const policy_type& policy, const attention_args& args) {
    cost_estimate total;
    for (std::int64_t s = 0; s < sequence_count(args); ++s) {
      const attention_sequence sequence = sequence_at(args, s);
      const double D = static_cast<double>(args.q.extents[2]), Tk = static_cast<double>(sequence.Tk());
      const double heads = static_cast<double>(sequence.kv->heads);
      const double n =
          std::is_same_v<Reduce, reduce::mean> ? 1 : static_cast<double>(queries::kept(policy.queries, sequence.Tq));
      const double q = static_cast<double>(sequence.Tq) * static_cast<double>(args.q.extents[1]) * D;
      total = total + cost_estimate{2 * heads * n * D * Tk + 6 * q,
                                    heads * Tk * (D * static_cast<double>(element_bytes(sequence.kv->k.type)) + 4) +
                                        q * static_cast<double>(element_bytes(args.q.type))};
    }
    return total;
  }

  static std::size_t workspace_bytes(const policy_type& policy, const attention_args& args, unsigned workers) {
    detail::arena arena;
    quoka_stages(arena, args, most_kept(policy, args));
    return arena.used() + scratch_bytes(policy, args) * workers;
  }

  /// The stages' results in the workspace of the last `select` with equal arguments.
  static quoka_stages stages(const policy_type& policy, const attention_args& args, memory workspace) {
    detail::arena arena(workspace.data);
    return quoka_stages(arena, args, most_kept(policy, args));
  }

  static void select(const policy_type& policy, const attention_args& args, const index_lists& lists, memory,
                     memory workspace, executor_ref executor) {
    detail::arena arena(workspace.data);
    const quoka_stages stage(arena, args, most_kept(policy, args));
    char* const scratches = static_cast<char*>(workspace.data) + arena.used();
    const std::size_t scratch = scratch_bytes(policy, args);
    const std::int64_t heads = first_view(args).heads, longest = stage.longest_past;

    executor.parallel_for(lists.rows, [&](std::int64_t r, unsigned worker) {
      const attention_sequence sequence = sequence_at(args, r / heads);
      if (keeps_all(policy, sequence, r % heads)) return;
      detail::arena piece(detail::worker_piece(scratches, scratch, worker));
      const detail::choose_scratch place(piece, most_queries(args), args.q.extents[2]);
      detail::choose_queries(policy.queries, args, sequence, r % heads, place, stage.tokens_of(r), stage.qbar_of(r));
    });

    const std::int64_t blocks = (longest + detail::score_keys - 1) / detail::score_keys;
    executor.parallel_for(lists.rows * blocks, [&](std::int64_t unit, unsigned worker) {
      const std::int64_t r = unit / blocks, head = r % heads;
      const attention_sequence sequence = sequence_at(args, r / heads);
      if (keeps_all(policy, sequence, head)) return;
      const std::int64_t kept = queries::kept(policy.queries, sequence.Tq);
      const std::int64_t begin = unit % blocks * detail::score_keys;
      const std::int64_t past = sequence.kv->length(head) - sequence.Tq;
      if (begin >= past) return;
      detail::arena piece(detail::worker_piece(scratches, scratch, worker));
      const detail::score_scratch place(piece, stage.most_queries, args.q.extents[2]);
      const detail::score_job job{sequence.kv,
                                  head,
                                  begin,
                                  detail::smaller(past, begin + detail::score_keys),
                                  detail::chunk_sight(args, sequence, head).hull(),
                                  args.mask.left < mask::unbounded};
      const auto packed = detail::pack_queries(policy.reduce, stage.qbar_of(r), kept, args.q.extents[2], place.packed);
      detail::score_slots(job, policy.similarity, packed, place, stage.scores_of(r));
    });

    executor.parallel_for(lists.rows, [&](std::int64_t r, unsigned worker) {
      const std::int64_t head = r % heads;
      const attention_sequence sequence = sequence_at(args, r / heads);
      detail::arena piece(detail::worker_piece(scratches, scratch, worker));
      const detail::rank_scratch place(piece, longest);
      const float* const scores = keeps_all(policy, sequence, head) ? nullptr : stage.scores_of(r);
      lists.counts[r] =
          static_cast<std::int32_t>(detail::top_k(args, sequence, head, policy.keep, scores, place, lists.row(r)));
    });
  }

 private:
  /// Nothing to score: the chunk is empty, or the budget covers what this head holds.
  static bool keeps_all(const policy_type& policy, const attention_sequence& sequence, std::int64_t head) {
    const std::int64_t past = sequence.kv->length(head) - sequence.Tq;
    return sequence.Tq == 0 || past <= policy.keep.keys(past);
  }

  static std::int64_t most_queries(const attention_args& args) {
    std::int64_t most = 0;
    for (std::int64_t s = 0; s < sequence_count(args); ++s) {
      if (sequence_at(args, s).Tq > most) most = sequence_at(args, s).Tq;
    }
    return most;
  }
  static std::int64_t most_kept(const policy_type& policy, const attention_args& args) {
    return queries::kept(policy.queries, most_queries(args));
  }

  /// One worker's scratch; the three loops use it one after another.
  static std::size_t scratch_bytes(const policy_type& policy, const attention_args& args) {
    detail::arena choose, score, top;
    detail::choose_scratch(choose, most_queries(args), args.q.extents[2]);
    detail::score_scratch(score, most_kept(policy, args), args.q.extents[2]);
    detail::rank_scratch(top, detail::longest_past(args));
    std::size_t most = choose.used();
    if (score.used() > most) most = score.used();
    return top.used() > most ? top.used() : most;
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
