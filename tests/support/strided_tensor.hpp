// SPDX-License-Identifier: Apache-2.0
/// \file Tensors [tokens, heads, dim] in any order and type, on memory that shows a write outside.
#pragma once

#include "cache_storage.hpp"

namespace skim_test {

/// Bytes that belong to no element are 0xff: they read as NaN, and `outside_intact` finds out if one was written.
class strided_tensor {
 public:
  struct shape {
    std::int64_t tokens = 0, heads = 0, dim = 0;
    skim::element type = skim::element::f32;
    memory_order order = memory_order::token_major;
    std::int64_t padding = 0;  ///< elements behind each row
    std::int64_t shift = 0;    ///< elements before the first row
  };

  explicit strided_tensor(const shape& s) : shape_(s) {
    const std::int64_t width = s.dim + s.padding;
    const bool head_major = s.order == memory_order::head_major;
    token_stride_ = head_major ? width : s.heads * width;
    head_stride_ = head_major ? s.tokens * width : width;
    bytes_.assign(static_cast<std::size_t>(bytes_of(s.shift + s.tokens * s.heads * width + guard)), 0xff);
  }

  skim::tensor_view<void, 3> view() {
    const std::int64_t extents[] = {shape_.tokens, shape_.heads, shape_.dim};
    const std::int64_t strides[] = {token_stride_, head_stride_, 1};
    return {bytes_.data() + bytes_of(shape_.shift), extents, strides, shape_.type};
  }

  /// Rounds `values` [tokens, heads, dim] into the elements.
  void fill(const std::vector<float>& values) {
    const auto to = view();
    const float* row = values.data();
    for (std::int64_t t = 0; t < shape_.tokens; ++t) {
      for (std::int64_t h = 0; h < shape_.heads; ++h) {
        skim::store_elements(to.at(t, h), to.type, row, shape_.dim);
        row += shape_.dim;
      }
    }
  }

  bool outside_intact() {
    std::vector<bool> inside(bytes_.size(), false);
    const auto all = view();
    for (std::int64_t t = 0; t < shape_.tokens; ++t) {
      for (std::int64_t h = 0; h < shape_.heads; ++h) {
        std::fill_n(inside.begin() + bytes_of(shape_.shift + all.offset(t, h)), bytes_of(shape_.dim), true);
      }
    }
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if (!inside[i] && bytes_[i] != 0xff) return false;
    }
    return true;
  }

  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  static constexpr std::int64_t guard = 16;  // elements behind the last row
  std::int64_t bytes_of(std::int64_t elements) const { return skim::bytes_of(shape_.type, elements); }

  shape shape_;
  std::int64_t token_stride_ = 0, head_stride_ = 0;
  std::vector<unsigned char> bytes_;
};

}  // namespace skim_test
