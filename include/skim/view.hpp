// SPDX-License-Identifier: Apache-2.0
/// \file Non-owning views of dense tensors. Strides count elements; alignment is the element's own.
#pragma once

#include <skim/types.hpp>

namespace skim { inline namespace v0_2 {

/// A pointer, extents and 64-bit element strides; the last stride must be 1 (`check` refuses others).
/// `[tokens, heads, dim]` and `[heads, tokens, dim]` memory are the same type with other strides.
///
/// `T = void` (or `const void`) erases the element type, as `void*` does; `type` then says what it is. Every typed view
/// converts to the erased one, which is what operations take.
template <class T, int Rank>
struct tensor_view {
  static constexpr std::size_t axes = static_cast<std::size_t>(Rank);

  T* data = nullptr;
  std::int64_t extents[axes] = {};
  std::int64_t strides[axes] = {};
  element type = element_of<std::remove_const_t<T>>;

  constexpr tensor_view() = default;

  /// Contiguous, last extent fastest.
  SKIM_HD SKIM_INLINE constexpr tensor_view(T* pointer, const std::int64_t (&sizes)[axes],
                                            element kind = element_of<std::remove_const_t<T>>)
      : data(pointer), type(kind) {
    std::uint64_t stride = 1;  // unsigned: absurd sizes must reach `check` without overflowing here
    for (int axis = Rank - 1; axis >= 0; --axis) {
      extents[axis] = sizes[axis];
      strides[axis] = static_cast<std::int64_t>(stride);
      stride *= static_cast<std::uint64_t>(sizes[axis]);
    }
  }

  SKIM_HD SKIM_INLINE constexpr tensor_view(T* pointer, const std::int64_t (&sizes)[axes],
                                            const std::int64_t (&steps)[axes],
                                            element kind = element_of<std::remove_const_t<T>>)
      : data(pointer), type(kind) {
    for (int axis = 0; axis < Rank; ++axis) {
      extents[axis] = sizes[axis];
      strides[axis] = steps[axis];
    }
  }

  /// Adds const, erases the type, or both.
  template <class U, class = std::enable_if_t<!std::is_same_v<U, T> && std::is_convertible_v<U*, T*>>>
  SKIM_HD SKIM_INLINE constexpr tensor_view(
      const tensor_view<U, Rank>& other)  // NOLINT: the conversion is meant to be implicit
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
      return static_cast<byte*>(data) + bytes_of(type, offset(index...));
    } else {
      return data + offset(index...);
    }
  }
};

// The constructors do not say Rank: the bound of an array is no int, and compilers warn of the conversion.
template <class T, std::size_t Rank>
tensor_view(T*, const std::int64_t (&)[Rank], element = {}) -> tensor_view<T, static_cast<int>(Rank)>;
template <class T, std::size_t Rank>
tensor_view(T*, const std::int64_t (&)[Rank], const std::int64_t (&)[Rank], element = {})
    -> tensor_view<T, static_cast<int>(Rank)>;

/// Entries [first, first + count) of the first axis.
template <class T, int Rank>
SKIM_HD SKIM_INLINE tensor_view<T, Rank> rows(tensor_view<T, Rank> view, std::int64_t first, std::int64_t count) {
  if (view.data && count > 0) view.data = view.at(first);
  if (view.data && count == 0) {  // perhaps behind the last row, where no pointer may point: a number, never followed
    const auto bytes = static_cast<std::uintptr_t>(bytes_of(view.type, view.offset(first)));
    view.data = reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(view.data) + bytes);
  }
  view.extents[0] = count;
  return view;
}

static_assert(std::is_trivially_copyable_v<tensor_view<void, 3>>, "views cross to devices and other units as bytes");

}}  // namespace skim::v0_2
