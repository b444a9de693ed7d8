// SPDX-License-Identifier: Apache-2.0
/// \file What every operation checks its arguments with, and the bounds of every size, stride and enumerator.
#pragma once

#include <skim/index_lists.hpp>
#include <skim/kv_view.hpp>
#include <skim/status.hpp>

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
inline constexpr std::int64_t largest_reach = std::int64_t{1}
                                              << 57;  // elements, of one axis: byte offsets stay below 2^63

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

inline constexpr const char* lies_apart = "one that leaves no two elements at one address, for they are written";

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
  const element_format format = format_of(type);
  report answer = check_address(name, data, format.values == 1 && format.bytes > 0 ? format.bytes : 1);
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
  if (report r = check_type(view.type, name); !r) return r;
  if (rows >= 0) {
    if (report r = check_extent(view, 0, rows, name); !r) return r;
  }
  if (columns >= 0) {
    if (report r = check_extent(view, 1, columns, name); !r) return r;
  }
  return std::is_const_v<T> ? report{} : check_apart(view, name);
}

/// What a fault of one of the cache's two tensors is called.
struct kv_tensor_names {
  const char *tensor, *dim, *rows, *heads, *pages, *row_stride, *head_stride, *page_stride, *dim_stride, *scale_strides,
      *scales;
};
constexpr kv_tensor_names names_of_k{"kv.k",
                                     "kv.k.dim",
                                     "kv.k.rows",
                                     "kv.k.heads",
                                     "kv.k.pages",
                                     "kv.k.row_stride",
                                     "kv.k.head_stride",
                                     "kv.k.page_stride",
                                     "kv.k.dim_stride",
                                     "kv.k.scale_row_stride (with heads and pages)",
                                     "kv.k.scales"};
constexpr kv_tensor_names names_of_v{"kv.v",
                                     "kv.v.dim",
                                     "kv.v.rows",
                                     "kv.v.heads",
                                     "kv.v.pages",
                                     "kv.v.row_stride",
                                     "kv.v.head_stride",
                                     "kv.v.page_stride",
                                     "kv.v.dim_stride",
                                     "kv.v.scale_row_stride (with heads and pages)",
                                     "kv.v.scales"};

template <class Void>
SKIM_LOCAL constexpr report check_kv_tensor(const basic_kv_view<Void>& view, const basic_kv_tensor<Void>& tensor,
                                            const kv_tensor_names& names, pointers given) {
  const bool paged = view.layout == kv_layout::paged;
  if (tensor.dim < 1) return fault(status::bad_extent, names.dim, tensor.dim, 1, "at least");
  if (tensor.dim > largest_head_dim) {
    return fault(status::unsupported, names.dim, tensor.dim, largest_head_dim, "at most");
  }
  if (report r = check_type(tensor.type, names.tensor); !r) return r;
  if (tensor.dim_stride != 1) return fault(status::bad_stride, names.dim_stride, tensor.dim_stride, 1);
  const std::int64_t rows = paged ? view.page_size : view.capacity, pages = paged ? view.pages : 1;
  if (report r = check_range(names.heads, tensor.heads, view.heads, largest_index); !r) return r;
  if (report r = check_range(names.rows, tensor.rows, rows, largest_index); !r) return r;
  if (report r = check_range(names.pages, tensor.pages, pages, largest_index); !r) return r;
  struct {
    const char* name;
    std::int64_t extent, stride, scale_stride;
  } const axes[] = {{names.head_stride, view.heads, tensor.head_stride, tensor.scale_head_stride},
                    {names.row_stride, rows, tensor.row_stride, tensor.scale_row_stride},
                    {names.page_stride, pages, tensor.page_stride, tensor.scale_page_stride}};
  const std::int64_t block = format_of(tensor.type).values;
  if (tensor.dim % block != 0) return fault(status::bad_extent, names.dim, tensor.dim, block, "a multiple of");
  for (const auto& axis : axes) {
    if (!reaches(axis.extent, axis.stride)) {
      return fault(status::bad_stride, axis.name, axis.stride, largest_reach, "a reach of at most");
    }
    if (axis.stride % block != 0) return fault(status::bad_stride, axis.name, axis.stride, block, "a multiple of");
    if (tensor.scales && !reaches(axis.extent, axis.scale_stride)) {
      return fault(status::bad_stride, names.scale_strides, axis.scale_stride, largest_reach, "a reach of at most");
    }
  }
  if (given == pointers::ignored || view.tokens == 0) return {};
  if (report r = check_data(tensor.data, tensor.type, names.tensor); !r) return r;
  return check_array(names.scales, tensor.scales);
}

/// Values that begin inside a key, or end there, would be moved twice.
SKIM_LOCAL report check_apart_in_row(const void* k, std::int64_t D, const void* v, std::int64_t Dv, element type) {
  const auto key = reinterpret_cast<std::uintptr_t>(k), value = reinterpret_cast<std::uintptr_t>(v);
  const bool apart = value > key ? value - key >= static_cast<std::uintptr_t>(bytes_of(type, D))
                                 : key - value >= static_cast<std::uintptr_t>(bytes_of(type, Dv));
  if (apart) return {};
  const std::int64_t ahead = static_cast<std::int64_t>(value - key);
  return fault(status::bad_value, "kv.v.data (inside rows of kv.k; bytes behind it)", ahead, bytes_of(type, D),
               "values_in_keys and 0, or at least");
}

/// Values inside keys are said to be, and are what they are said to be; nothing else of K and V may overlap in a row.
template <class Void>
SKIM_LOCAL constexpr report check_shared_values(const basic_kv_view<Void>& view) {
  const basic_kv_tensor<Void>&k = view.k, &v = view.v;
  if (!view.values_in_keys) {
    if (!k.data || !v.data) return {};
    if (k.data == v.data) return fault(status::bad_value, "kv.v.data (that of kv.k, without values_in_keys)", 1, 0);
    const bool strides_equal =
        v.row_stride == k.row_stride && v.head_stride == k.head_stride && v.page_stride == k.page_stride;
    return strides_equal && v.type == k.type ? check_apart_in_row(k.data, k.dim, v.data, v.dim, k.type) : report{};
  }
  if (v.dim > k.dim) return fault(status::bad_extent, "kv.v.dim (values_in_keys)", v.dim, k.dim, "at most");
  if (report r = check_same_type(v.type, k.type, "kv.v"); !r) return r;
  if (v.data != k.data) return fault(status::bad_value, "kv.v.data (values_in_keys, differs from kv.k)", 1, 0);
  if (v.scales != k.scales) return fault(status::bad_value, "kv.v.scales (values_in_keys, differ from kv.k)", 1, 0);
  if (v.row_stride != k.row_stride) return fault(status::bad_stride, "kv.v.row_stride", v.row_stride, k.row_stride);
  if (v.head_stride != k.head_stride) {
    return fault(status::bad_stride, "kv.v.head_stride", v.head_stride, k.head_stride);
  }
  if (v.page_stride != k.page_stride) {
    return fault(status::bad_stride, "kv.v.page_stride", v.page_stride, k.page_stride);
  }
  return {};
}

/// Rows of per-token metadata [Hk, capacity], where there are any. Rows that are written must not overlap, or what is one
/// head's would replace another's.
template <class T, class Void>
SKIM_LOCAL constexpr report check_metadata(const char* name, const T* data, const char* stride_name,
                                           std::int64_t stride, const basic_kv_view<Void>& view, pointers given) {
  if (!data) return {};
  if (!reaches(view.heads, stride)) {
    return fault(status::bad_stride, stride_name, stride, largest_reach, "a reach of at most");
  }
  if (!std::is_const_v<Void> && view.heads > 1 && stride < view.capacity) {
    return fault(status::bad_stride, stride_name, stride, view.capacity, "at least");
  }
  return given == pointers::required ? check_array(name, data) : report{};
}

/// The part of `check` that concerns one cache of which the chunk owns the last `Tq` tokens.
template <class Void>
SKIM_LOCAL constexpr report check_kv(const basic_kv_view<Void>& view, std::int64_t Tq, pointers given) {
  if (report r = check_range("kv.heads", view.heads, 1, largest_heads); !r) return r;
  if (report r = check_range("kv.tokens", view.tokens, Tq, largest_index); !r) return r;
  if (report r = check_range("kv.capacity", view.capacity, view.tokens, largest_index); !r) return r;
  if (report r = check_enumerator("kv.layout", view.layout, kv_layout::ring); !r) return r;
  if (view.layout == kv_layout::paged) {
    if (report r = check_range("kv.page_size", view.page_size, 1, largest_index); !r) return r;
    if (report r = check_range("kv.pages", view.pages, 0, largest_index); !r) return r;
    if (view.capacity % view.page_size != 0) {
      return fault(status::bad_extent, "kv.capacity", view.capacity, view.page_size, "a multiple of");
    }
    if (given == pointers::required && view.tokens > 0) {
      if (!view.block_table) return null_fault("kv.block_table");
      if (report r = check_array("kv.block_table", view.block_table); !r) return r;
    }
  }
  if (view.layout == kv_layout::ring && view.capacity > 0) {
    if (report r = check_range("kv.ring_start", view.ring_start, 0, view.capacity - 1, status::bad_value); !r) return r;
  }
  if (report r = check_kv_tensor(view, view.k, names_of_k, given); !r) return r;
  if (report r = check_kv_tensor(view, view.v, names_of_v, given); !r) return r;
  if (report r = check_shared_values(view); !r) return r;
  if (!view.positions) {
    if (report r =
            check_range("kv.first_position", view.first_position, 0, largest_index - view.tokens, status::bad_value);
        !r) {
      return r;
    }
  } else if (view.positions_stride != 0) {  // else all heads share a row
    if (report r =
            check_metadata("kv.positions", view.positions, "kv.positions_stride", view.positions_stride, view, given);
        !r) {
      return r;
    }
  }
  if (report r = check_range("kv.lengths_ahead", view.lengths_ahead, 0, largest_index); !r) return r;
  if (given == pointers::required) {
    if (report r = check_array("kv.positions", view.positions); !r) return r;
    if (report r = check_array("kv.lengths", view.lengths); !r) return r;
  }
  return check_metadata("kv.inverse_norms", view.inverse_norms, "kv.inverse_norms_stride", view.inverse_norms_stride,
                        view, given);
}

/// Of a checked view: what is written of K or V, and of its scales, has no two elements at one address.
SKIM_LOCAL constexpr report check_apart(const kv_cache& view, const kv_cache_tensor& tensor,
                                        const kv_tensor_names& names) {
  const bool paged = view.layout == kv_layout::paged;
  const std::int64_t extents[] = {view.heads, paged ? view.page_size : view.capacity, paged ? view.pages : 1,
                                  tensor.dim};
  const std::int64_t strides[] = {tensor.head_stride, tensor.row_stride, tensor.page_stride, 1};
  const std::int64_t scale_strides[] = {tensor.scale_head_stride, tensor.scale_row_stride, tensor.scale_page_stride};
  const char* const stride_names[] = {names.head_stride, names.row_stride, names.page_stride, names.dim_stride};
  if (const int axis = overlapping_axis(extents, strides, 4); axis >= 0) {
    return fault(status::bad_stride, stride_names[axis], strides[axis], lies_apart);
  }
  const int axis = tensor.scales ? overlapping_axis(extents, scale_strides, 3) : -1;
  return axis < 0 ? report{} : fault(status::bad_stride, names.scale_strides, scale_strides[axis], lies_apart);
}
SKIM_LOCAL constexpr report check_apart(const kv_cache& view) {
  if (report r = check_apart(view, view.k, names_of_k); !r || view.values_in_keys) return r;
  return check_apart(view, view.v, names_of_v);
}

/// Block table and lengths of a checked view, whose memory the host can read.
template <class Void>
SKIM_LOCAL report check_kv_indices(const basic_kv_view<Void>& view, std::int64_t Tq) {
  const std::int64_t used_pages =
      view.layout == kv_layout::paged ? (view.tokens + view.page_size - 1) / view.page_size : 0;
  for (std::int64_t page = 0; page < used_pages; ++page) {
    if (report r = check_range("kv.block_table[i]", view.block_table[page], 0, view.pages - 1, status::bad_index); !r)
      return r;
  }
  for (std::int64_t head = 0; view.lengths && head < view.heads; ++head) {
    if (report r = check_range("kv.lengths[h]", view.length(head), Tq, view.tokens, status::bad_index); !r) return r;
  }
  const std::int64_t rows = !view.positions ? 0 : view.positions_stride == 0 ? 1 : view.heads;
  for (std::int64_t head = 0; head < rows; ++head) {
    for (std::int64_t slot = 0; slot < (rows == 1 ? view.tokens : view.length(head)); ++slot) {
      if (report r = check_range("kv.positions[h][i]", view.position(head, slot), 0, largest_index, status::bad_index);
          !r)
        return r;
    }
  }
  return {};
}

}  // namespace detail
}}  // namespace skim::v0_2
