// SPDX-License-Identifier: Apache-2.0
/// \file The KV cache of one sequence and layer, as attention reads it and as append and eviction write it.
#pragma once

#include <skim/view.hpp>

namespace skim { inline namespace v0_2 {

/// How slots map to rows of storage.
enum class kv_layout : std::uint8_t {
  contiguous,  ///< slot i is row i
  paged,       ///< slot i is row `i % page_size` of page `block_table[i / page_size]`; a token table has pages of 1
  ring,        ///< slot i is row `(ring_start + i) % capacity`
};

SKIM_LOCAL constexpr const char* to_string(kv_layout layout) {
  switch (layout) {
    case kv_layout::contiguous:
      return "contiguous";
    case kv_layout::paged:
      return "paged";
    case kv_layout::ring:
      return "ring";
  }
  return "an unknown layout";
}

/// Keys or values of one cache: `[rows, heads, dim]`, or `[pages, rows of a page, heads, dim]` if paged; any strides.
/// `Void` is `const void` where they are only read.
template <class Void>
struct basic_kv_tensor {
  using number = std::conditional_t<std::is_const_v<Void>, const float, float>;

  Void* data = nullptr;
  element type = element::none;
  std::int64_t dim = 0;          ///< D or Dv
  std::int64_t rows = 0;         ///< tokens that the storage has room for, or if paged a page of it
  std::int64_t heads = 0;        ///< at least the view's
  std::int64_t pages = 1;        ///< paged only: pages in the pool
  std::int64_t row_stride = 0;   ///< elements from one token to the next, inside a page if paged
  std::int64_t head_stride = 0;  ///< elements from one KV head to the next
  std::int64_t page_stride = 0;  ///< paged only: elements from one page to the next
  std::int64_t dim_stride = 1;   ///< must be 1

  /// Optional: a factor for each row and head, of the same extents; what is stored times it is the key or value.
  number* scales = nullptr;
  std::int64_t scale_row_stride = 0, scale_head_stride = 0, scale_page_stride = 0;

  constexpr basic_kv_tensor() = default;

  /// Reading what may be written.
  template <class Other, class = std::enable_if_t<std::is_const_v<Void> && !std::is_const_v<Other>>>
  SKIM_HD SKIM_INLINE constexpr basic_kv_tensor(const basic_kv_tensor<Other>& other)  // NOLINT: implicit, as for views
      : data(other.data),
        type(other.type),
        dim(other.dim),
        rows(other.rows),
        heads(other.heads),
        pages(other.pages),
        row_stride(other.row_stride),
        head_stride(other.head_stride),
        page_stride(other.page_stride),
        dim_stride(other.dim_stride),
        scales(other.scales),
        scale_row_stride(other.scale_row_stride),
        scale_head_stride(other.scale_head_stride),
        scale_page_stride(other.scale_page_stride) {}
};

/// A page of the pool, 0 where there are none, and a row of it.
struct kv_place {
  std::int64_t page, row;
};

/// `Tk` past tokens and, last, the chunk's own `Tq`, already appended.
///
/// A *slot* is a token's place in logical order: 0 is the oldest that survives, `tokens - 1` the newest. Index lists
/// hold slots, so they mean the same in every layout. Per-token metadata (`positions`, `inverse_norms`) is `[Hk,
/// capacity]`, at `metadata_row(slot)`: the slot itself, in a ring the row of storage.
///
/// Attention and selection take a `kv_view`, which only reads; `append` and eviction take a `kv_cache`, which converts to it.
template <class Void>
struct basic_kv_view {
  static constexpr bool is_const = std::is_const_v<Void>;
  using tensor = basic_kv_tensor<Void>;
  using index = std::conditional_t<is_const, const std::int32_t, std::int32_t>;
  using number = std::conditional_t<is_const, const float, float>;
  using byte = std::conditional_t<is_const, const char, char>;

  tensor k, v;                ///< of one type or of two
  std::int64_t heads = 0;     ///< Hk
  std::int64_t tokens = 0;    ///< Tk + Tq; the largest over the heads where `lengths` is given
  std::int64_t capacity = 0;  ///< most tokens that the storage, or the block table, has room for
  kv_layout layout = kv_layout::contiguous;

  /// A token's values are the first `v.dim` numbers of its key (multi-head latent attention): `v` says what `k` says but for
  /// `dim`. They are loaded, appended and moved once.
  bool values_in_keys = false;

  std::int64_t ring_start = 0;                ///< ring: row of slot 0
  const std::int32_t* block_table = nullptr;  ///< paged: [capacity / page_size] pages of the pool
  std::int64_t page_size = 0;                 ///< paged: tokens in a page
  std::int64_t pages = 0;                     ///< paged: pages in the pool; bounds the table's entries

  const std::int32_t* lengths = nullptr;  ///< [Hk], optional: tokens of each head, at most `tokens`, at least Tq
  std::int64_t lengths_ahead = 0;         ///< what `lengths` count beyond the view (see `prefix`)

  index* positions = nullptr;         ///< [Hk, capacity], optional; without it slot i has `first_position + i`
  std::int64_t positions_stride = 0;  ///< elements from one head to the next; 0 = all heads share one row
  std::int64_t first_position = 0;
  number* inverse_norms = nullptr;        ///< [Hk, capacity], optional: 1 / |k| of the stored key, 0 for a zero key
  std::int64_t inverse_norms_stride = 0;  ///< elements from one head to the next

  constexpr basic_kv_view() = default;

  /// Reading what may be written.
  template <class Other, class = std::enable_if_t<is_const && !std::is_const_v<Other>>>
  SKIM_HD SKIM_INLINE constexpr basic_kv_view(const basic_kv_view<Other>& other)  // NOLINT: implicit, as for views
      : k(other.k),
        v(other.v),
        heads(other.heads),
        tokens(other.tokens),
        capacity(other.capacity),
        layout(other.layout),
        values_in_keys(other.values_in_keys),
        ring_start(other.ring_start),
        block_table(other.block_table),
        page_size(other.page_size),
        pages(other.pages),
        lengths(other.lengths),
        lengths_ahead(other.lengths_ahead),
        positions(other.positions),
        positions_stride(other.positions_stride),
        first_position(other.first_position),
        inverse_norms(other.inverse_norms),
        inverse_norms_stride(other.inverse_norms_stride) {}

  /// Tokens that `head` holds, the chunk's own included.
  SKIM_HD SKIM_INLINE std::int64_t length(std::int64_t head) const {
    return lengths ? lengths[head] - lengths_ahead : tokens;
  }

  SKIM_HD SKIM_INLINE std::int64_t metadata_row(std::int64_t slot) const {
    if (layout != kv_layout::ring) return slot;
    const std::int64_t row = ring_start + slot;  // both below capacity: one subtraction replaces the remainder
    return row < capacity ? row : row - capacity;
  }

  SKIM_HD SKIM_INLINE std::int64_t position(std::int64_t head, std::int64_t slot) const {
    return positions ? positions[head * positions_stride + metadata_row(slot)] : first_position + slot;
  }

  /// Where a slot is stored, found once for all that belongs to the token.
  SKIM_HD SKIM_INLINE kv_place place(std::int64_t slot) const {
    if (layout != kv_layout::paged) return {0, metadata_row(slot)};
    const std::int64_t page = slot / page_size;
    return {block_table[page], slot - page * page_size};
  }

  /// Element offset of a token's row in `tensor`, which is `k` or `v`.
  SKIM_HD SKIM_INLINE std::int64_t row_offset(const tensor& of, std::int64_t head, kv_place at) const {
    return at.page * of.page_stride + at.row * of.row_stride + head * of.head_stride;
  }
  SKIM_HD SKIM_INLINE std::int64_t row_offset(const tensor& of, std::int64_t head, std::int64_t slot) const {
    return row_offset(of, head, place(slot));
  }

  /// Address of a token's row in `tensor`.
  SKIM_HD SKIM_INLINE Void* row_address(const tensor& of, std::int64_t head, std::int64_t slot) const {
    return static_cast<byte*>(of.data) + bytes_of(of.type, row_offset(of, head, slot));
  }

  /// Place of a row's scale; call it only where the tensor has scales.
  SKIM_HD SKIM_INLINE number& scale(const tensor& of, std::int64_t head, std::int64_t slot) const {
    return of.scales[scale_offset(of, head, place(slot))];
  }

  /// The row of a token as it is stored.
  SKIM_HD SKIM_INLINE stored_row row(const tensor& of, std::int64_t head, kv_place at) const {
    return {static_cast<byte*>(of.data) + bytes_of(of.type, row_offset(of, head, at)), of.type,
            of.scales ? of.scales[scale_offset(of, head, at)] : 1.0f};
  }
  SKIM_HD SKIM_INLINE stored_row row(const tensor& of, std::int64_t head, std::int64_t slot) const {
    return row(of, head, place(slot));
  }

 private:
  SKIM_HD SKIM_INLINE static std::int64_t scale_offset(const tensor& of, std::int64_t head, kv_place at) {
    return at.page * of.scale_page_stride + at.row * of.scale_row_stride + head * of.scale_head_stride;
  }
};

using kv_tensor = basic_kv_tensor<const void>;
using kv_view = basic_kv_view<const void>;
using kv_cache_tensor = basic_kv_tensor<void>;
using kv_cache = basic_kv_view<void>;

/// Several sequences of one pool, in arrays that a device can read. `attention_args::kv` is the pool, paged, without a table
/// of its own: its `tokens` are the most that a sequence has, its `capacity` what a table has room for.
struct kv_batch {
  std::int64_t sequences = 0;                  ///< 0: no batch
  const std::int32_t* block_tables = nullptr;  ///< [sequences, table_stride]: each sequence's pages, in order
  std::int64_t table_stride = 0;               ///< at least capacity / page_size
  const std::int32_t* tokens = nullptr;        ///< [sequences]: Tk + Tq of each
  const std::int32_t* offsets = nullptr;       ///< [sequences + 1]: rows of q of each, from 0, ascending
  std::int64_t most_rows = 0;                  ///< the most rows of q that a sequence has
};

namespace detail {

template <class Void, int Rank>
SKIM_HD constexpr basic_kv_tensor<Void> kv_tensor_of(const tensor_view<Void, Rank>& view) {
  static_assert(Rank == 3 || Rank == 4, "[rows, heads, dim], or [pages, rows, heads, dim]");
  basic_kv_tensor<Void> tensor;
  tensor.data = view.data;
  tensor.type = view.type;
  tensor.dim = view.extents[Rank - 1];
  tensor.heads = view.extents[Rank - 2];
  tensor.rows = view.extents[Rank - 3];
  tensor.pages = Rank == 4 ? view.extents[0] : 1;
  tensor.row_stride = view.strides[Rank - 3];
  tensor.head_stride = view.strides[Rank - 2];
  tensor.page_stride = Rank == 4 ? view.strides[0] : 0;
  tensor.dim_stride = view.strides[Rank - 1];
  return tensor;
}

template <class Void>
SKIM_HD constexpr basic_kv_view<Void> contiguous(const tensor_view<Void, 3>& k, const tensor_view<Void, 3>& v,
                                                 std::int64_t tokens) {
  basic_kv_view<Void> view;
  view.k = kv_tensor_of(k);
  view.v = kv_tensor_of(v);
  view.heads = k.extents[1];
  view.tokens = tokens;
  view.capacity = k.extents[0];
  return view;
}

template <class Void>
SKIM_HD constexpr basic_kv_view<Void> ring(const tensor_view<Void, 3>& k, const tensor_view<Void, 3>& v,
                                           std::int64_t start, std::int64_t tokens) {
  basic_kv_view<Void> view = contiguous(k, v, tokens);
  view.layout = kv_layout::ring;
  view.ring_start = start;
  return view;
}

template <class Void>
SKIM_HD constexpr basic_kv_view<Void> paged(const tensor_view<Void, 4>& k, const tensor_view<Void, 4>& v,
                                            const std::int32_t* block_table, std::int64_t table_length,
                                            std::int64_t tokens) {
  basic_kv_view<Void> view;
  view.k = kv_tensor_of(k);
  view.v = kv_tensor_of(v);
  view.heads = k.extents[2];
  view.tokens = tokens;
  view.layout = kv_layout::paged;
  view.block_table = block_table;
  view.page_size = k.extents[1];
  view.pages = k.extents[0];
  view.capacity =
      static_cast<std::int64_t>(static_cast<std::uint64_t>(table_length) * static_cast<std::uint64_t>(k.extents[1]));
  return view;
}

}  // namespace detail

/// k `[capacity, Hk, D]`, v `[capacity, Hk, Dv]`, of which the first `tokens` are in use: to read, and to write too.
SKIM_HD constexpr kv_view contiguous_kv(tensor_view<const void, 3> k, tensor_view<const void, 3> v,
                                        std::int64_t tokens) {
  return detail::contiguous(k, v, tokens);
}
SKIM_HD constexpr kv_cache contiguous_cache(tensor_view<void, 3> k, tensor_view<void, 3> v, std::int64_t tokens) {
  return detail::contiguous(k, v, tokens);
}

/// As `contiguous_kv` and `contiguous_cache`, with the oldest token in row `start`.
SKIM_HD constexpr kv_view ring_kv(tensor_view<const void, 3> k, tensor_view<const void, 3> v, std::int64_t start,
                                  std::int64_t tokens) {
  return detail::ring(k, v, start, tokens);
}
SKIM_HD constexpr kv_cache ring_cache(tensor_view<void, 3> k, tensor_view<void, 3> v, std::int64_t start,
                                      std::int64_t tokens) {
  return detail::ring(k, v, start, tokens);
}

/// k `[pages, page_size, Hk, D]`, v `[pages, page_size, Hk, Dv]`: one pool; `block_table [table_length]` lists the
/// sequence's pages in order. A token table is a pool with `page_size` 1.
SKIM_HD constexpr kv_view paged_kv(tensor_view<const void, 4> k, tensor_view<const void, 4> v,
                                   const std::int32_t* block_table, std::int64_t table_length, std::int64_t tokens) {
  return detail::paged(k, v, block_table, table_length, tokens);
}
SKIM_HD constexpr kv_cache paged_cache(tensor_view<void, 4> k, tensor_view<void, 4> v, const std::int32_t* block_table,
                                       std::int64_t table_length, std::int64_t tokens) {
  return detail::paged(k, v, block_table, table_length, tokens);
}

/// The same cache with values inside keys: those of a token are the first `Dv` numbers of its key; `v` of the given view is
/// not looked at. For a cache whose v was never made, pass its k twice.
template <class Void>
SKIM_HD constexpr basic_kv_view<Void> with_values_in_keys(basic_kv_view<Void> view, std::int64_t Dv) {
  view.v = view.k;
  view.v.dim = Dv;
  view.values_in_keys = true;
  return view;
}

/// The view without its newest `count` tokens: as it was before they came.
template <class Void>
SKIM_HD SKIM_INLINE constexpr basic_kv_view<Void> prefix(basic_kv_view<Void> view, std::int64_t count) {
  view.tokens -= count;
  view.lengths_ahead += count;
  return view;
}

/// `count` tokens from slot `first` on as a view of their own, where they lie in the order of storage: not of a ring, and of
/// pages from the first of one on.
template <class Void>
SKIM_HD constexpr basic_kv_view<Void> rows(basic_kv_view<Void> view, std::int64_t first, std::int64_t count) {
  using byte = typename basic_kv_view<Void>::byte;
  const auto shift = [first](basic_kv_tensor<Void>& tensor) {
    if (tensor.data) tensor.data = static_cast<byte*>(tensor.data) + bytes_of(tensor.type, first * tensor.row_stride);
    if (tensor.scales) tensor.scales += first * tensor.scale_row_stride;
    tensor.rows -= first;
  };
  if (view.layout == kv_layout::paged) {
    view.block_table += first / view.page_size;
  } else {
    shift(view.k);
    shift(view.v);
  }
  view.tokens = count;
  view.capacity -= first;
  if (view.positions) view.positions += first;
  if (view.inverse_norms) view.inverse_norms += first;
  view.first_position += first;
  return view;
}

static_assert(std::is_trivially_copyable_v<kv_view> && std::is_trivially_copyable_v<kv_cache>,
              "views cross to devices and other units as plain bytes");

}}  // namespace skim::v0_2
