// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff: keeps the keys that differ most from the rest (arXiv 2504.15364). Keys alone decide.
#pragma once

#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 {

/// What a key is compared with, per KV head, over all `n` tokens. A zero vector has cosine 0 to everything; every other key
/// counts by its direction, however short or long it is. Stored inverse norms are taken at their word between 1e-18 and
/// 1e15; others are found from the key.
namespace anchor {

/// The mean of the unit keys: the definition. Ranks as `pairwise` does, since sum_j cos(k_i, k_j) = n |mu| cos(k_i, mu).
/// The sum is part of the state, [Hk, D] in 64-bit fixed point of 2^-30: integers, so that additions and evictions cancel
/// exactly and no drift builds up, however long the text.
struct unit_mean {};

struct mean {};      ///< the mean of the keys as they are: what the paper's experiments use
struct median {};    ///< by dimension the (n + 1) / 2-th smallest: the paper's ablation
struct pairwise {};  ///< no anchor: minus the mean cosine to all keys, 2 n^2 D flops. For tests and small caches

}  // namespace anchor

/// Evictor: score_i = -cos(anchor, k_i), the highest stay; equal scores prefer the later position. A key with a NaN or an
/// infinity scores NaN and goes first. Nothing is protected unless `keep` says so; `retention::budget(1024, 0, 128)` is
/// the paper's sliding-window variant (the newest 10 to 20 % of the budget).
template <class Anchor = anchor::unit_mean>
struct keydiff {
  retention keep = retention::budget(1024);
  Anchor anchor{};
  std::int64_t smooth = 1;  ///< odd, at most 63; the paper's: 1

  static constexpr bool prefers_later = true;

  SKIM_INLINE report check(const eviction_args&) const { return {}; }

  /// One dot product a key; K read once, the norms too where the cache has them.
  SKIM_INLINE cost_estimate cost(const eviction_args& args) const {
    const kv_cache& kv = args.kv;
    const double n = static_cast<double>(kv.tokens), keys = static_cast<double>(kv.heads) * n;
    const double passes = std::is_same_v<Anchor, skim::anchor::pairwise> ? n : 1;
    return {2 * keys * static_cast<double>(kv.k.dim) * passes,
            keys * static_cast<double>(bytes_of(kv.k.type, kv.k.dim) + std::int64_t{2 * sizeof(float)})};
  }

  SKIM_INLINE constexpr policy_needs needs() const { return {false, true, true}; }

  /// h = 1 - cos.
  SKIM_HD SKIM_INLINE float caote_weight(float score) const { return 1 + score > 0 ? 1 + score : 0; }
};

template <class Anchor>
keydiff(retention, Anchor) -> keydiff<Anchor>;
template <class Anchor>
keydiff(retention, Anchor, std::int64_t) -> keydiff<Anchor>;
keydiff(retention)->keydiff<>;

}}  // namespace skim::v0_2
