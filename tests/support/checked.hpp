// SPDX-License-Identifier: Apache-2.0
/// \file The checks of attention, compiled once for a test: those of the library are always inlined, which takes sanitizers
/// seconds for every call.
#pragma once

#include <skim/attention.hpp>

namespace skim_test {

SKIM_NOINLINE inline skim::report checked(const skim::attention_args& args) {
  return check(args);
}
SKIM_NOINLINE inline skim::report shape_checked(const skim::attention_args& args) {
  return check_shape(args);
}
SKIM_NOINLINE inline skim::report indices_checked(const skim::attention_args& args,
                                                  const skim::index_lists* lists = nullptr) {
  return check_indices(args, lists);
}
SKIM_NOINLINE inline skim::report checked(const skim::retention& keep) {
  return check(keep);
}

}  // namespace skim_test
