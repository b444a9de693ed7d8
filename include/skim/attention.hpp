// SPDX-License-Identifier: Apache-2.0
/// \file Attention of a chunk of queries over a KV cache: arguments, `check`, `check_indices`, `cost`.
///
/// Glossary, here and in every label of tests and benchmarks: `Tq` chunk tokens, `Tk` past tokens, `Hq` query heads,
/// `Hk` KV heads, `G = Hq / Hk`, `D` and `Dv` head dimensions of q.k and of v. Query head h reads KV head h / G.
#pragma once

#include <skim/check_kv.hpp>
#include <skim/math/mask.hpp>
#include <skim/retention.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 {

/// Arguments of one attention call: one layer, one chunk, one sequence or several. Plain values and views.
///
/// The cache holds `Tk + Tq` tokens, the last `Tq` being the chunk's own. Query t of a sequence stands at the position
/// of its own key. Logits are `scale * q.k`, then `soft_cap * tanh(logit / soft_cap)` if `soft_cap` > 0, then `bias` and the
/// slopes are added, then masked. A row that sees no key gives output 0 and log-sum-exp -inf (with a sink logit: the sink's).
///
/// Kernels compute in f32. Beyond 3.4e38, where numbers turn into infinities, must not lie: an element of `scale * q`, times
/// log2 e, with or without a sum of its products with k; logits, biases, slopes times distances and finite sinks times
/// log2 e; and for each element of an output the sum of |v| over the keys that its row sees.
struct attention_args {
  tensor_view<const void, 3> q;  ///< [Tq, Hq, D], any element type
  tensor_view<void, 3> out;      ///< [Tq, Hq, Dv], any element type; must not overlap any input
  kv_view kv;                    ///< one sequence, or the pool of `batch`; ignored where `sequences` is set

  /// Several sequences: q and out hold their chunks one after another, rows [offsets[s], offsets[s + 1]) belonging to
  /// `sequences[s]`. All views have the same heads, dimensions and element types.
  const kv_view* sequences = nullptr;     ///< [sequence_count]
  const std::int64_t* offsets = nullptr;  ///< [sequence_count + 1], from 0, ascending
  std::int64_t sequence_count = 1;

  kv_batch batch;  ///< or several sequences of one pool

  skim::mask mask = skim::mask::causal();
  float scale = 0;                      ///< 0 = 1 / sqrt(D)
  float soft_cap = 0;                   ///< 0 = none
  const float* sink_logits = nullptr;   ///< [Hq], optional: one more logit in each row's denominator, below +inf
  const float* alibi_slopes = nullptr;  ///< [Hq], optional: minus slope times the distance of positions is added
  tensor_view<const void, 3> bias;      ///< [1 or Hq, Tq, tokens], optional, any element type, by slot; -inf hides
  tensor_view<float, 2> lse;            ///< [Tq, Hq], optional: natural log of the row's denominator, sink included
};

/// Rows of q that belong together, and the cache that they see, their own keys last: one sequence of a call, or a block of
/// its rows.
struct attention_sequence {
  kv_view kv;
  std::int64_t first_row = 0;  ///< of q and out
  std::int64_t Tq = 0;

  /// Past tokens, the largest over the heads.
  SKIM_HD SKIM_INLINE std::int64_t Tk() const { return kv.tokens - Tq; }
  /// Past tokens of a head.
  SKIM_HD SKIM_INLINE std::int64_t past(std::int64_t head) const { return kv.length(head) - Tq; }
};

SKIM_HD SKIM_INLINE std::int64_t sequence_count(const attention_args& args) {
  return args.sequences ? args.sequence_count : args.batch.sequences > 0 ? args.batch.sequences : 1;
}

/// Reads `sequences` and `offsets`, or the arrays of the batch.
SKIM_HD SKIM_LOCAL attention_sequence sequence_at(const attention_args& args, std::int64_t s) {
  if (args.sequences) return {args.sequences[s], args.offsets[s], args.offsets[s + 1] - args.offsets[s]};
  if (args.batch.sequences == 0) return {args.kv, 0, args.q.extents[0]};
  attention_sequence sequence{args.kv, args.batch.offsets[s], args.batch.offsets[s + 1] - args.batch.offsets[s]};
  sequence.kv.block_table = args.batch.block_tables + s * args.batch.table_stride;
  sequence.kv.tokens = args.batch.tokens[s];
  return sequence;
}

/// A view that says what all sequences have in common: heads, dimensions, types.
SKIM_HD SKIM_INLINE constexpr const kv_view& first_view(const attention_args& args) {
  return args.sequences && args.sequence_count > 0 ? args.sequences[0] : args.kv;
}

/// Blocks of `block_rows` rows that a sequence of `Tq` falls into: at least one, and one where `block_rows` is 0.
SKIM_HD SKIM_INLINE constexpr std::int64_t block_count(std::int64_t Tq, std::int64_t block_rows) {
  return block_rows <= 0 || Tq <= block_rows ? 1 : (Tq + block_rows - 1) / block_rows;
}

/// Block `b` of a sequence; see `index_lists`. Without rows where there is no such block.
SKIM_HD SKIM_LOCAL attention_sequence block_of(const attention_sequence& sequence, std::int64_t b,
                                               std::int64_t block_rows) {
  attention_sequence block = sequence;
  if (b >= block_count(sequence.Tq, block_rows)) block.Tq = 0;
  if (block_rows <= 0 || block.Tq == 0) return block;
  const std::int64_t first = b * block_rows, left = sequence.Tq - first;
  block.first_row += first;
  block.Tq = left < block_rows ? left : block_rows;
  block.kv = prefix(block.kv, left - block.Tq);
  return block;
}

/// Blocks that are scored together: block `round` of each sequence of a call.
struct attention_blocks {
  const attention_args* args;
  std::int64_t block_rows;
  std::int64_t round;

  SKIM_HD SKIM_INLINE std::int64_t count() const { return sequence_count(*args); }
  SKIM_HD SKIM_INLINE attention_sequence at(std::int64_t i) const {
    return block_of(sequence_at(*args, i), round, block_rows);
  }
};

/// Calls `body(block, index)` for the blocks of all sequences, in the order of lists.
template <class Body>
SKIM_INLINE void for_each_block(const attention_args& args, std::int64_t block_rows, const Body& body) {
  std::int64_t index = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    const attention_sequence sequence = sequence_at(args, s);
    for (std::int64_t b = 0; b < block_count(sequence.Tq, block_rows); ++b) {
      body(block_of(sequence, b, block_rows), index++);
    }
  }
}

/// Blocks of the call: of sequences that the host describes exactly, of a batch as many as there may be.
SKIM_HD SKIM_LOCAL std::int64_t block_count(const attention_args& args, std::int64_t block_rows) {
  if (!args.sequences && args.batch.sequences > 0) {
    return args.batch.sequences + (block_rows > 0 ? args.q.extents[0] / block_rows : 0);
  }
  std::int64_t blocks = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) blocks += block_count(sequence_at(args, s).Tq, block_rows);
  return blocks;
}

/// Rows that index lists of this call have.
SKIM_HD SKIM_LOCAL std::int64_t list_rows(const attention_args& args, std::int64_t block_rows = 0) {
  return block_count(args, block_rows) * first_view(args).heads;
}

/// The most tokens that a sequence of the call has, the chunk's own included; the most rows of q.
SKIM_HD SKIM_LOCAL constexpr std::int64_t most_tokens(const attention_args& args) {
  if (!args.sequences) return args.kv.tokens;
  std::int64_t most = 0;
  for (std::int64_t s = 0; s < args.sequence_count; ++s) {
    if (args.sequences[s].tokens > most) most = args.sequences[s].tokens;
  }
  return most;
}
SKIM_HD SKIM_LOCAL std::int64_t most_rows(const attention_args& args) {
  if (!args.sequences) return args.batch.sequences > 0 ? args.batch.most_rows : args.q.extents[0];
  std::int64_t most = 0;
  for (std::int64_t s = 0; s < args.sequence_count; ++s) {
    const std::int64_t Tq = args.offsets[s + 1] - args.offsets[s];
    if (Tq > most) most = Tq;
  }
  return most;
}

/// The longest past of the call's blocks; of a batch at least that.
SKIM_HD SKIM_LOCAL std::int64_t longest_past(const attention_args& args, std::int64_t block_rows) {
  if (!args.sequences && args.batch.sequences > 0) return args.kv.tokens;
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < sequence_count(args); ++s) {
    const attention_sequence sequence = sequence_at(args, s);
    const std::int64_t before = block_rows > 0 ? (block_count(sequence.Tq, block_rows) - 1) * block_rows : 0;
    if (sequence.Tk() + before > longest) longest = sequence.Tk() + before;
  }
  return longest;
}

/// `Hq / Hk`; call it on checked arguments only.
SKIM_HD SKIM_INLINE std::int64_t group_size(const attention_args& args) {
  return args.q.extents[1] / first_view(args).heads;
}

SKIM_HD SKIM_INLINE float logit_scale(const attention_args& args) {
  return args.scale != 0 ? args.scale : 1.0f / std::sqrt(static_cast<float>(args.q.extents[2]));
}

SKIM_HD SKIM_INLINE constexpr bool has_bias(const attention_args& args) {
  return args.bias.data || args.bias.extents[0] != 0;
}

namespace detail {

SKIM_LOCAL constexpr report check_batch(const attention_args& args, pointers given) {
  const kv_batch& batch = args.batch;
  if (report r = check_range("batch.sequences", batch.sequences, 0, largest_index); !r) return r;
  if (args.kv.layout != kv_layout::paged) {
    return fault(status::unsupported, "kv.layout (with batch)", to_string(args.kv.layout), to_string(kv_layout::paged));
  }
  kv_view pool = args.kv;
  const std::int32_t any = 0;
  pool.block_table = &any;  // the batch's tables stand in its place
  if (report r = check_kv(pool, 0, given); !r) return r;
  if (pool.lengths) return fault(status::unsupported, "kv.lengths (with batch)", 1, 0);
  if (pool.positions) return fault(status::unsupported, "kv.positions (with batch)", 1, 0);
  if (pool.inverse_norms) return fault(status::unsupported, "kv.inverse_norms (with batch)", 1, 0);
  if (report r = check_range("batch.most_rows", batch.most_rows, 0, args.kv.tokens); !r) return r;
  if (report r = check_range("batch.table_stride", batch.table_stride, pool.capacity / pool.page_size, largest_index);
      !r) {
    return r;
  }
  if (given == pointers::ignored) return {};
  if (!batch.block_tables && pool.tokens > 0) return null_fault("batch.block_tables");
  if (!batch.tokens) return null_fault("batch.tokens");
  if (!batch.offsets) return null_fault("batch.offsets");
  if (report r = check_array("batch.block_tables", batch.block_tables); !r) return r;
  if (report r = check_array("batch.tokens", batch.tokens); !r) return r;
  return check_array("batch.offsets", batch.offsets);
}

SKIM_LOCAL constexpr report check_sequences(const attention_args& args, pointers given) {
  if (!args.sequences) {
    if (args.batch.sequences != 0) return check_batch(args, given);
    if (args.sequence_count < 0) return fault(status::bad_extent, "sequence_count", args.sequence_count, 0, "at least");
    if (args.sequence_count != 1) return null_fault("sequences");
    return check_kv(args.kv, args.q.extents[0], given);
  }
  if (args.batch.sequences != 0) {
    return fault(status::bad_value, "batch.sequences (with sequences)", args.batch.sequences, 0);
  }
  if (report r = check_range("sequence_count", args.sequence_count, 0, largest_index); !r) return r;
  if (!args.offsets) return null_fault("offsets");
  if (report r = check_array("sequences", args.sequences); !r) return r;
  if (report r = check_array("offsets", args.offsets); !r) return r;
  if (args.offsets[0] != 0) return fault(status::bad_value, "offsets[0]", args.offsets[0], 0);
  for (std::int64_t s = 0; s < args.sequence_count; ++s) {
    const std::int64_t begin = args.offsets[s], end = args.offsets[s + 1];
    if (report r = check_range("offsets[s + 1]", end, begin, args.q.extents[0], status::bad_value); !r) return r;
    const kv_view &view = args.sequences[s], &first = args.sequences[0];
    if (report r = check_kv(view, end - begin, given); !r) return r;
    if (view.heads != first.heads) return fault(status::bad_extent, "sequences[s].heads", view.heads, first.heads);
    if (view.k.dim != first.k.dim) return fault(status::bad_extent, "sequences[s].k.dim", view.k.dim, first.k.dim);
    if (view.v.dim != first.v.dim) return fault(status::bad_extent, "sequences[s].v.dim", view.v.dim, first.v.dim);
    if (report r = check_same_type(view.k.type, first.k.type, "sequences[s].k"); !r) return r;
    if (report r = check_same_type(view.v.type, first.v.type, "sequences[s].v"); !r) return r;
    if ((view.k.scales != nullptr) != (first.k.scales != nullptr) ||
        (view.v.scales != nullptr) != (first.v.scales != nullptr)) {
      return fault(status::bad_value, "sequences[s].k.scales and v.scales (where others have none)", 1, 0);
    }
  }
  if (args.offsets[args.sequence_count] != args.q.extents[0]) {
    return fault(status::bad_value, "offsets[sequence_count]", args.offsets[args.sequence_count], args.q.extents[0]);
  }
  return {};
}

SKIM_LOCAL constexpr report check_bias(const attention_args& args, pointers given) {
  if (!has_bias(args)) return {};
  if (report r = check_tensor(args.bias, "bias", given); !r) return r;
  if (report r = check_type(args.bias.type, "bias"); !r) return r;
  if (args.bias.extents[0] != 1) {
    if (report r = check_extent(args.bias, 0, args.q.extents[1], "bias"); !r) return r;
  }
  if (report r = check_extent(args.bias, 1, args.q.extents[0], "bias"); !r) return r;
  if (args.bias.extents[2] >= most_tokens(args)) return {};
  return part_fault(status::bad_extent, "bias", part::extents, 2, args.bias.extents[2], most_tokens(args), "at least");
}

/// What `check` says of everything but the output: all that recomputing the attention's weights needs.
SKIM_LOCAL constexpr report check_chunk(const attention_args& args, pointers given = pointers::required) {
  if (report r = check_tensor(args.q, "q", given); !r) return r;
  if (report r = check_type(args.q.type, "q"); !r) return r;
  if (report r = check_sequences(args, given); !r) return r;
  if (args.sequences && args.sequence_count == 0) return {};
  const kv_view& kv = first_view(args);
  const std::int64_t Tq = args.q.extents[0], Hq = args.q.extents[1];
  if (Hq < 1) return part_fault(status::bad_extent, "q", part::extents, 1, Hq, 1, "at least");
  if (Hq > largest_heads) return part_fault(status::bad_extent, "q", part::extents, 1, Hq, largest_heads, "at most");
  if (Hq % kv.heads != 0) {
    return part_fault(status::bad_group, "q", part::extents, 1, Hq, kv.heads, "a multiple of");
  }
  if (report r = check_extent(args.q, 2, kv.k.dim, "q"); !r) return r;
  if (Tq > largest_index / Hq) {
    return part_fault(status::bad_extent, "q", part::extents, 0, Tq, largest_index / Hq, "at most");
  }
  if (report r = check_real("scale", args.scale, -largest_factor, largest_factor); !r) return r;
  if (args.scale != 0 && args.scale < least_scale && args.scale > -least_scale) {
    return fault(status::bad_value, "scale", static_cast<double>(args.scale), static_cast<double>(least_scale),
                 "0 or in size at least");
  }
  if (report r = check_real("soft_cap", args.soft_cap, 0, largest_factor); !r) return r;
  if (args.soft_cap > 0 && args.soft_cap < least_soft_cap) {
    return fault(status::bad_value, "soft_cap", static_cast<double>(args.soft_cap), static_cast<double>(least_soft_cap),
                 "0 or at least");
  }
  if (report r = check_range("mask.left", args.mask.left, 0, mask::unbounded, status::bad_value); !r) return r;
  if (report r = check_range("mask.right", args.mask.right, 0, mask::unbounded, status::bad_value); !r) return r;
  if (report r = check_bias(args, given); !r) return r;
  if (given == pointers::required) {
    if (report r = check_array("sink_logits", args.sink_logits); !r) return r;
    if (report r = check_array("alibi_slopes", args.alibi_slopes); !r) return r;
  }
  // A view without memory is not written; with extents it is checked all the same, as before there is memory.
  if (!args.lse.data && args.lse.extents[0] == 0) return {};
  if (report r = check_tensor(args.lse, "lse", args.lse.data ? given : pointers::ignored); !r) return r;
  if (report r = check_extent(args.lse, 0, Tq, "lse"); !r) return r;
  if (report r = check_extent(args.lse, 1, Hq, "lse"); !r) return r;
  return check_apart(args.lse, "lse");
}

}  // namespace detail

/// Shapes, strides, types and numbers; O(1) for one sequence and for a batch (O(sequences) for several), reads the arguments
/// and view descriptors but nothing they point to. An empty chunk is valid.
SKIM_LOCAL constexpr report check(const attention_args& args, pointers given = pointers::required) {
  using namespace detail;
  if (report r = check_chunk(args, given); !r) return r;
  if (report r = check_tensor(args.out, "out", given); !r) return r;
  if (report r = check_number_type(args.out.type, "out"); !r) return r;
  if (args.sequences && args.sequence_count == 0) return {};
  for (int axis = 0; axis < 2; ++axis) {
    if (report r = check_extent(args.out, axis, args.q.extents[axis], "out"); !r) return r;
  }
  if (report r = check_extent(args.out, 2, first_view(args).v.dim, "out"); !r) return r;
  return check_apart(args.out, "out");
}

namespace detail {

/// A batch's numbers, which the host can read.
SKIM_LOCAL report check_batch_indices(const attention_args& args) {
  const kv_batch& batch = args.batch;
  if (args.sequences || batch.sequences == 0) return {};
  if (batch.offsets[0] != 0) return fault(status::bad_index, "batch.offsets[0]", batch.offsets[0], 0);
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    const std::int64_t begin = batch.offsets[s], rows = batch.offsets[s + 1] - begin;
    if (report r = check_range("batch.offsets[s + 1]", begin + rows, begin, begin + batch.most_rows, status::bad_index);
        !r) {
      return r;
    }
    if (report r = check_range("batch.tokens[s]", batch.tokens[s], rows, args.kv.tokens, status::bad_index); !r)
      return r;
  }
  if (batch.offsets[batch.sequences] == args.q.extents[0]) return {};
  return fault(status::bad_index, "batch.offsets[sequences]", batch.offsets[batch.sequences], args.q.extents[0]);
}

/// Whether the lists that a call read have the rows that it needs.
SKIM_LOCAL report check_read(const attention_args& call, const index_lists* read) {
  if (!read) return {};
  if (report r = check_range("read.block_rows", read->block_rows, 0, largest_index); !r) return r;
  return check_room(*read, list_rows(call, read->block_rows), 0);
}

/// What `check_indices` says of arguments that passed `check`.
SKIM_LOCAL report check_chunk_indices(const attention_args& args, const index_lists* lists) {
  if (report r = check_batch_indices(args); !r) return r;
  const std::int64_t count = sequence_count(args);
  for (std::int64_t s = 0; s < count; ++s) {
    const attention_sequence sequence = sequence_at(args, s);
    if (report r = check_kv_indices(sequence.kv, sequence.Tq); !r) return r;
  }
  if (!lists || count == 0) return {};
  if (report r = check_range("lists.block_rows", lists->block_rows, 0, largest_index); !r) return r;
  if (report r = check_room(*lists, list_rows(args, lists->block_rows), 0); !r) return r;
  const std::int64_t heads = first_view(args).heads;
  report answer;
  for_each_block(args, lists->block_rows, [&](const attention_sequence& block, std::int64_t index) {
    for (std::int64_t head = 0; answer.ok() && head < heads; ++head) {
      const std::int64_t r = index * heads + head, past = block.past(head);
      answer = check_range("lists.counts[r]", lists->counts[r], 0, lists->capacity, status::bad_index);
      std::int64_t previous = -1;
      for (std::int32_t i = 0; answer.ok() && i < lists->counts[r]; ++i) {
        const std::int32_t slot = lists->row(r)[i];
        answer = check_range("lists.indices[r][i]", slot, previous + 1, past - 1, status::bad_index);
        previous = slot;
      }
    }
  });
  return answer;
}

}  // namespace detail

/// Reads what `check` may not: block tables, lengths, a batch's arrays and, if `lists` is given, its rows. Host memory only.
SKIM_LOCAL report check_indices(const attention_args& args, const index_lists* lists = nullptr) {
  if (report r = check(args); !r) return r;
  return detail::check_chunk_indices(args, lists);
}

/// Flops and bytes of attending to `keys` past keys per KV head and the chunk's own, of which a window hides some. Every K
/// and V row that is seen is read once per KV head, q once, out written once.
SKIM_LOCAL cost_estimate attend_cost(const attention_args& args, const attention_sequence& sequence,
                                     std::int64_t keys) {
  const kv_view& kv = sequence.kv;
  const double Tq = static_cast<double>(sequence.Tq), Hq = static_cast<double>(args.q.extents[1]);
  const double past = static_cast<double>(keys), window = static_cast<double>(args.mask.left) + 1;
  double pairs = Tq * (past + Tq), read = past + Tq;
  if (args.mask.right == 0) {  // row t sees the past and t + 1 keys of its own, at most a window of them
    const double whole = window - past < 0 ? 0 : window - past < Tq ? window - past : Tq;  // rows that see all of these
    pairs = whole * past + whole * (whole + 1) / 2 + (Tq - whole) * window;
    if (window + Tq - 1 < read) read = window + Tq - 1;
  }
  const double row = static_cast<double>(bytes_of(kv.k.type, kv.k.dim)) +
                     (kv.values_in_keys ? 0.0 : static_cast<double>(bytes_of(kv.v.type, kv.v.dim)));
  return {2 * Hq * static_cast<double>(kv.k.dim + kv.v.dim) * pairs,
          static_cast<double>(kv.heads) * read * row + Tq * Hq *
                                                           (static_cast<double>(bytes_of(args.q.type, kv.k.dim)) +
                                                            static_cast<double>(bytes_of(args.out.type, kv.v.dim)))};
}

}}  // namespace skim::v0_2
