// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/selector/retention.hpp>

namespace skim {
inline namespace v0 {

/// Selector that scores nothing: the `sinks` lowest positions and, for the rest of the budget, the highest
/// (StreamingLLM, arXiv 2309.17453, as a choice of reads). `keep.recent` need not be set.
struct sink_window {
  retention keep = retention::budget(1024, 4);
};

}  // namespace v0
}  // namespace skim
