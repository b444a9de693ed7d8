// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA on a GPU: what it takes, its scratch, its launches.
#pragma once

#include <skim/cuda/arch/choose_in_cluster.cuh>
#include <skim/cuda/arch/score_sm90.cuh>
#include <skim/cuda/kernel/attend.cuh>
#include <skim/cuda/kernel/choose.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/cuda/selector/mean_queries.cuh>
#include <skim/cuda/selector/needed_queries.cuh>
#include <skim/cuda/selector/picked_queries.cuh>
#include <skim/cuda/selector/quoka_moments.cuh>
#include <skim/cuda/selector/quoka_rows.cuh>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

/// Blocks of rows, of a sequence or of any of a batch, whose scores lie in scratch together.
inline constexpr std::int64_t blocks_together = 16;

/// Calls `body` as `with_tensor_cores`, of keys alone.
template <class Body>
bool scores_by_tensor_cores(const quoka_call& call, kv_view kv, const Body& body) {
  kv.v = kv.k;
  bool taken = false;
  with_tensor_cores(kv, [&](auto type, auto dim) {
    taken = tensor_scores<dim.value>::bytes(call.whole) <= most_shared_bytes;
    if (taken) body(type, dim);
  });
  return taken;
}

/// Calls `body` likewise where tensor cores pick the queries too.
template <class Body>
bool picks_by_tensor_cores(const quoka_call& call, const kv_view& kv, const Body& body) {
  // By what a block may have, not by what a short call's has: so its bits are those that it has in a longer call.
  const std::int64_t rows = (call.keep.every > 0 ? call.keep.every : call.block_rows) * call.group;
  if (!call.fragments || !call.needed || call.q_type != kv.k.type || call.q_row % 8 != 0 || call.q_head % 8 != 0 ||
      reinterpret_cast<std::uintptr_t>(call.q) % 16 != 0 ||
      !tensor_picking::takes(rows, call.group, call.n, kv.k.dim)) {
    return false;
  }
  return scores_by_tensor_cores(call, kv, [&](auto type, auto dim) {
    if constexpr (dim.value == 64 || dim.value == 128) body(type, dim);
  });
}

/// Blocks of what the host knows as one sequence; of a batch as many as there may be.
inline std::int64_t blocks_of(const attention_args& args, const attention_sequence& sequence, std::int64_t every) {
  return is_batch(args) ? block_count(args, every) : block_count(sequence.Tq, every);
}

/// The blocks of a sequence, or of a batch as its `known_sequence`, from `first_block` on, at most `blocks_together`, and their
/// scratch, behind which block of a batch is where.
inline quoka_call lay_out_quoka(const quoka& policy, const attention_args& args, const attention_sequence& sequence,
                                std::int64_t first_block, skim::detail::arena& arena) {
  const std::int64_t G = group_size(args), D = args.q.extents[2], every = policy.keep.every;
  quoka_call call{};
  call.kv = rows_of(sequence.kv);
  call.q = static_cast<const char*>(args.q.data) + bytes_of(args.q.type, sequence.first_row * args.q.strides[0]);
  call.q_row = args.q.strides[0];
  call.q_head = args.q.strides[1];
  call.q_type = args.q.type;
  call.left = args.mask.left;
  call.right = args.mask.right;
  call.scale = logit_scale(args);
  call.Tq = static_cast<int>(sequence.Tq);
  call.heads = static_cast<int>(sequence.kv.heads);
  call.group = static_cast<int>(G);
  const std::int64_t rows = every > 0 ? smaller(every, sequence.Tq) : sequence.Tq;
  call.block_rows = static_cast<int>(greater(rows, 1));
  call.first_block = static_cast<int>(first_block);
  const std::int64_t blocks = blocks_of(args, sequence, every);
  call.blocks = static_cast<int>(smaller(blocks - first_block, blocks_together));
  std::int64_t longest = greater(is_batch(args) ? sequence.kv.tokens : 0, 1);
  if (is_batch(args)) call.batch = arena.take<batch_tile>(blocks);
  for (int b = 0; !is_batch(args) && b < call.blocks; ++b) {
    const attention_sequence block = block_of(sequence, first_block + b, every);
    longest = greater(longest, block.Tk());
    if (block.Tq > 0 && runs_dense(policy.keep, block.Tk(), block.Tq, measured_crossing)) call.dense_blocks |= 1u << b;
  }
  call.rows = static_cast<int>(pieces(greater(rows, 1) * G, picking::rows) * picking::rows);
  call.n = static_cast<int>(policy.queries.kept(greater(rows, 1), G));
  call.samples = static_cast<int>(policy.queries.samples);
  call.smooth = static_cast<int>(policy.smooth);
  call.choice = policy.queries.choice;
  call.needed = call.choice == query_choice::needed && policy.queries.n < greater(rows, 1) * G;
  call.means = policy.queries.rows == query_rows::group_means;
  call.whole = static_cast<int>(whole_queries(call.n, call.means));
  call.inverse_norms = sequence.kv.inverse_norms;
  call.inverse_norms_stride = sequence.kv.inverse_norms_stride;
  const bool tensor = scores_by_tensor_cores(call, sequence.kv, [](auto, auto) {});
  const bool rounds = tensor || (!call.means && sequence.kv.k.type == element::bf16);
  call.query_type = rounds ? sequence.kv.k.type : element::none;
  call.keep = policy.keep;
  const std::int64_t samples = moments_tile::most(longest);
  call.most_samples = static_cast<int>(samples);
  using together = tensor_scores<64>;
  call.pieces = static_cast<int>(tensor ? smaller(together::most_pieces, pieces(samples, together::samples))
                                        : pieces(samples, moments_tile::samples));
  call.score_stride = pieces(longest, 64) * 64;
  const std::int64_t lists = std::int64_t{call.blocks} * call.heads, own = lists * call.rows;
  call.needs = arena.take<float>(own);
  call.inverse_lengths = call.needs;  // of another rule
  call.features = arena.take<float>(call.needed ? own * D : 0);
  call.distances = arena.take<float>(own);
  call.nearest = arena.take<int>(own);
  call.picked = arena.take<int>(lists * call.n * (call.means ? G : 1));
  call.queries = arena.take<float>(lists * call.n * padded(D));
  call.factors = arena.take<float>(lists * call.n);
  call.offsets = arena.take<float>(lists * call.n);
  char* const fragments = arena.take<char>(lists * call.whole * D * 2);
  call.fragments = tensor ? fragments : nullptr;
  // Room for either kernel: which it is depends on addresses too.
  call.moments = arena.take<product_moments>(call.means ? 0 : lists * call.n * pieces(samples, moments_tile::samples));
  call.raw = arena.take<float>(lists * call.score_stride);
  call.scores = arena.take<float>(lists * call.score_stride);
  return call;
}

}  // namespace detail

/// The library's own rule, `needed` queries or all of a head's own rows and `standardised` scores; and the paper's, `cosine`
/// with group means of the tokens of `lowest_cosine`, of the `newest` or of all. As on the CPU, but that where tensor cores
/// score (16-bit keys of 64, 80, 96, 128, 192 or 256) queries are rounded to the keys' type, that sums are ordered otherwise,
/// that squares of queries must not overflow f32 with our rule, and that with the paper's those shorter than 2^-126 are zeros.
/// Where tensor cores pick (`tensor_picking::takes`), distances of features are made of products of rows as they are stored:
/// off by 2^-24 (D / 8 + 16) times 16 |x|^2 / spread^2 of the longest row, so that rows must not have nearly all in common.
/// Without stored positions, which may be in any order.
template <>
struct score_kernel<quoka> {
  static report check(const quoka& policy, const attention_args& args) {
    const query_choice choice = policy.queries.choice;
    const bool means = policy.queries.rows == query_rows::group_means, all = choice == query_choice::all;
    if (!all && (means ? choice != query_choice::lowest_cosine && choice != query_choice::newest
                       : choice != query_choice::needed)) {
      return fault(status::unsupported, "queries.choice (on a GPU)", "another",
                   means ? "lowest_cosine, newest or all of group means" : "needed, or all of own rows");
    }
    if (policy.similarity != (means ? similarity::cosine : similarity::standardised)) {
      return fault(status::unsupported, "similarity (on a GPU)", "another",
                   means ? "cosine with group means" : "standardised with own rows");
    }
    if (policy.reduce != reduction::max) return fault(status::unsupported, "reduce (on a GPU)", "mean", "max");
    const std::int64_t G = group_size(args), every = policy.keep.every;
    const std::int64_t rows = (every > 0 ? detail::smaller(every, most_rows(args)) : most_rows(args)) * G;
    if (rows > detail::picking::most_rows) {
      return fault(status::unsupported, "keep.every (rows of a block, times the group)", rows,
                   detail::picking::most_rows, "at most");
    }
    const bool picks = choice == query_choice::needed && policy.queries.n < rows;
    if (picks && detail::picking::rank_bytes(rows, policy.queries.n / 4) > detail::most_shared_bytes) {
      return fault(status::unsupported, "queries.n (on a GPU, with so many rows in a block)", policy.queries.n, 64,
                   "near");
    }
    const std::int64_t heads = first_view(args).heads, most_heads = 65535 / detail::blocks_together;
    if (heads > most_heads) return fault(status::unsupported, "kv.heads", heads, most_heads, "at most");
    for (std::int64_t s = 0; s < detail::known_sequences(args); ++s) {
      if (detail::known_sequence(args, s).kv.positions)
        return fault(status::unsupported, "kv.positions (on a GPU)", 1, 0);
    }
    return {};
  }

  static std::size_t workspace_bytes(const quoka& policy, const attention_args& args) {
    std::size_t most = 0;
    for (std::int64_t s = 0; s < detail::known_sequences(args); ++s) {
      const attention_sequence sequence = detail::known_sequence(args, s);
      const std::int64_t blocks = detail::blocks_of(args, sequence, policy.keep.every);
      for (std::int64_t first = 0; first < blocks; first += detail::blocks_together) {
        skim::detail::arena arena;
        static_cast<void>(detail::lay_out_quoka(policy, args, sequence, first, arena));
        if (arena.used() > most) most = arena.used();
      }
    }
    return most;
  }

  /// Scores and chooses; lists begin at row `list_row`.
  static void select(const quoka& policy, const attention_args& args, const attention_sequence& sequence,
                     const index_lists& lists, std::int64_t list_row, void* workspace, detail::launcher& launch) {
    const std::int64_t blocks = detail::blocks_of(args, sequence, policy.keep.every);
    for (std::int64_t first = 0; first < blocks; first += detail::blocks_together) {
      skim::detail::arena arena(workspace);
      const detail::quoka_call call = detail::lay_out_quoka(policy, args, sequence, first, arena);
      if (call.batch && first == 0) {
        detail::batch_call batch = detail::batch_of(args, call.block_rows, 0, args.batch.sequences);
        batch.tiles = call.batch;
        batch.room = static_cast<int>(blocks);
        batch.keep = policy.keep;
        if (policy.keep.dense_below < 0) batch.keep.dense_below = detail::measured_crossing.past;
        if (policy.keep.rows_below < 0) batch.keep.rows_below = detail::measured_crossing.rows;
        detail::find_tiles(batch, launch);
      }
      if (!detail::picks_by_tensor_cores(call, sequence.kv, [&](auto type, auto dim) {
            pick_together<decltype(type), dim.value>(call, launch);
          })) {
        pick(call, launch);
      }
      const int first_list = static_cast<int>(list_row + first * call.heads);
      const bool tensor = call.fragments && detail::scores_by_tensor_cores(call, sequence.kv, [&](auto type, auto dim) {
                            score_together<decltype(type), dim.value>(call, launch);
                          });
      if (!tensor) score(call, launch);
      const std::int64_t count = lists_of(call);
      const detail::quoka_rows rows{call, lists, first_list};
      if (detail::choose_by_clusters(rows, call.score_stride, count, launch)) continue;
      launch(&detail::smooth_scores<256>, detail::pieces(call.score_stride, 256), count, 256, 0, call);
      detail::choose_by_blocks(rows, count, launch);
    }
  }

 private:
  static std::int64_t lists_of(const detail::quoka_call& call) { return std::int64_t{call.blocks} * call.heads; }

  template <class T, int D>
  static void pick_together(const detail::quoka_call& call, detail::launcher& launch) {
    using namespace detail;
    const std::int64_t rows = std::int64_t{call.block_rows} * call.group;
    const std::int64_t each =
        smaller(greater(1, tensor_needs::wanted / lists_of(call)), pieces(rows, tensor_needs::rows));
    launch(&find_needs_by_tensor_cores<T, D>, each, lists_of(call), tensor_needs::threads, 0, call);
    launch(&pick_by_tensor_cores<T, D>, 1, lists_of(call), tensor_picking::threads,
           tensor_picking::bytes(rows, call.group, D), call);
  }

  static void pick(const detail::quoka_call& call, detail::launcher& launch) {
    using namespace detail;
    const std::int64_t lists = lists_of(call), D = call.kv.k.dim;
    if (call.means) {
      using means = mean_queries;
      const std::size_t bytes = means::bytes(D, call.block_rows);
      if (launch.hopper() && call.group <= means::most_together) {
        launch.in_clusters(call.group, &choose_by_cosine<means::threads, true>, call.group, lists, means::threads,
                           bytes, call);
        return;
      }
      launch(&choose_by_cosine<means::threads, false>, call.group, lists, means::threads, bytes, call);
      launch(&average_units<means::average_threads>, detail::pieces(call.n, means::average_threads / 32), lists,
             means::average_threads, 0, call);
      return;
    }
    if (call.needed) {
      launch(&find_needs<needs_tile::threads>, pieces(call.rows, needs_tile::rows), lists, needs_tile::threads,
             needs_tile::bytes(D), call);
      launch(&find_features<features_tile::threads>, call.group, lists, features_tile::threads, features_tile::bytes(D),
             call);
      const auto measure = [&](int first, int count) {
        launch(&measure_rows<picking::threads>, pieces(call.rows, picking::rows), lists, picking::threads,
               picking::measure_bytes(greater(1, call.n / 4)), call, first, count);
      };
      measure(0, 0);
      for (int first = 0, count = 0; first < call.n; first += count) {
        count = static_cast<int>(smaller(greater(1, call.n / 4), call.n - first));
        launch(&pick_rows<picking::rank_threads>, 1, lists, picking::rank_threads,
               picking::rank_bytes(call.rows, count), call, first, count);
        measure(first, count);
      }
    }
    launch(&average_members<128>, call.n, lists, 128, 0, call);
  }

  template <class T, int D>
  static void score_together(const detail::quoka_call& call, detail::launcher& launch) {
    using namespace detail;
    using tile = tensor_scores<D>;
    if (!call.means) {
      launch(&find_moments_by_tensor_cores<T, D>, call.pieces, lists_of(call), tile::threads,
             tile::moment_bytes(call.whole, call.most_samples), call);
    }
    // Blocks of a batch may be of several sequences.
    std::int64_t together = call.batch ? 1 : smaller(call.blocks, tile::most_lists);
    if constexpr (D == 64 || D == 128) {
      using wide = warpgroup_scores<D>;
      if (launch.hopper() && !call.means && wide::takes(call.whole)) {
        while (together > 1 && wide::bytes(call.whole, together) > most_shared_bytes) --together;
        const std::int64_t groups = pieces(call.blocks, together) * call.heads;
        const std::int64_t wanted = greater(1, 132 / groups), most = pieces(call.score_stride, wide::warps * 16);
        launch(together > 1 ? &score_by_warpgroups<T, D, 4> : &score_by_warpgroups<T, D, 1>, smaller(wanted, most),
               groups, wide::threads, wide::bytes(call.whole, together), call, static_cast<int>(together));
        return;
      }
    }
    // As far as two blocks share a processor.
    while (together > 1 && tile::bytes(call.whole, together) > most_shared_bytes / 2) --together;
    // Two blocks on each of 132 processors, if there is work for so many.
    const std::int64_t groups = pieces(call.blocks, together) * call.heads;
    const std::int64_t wanted = greater(1, 2 * 132 / groups),
                       most = pieces(call.score_stride, tile::warps * tile::keys);
    launch(call.means ? &score_by_tensor_cores<T, D, true> : &score_by_tensor_cores<T, D, false>, smaller(wanted, most),
           groups, tile::threads, tile::bytes(call.whole, together), call, static_cast<int>(together));
  }

  static void score(const detail::quoka_call& call, detail::launcher& launch) {
    using namespace detail;
    const std::int64_t lists = lists_of(call), D = call.kv.k.dim;
    if (!call.means) {
      launch(&find_moments<moments_tile::threads>, call.pieces, lists, moments_tile::threads, moments_tile::bytes(D),
             call);
      launch(&standardise<64>, 1, lists, 64, 0, call);
    }
    launch(&score_plainly<plain_scores::threads>, pieces(call.score_stride, plain_scores::keys), lists,
           plain_scores::threads, plain_scores::bytes(D), call);
  }
};

}}}  // namespace skim::v0_2::cuda
