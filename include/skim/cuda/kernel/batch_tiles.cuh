// SPDX-License-Identifier: Apache-2.0
/// \file Several sequences of one pool in one launch (`kv_batch`): where each tile of their rows is, written down on the
/// device, which alone knows how long they are.
#pragma once

#include <skim/attention.hpp>
#include <skim/cuda/launch.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Pieces of work that a GPU is to have, where keys can be split: one for each of 132 processors, and no second turn.
inline constexpr int wanted_pieces = 132;
inline constexpr int most_splits = 64, least_tiles_of_split = 4;

/// Splits of a tile's keys, of which there are so many tiles too; `tiles`: of the sequence's rows.
SKIM_HD SKIM_INLINE int splits_of(int tiles, int heads, int key_tiles) {
  const int pieces = tiles * heads, wanted = wanted_pieces / pieces;
  int splits = key_tiles / least_tiles_of_split;
  splits = splits < wanted ? splits : wanted;
  splits = splits < most_splits ? splits : most_splits;
  return splits > 1 ? splits : 1;
}

/// A tile of packed rows of a batch, or a block where those are not cut. Zeros where there is none.
struct batch_tile {
  int block;            // in the order of lists
  int first_token, Tq;  // of the block: its first row of q, and how many
  int first;            // packed row of the block that the tile begins with
  int past;             // tokens before the block
  int base;             // slot i of the sequence is base + i where all tables are one
  int of_sequence;      // tiles that the sequence has
  int splits;           // that a tile of it has at most
  bool dense;           // the block reads everything, as `keep` says
  std::int64_t part;    // results of splits that lie before the block's
};

/// What a batch's tiles follow from.
struct batch_call {
  const std::int32_t *tokens, *offsets;
  batch_tile* tiles;              // [room]
  int first, sequences, room;     // sequences [first, first + sequences) are at work
  int slots;                      // of a sequence's table
  int heads, group, block_rows;   // block_rows: above 0
  int tile_rows, most_key_tiles;  // tile_rows: packed rows
  retention keep;                 // of a selector, without -1
};

/// How the rows of sequence `s` fall into blocks and tiles.
struct batch_rows {
  int first_row, Tq, blocks, tiles_of_block, splits;

  SKIM_DEVICE batch_rows(const batch_call& call, int s) {
    first_row = call.offsets[s];
    Tq = call.offsets[s + 1] - first_row;
    blocks = max(1, (Tq + call.block_rows - 1) / call.block_rows);
    tiles_of_block = max(1, (min(call.block_rows, Tq) * call.group + call.tile_rows - 1) / call.tile_rows);
    splits = splits_of(tiles(), call.heads, call.most_key_tiles);
  }
  SKIM_DEVICE int tiles() const { return blocks * tiles_of_block; }
  /// Results of splits of one query head that blocks before block `b` leave; those of one split are the output.
  SKIM_DEVICE std::int64_t parts(const batch_call& call, int b) const {
    return splits > 1 ? static_cast<std::int64_t>(min(b * call.block_rows, Tq)) * splits : 0;
  }
};

/// A warp for each sequence at work, which counts what those before it have.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_batch_tiles(const batch_call call) {
  static_assert(Threads == 32, "one warp sums");
  start_in_chain();
  const int s = call.first + static_cast<int>(blockIdx.x), lane = threadIdx.x;
  int blocks = 0, tiles = 0, parts = 0;
  for (int i = lane; i < s; i += Threads) {
    const batch_rows other(call, i);
    blocks += other.blocks;
    if (i < call.first) continue;
    tiles += other.tiles();
    parts += static_cast<int>(other.parts(call, other.blocks));  // few, where several sequences are at work
  }
  blocks = __reduce_add_sync(all_lanes, blocks);
  tiles = __reduce_add_sync(all_lanes, tiles);
  parts = __reduce_add_sync(all_lanes, parts);
  const batch_rows own(call, s);
  for (int i = lane; i < own.tiles(); i += Threads) {
    const int b = i / own.tiles_of_block;
    batch_tile tile;
    tile.block = blocks + b;
    tile.first_token = own.first_row + b * call.block_rows;
    tile.Tq = min(call.block_rows, own.Tq - b * call.block_rows);
    tile.first = i % own.tiles_of_block * call.tile_rows;
    tile.past = call.tokens[s] - own.Tq + b * call.block_rows;
    tile.base = s * call.slots;
    tile.dense = tile.Tq > 0 && runs_dense(call.keep, tile.past, tile.Tq, {});
    tile.of_sequence = own.tiles();
    tile.splits = own.splits;
    tile.part = (parts + own.parts(call, b)) * call.heads * call.group;
    call.tiles[tiles + i] = tile;
  }
  if (blockIdx.x != gridDim.x - 1) return;
  for (int i = tiles + own.tiles() + lane; i < call.room; i += Threads) call.tiles[i] = {};
}

inline bool is_batch(const attention_args& args) {
  return !args.sequences && args.batch.sequences > 0;
}

/// Sequences of a call whose rows and tokens the host knows. A batch counts as one, as long as any of its own may be, with
/// all tables.
inline std::int64_t known_sequences(const attention_args& args) {
  return is_batch(args) ? 1 : sequence_count(args);
}
inline attention_sequence known_sequence(const attention_args& args, std::int64_t s) {
  if (!is_batch(args)) return sequence_at(args, s);
  attention_sequence longest{args.kv, 0, args.batch.most_rows};
  longest.kv.block_table = args.batch.block_tables;
  return longest;
}

/// Sequences [first, first + sequences) of a batch in blocks of `block_rows`, at least 1, which are not cut.
inline batch_call batch_of(const attention_args& args, std::int64_t block_rows, std::int64_t first,
                           std::int64_t sequences) {
  batch_call batch{};
  batch.tokens = args.batch.tokens;
  batch.offsets = args.batch.offsets;
  batch.first = static_cast<int>(first);
  batch.sequences = static_cast<int>(sequences);
  batch.slots = static_cast<int>(args.batch.table_stride * args.kv.page_size);
  batch.heads = static_cast<int>(args.kv.heads);
  batch.group = static_cast<int>(group_size(args));
  batch.block_rows = static_cast<int>(block_rows);
  batch.tile_rows = 1 << 30;
  return batch;
}

inline void find_tiles(const batch_call& batch, launcher& launch) {
  constexpr int threads = 32;
  launch(&find_batch_tiles<threads>, batch.sequences, 1, threads, 0, batch);
}

}}}}  // namespace skim::v0_2::cuda::detail
