// SPDX-License-Identifier: Apache-2.0
/// \file Launches attention: which kernel a call takes, how it is cut, what scratch that needs.
#pragma once

#include <skim/cuda/arch/sm80.cuh>
#include <skim/cuda/arch/sm90.cuh>
#include <skim/cuda/kernel/attend_any.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Calls `body(kernel, tile)` for the kernel that takes a call.
template <class Body>
void with_kernel(const kv_view& kv, const Body& body) {
  const bool taken = with_tensor_cores(kv, [&](auto type, auto dim) {
    using T = decltype(type);
    constexpr int D = dim.value;
    if constexpr (D == 64 || D == 128) {
      if (has_hopper_code()) return body(&attend_by_warpgroups<T, D>, warpgroup_tile<D>{});
    }
    body(&attend_by_tensor_cores<T, D>, tensor_tile<D>{});
  });
  if (!taken) body(&attend_plainly<plain_tile::threads>, plain_tile{});
}

/// Scratch that sequences of a batch at work together may take for results of splits; one alone takes what it needs.
inline constexpr std::int64_t most_part_bytes = std::int64_t{1} << 28;

/// How sequences that are launched together are cut, one or some of a batch; and their scratch, laid out behind nothing to
/// learn its size.
struct attend_plan {
  attend_call call{};
  batch_call batch{};          // of a batch
  std::int64_t sequences = 1;  // that are launched together

  /// From `known_sequence` s on; of a batch, where `first` are done, from that one on. `aligned`: whether rows are, as far as
  /// strides allow; a null address says nothing of that.
  attend_plan(const attention_args& args, std::int64_t s, std::int64_t first, const index_lists* lists,
              std::int64_t list_row, std::int64_t block_rows, skim::detail::arena& arena, bool aligned = true) {
    const attention_sequence sequence = known_sequence(args, s);
    const kv_view& kv = sequence.kv;
    const std::int64_t rows = greater(sequence.Tq, 1), G = group_size(args), row = sequence.first_row;
    call.kv = rows_of(kv);
    call.q_type = args.q.type;
    call.out_type = args.out.type;
    call.q = static_cast<const char*>(args.q.data) + bytes_of(args.q.type, row * args.q.strides[0]);
    call.out = static_cast<char*>(args.out.data) + bytes_of(args.out.type, row * args.out.strides[0]);
    call.q_row = args.q.strides[0];
    call.q_head = args.q.strides[1];
    call.out_row = args.out.strides[0];
    call.out_head = args.out.strides[1];
    if (args.lse.data) call.lse = args.lse.data + row * args.lse.strides[0];
    call.lse_row = args.lse.strides[0];
    call.lse_head = args.lse.strides[1];
    if (lists) {
      call.indices = lists->row(list_row);
      call.counts = lists->counts + list_row;
      call.list_capacity = lists->capacity;
    }
    call.sink_logits = args.sink_logits;
    call.left = args.mask.left;
    call.right = args.mask.right;
    call.scale = std::fabs(logit_scale(args));
    call.q_sign = logit_scale(args) < 0 ? -1.0f : 1.0f;
    call.soft_cap = args.soft_cap;
    call.q_as_stored = call.q_type == kv.k.type && call.q_sign > 0 && call.q_row % 8 == 0 && call.q_head % 8 == 0 &&
                       reinterpret_cast<std::uintptr_t>(call.q) % 16 == 0;
    call.out_in_pairs = call.out_type != element::f32 && call.out_row % 2 == 0 && call.out_head % 2 == 0 &&
                        reinterpret_cast<std::uintptr_t>(call.out) % 4 == 0;
    call.Tq = static_cast<int>(sequence.Tq);
    call.heads = static_cast<int>(kv.heads);
    call.group = static_cast<int>(G);
    call.block_rows = static_cast<int>(block_rows > 0 ? smaller(block_rows, rows) : rows);
    const auto cut = [&](auto, auto tile) {
      call.tile_rows = decltype(tile)::rows;
      call.tile_keys = decltype(tile)::keys;
    };
    if (aligned) {
      with_kernel(kv, cut);
    } else {
      cut(0, plain_tile{});
    }
    call.tiles_of_block = static_cast<int>(pieces(call.block_rows * call.group, call.tile_rows));
    std::int64_t parts;
    if (is_batch(args)) {
      parts = cut_batch(args, first, kv, arena);
    } else {
      const std::int64_t blocks = pieces(rows, call.block_rows);
      call.tiles = static_cast<int>(blocks * call.tiles_of_block);
      call.splits = splits_of(call.tiles, call.heads, key_tiles(kv));
      parts = call.splits > 1 ? sequence.Tq * args.q.extents[1] * call.splits : 0;
    }
    call.partial = arena.take<float>(parts * kv.v.dim);
    call.partial_sums = arena.take<float>(parts * 2);
  }

 private:
  /// That any tile meets.
  int key_tiles(const kv_view& kv) const { return static_cast<int>(pieces(kv.tokens, call.tile_keys)) + 1; }

  /// As many sequences from `first` on as scratch is for. Returns the results of splits that they may leave.
  std::int64_t cut_batch(const attention_args& args, std::int64_t first, const kv_view& kv,
                         skim::detail::arena& arena) {
    const std::int64_t longest = args.batch.most_rows, G = call.group, Hq = args.q.extents[1];
    const bool whole = call.block_rows >= longest;  // a block is a sequence
    call.splits = splits_of(1, call.heads, key_tiles(kv));
    std::int64_t rows, blocks, parts;
    for (sequences = args.batch.sequences - first;; sequences = (sequences + 1) / 2) {
      rows = smaller(args.q.extents[0], sequences * longest);
      blocks = sequences + (whole ? 0 : rows / call.block_rows);
      // A sequence of several splits has no more of them than there are pieces for.
      const std::int64_t of_sequence = std::int64_t{wanted_pieces} * call.tile_rows;
      parts = call.splits > 1 ? smaller(rows * Hq * call.splits, sequences * of_sequence) : 0;
      if (sequences == 1 || parts * (kv.v.dim + 2) * 4 <= most_part_bytes) break;
    }
    batch = batch_of(args, call.block_rows, first, sequences);
    batch.tile_rows = call.tile_rows;
    batch.most_key_tiles = key_tiles(kv);
    call.tiles = batch.room =
        static_cast<int>(whole ? rows * G / call.tile_rows + sequences : blocks * call.tiles_of_block);
    call.batch = batch.tiles = arena.take<batch_tile>(batch.room);
    return parts;
  }
};

template <class Tile>
std::size_t shared_bytes(Tile, const kv_view&) {
  return Tile::bytes;
}
inline std::size_t shared_bytes(plain_tile, const kv_view& kv) {
  return plain_tile::bytes(kv.k.dim, kv.v.dim);
}

/// Calls `body(sequence, plan)` for what is launched together, one after another.
template <class Body>
void for_each_plan(const attention_args& args, const index_lists* lists, std::int64_t block_rows, void* workspace,
                   bool aligned, const Body& body) {
  std::int64_t list_row = 0;
  for (std::int64_t s = 0; s < known_sequences(args); ++s) {
    const attention_sequence sequence = known_sequence(args, s);
    const std::int64_t count = is_batch(args) ? args.batch.sequences : 1;
    for (std::int64_t first = 0; first < count;) {
      skim::detail::arena arena(workspace);
      const attend_plan plan(args, s, first, lists, list_row, block_rows, arena, aligned);
      body(sequence, plan, arena);
      first += plan.sequences;
    }
    list_row += block_count(sequence.Tq, block_rows) * sequence.kv.heads;
  }
}

/// Scratch of the longest sequence: they run one after another. It serves caches at any address.
inline std::size_t attend_bytes(const attention_args& args, std::int64_t block_rows) {
  std::size_t most = 0;
  for (const bool aligned : {true, false}) {
    for_each_plan(args, nullptr, block_rows, nullptr, aligned,
                  [&](const attention_sequence&, const attend_plan&, const skim::detail::arena& arena) {
                    if (arena.used() > most) most = arena.used();
                  });
  }
  return most;
}

/// Of checked arguments: every sequence attends to what its lists name, or to everything, and to its own rows.
inline void attend_keys(const attention_args& args, const index_lists* lists, std::int64_t block_rows, void* workspace,
                        launcher& launch) {
  for_each_plan(args, lists, block_rows, workspace, true,
                [&](const attention_sequence& sequence, const attend_plan& plan, const skim::detail::arena&) {
                  if (sequence.Tq == 0) return;
                  const attend_call& call = plan.call;
                  if (call.batch) find_tiles(plan.batch, launch);
                  with_kernel(sequence.kv, [&](auto kernel, auto tile) {
                    launch(kernel, std::int64_t{call.tiles} * call.splits, call.heads, tile.threads,
                           shared_bytes(tile, sequence.kv), call);
                  });
                  if (call.splits == 1) return;
                  constexpr int threads = 128;
                  const std::int64_t rows =
                      smaller(call.tile_rows, std::int64_t{call.block_rows} * call.group);  // of a tile
                  launch(&merge_splits<threads>, pieces(call.tiles * rows, threads / 32), call.heads, threads, 0, call);
                });
}

/// What the GPU cannot do, by name.
inline report check_limits(const attention_args& args) {
  if (has_bias(args)) return fault(status::unsupported, "bias (on a GPU)", 1, 0);
  if (args.alibi_slopes) return fault(status::unsupported, "alibi_slopes (on a GPU)", 1, 0);
  if (report r = check_loadable(args.q.type, "q"); !r) return r;
  if (sequence_count(args) == 0) return {};
  if (report r = check_loadable(args.out.type, "out"); !r) return r;
  const kv_view& kv = first_view(args);
  for (const kv_tensor* const each : {&kv.k, &kv.v}) {
    if (report r = check_loadable(each->type, each == &kv.k ? "kv.k" : "kv.v"); !r) return r;
    if (each->dim > plain_tile::largest_dim) {
      return fault(status::unsupported, each == &kv.k ? "kv.k.dim" : "kv.v.dim", each->dim, plain_tile::largest_dim,
                   "at most");
    }
  }
  const std::int64_t most = std::int64_t{1} << 28;  // rows and slots are 32-bit numbers here, and tiles of them
  if (most_tokens(args) > most) return fault(status::unsupported, "kv.tokens", most_tokens(args), most, "at most");
  const std::int64_t rows = (is_batch(args) ? args.q.extents[0] : most_rows(args)) * args.q.extents[1];
  if (rows > most) return fault(status::unsupported, "q.extents[0] * q.extents[1]", rows, most, "at most");
  const std::int64_t table = args.batch.table_stride, slots = std::int64_t{1} << 30;
  if (is_batch(args) && table > slots / kv.page_size / args.batch.sequences) {
    return fault(status::unsupported, "batch.table_stride (times sequences and page_size)", table,
                 slots / kv.page_size / args.batch.sequences, "at most");
  }
  return kv.heads > 65535 ? fault(status::unsupported, "kv.heads", kv.heads, 65535, "at most") : report{};
}

}}}}  // namespace skim::v0_2::cuda::detail
