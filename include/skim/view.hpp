// SPDX-License-Identifier: Apache-2.0
/// \file Non-owning views: dense tensors and the KV cache. Strides count elements; alignment is the element's own.
#pragma once

#include <skim/types.hpp>

namespace skim {
inline namespace v0 {

/// A pointer, extents and 64-bit element strides; the last stride must be 1 (`check` refuses others).
/// `[tokens, heads, dim]` and `[heads, tokens, dim]` memory are the same type with other strides.
///
/// `T = void` (or `const void`) erases the element type, as `void*` does; `type` then says what it is. Every typed view
/// converts to the erased one, which is what operations take.
template <class T, int Rank>
struct tensor_view {
  T* data = nullptr;
  std::int64_t extents[Rank] = {};
  std::int64_t strides[Rank] = {};
  element type = element_of<std::remove_const_t<T>>;

  constexpr tensor_view() = default;

  /// Contiguous, last extent fastest.
  SKIM_HD constexpr tensor_view(T* pointer, const std::int64_t (&sizes)[Rank],
                                element kind = element_of<std::remove_const_t<T>>)
      : data(pointer), type(kind) {
    std::uint64_t stride = 1;  // unsigned: absurd sizes must reach `check` without overflowing here
    for (int axis = Rank - 1; axis >= 0; --axis) {
      extents[axis] = sizes[axis];
      strides[axis] = static_cast<std::int64_t>(stride);
      stride *= static_cast<std::uint64_t>(sizes[axis]);
    }
  }

  SKIM_HD constexpr tensor_view(T* pointer, const std::int64_t (&sizes)[Rank], const std::int64_t (&steps)[Rank],
                                element kind = element_of<std::remove_const_t<T>>)
      : data(pointer), type(kind) {
    for (int axis = 0; axis < Rank; ++axis) {
      extents[axis] = sizes[axis];
      strides[axis] = steps[axis];
    }
  }

  /// Adds const, erases the type, or both.
  template <class U, class = std::enable_if_t<!std::is_same_v<U, T> && std::is_convertible_v<U*, T*>>>
  SKIM_HD constexpr tensor_view(const tensor_view<U, Rank>& other)  // NOLINT: the conversion is meant to be implicit
      : data(other.data), type(other.type) {
    for (int axis = 0; axis < Rank; ++axis) {
      extents[axis] = other.extents[axis];
      strides[axis] = other.strides[axis];
    }
  }

  /// Offset in elements of the entry at `index...`; trailing indices may be left out.
  template <class... Index>
  SKIM_HD SKIM_INLINE constexpr std::int64_t offset(Index... index) const {
    static_assert(sizeof...(Index) <= Rank, "more indices than axes");
    const std::int64_t at[sizeof...(Index) + 1] = {static_cast<std::int64_t>(index)..., 0};
    std::int64_t sum = 0;
    for (std::size_t axis = 0; axis < sizeof...(Index); ++axis) sum += at[axis] * strides[axis];
    return sum;
  }

  /// Address of the entry at `index...`, also where the type is erased.
  template <class... Index>
  SKIM_HD SKIM_INLINE T* at(Index... index) const {
    if constexpr (std::is_void_v<T>) {
      using byte = std::conditional_t<std::is_const_v<T>, const char, char>;
      return static_cast<byte*>(data) + offset(index...) * element_bytes(type);
    } else {
      return data + offset(index...);
    }
  }
};

/// How slots map to rows of storage.
enum class kv_layout : std::uint8_t {
  contiguous,  ///< slot i is row i
  paged,       ///< slot i is row `i % page_size` of page `block_table[i / page_size]`; a token table has pages of 1
  ring,        ///< slot i is row `(ring_start + i) % capacity`
};

/// Keys or values of one cache: `[rows, Hk, dim]`, or `[pages, page_size, Hk, dim]` if paged; any strides.
struct kv_tensor {
  void* data = nullptr;
  element type = element::none;
  std::int64_t dim = 0;          ///< D or Dv
  std::int64_t row_stride = 0;   ///< elements from one token to the next, inside a page if paged
  std::int64_t head_stride = 0;  ///< elements from one KV head to the next
  std::int64_t page_stride = 0;  ///< paged only: elements from one page to the next
  std::int64_t dim_stride = 1;   ///< must be 1
};

/// The KV cache of one sequence and layer: `Tk` past tokens and, last, the chunk's own `Tq`, already appended.
///
/// A *slot* is a token's place in logical order: 0 is the oldest that survives, `tokens - 1` the newest. Index lists
/// hold slots, so they mean the same in every layout. Per-token metadata (`positions`, `inverse_norms`) is `[Hk,
/// capacity]`, at `metadata_row(slot)`: the slot itself, in a ring the row of storage.
/// Attention and selection only read through a view; `append` and eviction write.
struct kv_view {
  kv_tensor k, v;
  std::int64_t heads = 0;     ///< Hk
  std::int64_t tokens = 0;    ///< Tk + Tq; the largest over the heads where `lengths` is given
  std::int64_t capacity = 0;  ///< most tokens that the storage, or the block table, has room for
  kv_layout layout = kv_layout::contiguous;

  std::int64_t ring_start = 0;                ///< ring: row of slot 0
  const std::int32_t* block_table = nullptr;  ///< paged: [capacity / page_size] pages of the pool
  std::int64_t page_size = 0;                 ///< paged: tokens in a page
  std::int64_t pages = 0;                     ///< paged: pages in the pool; bounds the table's entries

  const std::int32_t* lengths = nullptr;  ///< [Hk], optional: tokens of each head, at most `tokens`, at least Tq

  std::int32_t* positions = nullptr;  ///< [Hk, capacity], optional; without it slot i has `first_position + i`
  std::int64_t positions_stride = 0;  ///< elements from one head to the next; 0 = all heads share one row
  std::int64_t first_position = 0;
  float* inverse_norms = nullptr;         ///< [Hk, capacity], optional: 1 / |k| of the stored key, 0 for a zero key
  std::int64_t inverse_norms_stride = 0;  ///< elements from one head to the next

  /// Tokens that `head` holds, the chunk's own included.
  SKIM_HD SKIM_INLINE std::int64_t length(std::int64_t head) const { return lengths ? lengths[head] : tokens; }

  SKIM_HD SKIM_INLINE std::int64_t metadata_row(std::int64_t slot) const {
    if (layout != kv_layout::ring) return slot;
    const std::int64_t row = ring_start + slot;  // both below capacity: one subtraction replaces the remainder
    return row < capacity ? row : row - capacity;
  }

  SKIM_HD SKIM_INLINE std::int64_t position(std::int64_t head, std::int64_t slot) const {
    return positions ? positions[head * positions_stride + metadata_row(slot)] : first_position + slot;
  }

  /// Element offset of a token's row in `tensor`, which is `k` or `v`.
  SKIM_HD SKIM_INLINE std::int64_t row_offset(const kv_tensor& tensor, std::int64_t head, std::int64_t slot) const {
    if (layout == kv_layout::paged) {
      const std::int64_t page = slot / page_size;
      return block_table[page] * tensor.page_stride + (slot - page * page_size) * tensor.row_stride +
             head * tensor.head_stride;
    }
    return metadata_row(slot) * tensor.row_stride + head * tensor.head_stride;
  }
};

namespace detail {

template <class T, int Rank>
SKIM_HD constexpr kv_tensor kv_tensor_of(const tensor_view<T, Rank>& view) {
  kv_tensor tensor;
  tensor.data = view.data;
  tensor.type = view.type;
  tensor.dim = view.extents[Rank - 1];
  tensor.row_stride = view.strides[Rank - 3];
  tensor.head_stride = view.strides[Rank - 2];
  tensor.page_stride = Rank == 4 ? view.strides[0] : 0;
  tensor.dim_stride = view.strides[Rank - 1];
  return tensor;
}

}  // namespace detail

/// k `[capacity, Hk, D]`, v `[capacity, Hk, Dv]`, of which the first `tokens` are in use.
SKIM_HD constexpr kv_view contiguous_kv(tensor_view<void, 3> k, tensor_view<void, 3> v, std::int64_t tokens) {
  kv_view view;
  view.k = detail::kv_tensor_of(k);
  view.v = detail::kv_tensor_of(v);
  view.heads = k.extents[1];
  view.tokens = tokens;
  view.capacity = k.extents[0];
  return view;
}

/// As `contiguous_kv`, with the oldest token in row `start`.
SKIM_HD constexpr kv_view ring_kv(tensor_view<void, 3> k, tensor_view<void, 3> v, std::int64_t start,
                                  std::int64_t tokens) {
  kv_view view = contiguous_kv(k, v, tokens);
  view.layout = kv_layout::ring;
  view.ring_start = start;
  return view;
}

/// k `[pages, page_size, Hk, D]`, v `[pages, page_size, Hk, Dv]`: one pool; `block_table [table_length]` lists the
/// sequence's pages in order. A token table is a pool with `page_size` 1.
SKIM_HD constexpr kv_view paged_kv(tensor_view<void, 4> k, tensor_view<void, 4> v, const std::int32_t* block_table,
                                   std::int64_t table_length, std::int64_t tokens) {
  kv_view view;
  view.k = detail::kv_tensor_of(k);
  view.v = detail::kv_tensor_of(v);
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

static_assert(std::is_trivially_copyable_v<tensor_view<void, 3>> && std::is_trivially_copyable_v<kv_view>,
              "views cross to devices and other units as plain bytes");

}  // namespace v0
}  // namespace skim
