// SPDX-License-Identifier: Apache-2.0
/// \file CAOTE and FastCAOTE on the CPU: the base's scores become weights, the values' centre is summed, and each value's
/// distance from it is taken: V is read twice, q and K not at all.
#pragma once

#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/cpu/score_kernel.hpp>
#include <skim/evictor/caote.hpp>

#include <cmath>
#include <limits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {
namespace detail {

inline constexpr float least_remainder = 1e-6f;  // 1 - hn is at least this
inline constexpr float protected_weight = -1;    // marks, among weights, a token that stays whatever its score
inline constexpr float stays = -minus_infinity;

/// Scratch of one worker.
struct caote_worker {
  float* rows;         // [2, Dv]
  rank_scratch ranks;  // for the protected ends

  caote_worker(arena& arena, const kv_view& kv) : rows(arena.take<float>(2 * kv.v.dim)), ranks(arena, kv.tokens) {}
};

struct caote_scratch {
  float* centers;  // [Hk, Dv]
  char* workers;   // [workers]: pieces of `piece_bytes`
  std::size_t piece_bytes;

  caote_scratch(arena& arena, const kv_view& kv, unsigned count) {
    centers = arena.take<float>(kv.heads * kv.v.dim);
    detail::arena piece;
    caote_worker(piece, kv);
    piece_bytes = piece.used();
    workers = arena.take<char>(saturated(static_cast<std::int64_t>(piece_bytes), count));
  }
};

/// Turns one head's weights h into hn, in place; `protected_weight` marks the tokens that `keep` protects.
SKIM_NOINLINE inline void normalize_weights(const kv_view& kv, std::int64_t head, const retention& keep,
                                            const rank_scratch& scratch, const tensor_view<float, 2>& scores) {
  const std::int64_t n = kv.length(head);
  const bool ascend = positions_ascend(kv, head, n);
  for (std::int64_t slot = 0; slot < n; ++slot) scratch.ranks[slot] = no_candidate + 1;
  keep_ends(kv, head, n, smaller(keep.sinks, n), false, ascend, scratch);
  const std::int64_t others = greater(n - keep.sinks, 0);
  keep_ends(kv, head, n, smaller(keep.recent, others), true, ascend, scratch);
  double total = 0;
  std::int64_t unprotected = 0;
  for (std::int64_t slot = 0; slot < n; ++slot) {
    float& h = *scores.at(head, slot);
    const bool kept = scratch.ranks[slot] == kept_anyway;
    h = kept ? protected_weight : h > 0 ? h : 0.0f;  // NaN becomes 0 too
    if (kept) continue;
    total += static_cast<double>(h);
    ++unprotected;
  }
  const double uniform = 1 / static_cast<double>(greater(unprotected, 1));
  for (std::int64_t slot = 0; slot < n; ++slot) {
    float& h = *scores.at(head, slot);
    if (h == protected_weight) continue;
    h = static_cast<float>(total > 0 ? static_cast<double>(h) / total : uniform);
  }
}

SKIM_INLINE float one_minus(float weight) {
  return 1 - weight > least_remainder ? 1 - weight : least_remainder;
}

/// A score beyond f32 is the largest number: infinite are those of tokens that stay, and of values with an infinity.
SKIM_INLINE float below_stays(float score, float distance) {
  constexpr float most = (std::numeric_limits<float>::max)();
  return score > most && distance <= most ? most : score;
}

/// What the slots of one head have gone through in the joint form.
struct joint_search {
  const kv_view* kv;
  std::int64_t head;
  const float* center;     // [Dv]
  float *change, *values;  // [Dv]: sum over the evicted of hn (x - v); scratch
  float left = 0;          // the sum of their hn

  /// |change + hn (x - v)| / (1 - left - hn) if `slot` left too.
  SKIM_INLINE float error_with(std::int64_t slot, float weight) const {
    const std::int64_t Dv = kv->v.dim;
    widen(kv->row(kv->v, head, slot), Dv, values);
    double squares = 0;
    for (std::int64_t d = 0; d < Dv; ++d) {
      const float base = change[d] + weight * center[d], difference = base - weight * values[d];
      squares += static_cast<double>(difference) * static_cast<double>(difference);
    }
    const double error = std::sqrt(squares) / static_cast<double>(one_minus(left + weight));
    return below_stays(static_cast<float>(error), static_cast<float>(std::sqrt(squares)));
  }

  /// A value with an infinity or NaN, which the centre leaves out, takes only its weight along: all later errors would
  /// be NaN.
  SKIM_INLINE void evict(std::int64_t slot, float weight, float error) {
    left += weight;
    if (!std::isfinite(error)) return;
    for (std::int64_t d = 0; d < kv->v.dim; ++d) change[d] += weight * center[d];
    add_scaled(kv->row(kv->v, head, slot), -weight, change, kv->v.dim);
  }
};

/// Replaces one head's weights by the order in which `leaving` of its tokens leave; +inf for those that stay.
SKIM_NOINLINE inline void score_jointly(joint_search search, std::int64_t leaving, const tensor_view<float, 2>& scores,
                                        std::uint32_t* order) {  // [n]: 1 + the step at which a slot left, or 0
  const kv_view& kv = *search.kv;
  const std::int64_t n = kv.length(search.head);
  for (std::int64_t d = 0; d < kv.v.dim; ++d) search.change[d] = 0;
  for (std::int64_t slot = 0; slot < n; ++slot) order[slot] = 0;
  for (std::int64_t step = 0; step < leaving; ++step) {
    std::int64_t chosen = -1;
    float least = 0;
    for (std::int64_t slot = 0; slot < n; ++slot) {
      const float weight = *scores.at(search.head, slot);
      if (order[slot] != 0 || weight == protected_weight) continue;
      const float error = search.error_with(slot, weight);
      const bool later = chosen >= 0 && kv.position(search.head, slot) > kv.position(search.head, chosen);
      // NaN leaves first; of equal errors the later position
      const bool better = chosen < 0 || error < least || (std::isnan(error) && !std::isnan(least)) ||
                          ((error == least || (std::isnan(error) && std::isnan(least))) && later);
      if (!better) continue;
      chosen = slot;
      least = error;
    }
    if (chosen < 0) break;
    order[chosen] = static_cast<std::uint32_t>(step) + 1;
    search.evict(chosen, *scores.at(search.head, chosen), least);
  }
  for (std::int64_t slot = 0; slot < n; ++slot) {
    *scores.at(search.head, slot) = order[slot] == 0 ? stays : static_cast<float>(order[slot] - 1);
  }
}

/// Turns hn into the scores of a unit's tokens.
SKIM_NOINLINE inline void score_values(const kv_view& kv, const stream_plan& plan, std::int64_t unit,
                                       const float* centers, const tensor_view<float, 2>& scores) {
  const auto weigh = [&](std::int64_t head, std::int64_t slot, const stored_row& value) SKIM_LAMBDA_INLINE {
    float& score = *scores.at(head, slot);
    const float apart = distance(value, centers + head * kv.v.dim, kv.v.dim);
    score = score == protected_weight ? stays : below_stays(score / one_minus(score) * apart, apart);
  };
  plan.for_each_row(kv, kv.v, unit, weigh);
}

/// Distances start at the weighted mean of the values; else at the plain one.
template <class Base>
SKIM_INLINE bool is_weighted(const caote<Base>&) {
  return true;
}
template <class Base>
SKIM_INLINE bool is_weighted(const fast_caote<Base>&) {
  return false;
}

template <class Base>
SKIM_INLINE bool is_joint(const caote<Base>& policy) {
  return policy.joint;
}
template <class Base>
SKIM_INLINE bool is_joint(const fast_caote<Base>&) {
  return false;
}

/// What `caote<Base>` and `fast_caote<Base>` share: everything but the centre.
template <class Policy, class Base>
struct caote_kernel : own_hooks<Policy, executor_ref> {
  using base = score_kernel<Base>;
  static_assert(is_evictor<Base, base, executor_ref>(), "see the error above");
  static_assert(has<caote_weight_member, Base>,
                "caote and fast_caote need a base with scores: this one has none (an evictor of your own needs: float "
                "caote_weight(float score) const)");

  static std::size_t state_bytes(const Policy& policy, const eviction_args& args) {
    return base::state_bytes(policy.base, args);
  }
  static std::size_t workspace_bytes(const Policy& policy, const eviction_args& args, unsigned workers) {
    arena arena;
    caote_scratch(arena, args.kv, workers);
    const std::size_t own = arena.used(), of_base = base::workspace_bytes(policy.base, args, workers);
    return own > of_base ? own : of_base;
  }

  static void reset(const Policy& policy, const eviction_args& args, memory state, executor_ref executor) {
    base::reset(policy.base, args, state, executor);
  }
  static void observe(const Policy& policy, const eviction_args& args, memory state, memory workspace,
                      executor_ref executor) {
    base::observe(policy.base, args, state, workspace, executor);
  }
  static void compact(const Policy& policy, const eviction_args& args, const index_lists& lists, memory state,
                      memory workspace, executor_ref executor) {
    base::compact(policy.base, args, lists, state, workspace, executor);
  }

  static void score(const Policy& policy, const eviction_args& args, tensor_view<float, 2> scores, memory state,
                    memory workspace, executor_ref executor) {
    base::score(policy.base, args, scores, state, workspace, executor);
    const kv_view kv = args.kv;
    const retention kept = policy.smooth > 1 ? retention::budget(1) : kept_by(policy, args);
    arena arena(workspace.data);
    const caote_scratch scratch(arena, kv, executor.concurrency());
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned worker) {
      if (kv.length(head) == 0) return;
      const retention keep = kept_of_head(kept, args, head);
      detail::arena piece(worker_piece(scratch.workers, scratch.piece_bytes, worker));
      const caote_worker own(piece, kv);
      float* const weights = scores.at(head);
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        weights[slot] = policy.base.caote_weight(weights[slot]);
      }
      normalize_weights(kv, head, keep, own.ranks, scores);
      float* const center = scratch.centers + head * kv.v.dim;
      sum_rows(kv, kv.v, head, is_weighted(policy) ? weights : nullptr, own.rows, center);
      if (!is_joint(policy)) return;
      const joint_search search{&kv, head, center, own.rows, own.rows + kv.v.dim};
      score_jointly(search, kv.length(head) - keep.count, scores, own.ranks.ranks);
    });
    if (is_joint(policy)) return;
    const stream_plan plan(kv, kv.v);
    executor.parallel_for(plan.units(),
                          [&](std::int64_t work, unsigned) { score_values(kv, plan, work, scratch.centers, scores); });
  }
};

}  // namespace detail

/// Scores are f32. With u = 2^-24 and b = `rows_summed_apart` a score c lies within u (Dv / 8 + 20 + hn / (1 - hn)) c
/// + u (min(n, b) + n / b + 4) hn / (1 - hn) S of exact arithmetic on the base's scores and the stored values, S being the
/// length of the centre of the |v_i|: of sums that cancel, rounding does not. Scores below 2^-126 lose digits, those above
/// 3.4e38 are that.
template <class Base>
struct score_kernel<caote<Base>> : detail::caote_kernel<caote<Base>, Base> {};
template <class Base>
struct score_kernel<fast_caote<Base>> : detail::caote_kernel<fast_caote<Base>, Base> {};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
