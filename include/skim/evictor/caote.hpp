// SPDX-License-Identifier: Apache-2.0
/// \file CAOTE and FastCAOTE: how much the attention output changes if a token leaves (arXiv 2504.14051).
#pragma once

#include <skim/config.hpp>

namespace skim {
inline namespace v0 {

/// Evictor: with h >= 0 the base's score of a token (KeyDiff: 1 - cos) and hn = h / sum h, the score is
///   c_j = hn_j / (1 - hn_j) |sum_i hn_i v_i - v_j|_2,
/// the change of an attention output whose weights are hn. 1 - hn_j is at least 1e-6; all h zero means all equal. Tokens
/// that the base protects have h = 0 and score +inf. `Base` is any evictor with scores: `h2o`, `tova`, `snapkv`,
/// `keydiff<...>`, or one's own with a `weight` hook.
template <class Base>
struct caote {
  Base base{};
  /// Chooses the tokens that leave one by one, each with the smallest error of the whole set E that has left so far,
  /// |sum_E hn_i (x - v_i)| / (1 - sum_E hn_i). Reads V once for each token that leaves. Scores are then the order of
  /// leaving: 0, 1, ..., and +inf for those that stay.
  bool joint = false;
};

/// As `caote`, around the plain mean of the cached values instead of their weighted one.
template <class Base>
struct fast_caote {
  Base base{};
};

template <class Base>
caote(Base) -> caote<Base>;
template <class Base>
caote(Base, bool) -> caote<Base>;
template <class Base>
fast_caote(Base) -> fast_caote<Base>;

}  // namespace v0
}  // namespace skim
