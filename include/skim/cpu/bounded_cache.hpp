// SPDX-License-Identifier: Apache-2.0
/// \file One layer's cache of fixed size: append, attend, evict, without owning any of its memory.
#pragma once

#include <skim/cpu/append.hpp>
#include <skim/cpu/eviction.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// Keeps count of what a bounded cache holds, for hosts that do not. Fill in `op`, `settings`, `state` and `kept`; `kv()`
/// begins as the view of an empty cache with positions, of capacity budget + chunk. Then, chunk by chunk: `append`, attend
/// to `kv()`, `evict`; or `observe`, where several chunks come before an eviction. Plain values; with a team executor each
/// member has its own.
template <class Evictor>
struct bounded_cache {
  eviction<Evictor> op{};
  /// `budgets`, `how`, `share_heads` and `block_table` are as in every eviction. `kv` is the cache, and `new_tokens` what
  /// was appended and not yet observed: both are kept up to date here.
  eviction_args settings{};
  memory state{};
  index_lists kept{};               ///< [Hk or 1, budget]: the slots that stayed at the last eviction
  std::int32_t* lengths = nullptr;  ///< [Hk], zeros at first; needed with `settings.budgets`
  std::int64_t position = 0;        ///< of the next token

  kv_cache& kv() { return settings.kv; }
  const kv_cache& kv() const { return settings.kv; }

  /// Appends a chunk: k [Tq, Hk, D], v [Tq, Hk, Dv]. Statuses: those of `check` of the append, bad_extent where the cache
  /// has no room, null_pointer for missing lengths.
  report append(tensor_view<const void, 3> k, tensor_view<const void, 3> v, executor_ref executor) {
    append_args args;
    args.k = k;
    args.v = v;
    args.kv = kv();
    args.position = position;
    const std::int64_t Tq = k.extents[0];
    if (report r = detail::check_range("kv.tokens", kv().tokens, 0, detail::largest_index); !r) return r;
    if (report r = detail::check_range("kv.capacity", kv().capacity, kv().tokens, detail::largest_index); !r) return r;
    const std::int64_t room = kv().capacity - kv().tokens;
    if (Tq > room) return detail::part_fault(status::bad_extent, "k", part::extents, 0, Tq, room, "at most");
    if (Tq > 0) args.kv.tokens += Tq;
    if (report r = skim::check(args); !r) return r;
    if (settings.budgets && !lengths) return null_fault("lengths");
    if (lengths) {
      executor.parallel_for(kv().heads,
                            [&](std::int64_t head, unsigned) { lengths[head] += static_cast<std::int32_t>(Tq); });
      args.kv.lengths = lengths;
    }
    detail::append_chunk(args, executor);
    kv() = args.kv;
    settings.new_tokens += Tq;
    position += Tq;
    return {};
  }

  /// What an eviction takes now: the chunk has just attended with `attended` (whose `kv` is not looked at) to the past keys
  /// of `read`.
  eviction_args args(const attention_args& attended, const index_lists* read) const {
    eviction_args now = settings;
    now.attended = attended;
    now.read = read;
    return now;
  }

  /// Takes in the chunk and evicts nothing yet. Statuses: those of `eviction::observe`.
  report observe(const attention_args& attended, const index_lists* read, memory workspace, executor_ref executor) {
    const report answer = op.observe(args(attended, read), state, workspace, executor);
    if (answer) settings.new_tokens = 0;
    return answer;
  }

  /// Takes in the chunk and evicts down to the budget. Statuses: those of `eviction::run`.
  report evict(const attention_args& attended, const index_lists* read, memory workspace, executor_ref executor) {
    if (settings.budgets && !lengths) return null_fault("lengths");
    const report answer = op.run(args(attended, read), kept, state, workspace, executor);
    if (!answer) return answer;
    settings.new_tokens = 0;
    std::int64_t longest = 0;
    for (std::int64_t row = 0; row < kept.rows; ++row) longest = detail::greater(longest, kept.counts[row]);
    if (lengths) {
      executor.parallel_for(kv().heads, [&](std::int64_t head, unsigned) {
        lengths[head] = kept.counts[detail::list_row(settings, head)];
      });
    }
    kv().tokens = longest;
    return answer;
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
