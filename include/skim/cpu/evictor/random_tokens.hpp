// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/cpu/score_kernel.hpp>
#include <skim/evictor/random_tokens.hpp>
#include <skim/math/random.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

template <>
struct score_kernel<random_tokens> : own_hooks<random_tokens, executor_ref> {
  static void score(const random_tokens& policy, const eviction_args& args, tensor_view<float, 2> scores, memory,
                    memory, executor_ref executor) {
    const kv_view kv = args.kv;
    executor.parallel_for(kv.heads, [&](std::int64_t head, unsigned) {
      std::int64_t newest = 0;
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        if (kv.position(head, slot) > newest) newest = kv.position(head, slot);
      }
      // With share_heads, the draws of all heads would average out towards none: all heads draw the same.
      const std::uint64_t of_head = draw(policy.seed, static_cast<std::uint64_t>(args.share_heads ? 0 : head));
      const std::uint64_t stream = draw(of_head, static_cast<std::uint64_t>(newest));
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(head, slot) = draw_uniform(stream, static_cast<std::uint64_t>(kv.position(head, slot)));
      }
    });
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
