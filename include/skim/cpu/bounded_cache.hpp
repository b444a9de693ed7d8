// SPDX-License-Identifier: Apache-2.0
/// \file One layer's cache of fixed size: append, attend, evict, without owning any of its memory.
#pragma once

#include <skim/attention.hpp>
#include <skim/append.hpp>
#include <skim/cpu/append.hpp>
#include <skim/cpu/eviction.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/eviction.hpp>
#include <skim/index_lists.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

/// Keeps count of what a bounded cache holds, for hosts that do not. Fill in `op`, `settings`, `state` and `kept`; `kv()`
/// begins as the view of an empty cache with positions, of capacity budget + chunk. Then, chunk by chunk: `append`, attend
/// to `kv()`, `evict`. Plain values; with a team executor each member has its own.
template <class Evictor>
struct bounded_cache {
  eviction<Evictor> op{};
  /// `attended.kv` is the cache, `budgets`, `how`, `share_heads` and `block_table` are as in every eviction; what belongs
  /// to a chunk is set by `evict`.
  eviction_args settings{};
  memory state{};
  index_lists kept{};               ///< [Hk or 1, budget]: the slots that stayed at the last eviction
  std::int32_t* lengths = nullptr;  ///< [Hk], zeros at first; needed with `settings.budgets`
  std::int64_t position = 0;        ///< of the next token

  kv_view& kv() { return settings.attended.kv; }
  const kv_view& kv() const { return settings.attended.kv; }

  /// Appends a chunk: k [Tq, Hk, D], v [Tq, Hk, Dv]. Statuses: those of `check` of the append, bad_extent where the cache
  /// has no room, null_pointer for missing lengths.
  report append(tensor_view<const void, 3> k, tensor_view<const void, 3> v, executor_ref executor) {
    append_args args;
    args.k = k;
    args.v = v;
    args.kv = kv();
    args.position = position;
    const std::int64_t Tq = k.extents[0], room = kv().capacity - kv().tokens;
    if (Tq > room) return fault(status::bad_extent, "k.extents[0]", Tq, room, "at most");
    if (Tq > 0) args.kv.tokens += Tq;
    if (report r = skim::check(args); !r) return r;
    if (settings.budgets && !lengths) return null_fault("lengths");
    if (lengths) {
      executor.parallel_for(kv().heads,
                            [&](std::int64_t head, unsigned) { lengths[head] += static_cast<std::int32_t>(Tq); });
      args.kv.lengths = lengths;
    }
    kv() = args.kv;
    position += Tq;
    return cpu::append(args, executor);
  }

  /// Observes the chunk that `attended` has just attended with (its `kv` is replaced by this cache) and `read`, and evicts
  /// down to the budget. Statuses: those of `eviction::run`.
  report evict(const attention_args& attended, const index_lists* read, memory workspace, executor_ref executor) {
    eviction_args args = settings;
    args.attended = attended;
    args.attended.kv = kv();
    args.read = read;
    const report answer = op.run(args, kept, state, workspace, executor);
    if (!answer) return answer;
    std::int64_t longest = 0;
    for (std::int64_t row = 0; row < kept.rows; ++row) longest = detail::greater(longest, kept.counts[row]);
    if (lengths) {
      executor.parallel_for(kv().heads, [&](std::int64_t head, unsigned) {
        lengths[head] = kept.counts[settings.share_heads ? 0 : head];
      });
    }
    kv().tokens = longest;
    return answer;
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
