// SPDX-License-Identifier: Apache-2.0
/// \file The softmax weights that rows of q give to each key, summed over the rows, on a GPU: recomputed from q, K and the
/// log-sum-exp that attention left, no matrix of them stored. H2O, TOVA and SnapKV differ in the rows.
///
/// r rows and n keys of a KV head take 2 r n D flops and r n exponentials; K is read once. For 131072 keys of 8 heads of 128 in
/// bf16 and groups of 4 heads, one read takes an H200 62 microseconds. The rows of TOVA's one token and of SnapKV's 32 take no
/// longer to compute: floors of 62, measured 75 and 132, as keys are loaded while other warps multiply, but not far ahead.
/// H2O's 128 tokens take exponentials 145 and matrix instructions 140 at the peak of `wgmma`, some 215 at that of `mma.sync`:
/// measured 366.
#pragma once

#include <skim/cuda/kernel/attend_call.cuh>
#include <skim/cuda/kernel/eviction_call.cuh>
#include <skim/cuda/kernel/key_rows.cuh>

#include <climits>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct weight_call {
  cache_rows kv;
  float* weights;         // [Hk, capacity], by metadata row
  std::int64_t capacity;  // of the cache
  const char* q;
  const float* lse;
  std::int64_t q_row, q_head, lse_row, lse_head, left, right, list_capacity;
  const std::int32_t *indices, *counts;  // past keys that each block of rows has read; null: all of them
  float scale, soft_cap, factor;         // scale in units of log2; factor: of the sums
  element q_type;
  int Tq, heads, group, block_rows;
  int first;                  // of the rows of q that have a say
  int tiles_of_block, tiles;  // of these rows
  bool accumulates;           // else what was there before goes

  SKIM_DEVICE void put(int head, int slot, float sum) const {
    float& to = weights[head * capacity + kv.metadata_row(slot)];
    to = accumulates && slot < kv.length(head) - Tq ? to + sum * factor : sum * factor;
  }
};

/// A tile of packed rows of one block: row r of a block is token r / G, head r % G of the group.
struct weight_rows {
  static constexpr int count = 32;

  int block, first_token, begin, rows;  // rows: that are left of the block's from `begin` on

  SKIM_DEVICE weight_rows(const weight_call& own, int tile) {
    const int blocks = tile / own.tiles_of_block;
    block = own.first / own.block_rows + blocks;
    first_token = max(own.first, block * own.block_rows);
    begin = (tile - blocks * own.tiles_of_block) * count;
    rows = (min((block + 1) * own.block_rows, own.Tq) - first_token) * own.group - begin;
  }
  SKIM_DEVICE int token(const weight_call& own, int row) const { return first_token + (begin + row) / own.group; }
  SKIM_DEVICE std::int64_t query_offset(const weight_call& own, int head, int row) const {
    return token(own, row) * own.q_row + (head * own.group + (begin + row) % own.group) * own.q_head;
  }
};

/// A row's log-sum-exp in units of log2, and the positions that it sees.
struct weight_row {
  float total = -minus_infinity();
  int first = INT_MAX, last = INT_MIN;  // none: of a row that is not there, saw nothing or is lost to a NaN

  SKIM_DEVICE weight_row(const weight_call& own, const weight_rows& rows, int head, int row) {
    if (row >= rows.rows) return;
    const int token = rows.token(own, row), query_head = head * own.group + (rows.begin + row) % own.group;
    const float lse = own.lse[token * own.lse_row + query_head * own.lse_head];
    if (!isfinite(lse)) return;
    const std::int64_t position = own.kv.position(head, own.kv.length(head) - own.Tq + token), most = INT_MAX;
    total = lse * log2_e;
    first = static_cast<int>(max(position - own.left, -most));
    last = static_cast<int>(min(position + own.right, most));
  }
};

/// Stands for the position of a key that is not read: no row sees it.
inline constexpr int unread = INT_MIN;

/// Bit i: the block has read key `first + i`. By a warp.
SKIM_DEVICE unsigned keys_read(const weight_call& own, int block, int head, int first, int n) {
  const int lane = threadIdx.x % 32, slot = first + lane;
  if (!own.indices) return __ballot_sync(all_lanes, slot < n);
  const int begin = n - own.Tq + block * own.block_rows, end = min(begin + own.block_rows, n);
  const unsigned its_own = __ballot_sync(all_lanes, slot >= begin && slot < end);
  const int row = block * own.heads + head, count = own.counts[row];
  const std::int32_t* const list = own.indices + row * own.list_capacity;
  const int at = first_that(0, count, [&](int i) { return list[i] >= first; }) + lane;
  const int ahead = at < count ? list[at] - first : 32;
  return its_own | __reduce_or_sync(all_lanes, ahead < 32 ? 1u << ahead : 0u);
}

/// The weight of a key by its product with a row. Rounding may bring a logit above the total, where a weight would be above 1;
/// NaN, of a row that has no say or of a key that it does not see, becomes 0.
template <bool Capped>
SKIM_DEVICE float weight_of(const weight_call& own, float product, float total) {
  float power = fmaf(product, own.scale, -total);
  if constexpr (Capped) power = own.soft_cap * log2_e * tanhf(product * (own.scale * ln_2 / own.soft_cap)) - total;
  return __saturatef(power_of_2(power));
}

/// Of any type and dimension, by multiply-adds: it does not try to be fast. A lane for each key, a warp for four rows of a
/// tile. Grid: tiles of keys, heads.
struct plain_weights {
  static constexpr int threads = 256, keys = 32, rows_of_warp = weight_rows::count / (threads / 32);
  static constexpr std::int64_t largest_dim = 576;

  static constexpr std::size_t bytes(std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>((keys + weight_rows::count) * shared_pitch(D));
  }
};

template <int Threads>
__global__ void __launch_bounds__(Threads, 1) weigh_plainly(const weight_call own) {
  constexpr int keys = plain_weights::keys, each = plain_weights::rows_of_warp;
  extern __shared__ __align__(16) float floats[];
  __shared__ float totals[weight_rows::count], sums[Threads / 32][keys];
  __shared__ int2 seen[weight_rows::count];
  start_in_chain();
  const cache_rows& kv = own.kv;
  const int head = blockIdx.y, n = kv.length(head), begin = blockIdx.x * keys;
  if (begin >= n) return;
  const int D = kv.k.dim, pitch = static_cast<int>(shared_pitch(D)), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const q = floats + keys * pitch;
  load_slots<Threads>(kv, kv.k, head, keys, floats, nullptr, [&](int i) { return min(begin + i, n - 1); });
  const int position = static_cast<int>(kv.position(head, min(begin + lane, n - 1)));
  float sum = 0;
  for (int t = 0; t < own.tiles; ++t) {
    const weight_rows rows(own, t);
    if (rows.rows <= 0) continue;
    const unsigned read = keys_read(own, rows.block, head, begin, n);
    if (read == 0) continue;
    __syncthreads();
    with_type(own.q, own.q_type, [&](auto* data) {
      load_rows<Threads>(
          data, D, weight_rows::count, q, nullptr,
          [&](int i) { return rows.query_offset(own, head, min(i, rows.rows - 1)); }, [](int) { return 1.0f; });
    });
    if (threadIdx.x < weight_rows::count) {
      const weight_row row(own, rows, head, threadIdx.x);
      totals[threadIdx.x] = row.total;
      seen[threadIdx.x] = make_int2(row.first, row.last);
    }
    __syncthreads();
    const int shown = (read >> lane & 1u) != 0 ? position : unread;
    float products[each] = {}, found = 0;
    for (int d = 0; d < D; d += 4) {
      const float4 k = load_4(floats + lane * pitch + d);
#pragma unroll
      for (int i = 0; i < each; ++i) products[i] = dot_4(load_4(q + (warp * each + i) * pitch + d), k, products[i]);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int row = warp * each + i;
      if (shown < seen[row].x || shown > seen[row].y) continue;
      found += own.soft_cap > 0 ? weight_of<true>(own, products[i], totals[row])
                                : weight_of<false>(own, products[i], totals[row]);
    }
    sum += found;
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (threadIdx.x >= keys || begin + lane >= n) return;
  float all = 0;
  for (int w = 0; w < Threads / 32; ++w) all += sums[w][lane];
  own.put(head, begin + lane, all);
}

/// Warps of so many keys at a time, which stay in registers while rows of q pass by in shared memory: all of them if there is
/// room, which are then read once; else as many at a time as there is, for each turn of the block's keys again.
template <int D>
struct tensor_weights {
  static constexpr int keys = D <= 128 ? 32 : 16, most_threads = 512;  // as registers allow
  static constexpr int most_tiles = D <= 128 ? 16 : 8;                 // up to 128 KiB
  static constexpr int fragments = weight_rows::count * D / 8;         // of 16 bytes, of a tile

  static constexpr std::size_t bytes(std::int64_t tiles) {
    constexpr std::size_t row = sizeof(int2) + sizeof(float);
    constexpr std::size_t tile = fragments * sizeof(uint4) + sizeof(int4) + weight_rows::count * row;
    return static_cast<std::size_t>(tiles) * tile;
  }
};

/// Rows of q in shared memory: [halves of tiles][D / 16][32 lanes] as matrix instructions want them.
template <int D>
struct staged_rows {
  uint4* fragments;
  int4* bounds;  // of a tile: positions [x, y] are seen by all rows that have a say, none outside [z, w] by any
  int2* seen;
  float* totals;

  SKIM_DEVICE staged_rows(char* shared, int tiles)
      : fragments(reinterpret_cast<uint4*>(shared)),
        bounds(reinterpret_cast<int4*>(fragments + tiles * tensor_weights<D>::fragments)),
        seen(reinterpret_cast<int2*>(bounds + tiles)),
        totals(reinterpret_cast<float*>(seen + tiles * weight_rows::count)) {}

  /// Rows without a say become zeros.
  SKIM_DEVICE void fill(const weight_call& own, int head, int first_tile, int tiles) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int t = warp; t < tiles; t += warps) {
      const weight_row row(own, weight_rows(own, first_tile + t), head, lane);
      const bool has_say = row.first <= row.last;
      const int4 found = make_int4(__reduce_max_sync(all_lanes, has_say ? row.first : INT_MIN),
                                   __reduce_min_sync(all_lanes, has_say ? row.last : INT_MAX),
                                   __reduce_min_sync(all_lanes, row.first), __reduce_max_sync(all_lanes, row.last));
      totals[t * weight_rows::count + lane] = row.total;
      seen[t * weight_rows::count + lane] = make_int2(row.first, row.last);
      if (lane == 0) bounds[t] = found;
    }
    __syncthreads();
    constexpr int dims = dims_at_once(D), steps = dims / 16;
    for (int half = warp; half < 2 * tiles; half += warps) {
      const weight_rows rows(own, first_tile + half / 2);
      const char* from[2];
      bool given[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = half % 2 * 16 + 8 * i + lane / 4;
        given[i] = isfinite(totals[half / 2 * weight_rows::count + row]);
        from[i] = own.q + (given[i] ? 2 * rows.query_offset(own, head, row) + dims / 2 * (lane % 4) : 0);
      }
#pragma unroll 2
      for (int c = 0; c < D / dims; ++c) {
        row_piece<dims> two[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (given[i]) load_piece(two[i], from[i] + 2 * dims * c);
        }
#pragma unroll
        for (int s = 0; s < steps; ++s) {
          fragments[(half * (D / 16) + c * steps + s) * 32 + lane] =
              make_uint4(two[0].words[2 * s], two[1].words[2 * s], two[0].words[2 * s + 1], two[1].words[2 * s + 1]);
        }
      }
    }
    __syncthreads();
  }
};

/// Adds to `sums`, of the warp's keys 8 i + 2 (lane % 4) + e, what two of 16 rows, half a tile, give them: a lane's share.
/// `Masked`: as far as a row sees the key, which stands at `shown [keys]`.
template <bool Masked, bool Capped, int D, class Keys>
SKIM_DEVICE void add_weights(const weight_call& own, const Keys& keys, const staged_rows<D>& staged, int half,
                             const int* shown, float (&sums)[2 * Keys::parts][2]) {
  constexpr int octets = 2 * Keys::parts;
  const int lane = threadIdx.x % 32, row = 16 * half + lane / 4;
  float products[octets][4] = {};
  keys.multiply_by(products, staged.fragments + half * (D / 16 * 32));
  const float totals[2] = {staged.totals[row], staged.totals[row + 8]};
  int2 seen[2];
  if constexpr (Masked) {
    seen[0] = staged.seen[row];
    seen[1] = staged.seen[row + 8];
  }
#pragma unroll
  for (int i = 0; i < octets; ++i) {
    int2 places;
    if constexpr (Masked) places = *reinterpret_cast<const int2*>(shown + 8 * i + 2 * (lane % 4));
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float weights[2];
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        weights[low] = weight_of<Capped>(own, products[i][2 * low + e], totals[low]);
        if constexpr (Masked) {
          const int place = e == 0 ? places.x : places.y;
          weights[low] = place >= seen[low].x && place <= seen[low].y ? weights[low] : 0;
        }
      }
      sums[i][e] += weights[0] + weights[1];
    }
  }
}

/// Grid: pieces of keys, heads. `most`: tiles of rows that there is room for.
template <class T, int D>
__global__ void __launch_bounds__(tensor_weights<D>::most_threads, 1)
    weigh_by_tensor_cores(const weight_call own, int most) {
  using tile = tensor_weights<D>;
  using key_type = key_rows<T, D, tile::keys>;
  constexpr int octets = 2 * key_type::parts;
  constexpr unsigned all_keys = tile::keys == 32 ? ~0u : (1u << tile::keys % 32) - 1;
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(8) int places[tile::most_threads / 32][tile::keys];
  start_in_chain();
  const cache_rows& kv = own.kv;
  int* const shown = places[threadIdx.x / 32];
  const int head = blockIdx.y, n = kv.length(head), lane = threadIdx.x % 32;
  const int keys_of_block = static_cast<int>(blockDim.x) / 32 * tile::keys;
  const staged_rows<D> staged(shared, most);
  const row_addresses addresses(kv, kv.k, head, key_type::dims / 2 * (lane % 4));
#pragma unroll 1
  for (int begin = blockIdx.x * keys_of_block; begin < n; begin += static_cast<int>(gridDim.x) * keys_of_block) {
    const int first = begin + static_cast<int>(threadIdx.x) / 32 * tile::keys;
    key_type keys;
    keys.load(addresses, [&](int i) { return min(first + i, n - 1); });
    const int position = static_cast<int>(kv.position(head, min(first + lane % tile::keys, n - 1)));
    const int lowest = __reduce_min_sync(all_lanes, position), highest = __reduce_max_sync(all_lanes, position);
    float sums[octets][2] = {};
#pragma unroll 1
    for (int stage = 0; stage < own.tiles; stage += most) {
      const int end = min(stage + most, own.tiles);
      if (begin == static_cast<int>(blockIdx.x) * keys_of_block || own.tiles > most) {  // the first turn
        __syncthreads();
        staged.fill(own, head, stage, end - stage);
      }
      if (first >= n) continue;
#pragma unroll 1
      for (int t = stage; t < end;) {
        const weight_rows rows(own, t);
        const int end_of_block = min(t - rows.begin / weight_rows::count + own.tiles_of_block, end);
        const unsigned read = keys_read(own, rows.block, head, first, n) & all_keys;
        __syncwarp();
        if (lane < tile::keys) shown[lane] = (read >> lane & 1u) != 0 ? position : unread;
        __syncwarp();
#pragma unroll 1
        for (int left = rows.rows; t < end_of_block; ++t, left -= weight_rows::count) {
          const int4 bounds = staged.bounds[t - stage];
          if (read == 0 || highest < bounds.z || lowest > bounds.w) continue;
          const int halves = left <= 16 ? 1 : 2;
          const auto add = [&](auto masked, auto capped) {
#pragma unroll 1
            for (int half = 0; half < halves; ++half) {
              add_weights<masked.value, capped.value>(own, keys, staged, 2 * (t - stage) + half, shown, sums);
            }
          };
          if (own.soft_cap > 0) {
            add(std::true_type{}, std::true_type{});
          } else if (read != all_keys || lowest < bounds.x || highest > bounds.y) {
            add(std::true_type{}, std::false_type{});
          } else {
            add(std::false_type{}, std::false_type{});
          }
        }
      }
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2 * octets; ++i) {
      float& share = sums[i / 2][i % 2];
#pragma unroll
      for (int other = 4; other < 32; other *= 2) share += __shfl_xor_sync(all_lanes, share, other);
      if (lane / 4 == i) sum = share;
    }
    const int slot = first + lane / 8 * 8 + 2 * (lane % 4) + lane / 4 % 2;
    if (lane < tile::keys && slot < n) own.put(head, slot, sum);
  }
}

/// By tensor cores where q and K are of one 16-bit type and their rows begin at multiples of 16 bytes.
inline void weigh_keys(kv_view kv, const weight_call& own, launcher& launch) {
  bool taken = false;
  kv.v = kv.k;
  const auto aligned = [](std::int64_t elements) { return elements * 2 % 16 == 0; };
  if (own.q_type == kv.k.type && reinterpret_cast<std::uintptr_t>(own.q) % 16 == 0 && aligned(own.q_row) &&
      aligned(own.q_head)) {
    taken = with_tensor_cores(kv, [&](auto type, auto dim) {
      using tile = tensor_weights<dim.value>;
      const auto pieces_of = [&](int threads) { return pieces(kv.tokens, threads / 32 * tile::keys); };
      int threads = 128;  // of a block, one on a processor: few where all have work at once, else many
      while (threads < tile::most_threads && pieces_of(threads) * kv.heads > wanted_pieces) threads += 128;
      const std::int64_t blocks = smaller(pieces_of(threads), greater(1, wanted_pieces / kv.heads));
      const int tiles = static_cast<int>(smaller(own.tiles, tile::most_tiles));
      launch(&weigh_by_tensor_cores<decltype(type), dim.value>, blocks, kv.heads, threads, tile::bytes(tiles), own,
             tiles);
    });
  }
  if (taken) return;
  launch(&weigh_plainly<plain_weights::threads>, pieces(kv.tokens, plain_weights::keys), kv.heads,
         plain_weights::threads, plain_weights::bytes(kv.k.dim), own);
}

}}}}  // namespace skim::v0_2::cuda::detail
