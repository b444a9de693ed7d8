// SPDX-License-Identifier: Apache-2.0
/// \file The constant set that FastForward is compared with, on the CPU.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/neuron_selector.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/calibrated_set.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

template <>
struct neuron_selector_kernel<calibrated_set> : detail::plain_neuron_selector<calibrated_set> {
  static report check(const calibrated_set& policy, const ffn_args& args) {
    if (report r = skim::check(policy.keep); !r) return r;
    if (report r =
            detail::check_tensor(policy.statistic, {"statistic.extents[0]", "statistic.strides[0]", "statistic.data"});
        !r) {
      return r;
    }
    const std::int64_t f = args.up.extents[0];
    if (policy.statistic.extents[0] == f) return {};
    return fault(status::bad_extent, "statistic.extents[0]", policy.statistic.extents[0], f);
  }
  static void predict(const calibrated_set& policy, const ffn_args&, tensor_view<float, 1> scores, memory, memory,
                      executor_ref executor) {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t j = 0; j < scores.extents[0]; ++j) *scores.at(j) = *policy.statistic.at(j);
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
