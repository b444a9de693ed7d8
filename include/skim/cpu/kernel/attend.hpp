// SPDX-License-Identifier: Apache-2.0
/// \file The attention kernel: dense, over index lists, over any cache layout. It does not know who chose the keys.
///
/// Work unit = (sequence, KV head, row block, key piece), split by shape alone, so that any number of workers and any
/// executor give the same bits. Key pieces are merged in order by a second loop.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/kernel/attend_rows.hpp>
#include <skim/cpu/kernel/attend_tile.hpp>
#include <skim/cpu/kernel/multiply_tile.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/math.hpp>
#include <skim/cpu/simd/tile_math.hpp>
#include <skim/index_lists.hpp>
#include <skim/math/accumulate.hpp>
#include <skim/workspace.hpp>

#include <type_traits>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// How one sequence is cut. A function of shape only.
struct attend_plan {
  std::int64_t heads, rows, row_blocks, block_rows, stride;  // rows = G * Tq; stride = block_rows rounded up to lanes
  std::int64_t key_pieces, piece_keys;
  std::int64_t most_pieces;  // at least key_pieces, and no fewer for more keys: what the workspace provides for

  std::int64_t blocks() const { return heads * row_blocks; }
  bool merges() const { return key_pieces > 1; }
};

/// The two loops of the kernel.
enum class attend_stage { pieces, merge };

SKIM_INLINE std::int64_t unit_count(const attend_plan& plan, attend_stage stage) {
  return plan.blocks() * (stage == attend_stage::pieces ? plan.key_pieces : plan.merges() ? 1 : 0);
}

inline constexpr std::int64_t block_floats =
    65536;  // packed q and output of a row block: 256 KiB, within one core's L2
inline constexpr std::int64_t wanted_units =
    64;  // enough for the host's cores to balance; a shape with fewer splits keys
inline constexpr std::int64_t fewest_piece_keys = 512;  // below this the merge of partial outputs shows

/// `most_keys`: the most keys any head of the sequence reads, its own included.
inline attend_plan plan_attend(const attention_args& args, std::int64_t s, std::int64_t most_keys) {
  const attention_sequence sequence = sequence_at(args, s);
  attend_plan plan;
  plan.heads = sequence.kv->heads;
  plan.rows = sequence.Tq * group_size(args);
  const std::int64_t dims = sequence.kv->k.dim + sequence.kv->v.dim;
  const std::int64_t most_rows = smaller(greater(block_floats / dims / 32 * 32, 32), 512);
  plan.row_blocks = (plan.rows + most_rows - 1) / most_rows;
  plan.block_rows =
      plan.row_blocks == 0 ? 0 : round_up((plan.rows + plan.row_blocks - 1) / plan.row_blocks, simd::lanes);
  plan.stride = plan.block_rows;
  const std::int64_t units = greater(plan.blocks() * sequence_count(args), 1);
  const std::int64_t wanted = (wanted_units + units - 1) / units;
  plan.most_pieces = greater(smaller(wanted, most_keys / fewest_piece_keys), 1);
  plan.piece_keys = greater(round_up((most_keys + plan.most_pieces - 1) / plan.most_pieces, tile_keys), tile_keys);
  plan.key_pieces = greater((most_keys + plan.piece_keys - 1) / plan.piece_keys, 1);
  return plan;
}

/// Past keys and own keys at most, for the plan: `list_capacity` -1 = all keys are read.
inline std::int64_t most_keys(const attention_sequence& sequence, std::int64_t list_capacity) {
  const std::int64_t past = sequence.Tk();
  return (list_capacity < 0 ? past : smaller(list_capacity, past)) + sequence.Tq;
}

/// What the pieces of a row block leave behind to be merged.
struct partial_rows {
  float *out, *largest, *sum;

  partial_rows(arena& arena, std::int64_t Dv, std::int64_t stride) {
    out = arena.take<float>(round_up(Dv, padded_to) * stride);
    largest = arena.take<float>(stride);
    sum = arena.take<float>(stride);
  }
};

SKIM_INLINE std::size_t partial_bytes(const attend_plan& plan, std::int64_t Dv) {
  arena arena;
  partial_rows(arena, Dv, plan.stride);
  return arena.used();
}

/// Bytes of one worker's scratch and of all partial results; the first `workers * scratch` bytes are the workers'.
struct attend_layout {
  std::size_t scratch = 0, partials = 0;
};

template <class Math>
inline attend_layout layout_attend(const attention_args& args, std::int64_t list_capacity) {
  attend_layout layout;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    const attend_plan plan = plan_attend(args, s, most_keys(sequence_at(args, s), list_capacity));
    arena arena;
    attend_scratch<Math>(arena, args.q.extents[2], args.out.extents[2], plan.stride);
    if (arena.used() > layout.scratch) layout.scratch = arena.used();
    if (plan.most_pieces > 1) {
      layout.partials +=
          static_cast<std::size_t>(plan.blocks() * plan.most_pieces) * partial_bytes(plan, args.out.extents[2]);
    }
  }
  return layout;
}

/// A unit of a loop flattened over sequences, KV heads, row blocks and, in the first stage, key pieces.
struct attend_unit {
  attend_plan plan;
  std::int64_t s, block, piece;
  std::size_t partial;  // where the row block's partial results begin

  static attend_unit at(const attention_args& args, std::int64_t list_capacity, std::int64_t index,
                        attend_stage stage) {
    attend_unit unit{};
    for (unit.s = 0;; ++unit.s) {
      unit.plan = plan_attend(args, unit.s, most_keys(sequence_at(args, unit.s), list_capacity));
      const std::int64_t count = unit_count(unit.plan, stage);
      std::size_t block_bytes = 0;
      if (unit.plan.merges()) {
        block_bytes = partial_bytes(unit.plan, args.out.extents[2]) * static_cast<std::size_t>(unit.plan.key_pieces);
      }
      if (index < count) {
        const std::int64_t parts = stage == attend_stage::pieces ? unit.plan.key_pieces : 1;
        unit.block = index / parts;
        unit.piece = index % parts;
        unit.partial += static_cast<std::size_t>(unit.block) * block_bytes;
        return unit;
      }
      index -= count;
      unit.partial += static_cast<std::size_t>(unit.plan.blocks()) * block_bytes;
    }
  }

  attend_job job(const attention_args& args, const index_lists* lists) const {
    attend_job job{};
    job.args = &args;
    job.lists = lists;
    job.sequence = sequence_at(args, s);
    job.s = s;
    job.head = block / plan.row_blocks;
    job.G = group_size(args);
    job.row = block % plan.row_blocks * plan.block_rows;
    job.rows = smaller(plan.block_rows, plan.rows - job.row);
    job.stride = plan.stride;
    job.key_begin = piece * plan.piece_keys;
    job.key_end = job.key_begin + plan.piece_keys;
    return job;
  }
};

inline std::int64_t count_units(const attention_args& args, std::int64_t list_capacity, attend_stage stage) {
  std::int64_t units = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    units += unit_count(plan_attend(args, s, most_keys(sequence_at(args, s), list_capacity)), stage);
  }
  return units;
}

/// Folds the pieces of one row block, in order, into the first.
inline void merge_pieces(const attend_unit& unit, const attention_args& args, const attend_job& job, char* partials,
                         float* row) {
  const std::int64_t Dv = args.out.extents[2];
  arena arena(partials + unit.partial);
  const partial_rows merged(arena, Dv, unit.plan.stride);
  for (std::int64_t piece = 1; piece < unit.plan.key_pieces; ++piece) {
    const partial_rows next(arena, Dv, unit.plan.stride);
    for (std::int64_t r = 0; r < unit.plan.stride; r += simd::lanes) {
      const simd::floats a = simd::load(merged.largest + r), b = simd::load(next.largest + r);
      const simd::floats most = simd::larger(a, b);
      const simd::floats base = xsimd::select(most == simd::floats(minus_infinity), simd::floats(0.0f), most);
      const simd::floats keep = simd::exp2_nonpositive(a - base), add = simd::exp2_nonpositive(b - base);
      simd::store(merged.largest + r, most);
      simd::store(merged.sum + r, simd::fma(simd::load(next.sum + r), add, simd::load(merged.sum + r) * keep));
      const row_lanes place = row_lanes::of(r, unit.plan.stride);
      for (std::int64_t d = 0; d < Dv; ++d) {
        const std::int64_t offset = place.offset(r, round_up(Dv, padded_to), d);
        float* const at = merged.out + offset;
        const simd::floats more = simd::load(next.out + offset) * add;
        simd::store(at, simd::fma(simd::load(at), keep, more));
      }
    }
  }
  store_rows(job, merged.out, merged.largest, merged.sum, row);
}

/// Attention of checked arguments; `lists` null reads all keys. `workspace` holds `attend_bytes`.
template <class Math>
void attend_with(const attention_args& args, const index_lists* lists, void* workspace, executor_ref executor) {
  const std::int64_t capacity = lists ? lists->capacity : -1;
  const attend_layout layout = layout_attend<Math>(args, capacity);
  char* const scratches = static_cast<char*>(workspace);
  char* const partials = scratches + layout.scratch * executor.concurrency();
  const std::int64_t Dv = args.out.extents[2];

  const logit_rule rule = logit_rule::of(args);
  executor.parallel_for(count_units(args, capacity, attend_stage::pieces), [&](std::int64_t index, unsigned worker) {
    const attend_unit unit = attend_unit::at(args, capacity, index, attend_stage::pieces);
    const attend_job job = unit.job(args, lists);
    arena arena(worker_piece(scratches, layout.scratch, worker));
    attend_scratch<Math> scratch(arena, args.q.extents[2], Dv, unit.plan.stride);
    if (unit.plan.merges()) {
      const std::size_t piece = static_cast<std::size_t>(unit.piece) * partial_bytes(unit.plan, Dv);
      detail::arena place(partials + unit.partial + piece);
      const partial_rows partial(place, Dv, unit.plan.stride);
      scratch.out = partial.out;
      scratch.largest = partial.largest;
      scratch.sum = partial.sum;
    }
    load_queries<Math>(job, scratch, Math::rounds_lanes ? 1.0f : rule.scale);
    attend_rows<Math>(job, scratch, rule);
    if (!unit.plan.merges()) store_rows(job, scratch.out, scratch.largest, scratch.sum, scratch.row);
  });

  executor.parallel_for(count_units(args, capacity, attend_stage::merge), [&](std::int64_t index, unsigned worker) {
    const attend_unit unit = attend_unit::at(args, capacity, index, attend_stage::merge);
    arena arena(worker_piece(scratches, layout.scratch, worker));
    const attend_scratch<Math> scratch(arena, args.q.extents[2], Dv, unit.plan.stride);
    merge_pieces(unit, args, unit.job(args, lists), partials, scratch.row);
  });
}

/// Scratch for any lists: reading every key needs the most.
template <class Accumulate>
std::size_t attend_bytes(const attention_args& args, unsigned workers) {
  const auto bytes = [&](attend_layout layout) { return layout.scratch * workers + layout.partials; };
#if SKIM_CPU_DOT_PAIRS
  if (simd::multiplies_pairs<Accumulate>(first_view(args).k.type)) {
    return bytes(layout_attend<simd::tile_math<accumulate::dot_pairs>>(args, -1));
  }
#endif
  return bytes(layout_attend<simd::tile_math<accumulate::widen_fma>>(args, -1));
}

template <class Accumulate>
void attend(const attention_args& args, const index_lists* lists, void* workspace, executor_ref executor) {
#if SKIM_CPU_DOT_PAIRS
  if constexpr (!std::is_same_v<Accumulate, accumulate::widen_fma>) {
    if (simd::multiplies_pairs<Accumulate>(first_view(args).k.type)) {
      return attend_with<simd::tile_math<accumulate::dot_pairs>>(args, lists, workspace, executor);
    }
  }
#endif
  attend_with<simd::tile_math<accumulate::widen_fma>>(args, lists, workspace, executor);
}

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
