// SPDX-License-Identifier: Apache-2.0
/// \file Checks of attention's arguments, compiled once into functions of this feature set.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/simd/compat.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Kernels read a batch's numbers, so they are looked at here; block tables are not.
SKIM_NOINLINE inline report check_attention_once(const attention_args& args) {
  if (report r = skim::check(args); !r) return r;
  return check_batch_indices(args);
}

SKIM_NOINLINE inline report check_shape_once(const attention_args& args) {
  return skim::check_shape(args);
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
