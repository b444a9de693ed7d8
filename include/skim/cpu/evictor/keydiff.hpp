// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff's scores on the CPU: the anchor of each KV head, then one dot product a key, streaming K once.
#pragma once

#include <skim/cpu/kernel/compact.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/evictor/keydiff.hpp>
#include <skim/math/order.hpp>

#include <cmath>
#include <cstring>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

namespace detail {

inline constexpr std::int64_t pair_rows = 32;  // keys of a tile of `anchor::pairwise`

/// 1 / |row|, 0 of a zero row: from the view where it has the norms, else from the row, which is then a key as it is
/// stored.
SKIM_INLINE float inverse_length_of(const kv_view& kv, std::int64_t head, std::int64_t slot, const float* row) {
  if (kv.inverse_norms) return kv.inverse_norms[head * kv.inverse_norms_stride + kv.metadata_row(slot)];
  const float squares = dot_of(row, row, kv.k.dim);
  return squares == 0 ? 0.0f : 1.0f / std::sqrt(squares);
}

/// target [D] = the key, times a power of two where its size is unusual; returns 1 / |target|.
SKIM_INLINE float load_key(const kv_view& kv, std::int64_t head, std::int64_t slot, float* target) {
  widen_here(kv.row(kv.k, head, slot), kv.k.dim, target);
  const float inverse = inverse_length_of(kv, head, slot, target);
  return is_usable(inverse) ? inverse : scale_to_one(target, kv.k.dim);
}

/// `project_key` of a key of unusual size.
SKIM_NOINLINE inline float project_scaled(const kv_view& kv, std::int64_t head, std::int64_t slot,
                                          const float* direction, float* row) {
  const float inverse = load_key(kv, head, slot, row);
  return dot_of(static_cast<const float*>(row), direction, kv.k.dim) * inverse;
}

/// The key . direction / |key|. `row [D]`: scratch.
SKIM_INLINE float project_key(const kv_view& kv, std::int64_t head, std::int64_t slot, const stored_row& key,
                              const float* direction, float* row) {
  if (!kv.inverse_norms) widen_here(key, kv.k.dim, row);
  const float inverse = inverse_length_of(kv, head, slot, row);
  if (is_usable(inverse)) return dot(key, direction, kv.k.dim) * inverse;
  return project_scaled(kv, head, slot, direction, row);
}

/// A component of a unit key as a multiple of 2^-30, to nearest even; what is no component of one counts as 0.
SKIM_INLINE std::int64_t fixed_point(float component) {
  constexpr double magic = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const double shifted = static_cast<double>(std::fabs(component) <= 2 ? component : 0.0f) * 0x1p30 + magic;
  std::int64_t bits, zero;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&zero, &magic, sizeof zero);
  return bits - zero;
}

/// sum += sign * the unit key in `slot`. `row [D]`: scratch.
SKIM_NOINLINE inline void add_unit_key(const kv_view& kv, std::int64_t head, std::int64_t slot, std::int64_t sign,
                                       float* row, std::int64_t* sum) {
  const float inverse = load_key(kv, head, slot, row);
  for (std::int64_t d = 0; d < kv.k.dim; ++d) sum[d] += sign * fixed_point(row[d] * inverse);
}

/// State of `anchor::unit_mean`.
struct unit_key_sums {
  std::int64_t* sums;  // [Hk, D]

  unit_key_sums(arena& arena, const kv_view& kv) { sums = arena.take<std::int64_t>(kv.heads * kv.k.dim); }
  static unit_key_sums at(const kv_view& kv, memory state) {
    arena arena(state.data);
    return unit_key_sums(arena, kv);
  }
};

/// Scratch: the anchors, then what each worker needs; the front of that is two rows [D].
template <class Anchor>
struct anchor_scratch {
  float* anchors;  // [Hk, D]
  char* workers;   // [workers]: pieces of `piece_bytes`
  std::size_t piece_bytes;

  anchor_scratch(arena& arena, const kv_view& kv, unsigned count) {
    anchors = arena.take<float>(kv.heads * kv.k.dim);
    detail::arena piece;
    piece.take<float>(2 * kv.k.dim * (std::is_same_v<Anchor, anchor::pairwise> ? pair_rows : 1));
    if (std::is_same_v<Anchor, anchor::median>) rank_scratch(piece, kv.tokens);
    piece_bytes = piece.used();
    workers = arena.take<char>(saturated(static_cast<std::int64_t>(piece_bytes), count));
  }
  static anchor_scratch of(const kv_view& kv, memory workspace, executor_ref executor) {
    arena arena(workspace.data);
    return anchor_scratch(arena, kv, executor.concurrency());
  }

  char* piece(unsigned worker) const { return worker_piece(workers, piece_bytes, worker); }
  float* row(unsigned worker) const { return reinterpret_cast<float*>(piece(worker)); }
};

/// Scales the anchor to length -1; a zero vector stays one.
SKIM_INLINE void negate_anchor(float* anchor, std::int64_t D) {
  double squares = 0;
  for (std::int64_t d = 0; d < D; ++d) squares += static_cast<double>(anchor[d]) * static_cast<double>(anchor[d]);
  const double norm = std::sqrt(squares);
  const double inverse = norm == 0 ? 0 : -1 / norm;
  for (std::int64_t d = 0; d < D; ++d) anchor[d] = static_cast<float>(static_cast<double>(anchor[d]) * inverse);
}

SKIM_INLINE void find_anchor(anchor::unit_mean, const kv_view& kv, std::int64_t head, memory state, char*,
                             float* anchor) {
  const std::int64_t D = kv.k.dim;
  const std::int64_t* const sum = unit_key_sums::at(kv, state).sums + head * D;
  const double share = 0x1p-30 / static_cast<double>(kv.length(head));
  for (std::int64_t d = 0; d < D; ++d) anchor[d] = static_cast<float>(static_cast<double>(sum[d]) * share);
}

SKIM_INLINE void find_anchor(anchor::mean, const kv_view& kv, std::int64_t head, memory, char* scratch, float* anchor) {
  sum_rows(kv, kv.k, head, nullptr, reinterpret_cast<float*>(scratch), anchor);
}

SKIM_NOINLINE inline void find_anchor(anchor::median, const kv_view& kv, std::int64_t head, memory, char* scratch,
                                      float* anchor) {
  arena arena(scratch);
  arena.take<float>(2 * kv.k.dim);
  const rank_scratch place(arena, kv.tokens);
  const std::int64_t n = kv.length(head);
  for (std::int64_t d = 0; d < kv.k.dim; ++d) {
    for (std::int64_t slot = 0; slot < n; ++slot) {
      const stored_row key = kv.row(kv.k, head, slot);
      place.ranks[slot] = rank_bits(load_element(key.data, key.type, d) * key.scale);
    }
    const stored_ranks rank{place.ranks};
    anchor[d] = score_of_rank(find_threshold(rank, n, n - (n - 1) / 2, place.histogram).rank);
  }
}

/// scores [n] = -cos(anchor, k) for the rows of a unit; `anchors` are of length -1.
SKIM_NOINLINE inline void score_unit(const kv_view& kv, const stream_plan& plan, std::int64_t unit,
                                     const float* anchors, float* row, const tensor_view<float, 2>& scores) {
  const auto score = [&](std::int64_t head, std::int64_t slot, const stored_row& key) SKIM_LAMBDA_INLINE {
    *scores.at(head, slot) = project_key(kv, head, slot, key, anchors + head * kv.k.dim, row);
  };
  plan.for_each_row(kv, kv.k, unit, score);
}

/// Unit keys of [begin, end), one after another; with `finite` those of no finite length are zeros.
SKIM_NOINLINE inline void load_unit_keys(const kv_view& kv, std::int64_t head, std::int64_t begin, std::int64_t end,
                                         bool finite, float* target) {
  for (std::int64_t slot = begin; slot < end; ++slot, target += kv.k.dim) {
    const float inverse = load_key(kv, head, slot, target);
    float check = 0;
    for (std::int64_t d = 0; d < kv.k.dim; ++d) {
      target[d] *= inverse;
      check += target[d];
    }
    for (std::int64_t d = 0; finite && !std::isfinite(check) && d < kv.k.dim; ++d) target[d] = 0;
  }
}

/// scores of [begin, end) = minus the mean cosine to all keys. `rows [2, 32, D]`: scratch.
SKIM_NOINLINE inline void score_pairs(const kv_view& kv, std::int64_t head, std::int64_t begin, std::int64_t end,
                                      float* rows, const tensor_view<float, 2>& scores) {
  const std::int64_t n = kv.length(head), D = kv.k.dim;
  float* const others = rows + pair_rows * D;
  double sums[pair_rows] = {};
  load_unit_keys(kv, head, begin, end, false, rows);
  for (std::int64_t first = 0; first < n; first += pair_rows) {
    const std::int64_t last = first + pair_rows < n ? first + pair_rows : n;
    load_unit_keys(kv, head, first, last, true, others);
    for (std::int64_t i = 0; i < end - begin; ++i) {
      for (std::int64_t j = 0; j < last - first; ++j) {
        sums[i] += static_cast<double>(dot_of(static_cast<const float*>(rows + i * D), others + j * D, D));
      }
    }
  }
  for (std::int64_t i = 0; i < end - begin; ++i) {
    *scores.at(head, begin + i) = static_cast<float>(-sums[i] / static_cast<double>(n));
  }
}

}  // namespace detail

/// Scores are f32. With u = 2^-24 they lie within u (D / 4 + 16) of exact arithmetic on the stored keys and the anchor;
/// `anchor::pairwise` within u (3 D / 8 + 20). Of the anchors, the state's sums are off by 2^-31 and u (5 + D / 8) of a
/// component for each key, the raw mean by u (min(n, b) + n / b + 2) of the mean of |k|, b being `rows_summed_apart`, the
/// median not at all.
template <class Anchor>
struct score_kernel<keydiff<Anchor>> : own_hooks<keydiff<Anchor>, executor_ref> {
  using policy_type = keydiff<Anchor>;
  using scratch_type = detail::anchor_scratch<Anchor>;
  static constexpr bool has_sums = std::is_same_v<Anchor, anchor::unit_mean>;

  static std::size_t state_bytes(const policy_type&, const eviction_args& args) {
    if (!has_sums) return 0;
    detail::arena arena;
    detail::unit_key_sums(arena, args.kv);
    return arena.used();
  }
  static std::size_t workspace_bytes(const policy_type&, const eviction_args& args, unsigned workers) {
    detail::arena arena;
    scratch_type(arena, args.kv, workers);
    return arena.used();
  }

  static void reset(const policy_type&, const eviction_args& args, memory state, executor_ref executor) {
    if constexpr (has_sums) {
      const kv_view kv = args.kv;
      executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
        std::int64_t* const sum = detail::unit_key_sums::at(kv, state).sums + head * kv.k.dim;
        for (std::int64_t d = 0; d < kv.k.dim; ++d) sum[d] = 0;
      });
    }
  }

  /// Adds the chunk's unit keys.
  static void observe(const policy_type&, const eviction_args& args, memory state, memory workspace,
                      executor_ref executor) {
    if constexpr (has_sums) {
      const kv_view kv = args.kv;
      const scratch_type scratch = scratch_type::of(kv, workspace, executor);
      executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
        std::int64_t* const sum = detail::unit_key_sums::at(kv, state).sums + head * kv.k.dim;
        for (std::int64_t slot = kv.length(head) - args.new_tokens; slot < kv.length(head); ++slot) {
          detail::add_unit_key(kv, head, slot, 1, scratch.row(worker), sum);
        }
      });
    }
  }

  static void score(const policy_type& policy, const eviction_args& args, tensor_view<float, 2> scores, memory state,
                    memory workspace, executor_ref executor) {
    const kv_view kv = args.kv;
    const scratch_type scratch = scratch_type::of(kv, workspace, executor);
    if constexpr (std::is_same_v<Anchor, anchor::pairwise>) {
      const std::int64_t tiles = (kv.tokens + detail::pair_rows - 1) / detail::pair_rows;
      executor.parallel_for(kv.heads * tiles, [&](std::int64_t work, unsigned worker) {
        const std::int64_t head = work / tiles, begin = work % tiles * detail::pair_rows;
        const std::int64_t end = detail::smaller(begin + detail::pair_rows, kv.length(head));
        if (begin < end) detail::score_pairs(kv, head, begin, end, scratch.row(worker), scores);
      });
    } else {
      executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
        if (kv.length(head) == 0) return;
        float* const row = scratch.anchors + head * kv.k.dim;
        detail::find_anchor(policy.anchor, kv, head, state, scratch.piece(worker), row);
        detail::negate_anchor(row, kv.k.dim);
      });
      const detail::stream_plan plan(kv, kv.k);
      executor.parallel_for(plan.units(), [&](std::int64_t work, unsigned worker) {
        detail::score_unit(kv, plan, work, scratch.anchors, scratch.row(worker), scores);
      });
    }
  }

  /// Takes the evicted unit keys out of the sums.
  static void compact(const policy_type&, const eviction_args& args, const index_lists& lists, memory state,
                      memory workspace, executor_ref executor) {
    if constexpr (has_sums) {
      const kv_view kv = args.kv;
      const scratch_type scratch = scratch_type::of(kv, workspace, executor);
      executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
        const std::int64_t list = detail::list_row(args, head);
        std::int64_t* const sum = detail::unit_key_sums::at(kv, state).sums + head * kv.k.dim;
        detail::for_each_evicted(lists.row(list), lists.counts[list], kv.length(head),
                                 [&](std::int64_t slot) SKIM_LAMBDA_INLINE {
                                   detail::add_unit_key(kv, head, slot, -1, scratch.row(worker), sum);
                                 });
      });
    }
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
