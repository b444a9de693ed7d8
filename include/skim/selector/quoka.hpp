// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA: query-oriented choice of the keys that a prefill chunk reads (arXiv 2602.08722, Algorithm 1).
#pragma once

#include <skim/selector/queries.hpp>
#include <skim/selector/retention.hpp>

namespace skim {
inline namespace v0 {

/// How a key is compared with a chosen query.
namespace similarity {
struct cosine {};  ///< qbar . k / |k|: the paper's
struct dot {};     ///< qbar . k on raw keys: the paper's ablation
}  // namespace similarity

/// How a key's similarities to the chosen queries become its score.
namespace reduce {
struct max {};   ///< the paper's
struct mean {};  ///< the paper's ablation
}  // namespace reduce

/// Selector: per KV head, the past keys of highest score `reduce_n similarity(qbar[n], k)`. No 1/sqrt(D), no softmax.
/// Nothing is deleted; the next chunk chooses anew. Keys that the mask hides from the whole chunk are no candidates; equal
/// scores prefer the earlier position; -0 = +0; NaN ranks below -inf.
template <class Queries = queries::lowest_cosine, class Similarity = similarity::cosine, class Reduce = reduce::max>
struct quoka {
  Queries queries{};
  retention keep = retention::budget(1024);
  Similarity similarity{};
  Reduce reduce{};
};

template <class Queries>
quoka(Queries) -> quoka<Queries>;
template <class Queries>
quoka(Queries, retention) -> quoka<Queries>;
template <class Queries, class Similarity>
quoka(Queries, retention, Similarity) -> quoka<Queries, Similarity>;
template <class Queries, class Similarity, class Reduce>
quoka(Queries, retention, Similarity, Reduce) -> quoka<Queries, Similarity, Reduce>;

}  // namespace v0
}  // namespace skim
