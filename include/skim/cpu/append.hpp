// SPDX-License-Identifier: Apache-2.0
/// \file Writing a chunk into the cache on the CPU.
#pragma once

#include <skim/cache.hpp>
#include <skim/cpu/simd/convert.hpp>
#include <skim/executor.hpp>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// Converts a row and returns the sum of squares of the stored values.
SKIM_INLINE float store_row(const void* from, element from_type, void* to, element to_type, std::int64_t n) {
  constexpr std::int64_t piece = 8 * simd::lanes;
  float values[piece];
  simd::floats squares(0.0f);
  float tail = 0;
  for (std::int64_t begin = 0; begin < n; begin += piece) {
    const std::int64_t count = n - begin < piece ? n - begin : piece;
    const char* const source = static_cast<const char*>(from) + begin * element_bytes(from_type);
    char* const target = static_cast<char*>(to) + begin * element_bytes(to_type);
    simd::widen_row(source, from_type, count, values);
    simd::narrow_row(values, count, target, to_type);
    if (to_type != element::f32) simd::widen_row(target, to_type, count, values);
    std::int64_t i = 0;
    for (; i + simd::lanes <= count; i += simd::lanes) {
      const simd::floats x = simd::load(values + i);
      squares = simd::fma(x, x, squares);
    }
    for (; i < count; ++i) tail += values[i] * values[i];
  }
  return simd::sum(squares) + tail;
}

/// 1 / |k| for a sum of squares; 0 for a zero key. Where f32 squares overflow or lose digits, sums again in f64.
SKIM_INLINE float inverse_norm(float squares, const void* row, element type, std::int64_t n) {
  if (squares > 1e-30f && squares < 1e38f) return 1.0f / std::sqrt(squares);
  double exact = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const double x = static_cast<double>(load_element(row, type, d));
    exact += x * x;
  }
  return exact == 0 ? 0.0f : static_cast<float>(1 / std::sqrt(exact));
}

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
template <class Executor>
report append(const append_args& args, const Executor& executor) {
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
}  // namespace v0
}  // namespace skim
