// SPDX-License-Identifier: Apache-2.0
/// \file KV caches of every layout. Whatever is not written reads as NaN: padding, unused rows, unused pages.
#pragma once

#include "values.hpp"

#include <skim/kv_view.hpp>
#include <skim/reference/append.hpp>

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
  skim::element v_type = skim::element::none;  ///< none: as `type`
  skim::kv_layout layout = skim::kv_layout::contiguous;
  std::int64_t page_size = 1;   ///< paged; divides the capacity
  std::int64_t ring_start = 0;  ///< ring
  memory_order order = memory_order::token_major;
  std::int64_t padding = 0;  ///< elements behind each row
  std::int64_t shift = 0;    ///< elements before the first row
  bool positions = false;
  bool inverse_norms = false;
  bool values_in_keys = false;  ///< V is the first `Dv` numbers of K
  bool scales = false;          ///< of each row and head
};

class cache_storage {
 public:
  explicit cache_storage(const cache_shape& shape, unsigned seed = 1) : shape_(shape) {
    if (shape_.v_type == skim::element::none) shape_.v_type = shape.type;
    const bool paged = shape.layout == skim::kv_layout::paged;
    rows_ = paged ? shape.page_size : shape.capacity;
    pages_ = paged ? shape.capacity / shape.page_size + 2 : 1;  // two that no table names
    const std::int64_t k_width = shape.D + shape.padding, v_width = shape.Dv + shape.padding;
    const std::int64_t both = k_width + v_width;  // of one type, which the caller sees to
    k_ = tensor(shape.type, shape.D, together() ? both : k_width);
    v_ = shape.values_in_keys ? k_ : tensor(shape_.v_type, shape.Dv, together() ? both : v_width);
    v_.dim = shape.Dv;
    k_bytes_ = bytes(k_);
    if (!together() && !shape.values_in_keys) v_bytes_ = bytes(v_);
    k_scales_ = v_scales_ = std::vector<float>(scales_count(), std::numeric_limits<float>::quiet_NaN());
    table_.resize(static_cast<std::size_t>(pages_));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::mt19937(seed));
    positions_.assign(static_cast<std::size_t>(shape.heads * shape.capacity), -1);
    inverse_norms_.assign(positions_.size(), std::numeric_limits<float>::quiet_NaN());
  }

  skim::kv_cache view(std::int64_t tokens) {
    skim::kv_cache kv;
    kv.k = k_;
    kv.v = v_;
    kv.k.data = k_bytes_.data() + first_byte(k_);
    if (shape_.values_in_keys) {
      kv.v.data = kv.k.data;
    } else if (together()) {
      kv.v.data = k_bytes_.data() + first_byte(k_) + skim::bytes_of(shape_.type, shape_.D + shape_.padding);
    } else {
      kv.v.data = v_bytes_.data() + first_byte(v_);
    }
    if (shape_.scales) {
      kv.k.scales = k_scales_.data();
      kv.v.scales = shape_.values_in_keys ? kv.k.scales : v_scales_.data();
    }
    kv.heads = shape_.heads;
    kv.tokens = tokens;
    kv.capacity = shape_.capacity;
    kv.layout = shape_.layout;
    kv.values_in_keys = shape_.values_in_keys;
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

  const cache_shape& shape() const { return shape_; }
  const std::vector<unsigned char>& k_bytes() const { return k_bytes_; }
  const std::vector<unsigned char>& v_bytes() const { return v_bytes_; }
  const std::vector<float>& k_scales() const { return k_scales_; }
  const std::vector<float>& v_scales() const { return v_scales_; }
  std::int32_t* block_table() { return table_.data(); }

 private:
  bool together() const { return shape_.order == memory_order::interleaved && !shape_.values_in_keys; }
  std::ptrdiff_t first_byte(const skim::kv_cache_tensor& tensor) const {
    return static_cast<std::ptrdiff_t>(skim::bytes_of(tensor.type, shape_.shift));
  }
  std::vector<unsigned char> bytes(const skim::kv_cache_tensor& tensor) const {
    const std::int64_t count = skim::bytes_of(tensor.type, shape_.shift + pages_ * tensor.page_stride);
    return std::vector<unsigned char>(static_cast<std::size_t>(count), 0xff);
  }
  std::size_t scales_count() const {
    return shape_.scales ? static_cast<std::size_t>(pages_ * rows_ * (shape_.heads + 1)) : 0;
  }

  skim::kv_cache_tensor tensor(skim::element type, std::int64_t dim, std::int64_t width) const {
    const bool head_major = shape_.order == memory_order::head_major;
    skim::kv_cache_tensor tensor;
    tensor.type = type;
    tensor.dim = dim;
    tensor.rows = rows_;
    tensor.heads = shape_.heads;
    tensor.pages = pages_;
    tensor.row_stride = head_major ? width : shape_.heads * width;
    tensor.head_stride = head_major ? rows_ * width : width;
    tensor.page_stride = rows_ * shape_.heads * width;
    tensor.scale_row_stride = shape_.heads + 1;  // a hole behind the heads
    tensor.scale_head_stride = 1;
    tensor.scale_page_stride = rows_ * (shape_.heads + 1);
    return tensor;
  }

  cache_shape shape_;
  std::int64_t rows_ = 0, pages_ = 0;
  skim::kv_cache_tensor k_, v_;
  std::vector<unsigned char> k_bytes_, v_bytes_;
  std::vector<std::int32_t> table_, positions_;
  std::vector<float> inverse_norms_, k_scales_, v_scales_;
};

/// Writes one row of K or V, rounded to the cache's type.
inline void write_row(const skim::kv_cache& kv, const skim::kv_cache_tensor& tensor, std::int64_t head,
                      std::int64_t slot, const float* values) {
  skim::reference::store_row(kv, tensor, head, slot, {values, skim::element::f32});
}

}  // namespace skim_test
