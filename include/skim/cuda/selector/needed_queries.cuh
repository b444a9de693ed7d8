// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's queries from a KV head's own rows, on a GPU: steps 1 to 4 of `query_choice::needed`. In f32.
#pragma once

#include <skim/cuda/selector/quoka_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// ln sum exp of what was met so far, in base 2.
struct running_sum {
  float largest = minus_infinity(), sum = 0;

  SKIM_DEVICE void meet(float logit) {
    if (logit <= largest) {
      sum += exp2f(logit - largest);
    } else {
      sum = sum * exp2f(largest - logit) + 1;
      largest = logit;
    }
  }
  /// Of all lanes' together.
  SKIM_DEVICE float over_warp() const {
    const float most = largest_of_warp(largest);
    return most == minus_infinity() ? most : most + log2f(sum_of_warp(sum * exp2f(largest - most)));
  }
};

struct needs_tile {
  static constexpr int rows_of_warp = 4, rows = 32, threads = 256, keys = 32;

  static constexpr std::size_t bytes(std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>((rows + keys) * shared_pitch(D));
  }
};

/// Step 1: need of each row; -1 of rows with an infinity or NaN. Grid: tiles of rows, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_needs(const quoka_call call) {
  using tile = needs_tile;
  extern __shared__ __align__(16) float floats[];
  __shared__ bool finite_row[tile::rows], finite_key[tile::keys];
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int first_row = blockIdx.x * tile::rows;
  if (!block.picks(call) || first_row >= block.rows) return;
  const int D = call.kv.k.dim, pitch = static_cast<int>(shared_pitch(D)), lane = threadIdx.x % 32;
  const int own_row = threadIdx.x / 32 * tile::rows_of_warp;
  float *const rows = floats, *const keys = floats + tile::rows * pitch;
  with_type(call.q, call.q_type, [&](auto* q) {
    load_rows<Threads>(
        q, D, tile::rows, rows, finite_row,
        [&](int i) { return block.query_offset(call, min(first_row + i, block.rows - 1)); },
        [&](int) { return call.scale * log2_e; });
  });

  const int step = max(1, block.count / call.samples), sampled = block.count > 4 ? (block.count - 5) / step + 1 : 0;
  const int all = sampled + block.Tq;  // keys to meet: the sample, then the block's own
  running_sum before[tile::rows_of_warp], own[tile::rows_of_warp];
  for (int begin = 0; begin < all; begin += tile::keys) {
    __syncthreads();
    load_slots<Threads>(call.kv, call.kv.k, block.head, tile::keys, keys, finite_key, [&](int i) {
      const int key = begin + i;
      const int slot = key < sampled ? block.first + 4 + key * step : block.past + key - sampled;
      return key < all ? block.base + slot : -1;
    });
    __syncthreads();
    float products[tile::rows_of_warp] = {};
    for (int d = 0; d < D; d += 4) {
      const float4 k = load_4(keys + lane * pitch + d);
#pragma unroll
      for (int i = 0; i < tile::rows_of_warp; ++i) {
        products[i] = dot_4(load_4(rows + (own_row + i) * pitch + d), k, products[i]);
      }
    }
    const int key = begin + lane;
    if (key >= all || !finite_key[lane]) continue;
#pragma unroll
    for (int i = 0; i < tile::rows_of_warp; ++i) {
      if (!isfinite(products[i])) continue;
      const int token = (first_row + own_row + i) % block.Tq, other = key - sampled;
      if (key < sampled) {
        before[i].meet(products[i]);
      } else if (other <= token + call.right && other >= token - call.left) {
        own[i].meet(products[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < tile::rows_of_warp; ++i) {
    const float past = before[i].over_warp(), here = own[i].over_warp();
    const int row = first_row + own_row + i;
    if (lane != 0 || row >= block.rows) continue;
    float need = 1;
    if (past != minus_infinity() && here != minus_infinity()) {
      need = 1 / (1 + exp2f(here - past - log2f(static_cast<float>(block.count) / static_cast<float>(sampled))));
    }
    call.needs[static_cast<std::int64_t>(block.list) * call.rows + row] = finite_row[own_row + i] ? need : -1;
  }
}

template <int Threads>
SKIM_DEVICE float sum_of_block(float value, float* scratch) {
  value = sum_of_warp(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < Threads / 32; ++warp) sum += scratch[warp];
  return sum;
}

struct features_tile {
  static constexpr int rows = 32, threads = 256;

  static constexpr std::size_t bytes(std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>(rows * shared_pitch(D) + padded(D));
  }
};

/// Step 2: features [D, rows] of each list. Grid: query heads of a group, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_features(const quoka_call call) {
  using tile = features_tile;
  extern __shared__ __align__(16) float rows[];
  __shared__ float scratch[Threads / 32];
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (!block.picks(call)) return;
  const int D = call.kv.k.dim, pitch = static_cast<int>(shared_pitch(D)), thread = threadIdx.x;
  const int first = blockIdx.x * block.Tq;
  float* const center = rows + tile::rows * pitch;
  const float* const needs = call.needs + static_cast<std::int64_t>(block.list) * call.rows + first;
  float* const features = call.features + static_cast<std::int64_t>(block.list) * call.rows * D + first;
  const auto each_tile = [&](const auto& body) {  // body(token that row 0 of the tile has, rows of the tile)
    for (int begin = 0; begin < block.Tq; begin += tile::rows) {
      const int count = min(tile::rows, block.Tq - begin);
      __syncthreads();
      with_type(call.q, call.q_type, [&](auto* q) {
        load_rows<Threads>(
            q, D, count, rows, nullptr,
            [&](int i) {
              return needs[begin + i] < 0 ? std::int64_t{-1} : block.query_offset(call, first + begin + i);
            },
            [&](int) { return call.scale; });
      });
      __syncthreads();
      body(begin, count);
    }
  };
  const bool single = block.Tq == 1;
  float finite = 0;
  for (int t = thread; t < block.Tq; t += Threads) finite += needs[t] >= 0 ? 1 : 0;
  finite = fmaxf(sum_of_block<Threads>(finite, scratch), 1);
  for (int d = thread; d < D; d += Threads) center[d] = 0;
  each_tile([&](int, int count) {  // rows without a say are zeros here
    for (int d = thread; !single && d < D; d += Threads) {
      float sum = 0;
      for (int i = 0; i < count; ++i) sum += rows[i * pitch + d];
      center[d] += sum / finite;
    }
  });
  float spread = 0, size = 0;
  each_tile([&](int begin, int count) {
    for (int i = thread / 32; i < count; i += Threads / 32) {
      if (needs[begin + i] < 0) continue;
      for (int d = thread % 32; d < D; d += 32) {
        const float value = rows[i * pitch + d], apart = value - center[d];
        spread += apart * apart;
        size += value * value;
      }
    }
  });
  spread = sum_of_block<Threads>(spread, scratch);
  size = sum_of_block<Threads>(size, scratch);
  const bool flat = !single && sqrtf(spread) <= 1e-6f * sqrtf(size);
  const float factor = flat || spread == 0 ? 0 : rsqrtf(single ? spread : spread / finite);
  each_tile([&](int begin, int count) {
    const int t = thread % 32;
    for (int d = thread / 32; t < count && d < D; d += Threads / 32) {
      const float value = needs[begin + t] < 0 ? 0 : (rows[t * pitch + d] - center[d]) * factor;
      features[static_cast<std::int64_t>(d) * call.rows + begin + t] = value;
    }
  });
}

struct picking {
  static constexpr int points = 16, rows = 64, threads = 128, rank_threads = 1024;  // points that rows meet at a time
  static constexpr std::int64_t most_rows = 16384;

  static constexpr int columns = 128;  // that are in shared memory together
  static constexpr int segment = 128;  // rows that are ranked among themselves first

  static constexpr std::size_t measure_bytes(std::int64_t picks) {
    return sizeof(float) * static_cast<std::size_t>(columns * (points + rows) + pieces(picks, points) * points);
  }
  static constexpr std::size_t rank_bytes(std::int64_t rows, std::int64_t picks) {
    return sizeof(float) * static_cast<std::size_t>(pieces(rows, segment) * (segment + 2 * picks));
  }
};

/// Step 3: each row's distance to the nearest pick, of which those from `first` on are new, and which that is. Before there
/// are any, its squared length. Two threads share a row. Grid: tiles of rows, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) measure_rows(const quoka_call call, int first, int count) {
  constexpr int points = picking::points, own_points = points / 2;
  extern __shared__ __align__(16) float met[];         // [columns, points]
  float* const own = met + picking::columns * points;  // [columns, rows of the tile]
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int begin = blockIdx.x * picking::rows, in_tile = threadIdx.x / 2, half = threadIdx.x % 2,
            row = begin + in_tile;
  const int D = call.kv.k.dim;
  if (!block.picks(call) || begin >= block.rows) return;
  const std::int64_t at = static_cast<std::int64_t>(block.list) * call.rows;
  const float* const features = call.features + at * D;
  const int* const picked = call.picked + static_cast<std::int64_t>(block.list) * call.n;
  float least = first > 0 ? call.distances[at + row] : __int_as_float(0x7f800000);
  int nearest = first > 0 ? call.nearest[at + row] : -1;
  int* const picks = reinterpret_cast<int*>(own + picking::columns * picking::rows);  // the new ones, -1 behind them
  for (int i = threadIdx.x; i < (max(count, 1) + points - 1) / points * points; i += Threads) {
    picks[i] = i < count ? picked[first + i] : -1;
  }
  for (int some = 0; some < max(count, 1); some += points) {
    float sums[own_points] = {};
    for (int column = 0; column < D; column += picking::columns) {
      const int columns = min(picking::columns, D - column);
      const float* const from = features + static_cast<std::int64_t>(column) * call.rows;
      __syncthreads();
#pragma unroll 1
      for (int i = threadIdx.x; i < columns * (picking::rows / 4); i += Threads) {
        const int d = i / (picking::rows / 4), part = i % (picking::rows / 4) * 4;
        copy_16(shared_address(own + d * picking::rows + part),
                from + static_cast<std::int64_t>(d) * call.rows + begin + part, true);
      }
      end_copies();
#pragma unroll 4
      for (int i = threadIdx.x; i < columns * points; i += Threads) {
        const int pick = picks[some + i % points];
        const float y = from[static_cast<std::int64_t>(i / points) * call.rows + max(pick, 0)];
        met[i] = pick < 0 ? 0 : y;
      }
      await_copies<0>();
      __syncthreads();
#pragma unroll 2
      for (int d = 0; d < columns; ++d) {
        const float y = own[d * picking::rows + in_tile];
#pragma unroll
        for (int i = 0; i < own_points; i += 4) {
          const float4 p = load_4(met + d * points + half * own_points + i);
          sums[i] += (y - p.x) * (y - p.x);
          sums[i + 1] += (y - p.y) * (y - p.y);
          sums[i + 2] += (y - p.z) * (y - p.z);
          sums[i + 3] += (y - p.w) * (y - p.w);
        }
      }
    }
    if (count == 0) least = sums[0];
#pragma unroll
    for (int i = 0; i < own_points; ++i) {
      const int pick = some + half * own_points + i;
      if (picks[pick] >= 0 && sums[i] < least) {
        least = sums[i];
        nearest = first + pick;
      }
    }
  }
  // Of equal distances the earlier pick.
  const float other = __shfl_xor_sync(all_lanes, least, 1);
  const int its = __shfl_xor_sync(all_lanes, nearest, 1);
  if (other < least || (other == least && its >= 0 && its < nearest)) {
    least = other;
    nearest = its;
  }
  if (row >= block.rows || half != 0) return;
  call.distances[at + row] = least;
  call.nearest[at + row] = call.needs[at + row] < 0 ? -1 : nearest;
}

/// Step 3: the `count` rows of largest gain that are not among the first `first` picks, in order; -1 where there are no more.
/// A block for each list.
template <int Threads>
__global__ void __launch_bounds__(Threads) pick_rows(const quoka_call call, int first, int count) {
  constexpr int segment = picking::segment;
  extern __shared__ __align__(16) float gains[];  // [segments, segment]
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  if (!block.picks(call)) return;
  const int segments = (block.rows + segment - 1) / segment, all = segments * segment;
  float* const best = gains + all;  // [segments, count], and whose they are
  int* const best_rows = reinterpret_cast<int*>(best + segments * count);
  const std::int64_t at = static_cast<std::int64_t>(block.list) * call.rows;
  int* const picked = call.picked + static_cast<std::int64_t>(block.list) * call.n;
  for (int r = threadIdx.x; r < all; r += Threads) {
    const int safe_row = min(r, block.rows - 1);
    const float need = call.needs[at + safe_row], distance = call.distances[at + safe_row];
    gains[r] = r >= block.rows || need < 0 ? -1 : need * distance;
  }
  for (int i = threadIdx.x; i < segments * count; i += Threads) best[i] = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < first; i += Threads) {
    if (picked[i] >= 0) gains[picked[i]] = -1;
  }
  for (int i = threadIdx.x; i < count; i += Threads) picked[first + i] = -1;
  __syncthreads();
  // The best of each segment, then the best of these: a row that others go before in its own segment is none.
  for (int begin = 0; begin < all; begin += Threads / 2) {  // two threads count for a row
    const int r = begin + static_cast<int>(threadIdx.x) / 2, from = r / segment * segment;
    const float own = r < all ? gains[r] : -1;
    int rank = 0;
    if (r < all) {
#pragma unroll 4
      for (int u = from + threadIdx.x % 2 * 4; u < from + segment; u += 8) {
        const float4 others = load_4(gains + u);
        rank += (others.x > own || (others.x == own && u < r)) + (others.y > own || (others.y == own && u + 1 < r)) +
                (others.z > own || (others.z == own && u + 2 < r)) + (others.w > own || (others.w == own && u + 3 < r));
      }
    }
    rank += __shfl_xor_sync(all_lanes, rank, 1);
    if (own < 0 || rank >= count || threadIdx.x % 2 != 0) continue;
    best[r / segment * count + rank] = own;
    best_rows[r / segment * count + rank] = r;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < segments * count; i += Threads) {
    const float own = best[i];
    if (own < 0) continue;
    int rank = i % count;  // of its segment, in which all before it are better
    for (int other = 0; other < segments; ++other) {
      if (other == i / count) continue;
      for (int j = 0; j < count; ++j) {
        const float gain = best[other * count + j];
        if (gain < own || (gain == own && other > i / count)) break;
        ++rank;
      }
    }
    if (rank < count) picked[first + rank] = best_rows[i];
  }
}

/// Step 4's mean of members, or the rows as they are, rounded to what keys are multiplied in. Queries that are none are NaN.
/// Grid: queries, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) average_members(const quoka_call call) {
  constexpr int chunk = 512;
  __shared__ int members[chunk];
  __shared__ float member_needs[chunk];
  __shared__ int count;
  start_in_chain();
  const quoka_block block(call, blockIdx.y);
  const int query = blockIdx.x, D = call.kv.k.dim, lane = threadIdx.x % 32;
  if (block.reads_all || query >= block.queries(call)) return;
  const bool as_they_are = block.takes_every_row(call);
  const std::int64_t at = static_cast<std::int64_t>(block.list) * call.rows;
  const int pick = as_they_are ? query : call.picked[static_cast<std::int64_t>(block.list) * call.n + query];
  for (int begin = 0; begin < padded(D); begin += Threads) {
    const int d = begin + threadIdx.x;
    float sum = 0, weight = 0, picked_value = __int_as_float(0x7fc00000);
    with_type(call.q, call.q_type, [&](auto* q) {
      if (pick >= 0 && d < D) picked_value = call.scale * load(q, block.query_offset(call, pick) + d);
      for (int first = 0; !as_they_are && first < block.rows; first += chunk) {
        __syncthreads();
        if (threadIdx.x < 32) {  // one warp finds the members, in order
          int found = 0;
          int owners[chunk / 32];
#pragma unroll
          for (int i = 0; i < chunk / 32; ++i)
            owners[i] = call.nearest[at + min(first + 32 * i + lane, block.rows - 1)];
#pragma unroll
          for (int i = 0; i < chunk / 32; ++i) {
            const int row = first + 32 * i + lane;
            const bool mine = row < block.rows && owners[i] == query;
            const unsigned all = __ballot_sync(all_lanes, mine);
            if (mine) {
              const int place = found + __popc(all & ((1u << lane) - 1));
              members[place] = row;
              member_needs[place] = call.needs[at + row];
            }
            found += __popc(all);
          }
          if (lane == 0) count = found;
        }
        __syncthreads();
        const int safe_d = min(d, D - 1);
#pragma unroll 4
        for (int i = 0; i < count; ++i) {
          weight += member_needs[i];
          sum += member_needs[i] * call.scale * load(q, block.query_offset(call, members[i]) + safe_d);
        }
      }
    });
    if (d >= padded(D)) continue;
    const float value = d >= D ? 0 : pick < 0 || weight <= 1e-6f ? picked_value : sum / weight;
    store_query(call, block.list, query, d, value);
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
