// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA: query-oriented choice of the keys that a prefill chunk reads (arXiv 2602.08722, Algorithm 1).
#pragma once

#include <skim/attention.hpp>
#include <skim/policy.hpp>
#include <skim/selector/queries.hpp>

namespace skim { inline namespace v0_2 {

/// How a key is compared with a chosen query.
enum class similarity : std::uint8_t {
  cosine,  ///< qbar . k / |k|: the paper's
  dot,     ///< qbar . k on raw keys: the paper's ablation
};

/// How a key's similarities to the chosen queries become its score.
enum class reduction : std::uint8_t {
  max,   ///< the paper's
  mean,  ///< the paper's ablation
};

/// Selector: per KV head, the past keys of highest score `reduce_n similarity(qbar[n], k)`. No 1/sqrt(D), no softmax.
/// Nothing is deleted; the next block of rows chooses anew. Keys that the mask hides from the whole block are no candidates;
/// equal scores prefer the earlier position; -0 = +0; NaN ranks below -inf, and a key with an infinity or NaN has it as its
/// cosine. Stored inverse norms are taken at their word between 1e-18 and 1e15; others are found from the key. Bias and slopes are not looked at.
struct quoka {
  query_rule queries{};
  retention keep = retention::budget(1024);
  skim::similarity similarity = skim::similarity::cosine;
  reduction reduce = reduction::max;

  SKIM_INLINE report check(const attention_args&) const {
    using namespace detail;
    if (report r = check_enumerator("queries.choice", queries.choice, query_choice::all); !r) return r;
    if (queries.choice != query_choice::all) {
      if (report r = check_range("queries.n", queries.n, 1, largest_index, status::bad_value); !r) return r;
    }
    if (report r = check_enumerator("similarity", similarity, skim::similarity::dot); !r) return r;
    return check_enumerator("reduce", reduce, reduction::mean);
  }

  /// Scoring multiplies every past key with every chosen query and reads K once; choosing is small beside it.
  SKIM_INLINE cost_estimate cost(const attention_args& args) const {
    cost_estimate total;
    for_each_block(args, keep.every, [&](const attention_sequence& block, std::int64_t) {
      const double D = static_cast<double>(args.q.extents[2]), Tk = static_cast<double>(block.Tk());
      const double heads = static_cast<double>(block.kv.heads);
      const double n = reduce == reduction::mean ? 1 : static_cast<double>(queries.kept(block.Tq));
      const double rows = static_cast<double>(block.Tq) * static_cast<double>(args.q.extents[1]);
      total = total + cost_estimate{2 * heads * n * D * Tk + 6 * rows * D,
                                    heads * Tk * (static_cast<double>(bytes_of(block.kv.k.type, block.kv.k.dim)) + 4) +
                                        rows * static_cast<double>(bytes_of(args.q.type, args.q.extents[2]))};
    });
    return total;
  }

  SKIM_INLINE constexpr policy_needs needs() const { return {false, false, similarity == skim::similarity::cosine}; }
};

}}  // namespace skim::v0_2
