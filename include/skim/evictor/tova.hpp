// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/selector/retention.hpp>

namespace skim {
inline namespace v0 {

/// Evictor TOVA (arXiv 2401.06104): a token's score is the softmax weight that the chunk's last query gives it, meaned
/// over the group's query heads. State [Hk, capacity] f32: what the last `observe` saw.
struct tova {
  retention keep = retention::budget(1024);
};

}  // namespace v0
}  // namespace skim
