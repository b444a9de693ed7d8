// SPDX-License-Identifier: Apache-2.0
/// \file Which queries of a chunk speak for it when keys are scored.
///
/// Every rule yields `qbar [n, D]` per KV head: unit queries averaged over the `G` heads of the group, not normalised
/// again. All tokens are kept, in order, where the chunk has at most `n`. A zero query has the zero vector as its unit
/// vector and cosine 0 to everything; every other finite query its direction, however short or long it is. Ties go to the
/// lower token.
///
/// A query with an infinity or NaN has no say: it counts as zeros in means, rules by direction choose it after all others,
/// and where no query of the group has a say, the place in qbar stays out of a key's score (0 if all do).
#pragma once

#include <skim/math/random.hpp>
#include <skim/status.hpp>

namespace skim { inline namespace v0_2 {

enum class query_choice : std::uint8_t {
  /// QUOKA (arXiv 2602.08722, Algorithm 1): per query head, the `n` tokens of lowest cosine to the head's mean query
  /// (queries after RoPE, the mean over unnormalised queries), by ascending cosine; the group mean pairs the heads' choices
  /// slot by slot.
  lowest_cosine,
  /// The group mean first, tokens aligned; then the `n` tokens whose mean has the lowest cosine to the mean of means.
  group_lowest_cosine,
  /// The group mean first; then greedy k-center selection in L2: from the token of lowest cosine, always the token
  /// farthest from those already chosen. Covers the chunk's directions instead of its outliers.
  farthest_point,
  /// `n` tokens without replacement, the same for all heads; drawn from `seed` and the chunk's place (Tk), so that
  /// repeated calls agree. Give each layer its own seed.
  random,
  newest,  ///< the chunk's last `n` tokens
  all,     ///< every token of the chunk
};

struct query_rule {
  query_choice choice = query_choice::lowest_cosine;
  std::int64_t n = 16;
  std::uint64_t seed = 0;

  /// Tokens that the rule keeps of `Tq`.
  SKIM_HD SKIM_INLINE constexpr std::int64_t kept(std::int64_t Tq) const {
    return choice == query_choice::all || Tq < n ? Tq : n;
  }
  /// True for the rule that chooses per query head; the others choose once per KV head, on the group mean.
  SKIM_HD SKIM_INLINE constexpr bool per_query_head() const { return choice == query_choice::lowest_cosine; }
};

/// The rules by name: `queries::farthest_point(32)`.
namespace queries {

SKIM_HD constexpr query_rule lowest_cosine(std::int64_t n = 16) {
  return {query_choice::lowest_cosine, n};
}
SKIM_HD constexpr query_rule group_lowest_cosine(std::int64_t n = 16) {
  return {query_choice::group_lowest_cosine, n};
}
SKIM_HD constexpr query_rule farthest_point(std::int64_t n = 16) {
  return {query_choice::farthest_point, n};
}
SKIM_HD constexpr query_rule random(std::int64_t n = 16, std::uint64_t seed = 0) {
  return {query_choice::random, n, seed};
}
SKIM_HD constexpr query_rule newest(std::int64_t n = 16) {
  return {query_choice::newest, n};
}
SKIM_HD constexpr query_rule all() {
  return {query_choice::all, 1};
}

/// Writes the choice of `random` for a chunk of `Tq` tokens behind `Tk` to the first `kept(Tq)` places of
/// `tokens [Tq]`, in no particular order: a partial Fisher-Yates shuffle.
SKIM_HD SKIM_INLINE void draw_tokens(const query_rule& rule, std::int64_t Tq, std::int64_t Tk, std::int32_t* tokens) {
  for (std::int64_t t = 0; t < Tq; ++t) tokens[t] = static_cast<std::int32_t>(t);
  const std::uint64_t stream = draw(rule.seed, static_cast<std::uint64_t>(Tk));
  for (std::int64_t i = 0; i < rule.kept(Tq); ++i) {
    const std::uint64_t left = static_cast<std::uint64_t>(Tq - i);
    const std::int64_t j = i + static_cast<std::int64_t>(draw(stream, static_cast<std::uint64_t>(i)) % left);
    const std::int32_t swapped = tokens[i];
    tokens[i] = tokens[j];
    tokens[j] = swapped;
  }
}

}  // namespace queries
}}  // namespace skim::v0_2
