// SPDX-License-Identifier: Apache-2.0
/// \file The two ways to multiply a tile (see math/accumulate.hpp), behind one interface: a *step* is what one
/// multiply-add consumes per lane, one f32 or one pair of bf16.
#pragma once

#include <skim/cpu/simd/convert.hpp>
#include <skim/math/accumulate.hpp>

#include <cstring>
#include <type_traits>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

template <class Accumulate>
struct tile_math;

/// One step is one f32.
template <>
struct tile_math<accumulate::widen_fma> {
  using step = float;                              ///< storage of one step
  static constexpr element stored = element::f32;  ///< whose rows are steps
  static constexpr std::int64_t values = 1;        ///< numbers in a step
  static constexpr bool rounds_lanes =
      false;  ///< packing rounds: q.k is scaled then, so that queries of the step's type stay exact
  static constexpr bool amx = false;  ///< multiplied by AMX: 16 steps at a time

  static SKIM_INLINE floats load_steps(const float* p) { return load(p); }
  static SKIM_INLINE float load_step(const float* p) { return *p; }
  static SKIM_INLINE floats multiply_add(floats packed, float factor, floats sum) {
    return fma(packed, floats(factor), sum);
  }

  /// Packs `lanes` rows' values for one step.
  static SKIM_INLINE void pack(float* target, floats even, floats) { store(target, even); }

  /// A row into one lane: step i at target + i * stride.
  static SKIM_INLINE void pack_lane(const float* row, std::int64_t n, float* target, std::int64_t stride) {
    for (std::int64_t d = 0; d < n; ++d) target[d * stride] = row[d];
  }
  /// A row as steps along it: `target [n]`.
  static SKIM_INLINE void round_row(const float* row, std::int64_t n, float* target) { widen(row, n, target); }
  /// Zeroes the value that row `which` of the step contributes.
  static SKIM_INLINE float without(float, std::int64_t) { return 0; }
};

#if SKIM_CPU_DOT_PAIRS
SKIM_INTRINSICS_BEGIN
/// One step is two bf16, the earlier in the low half.
template <>
struct tile_math<accumulate::dot_pairs> {
  using step = std::uint32_t;
  static constexpr element stored = element::bf16;
  static constexpr std::int64_t values = 2;
  static constexpr bool rounds_lanes = true;
  static constexpr bool amx = false;

  static SKIM_INLINE floats load_steps(const std::uint32_t* p) {
    return floats(_mm512_castsi512_ps(_mm512_loadu_si512(p)));
  }
  /// Stored bf16 are read as the steps they are.
  static SKIM_INLINE std::uint32_t load_step(const std::uint32_t* p) {
    std::uint32_t step;
    std::memcpy(&step, p, sizeof step);
    return step;
  }
  static SKIM_INLINE floats multiply_add(floats packed, std::uint32_t factor, floats sum) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(factor));
    return floats(_mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_castps_si512(packed)),
                                   reinterpret_cast<__m512bh>(pair)));
  }

  static SKIM_INLINE __m512i round_to_bf16(floats x) {  // in the upper half of each lane
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
  }
  static SKIM_INLINE void pack(std::uint32_t* target, floats even, floats odd) {
    const __m512i high = _mm512_and_si512(round_to_bf16(odd), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    _mm512_storeu_si512(target, _mm512_or_si512(_mm512_srli_epi32(round_to_bf16(even), 16), high));
  }

  static SKIM_INLINE void pack_lane(const float* row, std::int64_t n, std::uint32_t* target, std::int64_t stride) {
    constexpr std::int64_t together = 4 * lanes;
    bf16 rounded[together + 1];
    for (std::int64_t begin = 0; begin < n; begin += together) {
      const std::int64_t count = n - begin < together ? n - begin : together;
      rounded[count] = bf16{0};  // an odd D ends in half a step
      narrow(row + begin, count, static_cast<bf16*>(rounded));
      for (std::int64_t d = 0; d < count; d += 2) {
        std::memcpy(target + (begin + d) / 2 * stride, rounded + d, sizeof *target);
      }
    }
  }
  static SKIM_INLINE void round_row(const float* row, std::int64_t n, std::uint32_t* target) {
    if (n % 2 != 0) target[n / 2] = 0;
    narrow(row, n, reinterpret_cast<bf16*>(target));
  }
  static SKIM_INLINE void load_row(const bf16* source, std::int64_t n, std::uint32_t* target) {
    if (n % 2 != 0) target[n / 2] = 0;  // an odd D ends in half a step
    std::memcpy(target, source, static_cast<std::size_t>(n) * 2);
  }
  static SKIM_INLINE void load_row_pair(const bf16* low, const bf16* high, std::int64_t n, std::uint32_t* target) {
    std::int64_t d = 0;
    for (; low && high && d + lanes <= n; d += lanes) {
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low + d)));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(high + d)));
      _mm512_storeu_si512(target + d, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
    for (; d < n; ++d) {
      const std::uint32_t even = low ? low[d].bits : 0u, odd = high ? high[d].bits : 0u;
      target[d] = even | odd << 16;
    }
  }
  /// Rows of 8-bit numbers, each rounded after its scale: as `load_row` and `load_row_pair`. Subnormals become zeros.
  template <class Row>
  static SKIM_INLINE void round_row_of(Row source, float scale, std::int64_t n, std::uint32_t* target) {
    std::int64_t d = 0;
    for (; d + 2 * lanes <= n; d += 2 * lanes) {
      const scaled_integers block = integers_of(source + d, scale);
      const __m512bh pairs = _mm512_cvtne2ps_pbh(block.at(lanes), block.at(0));
      _mm512_storeu_si512(target + d / 2, reinterpret_cast<__m512i>(pairs));
    }
    for (; d < n; d += 2) {
      const std::uint32_t even = from_float<bf16>(to_float(source[d]) * scale).bits;
      const std::uint32_t odd = d + 1 < n ? from_float<bf16>(to_float(source[d + 1]) * scale).bits : 0u;
      target[d / 2] = even | odd << 16;
    }
  }
  template <class Row>
  static SKIM_INLINE void round_row_pair_of(Row low, float low_scale, Row high, float high_scale, std::int64_t n,
                                            std::uint32_t* target) {
    std::int64_t d = 0;
    for (; d + 2 * lanes <= n; d += 2 * lanes) {
      const scaled_integers even = integers_of(low + d, low_scale), odd = integers_of(high + d, high_scale);
      for (std::int64_t i = 0; i < 2 * lanes; i += lanes) {
        const __m256i below = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even.at(i)));
        const __m256i above = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd.at(i)));
        _mm512_storeu_si512(target + d + i, _mm512_or_si512(_mm512_cvtepu16_epi32(below),
                                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(above), 16)));
      }
    }
    for (; d < n; ++d) {
      const std::uint32_t even = from_float<bf16>(to_float(low[d]) * low_scale).bits;
      const std::uint32_t odd = from_float<bf16>(to_float(high[d]) * high_scale).bits;
      target[d] = even | odd << 16;
    }
  }
  static SKIM_INLINE std::uint32_t without(std::uint32_t pair, std::int64_t which) {
    return which == 0 ? pair & 0xffff0000u : pair & 0xffffu;
  }
};
SKIM_INTRINSICS_END
#endif

#if SKIM_CPU_AMX
/// The steps of `dot_pairs`, which AMX multiplies.
template <>
struct tile_math<accumulate::amx> : tile_math<accumulate::dot_pairs> {
  static constexpr bool amx = true;
};
#endif

/// Types that pairs are made of, if at least with a rounding: 8-bit numbers times their scales.
SKIM_INLINE constexpr bool becomes_pairs(element type) {
  return type == element::bf16 || has_8_bits(type);
}

/// Calls `body(tile_math<...>{})` with the arithmetic of a call: the one place that decides it. `type` is that of what is
/// stored, `none` where rows of bf16 have scales, or where types meet that cannot both become pairs.
template <class Accumulate, class Body>
SKIM_INLINE auto with_math(const Accumulate& wish, element type, const Body& body) {
  static_cast<void>(wish);
  static_cast<void>(type);
#if SKIM_CPU_AMX
  if constexpr (std::is_same_v<Accumulate, accumulate::amx>) {
    if (wish.granted && becomes_pairs(type)) return body(tile_math<accumulate::amx>{});
  }
#endif
#if SKIM_CPU_DOT_PAIRS
  if constexpr (!std::is_same_v<Accumulate, accumulate::widen_fma>) {
    if (becomes_pairs(type)) return body(tile_math<accumulate::dot_pairs>{});
  }
#endif
  return body(tile_math<accumulate::widen_fma>{});
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
