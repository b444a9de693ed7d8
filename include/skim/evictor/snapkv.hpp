// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/selector/retention.hpp>

namespace skim {
inline namespace v0 {

/// Evictor SnapKV (arXiv 2404.14469) in chunks: the mean softmax weight from the chunk's last `window` queries (fewer if
/// the chunk has fewer) and the group's heads, then average-pooled over `pool` neighbours in order of position (zeros
/// beyond the ends, always divided by `pool`). The newest `window` tokens stay and count in the budget.
/// State [Hk, capacity] f32: what the last `observe` saw.
struct snapkv {
  retention keep = retention::budget(1024);
  std::int64_t window = 32;
  std::int64_t pool = 5;  ///< odd
};

/// `keep` with the window among the protected tokens. A window that does not fit beside the sinks is cut here, so that
/// `check` can name it.
SKIM_HD constexpr retention protecting(const snapkv& policy) {
  retention keep = policy.keep;
  if (keep.sinks < 0 || keep.sinks > keep.count) return keep;  // which `check` refuses
  const std::int64_t room = keep.count - keep.sinks, window = policy.window < room ? policy.window : room;
  if (keep.recent < window) keep.recent = window;
  return keep;
}

}  // namespace v0
}  // namespace skim
