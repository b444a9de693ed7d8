// SPDX-License-Identifier: Apache-2.0
/// \file CAOTE and FastCAOTE: how much the attention output changes if a token leaves (arXiv 2504.14051).
#pragma once

#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 {
namespace detail {

/// The base's cost, and V read twice.
template <class Base>
SKIM_LOCAL cost_estimate caote_cost(const Base& base, const eviction_args& args) {
  static_assert(has<caote_weight_member, Base>,
                "caote and fast_caote need a base with scores: this one has none (an evictor of your own needs: float "
                "caote_weight(float score) const)");
  const double values = static_cast<double>(args.kv.heads * args.kv.tokens);
  return cost_of(base, args) + cost_estimate{5 * values * static_cast<double>(args.kv.v.dim),
                                             2 * values * static_cast<double>(bytes_of(args.kv.v.type, args.kv.v.dim))};
}

/// Scores are averaged at the end or not at all.
template <class Base>
SKIM_LOCAL report check_caote_base(const Base& base, const eviction_args& args) {
  if (smooth_of(base) != 1) return fault(status::bad_value, "base.smooth (within caote)", smooth_of(base), 1);
  return base.check(args);
}

}  // namespace detail

/// Evictor: with h >= 0 the base's score of a token (KeyDiff: 1 - cos) and hn = h / sum h, the score is
///   c_j = hn_j / (1 - hn_j) |sum_i hn_i v_i - v_j|_2,
/// the change of an attention output whose weights are hn. 1 - hn_j is at least 1e-6; all h zero means all equal. Tokens
/// that the base protects have h = 0 and score +inf; where scores are smoothed, they count and score like all others, and stay
/// because the base protects them. `Base` is any evictor with scores: `h2o`, `tova`, `snapkv`,
/// `keydiff<...>`, or one's own with a `caote_weight`.
template <class Base>
struct caote {
  Base base{};
  /// Chooses the tokens that leave one by one, each with the smallest error of the whole set E that has left so far,
  /// |sum_E hn_i (x - v_i)| / (1 - sum_E hn_i). Reads V once for each token that leaves. Scores are then the order of
  /// leaving: 0, 1, ..., and +inf for those that stay.
  bool joint = false;
  std::int64_t smooth = 1;  ///< odd, at most 63; the paper's: 1

  SKIM_INLINE retention kept(std::int64_t tokens) const { return kept_by(base, tokens); }
  SKIM_INLINE report check(const eviction_args& args) const {
    if (joint && args.share_heads) return fault(status::unsupported, "share_heads (caote, joint)", 1, 0);
    if (joint && smooth != 1) return fault(status::unsupported, "smooth (caote, joint)", smooth, 1);
    return detail::check_caote_base(base, args);
  }
  SKIM_INLINE cost_estimate cost(const eviction_args& args) const { return detail::caote_cost(base, args); }
  SKIM_INLINE constexpr policy_needs needs() const { return needs_of(base); }
};

/// As `caote`, around the plain mean of the cached values instead of their weighted one.
template <class Base>
struct fast_caote {
  Base base{};
  std::int64_t smooth = 1;  ///< odd, at most 63; the paper's: 1

  SKIM_INLINE retention kept(std::int64_t tokens) const { return kept_by(base, tokens); }
  SKIM_INLINE report check(const eviction_args& args) const { return detail::check_caote_base(base, args); }
  SKIM_INLINE cost_estimate cost(const eviction_args& args) const { return detail::caote_cost(base, args); }
  SKIM_INLINE constexpr policy_needs needs() const { return needs_of(base); }
};

template <class Base>
caote(Base) -> caote<Base>;
template <class Base>
caote(Base, bool) -> caote<Base>;
template <class Base>
caote(Base, bool, std::int64_t) -> caote<Base>;
template <class Base>
fast_caote(Base) -> fast_caote<Base>;
template <class Base>
fast_caote(Base, std::int64_t) -> fast_caote<Base>;

}}  // namespace skim::v0_2
