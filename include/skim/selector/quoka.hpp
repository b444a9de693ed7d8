// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA: query-oriented choice of the keys that a prefill chunk reads. The frame is the paper's (arXiv 2602.08722,
/// Algorithm 1): few queries speak for the chunk, each key is scored by the one it suits best, the best keys are read. The
/// rule inside is ours by default; `quoka::paper()` has the paper's.
#pragma once

#include <skim/attention.hpp>
#include <skim/policy.hpp>
#include <skim/selector/queries.hpp>

namespace skim { inline namespace v0_2 {

/// How a key is compared with a chosen query c.
enum class similarity : std::uint8_t {
  cosine,        ///< the paper's: c . k / |k|; own rows enter at unit length
  dot,           ///< the paper's ablation: c . k on raw keys
  standardised,  ///< ours: (c . k - m) / s, how far the key stands out of what the query sees elsewhere
};

/// How a key's similarities to the chosen queries become its score.
enum class reduction : std::uint8_t {
  max,   ///< the paper's
  mean,  ///< the paper's ablation
};

/// Selector: per KV head and block of rows, the past keys of highest score. No softmax. Nothing is deleted; the next block
/// chooses anew. Keys that the mask hides from the whole block are no candidates; equal scores prefer the earlier position;
/// -0 = +0; NaN ranks below -inf. Bias and slopes are not looked at.
///
/// Ours (the default): `needed` queries, `standardised` scores, smoothed over 3 candidates, for every 64 rows; the first 4
/// and the newest 128 keys are part of what they read. In place of the paper's rule because that loses most answers on the
/// models it was measured on: heads of a group ask for different keys, and one loud query or a direction that all keys
/// share drowns the rest.
///
/// `standardised`: m and s are the mean and the standard deviation (divisor count - 1) of c . k over the candidates 16, 48,
/// 80, ... in order of position, or over all where that is fewer than 32. A query whose s is at most 1e-6 of the root mean
/// square of c . k, or that has one key, does not score; where none scores, the newest keys are kept. Where K is bf16, c is
/// rounded to bf16 first, and processors that multiply pairs of bf16 take numbers of K below 1.2e-38 for zero; where K has 8
/// bits, c is rounded to as many: integers up to 127 times a scale for every 32 numbers, as in ggml's Q8_0, and sums of their
/// products are exact in these blocks. Products that are not finite are left out; a key whose score is not finite has NaN.
///
/// `cosine`: stored inverse norms are taken at their word between 1e-18 and 1e15; others are found from the key. A key with
/// an infinity or NaN has it as its cosine.
///
/// `smooth`: a key's score is then the mean of the scores, of those that are finite, of it and its `smooth - 1` neighbours by
/// position among the candidates; one that is not finite is NaN. What is asked for is a span of tokens in text; where single
/// keys far apart matter, smoothing hands two thirds of their lead to their neighbours: set it to 1.
struct quoka {
  query_rule queries{};
  retention keep = retention::preset(512);
  skim::similarity similarity = skim::similarity::standardised;
  reduction reduce = reduction::max;
  std::int64_t smooth = 3;  ///< odd, at most 63; 1 = not smoothed

  /// The paper's rule, with its settings: QUOKA as published. Its ablations differ in one argument.
  SKIM_HD static constexpr quoka paper(query_rule queries = queries::lowest_cosine(16),
                                       retention keep = retention::budget(1024),
                                       skim::similarity similarity = skim::similarity::cosine,
                                       reduction reduce = reduction::max) {
    return {queries, keep, similarity, reduce, 1};
  }

  SKIM_INLINE report check(const attention_args&) const {
    using namespace detail;
    if (report r = check_enumerator("queries.choice", queries.choice, query_choice::all); !r) return r;
    if (report r = check_enumerator("queries.rows", queries.rows, query_rows::group_means); !r) return r;
    if (queries.choice != query_choice::all) {
      if (report r = check_range("queries.n", queries.n, 1, largest_index, status::bad_value); !r) return r;
    }
    if (report r = check_range("queries.samples", queries.samples, 1, 1 << 20, status::bad_value); !r) return r;
    if (report r = check_enumerator("similarity", similarity, skim::similarity::standardised); !r) return r;
    if (report r = check_enumerator("reduce", reduce, reduction::mean); !r) return r;
    if (report r = check_width_of_mean("smooth", smooth); !r) return r;
    return check_pairs();
  }

  /// Scoring multiplies every past key with every chosen query and reads K once; choosing is small beside it.
  SKIM_INLINE cost_estimate cost(const attention_args& args) const {
    cost_estimate total;
    for_each_block(args, keep.every, [&](const attention_sequence& block, std::int64_t) SKIM_LAMBDA_INLINE {
      const double D = static_cast<double>(args.q.extents[2]), Tk = static_cast<double>(block.Tk());
      const double heads = static_cast<double>(block.kv.heads);
      const double n = reduce == reduction::mean ? 1 : static_cast<double>(queries.kept(block.Tq, group_size(args)));
      const double rows = static_cast<double>(block.Tq) * static_cast<double>(args.q.extents[1]);
      const double met = queries.choice == query_choice::needed  // samples, own keys and picked rows
                             ? static_cast<double>(queries.samples) + static_cast<double>(block.Tq) / 2 + n
                             : 0;
      total = total + cost_estimate{2 * heads * n * D * Tk + rows * D * (6 + 2 * met),
                                    heads * Tk * (static_cast<double>(bytes_of(block.kv.k.type, block.kv.k.dim)) + 4) +
                                        rows * static_cast<double>(bytes_of(args.q.type, args.q.extents[2]))};
    });
    return total;
  }

  SKIM_INLINE constexpr policy_needs needs() const { return {false, false, similarity == skim::similarity::cosine}; }

 private:
  /// What does not go together.
  SKIM_INLINE constexpr report check_pairs() const {
    using namespace detail;
    const bool own = queries.rows == query_rows::own;
    const query_choice choice = queries.choice;
    if (choice == query_choice::needed && !own) {
      return fault(status::bad_value, "queries.rows (need is of a head's own rows)", "group_means", "own");
    }
    if (own && (choice == query_choice::lowest_cosine || choice == query_choice::group_lowest_cosine ||
                choice == query_choice::farthest_point)) {
      return fault(status::bad_value, "queries.rows (this choice is made on group means)", "own", "group_means");
    }
    if (similarity == skim::similarity::standardised && choice == query_choice::lowest_cosine) {
      return fault(status::bad_value, "similarity (the paper's choice pairs queries of different tokens)",
                   "standardised", "cosine or dot");
    }
    if (similarity == skim::similarity::standardised && reduce == reduction::mean) {
      return fault(status::bad_value, "reduce (with standardised scores)", "mean", "max");
    }
    return {};
  }
};

}}  // namespace skim::v0_2
