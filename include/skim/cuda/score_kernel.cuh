// SPDX-License-Identifier: Apache-2.0
/// \file What a GPU adds to a policy of the library.
#pragma once

#include <skim/cuda/launch.cuh>
#include <skim/retention.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

/// Where `retention` says -1: from this past on `quoka{}` was faster than the dense path for 128 rows of 32 query and 8 KV
/// heads of 128 in bf16 (one H200). With 512 rows it is from some 12000 on: say so by `dense_under`.
inline constexpr dense_crossing measured_crossing{20480, 0};

}  // namespace detail

/// Specialised in `skim/cuda/<folder>/<policy>.cuh`, with `check` and `workspace_bytes`, and of a selector `select`; of an
/// evictor `state_bytes`, `reset`, `observe`, `score` and `leaving`, which may name weights to move along with the cache, and
/// says what is to be done with a token that leaves; of a neuron selector `score`.
template <class Policy>
struct score_kernel {
  static_assert(sizeof(Policy) == 0,
                "a policy of the library needs its header in skim/cuda/selector, evictor or neuron_selector");
};

}}}  // namespace skim::v0_2::cuda
