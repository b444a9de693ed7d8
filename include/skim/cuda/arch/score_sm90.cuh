// SPDX-License-Identifier: Apache-2.0
/// \file Scores of keys on Hopper: as `score_by_tensor_cores`, where 64 queries or a multiple meet keys of 64 or 128 dimensions.
#pragma once

#include <skim/cuda/arch/wgmma.cuh>
#include <skim/cuda/selector/quoka_score.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Warpgroups of 64 keys at a time, in registers as they come from memory; 64 queries at once from shared memory, rows in
/// panels of 64 numbers whose order is that in which a lane's keys lie.
template <int D>
struct warpgroup_scores {
  static constexpr int threads = 384, keys = 64, warps = threads / 32, queries = 64;
  static constexpr int panels = D / 64, list_bytes = queries * D * 2;

  static bool takes(std::int64_t whole) { return (D == 64 || D == 128) && whole % queries == 0; }
  static std::size_t bytes(std::int64_t whole, std::int64_t lists = 1) {
    return static_cast<std::size_t>(1024 + lists * whole * (2 * D + static_cast<std::int64_t>(sizeof(float2))));
  }
};

#if SKIM_CUDA_SM90

/// A list's queries, from the fragments of `mma.sync` to the rows of `wgmma`: of the 8 numbers of a quarter of 32 dimensions
/// each pair is a word of one of two steps of 16, whose first half has the first pairs of all quarters.
template <int D>
SKIM_DEVICE void spread_fragments(const quoka_call& call, int list, char* to) {
  using tile = warpgroup_scores<D>;
  const uint4* const from =
      reinterpret_cast<const uint4*>(call.fragments) + static_cast<std::int64_t>(list) * call.whole * D / 8;
  const int queries = call.whole;
#pragma unroll 4
  for (int at = threadIdx.x; at < queries * D / 8; at += tile::threads) {
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

/// Grid: pieces of keys, KV heads times groups of `together` blocks of rows.
template <class T, int D>
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
  prepare_lists<D, false>(call, lists, factors, ends, [&](int i, const quoka_block& block) {
    spread_fragments<D>(call, block.list, shared + i * queries * D * 2);
  });
  show_copies();
  __syncthreads();

  const std::uint64_t query_rows = swizzled(base, 16, 1024);
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn, first += step) {
    std::uint32_t keys[D / 16][4];
    next.as_first_factors(keys);
    load(first + step);
#pragma unroll 1
    for (int at = 0; at < lists.count; ++at) {
      float most[2] = {minus_infinity(), minus_infinity()};
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
        await_products<0>();
        const float2* const own_factors = factors + at * queries + begin + 2 * quarter;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 both = *reinterpret_cast<const float4*>(own_factors + 8 * j);
#pragma unroll
          for (int i = 0; i < 2; ++i) {  // what is not a number loses
            most[i] = fmaxf(most[i], fmaxf(fmaf(sums[4 * j + 2 * i], both.x, both.y),
                                           fmaf(sums[4 * j + 2 * i + 1], both.z, both.w)));
          }
        }
      }
#pragma unroll
      for (float& each : most) {
        each = fmaxf(each, __shfl_xor_sync(all_lanes, each, 1));
        each = fmaxf(each, __shfl_xor_sync(all_lanes, each, 2));
      }
      const int slot = first + 8 * quarter + lane / 4;
      if (quarter < 2 && slot < ends.end[at]) {
        raw_scores(call, lists.list(call, at))[slot] =
            raw_score(ends.scores[at] ? quarter == 0 ? most[0] : most[1] : newest_first(ends.end[at], slot));
      }
    }
  }
#endif
}

}}}}  // namespace skim::v0_2::cuda::detail
