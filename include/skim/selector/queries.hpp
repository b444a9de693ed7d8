// SPDX-License-Identifier: Apache-2.0
/// \file Which queries of a chunk speak for it when keys are scored.
///
/// Every rule yields `qbar [n, D]` per KV head: unit queries averaged over the `G` heads of the group, not normalised
/// again. All tokens are kept, in order, where the chunk has at most `n`. A zero query has the zero vector as its unit
/// vector and cosine 0 to everything. Ties go to the lower token.
#pragma once

#include <skim/math/random.hpp>

namespace skim {
inline namespace v0 {
namespace queries {

/// QUOKA (arXiv 2602.08722, Algorithm 1): per query head, the `n` tokens of lowest cosine to the head's mean query
/// (queries after RoPE, the mean over unnormalised queries), by ascending cosine; the group mean pairs the heads' choices
/// slot by slot.
struct lowest_cosine {
  std::int64_t n = 16;
};

/// The group mean first, tokens aligned; then the `n` tokens whose mean has the lowest cosine to the mean of means.
struct group_lowest_cosine {
  std::int64_t n = 16;
};

/// The group mean first; then greedy k-center selection in L2: from the token of lowest cosine, always the token
/// farthest from those already chosen. Covers the chunk's directions instead of its outliers.
struct farthest_point {
  std::int64_t n = 16;
};

/// `n` tokens without replacement, the same for all heads; drawn from `seed` and the chunk's place (Tk), so that
/// repeated calls agree. Give each layer its own seed.
struct random {
  std::int64_t n = 16;
  std::uint64_t seed = 0;
};

/// The chunk's last `n` tokens.
struct newest {
  std::int64_t n = 16;
};

/// Every token of the chunk.
struct all {};

/// Tokens that the rule keeps of `Tq`.
template <class Rule>
SKIM_HD constexpr std::int64_t kept(const Rule& rule, std::int64_t Tq) {
  return rule.n < Tq ? rule.n : Tq;
}
SKIM_HD constexpr std::int64_t kept(const all&, std::int64_t Tq) {
  return Tq;
}

/// True for rules that choose per query head; the others choose once per KV head, on the group mean.
template <class Rule>
inline constexpr bool per_query_head = false;
template <>
inline constexpr bool per_query_head<lowest_cosine> = true;

/// Writes the choice of `random` for a chunk of `Tq` tokens behind `Tk` to the first `kept(rule, Tq)` places of
/// `tokens [Tq]`, in no particular order: a partial Fisher-Yates shuffle.
SKIM_HD SKIM_INLINE void choose(const random& rule, std::int64_t Tq, std::int64_t Tk, std::int32_t* tokens) {
  for (std::int64_t t = 0; t < Tq; ++t) tokens[t] = static_cast<std::int32_t>(t);
  const std::uint64_t stream = draw(rule.seed, static_cast<std::uint64_t>(Tk));
  for (std::int64_t i = 0; i < kept(rule, Tq); ++i) {
    const std::uint64_t left = static_cast<std::uint64_t>(Tq - i);
    const std::int64_t j = i + static_cast<std::int64_t>(draw(stream, static_cast<std::uint64_t>(i)) % left);
    const std::int32_t swapped = tokens[i];
    tokens[i] = tokens[j];
    tokens[j] = swapped;
  }
}

}  // namespace queries
}  // namespace v0
}  // namespace skim
