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

/// How a sequence is cut; and its scratch, laid out behind nothing to learn its size.
struct attend_plan {
  attend_call call{};
  std::int64_t tiles = 0;  // of all blocks

  /// `aligned`: whether rows are, as far as strides allow; a null address says nothing of that.
  attend_plan(const attention_args& args, const attention_sequence& sequence, const index_lists* lists,
              std::int64_t list_row, std::int64_t block_rows, skim::detail::arena& arena, bool aligned = true) {
    const kv_view& kv = sequence.kv;
    const std::int64_t rows = sequence.Tq, G = group_size(args), first = sequence.first_row;
    call.kv = rows_of(kv);
    call.q_type = args.q.type;
    call.out_type = args.out.type;
    call.q = static_cast<const char*>(args.q.data) + bytes_of(args.q.type, first * args.q.strides[0]);
    call.out = static_cast<char*>(args.out.data) + bytes_of(args.out.type, first * args.out.strides[0]);
    call.q_row = args.q.strides[0];
    call.q_head = args.q.strides[1];
    call.out_row = args.out.strides[0];
    call.out_head = args.out.strides[1];
    if (args.lse.data) call.lse = args.lse.data + first * args.lse.strides[0];
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
    call.Tq = static_cast<int>(rows);
    call.heads = static_cast<int>(kv.heads);
    call.group = static_cast<int>(G);
    call.block_rows = static_cast<int>(block_rows > 0 ? smaller(block_rows, greater(rows, 1)) : greater(rows, 1));
    const auto cut = [&](auto, auto tile) {
      call.tile_rows = decltype(tile)::rows;
      call.tile_keys = decltype(tile)::keys;
    };
    if (aligned) {
      with_kernel(kv, cut);
    } else {
      cut(0, plain_tile{});
    }
    const std::int64_t blocks = pieces(rows, call.block_rows);
    call.tiles_of_block = static_cast<int>(pieces(call.block_rows * G, call.tile_rows));
    tiles = blocks * call.tiles_of_block;
    // The last block may have fewer rows and so more splits; of its keys there are at most so many tiles.
    const std::int64_t key_tiles = pieces(kv.tokens, call.tile_keys) + 1;
    const std::int64_t rows_of_last = rows - (blocks - 1) * call.block_rows;
    for (const std::int64_t own : {static_cast<std::int64_t>(call.block_rows), greater(rows_of_last, 1)}) {
      const int splits =
          splits_of(static_cast<int>(pieces(own * G, call.tile_rows)), call.heads, static_cast<int>(key_tiles));
      if (splits > call.splits) call.splits = splits;
    }
    const std::int64_t parts = call.splits > 1 ? rows * args.q.extents[1] * call.splits : 0;
    call.partial = arena.take<float>(parts * kv.v.dim);
    call.partial_sums = arena.take<float>(parts * 2);
  }
};

template <class Tile>
std::size_t shared_bytes(Tile, const kv_view&) {
  return Tile::bytes;
}
inline std::size_t shared_bytes(plain_tile, const kv_view& kv) {
  return plain_tile::bytes(kv.k.dim, kv.v.dim);
}

/// Scratch of the longest sequence: they run one after another. It serves caches at any address.
inline std::size_t attend_bytes(const attention_args& args, std::int64_t block_rows) {
  std::size_t most = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    for (const bool aligned : {true, false}) {
      skim::detail::arena arena;
      const attend_plan plan(args, sequence_at(args, s), nullptr, 0, block_rows, arena, aligned);
      if (arena.used() > most) most = arena.used();
    }
  }
  return most;
}

/// Of checked arguments: every sequence attends to what its lists name, or to everything, and to its own rows.
inline void attend_keys(const attention_args& args, const index_lists* lists, std::int64_t block_rows, void* workspace,
                        launcher& launch) {
  std::int64_t list_row = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    const attention_sequence sequence = sequence_at(args, s);
    skim::detail::arena arena(workspace);
    const attend_plan plan(args, sequence, lists, list_row, block_rows, arena);
    const attend_call& call = plan.call;
    list_row += block_count(sequence.Tq, block_rows) * call.heads;
    if (sequence.Tq == 0) continue;
    const std::int64_t grid = plan.tiles * call.splits;
    with_kernel(sequence.kv, [&](auto kernel, auto tile) {
      launch(kernel, grid, call.heads, tile.threads, shared_bytes(tile, sequence.kv), call);
    });
    if (call.splits == 1) continue;
    constexpr int threads = 128;
    launch(&merge_splits<threads>, pieces(sequence.Tq * args.q.extents[1], threads / 32), 1, threads, 0, call);
  }
}

/// What the GPU cannot do, by name.
inline report check_limits(const attention_args& args) {
  if (args.batch.sequences > 0)
    return fault(status::unsupported, "batch.sequences (on a GPU)", args.batch.sequences, 0);
  if (has_bias(args)) return fault(status::unsupported, "bias (on a GPU)", 1, 0);
  if (args.alibi_slopes) return fault(status::unsupported, "alibi_slopes (on a GPU)", 1, 0);
  if (sequence_count(args) == 0) return {};
  const kv_view& kv = first_view(args);
  for (const kv_tensor* const each : {&kv.k, &kv.v}) {
    if (each->dim > plain_tile::largest_dim) {
      return fault(status::unsupported, each == &kv.k ? "kv.k.dim" : "kv.v.dim", each->dim, plain_tile::largest_dim,
                   "at most");
    }
  }
  const std::int64_t most = std::int64_t{1} << 28;  // rows and slots are 32-bit numbers here, and tiles of them
  if (most_tokens(args) > most) return fault(status::unsupported, "kv.tokens", most_tokens(args), most, "at most");
  const std::int64_t rows = most_rows(args) * args.q.extents[1];
  if (rows > most) return fault(status::unsupported, "q.extents[0] * q.extents[1]", rows, most, "at most");
  return kv.heads > 65535 ? fault(status::unsupported, "kv.heads", kv.heads, 65535, "at most") : report{};
}

}}}}  // namespace skim::v0_2::cuda::detail
