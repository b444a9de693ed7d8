// SPDX-License-Identifier: Apache-2.0
/// \file Bounding the cache: which tokens stay once a chunk has been appended and attended. Arguments, `check`, moves.
///
/// Glossary as in attention.hpp; `n` is the number of tokens that a KV head holds, the chunk's own included.
#pragma once

#include <skim/selector/retention.hpp>

namespace skim {
inline namespace v0 {

/// What becomes of the places of evicted tokens. In every way the survivors keep their positions (no re-rotation) and
/// afterwards fill the slots from 0 on without holes.
enum class compaction : std::uint8_t {
  refill,  ///< the last survivors move into the evicted slots: only as many rows move as were evicted
  stable,  ///< survivors close up; the order of slots, and with it of time, stays
  pages,   ///< whole pages leave: survivors stay where they are, their pages' numbers close up in the block table
};

/// Arguments of one eviction: one layer, one sequence, after its chunk was appended and attended.
///
/// The cache stores positions (`kv.positions`): slots no longer say them once a token is gone. Its `capacity` stays the
/// same from one call to the next, since state has a place for each row of metadata.
struct eviction_args {
  /// The attention call that the chunk has just run, with the cache as it is now: `q.extents[0]` tokens are new. Policies
  /// that look at attention (H2O, TOVA, SnapKV) read q, `lse`, and mask, scale, soft cap and sink logits as that call
  /// did; the others read `kv` only, and of q only its first extent. One sequence; `out` is never touched.
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
  return args.share_heads ? 1 : args.attended.kv.heads;
}

/// New tokens: the chunk's.
SKIM_HD SKIM_INLINE std::int64_t new_tokens(const eviction_args& args) {
  return args.attended.q.extents[0];
}

/// What head `head` keeps: `keep` with its own budget, within which sinks and recent tokens are.
SKIM_HD SKIM_INLINE retention kept_by(retention keep, const eviction_args& args, std::int64_t head) {
  if (!args.budgets) return keep;
  keep.count = args.budgets[head];
  if (keep.sinks > keep.count) keep.sinks = keep.count;
  if (keep.recent > keep.count - keep.sinks) keep.recent = keep.count - keep.sinks;
  return keep;
}

/// The row length that an eviction's lists need.
SKIM_HD SKIM_INLINE std::int64_t list_capacity(const retention& keep, const eviction_args& args) {
  return keep.count < args.attended.kv.tokens ? keep.count : args.attended.kv.tokens;
}

namespace detail {

/// Rows of per-token metadata must not overlap, or moving one head's would overwrite another's.
SKIM_INLINE constexpr report check_metadata_stride(const char* name, std::int64_t stride, const kv_view& kv) {
  if (kv.heads == 1 || stride >= kv.capacity) return {};
  return fault(status::bad_stride, name, stride, kv.capacity, "at least");
}

}  // namespace detail

/// O(1), follows no pointer. `keep` is the policy's; `reads_attention`: it needs q and the log-sum-exp.
SKIM_INLINE report check(const eviction_args& args, const retention& keep, bool reads_attention) {
  using namespace detail;
  const kv_view& kv = args.attended.kv;
  if (args.attended.sequences) return fault(status::unsupported, "attended.sequence_count", 2, 1);
  if (new_tokens(args) < 0) return fault(status::bad_extent, "attended.q.extents[0]", new_tokens(args), 0, "at least");
  if (report r = check_kv(kv, new_tokens(args)); !r) return r;
  if (reads_attention) {
    if (report r = check_chunk(args.attended); !r) return r;
    if (!args.attended.lse.data && new_tokens(args) > 0) return null_fault("attended.lse.data");
  }
  if (report r = check(keep); !r) return r;
  if (keep.count == 0) return fault(status::bad_value, "keep.count", 0, 1, "at least");
  if (!kv.positions && kv.capacity > 0) return null_fault("kv.positions");
  const bool shared_positions = args.share_heads && kv.positions_stride == 0;
  if (report r = check_metadata_stride("kv.positions_stride", kv.positions_stride, kv); !r && !shared_positions) {
    return r;
  }
  if (kv.inverse_norms) {
    if (report r = check_metadata_stride("kv.inverse_norms_stride", kv.inverse_norms_stride, kv); !r) return r;
  }
  if (args.share_heads && args.budgets) return fault(status::bad_value, "budgets (with share_heads, number of)", 1, 0);
  if (args.how != compaction::pages) return {};
  if (kv.layout != kv_layout::paged) {
    return fault(status::unsupported, "kv.layout (compaction by pages)", static_cast<int>(kv.layout),
                 static_cast<int>(kv_layout::paged));
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
  if (!args.block_table && kv.tokens > 0) return null_fault("block_table");
  return {};
}

/// Reads what `check` may not: lengths, block table, the lists that attention read, budgets. Host memory only.
inline report check_indices(const eviction_args& args, const retention& keep, bool reads_attention) {
  using detail::fault;
  if (report r = check(args, keep, reads_attention); !r) return r;
  const kv_view& kv = args.attended.kv;
  if (report r = detail::check_chunk_indices(args.attended, reads_attention ? args.read : nullptr); !r) return r;
  for (std::int64_t head = 0; args.share_heads && head < kv.heads; ++head) {
    if (kv.length(head) != kv.tokens) {
      return fault(status::bad_index, "kv.lengths[h] (with share_heads)", kv.length(head), kv.tokens);
    }
  }
  const std::int64_t least = keep.sinks + keep.recent > 1 ? keep.sinks + keep.recent : 1;
  for (std::int64_t head = 0; args.budgets && head < kv.heads; ++head) {
    const std::int64_t budget = args.budgets[head];
    if (budget < least) return fault(status::bad_index, "budgets[h]", budget, least, "at least");
    if (budget > keep.count) return fault(status::bad_index, "budgets[h]", budget, keep.count, "at most");
  }
  return {};
}

/// Calls `move(from, to)`, in an order that is safe in place, for every token that compaction brings to another slot.
/// `list` holds the `count` slots that stay, ascending.
template <class Move>
SKIM_HD SKIM_INLINE void for_each_move(compaction how, const std::int32_t* list, std::int64_t count, const Move& move) {
  if (how != compaction::refill) {
    for (std::int64_t to = 0; to < count; ++to) {
      if (list[to] != to) move(std::int64_t{list[to]}, to);
    }
    return;
  }
  std::int64_t mover = count;  // the survivors behind slot `count` are as many as the holes before it
  while (mover > 0 && list[mover - 1] >= count) --mover;
  for (std::int64_t to = 0, next = 0, staying = mover; mover < count; ++to) {
    if (next < staying && list[next] == to) {
      ++next;
    } else {
      move(std::int64_t{list[mover++]}, to);
    }
  }
}

/// Calls `visit(slot)` for the slots of [0, n) that are not listed, ascending.
template <class Visit>
SKIM_HD SKIM_INLINE void for_each_evicted(const std::int32_t* list, std::int64_t count, std::int64_t n,
                                          const Visit& visit) {
  std::int64_t next = 0;
  for (std::int64_t slot = 0; slot < n; ++slot) {
    if (next < count && list[next] == slot) {
      ++next;
    } else {
      visit(slot);
    }
  }
}

}  // namespace v0
}  // namespace skim
