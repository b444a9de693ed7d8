// SPDX-License-Identifier: Apache-2.0
/// \file Writing a chunk into the cache on the CPU.
#pragma once

#include <skim/append.hpp>
#include <skim/cpu/kernel/rows.hpp>
#include <skim/view.hpp>

namespace skim {
inline namespace v0_2 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

SKIM_INLINE void append_token(const append_args& args, std::int64_t t, std::int64_t head) {
  const kv_view& kv = args.kv;
  const std::int64_t slot = kv.length(head) - args.k.extents[0] + t, row = kv.metadata_row(slot);
  char* const k = static_cast<char*>(kv.k.data) + kv.row_offset(kv.k, head, slot) * element_bytes(kv.k.type);
  char* const v = static_cast<char*>(kv.v.data) + kv.row_offset(kv.v, head, slot) * element_bytes(kv.v.type);
  const float squares = store_row(args.k.at(t, head), args.k.type, k, kv.k.type, kv.k.dim);
  store_row(args.v.at(t, head), args.v.type, v, kv.v.type, kv.v.dim);
  if (kv.positions && (head == 0 || kv.positions_stride != 0)) {  // a row that all heads share is written once
    kv.positions[head * kv.positions_stride + row] = static_cast<std::int32_t>(args.position + t);
  }
  if (kv.inverse_norms) {
    kv.inverse_norms[head * kv.inverse_norms_stride + row] = inverse_norm(squares, k, kv.k.type, kv.k.dim);
  }
}

}  // namespace detail

/// Writes a chunk to the last `Tq` slots of `args.kv`: see `append_args`. No scratch; one pass over the chunk.
/// The inverse norm's relative error is below 2^-24 (4 + D / 8). Statuses: those of `check`.
report append(const append_args& args, executor_ref executor) {
  if (report r = check(args); !r) return r;
  const kv_view& kv = args.kv;
  const std::int64_t Tq = args.k.extents[0];
  executor.parallel_for(Tq, [&](std::int64_t t, unsigned) {
    for (std::int64_t head = 0; head < kv.heads; ++head) detail::append_token(args, t, head);
  });
  return {};
}

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0_2
}  // namespace skim
