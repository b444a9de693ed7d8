// SPDX-License-Identifier: Apache-2.0
/// \file The CPU's part of a policy; see policy.hpp.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/policy.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// `score`, and what goes with it, for `Policy`: its own, unless a header of the library specialises this.
template <class Policy>
struct score_kernel : own_hooks<Policy, executor_ref> {};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
