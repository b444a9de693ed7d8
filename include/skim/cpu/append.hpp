// SPDX-License-Identifier: Apache-2.0
/// \file Writing a chunk into the cache on the CPU.
#pragma once

#include <skim/append.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/executor.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {
namespace detail {

SKIM_INLINE void append_token(const append_args& args, std::int64_t t, std::int64_t head) {
  const kv_cache& kv = args.kv;
  const std::int64_t slot = kv.length(head) - args.k.extents[0] + t, row = kv.metadata_row(slot);
  const float squares = store_row(kv, kv.k, head, slot, {args.k.at(t, head), args.k.type});
  if (!kv.values_in_keys) store_row(kv, kv.v, head, slot, {args.v.at(t, head), args.v.type});
  if (kv.positions && (head == 0 || kv.positions_stride != 0)) {  // a row that all heads share is written once
    kv.positions[head * kv.positions_stride + row] = static_cast<std::int32_t>(args.position + t);
  }
  if (kv.inverse_norms) {
    kv.inverse_norms[head * kv.inverse_norms_stride + row] = inverse_norm(squares, kv.row(kv.k, head, slot), kv.k.dim);
  }
}

/// `append` of checked arguments.
SKIM_NOINLINE inline void append_chunk(const append_args& args, executor_ref executor) {
  executor.parallel_for(args.k.extents[0], [&](std::int64_t t, unsigned) {
    for (std::int64_t head = 0; head < args.kv.heads; ++head) append_token(args, t, head);
  });
}

}  // namespace detail

/// Writes a chunk to the last `Tq` slots of `args.kv`: see `append_args`. No scratch; one pass over the chunk.
/// A number is stored with one rounding to the cache's type; in a row with a scale, which f32 holds, two more precede it.
/// The inverse norm's relative error is below 2^-24 (4 + D / 8), of a row with a scale 2^-24 (5 + D / 8). Statuses: those of
/// `check`.
inline report append(const append_args& args, executor_ref executor) {
  if (report r = skim::check(args); !r) return r;
  detail::append_chunk(args, executor);
  return {};
}

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
