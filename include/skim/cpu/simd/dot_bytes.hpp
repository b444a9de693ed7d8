// SPDX-License-Identifier: Apache-2.0
/// \file Products of 8-bit integers, four at a time (AVX512_VNNI `vpdpbusd`), in blocks of 32 that have scales: how rows of a
/// cache meet rows in lanes. In place of a `tile_math` where both have 8 bits; a *step* is four integers.
#pragma once

#include <skim/cpu/simd/convert.hpp>

#include <cstring>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

#if SKIM_CPU_DOT_BYTES
SKIM_INTRINSICS_BEGIN
/// The instruction takes one factor without a sign: 128 is added to a cache's integers, and 128 times the sum of a lane's is
/// where a block's sum begins, below zero.
struct dot_bytes {
  using step = std::uint32_t;
  static constexpr element stored = element::none;  // no stored row is steps
  static constexpr std::int64_t values = 4;
  static constexpr int block_steps = 8;
  static constexpr std::int64_t block_values = 32;

  static SKIM_INLINE std::int64_t blocks_of(std::int64_t D) { return (D + block_values - 1) / block_values; }
  /// Of a lane: integers, scales, where sums begin.
  static SKIM_INLINE std::int64_t steps_in_lanes(std::int64_t D) { return blocks_of(D) * (block_steps + 2); }

  static SKIM_INLINE ints load_steps(const step* p) { return ints(_mm512_loadu_si512(p)); }
  /// Four integers of a cache's row, in all lanes.
  static SKIM_INLINE ints broadcast(const char* four) {
    std::int32_t together;
    std::memcpy(&together, four, sizeof together);
    return ints(_mm512_xor_si512(_mm512_set1_epi32(together), _mm512_set1_epi8(-128)));
  }
  static SKIM_INLINE ints multiply_add(ints lane, ints key, ints sum) {
    return ints(_mm512_dpbusd_epi32(sum, key, lane));
  }

  /// A row that is rounded to blocks already (see `round_to_blocks`), into one lane: entry i at target + i * stride.
  static SKIM_INLINE void pack_lane(const float* row, std::int64_t n, step* target, std::int64_t stride) {
    const std::int64_t blocks = blocks_of(n);
    for (std::int64_t block = 0; block < blocks; ++block) {
      float numbers[block_values] = {};
      std::int8_t integers[block_values];
      const std::int64_t begin = block * block_values, count = n - begin < block_values ? n - begin : block_values;
      std::memcpy(numbers, row + begin, static_cast<std::size_t>(count) * sizeof(float));
      floats largest(0.0f), total(0.0f);
      for (std::int64_t i = 0; i < block_values; i += lanes) {
        largest = larger(xsimd::abs(load(static_cast<const float*>(numbers) + i)), largest);
      }
      const float scale = skim::detail::scale_of_query_block(max_lane(largest)), factor = scale > 0 ? 1 / scale : 0.0f;
      for (std::int64_t i = 0; i < block_values; i += lanes) {
        const floats number =
            xsimd::to_float(round_to_ints(load(static_cast<const float*>(numbers) + i) * floats(factor)));
        store(static_cast<std::int8_t*>(integers) + i, number);
        total = total + number;
      }
      for (std::int64_t i = 0; i < block_steps; ++i) {
        std::memcpy(target + (block * block_steps + i) * stride, integers + 4 * i, sizeof(step));
      }
      const std::int32_t offset = -128 * static_cast<std::int32_t>(sum(total));
      std::memcpy(target + (blocks * block_steps + block) * stride, &scale, sizeof(step));
      std::memcpy(target + (blocks * (block_steps + 1) + block) * stride, &offset, sizeof(step));
    }
  }

  /// target [count] = the scales of a row's blocks; NaN for an infinity, which times 0 is among its numbers.
  static SKIM_INLINE void load_scales(const q8_0* blocks, float scale, std::int64_t count, float* target) {
    std::int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
      std::uint64_t halves = 0;
      for (std::int64_t j = 3; j >= 0; --j) halves = halves << 16 | blocks[i + j].scale.bits;
      const __m128i four = _mm_cvtsi64_si128(static_cast<long long>(halves));
      const __m128 own = _mm_mul_ps(_mm_cvtph_ps(four), _mm_set1_ps(scale));
      _mm_storeu_ps(target + i, _mm_fmadd_ps(own, _mm_setzero_ps(), own));
    }
    for (; i < count; ++i) load_scales(to_float(blocks[i].scale) * scale, 1, target + i);
  }
  static SKIM_INLINE void load_scales(float scale, std::int64_t count, float* target) {
    for (std::int64_t i = 0; i < count; ++i) target[i] = scale + scale * 0;
  }
};
SKIM_INTRINSICS_END
#endif

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
