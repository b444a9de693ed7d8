// SPDX-License-Identifier: Apache-2.0
/// \file Step 1 of `query_choice::needed` by tensor cores: which rows look at the past.
#pragma once

#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// A product does not care in which order dimensions are paired: 16 bytes of a row that lie together, of a lane each, serve
/// as two steps of 16 dimensions, so that rows come from memory as matrix instructions want them.
///
/// sums [16, 8] += rows [16, 32] keys [8, 32]^T: `low` and `high` of rows lane / 4 and lane / 4 + 8, `key` of key lane / 4.
template <class T>
SKIM_DEVICE void multiply_32(float (&sums)[4], const uint4& low, const uint4& high, const uint4& key) {
  const std::uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
  tensor_type<T>::multiply(sums, first, key.x, key.y);
  tensor_type<T>::multiply(sums, second, key.z, key.w);
}

/// Whether none of two numbers is infinite or NaN.
template <class T>
SKIM_DEVICE bool both_finite(std::uint32_t both) {
  constexpr std::uint32_t exponent = std::is_same_v<T, bf16> ? 0x7f80u : 0x7c00u;
  return (both & exponent) != exponent && (both >> 16 & exponent) != exponent;
}
template <class T>
SKIM_DEVICE bool all_finite(const uint4& of) {
  return both_finite<T>(of.x) && both_finite<T>(of.y) && both_finite<T>(of.z) && both_finite<T>(of.w);
}

/// ln sum exp, in base 2, of logits that lanes met: `largest` is finite or stands for nothing.
struct met_logits {
  float largest = -1e38f, sum = 0;

  SKIM_DEVICE void join(const met_logits& other) {
    const float most = fmaxf(largest, other.largest);
    sum = sum * power_of_2(largest - most) + other.sum * power_of_2(other.largest - most);
    largest = most;
  }
  SKIM_DEVICE float over_all() const { return sum > 0 ? largest + log2f(sum) : minus_infinity(); }
};

/// Four tiles of 16 rows at a time, whose keys four warps each share.
struct tensor_needs {
  static constexpr int tile_rows = 16, tiles = 4, rows = tiles * tile_rows, splits = 4, threads = 32 * splits * tiles;
  static constexpr int at_once = 3;  // of a warp, tiles of 8 keys
  /// Blocks in all: enough processors stay free for the next kernel, whose first steps need nothing of this one.
  static constexpr std::int64_t wanted = 96;
};

/// Step 1: need of each row; -1 of rows with an infinity or NaN. Grid: any number, whose blocks take tiles in turn; lists.
template <class T, int D>
__global__ void __launch_bounds__(tensor_needs::threads, 1) find_needs_by_tensor_cores(const quoka_call call) {
  using tile = tensor_needs;
  constexpr int chunks = D / 32, at_once = tile::at_once;
  __shared__ met_logits shared[tile::rows][tile::splits][2];
  __shared__ bool finite_row[tile::rows];
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (!block.picks(call)) return;
  const int lane = threadIdx.x % 32, split = threadIdx.x / 32 % tile::splits, eighth = lane / 4, quarter = lane % 4;
  const int tile_row = threadIdx.x / 32 / tile::splits * tile::tile_rows + eighth;
  const T* const q = reinterpret_cast<const T*>(call.q);
  const row_addresses keys(call.kv, call.kv.k, block.head, 16 * quarter, block.base);
  const float to_log2 = call.scale * log2_e;
  const int step = max(1, block.count / call.samples), sampled = block.count > 4 ? (block.count - 5) / step + 1 : 0;
  // Tiles of the sample, then of the block's own keys.
  const int sampled_tiles = (sampled + 7) / 8, all = sampled_tiles + (block.Tq + 7) / 8;
#pragma unroll 1
  for (int first_row = blockIdx.x * tile::rows; first_row < block.rows; first_row += gridDim.x * tile::rows) {
    uint4 rows[2][chunks];
    int tokens[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = min(first_row + tile_row + 8 * half, block.rows - 1);
      const T* const row = q + block.query_offset(call, own) + 8 * quarter;
#pragma unroll
      for (int c = 0; c < chunks; ++c) rows[half][c] = *reinterpret_cast<const uint4*>(row + 32 * c);
      tokens[half] = own % block.Tq;
    }
    met_logits met[2][2];  // [sample, own][half]
#pragma unroll 1
    for (int first = split; first < all; first += tile::splits * at_once) {
      uint4 key[at_once][chunks];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int j = min(first + tile::splits * i, all - 1);
        const int slot = j < sampled_tiles ? block.first + 4 + min(8 * j + eighth, sampled - 1) * step
                                           : block.past + min(8 * (j - sampled_tiles) + eighth, block.Tq - 1);
        const char* const row = keys.row(slot);
#pragma unroll
        for (int c = 0; c < chunks; ++c) key[i][c] = *reinterpret_cast<const uint4*>(row + 64 * c);
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int j = first + tile::splits * i;
        if (j >= all) break;
        float products[4] = {};
#pragma unroll
        for (int c = 0; c < chunks; ++c) multiply_32<T>(products, rows[0][c], rows[1][c], key[i][c]);
        const bool of_sample = j < sampled_tiles;
        const int first_key = 8 * (of_sample ? j : j - sampled_tiles), count = of_sample ? sampled : block.Tq;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          met_logits now = of_sample ? met[0][half] : met[1][half];
          float logits[2], most = now.largest;
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int own = first_key + 2 * quarter + e;
            const float logit = products[2 * half + e] * to_log2;
            const bool sees = of_sample || (own <= tokens[half] + call.right && own >= tokens[half] - call.left);
            logits[e] = own < count && isfinite(logit) && sees ? logit : minus_infinity();
            most = fmaxf(most, logits[e]);
          }
          now.sum =
              now.sum * power_of_2(now.largest - most) + (power_of_2(logits[0] - most) + power_of_2(logits[1] - most));
          now.largest = most;
          if (of_sample) {
            met[0][half] = now;
          } else {
            met[1][half] = now;
          }
        }
      }
    }
    __syncthreads();  // all has been read of the tiles before
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bool finite = true;
#pragma unroll
      for (int c = 0; c < chunks; ++c) finite &= all_finite<T>(rows[half][c]);
      const unsigned lanes = __ballot_sync(all_lanes, finite);
#pragma unroll
      for (int kind = 0; kind < 2; ++kind) {
        met_logits& own = met[kind][half];
#pragma unroll
        for (int other = 1; other < 4; other *= 2) {
          own.join({__shfl_xor_sync(all_lanes, own.largest, other), __shfl_xor_sync(all_lanes, own.sum, other)});
        }
        if (quarter == 0) shared[tile_row + 8 * half][split][kind] = own;
      }
      if (quarter == 0 && split == 0) finite_row[tile_row + 8 * half] = (lanes >> lane & 15u) == 15u;
    }
    __syncthreads();
    const int row = first_row + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= tile::rows || row >= block.rows) continue;
    met_logits past_sum, own_sum;
#pragma unroll
    for (int i = 0; i < tile::splits; ++i) {
      past_sum.join(shared[threadIdx.x][i][0]);
      own_sum.join(shared[threadIdx.x][i][1]);
    }
    const float past = past_sum.over_all(), here = own_sum.over_all();
    float need = 1;
    if (past != minus_infinity() && here != minus_infinity()) {
      need = 1 / (1 + exp2f(here - past - log2f(static_cast<float>(block.count) / static_cast<float>(sampled))));
    }
    call.needs[static_cast<std::int64_t>(block.list) * call.rows + row] = finite_row[threadIdx.x] ? need : -1;
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
