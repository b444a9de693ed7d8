// SPDX-License-Identifier: Apache-2.0
/// \file Matrices of weights: how wide they may be, and a loader's tool.
#pragma once

#include <skim/check.hpp>

#include <cstring>

namespace skim { inline namespace v0_2 {
namespace detail {

/// A width of a matrix: 1 to 2^24.
template <class Void>
SKIM_LOCAL constexpr report check_width(const tensor_view<Void, 2>& matrix, int axis, const char* name) {
  const std::int64_t width = matrix.extents[axis];
  if (width < 1) return part_fault(status::bad_extent, name, part::extents, axis, width, 1, "at least");
  if (width <= largest_width) return {};
  return part_fault(status::unsupported, name, part::extents, axis, width, largest_width, "at most");
}

/// The tokens [M, d] of a call: 0 to 2^24 rows of 1 to 2^24 numbers.
template <class Void>
SKIM_LOCAL constexpr report check_tokens(const tensor_view<Void, 2>& tokens, const char* name, pointers given) {
  if (report r = check_matrix(tokens, -1, -1, name, given); !r) return r;
  if (tokens.extents[0] > largest_width) {
    return part_fault(status::bad_extent, name, part::extents, 0, tokens.extents[0], largest_width, "at most");
  }
  return check_width(tokens, 1, name);
}

}  // namespace detail

/// to [f, d] = from [d, f], transposed: a checkpoint's down projection becomes rows of neurons. Types must be equal, and
/// such that each number has bytes of its own. Plain loops, for the time of loading. Statuses: null_pointer, bad_extent,
/// bad_stride, bad_type; unsupported for a type whose numbers share bytes.
SKIM_LOCAL report transpose(const tensor_view<const void, 2>& from, const tensor_view<void, 2>& to) {
  using namespace detail;
  if (report r = check_matrix(from, -1, -1, "from"); !r) return r;
  if (format_of(from.type).values != 1) {
    return part_fault(status::unsupported, "from", part::type, 0, to_string(from.type), "one number per block");
  }
  if (report r = check_matrix(to, from.extents[1], from.extents[0], "to"); !r) return r;
  if (report r = check_same_type(to.type, from.type, "to"); !r) return r;
  constexpr std::int64_t tile = 32;  // a tile's lines of both matrices stay in the first-level cache
  const std::int64_t rows = from.extents[0], columns = from.extents[1];
  const std::size_t bytes = static_cast<std::size_t>(bytes_of(from.type, 1));
  for (std::int64_t row = 0; row < rows; row += tile) {
    for (std::int64_t column = 0; column < columns; column += tile) {
      for (std::int64_t i = row; i < rows && i < row + tile; ++i) {
        for (std::int64_t j = column; j < columns && j < column + tile; ++j) {
          std::memcpy(to.at(j, i), from.at(i, j), bytes);
        }
      }
    }
  }
  return {};
}

}}  // namespace skim::v0_2
