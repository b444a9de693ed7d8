// SPDX-License-Identifier: Apache-2.0
/// \file What every operation on a KV cache checks it with.
#pragma once

#include <skim/check.hpp>
#include <skim/kv_view.hpp>

namespace skim { inline namespace v0_2 { namespace detail {

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
    const bool paged = view.layout == kv_layout::paged;  // a stride over one entry says nothing
    const bool strides_equal = ((paged ? view.page_size : view.capacity) == 1 || v.row_stride == k.row_stride) &&
                               (view.heads == 1 || v.head_stride == k.head_stride) &&
                               (!paged || view.pages == 1 || v.page_stride == k.page_stride);
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

/// Rows [rows, capacity] of per-token metadata, where there are any. Rows that are written must not overlap, or what is one
/// head's would replace another's.
template <class T>
SKIM_LOCAL constexpr report check_metadata(const char* name, T* data, const char* stride_name, std::int64_t stride,
                                           std::int64_t rows, std::int64_t capacity, pointers given) {
  if (!data) return {};
  if (!reaches(rows, stride)) {
    return fault(status::bad_stride, stride_name, stride, largest_reach, "a reach of at most");
  }
  if (!std::is_const_v<T> && rows > 1 && stride < capacity) {
    return fault(status::bad_stride, stride_name, stride, capacity, "at least");
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
    const std::int64_t most = largest_index - view.tokens;
    if (report r = check_range("kv.first_position", view.first_position, 0, most, status::bad_value); !r) return r;
  }
  const bool shared = view.positions_stride == 0;  // one row of positions for all heads
  if (report r = check_metadata("kv.positions", view.positions, "kv.positions_stride", view.positions_stride,
                                shared ? 1 : view.heads, view.capacity, given);
      !r) {
    return r;
  }
  if (report r = check_range("kv.lengths_ahead", view.lengths_ahead, 0, largest_index); !r) return r;
  if (given == pointers::required) {
    if (report r = check_array("kv.lengths", view.lengths); !r) return r;
  }
  return check_metadata("kv.inverse_norms", view.inverse_norms, "kv.inverse_norms_stride", view.inverse_norms_stride,
                        view.heads, view.capacity, given);
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

/// Bytes that a tensor's rows lie in, from the lowest on: its strides without signs, the largest axis first.
struct kv_storage {
  std::uintptr_t lowest;
  std::int64_t extents[3], strides[3], row_bytes;

  SKIM_INLINE kv_storage(const kv_cache& view, const kv_cache_tensor& tensor)
      : lowest(reinterpret_cast<std::uintptr_t>(tensor.data)), row_bytes(bytes_of(tensor.type, tensor.dim)) {
    const bool paged = view.layout == kv_layout::paged;
    const std::int64_t counts[] = {paged ? view.pages : 1, paged ? view.page_size : view.capacity, view.heads};
    const std::int64_t steps[] = {tensor.page_stride, tensor.row_stride, tensor.head_stride};
    for (int axis = 0; axis < 3; ++axis) {
      const std::int64_t bytes = bytes_of(tensor.type, steps[axis]);
      extents[axis] = counts[axis];
      strides[axis] = counts[axis] <= 1 ? 0 : bytes < 0 ? -bytes : bytes;
      if (counts[axis] > 1 && bytes < 0) lowest -= static_cast<std::uintptr_t>(strides[axis] * (counts[axis] - 1));
    }
    for (int pass = 0; pass < 2; ++pass) {
      for (int axis = 0; axis < 2; ++axis) {
        if (strides[axis] >= strides[axis + 1]) continue;
        const std::int64_t stride = strides[axis], extent = extents[axis];
        strides[axis] = strides[axis + 1];
        extents[axis] = extents[axis + 1];
        strides[axis + 1] = stride;
        extents[axis + 1] = extent;
      }
    }
  }

  /// Bytes from the first to the last of what the axes from `axis` on reach.
  std::int64_t reach(int axis) const {
    std::int64_t bytes = row_bytes;
    for (; axis < 3; ++axis) bytes += strides[axis] * (extents[axis] > 1 ? extents[axis] - 1 : 0);
    return bytes;
  }
};

/// Whether two tensors whose own rows lie apart share a byte, the second beginning `ahead` bytes behind the first. Where their
/// strides differ, what both reach counts as shared.
SKIM_LOCAL bool share_bytes(const kv_storage& a, const kv_storage& b, std::int64_t ahead, int axis = 0) {
  if (ahead >= a.reach(axis) || -ahead >= b.reach(axis)) return false;
  if (axis == 3 || a.strides[axis] != b.strides[axis]) return true;
  if (a.strides[axis] == 0) return share_bytes(a, b, ahead, axis + 1);
  const std::int64_t steps = ahead / a.strides[axis];  // or one more or less: inner axes reach less than a stride
  for (std::int64_t step = steps - 1; step <= steps + 1; ++step) {
    const bool exists = step < a.extents[axis] && -step < b.extents[axis];
    if (exists && share_bytes(a, b, ahead - step * a.strides[axis], axis + 1)) return true;
  }
  return false;
}

/// Of a checked view: nothing that is written lies on something else.
SKIM_LOCAL report check_apart(const kv_cache& view) {
  if (report r = check_apart(view, view.k, names_of_k); !r || view.values_in_keys) return r;
  if (report r = check_apart(view, view.v, names_of_v); !r) return r;
  if (view.k.scales && view.k.scales == view.v.scales) {
    return fault(status::bad_value, "kv.v.scales (those of kv.k, without values_in_keys)", 1, 0);
  }
  if (!view.k.data || !view.v.data || view.heads == 0 || view.capacity == 0) return {};
  const kv_storage k(view, view.k), v(view, view.v);
  constexpr std::uintptr_t beyond = static_cast<std::uintptr_t>(1) << (8 * sizeof(std::uintptr_t) - 2);
  const bool behind = v.lowest >= k.lowest;
  const std::uintptr_t apart = behind ? v.lowest - k.lowest : k.lowest - v.lowest;
  if (apart >= beyond) return {};
  const std::int64_t ahead = behind ? static_cast<std::int64_t>(apart) : -static_cast<std::int64_t>(apart);
  if (!share_bytes(k, v, ahead)) return {};
  return fault(status::bad_value, "kv.v.data (among rows of kv.k; bytes behind it)", ahead, k.reach(0),
               "values_in_keys and 0, or rows that lie apart: for instance");
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

}}}  // namespace skim::v0_2::detail
