// SPDX-License-Identifier: Apache-2.0
/// \file What every operation checks its arguments with, and the bounds of every size, stride and enumerator.
#pragma once

#include <skim/index_lists.hpp>
#include <skim/status.hpp>
#include <skim/view.hpp>

#include <limits>

namespace skim { inline namespace v0_2 {

/// Whether null pointers are refused: `check_shape` is asked before there is memory.
enum class pointers : bool { ignored, required };

/// `check(args..., pointers::ignored)`: what any operation's `check` says of arguments whose memory is not there yet. What
/// describes shapes (sequences, offsets, prompts) is there already.
template <class Args, class... More>
SKIM_LOCAL constexpr report check_shape(const Args& args, const More&... more) {
  return check(args, more..., pointers::ignored);
}

namespace detail {

inline constexpr std::int64_t largest_index = (std::numeric_limits<std::int32_t>::max)();  // of tokens, pages, lists
inline constexpr std::int64_t largest_head_dim = 4096;  // bounds a kernel's scratch; the largest in use is 576
inline constexpr std::int64_t largest_heads = std::int64_t{1} << 16;
inline constexpr std::int64_t largest_width = std::int64_t{1} << 24;  // of an FFN's d and f, and of its tokens
inline constexpr std::int64_t largest_reach = std::int64_t{1} << 57;  // of an axis: byte offsets stay below 2^63
inline constexpr double largest_factor = static_cast<double>(1e30f);  // of a scale and a soft cap
inline constexpr float least_scale = 0x1p-120f;                       // whose product with log2 e has all its digits
inline constexpr float least_soft_cap = 0x1p-126f;                    // whose inverse is finite

/// True for finite values in [low, high].
SKIM_HD SKIM_INLINE constexpr bool within(double value, double low, double high) {
  return value >= low && value <= high;
}

SKIM_LOCAL constexpr report check_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most,
                                        status code = status::bad_extent) {
  if (value < least) return fault(code, name, value, least, "at least");
  if (value > most) return fault(code, name, value, most, "at most");
  return {};
}

/// For enumerators, which are numbers to whoever casts: from 0 to `last`.
template <class Enumerator>
SKIM_LOCAL constexpr report check_enumerator(const char* name, Enumerator value, Enumerator last) {
  if (value <= last) return {};
  return fault(status::bad_value, name, static_cast<std::int64_t>(value), static_cast<std::int64_t>(last), "at most");
}

SKIM_LOCAL constexpr report check_real(const char* name, float value, double low, double high) {
  if (within(static_cast<double>(value), low, high)) return {};
  const bool above = static_cast<double>(value) > high;
  return fault(status::bad_value, name, static_cast<double>(value), above ? high : low,
               above ? "at most" : "a finite number of at least");
}

SKIM_INLINE constexpr std::uint64_t size_of(std::int64_t stride) {
  return stride < 0 ? 0 - static_cast<std::uint64_t>(stride) : static_cast<std::uint64_t>(stride);
}

/// Whether an axis reaches no farther than `largest_reach`. A stride that is never taken has to be sane too.
SKIM_INLINE constexpr bool reaches(std::int64_t extent, std::int64_t stride) {
  const std::uint64_t steps = extent > 1 ? static_cast<std::uint64_t>(extent - 1) : 1;
  return size_of(stride) <= static_cast<std::uint64_t>(largest_reach) / steps;
}

/// The axis whose stride brings an element onto another, -1 if all lie apart, as what is written must: from the smallest
/// stride on, each steps over all that those before it reach.
SKIM_LOCAL constexpr int overlapping_axis(const std::int64_t* extents, const std::int64_t* strides, int rank) {
  for (int axis = 0; axis < rank; ++axis) {
    if (extents[axis] == 0) return -1;
  }
  std::uint64_t reach = 0;
  for (unsigned done = 0; done != (1u << rank) - 1;) {
    int next = -1;
    for (int axis = 0; axis < rank; ++axis) {
      if ((done >> axis & 1) == 0 && (next < 0 || size_of(strides[axis]) < size_of(strides[next]))) next = axis;
    }
    done |= 1u << next;
    if (extents[next] == 1) continue;
    if (size_of(strides[next]) <= reach) return next;
    reach += size_of(strides[next]) * static_cast<std::uint64_t>(extents[next] - 1);
  }
  return -1;
}

inline constexpr const char* lies_apart = "one that leaves elements, which are written, apart";

/// Numbers of `bytes` lie at multiples of that.
SKIM_INLINE report check_address(const char* name, const void* data, std::int64_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  if (address % static_cast<std::uintptr_t>(bytes) == 0) return {};
  return fault(status::bad_value, name, static_cast<std::int64_t>(address), bytes, "an address that is a multiple of");
}

/// Of an optional array; null passes.
template <class T>
SKIM_LOCAL report check_array(const char* name, const T* data) {
  return check_address(name, data, alignof(T));
}

/// A fault of a part of a view.
SKIM_LOCAL constexpr report part_fault(status code, const char* name, part of, int axis, quantity got,
                                       quantity expected, const char* relation = "") {
  report answer = fault(code, name, got, expected, relation);
  answer.of = of;
  answer.axis = axis;
  return answer;
}

SKIM_LOCAL constexpr report check_type(element type, const char* name) {
  if (is_stored(type)) return {};
  return part_fault(status::bad_type, name, part::type, 0, to_string(type), "an element type");
}

/// Of what is written number by number.
SKIM_LOCAL constexpr report check_number_type(element type, const char* name) {
  if (is_stored(type) && format_of(type).values == 1) return {};
  return part_fault(status::bad_type, name, part::type, 0, to_string(type), "a type whose numbers stand alone, as f32");
}

SKIM_LOCAL constexpr report check_same_type(element type, element as, const char* name) {
  if (type == as) return {};
  return part_fault(status::bad_type, name, part::type, 0, to_string(type), to_string(as));
}

/// Room for `rows` lists of `capacity`.
SKIM_LOCAL constexpr report check_room(const index_lists& lists, std::int64_t rows, std::int64_t capacity) {
  if (lists.rows != rows) return fault(status::bad_extent, "lists.rows", lists.rows, rows);
  if (report r = check_range("lists.capacity", lists.capacity, capacity, largest_index); !r) return r;
  if (rows == 0) return {};
  if (!lists.counts) return null_fault("lists.counts");
  if (lists.capacity > 0 && !lists.indices) return null_fault("lists.indices");
  if (report r = check_array("lists.counts", lists.counts); !r) return r;
  return check_array("lists.indices", lists.indices);
}

/// The elements of a view that has some.
SKIM_LOCAL report check_data(const void* data, element type, const char* name) {
  if (!data) return part_fault(status::null_pointer, name, part::data, 0, quantity(), quantity());
  const std::int64_t bytes = format_of(type).bytes, aligned = bytes & -bytes;  // blocks as what they are made of
  report answer = check_address(name, data, aligned > 0 ? aligned : 1);
  if (!answer) answer.of = part::data;
  return answer;
}

/// Extents that are not negative, whole blocks, a last stride of 1, a reach that fits 64 bits, and where there are elements
/// a pointer, aligned as they are.
template <class T, int Rank>
SKIM_LOCAL constexpr report check_tensor(const tensor_view<T, Rank>& view, const char* name,
                                         pointers given = pointers::required) {
  if constexpr (!std::is_void_v<std::remove_const_t<T>>) {  // what T says is what is read and written
    if (report r = check_same_type(view.type, element_of<std::remove_const_t<T>>, name); !r) return r;
  }
  bool empty = false;
  const std::int64_t block = format_of(view.type).values;
  for (int axis = 0; axis < Rank; ++axis) {
    const std::int64_t extent = view.extents[axis], stride = view.strides[axis];
    if (extent < 0) return part_fault(status::bad_extent, name, part::extents, axis, extent, 0, "at least");
    if (extent == 0) empty = true;
    if (!reaches(extent, stride)) {
      return part_fault(status::bad_stride, name, part::strides, axis, stride, largest_reach, "a reach of at most");
    }
    const std::int64_t counted = axis == Rank - 1 ? extent : stride;
    if (counted % block != 0) {
      const bool last = axis == Rank - 1;
      return part_fault(last ? status::bad_extent : status::bad_stride, name, last ? part::extents : part::strides,
                        axis, counted, block, "a multiple of");
    }
  }
  if (empty) return {};
  if (view.strides[Rank - 1] != 1) {
    return part_fault(status::bad_stride, name, part::strides, Rank - 1, view.strides[Rank - 1], 1);
  }
  return given == pointers::required ? check_data(view.data, view.type, name) : report{};
}

/// One extent of a checked view.
template <class T, int Rank>
SKIM_LOCAL constexpr report check_extent(const tensor_view<T, Rank>& view, int axis, std::int64_t expected,
                                         const char* name) {
  if (view.extents[axis] == expected) return {};
  return part_fault(status::bad_extent, name, part::extents, axis, view.extents[axis], expected);
}

/// What is written has no two elements at one address.
template <class T, int Rank>
SKIM_LOCAL constexpr report check_apart(const tensor_view<T, Rank>& view, const char* name) {
  const int axis = overlapping_axis(view.extents, view.strides, Rank);
  if (axis < 0) return {};
  return part_fault(status::bad_stride, name, part::strides, axis, view.strides[axis], lies_apart);
}

/// A matrix of a known type, and of a known shape where an expected extent is not negative.
template <class T>
SKIM_LOCAL constexpr report check_matrix(const tensor_view<T, 2>& view, std::int64_t rows, std::int64_t columns,
                                         const char* name, pointers given = pointers::required) {
  if (report r = check_tensor(view, name, given); !r) return r;
  if (report r = std::is_const_v<T> ? check_type(view.type, name) : check_number_type(view.type, name); !r) return r;
  if (rows >= 0) {
    if (report r = check_extent(view, 0, rows, name); !r) return r;
  }
  if (columns >= 0) {
    if (report r = check_extent(view, 1, columns, name); !r) return r;
  }
  return std::is_const_v<T> ? report{} : check_apart(view, name);
}

}  // namespace detail
}}  // namespace skim::v0_2
