// SPDX-License-Identifier: Apache-2.0
/// \file Writing a chunk's keys and values into the cache: arguments, `check`, `cost`.
#pragma once

#include <skim/check_kv.hpp>

namespace skim { inline namespace v0_2 {

/// Arguments of `append`: converts the chunk to the cache's storage types (to nearest even) and writes it to the last
/// `Tq` slots of `kv`, whose `tokens` (and `lengths`) already count them. In the same pass it records, where the view has
/// them, positions `position .. position + Tq - 1` and the inverse norms of the stored, rounded keys (0 of a zero key; infinity where |k| is
/// below 2^-128). Where the view has
/// scales, a row is divided by its largest number's share of what its type holds, and the scale is written.
struct append_args {
  tensor_view<const void, 3> k;  ///< [Tq, Hk, D], any element type, after RoPE
  tensor_view<const void, 3> v;  ///< [Tq, Hk, Dv], any element type; not read where the cache has values inside keys
  kv_cache kv;
  std::int64_t position = 0;  ///< of the chunk's first token; read only where the view stores positions
};

/// O(1), follows no pointer.
SKIM_LOCAL constexpr report check(const append_args& args, pointers given = pointers::required) {
  using namespace detail;
  if (report r = check_tensor(args.k, "k", given); !r) return r;
  if (report r = check_type(args.k.type, "k"); !r) return r;
  const std::int64_t Tq = args.k.extents[0];
  const bool reads_v = !args.kv.values_in_keys;
  if (reads_v) {
    if (report r = check_tensor(args.v, "v", given); !r) return r;
    if (report r = check_type(args.v.type, "v"); !r) return r;
  }
  if (report r = check_kv(args.kv, Tq, given); !r) return r;
  if (report r = check_extent(args.k, 1, args.kv.heads, "k"); !r) return r;
  if (report r = check_extent(args.k, 2, args.kv.k.dim, "k"); !r) return r;
  if (reads_v) {
    if (report r = check_extent(args.v, 0, Tq, "v"); !r) return r;
    if (report r = check_extent(args.v, 1, args.kv.heads, "v"); !r) return r;
    if (report r = check_extent(args.v, 2, args.kv.v.dim, "v"); !r) return r;
  }
  if (report r = check_range("position", args.position, 0, largest_index - Tq, status::bad_value); !r) return r;
  return check_apart(args.kv);
}

/// Reads what `check` may not: block table and lengths. Host memory only. Positions are not looked at: the chunk's own are
/// still to be written.
SKIM_LOCAL report check_indices(const append_args& args) {
  if (report r = check(args); !r) return r;
  for (std::int64_t head = 1; args.kv.positions && args.kv.positions_stride == 0 && head < args.kv.heads; ++head) {
    if (args.kv.length(head) != args.kv.length(0)) {  // one row of positions says the same for all
      return fault(status::bad_index, "kv.lengths[h] (with one row of positions)", args.kv.length(head),
                   args.kv.length(0));
    }
  }
  kv_view cache = args.kv;
  cache.positions = nullptr;
  return detail::check_kv_indices(cache, args.k.extents[0]);
}

/// Reads the chunk, writes the cache; two flops an element of K where norms are kept.
SKIM_LOCAL cost_estimate cost(const append_args& args) {
  const double rows = static_cast<double>(args.k.extents[0]) * static_cast<double>(args.kv.heads);
  const auto bytes = [](element from, element to, std::int64_t dim) {
    return static_cast<double>(bytes_of(from, dim) + bytes_of(to, dim));
  };
  const double k = bytes(args.k.type, args.kv.k.type, args.kv.k.dim);
  const double v = args.kv.values_in_keys ? 0 : bytes(args.v.type, args.kv.v.type, args.kv.v.dim);
  return {args.kv.inverse_norms ? 2 * rows * static_cast<double>(args.kv.k.dim) : 0, rows * (k + v)};
}

}}  // namespace skim::v0_2
