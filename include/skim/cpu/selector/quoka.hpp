// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's scores on the CPU: choose queries, standardise them, score keys, smooth.
#pragma once

#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/cpu/selector/needed_queries.hpp>
#include <skim/cpu/selector/quoka_moments.hpp>
#include <skim/cpu/selector/quoka_score.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {
namespace detail {

SKIM_INLINE bool standardises(const quoka& policy) {
  return policy.similarity == similarity::standardised;
}

/// Whether a policy goes through the candidates in order of position. (Not whether positions are stored, which may be out
/// of order: sizes are known before there is memory.)
SKIM_INLINE bool goes_by_position(const quoka& policy) {
  return standardises(policy) || policy.smooth > 1 || policy.queries.choice == query_choice::needed;
}

/// What the first of the three loops finds for the others, for each block and KV head r; and each worker's scratch, which
/// one loop uses after another.
struct quoka_scratch {
  packed_queries* queries;  // [blocks * Hk]
  slot_order* orders;       // [blocks * Hk]: the candidates
  position_range* seen;     // [blocks * Hk]: by some row of the block
  float *packed, *factors;  // [blocks * Hk, ...]
  std::int32_t* lists;      // [blocks * Hk, tokens]: where candidates are no run of slots
  char* workers;            // [workers, worker_bytes]
  std::size_t packed_floats, lanes, tokens, worker_bytes;

  /// `list_tokens`: room for candidates of a KV head, of all sequences together.
  quoka_scratch(arena& arena, const quoka& policy, const attention_args& args, unsigned count,
                std::int64_t list_tokens) {
    const std::int64_t D = args.q.extents[2], G = group_size(args), most = most_rows(args), every = policy.keep.every;
    const std::int64_t rows = every > 0 ? smaller(every, most) : most, kept = policy.queries.kept(rows, G);
    const std::int64_t r = saturated(sequence_count(args), first_view(args).heads);
    const bool own = policy.queries.rows == query_rows::own;
    lanes = static_cast<std::size_t>(packed_queries::lanes_of(kept));
    packed_floats = static_cast<std::size_t>(saturated(static_cast<std::int64_t>(lanes), padded_row(D)));
    tokens = static_cast<std::size_t>(goes_by_position(policy) ? most_tokens(args) : 0);
    queries = arena.take<packed_queries>(r);
    orders = arena.take<slot_order>(r);
    seen = arena.take<position_range>(r);
    packed = arena.take<float>(saturated(r, static_cast<std::int64_t>(packed_floats)));
    factors = arena.take<float>(standardises(policy) ? saturated(r, 2 * static_cast<std::int64_t>(lanes)) : 0);
    lists = arena.take<std::int32_t>(tokens > 0 ? saturated(first_view(args).heads, list_tokens) : 0);
    detail::arena choosing, scoring;
    choosing.take<float>(saturated(kept, padded_row(D)));
    order_scratch(choosing, static_cast<std::int64_t>(tokens));
    if (own) needed_scratch(choosing, policy.queries, rows, G, D);
    if (!own) choose_scratch(choosing, rows, D);
    if (standardises(policy)) moment_scratch(choosing, kept, D);
    scoring.take<float>(keys_of_tile * padded_row(D));
    worker_bytes = choosing.used() > scoring.used() ? choosing.used() : scoring.used();
    workers = arena.take<char>(saturated(static_cast<std::int64_t>(worker_bytes), count));
  }

  packed_queries place_of(std::int64_t r, std::int64_t D, bool standardised) const {
    const std::size_t at = static_cast<std::size_t>(r);
    float* const own = standardised ? factors + at * 2 * lanes : nullptr;
    return {packed + at * packed_floats, own, standardised ? own + lanes : nullptr, 0, D, false};
  }
};

/// The candidates of a block and KV head in order of position. Where none are stored they are one run.
SKIM_NOINLINE inline slot_order order_candidates(const attention_args& args, const attention_sequence& block,
                                                 std::int64_t head, std::int32_t* list, const order_scratch& scratch) {
  const chunk_sight sight(args, block, head);
  const std::int64_t past = block.past(head);
  if (!block.kv.positions) {
    const std::int64_t first = greater(sight.hull().begin - block.kv.first_position, 0);
    const std::int64_t last = smaller(sight.hull().end - block.kv.first_position, past);
    return {nullptr, first, greater(last - first, 0)};
  }
  const auto seen = [&](std::int64_t slot) SKIM_LAMBDA_INLINE { return sight.sees(block.kv.position(head, slot)); };
  return order_slots(block.kv, head, past, seen, list, scratch);
}

/// Calls `body(math)` with the arithmetic of standardised products; others multiply in f32, whatever is stored.
template <class Body>
SKIM_INLINE void with_products(bool standardised, const kv_tensor& keys, const Body& body) {
#if SKIM_CPU_DOT_BYTES
  if (standardised && has_8_bits(keys.type)) return body(simd::dot_bytes{});
#endif
  const bool pairs = standardised && keys.type == element::bf16 && !keys.scales;
  simd::with_math(accumulate::dot_pairs{}, pairs ? keys.type : element::none, body);
}
template <class Body>
SKIM_INLINE void with_products(const packed_queries& queries, const kv_tensor& keys, const Body& body) {
  with_products(queries.factors && queries.in_lanes, keys, body);
}

/// rows [kept, padded D]: the queries that score, of one block and KV head.
inline void choose_scoring_queries(const quoka& policy, const attention_args& args, const attention_sequence& block,
                                   std::int64_t head, const slot_order& past, arena& scratch, float* rows) {
  const std::int64_t D = args.q.extents[2], G = group_size(args), length = padded_row(D);
  const std::int64_t kept = policy.queries.kept(block.Tq, G);
  if (policy.queries.rows == query_rows::group_means) {
    choose_queries(policy.queries, args, block, head, choose_scratch(scratch, block.Tq, D), rows);
  } else {
    choose_own_queries(policy.queries, args, block, head, past, needed_scratch(scratch, policy.queries, block.Tq, G, D),
                       rows);
    for (std::int64_t i = 0; policy.similarity == similarity::cosine && i < kept; ++i) {
      float* const row = rows + i * length;
      if (!is_silent(row)) scale_row(scale_to_one(row, length), length, row);
    }
  }
}

}  // namespace detail

/// Scores are f32. Of exact arithmetic on the stored keys and the chosen queries, a cosine is within
/// 2^-24 (D / 8 + G + 12); a standardised product within 2^-24 (D + 40) (sum_d |c_d k_d| + |m|) / s, where m and s are those
/// of that arithmetic, and beside it what their own errors make; smoothing adds 2^-22 of the largest neighbour.
template <>
struct score_kernel<quoka> : own_hooks<quoka, executor_ref> {
  static std::size_t workspace_bytes(const quoka& policy, const attention_args& args, unsigned workers) {
    detail::arena arena;
    const std::int64_t together = detail::group_tokens(args, policy.keep.every, workers);
    detail::quoka_scratch(arena, policy, args, workers, detail::smaller(tokens_of(args), together));
    return arena.used();
  }

  static void score(const quoka& policy, const attention_blocks& blocks, tensor_view<float, 2> scores, memory,
                    memory workspace, executor_ref executor) {
    const attention_args& args = *blocks.args;
    detail::arena arena(workspace.data);
    const detail::quoka_scratch scratch(arena, policy, args, executor.concurrency(), tokens_of(args));
    const std::int64_t heads = first_view(args).heads, rows = blocks.count() * heads;

    executor.parallel_for(rows, [&](std::int64_t r, unsigned worker) {
      const attention_sequence block = blocks.at(r / heads);
      if (keeps_all(policy, block, r % heads)) return;
      prepare(policy, args, block, r, scratch, detail::worker_piece(scratch.workers, scratch.worker_bytes, worker));
    });

    // In token-major storage a unit takes all heads of its keys, tile by tile, so that memory is read in order.
    const kv_tensor& keys = first_view(args).k;
    const std::int64_t together = keys.head_stride < keys.row_stride ? heads : 1;
    const std::int64_t longest = detail::smaller(scores.extents[1], longest_past(args, policy.keep.every));
    const std::int64_t pieces = (longest + detail::score_keys - 1) / detail::score_keys;
    executor.parallel_for(rows / together * pieces, [&](std::int64_t unit, unsigned worker) {
      const std::int64_t first = unit / pieces * together, begin = unit % pieces * detail::score_keys;
      const attention_sequence block = blocks.at(first / heads);
      char* const piece = detail::worker_piece(scratch.workers, scratch.worker_bytes, worker);
      for (std::int64_t tile = begin; tile < begin + detail::score_keys; tile += detail::keys_of_tile) {
        for (std::int64_t r = first; r < first + together; ++r) {
          const bool last = r + 1 == first + together;  // the tile's
          score_one(policy, args, block, r, tile, last ? first : r + 1, last ? tile + detail::keys_of_tile : tile,
                    scratch, reinterpret_cast<float*>(piece), scores.at(r));
        }
      }
    });

    if (!detail::standardises(policy) && policy.smooth == 1) return;
    executor.parallel_for(rows, [&](std::int64_t r, unsigned) {
      if (keeps_all(policy, blocks.at(r / heads), r % heads)) return;
      const detail::slot_order& order = scratch.orders[r];
      float* const own = scores.at(r);
      for (std::int64_t i = 0; scratch.queries[r].n == 0 && i < order.count; ++i) {
        own[order.at(i)] = static_cast<float>(i + 1 - order.count);  // no query scores: the newest
      }
      detail::smooth_scores(order, policy.smooth, own);
    });
  }

 private:
  /// As scores are laid out: as many for each sequence as the longest has.
  static std::int64_t tokens_of(const attention_args& args) {
    return detail::saturated(sequence_count(args), most_tokens(args));
  }

  /// Nothing to score: the block is empty, reads everything, or its budget covers what this head holds.
  static bool keeps_all(const quoka& policy, const attention_sequence& block, std::int64_t head) {
    const std::int64_t past = block.past(head);
    return block.Tq == 0 || past <= policy.keep.keys(past) || detail::reads_all(policy.keep, block);
  }

  /// The scores of a tile of keys of one block and KV head. Next comes the one at `next_begin` of `next_r`.
  static void score_one(const quoka& policy, const attention_args& args, const attention_sequence& block,
                        std::int64_t r, std::int64_t begin, std::int64_t next_r, std::int64_t next_begin,
                        const detail::quoka_scratch& scratch, float* keys, float* scores) {
    const std::int64_t head = r % first_view(args).heads, past = block.past(head);
    if (begin >= past || keeps_all(policy, block, head) || scratch.queries[r].n == 0) return;
    const detail::score_job job{&block.kv, head, scratch.seen[r], args.mask.left < mask::unbounded};
    const std::int64_t count = detail::smaller(past - begin, detail::keys_of_tile);
    const std::int64_t next_head = next_r % first_view(args).heads;
    const detail::coming_keys next(block.kv, next_head, next_begin,
                                   detail::smaller(block.past(next_head), next_begin + detail::keys_of_tile));
    detail::with_products(scratch.queries[r], block.kv.k, [&](auto math) SKIM_LAMBDA_INLINE {
      detail::score_tile_of_slots<decltype(math)>(job, policy.similarity, scratch.queries[r], begin, count, next, keys,
                                                  scores);
    });
  }

  /// The candidates and the queries of one block and KV head; n = 0 if none scores.
  static void prepare(const quoka& policy, const attention_args& args, const attention_sequence& block, std::int64_t r,
                      const detail::quoka_scratch& scratch, char* piece) {
    using namespace detail;
    const std::int64_t D = args.q.extents[2], heads = first_view(args).heads, head = r % heads;
    const std::int64_t kept = policy.queries.kept(block.Tq, group_size(args));
    detail::arena arena(piece);
    float* const rows = arena.take<float>(kept * padded_row(D));
    slot_order& order = scratch.orders[r];
    packed_queries& packed = scratch.queries[r];
    scratch.seen[r] = chunk_sight(args, block, head).hull();
    if (goes_by_position(policy)) {
      order = order_candidates(args, block, head, scratch.lists + static_cast<std::size_t>(r) * scratch.tokens,
                               order_scratch(arena, static_cast<std::int64_t>(scratch.tokens)));
    }
    if (standardises(policy)) fetch_moments(block.kv, head, order, 0, keys_of_tile);
    choose_scoring_queries(policy, args, block, head, order, arena, rows);
    if (standardises(policy)) scale_queries(rows, kept, D, block.kv.k.type);
    const packed_queries place = scratch.place_of(r, D, standardises(policy));
    const auto pack = [&] {
      with_products(standardises(policy), block.kv.k, [&](auto math) SKIM_LAMBDA_INLINE {
        packed = pack_queries<decltype(math)>(policy.reduce, rows, kept, place);
      });
    };
    pack();
    if (!standardises(policy)) return;
    moments_found found;
    const moment_scratch moments(arena, kept, D);
    const auto measure = [&] {
      with_products(packed, block.kv.k, [&](auto math) SKIM_LAMBDA_INLINE {
        found = find_moments<decltype(math)>(block, head, order, packed, moments);
      });
    };
    measure();
    if (found.want_raising()) {
      raise_queries(rows, kept, D);
      pack();
      measure();
    }
    if (!found.some) packed.n = 0;
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
