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
    return sizeof(float) * static_cast<std::size_t>((rows + keys) * (D + 4));
  }
};

/// Steps 1 and 2: need of each row; -1 of rows with an infinity or NaN. Grid: tiles of rows, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_needs(const quoka_call call) {
  using tile = needs_tile;
  extern __shared__ float floats[];
  const quoka_block block(call, blockIdx.y);
  const int first_row = blockIdx.x * tile::rows;
  if (block.reads_all || block.takes_every_row(call) || first_row >= block.rows) return;
  const int D = call.kv.k.dim, pitch = D + 4, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  float *const rows = floats, *const keys = floats + tile::rows * pitch;
  for (int i = thread; i < tile::rows * D; i += Threads) {
    const int row = min(first_row + i / D, block.rows - 1);
    rows[i / D * pitch + i % D] = call.scale * log2_e * load(call.q, call.q_type, block.query_offset(call, row) + i % D);
  }

  const int step = max(1, block.count / call.samples), sampled = block.count > 4 ? (block.count - 5) / step + 1 : 0;
  const int all = sampled + block.Tq;  // keys to meet: the sample, then the block's own
  running_sum before[tile::rows_of_warp], own[tile::rows_of_warp];
  float finite[tile::rows_of_warp];
#pragma unroll
  for (float& sum : finite) sum = 0;
  for (int begin = 0; begin < all; begin += tile::keys) {
    __syncthreads();
    for (int i = thread; i < tile::keys * D; i += Threads) {
      const int key = begin + i / D, slot = key < sampled ? block.first + 4 + key * step : block.past + key - sampled;
      keys[i / D * pitch + i % D] =
          key < all ? load(call.kv.k.data, call.kv.k.type, call.kv.offset(call.kv.k, block.head, slot) + i % D) *
                          call.kv.scale(call.kv.k, block.head, slot)
                    : 0;
    }
    __syncthreads();
    float products[tile::rows_of_warp] = {}, key_finite = 0;
    for (int d = 0; d < D; ++d) {
      const float k = keys[lane * pitch + d];
      key_finite += k * 0;
#pragma unroll
      for (int i = 0; i < tile::rows_of_warp; ++i) {
        const float x = rows[(warp * tile::rows_of_warp + i) * pitch + d];
        products[i] += x * k;
        if (begin == 0) finite[i] += x * 0;
      }
    }
    const int key = begin + lane;
    if (key >= all || !(key_finite == 0)) continue;
#pragma unroll
    for (int i = 0; i < tile::rows_of_warp; ++i) {
      if (!isfinite(products[i])) continue;
      const int token = (first_row + warp * tile::rows_of_warp + i) % block.Tq, other = key - sampled;
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
    const int row = first_row + warp * tile::rows_of_warp + i;
    if (lane != 0 || row >= block.rows) continue;
    float need = 1;
    if (past != minus_infinity() && here != minus_infinity()) {
      need = 1 / (1 + exp2f(here - past - log2f(static_cast<float>(block.count) / static_cast<float>(sampled))));
    }
    call.needs[static_cast<std::int64_t>(block.list) * call.rows + row] = finite[i] == 0 ? need : -1;
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

/// Step 3: features [D, rows] of each list. Grid: query heads of a group, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_features(const quoka_call call) {
  extern __shared__ float center[];
  __shared__ float scratch[Threads / 32];
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all || block.takes_every_row(call)) return;
  const int D = call.kv.k.dim, thread = threadIdx.x, first = blockIdx.x * block.Tq;
  const float* const needs = call.needs + static_cast<std::int64_t>(block.list) * call.rows + first;
  float* const features = call.features + static_cast<std::int64_t>(block.list) * call.rows * D;
  const auto x = [&](int t, int d) {
    return call.scale * load(call.q, call.q_type, block.query_offset(call, first + t) + d);
  };
  const bool single = block.Tq == 1;
  int finite = 0;
  for (int t = 0; t < block.Tq; ++t) finite += needs[t] >= 0;
  for (int d = thread; d < D; d += Threads) {
    float sum = 0;
    for (int t = 0; t < block.Tq; ++t) sum += needs[t] >= 0 ? x(t, d) : 0;
    center[d] = single ? 0 : sum / static_cast<float>(max(finite, 1));
  }
  __syncthreads();
  float spread = 0, size = 0;
  for (int i = thread; i < block.Tq * D; i += Threads) {
    const float value = needs[i / D] >= 0 ? x(i / D, i % D) : center[i % D];
    spread += (value - center[i % D]) * (value - center[i % D]);
    size += value * value;
  }
  spread = sum_of_block<Threads>(spread, scratch);
  size = sum_of_block<Threads>(size, scratch);
  const bool flat = !single && sqrtf(spread) <= 1e-6f * sqrtf(size);
  const float factor = flat || spread == 0 ? 0 : rsqrtf(single ? spread : spread / static_cast<float>(max(finite, 1)));
  for (int i = thread; i < block.Tq * D; i += Threads) {
    const int t = i % block.Tq, d = i / block.Tq;
    features[static_cast<std::int64_t>(d) * call.rows + first + t] =
        needs[t] >= 0 ? (x(t, d) - center[d]) * factor : 0;
  }
}

struct picking {
  static constexpr int points = 16;  // that rows meet at a time
  static constexpr std::int64_t most_rows = 16384;

  static constexpr std::size_t bytes(std::int64_t rows, std::int64_t D) {
    return sizeof(float) * static_cast<std::size_t>(2 * rows + points * D);
  }
};

/// Steps 3 and 4: picks rows in rounds, and says of each row which pick is nearest. A block for each list.
template <int Threads>
__global__ void __launch_bounds__(Threads) pick_rows(const quoka_call call) {
  constexpr int points = picking::points;
  extern __shared__ float floats[];
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all || block.takes_every_row(call)) return;
  const int D = call.kv.k.dim, thread = threadIdx.x, rows = block.rows;
  float *const gains = floats, *const distances = gains + call.rows, *const met = distances + call.rows;
  const float* const needs = call.needs + static_cast<std::int64_t>(block.list) * call.rows;
  const float* const features = call.features + static_cast<std::int64_t>(block.list) * call.rows * D;
  int* const nearest = call.nearest + static_cast<std::int64_t>(block.list) * call.rows;
  int* const picked = call.picked + static_cast<std::int64_t>(block.list) * call.n;
  for (int r = thread; r < rows; r += Threads) {
    float squares = 0;
    for (int d = 0; d < D; ++d) {
      const float y = features[static_cast<std::int64_t>(d) * call.rows + r];
      squares += y * y;
    }
    gains[r] = needs[r] < 0 ? -1 : needs[r] * squares;
    distances[r] = __int_as_float(0x7f800000);
    nearest[r] = needs[r] < 0 ? -1 : 0;
  }
  const int of_round = max(1, call.n / 4);
  int count = 0;
  while (count < call.n) {
    __syncthreads();
    int eligible = 0;
    const int wanted = min(of_round, call.n - count);
    for (int begin = 0; begin < rows; begin += Threads) {
      const int r = begin + thread;
      const float own = r < rows ? gains[r] : -1;
      eligible += __syncthreads_count(own >= 0);
      if (own < 0) continue;
      int rank = 0;  // rows that go before
      for (int u = 0; u < rows && rank < wanted; ++u) rank += gains[u] > own || (gains[u] == own && u < r);
      if (rank < wanted) picked[count + rank] = r;
    }
    const int found = min(wanted, eligible);
    if (found == 0) break;
    __syncthreads();
    for (int first = 0; first < found; first += points) {
      const int some = min(points, found - first);
      for (int i = thread; i < points * D; i += Threads) {
        const int row = picked[count + first + min(i % points, some - 1)];
        met[i] = features[static_cast<std::int64_t>(i / points) * call.rows + row];
      }
      __syncthreads();
      for (int r = thread; r < rows; r += Threads) {
        float sums[points] = {};
        for (int d = 0; d < D; ++d) {
          const float y = features[static_cast<std::int64_t>(d) * call.rows + r];
#pragma unroll
          for (int i = 0; i < points; ++i) {
            const float apart = y - met[d * points + i];
            sums[i] += apart * apart;
          }
        }
        float least = distances[r];
        int at = -1;
#pragma unroll
        for (int i = 0; i < points; ++i) {
          if (i < some && sums[i] < least) {
            least = sums[i];
            at = count + first + i;
          }
        }
        if (at >= 0 && needs[r] >= 0) {
          distances[r] = least;
          nearest[r] = at;
        }
      }
      __syncthreads();
    }
    for (int r = thread; r < rows; r += Threads) gains[r] = gains[r] < 0 ? -1 : needs[r] * distances[r];
    __syncthreads();
    for (int i = thread; i < found; i += Threads) gains[picked[count + i]] = -1;
    count += found;
  }
  for (int i = count + thread; i < call.n; i += Threads) picked[i] = -1;
}

/// Step 4's mean of members, or the rows as they are, rounded to what keys are multiplied in. Queries that are none are NaN. Grid:
/// queries, lists.
template <int Threads>
__global__ void __launch_bounds__(Threads) average_members(const quoka_call call) {
  const quoka_block block(call, blockIdx.y);
  const int query = blockIdx.x, D = call.kv.k.dim, lane = threadIdx.x % 32;
  if (block.reads_all || query >= block.queries(call)) return;
  const bool as_they_are = block.takes_every_row(call);
  const std::int64_t at = static_cast<std::int64_t>(block.list) * call.rows;
  const int pick = as_they_are ? query : call.picked[static_cast<std::int64_t>(block.list) * call.n + query];
  float* const to = call.queries + (static_cast<std::int64_t>(block.list) * call.n + query) * D;
  const auto x = [&](int row, int d) {
    return call.scale * load(call.q, call.q_type, block.query_offset(call, row) + d);
  };
  for (int begin = 0; begin < D; begin += Threads) {
    const int d = begin + threadIdx.x;
    float sum = 0, weight = 0;
    for (int first = 0; !as_they_are && pick >= 0 && first < block.rows; first += 32) {
      const int row = first + lane;
      unsigned members = __ballot_sync(all_lanes, row < block.rows && call.nearest[at + row] == query);
      for (; members != 0; members &= members - 1) {
        const int member = first + __ffs(static_cast<int>(members)) - 1;
        const float need = call.needs[at + member];
        weight += need;
        if (d < D) sum += need * x(member, d);
      }
    }
    if (d >= D) continue;
    float value = __int_as_float(0x7fc00000);
    if (pick >= 0) value = weight <= 1e-6f ? x(pick, d) : sum / weight;
    to[d] = call.query_type == element::bf16  ? __bfloat162float(__float2bfloat16_rn(value))
            : call.query_type == element::f16 ? __half2float(__float2half_rn(value))
                                              : value;
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
