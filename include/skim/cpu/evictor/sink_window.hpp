// SPDX-License-Identifier: Apache-2.0
/// \file `sink_window` on the CPU, as an evictor: equal scores, of which the later positions stay.
#pragma once

#include <skim/cpu/evictor.hpp>
#include <skim/eviction.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

/// All tokens but the sinks score the same, and of equal scores the later positions stay.
template <>
struct evictor_kernel<sink_window> : detail::plain_evictor<sink_window> {
  static constexpr bool prefers_later = true;

  static report check(const sink_window& policy, const eviction_args&) {
    if (policy.keep.recent == 0) return {};
    return fault(status::bad_value, "keep.recent (sink_window derives it)", policy.keep.recent, 0);
  }

  static void score(const sink_window&, const eviction_args& args, tensor_view<float, 2> scores, memory, memory,
                    executor_ref executor) {
    const kv_view& kv = args.attended.kv;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) *scores.at(head, slot) = 0;
    });
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
