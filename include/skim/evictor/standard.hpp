// SPDX-License-Identifier: Apache-2.0
/// \file The evictor to begin with: FastCAOTE over KeyDiff with ends protected and scores smoothed. The parts are the papers',
/// what is made of them is ours: of the evictors here it kept the most answers on the models it was measured on, with the
/// least loss on the rest of the text. Policies named after a paper stay as the paper has them.
#pragma once

#include <skim/evictor/caote.hpp>
#include <skim/evictor/keydiff.hpp>

namespace skim { inline namespace v0_2 {

using standard_evictor = fast_caote<keydiff<>>;

namespace evictors {

/// Keeps `budget` tokens per KV head: the first 4 (models rest on them), the newest quarter (ordinary text needs these), and
/// those whose key and value differ most from the rest, smoothed over 5, since what matters is several tokens long. On small
/// budgets the ends shrink to half.
///
/// A fact is found only where every layer has kept it. So the best use is one set of tokens for all layers and heads: `score`
/// in each layer, `cpu::rank_scores` and `cpu::pool_scores` over all of them, one `choose`, `compact` in each (SmolLM2, 2048
/// of 8192 tokens: 0.97 of dense attention's answers instead of 0.63; examples/needle does so).
SKIM_HD constexpr standard_evictor standard(std::int64_t budget) {
  retention keep = retention::budget(budget, 4, budget / 4 + (budget % 4 != 0 ? 1 : 0));
  keep.shrinks = true;
  return {keydiff<>{keep}, 5};
}

}  // namespace evictors
}}  // namespace skim::v0_2
