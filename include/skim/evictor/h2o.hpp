// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/selector/retention.hpp>

namespace skim {
inline namespace v0 {

/// Evictor H2O (arXiv 2306.14048), as CAOTE's paper uses it: a token's score is the softmax weight it has received from
/// all queries so far, meaned over the group's query heads, never averaged over queries. State [Hk, capacity] f32, which
/// follows the tokens. Every chunk must be observed, also where nothing is evicted.
struct h2o {
  retention keep = retention::budget(1024);
};

}  // namespace v0
}  // namespace skim
