// SPDX-License-Identifier: Apache-2.0
/// \file Bounding the cache: which tokens stay once a chunk has been appended and attended. Arguments, `check`, moves.
///
/// Glossary as in attention.hpp; `n` is the number of tokens that a KV head holds, the chunk's own included.
#pragma once

#include <skim/attention.hpp>
#include <skim/policy.hpp>

namespace skim { inline namespace v0_2 {

/// What becomes of the places of evicted tokens. In every way the survivors keep their positions (no re-rotation) and
/// afterwards fill the slots from 0 on without holes.
enum class compaction : std::uint8_t {
  refill,  ///< the last survivors move into the evicted slots: only as many rows move as were evicted
  stable,  ///< survivors close up; the order of slots, and with it of time, stays
  pages,   ///< whole pages leave: survivors stay where they are, their pages' numbers close up in the block table
};

SKIM_LOCAL constexpr const char* to_string(compaction way) {
  return way == compaction::refill ? "refill" : way == compaction::stable ? "stable" : "pages";
}

/// Arguments of one eviction: one layer, one sequence, after its chunk was appended and attended.
///
/// The cache stores positions (`kv.positions`): slots no longer say them once a token is gone. Its `capacity` stays the
/// same from one call to the next, since state has a place for each row of metadata.
struct eviction_args {
  kv_cache kv;                  ///< as it is now
  std::int64_t new_tokens = 0;  ///< the chunk's own: the last of `kv`

  /// The attention call that the chunk has just run, for policies that look at attention (`needs().lse`: H2O, TOVA, SnapKV):
  /// they read q [new_tokens, Hq, D], `lse`, and mask, scale, soft cap, sink logits, slopes and bias as that call did. One
  /// sequence, that of `kv`, which stands for `attended.kv`; `out` is never touched. The others read nothing of it.
  attention_args attended;
  const index_lists* read = nullptr;  ///< the past keys that the call attended to; null: all

  const std::int32_t* budgets = nullptr;  ///< [Hk], optional: tokens to keep by head, at most the policy's `keep.count`
  compaction how = compaction::refill;

  /// One list for all heads, by their mean score: for caches whose heads must hold the same tokens in the same slots.
  /// Needed where `kv.positions` is one shared row, and for `compaction::pages`.
  bool share_heads = false;

  /// `compaction::pages` only: the view's block table, to be rewritten. The pages that leave stand behind those that
  /// stay, ready for the next tokens.
  std::int32_t* block_table = nullptr;
};

/// Rows of an eviction's index lists.
SKIM_HD SKIM_INLINE std::int64_t list_rows(const eviction_args& args) {
  return args.share_heads ? 1 : args.kv.heads;
}

/// The attention call that the chunk has run, over the cache as it is.
SKIM_HD SKIM_INLINE attention_args attended_call(const eviction_args& args) {
  attention_args call = args.attended;
  call.kv = args.kv;
  return call;
}

/// What an evictor keeps of the call's tokens. Where all score alike the highest positions stay: recent ones need no
/// protection, and leave room for budgets by head and for whole pages.
template <class Policy>
SKIM_INLINE retention kept_by(const Policy& policy, const eviction_args& args) {
  if constexpr (scores_alike<Policy> && detail::has<detail::keep_member, Policy>) {
    retention keep = policy.keep.among(args.kv.tokens);
    keep.recent = 0;
    return keep;
  } else {
    return kept_by(policy, args.kv.tokens);
  }
}

/// What head `head` keeps: `keep` with its own budget, within which sinks and recent tokens are.
SKIM_HD SKIM_INLINE retention kept_of_head(retention keep, const eviction_args& args, std::int64_t head) {
  if (!args.budgets) return keep;
  keep.count = args.budgets[head];
  if (keep.sinks > keep.count) keep.sinks = keep.count;
  if (keep.recent > keep.count - keep.sinks) keep.recent = keep.count - keep.sinks;
  return keep;
}

/// The row length that an eviction's lists need.
SKIM_HD SKIM_INLINE std::int64_t list_capacity(const retention& keep, const eviction_args& args) {
  return keep.count < args.kv.tokens ? keep.count : args.kv.tokens;
}

namespace detail {

template <class Kernel>
using inherited_score = decltype(&Kernel::template score<eviction_args>);

/// True if `Policy` has all that an evictor needs, `Kernel` being a back-end's part of it; else an error that names what it
/// lacks.
template <class Policy, class Kernel, class On>
constexpr bool is_evictor() {
  static_assert(keeps<Policy>, "an evictor policy needs: retention keep");
  static_assert(has<check_member, Policy, eviction_args>,
                "an evictor policy needs: report check(const eviction_args&) const");
  static_assert(scores_alike<Policy> || has<score_member, Policy, eviction_args, On> || !has<inherited_score, Kernel>,
                "an evictor policy needs: void score(const eviction_args&, tensor_view<float, 2> scores, memory state, "
                "memory workspace, executor_ref) const; one of the library: its header in skim/cpu/evictor");
  return true;
}

SKIM_LOCAL constexpr report check_pages(const eviction_args& args, const retention& keep, pointers given) {
  const kv_cache& kv = args.kv;
  if (args.how != compaction::pages) return {};
  if (kv.layout != kv_layout::paged) {
    return fault(status::unsupported, "kv.layout (compaction by pages)", to_string(kv.layout),
                 to_string(kv_layout::paged));
  }
  if (!args.share_heads) return fault(status::bad_value, "share_heads (compaction by pages)", 0, 1);
  if (keep.count % kv.page_size != 0) {
    return fault(status::bad_value, "keep.count", keep.count, kv.page_size, "a multiple of");
  }
  const std::int64_t sink_pages = (keep.sinks + kv.page_size - 1) / kv.page_size;
  const std::int64_t ends = sink_pages + (keep.recent + kv.page_size - 1) / kv.page_size + 1;  // one may be half full
  if (keep.count / kv.page_size < ends) {
    return fault(status::bad_value, "keep.count (sinks, recent and a page that is not full)", keep.count,
                 ends * kv.page_size, "at least");
  }
  if (given == pointers::ignored || kv.tokens == 0) return {};
  if (!args.block_table) return null_fault("block_table");
  if (args.block_table != kv.block_table) {
    return fault(status::bad_value, "block_table (to be rewritten)", "another", "that of kv");
  }
  return check_array("block_table", args.block_table);
}

}  // namespace detail

/// O(1), follows no pointer. `keep` and `needs` are the policy's.
SKIM_LOCAL constexpr report check(const eviction_args& args, const retention& keep, const policy_needs& needs,
                                  pointers given = pointers::required) {
  using namespace detail;
  const kv_cache& kv = args.kv;
  if (args.attended.sequences) return fault(status::unsupported, "attended.sequences", "set", "null");
  if (args.attended.batch.sequences != 0) {
    return fault(status::unsupported, "attended.batch.sequences", args.attended.batch.sequences, 0);
  }
  if (report r = check_range("new_tokens", args.new_tokens, 0, largest_index); !r) return r;
  if (report r = check_kv(kv, args.new_tokens, given); !r) return r;
  if (needs.lse) {
    if (report r = check_extent(args.attended.q, 0, args.new_tokens, "attended.q"); !r) return r;
    if (report r = check_chunk(attended_call(args), given); !r) return r;
    if (given == pointers::required && !args.attended.lse.data && args.new_tokens > 0) {
      return null_fault("attended.lse.data");
    }
  }
  if (report r = check_enumerator("how", args.how, compaction::pages); !r) return r;
  if (report r = skim::check(keep); !r) return r;
  if (keep.count == 0) {
    return fault(status::bad_value, "keep.fraction (an evictor keeps a count)", keep.fraction, 0);
  }
  if (given == pointers::required && !kv.positions && kv.capacity > 0) return null_fault("kv.positions");
  if (kv.positions && kv.positions_stride == 0 && kv.heads > 1 && !args.share_heads) {
    return fault(status::bad_stride, "kv.positions_stride", 0, kv.capacity, "at least");
  }
  if (args.share_heads && args.budgets) return fault(status::bad_value, "budgets (with share_heads)", "set", "null");
  if (given == pointers::required) {
    if (report r = check_array("budgets", args.budgets); !r) return r;
  }
  if (report r = check_pages(args, keep, given); !r) return r;
  return check_apart(kv);
}

/// Reads what `check` may not: lengths, block table, the lists that attention read, budgets. Host memory only.
SKIM_LOCAL report check_indices(const eviction_args& args, const retention& keep, const policy_needs& needs) {
  if (report r = check(args, keep, needs); !r) return r;
  const kv_cache& kv = args.kv;
  if (report r = detail::check_kv_indices(kv, args.new_tokens); !r) return r;
  if (needs.lse) {
    if (report r = detail::check_chunk_indices(attended_call(args), args.read); !r) return r;
  }
  for (std::int64_t head = 0; args.share_heads && head < kv.heads; ++head) {
    if (kv.length(head) != kv.tokens) {
      return fault(status::bad_index, "kv.lengths[h] (with share_heads)", kv.length(head), kv.tokens);
    }
  }
  const std::int64_t least = keep.sinks + keep.recent > 1 ? keep.sinks + keep.recent : 1;
  for (std::int64_t head = 0; args.budgets && head < kv.heads; ++head) {
    if (report r = detail::check_range("budgets[h]", args.budgets[head], least, keep.count, status::bad_index); !r)
      return r;
  }
  return {};
}

}}  // namespace skim::v0_2
