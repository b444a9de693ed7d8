// SPDX-License-Identifier: Apache-2.0
/// \file The attention kernel: dense, over index lists, over any cache layout. It does not know who chose the keys.
///
/// The query rows that share a KV head are cut into strips, and the keys of a block of rows (see `index_lists`) into pieces,
/// by the block's own keys and heads alone. A strip's pieces are attended one by one and merged in pairs that follow from
/// their number, so that bits depend on nothing else. Who does that is another matter: one worker for the whole strip where
/// there are strips enough, else several, each for some of its pieces, and a second loop merges what they found.
#pragma once

#include <skim/cpu/kernel/attend_few.hpp>
#include <skim/executor.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t strip_floats = 65536;     // packed q and output of a strip: 256 KiB, within one core's L2
inline constexpr std::int64_t wanted_pieces = 64;       // over the heads of one row: for hosts of as many cores
inline constexpr std::int64_t fewest_piece_keys = 512;  // below this the merge of partial outputs shows

/// Rows of a strip at most: a multiple of 32, at least one of these.
SKIM_INLINE std::int64_t most_strip_rows(std::int64_t dims) {
  return smaller(greater(strip_floats / dims / 32 * 32, 32), 512);
}

/// Pieces that `keys` keys are cut into at most: no fewer for more keys.
SKIM_INLINE std::int64_t most_pieces(std::int64_t keys, std::int64_t heads) {
  const std::int64_t wanted = (wanted_pieces + heads - 1) / heads;
  return greater(smaller(wanted, keys / fewest_piece_keys), 1);
}

/// How one block is cut.
struct attend_plan {
  std::int64_t s, b;                     // the sequence, and which of its blocks
  std::int64_t index;                    // of the block in the call
  std::int64_t rows, strips, stride;     // rows = G * Tq; stride = rows of a strip, rounded up to lanes
  std::int64_t pieces, piece_keys;       // in every strip
  std::int64_t shared;                   // pieces of a work unit, a power of two
  std::int64_t first_strip, first_unit;  // of this block, among those of all heads and blocks of the call

  std::int64_t units() const { return (pieces + shared - 1) / shared; }  // of a strip
};

/// `keys`: the most that a head of the block reads, its own included.
inline attend_plan plan_block(const attention_args& args, const attention_sequence& block, std::int64_t keys) {
  const std::int64_t heads = block.kv.heads, most = most_strip_rows(block.kv.k.dim + block.kv.v.dim);
  attend_plan plan{};
  plan.rows = block.Tq * group_size(args);
  plan.strips = (plan.rows + most - 1) / most;
  plan.stride = plan.strips == 0 ? 0 : round_up((plan.rows + plan.strips - 1) / plan.strips, simd::lanes);
  const std::int64_t pieces = most_pieces(keys, heads);
  plan.piece_keys = greater(round_up((keys + pieces - 1) / pieces, tile_keys), tile_keys);
  plan.pieces = greater((keys + plan.piece_keys - 1) / plan.piece_keys, 1);
  return plan;
}

/// The most keys that a head of the block reads.
SKIM_INLINE std::int64_t keys_read(const attention_sequence& block, const index_lists* lists, std::int64_t list_row) {
  std::int64_t most = 0;
  for (std::int64_t head = 0; head < block.kv.heads; ++head) {
    most = greater(most, lists ? lists->counts[list_row + head] : block.past(head));
  }
  return most + block.Tq;
}

/// Plans all blocks of the call; `plans [blocks + 1]`, of which the last counts strips and units. A unit gets as many pieces
/// as leave no more than `most_units`, where strips are no more themselves.
inline void plan_call(const attention_args& args, const index_lists* lists, std::int64_t block_rows,
                      std::int64_t most_units, attend_plan* plans) {
  const std::int64_t heads = first_view(args).heads;
  std::int64_t blocks = 0, pieces = 1;
  for_each_block(args, block_rows, [&](const attention_sequence& block, std::int64_t index) {
    plans[index] = plan_block(args, block, keys_read(block, lists, index * heads));
    pieces = greater(pieces, plans[index].pieces);
    blocks = index + 1;
  });
  attend_plan total{};
  for (std::int64_t shared = 1;; shared *= 2) {
    total = attend_plan{};
    for (; total.index < blocks; ++total.index) {
      attend_plan& plan = plans[total.index];
      plan.shared = shared;
      plan.index = total.index;
      plan.first_strip = total.first_strip;
      plan.first_unit = total.first_unit;
      total.first_strip += heads * plan.strips;
      total.first_unit += heads * plan.strips * plan.units();
    }
    if (total.first_unit <= most_units || shared >= pieces) break;
  }
  for (std::int64_t s = 0, index = 0; s < sequence_count(args); ++s) {
    const std::int64_t count = block_count(sequence_at(args, s).Tq, block_rows);
    for (std::int64_t b = 0; b < count; ++b, ++index) {
      plans[index].s = s;
      plans[index].b = b;
    }
  }
  plans[blocks] = total;
}

/// The plan of the block that holds strip (or unit) `index` of the call; `count` blocks.
SKIM_INLINE const attend_plan& plan_of(const attend_plan* plans, std::int64_t count, std::int64_t index,
                                       std::int64_t attend_plan::*first) {
  std::int64_t low = 0, high = count;  // plans[low].*first <= index < plans[high].*first
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (plans[middle].*first <= index ? low : high) = middle;
  }
  return plans[low];
}

inline constexpr std::int64_t units_of_worker = 8;  // at most, where strips are cut: enough to balance

/// Sums of pieces, and how many pieces each is of, on the way to those of them all. They are merged as in a tournament, two
/// of equal size whenever there are two, the rest from the last on: the same pairs whoever merges them.
struct merge_stack {
  static constexpr int most = 8;  // of up to 127 pieces

  int depth = 0;
  std::int64_t sizes[most];

  /// Calls `merge(i)`, which folds sums i + 1 into sums i, after a sum of `size` pieces has come.
  template <class Merge>
  SKIM_INLINE void push(std::int64_t size, const Merge& merge) {
    sizes[depth++] = size;
    while (depth > 1 && sizes[depth - 2] == sizes[depth - 1]) fold(merge);
  }
  template <class Merge>
  SKIM_INLINE void finish(const Merge& merge) {
    while (depth > 1) fold(merge);
  }

 private:
  template <class Merge>
  SKIM_INLINE void fold(const Merge& merge) {
    --depth;
    merge(depth - 1);
    sizes[depth - 1] += sizes[depth];
  }
};

/// Sums that `pieces` pieces need at once.
SKIM_INLINE std::int64_t stack_depth(std::int64_t pieces) {
  std::int64_t depth = 1;
  while (pieces > 1) {
    pieces /= 2;
    ++depth;
  }
  return depth;
}
static_assert(wanted_pieces < std::int64_t{1} << (merge_stack::most - 1), "the stack holds every strip's pieces");

/// The workspace of one call. Sizes are bounds that do not shrink with any size of the call.
template <class Math>
struct attend_workspace {
  attend_plan* plans;
  char* scratches;  // [workers]
  char* partials;   // [units]: where several share a strip
  std::size_t scratch_bytes, partial_bytes;
  std::int64_t most_units, depth;

  attend_workspace(arena& arena, const attention_args& args, std::int64_t block_rows, unsigned workers) {
    const kv_view& kv = first_view(args);
    const std::int64_t D = kv.k.dim, Dv = kv.v.dim, most = most_strip_rows(D + Dv);
    const std::int64_t own = block_rows > 0 ? smaller(block_rows, most_rows(args)) : most_rows(args);
    const std::int64_t rows = own * group_size(args), stride = round_up(smaller(rows, most), simd::lanes);
    const std::int64_t blocks = block_count(args, block_rows), pieces = most_pieces(most_tokens(args), kv.heads);
    plans = arena.take<attend_plan>(blocks + 1);
    depth = stack_depth(pieces);
    detail::arena scratch, few, partial;
    attend_scratch<Math>(scratch, D, Dv, stride);
    for (std::int64_t i = 0; i < depth; ++i) strip_sums(scratch, Dv, stride);
    strip_sums(partial, Dv, stride);
    if (D >= simd::lanes && Dv >= simd::lanes) {
      const std::int64_t heads = smaller(kv.heads, few_heads);
      few_scratch(few, D, Dv, heads);
      for (std::int64_t i = 0; i < heads * depth; ++i) strip_sums(few, Dv, simd::lanes);
    }
    scratch_bytes = scratch.used() > few.used() ? scratch.used() : few.used();
    partial_bytes = partial.used();
    most_units = units_of_worker * static_cast<std::int64_t>(workers);
    const std::int64_t strips = saturated(blocks * kv.heads, (rows + most - 1) / most);
    const std::int64_t units = pieces > 1 ? smaller(most_units, saturated(strips, pieces)) : 0;
    scratches = arena.take<char>(saturated(static_cast<std::int64_t>(scratch_bytes), workers));
    partials = arena.take<char>(saturated(static_cast<std::int64_t>(partial_bytes), units));
  }

  char* scratch_of(unsigned worker) const { return worker_piece(scratches, scratch_bytes, worker); }
  char* partial(std::int64_t unit) const { return partials + partial_bytes * static_cast<std::size_t>(unit); }
};

/// Folds the sums of the next piece of a strip into those of the pieces before it.
SKIM_NOINLINE inline void merge_sums(const strip_sums& before, const strip_sums& next, std::int64_t Dv,
                                     std::int64_t stride) {
  for (std::int64_t r = 0; r < stride; r += simd::lanes) {
    const simd::floats a = simd::load(before.largest + r), b = simd::load(next.largest + r);
    const simd::floats most = simd::larger(a, b);
    const simd::floats base = xsimd::select(most == simd::floats(minus_infinity), simd::floats(0.0f), most);
    const simd::floats keep = simd::exp2_nonpositive(a - base), add = simd::exp2_nonpositive(b - base);
    simd::store(before.largest + r, most);
    simd::store(before.sum + r, simd::fma(simd::load(next.sum + r), add, simd::load(before.sum + r) * keep));
    const row_lanes place = row_lanes::of(r, stride);
    for (std::int64_t d = 0; d < Dv; ++d) {
      const std::int64_t offset = place.offset(r, round_up(Dv, padded_to), d);
      const simd::floats more = simd::load(next.out + offset) * add;
      simd::store(before.out + offset, simd::fma(simd::load(before.out + offset), keep, more));
    }
  }
}

/// One call's strips and pieces.
template <class Math>
struct attend_call {
  const attention_args* args;
  const index_lists* lists;
  std::int64_t block_rows;
  attend_workspace<Math> workspace;
  const attend_plan* plans;
  std::int64_t blocks;
  logit_rule rule;
  std::int64_t workers;

  SKIM_NOINLINE attend_job job(const attend_plan& plan, std::int64_t strip) const {
    attend_job job{};
    job.args = args;
    job.lists = lists;
    job.sequence = block_of(sequence_at(*args, plan.s), plan.b, block_rows);
    job.list_row = plan.index * job.sequence.kv.heads;
    job.head = strip / plan.strips;
    job.G = group_size(*args);
    job.row = strip % plan.strips * plan.stride;
    job.rows = smaller(plan.stride, plan.rows - job.row);
    job.stride = plan.stride;
    return job;
  }

  /// Attends the job's rows to pieces [first, end) and leaves what they give, merged, in `sums[0]`.
  void attend_pieces(attend_job job, const attend_plan& plan, std::int64_t first, std::int64_t end,
                     const attend_scratch<Math>& scratch, const strip_sums* sums) const {
    const std::int64_t Dv = job.sequence.kv.v.dim;
    const auto merge = [&](int i) { merge_sums(sums[i], sums[i + 1], Dv, plan.stride); };
    merge_stack stack;
    for (std::int64_t piece = first; piece < end; ++piece) {
      job.key_begin = piece * plan.piece_keys;
      job.key_end = job.key_begin + plan.piece_keys;
      attend_rows<Math>(job, scratch, rule, sums[stack.depth]);
      stack.push(1, merge);
    }
    stack.finish(merge);
  }

  strip_sums partial(const attend_plan& plan, std::int64_t unit, std::int64_t Dv) const {
    arena arena(workspace.partial(unit));
    return {arena, Dv, plan.stride};
  }

  /// Unit `index`: a whole strip, whose rows are stored, or some of its pieces.
  void attend_unit(std::int64_t index, unsigned worker) const {
    const attend_plan& plan = plan_of(plans, blocks, index, &attend_plan::first_unit);
    if (suits_few_rows(plan.rows, first_view(*args).k.dim, first_view(*args).v.dim)) {
      return attend_few_unit(index - plan.first_unit, plan, worker);
    }
    const std::int64_t unit = (index - plan.first_unit) % plan.units();
    const attend_job job = this->job(plan, (index - plan.first_unit) / plan.units());
    const std::int64_t Dv = job.sequence.kv.v.dim, first = unit * plan.shared, begin = first * plan.piece_keys;
    fetch_keys(job, begin, smaller(begin + tile_keys, job.listed() + job.sequence.Tq));  // while queries are loaded
    arena arena(workspace.scratch_of(worker));
    strip_sums sums[merge_stack::most];
    for (std::int64_t i = 0; i < workspace.depth; ++i) sums[i] = strip_sums(arena, Dv, plan.stride);
    if (plan.units() > 1) sums[0] = partial(plan, index, Dv);
    const attend_scratch<Math> scratch(arena, job.sequence.kv.k.dim, Dv, plan.stride);
    load_queries<Math>(job, scratch, Math::rounds_lanes ? 1.0f : rule.scale);
    attend_pieces(job, plan, first, smaller(first + plan.shared, plan.pieces), scratch, sums);
    if (plan.units() == 1) store_rows(job, sums[0], scratch.rows);
  }

  /// Unit `local` of a block of few rows, those of one piece's heads behind one another. The first of the heads that take
  /// turns stands for all of them.
  void attend_few_unit(std::int64_t local, const attend_plan& plan, unsigned worker) const {
    const attend_job any = job(plan, 0);
    const kv_view& kv = any.sequence.kv;
    const std::int64_t heads = kv.heads, units = plan.units(), unit = local / heads, head = local % heads;
    const std::int64_t together = heads_together(kv, units), Dv = kv.v.dim;
    if (head % together != 0) return;
    const std::int64_t count = smaller(together, heads - head);
    arena arena(workspace.scratch_of(worker));
    const few_scratch scratch(arena, kv.k.dim, Dv, count);
    strip_sums sums[few_heads][merge_stack::most];
    for (std::int64_t h = 0; h < count; ++h) {
      scratch.heads[h].load(job(plan, head + h), rule.scale);
      for (std::int64_t i = 0; i < workspace.depth; ++i) sums[h][i] = strip_sums(arena, Dv, plan.stride);
      if (units > 1) sums[h][0] = partial(plan, plan.first_unit + (head + h) * units + unit, Dv);
    }
    merge_stack stack;
    const auto merge = [&](int i) {
      for (std::int64_t h = 0; h < count; ++h) merge_sums(sums[h][i], sums[h][i + 1], Dv, plan.stride);
    };
    const auto own = [&](std::int64_t h) { return sums[h][stack.depth]; };
    for (std::int64_t piece = unit * plan.shared; piece < smaller((unit + 1) * plan.shared, plan.pieces); ++piece) {
      const std::int64_t begin = piece * plan.piece_keys;
      with_few_rows(plan.rows,
                    [&](auto rows) { attend_few<rows>(scratch, count, begin, begin + plan.piece_keys, rule, own); });
      stack.push(1, merge);
    }
    stack.finish(merge);
    for (std::int64_t h = 0; units == 1 && h < count; ++h) store_rows(scratch.heads[h].job, sums[h][0], scratch.row);
  }

  /// KV heads whose few rows one worker attends together: in token-major storage, as many as leave work for all workers.
  std::int64_t heads_together(const kv_view& kv, std::int64_t units) const {
    if (lists || kv.k.head_stride >= kv.k.row_stride) return 1;
    std::int64_t together = smaller(kv.heads, few_heads);
    while (together > 1 && (kv.heads + together - 1) / together * units < workers) together = (together + 1) / 2;
    return together;
  }

  /// Merges and stores strip `index`, if several units share it.
  void merge_strip(std::int64_t index, unsigned worker) const {
    const attend_plan& plan = plan_of(plans, blocks, index, &attend_plan::first_strip);
    if (plan.units() == 1) return;
    const attend_job job = this->job(plan, index - plan.first_strip);
    const std::int64_t Dv = job.sequence.kv.v.dim;
    const std::int64_t first = plan.first_unit + (index - plan.first_strip) * plan.units();
    strip_sums sums[merge_stack::most];
    const auto merge = [&](int i) { merge_sums(sums[i], sums[i + 1], Dv, plan.stride); };
    merge_stack stack;
    for (std::int64_t unit = 0; unit < plan.units(); ++unit) {
      sums[stack.depth] = partial(plan, first + unit, Dv);
      stack.push(1, merge);
    }
    stack.finish(merge);
    arena arena(workspace.scratch_of(worker));
    store_rows(job, sums[0], arena.take<float>(simd::lanes * round_up(Dv, padded_to)));
  }
};

/// Attention of checked arguments, in blocks of `block_rows` rows; `lists` null reads all keys. `workspace` holds
/// `attend_bytes`.
template <class Math>
void attend_with(const attention_args& args, const index_lists* lists, std::int64_t block_rows, void* workspace,
                 executor_ref executor) {
  arena arena(workspace);
  const attend_workspace<Math> parts(arena, args, block_rows, executor.concurrency());
  std::int64_t blocks = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) blocks += block_count(sequence_at(args, s).Tq, block_rows);
  attend_plan one[2];  // a call of one block is planned by everyone for himself
  const attend_plan* const plans = blocks == 1 ? one : parts.plans;
  if (blocks == 1) {
    plan_call(args, lists, block_rows, parts.most_units, one);
  } else {
    executor.parallel_for(
        1, [&](std::int64_t, unsigned) { plan_call(args, lists, block_rows, parts.most_units, parts.plans); });
  }
  const std::int64_t workers = executor.concurrency();
  const attend_call<Math> call{&args, lists, block_rows, parts, plans, blocks, logit_rule::of(args), workers};
  const std::int64_t strips = plans[blocks].first_strip, units = plans[blocks].first_unit;
  executor.parallel_for(units, [&](std::int64_t index, unsigned worker) { call.attend_unit(index, worker); });
  if (units == strips) return;
  executor.parallel_for(strips, [&](std::int64_t index, unsigned worker) { call.merge_strip(index, worker); });
}

/// Calls `body(tile_math<...>{})` with a call's arithmetic; attention has no use for AMX.
template <class Accumulate, class Body>
SKIM_INLINE auto with_attention_math(const attention_args& args, const Body& body) {
  using wish = std::conditional_t<std::is_same_v<Accumulate, accumulate::amx>, accumulate::dot_pairs, Accumulate>;
  const kv_view& kv = first_view(args);
  const element k = multiplied_type(kv.k), v = multiplied_type(kv.v);
  return simd::with_math(wish{}, simd::becomes_pairs(k) && simd::becomes_pairs(v) ? k : element::none, body);
}

/// Scratch for lists of any content, in blocks of `block_rows`; nor do smaller calls need more. It is that of `widen_fma`,
/// which takes the most: which arithmetic a call gets depends on scales, whose pointers may not be there yet.
inline std::size_t attend_bytes(const attention_args& args, std::int64_t block_rows, unsigned workers) {
  arena arena;
  attend_workspace<simd::tile_math<accumulate::widen_fma>>(arena, args, block_rows, workers);
  return arena.used();
}

template <class Accumulate>
void attend_keys(const attention_args& args, const index_lists* lists, std::int64_t block_rows, void* workspace,
                 executor_ref executor) {
  with_attention_math<Accumulate>(
      args, [&](auto math) { attend_with<decltype(math)>(args, lists, block_rows, workspace, executor); });
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
