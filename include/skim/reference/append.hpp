// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/append.hpp>
#include <skim/view.hpp>

#include <cmath>

namespace skim {
inline namespace v0_2 {
namespace reference {

/// Writes a chunk into the cache (see `append_args`), element by element; the norm is summed in double.
inline void append(const append_args& args) {
  const kv_view& kv = args.kv;
  const std::int64_t Tq = args.k.extents[0];
  for (std::int64_t head = 0; head < kv.heads; ++head) {
    for (std::int64_t t = 0; t < Tq; ++t) {
      const std::int64_t slot = kv.length(head) - Tq + t;
      const std::int64_t k = kv.row_offset(kv.k, head, slot), v = kv.row_offset(kv.v, head, slot);
      double squares = 0;
      for (std::int64_t d = 0; d < kv.k.dim; ++d) {
        store_element(kv.k.data, kv.k.type, k + d, load_element(args.k.data, args.k.type, args.k.offset(t, head, d)));
        const double stored = static_cast<double>(load_element(kv.k.data, kv.k.type, k + d));
        squares += stored * stored;
      }
      for (std::int64_t d = 0; d < kv.v.dim; ++d) {
        store_element(kv.v.data, kv.v.type, v + d, load_element(args.v.data, args.v.type, args.v.offset(t, head, d)));
      }
      const std::int64_t row = kv.metadata_row(slot);
      if (kv.positions) kv.positions[head * kv.positions_stride + row] = static_cast<std::int32_t>(args.position + t);
      if (kv.inverse_norms) {
        kv.inverse_norms[head * kv.inverse_norms_stride + row] =
            squares == 0 ? 0.0f : static_cast<float>(1 / std::sqrt(squares));
      }
    }
  }
}

}  // namespace reference
}  // namespace v0_2
}  // namespace skim
