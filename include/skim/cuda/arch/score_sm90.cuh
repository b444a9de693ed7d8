// SPDX-License-Identifier: Apache-2.0
/// \file Scores of keys on Hopper: as `score_by_tensor_cores`, where 64 queries or a multiple meet keys of 64 or 128
/// dimensions.
#pragma once

#include <skim/cuda/arch/wgmma.cuh>
#include <skim/cuda/selector/quoka_score.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Warpgroups of 64 keys at a time, in registers as they come from memory; 64 queries at once from shared memory, rows in
/// panels of 64 numbers whose order is that in which a lane's keys lie.
template <int D>
struct warpgroup_scores {
  static constexpr int threads = 384, keys = 64, warps = threads / 32, queries = 64;
  static constexpr int list_bytes = queries * D * 2;

  static bool takes(std::int64_t whole) { return whole % queries == 0; }
  static std::size_t bytes(std::int64_t whole, std::int64_t lists = 1) {
    return static_cast<std::size_t>(1024 + lists * whole * (2 * D + static_cast<std::int64_t>(sizeof(float2))));
  }
};

#if SKIM_CUDA_SM90

/// A list's queries, from the fragments of `mma.sync` to the rows of `wgmma`: of the 8 numbers of a quarter of 32 dimensions
/// each pair is a word of one of two steps of 16, whose first half has the first pairs of all quarters.
template <int D>
SKIM_DEVICE void spread_fragments(const quoka_call& call, int list, char* to, int thread, int threads) {
  using tile = warpgroup_scores<D>;
  const uint4* const from =
      reinterpret_cast<const uint4*>(call.fragments) + static_cast<std::int64_t>(list) * call.whole * D / 8;
  const int queries = call.whole;
#pragma unroll 6
  for (int at = thread; at < queries * D / 8; at += threads) {
    const uint4 four = from[at];
    const std::uint32_t words[4] = {four.x, four.y, four.z, four.w};
    const int quarter = at % 4, query = at / 32 % (queries / 8) * 8 + at / 4 % 8, chunk = at / (4 * queries);
    char* const row = to + query / tile::queries * tile::list_bytes + query % tile::queries * 128;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int dim_step = 2 * chunk + i / 2, piece = dim_step % 4 * 2 + i % 2;
      *reinterpret_cast<std::uint32_t*>(row + dim_step / 4 * (tile::queries * 128) + ((piece ^ query % 8) << 4) +
                                        4 * quarter) = words[i];
    }
  }
}

#endif  // SKIM_CUDA_SM90

/// Of a warp's 16 keys the largest scores of `Lists` lists, each over four lanes: lane `quarter` gets those of list `quarter`,
/// every lane those of a single one.
template <int Lists>
SKIM_DEVICE void largest_of_quarters(float (&most)[Lists][2]) {
  static_assert(Lists == 1 || Lists == 4, "a list for each lane, or one");
  const bool odd = (threadIdx.x & 1u) != 0, upper = (threadIdx.x & 2u) != 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (Lists == 1) {
      most[0][i] = fmaxf(most[0][i], __shfl_xor_sync(all_lanes, most[0][i], 1));
      most[0][i] = fmaxf(most[0][i], __shfl_xor_sync(all_lanes, most[0][i], 2));
    } else {
      float two[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float its = __shfl_xor_sync(all_lanes, odd ? most[2 * j][i] : most[2 * j + 1][i], 1);
        two[j] = fmaxf(odd ? most[2 * j + 1][i] : most[2 * j][i], its);
      }
      const float its = __shfl_xor_sync(all_lanes, upper ? two[0] : two[1], 2);
      most[0][i] = fmaxf(upper ? two[1] : two[0], its);
    }
  }
}

/// For at most `Lists` blocks of rows. Grid: pieces of keys, KV heads times groups of `together` blocks of rows.
template <class T, int D, int Lists>
__global__ void __launch_bounds__(warpgroup_scores<D>::threads, 1)
    score_by_warpgroups(const quoka_call call, int together) {
#if SKIM_CUDA_SM90
  using tile = warpgroup_scores<D>;
  using warpgroup = warpgroup_type<T>;
  using rows = key_rows<T, D, 16>;
  extern __shared__ __align__(128) char raw[];
  __shared__ list_ends ends;
  const std::uint32_t base = (shared_address(raw) + 1023) / 1024 * 1024;
  char* const shared = raw + (base - shared_address(raw));
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, quarter = lane % 4, queries = call.whole;
  const scored_lists lists(call, blockIdx.y, together);
  float2* const factors = reinterpret_cast<float2*>(shared + lists.count * queries * D * 2);  // and offsets
  const int end = lists.at(call, lists.count - 1).past;                                       // the longest
  const row_addresses addresses(call.kv, call.kv.k, lists.head, 16 * quarter, lists.at(call, 0).base);
  const int step = static_cast<int>(gridDim.x) * tile::warps * 16;
  int first = (static_cast<int>(blockIdx.x) * tile::warps + static_cast<int>(threadIdx.x) / 32) * 16 +
              lists.at(call, 0).first / tile::keys * tile::keys;
  const int turns =
      max(0, (end - lists.at(call, 0).first / tile::keys * tile::keys -
              (static_cast<int>(blockIdx.x) * tile::warps + static_cast<int>(threadIdx.x) / 128 * 4) * 16 + step - 1) /
                 step);  // the same in a warpgroup
  rows next;
  const auto load = [&](int from) { next.load(addresses, [&](int i) { return max(min(from + i, end - 1), 0); }); };
  if (end > 0) load(first);
  await_kernel_before();
  prepare_lists<D, false>(call, lists, factors, ends, [&](int i, const quoka_block& block, int part, int parts) {
    spread_fragments<D>(call, block.list, shared + i * queries * D * 2, part, parts);
    show_copies();
  });

  const int mine = Lists == 1 ? 0 : quarter, own_end = mine < lists.count ? ends.end[mine] : 0;
  const bool scores = own_end > 0 && ends.scores[mine];
  float* const to = raw_scores(call, lists.list(call, min(mine, lists.count - 1)));
  const std::uint64_t query_rows = swizzled(base, 16, 1024);
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn, first += step) {
    std::uint32_t keys[D / 16][4];
    next.as_first_factors(keys);
    load(first + step);
    float most[Lists][2];
#pragma unroll
    for (int at = 0; at < Lists; ++at) {
      most[at][0] = most[at][1] = minus_infinity();
      if (at >= lists.count) continue;
#pragma unroll 1
      for (int begin = 0; begin < queries; begin += tile::queries) {
        float sums[32];
        const std::uint64_t its_rows =
            query_rows + static_cast<std::uint32_t>((at * queries + begin) / tile::queries * (tile::list_bytes / 16));
        begin_products();
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
          warpgroup::multiply(sums, keys[d], its_rows + (d / 4 * (tile::queries * 128) + d % 4 * 32) / 16, d);
        }
        end_products();
        float4 own[8];  // while products are made
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          own[j] = *reinterpret_cast<const float4*>(factors + at * queries + begin + 2 * quarter + 8 * j);
        }
        await_products<0>();
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {  // what is not a number loses
            most[at][i] = fmaxf(most[at][i], fmaxf(fmaf(sums[4 * j + 2 * i], own[j].x, own[j].y),
                                                   fmaf(sums[4 * j + 2 * i + 1], own[j].z, own[j].w)));
          }
        }
      }
    }
    largest_of_quarters<Lists>(most);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int slot = first + 8 * i + lane / 4;
      if ((Lists == 4 || quarter == i) && slot < own_end) {
        to[slot] = raw_score(scores ? most[0][i] : newest_first(own_end, slot));
      }
    }
  }
#endif
}

}}}}  // namespace skim::v0_2::cuda::detail
