// SPDX-License-Identifier: Apache-2.0
/// \file Moments of queries' products with a sample of keys, on a GPU, by tensor cores.
#pragma once

#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Eight warps of so many keys at a time, all queries at once.
template <int D>
struct tensor_scores {
  static constexpr int keys = D <= 128 ? 32 : 16, threads = 256, warps = threads / 32, tiles = 4;
  /// Of moments four warps have 16 keys each at a time and 32 queries, the others the next 32.
  static constexpr int samples = 64, most_pieces = 16;
  /// Blocks of rows whose queries meet a key while it is there.
  static constexpr int most_lists = 4;

  /// For so many queries of `quoka_call::whole`.
  static std::size_t bytes(std::int64_t queries, std::int64_t lists = 1) {
    return static_cast<std::size_t>(lists * queries * (2 * D + static_cast<std::int64_t>(sizeof(float2))));
  }
  /// Samples of one piece, of so many: by a block's own alone, so that its bits are its own.
  static SKIM_HD int samples_of_piece(int all) {
    const int turns = (all + samples * most_pieces - 1) / (samples * most_pieces);
    return (turns > 1 ? turns : 1) * samples;
  }
  /// Turns of a piece of so many samples whose keys are on their way before there are queries, as far as two blocks share a
  /// processor.
  static SKIM_HD int turns_ahead(int queries, int piece) {
    const int room = (static_cast<int>(most_shared_bytes) / (4 * D) - queries) / samples, turns = piece / samples;
    return room < 0 ? 0 : turns < room ? turns : room;
  }
  static std::size_t moment_bytes(int queries, int all) {
    return static_cast<std::size_t>(2 * D * (queries + turns_ahead(queries, samples_of_piece(all)) * samples));
  }
};

/// Starts to copy a list's queries to shared memory, 16 bytes at a time. By `threads` threads, of which this one is `thread`.
template <int D>
SKIM_DEVICE void copy_fragments(const quoka_call& call, int list, char* to, int thread, int threads) {
  const int bytes = call.whole * D * 2;
  const char* const from = call.fragments + static_cast<std::int64_t>(list) * bytes;
#pragma unroll 4
  for (int at = thread * 16; at < bytes; at += threads * 16) {
    copy_16(shared_address(to + at), from + at, true);
  }
  end_copies();
}

/// As `find_moments`. Each piece is of whole turns of all warps. Grid: pieces, lists.
template <class T, int D>
__global__ void __launch_bounds__(tensor_scores<D>::threads, D <= 128 ? 2 : 1)
    find_moments_by_tensor_cores(const quoka_call call) {
  using tile = tensor_scores<D>;
  using rows = key_rows<T, D, 16>;
  constexpr int columns = 2 * tile::tiles, group = 8 * tile::tiles, key_warps = tile::samples / 16;
  extern __shared__ __align__(16) char shared[];
  __shared__ product_moments found[key_warps][2 * group];
  let_next_kernel_start();
  const quoka_block block(call, blockIdx.y);
  const int all = block.moment_count(), piece = tile::samples_of_piece(all), begin = blockIdx.x * piece;
  if (block.reads_all || begin >= all) return await_kernel_before();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % key_warps, half_of_block = threadIdx.x / 32 / key_warps;
  const int quarter = lane % 4, end = min(begin + piece, all);
  const row_addresses keys(call.kv, call.kv.k, block.head, rows::dims / 2 * quarter, block.base);
  const int queries = call.whole, n = block.queries(call),
            ahead = min(tile::turns_ahead(queries, piece), (end - begin + tile::samples - 1) / tile::samples);
  char* const copied = shared + queries * D * 2;
  const auto slots_of = [&](int first) {
    return [&, first](int i) { return block.moment_slot(min(first + 16 * warp + i, all - 1)); };
  };
  const auto place = [&](int turn) { return (turn * key_warps + warp) * rows::bytes; };
  for (int turn = half_of_block; turn < ahead; turn += 2) {
    rows::copy(shared_address(copied + place(turn)), keys, slots_of(begin + turn * tile::samples));
  }
  await_kernel_before();
  copy_fragments<D>(call, block.list, shared, threadIdx.x, tile::threads);
  await_copies<0>();
  __syncthreads();
  rows own;
  for (int first_query = 0; first_query < queries; first_query += 2 * group) {
    const int own_query = first_query + half_of_block * group;
    float shift[columns], count[columns] = {}, sum[columns] = {}, squares[columns] = {};
    for (int first = begin; own_query < queries && first < end; first += tile::samples) {
      const int turn = (first - begin) / tile::samples;
      if (turn < ahead) {
        own.load_copied(copied + place(turn));
      } else {
        own.load(keys, slots_of(first));
      }
      float products[1][tile::tiles][4] = {};
      own.multiply(products, reinterpret_cast<const row_piece<rows::dims>*>(shared), queries / 8, own_query / 8);
#pragma unroll
      for (int i = 0; i < columns; ++i) {
        if (first == begin) {  // squares of what is near 0 cancel least
          shift[i] = __shfl_sync(all_lanes, products[0][i / 2][i % 2], quarter);
          if (!isfinite(shift[i])) shift[i] = 0;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float apart = products[0][i / 2][2 * half + i % 2] - shift[i];
          const bool valid = first + 16 * warp + 8 * half + lane / 4 < all && isfinite(apart);
          count[i] += valid ? 1 : 0;
          sum[i] += valid ? apart : 0;
          squares[i] += valid ? apart * apart : 0;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < columns; ++i) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        count[i] += __shfl_xor_sync(all_lanes, count[i], step);
        sum[i] += __shfl_xor_sync(all_lanes, sum[i], step);
        squares[i] += __shfl_xor_sync(all_lanes, squares[i], step);
      }
      if (lane >= 4 || own_query >= queries) continue;
      product_moments& to = found[warp][half_of_block * group + i / 2 * 8 + 2 * quarter + i % 2];
      const float mean = count[i] > 0 ? sum[i] / count[i] : 0;
      to.count = count[i];
      to.mean = shift[i] + mean;
      to.spread = fmaxf(squares[i] - sum[i] * mean, 0);
    }
    __syncthreads();
    const int query = first_query + static_cast<int>(threadIdx.x);
    if (threadIdx.x < 2 * group && query < n) {
      product_moments of_piece;
#pragma unroll
      for (int i = 0; i < key_warps; ++i) of_piece.join(found[i][threadIdx.x]);
      call.moments[(static_cast<std::int64_t>(block.list) * call.pieces + blockIdx.x) * call.n + query] = of_piece;
    }
    __syncthreads();
  }
}

/// Factor and offset of each query of a list, in `factors`, from the moments of its pieces. Says whether some query of the
/// thread's scores. By `threads` threads, whole warps, of which this one is `thread`.
template <int D>
SKIM_DEVICE bool merge_moments(const quoka_call& call, const quoka_block& block, float2* factors, int thread,
                               int threads) {
  using tile = tensor_scores<D>;
  const int piece = tile::samples_of_piece(block.moment_count()), pieces = (block.moment_count() + piece - 1) / piece;
  const int queries = call.whole, n = block.queries(call), quarter = thread % 4;
  bool some = false;
#pragma unroll 1
  for (int begin = 0; begin < queries; begin += threads / 4) {  // four threads for a query
    const int query = begin + thread / 4;
    product_moments part[tile::most_pieces / 4], all;
#pragma unroll
    for (int i = 0; i < tile::most_pieces / 4; ++i) {
      const std::int64_t own = static_cast<std::int64_t>(block.list) * call.pieces + min(4 * i + quarter, pieces - 1);
      part[i] = call.moments[own * call.n + min(query, n - 1)];
    }
#pragma unroll
    for (int i = 0; i < tile::most_pieces / 4; ++i) {
      if (4 * i + quarter < pieces) all.join(part[i]);
    }
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      product_moments its;
      its.count = __shfl_xor_sync(all_lanes, all.count, other);
      its.mean = __shfl_xor_sync(all_lanes, all.mean, other);
      its.spread = __shfl_xor_sync(all_lanes, all.spread, other);
      all.join(its);
    }
    if (quarter != 0 || query >= queries) continue;
    float2 own = make_float2(0, minus_infinity());
    if (query < n) some |= all.standardise(own.x, own.y);
    factors[query] = own;
  }
  return some;
}

}}}}  // namespace skim::v0_2::cuda::detail
