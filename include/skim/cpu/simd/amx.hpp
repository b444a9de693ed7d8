// SPDX-License-Identifier: Apache-2.0
/// \file Matrix tiles of Intel AMX: bf16 pairs, f32 sums.
///
/// A tile is 16 rows of 64 bytes: 16 x 16 sums, or 16 rows of 16 pairs. One instruction multiplies 16 x 32 by 32 x 16.
/// Units compiled without AMX see declarations only, for branches that they discard.
#pragma once

#include <skim/cpu/simd/compat.hpp>

#include <atomic>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace simd {

inline constexpr std::int64_t amx_rows = 16;   ///< of a tile
inline constexpr std::int64_t amx_units = 16;  ///< pairs, or sums, in a tile's row

/// One operand or result of `multiply_amx`: its first element and the elements from one row of it to the next.
template <class T>
struct amx_matrix {
  T* data;
  std::int64_t stride;
};

#if SKIM_CPU_AMX

SKIM_INTRINSICS_BEGIN

/// Eight tiles of full size.
struct alignas(64) amx_shapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// Tile registers of the calling thread for as long as this lives.
class amx_registers {
 public:
  amx_registers() {
    static constexpr amx_shapes shapes;  // a constant: GCC 12 believes that 8 of the 64 bytes are read
    _tile_loadconfig(&shapes);
  }
  amx_registers(const amx_registers&) = delete;
  amx_registers& operator=(const amx_registers&) = delete;
  ~amx_registers() { _tile_release(); }
};

/// sums [16 Rows, 16 Columns] (+)= left [16 Rows, steps] . right [steps, 16 Columns]; steps in whole tiles. Two by two
/// tiles of sums need one load for each multiplication.
template <int Rows, int Columns>
SKIM_INLINE void multiply_amx(amx_matrix<const std::uint32_t> left, amx_matrix<const std::uint32_t> right,
                              amx_matrix<float> sums, std::int64_t steps, bool fresh) {
  static_assert((Rows == 1 || Rows == 2) && (Columns == 1 || Columns == 2), "eight registers hold two by two");
  // GCC 12's tile loads do not say that they read memory: what was written before must not move behind them.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const std::int64_t left_bytes = left.stride * 4, right_bytes = right.stride * 4, sum_bytes = sums.stride * 4;
  float* const lower = sums.data + amx_rows * sums.stride;
  if (fresh) {
    _tile_zero(0);
    if constexpr (Columns == 2) _tile_zero(1);
    if constexpr (Rows == 2) _tile_zero(2);
    if constexpr (Rows == 2 && Columns == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, sums.data, sum_bytes);
    if constexpr (Columns == 2) _tile_loadd(1, sums.data + amx_units, sum_bytes);
    if constexpr (Rows == 2) _tile_loadd(2, lower, sum_bytes);
    if constexpr (Rows == 2 && Columns == 2) _tile_loadd(3, lower + amx_units, sum_bytes);
  }
  const std::uint32_t *upper_left = left.data, *lower_left = left.data + amx_rows * left.stride, *at = right.data;
  for (std::int64_t step = 0; step < steps; step += amx_units) {
    _tile_loadd(4, upper_left, left_bytes);
    _tile_loadd(6, at, right_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Columns == 2) {
      _tile_loadd(7, at + amx_units, right_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (Rows == 2) {
      _tile_loadd(5, lower_left, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (Rows == 2 && Columns == 2) _tile_dpbf16ps(3, 5, 7);
    upper_left += amx_units;
    lower_left += amx_units;
    at += amx_rows * right.stride;
  }
  _tile_stored(0, sums.data, sum_bytes);
  if constexpr (Columns == 2) _tile_stored(1, sums.data + amx_units, sum_bytes);
  if constexpr (Rows == 2) _tile_stored(2, lower, sum_bytes);
  if constexpr (Rows == 2 && Columns == 2) _tile_stored(3, lower + amx_units, sum_bytes);
}

SKIM_INTRINSICS_END

#else

class amx_registers;
template <int Rows, int Columns>
void multiply_amx(amx_matrix<const std::uint32_t> left, amx_matrix<const std::uint32_t> right, amx_matrix<float> sums,
                  std::int64_t steps, bool fresh);

#endif

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::simd
