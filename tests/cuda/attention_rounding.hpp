// SPDX-License-Identifier: Apache-2.0
/// \file Which kernels attend on a GPU, and how they round.
#pragma once

#include <skim/cuda/attend.cuh>
#include <skim/testing/matchers.hpp>

namespace skim_test {

inline bool by_tensor_cores(const skim::attention_args& args) {
  return skim::cuda::detail::with_tensor_cores(skim::first_view(args), [](auto, auto) {});
}

inline skim::testing::arithmetic rounding_of(const skim::attention_args& args) {
  skim::testing::arithmetic rounding{0x1p-22, 0};
  if (by_tensor_cores(args)) rounding.factor = skim::testing::roundoff(skim::first_view(args).k.type);
  return rounding.on_normal_data();
}

}  // namespace skim_test
