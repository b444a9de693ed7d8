// SPDX-License-Identifier: Apache-2.0
/// \file Attention of a chunk of queries over a KV cache: arguments, `check`, `check_indices`, `cost`.
///
/// Glossary, here and in every label of tests and benchmarks: `Tq` chunk tokens, `Tk` past tokens, `Hq` query heads,
/// `Hk` KV heads, `G = Hq / Hk`, `D` and `Dv` head dimensions of q.k and of v. Query head h reads KV head h / G.
#pragma once

#include <skim/index_lists.hpp>
#include <skim/math/mask.hpp>
#include <skim/status.hpp>
#include <skim/view.hpp>

#include <cmath>
#include <limits>

namespace skim {
inline namespace v0 {

/// Arguments of one attention call: one layer, one chunk, one sequence or several. Plain values and views.
///
/// The cache holds `Tk + Tq` tokens, the last `Tq` being the chunk's own. Query t of a sequence stands at the position
/// of its own key. Logits are `scale * q.k`, then `soft_cap * tanh(logit / soft_cap)` if `soft_cap` > 0, then masked.
/// A row that sees no key gives output 0 and log-sum-exp -inf (with a sink logit: the sink's).
struct attention_args {
  tensor_view<const void, 3> q;  ///< [Tq, Hq, D], any element type
  tensor_view<void, 3> out;      ///< [Tq, Hq, Dv], any element type; must not overlap any input
  kv_view kv;                    ///< one sequence; ignored where `sequences` is set

  /// Several sequences: q and out hold their chunks one after another, rows [offsets[s], offsets[s + 1]) belonging to
  /// `sequences[s]`. All views have the same heads, dimensions and element type.
  const kv_view* sequences = nullptr;     ///< [sequence_count]
  const std::int64_t* offsets = nullptr;  ///< [sequence_count + 1], from 0, ascending
  std::int64_t sequence_count = 1;

  skim::mask mask = skim::mask::causal();
  float scale = 0;                     ///< 0 = 1 / sqrt(D)
  float soft_cap = 0;                  ///< 0 = none
  const float* sink_logits = nullptr;  ///< [Hq], optional: one more logit in each row's denominator, without a value
  tensor_view<float, 2> lse;           ///< [Tq, Hq], optional: natural log of the row's denominator, sink included

  /// Sparse policies run dense where `Tk` is below this; -1 = twice the policy's budget, the length from which reading
  /// all keys to score them and then the budget moves fewer bytes than dense attention. 0 in tests of accuracy.
  std::int64_t dense_below = -1;
};

/// One sequence of a call.
struct attention_sequence {
  const kv_view* kv;
  std::int64_t first_row;  ///< of q and out
  std::int64_t Tq;

  SKIM_HD SKIM_INLINE std::int64_t Tk() const { return kv->tokens - Tq; }
};

SKIM_HD SKIM_INLINE std::int64_t sequence_count(const attention_args& args) {
  return args.sequences ? args.sequence_count : 1;
}

SKIM_HD SKIM_INLINE attention_sequence sequence_at(const attention_args& args, std::int64_t s) {
  if (!args.sequences) return {&args.kv, 0, args.q.extents[0]};
  return {&args.sequences[s], args.offsets[s], args.offsets[s + 1] - args.offsets[s]};
}

SKIM_HD SKIM_INLINE const kv_view& first_view(const attention_args& args) {
  return args.sequences && args.sequence_count > 0 ? args.sequences[0] : args.kv;
}

/// `Hq / Hk`; call it on checked arguments only.
SKIM_HD SKIM_INLINE std::int64_t group_size(const attention_args& args) {
  return args.q.extents[1] / first_view(args).heads;
}

SKIM_HD inline float logit_scale(const attention_args& args) {
  return args.scale != 0 ? args.scale : 1.0f / std::sqrt(static_cast<float>(args.q.extents[2]));
}

namespace detail {

inline constexpr std::int64_t largest_index = std::numeric_limits<std::int32_t>::max();
inline constexpr std::int64_t largest_head_dim = 4096;  // bounds a kernel's scratch; the largest in use is 576
inline constexpr std::int64_t largest_reach = std::int64_t{1} << 60;

/// Adds |stride| * (extent - 1) to `reach`; false if the sum passes 2^60, so that byte offsets stay below 2^63.
SKIM_INLINE constexpr bool extend_reach(std::uint64_t& reach, std::int64_t extent, std::int64_t stride) {
  if (extent <= 1) return true;
  const std::uint64_t step = stride < 0 ? 0 - static_cast<std::uint64_t>(stride) : static_cast<std::uint64_t>(stride);
  const std::uint64_t steps = static_cast<std::uint64_t>(extent - 1);
  if (step > (largest_reach - reach) / steps) return false;
  reach += step * steps;
  return true;
}

/// Extents that are not negative, a last stride of 1, a reach that fits 64 bits, and a pointer where there are elements.
template <class T, int Rank>
SKIM_INLINE constexpr report check_tensor(const tensor_view<T, Rank>& view, const char* const (&names)[Rank + 2]) {
  std::uint64_t reach = 0;
  bool empty = false;
  for (int axis = 0; axis < Rank; ++axis) {
    if (view.extents[axis] < 0) return fault(status::bad_extent, names[axis], view.extents[axis], 0, "at least");
    if (view.extents[axis] == 0) empty = true;
    if (!extend_reach(reach, view.extents[axis], view.strides[axis])) {
      return fault(status::bad_stride, names[axis], view.strides[axis], largest_reach, "a total reach of at most");
    }
  }
  if (empty) return {};
  if (view.strides[Rank - 1] != 1) return fault(status::bad_stride, names[Rank], view.strides[Rank - 1], 1);
  if (!view.data) return null_fault(names[Rank + 1]);
  return {};
}

SKIM_INLINE constexpr report check_kv_tensor(const kv_view& view, const kv_tensor& tensor,
                                             const char* const (&names)[4]) {
  if (tensor.dim < 1) return fault(status::bad_extent, names[0], tensor.dim, 1, "at least");
  if (tensor.dim > largest_head_dim)
    return fault(status::unsupported, names[0], tensor.dim, largest_head_dim, "at most");
  if (tensor.type == element::none)
    return fault(status::bad_type, names[1], 0, static_cast<int>(element::f32), "at least");
  if (tensor.dim_stride != 1) return fault(status::bad_stride, names[2], tensor.dim_stride, 1);
  const bool paged = view.layout == kv_layout::paged;
  std::uint64_t reach = 0;
  if (!extend_reach(reach, view.heads, tensor.head_stride) ||
      !extend_reach(reach, paged ? view.page_size : view.capacity, tensor.row_stride) ||
      (paged && !extend_reach(reach, view.pages, tensor.page_stride))) {
    return fault(status::bad_stride, names[0], tensor.row_stride, largest_reach,
                 "strides with a total reach of at most");
  }
  if (view.tokens > 0 && !tensor.data) return null_fault(names[3]);
  return {};
}

/// The part of `check` that concerns one cache of which the chunk owns the last `Tq` tokens.
SKIM_INLINE constexpr report check_kv(const kv_view& view, std::int64_t Tq) {
  if (view.heads < 1) return fault(status::bad_extent, "kv.heads", view.heads, 1, "at least");
  if (view.tokens < Tq) return fault(status::bad_extent, "kv.tokens", view.tokens, Tq, "at least");
  if (view.tokens > largest_index) return fault(status::bad_extent, "kv.tokens", view.tokens, largest_index, "at most");
  if (view.capacity < view.tokens) {
    return fault(status::bad_extent, "kv.capacity", view.capacity, view.tokens, "at least");
  }
  if (report r = check_kv_tensor(view, view.k, {"kv.k.dim", "kv.k.type", "kv.k.dim_stride", "kv.k.data"}); !r) return r;
  if (report r = check_kv_tensor(view, view.v, {"kv.v.dim", "kv.v.type", "kv.v.dim_stride", "kv.v.data"}); !r) return r;
  if (view.k.type != view.v.type) {
    return fault(status::bad_type, "kv.v.type", static_cast<int>(view.v.type), static_cast<int>(view.k.type));
  }
  if (view.layout == kv_layout::paged) {
    if (view.page_size < 1) return fault(status::bad_extent, "kv.page_size", view.page_size, 1, "at least");
    if (view.pages < 0) return fault(status::bad_extent, "kv.pages", view.pages, 0, "at least");
    if (view.tokens > 0 && !view.block_table) return null_fault("kv.block_table");
  }
  if (view.layout == kv_layout::ring && view.capacity > 0 &&
      (view.ring_start < 0 || view.ring_start >= view.capacity)) {
    return fault(status::bad_value, "kv.ring_start", view.ring_start, view.capacity - 1, "0 to");
  }
  if (!view.positions && (view.first_position < 0 || view.first_position > largest_index - view.tokens)) {
    return fault(status::bad_value, "kv.first_position", view.first_position, largest_index - view.tokens, "0 to");
  }
  return {};
}

SKIM_INLINE constexpr report check_sequences(const attention_args& args) {
  if (!args.sequences) return check_kv(args.kv, args.q.extents[0]);
  if (args.sequence_count < 0) return fault(status::bad_extent, "sequence_count", args.sequence_count, 0, "at least");
  if (!args.offsets) return null_fault("offsets");
  if (args.offsets[0] != 0) return fault(status::bad_value, "offsets[0]", args.offsets[0], 0);
  for (std::int64_t s = 0; s < args.sequence_count; ++s) {
    const std::int64_t Tq = args.offsets[s + 1] - args.offsets[s];
    if (Tq < 0) return fault(status::bad_value, "offsets[s + 1]", args.offsets[s + 1], args.offsets[s], "at least");
    const kv_view &view = args.sequences[s], &first = args.sequences[0];
    if (report r = check_kv(view, Tq); !r) return r;
    if (view.heads != first.heads) return fault(status::bad_extent, "sequences[s].heads", view.heads, first.heads);
    if (view.k.dim != first.k.dim) return fault(status::bad_extent, "sequences[s].k.dim", view.k.dim, first.k.dim);
    if (view.v.dim != first.v.dim) return fault(status::bad_extent, "sequences[s].v.dim", view.v.dim, first.v.dim);
    if (view.k.type != first.k.type) {
      return fault(status::bad_type, "sequences[s].k.type", static_cast<int>(view.k.type),
                   static_cast<int>(first.k.type));
    }
  }
  if (args.offsets[args.sequence_count] != args.q.extents[0]) {
    return fault(status::bad_value, "offsets[sequence_count]", args.offsets[args.sequence_count], args.q.extents[0]);
  }
  return {};
}

/// True for finite values in [low, high].
constexpr bool within(float value, float low, float high) {
  return value >= low && value <= high;
}

}  // namespace detail

namespace detail {

/// What `check` says of everything but the output: all that recomputing the attention's weights needs.
SKIM_INLINE report check_chunk(const attention_args& args) {
  if (report r = check_tensor(args.q, {"q.extents[0]", "q.extents[1]", "q.extents[2]", "q.strides[2]", "q.data"}); !r) {
    return r;
  }
  if (args.q.type == element::none)
    return fault(status::bad_type, "q.type", 0, static_cast<int>(element::f32), "at least");
  if (report r = check_sequences(args); !r) return r;
  if (args.sequences && args.sequence_count == 0) return {};
  const kv_view& kv = first_view(args);
  const std::int64_t Tq = args.q.extents[0], Hq = args.q.extents[1];
  if (Hq < 1) return fault(status::bad_extent, "q.extents[1]", Hq, 1, "at least");
  if (Hq % kv.heads != 0) return fault(status::bad_group, "q.extents[1]", Hq, kv.heads, "a multiple of");
  if (args.q.extents[2] != kv.k.dim) return fault(status::bad_extent, "q.extents[2]", args.q.extents[2], kv.k.dim);
  if (Tq > largest_index / Hq) return fault(status::bad_extent, "q.extents[0]", Tq, largest_index / Hq, "at most");
  if (!within(args.scale, -1e30f, 1e30f)) return fault(status::bad_value, "scale", 0, 0, "a finite number, not");
  if (!within(args.soft_cap, 0, 1e30f)) return fault(status::bad_value, "soft_cap", 0, 0, "finite and at least");
  if (args.mask.left < 0 || args.mask.left > mask::unbounded) {
    return fault(status::bad_value, "mask.left", args.mask.left, mask::unbounded, "0 to");
  }
  if (args.mask.right < 0 || args.mask.right > mask::unbounded) {
    return fault(status::bad_value, "mask.right", args.mask.right, mask::unbounded, "0 to");
  }
  if (args.lse.data) {
    if (report r = check_tensor(args.lse, {"lse.extents[0]", "lse.extents[1]", "lse.strides[1]", "lse.data"}); !r)
      return r;
    if (args.lse.extents[0] != Tq) return fault(status::bad_extent, "lse.extents[0]", args.lse.extents[0], Tq);
    if (args.lse.extents[1] != Hq) return fault(status::bad_extent, "lse.extents[1]", args.lse.extents[1], Hq);
  }
  return {};
}

}  // namespace detail

/// Shapes, strides, types and numbers; O(1) for one sequence (O(sequences) for several), reads the arguments and view
/// descriptors but nothing they point to. An empty chunk is valid.
SKIM_INLINE report check(const attention_args& args) {
  using namespace detail;
  if (report r = check_chunk(args); !r) return r;
  if (report r =
          check_tensor(args.out, {"out.extents[0]", "out.extents[1]", "out.extents[2]", "out.strides[2]", "out.data"});
      !r) {
    return r;
  }
  if (args.out.type == element::none) {
    return fault(status::bad_type, "out.type", 0, static_cast<int>(element::f32), "at least");
  }
  if (args.sequences && args.sequence_count == 0) return {};
  const std::int64_t Dv = first_view(args).v.dim;
  for (int axis = 0; axis < 2; ++axis) {
    if (args.out.extents[axis] == args.q.extents[axis]) continue;
    return fault(status::bad_extent, axis == 0 ? "out.extents[0]" : "out.extents[1]", args.out.extents[axis],
                 args.q.extents[axis]);
  }
  if (args.out.extents[2] != Dv) return fault(status::bad_extent, "out.extents[2]", args.out.extents[2], Dv);
  if (args.dense_below < -1) return fault(status::bad_value, "dense_below", args.dense_below, -1, "at least");
  return {};
}

namespace detail {

/// What `check_indices` says of arguments that passed `check`.
inline report check_chunk_indices(const attention_args& args, const index_lists* lists) {
  const std::int64_t count = sequence_count(args);
  for (std::int64_t s = 0; s < count; ++s) {
    const attention_sequence sequence = sequence_at(args, s);
    const kv_view& kv = *sequence.kv;
    const std::int64_t used_pages = kv.layout == kv_layout::paged ? (kv.tokens + kv.page_size - 1) / kv.page_size : 0;
    for (std::int64_t page = 0; page < used_pages; ++page) {
      if (kv.block_table[page] < 0 || kv.block_table[page] >= kv.pages) {
        return fault(status::bad_index, "kv.block_table[i]", kv.block_table[page], kv.pages - 1, "0 to");
      }
    }
    for (std::int64_t head = 0; kv.lengths && head < kv.heads; ++head) {
      if (kv.lengths[head] < sequence.Tq)
        return fault(status::bad_index, "kv.lengths[h]", kv.lengths[head], sequence.Tq, "at least");
      if (kv.lengths[head] > kv.tokens)
        return fault(status::bad_index, "kv.lengths[h]", kv.lengths[head], kv.tokens, "at most");
    }
  }
  if (!lists || count == 0) return {};
  const std::int64_t heads = first_view(args).heads;
  if (report r = check_room(*lists, count * heads, 0); !r) return r;
  for (std::int64_t r = 0; r < lists->rows; ++r) {
    const attention_sequence sequence = sequence_at(args, r / heads);
    const std::int64_t past = sequence.kv->length(r % heads) - sequence.Tq;
    if (lists->counts[r] < 0) return fault(status::bad_index, "lists.counts[r]", lists->counts[r], 0, "at least");
    if (lists->counts[r] > lists->capacity) {
      return fault(status::bad_index, "lists.counts[r]", lists->counts[r], lists->capacity, "at most");
    }
    std::int64_t previous = -1;
    for (std::int32_t i = 0; i < lists->counts[r]; ++i) {
      const std::int32_t slot = lists->row(r)[i];
      if (slot <= previous) return fault(status::bad_index, "lists.indices[r][i]", slot, previous + 1, "at least");
      if (slot >= past) return fault(status::bad_index, "lists.indices[r][i]", slot, past - 1, "at most");
      previous = slot;
    }
  }
  return {};
}

}  // namespace detail

/// Reads what `check` may not: block tables, lengths and, if `lists` is given, its rows. Host memory only.
inline report check_indices(const attention_args& args, const index_lists* lists = nullptr) {
  if (report r = check(args); !r) return r;
  return detail::check_chunk_indices(args, lists);
}

/// Flops and bytes of attending to `keys` past keys per KV head and the chunk's own, causally. Every K and V row is
/// read once per KV head, q once, out written once.
inline cost_estimate attend_cost(const attention_args& args, std::int64_t s, std::int64_t keys) {
  const attention_sequence sequence = sequence_at(args, s);
  const kv_view& kv = *sequence.kv;
  const double Tq = static_cast<double>(sequence.Tq), Hq = static_cast<double>(args.q.extents[1]);
  const double dims = static_cast<double>(kv.k.dim + kv.v.dim);
  const double own = args.mask.right == 0 ? Tq * (Tq + 1) / 2 : Tq * Tq;
  const double read = static_cast<double>(keys) + Tq;
  return {2 * Hq * dims * (Tq * static_cast<double>(keys) + own),
          static_cast<double>(kv.heads) * read * dims * static_cast<double>(element_bytes(kv.k.type)) +
              Tq * Hq *
                  (static_cast<double>(kv.k.dim * element_bytes(args.q.type)) +
                   static_cast<double>(kv.v.dim * element_bytes(args.out.type)))};
}

}  // namespace v0
}  // namespace skim
