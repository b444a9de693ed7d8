// SPDX-License-Identifier: Apache-2.0
/// \file Writing a chunk's keys and values into the cache: arguments, `check`, `cost`.
#pragma once

#include <skim/attention.hpp>

namespace skim {
inline namespace v0 {

/// Arguments of `append`: converts the chunk to the cache's storage type (to nearest even) and writes it to the last
/// `Tq` slots of `kv`, whose `tokens` (and `lengths`) already count them. In the same pass it records, where the view has
/// them, positions `position .. position + Tq - 1` and the inverse norms of the stored, rounded keys.
struct append_args {
  tensor_view<const void, 3> k;  ///< [Tq, Hk, D], any element type, after RoPE
  tensor_view<const void, 3> v;  ///< [Tq, Hk, Dv], any element type
  kv_view kv;
  std::int64_t position = 0;  ///< of the chunk's first token; read only where the view stores positions
};

/// O(1), follows no pointer.
SKIM_INLINE report check(const append_args& args) {
  using namespace detail;
  if (report r = check_tensor(args.k, {"k.extents[0]", "k.extents[1]", "k.extents[2]", "k.strides[2]", "k.data"}); !r) {
    return r;
  }
  if (report r = check_tensor(args.v, {"v.extents[0]", "v.extents[1]", "v.extents[2]", "v.strides[2]", "v.data"}); !r) {
    return r;
  }
  if (args.k.type == element::none)
    return fault(status::bad_type, "k.type", 0, static_cast<int>(element::f32), "at least");
  if (args.v.type == element::none)
    return fault(status::bad_type, "v.type", 0, static_cast<int>(element::f32), "at least");
  const std::int64_t Tq = args.k.extents[0];
  if (report r = check_kv(args.kv, Tq); !r) return r;
  if (args.k.extents[1] != args.kv.heads)
    return fault(status::bad_extent, "k.extents[1]", args.k.extents[1], args.kv.heads);
  if (args.k.extents[2] != args.kv.k.dim)
    return fault(status::bad_extent, "k.extents[2]", args.k.extents[2], args.kv.k.dim);
  if (args.v.extents[0] != Tq) return fault(status::bad_extent, "v.extents[0]", args.v.extents[0], Tq);
  if (args.v.extents[1] != args.kv.heads)
    return fault(status::bad_extent, "v.extents[1]", args.v.extents[1], args.kv.heads);
  if (args.v.extents[2] != args.kv.v.dim)
    return fault(status::bad_extent, "v.extents[2]", args.v.extents[2], args.kv.v.dim);
  if (args.position < 0 || args.position > largest_index - Tq) {
    return fault(status::bad_value, "position", args.position, largest_index - Tq, "0 to");
  }
  return {};
}

/// Reads the chunk, writes the cache; two flops an element of K where norms are kept.
inline cost_estimate cost(const append_args& args) {
  const double rows = static_cast<double>(args.k.extents[0]) * static_cast<double>(args.kv.heads);
  const double D = static_cast<double>(args.kv.k.dim), Dv = static_cast<double>(args.kv.v.dim);
  const double stored = static_cast<double>(element_bytes(args.kv.k.type));
  return {args.kv.inverse_norms ? 2 * rows * D : 0,
          rows * (D * (static_cast<double>(element_bytes(args.k.type)) + stored) +
                  Dv * (static_cast<double>(element_bytes(args.v.type)) + stored))};
}

}  // namespace v0
}  // namespace skim
