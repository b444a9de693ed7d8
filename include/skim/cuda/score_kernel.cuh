// SPDX-License-Identifier: Apache-2.0
/// \file What a GPU adds to a selector of the library.
#pragma once

#include <skim/cuda/launch.cuh>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Specialised in `skim/cuda/selector/<policy>.cuh`: `check`, `workspace_bytes`, `select`.
template <class Selector>
struct score_kernel {
  static_assert(sizeof(Selector) == 0, "a selector of the library needs its header in skim/cuda/selector");
};

}}}  // namespace skim::v0_2::cuda
