// SPDX-License-Identifier: Apache-2.0
/// \file KV caches of every layout. Whatever is not written reads as NaN: padding, unused rows, unused pages.
#pragma once

#include "values.hpp"

#include <skim/view.hpp>

#include <algorithm>
#include <numeric>

namespace skim_test {

/// What lies beside what in memory.
enum class memory_order {
  token_major,  ///< [tokens, heads, dim]
  head_major,   ///< [heads, tokens, dim]
  interleaved,  ///< [tokens, heads, K then V]
};

struct cache_shape {
  std::int64_t heads = 1, D = 8, Dv = 8, capacity = 0;
  skim::element type = skim::element::f32;
  skim::kv_layout layout = skim::kv_layout::contiguous;
  std::int64_t page_size = 1;   ///< paged; divides the capacity
  std::int64_t ring_start = 0;  ///< ring
  memory_order order = memory_order::token_major;
  std::int64_t padding = 0;  ///< elements behind each row
  std::int64_t shift = 0;    ///< elements before the first row
  bool positions = false;
  bool inverse_norms = false;
};

class cache_storage {
 public:
  explicit cache_storage(const cache_shape& shape, unsigned seed = 1) : shape_(shape) {
    const bool paged = shape.layout == skim::kv_layout::paged, together = shape.order == memory_order::interleaved;
    const std::int64_t rows = paged ? shape.page_size : shape.capacity;
    const std::int64_t used_pages = paged ? shape.capacity / shape.page_size : 1;
    pages_ = paged ? used_pages + 2 : 1;  // two that no table names
    const std::int64_t k_width = shape.D + shape.padding, v_width = shape.Dv + shape.padding;
    k_ = tensor(shape.D, rows, together ? k_width + v_width : k_width);
    v_ = tensor(shape.Dv, rows, together ? k_width + v_width : v_width);
    const std::int64_t k_count = shape.shift + pages_ * k_.page_stride, v_count = shape.shift + pages_ * v_.page_stride;
    const std::size_t size = static_cast<std::size_t>(skim::element_bytes(shape.type));
    k_bytes_.assign(static_cast<std::size_t>(k_count) * size, 0xff);
    if (!together) v_bytes_.assign(static_cast<std::size_t>(v_count) * size, 0xff);
    table_.resize(static_cast<std::size_t>(pages_));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::mt19937(seed));
    positions_.assign(static_cast<std::size_t>(shape.heads * shape.capacity), -1);
    inverse_norms_.assign(positions_.size(), std::numeric_limits<float>::quiet_NaN());
  }

  skim::kv_view view(std::int64_t tokens) {
    const std::size_t size = static_cast<std::size_t>(skim::element_bytes(shape_.type));
    const std::size_t shift = static_cast<std::size_t>(shape_.shift) * size;
    skim::kv_view kv;
    kv.k = k_;
    kv.v = v_;
    kv.k.data = k_bytes_.data() + shift;
    if (shape_.order == memory_order::interleaved) {
      kv.v.data = k_bytes_.data() + shift + static_cast<std::size_t>(shape_.D + shape_.padding) * size;
    } else {
      kv.v.data = v_bytes_.data() + shift;
    }
    kv.heads = shape_.heads;
    kv.tokens = tokens;
    kv.capacity = shape_.capacity;
    kv.layout = shape_.layout;
    kv.ring_start = shape_.ring_start;
    if (shape_.layout == skim::kv_layout::paged) {
      kv.block_table = table_.data();
      kv.page_size = shape_.page_size;
      kv.pages = pages_;
    }
    if (shape_.positions) kv.positions = positions_.data();
    kv.positions_stride = shape_.capacity;
    if (shape_.inverse_norms) kv.inverse_norms = inverse_norms_.data();
    kv.inverse_norms_stride = shape_.capacity;
    return kv;
  }

  const std::vector<unsigned char>& k_bytes() const { return k_bytes_; }
  const std::vector<unsigned char>& v_bytes() const { return v_bytes_; }

 private:
  skim::kv_tensor tensor(std::int64_t dim, std::int64_t rows, std::int64_t width) const {
    skim::kv_tensor tensor;
    tensor.type = shape_.type;
    tensor.dim = dim;
    tensor.row_stride = shape_.order == memory_order::head_major ? width : shape_.heads * width;
    tensor.head_stride = shape_.order == memory_order::head_major ? rows * width : width;
    tensor.page_stride = rows * shape_.heads * width;
    return tensor;
  }

  cache_shape shape_;
  std::int64_t pages_ = 0;
  skim::kv_tensor k_, v_;
  std::vector<unsigned char> k_bytes_, v_bytes_;
  std::vector<std::int32_t> table_, positions_;
  std::vector<float> inverse_norms_;
};

/// Writes one row of K or V, rounded to the cache's type.
inline void write_row(const skim::kv_view& kv, const skim::kv_tensor& tensor, std::int64_t head, std::int64_t slot,
                      const float* values) {
  const std::int64_t row = kv.row_offset(tensor, head, slot);
  for (std::int64_t d = 0; d < tensor.dim; ++d) skim::store_element(tensor.data, tensor.type, row + d, values[d]);
}

}  // namespace skim_test
