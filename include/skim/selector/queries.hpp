// SPDX-License-Identifier: Apache-2.0
/// \file Which queries of a chunk speak for it when keys are scored.
///
/// Rules over a group's own rows (ours) look at the `G * Tq` rows of a KV head apart: row `g * Tq + t` is `scale * q` of head
/// g of the group at token t. Rules over group means look at `Tq` rows: unit queries averaged over the `G` heads, not
/// normalised again. Of either, all rows are kept, in order, where there are at most `n`. Ties go to the lower row.
///
/// A zero query has the zero vector as its unit vector and cosine 0 to everything; every other finite query its direction,
/// however short or long it is. A query with an infinity or NaN has no say: it counts as zeros in means, rules choose it
/// after all others, and where no query of a place has a say, the place stays out of a key's score.
#pragma once

#include <skim/math/random.hpp>
#include <skim/status.hpp>

namespace skim { inline namespace v0_2 {

enum class query_choice : std::uint8_t {
  /// Ours, over own rows: farthest points by need, averaged. Of the KV head's `R = G * Tq` rows x:
  /// 1. Need: the share of its attention that would fall on the past, `sigmoid(P - O)`. `P` is the log-sum-exp of x . k over
  ///    every `max(1, past / samples)`-th candidate from the fifth on, scaled up to all; `O` that over the block's own keys
  ///    which the row may see. 1 where there is no such key on either side. Keys with an infinity or NaN are left out.
  /// 2. Features: per head `y = (x - mean) / rms`, rms being the root of the mean `|x - mean|^2`; 0 where rms is at most
  ///    1e-6 of the root of the mean `|x|^2`; `x / |x|` where there is one token.
  /// 3. In rounds of `max(1, n / 4)`: first the rows of largest `need |y|^2`, then those of largest `need min |y - y_c|^2`
  ///    over the rows c of earlier rounds.
  /// 4. Each row joins its nearest picked row (ties: the one picked earlier); a query is the mean of its members' x, weighted
  ///    by need, or the picked row itself where their needs sum to at most 1e-6.
  /// Soft cap, sink logits, bias and slopes are not looked at; the mask only for candidates and `O`.
  needed,
  /// QUOKA (arXiv 2602.08722, Algorithm 1): per query head, the `n` tokens of lowest cosine to the head's mean query
  /// (queries after RoPE, the mean over unnormalised queries), by ascending cosine; the group mean pairs the heads' choices
  /// slot by slot.
  lowest_cosine,
  /// The group mean first, tokens aligned; then the `n` tokens whose mean has the lowest cosine to the mean of means.
  group_lowest_cosine,
  /// The group mean first; then greedy k-center selection in L2: from the token of lowest cosine, always the token
  /// farthest from those already chosen. Covers the chunk's directions instead of its outliers.
  farthest_point,
  /// `n` rows without replacement, the same for all heads; drawn from `seed` and the chunk's place (Tk), so that
  /// repeated calls agree. Give each layer its own seed.
  random,
  newest,  ///< the last `n` rows by token; of one token's own rows the first heads of the group
  all,     ///< every row
};

/// What a rule chooses among.
enum class query_rows : std::uint8_t {
  own,          ///< every row of every query head of the group
  group_means,  ///< the mean of the group's unit queries, token by token
};

struct query_rule {
  query_choice choice = query_choice::needed;
  std::int64_t n = 48;
  std::uint64_t seed = 0;
  query_rows rows = query_rows::own;
  std::int64_t samples = 64;  ///< `needed`: past keys that need is estimated from, at least; fewer than twice as many

  /// Rows that there are to choose among, of `Tq` tokens and `G` heads in a group.
  SKIM_HD SKIM_INLINE constexpr std::int64_t all(std::int64_t Tq, std::int64_t G) const {
    return rows == query_rows::own ? Tq * G : Tq;
  }
  /// Rows that the rule keeps of those.
  SKIM_HD SKIM_INLINE constexpr std::int64_t kept(std::int64_t Tq, std::int64_t G) const {
    return choice == query_choice::all || all(Tq, G) < n ? all(Tq, G) : n;
  }
  /// True for the rule that chooses per query head; the others choose once per KV head, on the group mean.
  SKIM_HD SKIM_INLINE constexpr bool per_query_head() const { return choice == query_choice::lowest_cosine; }
};

/// The rules by name: `queries::farthest_point(32)`.
namespace queries {

SKIM_HD constexpr query_rule needed(std::int64_t n = 48) {
  return {query_choice::needed, n};
}
SKIM_HD constexpr query_rule lowest_cosine(std::int64_t n = 16) {
  return {query_choice::lowest_cosine, n, 0, query_rows::group_means};
}
SKIM_HD constexpr query_rule group_lowest_cosine(std::int64_t n = 16) {
  return {query_choice::group_lowest_cosine, n, 0, query_rows::group_means};
}
SKIM_HD constexpr query_rule farthest_point(std::int64_t n = 16) {
  return {query_choice::farthest_point, n, 0, query_rows::group_means};
}
SKIM_HD constexpr query_rule random(std::int64_t n = 16, std::uint64_t seed = 0,
                                    query_rows rows = query_rows::group_means) {
  return {query_choice::random, n, seed, rows};
}
SKIM_HD constexpr query_rule newest(std::int64_t n = 16, query_rows rows = query_rows::group_means) {
  return {query_choice::newest, n, 0, rows};
}
SKIM_HD constexpr query_rule all(query_rows rows = query_rows::group_means) {
  return {query_choice::all, 1, 0, rows};
}

/// Writes the choice of `random` among `count` rows of a chunk behind `Tk` tokens to the first `n` (at most `count`) places
/// of `rows [count]`, in no particular order: a partial Fisher-Yates shuffle.
SKIM_HD SKIM_INLINE void draw_rows(const query_rule& rule, std::int64_t count, std::int64_t Tk, std::int32_t* rows) {
  for (std::int64_t t = 0; t < count; ++t) rows[t] = static_cast<std::int32_t>(t);
  const std::uint64_t stream = draw(rule.seed, static_cast<std::uint64_t>(Tk));
  for (std::int64_t i = 0; i < (rule.n < count ? rule.n : count); ++i) {
    const std::uint64_t left = static_cast<std::uint64_t>(count - i);
    const std::int64_t j = i + static_cast<std::int64_t>(draw(stream, static_cast<std::uint64_t>(i)) % left);
    const std::int32_t swapped = rows[i];
    rows[i] = rows[j];
    rows[j] = swapped;
  }
}

}  // namespace queries
}}  // namespace skim::v0_2
