// SPDX-License-Identifier: Apache-2.0
/// \file Writing a chunk into the cache, element by element: the specification of `append`.
#pragma once

#include <skim/append.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// The scale of a row [dim] in a cache with scales. `range` is the largest number that the type holds, 0 for a type that
/// needs no scale. NaN for a row with an infinity or NaN.
inline float scale_of(const stored_row& row, std::int64_t dim, float range) {
  if (range == 0) return 1;
  float largest = 0;
  for (std::int64_t d = 0; d < dim; ++d) {
    const float size = std::fabs(load_element(row.data, row.type, d));
    if (!std::isfinite(size)) return std::numeric_limits<float>::quiet_NaN();
    if (size > largest) largest = size;
  }
  if (largest == 0) return 1;
  const float least = (std::numeric_limits<float>::min)();
  return largest / range > least ? largest / range : least;
}

/// Stores one row and its scale, both in f32, and returns the sum of squares of what is stored, in double.
inline double store_row(const kv_cache& kv, const kv_cache_tensor& tensor, std::int64_t head, std::int64_t slot,
                        const stored_row& given) {
  const float scale = tensor.scales ? scale_of(given, tensor.dim, format_of(tensor.type).range) : 1.0f;
  if (tensor.scales) kv.scale(tensor, head, slot) = scale;
  void* const stored = kv.row_address(tensor, head, slot);
  std::vector<float> scaled;
  for (std::int64_t d = 0; d < tensor.dim; ++d) {
    scaled.push_back(load_element(given.data, given.type, d) * (1 / scale));
  }
  store_elements(stored, tensor.type, scaled.data(), tensor.dim);
  double squares = 0;
  for (std::int64_t d = 0; d < tensor.dim; ++d) {
    const double value = static_cast<double>(load_element(stored, tensor.type, d)) * static_cast<double>(scale);
    squares += value * value;
  }
  return squares;
}

/// Writes a chunk into the cache; see `append_args`.
inline void append(const append_args& args) {
  const kv_cache& kv = args.kv;
  const std::int64_t Tq = args.k.extents[0];
  for (std::int64_t head = 0; head < kv.heads; ++head) {
    for (std::int64_t t = 0; t < Tq; ++t) {
      const std::int64_t slot = kv.length(head) - Tq + t, row = kv.metadata_row(slot);
      const double squares = store_row(kv, kv.k, head, slot, {args.k.at(t, head), args.k.type});
      if (!kv.values_in_keys) store_row(kv, kv.v, head, slot, {args.v.at(t, head), args.v.type});
      if (kv.positions) kv.positions[head * kv.positions_stride + row] = static_cast<std::int32_t>(args.position + t);
      if (kv.inverse_norms) {
        kv.inverse_norms[head * kv.inverse_norms_stride + row] =
            squares == 0 ? 0.0f : static_cast<float>(1 / std::sqrt(squares));
      }
    }
  }
}

}}}  // namespace skim::v0_2::reference
