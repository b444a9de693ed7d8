// SPDX-License-Identifier: Apache-2.0
/// \file Keys in a warp's registers, multiplied by queries in shared memory: K is read once, and nothing of it is written.
#pragma once

#include <skim/cuda/kernel/cache_rows.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Dimensions that four lanes have of a row at a time, of each a quarter that lies together: 16 bytes where D allows it.
SKIM_HD SKIM_INLINE constexpr int dims_at_once(int D) {
  return D % 32 == 0 ? 32 : 16;
}

/// Keys of a warp and how it loads and multiplies them: by `mma.sync`, from memory straight into its registers.
template <class T, int D, int Keys>
class key_rows {
 public:
  static constexpr int dims = dims_at_once(D), chunks = D / dims, parts = Keys / 16;

  /// Of key 8 i + lane / 4 the lane's quarter.
  template <class Slot>
  SKIM_DEVICE void load(const row_addresses& keys, const Slot& slot) {
#pragma unroll
    for (int i = 0; i < 2 * parts; ++i) {
      const char* const row = keys.row(slot(8 * i + static_cast<int>(threadIdx.x) % 32 / 4));
#pragma unroll
      for (int c = 0; c < chunks; ++c) load_piece(rows_[i][c], row + 2 * dims * c);
    }
  }
  /// The same by way of shared memory, where a warp has `bytes` for it: what `copy` was told, once it has landed.
  static constexpr int bytes = Keys * D * 2;
  template <class Slot>
  static SKIM_DEVICE void copy(std::uint32_t to, const row_addresses& keys, const Slot& slot) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 2 * parts; ++i) {
      const char* const row = keys.row(slot(8 * i + lane / 4));
#pragma unroll
      for (int c = 0; c < chunks; ++c) {
        const std::uint32_t own = to + static_cast<std::uint32_t>(((i * chunks + c) * 32 + lane) * (dims / 2));
        if constexpr (dims == 32) {
          copy_16(own, row + 2 * dims * c, true);
        } else {
          copy_8(own, row + 2 * dims * c);
        }
      }
    }
  }
  SKIM_DEVICE void load_copied(const char* from) {
    const auto* const pieces = reinterpret_cast<const row_piece<dims>*>(from);
#pragma unroll
    for (int i = 0; i < 2 * parts; ++i) {
#pragma unroll
      for (int c = 0; c < chunks; ++c) rows_[i][c] = pieces[(i * chunks + c) * 32 + threadIdx.x % 32];
    }
  }
  /// As `mma.sync` and `wgmma` want the first factor, a step of 16 dimensions after another: rows of a lane's interleaved.
  SKIM_DEVICE void as_first_factors(std::uint32_t (&to)[D / 16][4]) const {
    static_assert(parts == 1, "16 rows of a warp");
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
#pragma unroll
      for (int s = 0; s < dims / 16; ++s) {
        auto& own = to[c * (dims / 16) + s];
        own[0] = rows_[0][c].words[2 * s];
        own[1] = rows_[1][c].words[2 * s];
        own[2] = rows_[0][c].words[2 * s + 1];
        own[3] = rows_[1][c].words[2 * s + 1];
      }
    }
  }
  /// Squared length of a key: 8 * quarter + lane / 4 of the warp's, where there are so many. The diagonal of the keys' products
  /// with themselves.
  SKIM_DEVICE float squares() const {
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4;
    float own = 0;
#pragma unroll
    for (int i = 0; i < 2 * parts; ++i) {
      float sums[4] = {};  // keys 8 i to 8 i + 7 are rows 0 to 7, for odd i 8 to 15
#pragma unroll
      for (int c = 0; c < chunks; ++c) {
#pragma unroll
        for (int s = 0; s < dims / 16; ++s) {
          const auto &low = rows_[i / 2 * 2][c].words, &high = rows_[i / 2 * 2 + 1][c].words, &with = rows_[i][c].words;
          const std::uint32_t keys[4] = {low[2 * s], high[2 * s], low[2 * s + 1], high[2 * s + 1]};
          tensor_type<T>::multiply(sums, keys, with[2 * s], with[2 * s + 1]);
        }
      }
      const float mine = group % 2 == 0 ? sums[i % 2 * 2] : sums[i % 2 * 2 + 1];
      const float its = __shfl_sync(all_lanes, mine, 4 * group + group / 2);
      if (lane % 4 == i) own = its;
    }
    return own;
  }
  /// sums [parts][tiles of 8 queries][4] of the queries from tile `first` on.
  template <int Tiles>
  SKIM_DEVICE void multiply(float (&sums)[parts][Tiles][4], const row_piece<dims>* fragments, int tiles,
                            int first) const {
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
#pragma unroll
      for (int j = 0; j < Tiles; ++j) {
        const row_piece<dims> query = fragments[(c * tiles + first + j) * 32 + threadIdx.x % 32];
#pragma unroll
        for (int i = 0; i < parts; ++i) {
#pragma unroll
          for (int s = 0; s < dims / 16; ++s) {
            const std::uint32_t key[4] = {rows_[2 * i][c].words[2 * s], rows_[2 * i + 1][c].words[2 * s],
                                          rows_[2 * i][c].words[2 * s + 1], rows_[2 * i + 1][c].words[2 * s + 1]};
            tensor_type<T>::multiply(sums[i][j], key, query.words[2 * s], query.words[2 * s + 1]);
          }
        }
      }
    }
  }
  /// sums [octets of keys][4] of 16 queries, keys as second factors, whose registers lie together as they were loaded: where
  /// keys meet many queries, none has to move. Queries are [D / 16][32 lanes].
  SKIM_DEVICE void multiply_by(float (&sums)[2 * parts][4], const uint4* fragments) const {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      constexpr int steps = dims / 16;
      const uint4 four = fragments[step * 32 + threadIdx.x % 32];
      const std::uint32_t query[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 2 * parts; ++i) {
        const auto& key = rows_[i][step / steps].words;
        tensor_type<T>::multiply(sums[i], query, key[step % steps * 2], key[step % steps * 2 + 1]);
      }
    }
  }

 private:
  row_piece<dims> rows_[2 * parts][chunks];
};

}}}}  // namespace skim::v0_2::cuda::detail
