// SPDX-License-Identifier: Apache-2.0
/// \file The softmax weights that queries give to cached tokens, summed over queries: recomputed from q, K and the
/// log-sum-exp that attention left, tile by tile; no [Tq, Tk] matrix is stored. H2O, TOVA and SnapKV differ in the rows.
#pragma once

#include <skim/cpu/evictor.hpp>
#include <skim/cpu/kernel/attend_rows.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

inline constexpr std::int64_t weight_keys = 512;  // of a work unit: packing 512 rows of queries costs 1/512 of it
inline constexpr std::int64_t weight_rows = 512;  // packed at a time: 256 KiB of D = 128

/// The state of an evictor that watches attention, and its bytes.
struct weight_state {
  float* weights;  // [Hk, capacity], by `metadata_row`

  weight_state(skim::detail::arena& arena, const kv_view& kv) { weights = arena.take<float>(kv.heads * kv.capacity); }
  static weight_state at(const kv_view& kv, memory state) {
    skim::detail::arena arena(state.data);
    return weight_state(arena, kv);
  }
  static std::size_t bytes(const kv_view& kv) {
    skim::detail::arena arena;
    weight_state(arena, kv);
    return arena.used();
  }
};

/// Whose weights, and what becomes of them: weights of queries [first, Tq), times `factor`, are added to the state, in
/// which tokens start at zero when they arrive (`accumulate`) or each time.
struct weight_rule {
  std::int64_t first;
  float factor;
  bool accumulate;
};

/// Scratch of one worker.
struct weight_scratch {
  using math = simd::tile_math<accumulate::widen_fma>;
  attend_scratch<math> tile;
  float* lse;      // [stride], base 2; +inf where a row saw nothing, so that its weights are 0
  float* columns;  // [64, lanes]

  weight_scratch(skim::detail::arena& arena, std::int64_t D, std::int64_t stride) : tile(arena, D, 1, stride) {
    lse = arena.take<float>(stride);
    columns = arena.take<float>(tile_keys * simd::lanes);
  }
};

inline std::int64_t weight_stride(const attention_args& call, std::int64_t first) {
  return round_up(smaller((call.q.extents[0] - first) * group_size(call), weight_rows), simd::lanes);
}

inline std::size_t weight_scratch_bytes(const attention_args& call, std::int64_t first) {
  skim::detail::arena arena;
  weight_scratch(arena, call.q.extents[2], weight_stride(call, first));
  return arena.used();
}

/// columns [keys, lanes] += the weights of a block of rows. A key that is masked or of logit -inf has weight 0 whatever the
/// row's log-sum-exp, as has every key of a row that saw none, or of a lane beyond the last row: NaN stays where it is.
template <int Vectors>
SKIM_NOINLINE void add_weights(const row_block<float>& rows, std::int64_t row, const key_tile<float>& tile,
                               const logit_rule& rule, bool masked, const weight_scratch& scratch) {
  constexpr std::int64_t width = Vectors * simd::lanes;
  score_tile<weight_scratch::math, Vectors>(rows, row, tile, rule, masked, scratch.tile.scores);
  simd::unroll<Vectors>([&](auto v) SKIM_LAMBDA_INLINE {
    const simd::floats total = simd::load(scratch.lse + row + v * simd::lanes);
    for (std::int64_t key = 0; key < tile.keys; ++key) {
      const simd::floats logit = simd::load(scratch.tile.scores + key * width + v * simd::lanes);
      const simd::float_mask none = logit == simd::floats(minus_infinity) || total == simd::floats(-minus_infinity);
      const simd::floats weight = xsimd::select(none, simd::floats(0.0f), simd::exp2_nonpositive(logit - total));
      float* const column = scratch.columns + key * simd::lanes;
      simd::store(column, simd::load(column) + weight);
    }
  });
}

/// The job's rows and the log of their denominators.
SKIM_INLINE void load_weight_rows(const attend_job& job, const logit_rule& rule, const weight_scratch& scratch) {
  load_queries<weight_scratch::math>(job, scratch.tile, rule.scale);
  for (std::int64_t r = 0; r < job.stride; ++r) {
    const float lse = r < job.rows ? *job.args->lse.at(job.token(r), job.query_head(r)) : minus_infinity;
    scratch.lse[r] = lse == minus_infinity ? -minus_infinity : static_cast<float>(static_cast<double>(lse) * log2_e);
  }
}

/// Calls `add(slot, weight)` with what the job's rows together give to each of its keys that stand at positions of
/// `wanted`; of other keys it may call it or not.
template <class Add>
inline void sum_job_weights(const attend_job& job, const logit_rule& rule, position_range wanted,
                            const weight_scratch& scratch, const Add& add) {
  const mask see = job.args->mask;
  const row_block<float> rows{scratch.tile.qt,    nullptr,           nullptr,   nullptr,
                              scratch.tile.first, scratch.tile.last, job.stride};
  const position_range queries = query_range(job, 0, job.rows);
  std::int64_t slots[tile_keys];
  for (std::int64_t begin = job.key_begin; begin < job.key_end; begin += tile_keys) {
    const std::int64_t keys = smaller(tile_keys, job.key_end - begin);
    const position_range range = list_tile(job, begin, keys, slots, scratch.tile.positions);
    if (disjoint(see.keys(queries), range) || disjoint(wanted, range)) continue;
    const bool masked = !see.covers(queries, range);
    key_tile<float> tile{};
    load_tile_keys<weight_scratch::math>(job, slots, keys, scratch.tile, tile);
    for (std::int64_t i = 0; i < keys * simd::lanes; ++i) scratch.columns[i] = 0;
    for (std::int64_t r = 0; r < job.rows;) {
      const bool wide = job.stride - r >= row_vectors * simd::lanes;
      if (wide) {
        add_weights<row_vectors>(rows, r, tile, rule, masked, scratch);
      } else {
        add_weights<1>(rows, r, tile, rule, masked, scratch);
      }
      r += (wide ? row_vectors : 1) * simd::lanes;
    }
    for (std::int64_t i = 0; i < keys; ++i) {
      add(slots[i], simd::sum(simd::load(scratch.columns + i * simd::lanes)));
    }
  }
}

/// Brings the state up to date with the chunk's attention. Work unit = (KV head, 512 keys): each weight has one writer.
template <class Executor>
void observe_weights(const eviction_args& args, const weight_rule& what, memory state, memory workspace,
                     const Executor& executor) {
  const attention_args& call = args.attended;
  const kv_view& kv = call.kv;
  const std::int64_t Tq = new_tokens(args);
  if (Tq == 0) return;
  float* const weights = weight_state::at(kv, state).weights;
  executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
    const std::int64_t length = kv.length(head);
    for (std::int64_t slot = what.accumulate ? length - Tq : 0; slot < length; ++slot) {
      weights[head * kv.capacity + kv.metadata_row(slot)] = 0;
    }
  });

  const std::int64_t pieces = (kv.tokens + weight_keys - 1) / weight_keys, G = group_size(call);
  const std::int64_t rows = (Tq - what.first) * G, stride = weight_stride(call, what.first);
  const std::size_t bytes = weight_scratch_bytes(call, what.first);
  const logit_rule rule = logit_rule::of(call);
  executor.parallel_for(kv.heads * pieces, [&](std::int64_t unit, unsigned worker) {
    attend_job job{};
    job.args = &call;
    job.lists = args.read;
    job.sequence = attention_sequence{&kv, 0, Tq};
    job.head = unit / pieces;
    job.G = G;
    job.key_begin = unit % pieces * weight_keys;
    job.key_end = smaller(job.key_begin + weight_keys, job.listed() + Tq);
    if (job.key_begin >= job.key_end) return;
    skim::detail::arena arena(static_cast<char*>(workspace.data) + bytes * worker);
    const weight_scratch scratch(arena, call.q.extents[2], stride);
    for (std::int64_t row = 0; row < rows; row += weight_rows) {
      job.row = what.first * G + row;
      job.rows = smaller(weight_rows, rows - row);
      job.stride = round_up(job.rows, simd::lanes);
      load_weight_rows(job, rule, scratch);
      float* const own = weights + job.head * kv.capacity;
      sum_job_weights(job, rule, {0, largest_index + 1}, scratch,
                      [&](std::int64_t slot, float weight)
                          SKIM_LAMBDA_INLINE { own[kv.metadata_row(slot)] += what.factor * weight; });
    }
  });
}

/// Evictors whose score is, or is made from, attention weights that they keep as state.
template <class Policy>
struct weight_evictor : plain_evictor<Policy> {
  static constexpr bool reads_attention = true;
  static constexpr bool has_weights = true;

  static float weight(const Policy&, float score) { return score; }
  static std::size_t state_bytes(const Policy&, const eviction_args& args) {
    return weight_state::bytes(args.attended.kv);
  }

  template <class Executor>
  static void reset(const Policy&, const eviction_args& args, memory state, const Executor& executor) {
    const kv_view& kv = args.attended.kv;
    float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t row = 0; row < kv.capacity; ++row) weights[head * kv.capacity + row] = 0;
    });
  }

  template <class Executor>
  static void score(const Policy&, const eviction_args& args, tensor_view<float, 2> scores, memory state, memory,
                    const Executor& executor) {
    const kv_view& kv = args.attended.kv;
    const float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(head, slot) = weights[head * kv.capacity + kv.metadata_row(slot)];
      }
    });
  }

  template <class Executor>
  static void compact(const Policy&, const eviction_args& args, const index_lists& lists, memory state, memory,
                      const Executor& executor) {
    const kv_view& kv = args.attended.kv;
    float* const weights = weight_state::at(kv, state).weights;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      const std::int64_t row = args.share_heads ? 0 : head;
      float* const own = weights + head * kv.capacity;
      for_each_move(args.how, lists.row(row), lists.counts[row],
                    [&](std::int64_t from, std::int64_t to)
                        SKIM_LAMBDA_INLINE { own[kv.metadata_row(to)] = own[kv.metadata_row(from)]; });
    });
  }

 protected:
  /// Flops of the weights of `rows` queries, and K read once.
  static cost_estimate weights_cost(const eviction_args& args, std::int64_t tokens) {
    const kv_view& kv = args.attended.kv;
    const double n = static_cast<double>(kv.tokens), D = static_cast<double>(kv.k.dim);
    const double rows = static_cast<double>(tokens * args.attended.q.extents[1]);
    return {2 * rows * n * D, static_cast<double>(kv.heads) * n *
                                  (D * static_cast<double>(element_bytes(kv.k.type)) + 2 * sizeof(float))};
  }
};

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
