// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's queries by tensor cores: steps 1 to 4 of `query_choice::needed` for blocks of at most 512 packed rows, in
/// two kernels. As needed_queries.cuh, but that rows are multiplied as they are stored and means taken away afterwards.
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

/// A tile of 16 rows, whose keys eight warps share.
struct tensor_needs {
  static constexpr int rows = 16, splits = 8, threads = 32 * splits, at_once = 3;  // tiles of 8 keys
};

/// Step 1: need of each row; -1 of rows with an infinity or NaN. Grid: tiles of rows, lists.
template <class T, int D>
__global__ void __launch_bounds__(tensor_needs::threads, 2) find_needs_by_tensor_cores(const quoka_call call) {
  using tile = tensor_needs;
  constexpr int chunks = D / 32, at_once = tile::at_once;
  __shared__ met_logits shared[tile::rows][tile::splits][2];
  __shared__ bool finite_row[tile::rows];
  let_next_kernel_start();
  await_kernel_before();
  const quoka_block block(call, blockIdx.y);
  const int first_row = blockIdx.x * tile::rows;
  if (!block.picks(call) || first_row >= block.rows) return;
  const int lane = threadIdx.x % 32, split = threadIdx.x / 32, eighth = lane / 4, quarter = lane % 4;
  const T* const q = reinterpret_cast<const T*>(call.q);
  uint4 rows[2][chunks];
  int tokens[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = min(first_row + eighth + 8 * half, block.rows - 1);
    const T* const row = q + block.query_offset(call, own) + 8 * quarter;
#pragma unroll
    for (int c = 0; c < chunks; ++c) rows[half][c] = *reinterpret_cast<const uint4*>(row + 32 * c);
    tokens[half] = own % block.Tq;
  }
  const row_addresses keys(call.kv, call.kv.k, block.head, 16 * quarter);
  const float to_log2 = call.scale * log2_e;
  const int step = max(1, block.count / call.samples), sampled = block.count > 4 ? (block.count - 5) / step + 1 : 0;
  // Tiles of the sample, then of the block's own keys.
  const int sampled_tiles = (sampled + 7) / 8, all = sampled_tiles + (block.Tq + 7) / 8;
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
      if (quarter == 0) shared[eighth + 8 * half][split][kind] = own;
    }
    if (quarter == 0 && split == 0) finite_row[eighth + 8 * half] = (lanes >> lane & 15u) == 15u;
  }
  __syncthreads();
  const int row = first_row + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= tile::rows || row >= block.rows) return;
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

/// Sixteen warps of 32 rows; in shared memory rows of 2 D bytes whose 16 bytes number c stand at c ^ (row % 8).
struct tensor_picking {
  static constexpr int threads = 512, warps = threads / 32, most_rows = 512, most_picks = 64, most_group = 8;
  static constexpr int at_once = 16;  // rows picked in a round, at most

  /// Rows whose products with the means are made together: of each four heads eight of two parts, and eight of the third.
  static SKIM_HD constexpr int mean_rows(int group) { return (group + 3) / 4 * 16; }
  static SKIM_HD constexpr int rows_of(std::int64_t rows) { return static_cast<int>((rows + 31) / 32 * 32); }
  static std::size_t bytes(std::int64_t rows, std::int64_t group, std::int64_t D) {
    const std::int64_t own = rows_of(rows);
    return static_cast<std::size_t>(most_rows * 12 + most_group * D * 4 +                 // candidates, lengths; means
                                    (own + mean_rows(static_cast<int>(group))) * 2 * D +  // rows; means, then picks
                                    own * group * 4);                                     // products
  }
  static bool takes(std::int64_t rows, std::int64_t group, std::int64_t picks, std::int64_t D) {
    return rows <= most_rows && group <= most_group && picks <= most_picks && (D == 64 || D == 128) &&
           bytes(rows, group, D) + 8 * 1024 <= most_shared_bytes;
  }
};

/// Steps 2 to 4. A block for each list.
///
/// With x a row, m and u its head's mean and one over the root of its mean squared distance from it, X [row, head] = x . m of
/// any head and a = u^2 |x - m|^2: |y_r - y_c|^2 = a_r + a_c - 2 u_r u_c (x_r . x_c - X_c - X_r + m_r . m_c), X_c with the mean
/// of r's head, X_r with that of c's. Products x . x are exact, sums f32.
template <class T, int D>
__global__ void __launch_bounds__(tensor_picking::threads, 1) pick_by_tensor_cores(const quoka_call call) {
  using tile = tensor_picking;
  using tensor = tensor_type<T>;
  constexpr int columns = D / 8, steps = D / 16, at_once = tile::at_once, warps = tile::warps;
  extern __shared__ __align__(16) char shared[];
  __shared__ float head_products[tile::most_group][tile::most_group], factors[tile::most_group];
  __shared__ float finite_of[tile::most_group];
  __shared__ bool finite_rows[tile::most_rows];
  __shared__ std::uint8_t row_heads[tile::most_rows],
      taken[tile::most_rows];  // the head of a row; its rank in a round + 1
  __shared__ unsigned half_maxima[32];
  __shared__ int candidate_count, picked[tile::most_picks], starts[tile::most_picks + 1];
  __shared__ float pick_factors[at_once], pick_lengths[at_once][tile::most_group];
  __shared__ int pick_heads[at_once];
  __shared__ std::uint8_t joined[warps][tile::most_picks];
  __shared__ std::uint16_t places[warps][tile::most_picks];
  let_next_kernel_start();
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all) return await_kernel_before();
  if (block.takes_every_row(call)) {
    await_kernel_before();
    for (int i = threadIdx.x; i < block.rows * D; i += tile::threads) {
      const float value = load(reinterpret_cast<const T*>(call.q), block.query_offset(call, i / D) + i % D);
      store_query(call, block.list, i / D, i % D, call.scale * value);
    }
    return;
  }
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, eighth = lane / 4, quarter = lane % 4;
  const int R = block.rows, rows = tile::rows_of(R), G = call.group;
  auto* const candidates = reinterpret_cast<unsigned long long*>(shared);
  float* const lengths = reinterpret_cast<float*>(candidates + tile::most_rows);  // [rows]: |x - m|^2, then a
  float* const means = lengths + tile::most_rows;                                 // [G, D]
  char* const own_rows = reinterpret_cast<char*>(means + tile::most_group * D);
  char* const points = own_rows + rows * 2 * D;  // rows of means, then the picks of a round
  float* const products = reinterpret_cast<float*>(points + tile::mean_rows(G) * 2 * D);  // [rows, G]: X
  const std::uint32_t rows_at = shared_address(own_rows), points_at = shared_address(points);
  const auto piece = [](int row, int column) { return row * 2 * D + ((column ^ (row & 7)) << 4); };

  // Rows, zeros in place of those with an infinity or NaN.
  const int Tq = block.Tq;
  {
    const T* const q =
        reinterpret_cast<const T*>(call.q) + block.first_token * call.q_row + block.head * G * call.q_head;
    constexpr int rows_at_once = tile::threads / columns, unroll = 8;
    const int column = thread % columns, more_heads = rows_at_once / Tq, more_tokens = rows_at_once % Tq;
    int token = thread / columns % Tq, head = thread / columns / Tq;
#pragma unroll 1
    for (int first = thread / columns; first - thread / columns < rows; first += rows_at_once * unroll) {
      uint4 values[unroll];
#pragma unroll
      for (int i = 0; i < unroll; ++i) {
        values[i] =
            *reinterpret_cast<const uint4*>(q + token * call.q_row + min(head, G - 1) * call.q_head + 8 * column);
        token += more_tokens;
        head += more_heads + (token >= Tq ? 1 : 0);
        token -= token >= Tq ? Tq : 0;
      }
#pragma unroll
      for (int i = 0; i < unroll; ++i) {
        const int row = first + rows_at_once * i;
        const unsigned all = __ballot_sync(all_lanes, all_finite<T>(values[i]));
        constexpr unsigned whole = columns == 16 ? 0xffffu : 0xffu;
        const bool finite = row < R && (all >> (lane / columns * columns) & whole) == whole;
        if (row >= rows) continue;
        *reinterpret_cast<uint4*>(own_rows + piece(row, column)) = finite ? values[i] : make_uint4(0, 0, 0, 0);
        if (column == 0) finite_rows[row] = finite;
      }
    }
  }
  for (int i = thread; i < tile::mean_rows(G) * columns; i += tile::threads) {
    reinterpret_cast<uint4*>(points)[i] = make_uint4(0, 0, 0, 0);
  }
  row_heads[thread] = static_cast<std::uint8_t>(min(thread, R - 1) / Tq);
  taken[thread] = 0;
  __syncthreads();

  // Means: eight lanes share the rows of a head's 16 bytes.
  for (int first = 4 * warp; first < G * columns; first += 4 * warps) {
    const int task = min(first + quarter, G * columns - 1), head = task / columns, column = task % columns;
    const int share = lane / 8 + lane / 4 % 2 * 4;  // so that eight lanes meet all banks
    float sums[8] = {}, finite = 0;
#pragma unroll 4
    for (int t = share; t < Tq; t += 8) {
      const int row = head * Tq + t;
      const uint4 four = *reinterpret_cast<const uint4*>(own_rows + piece(row, column));
      const std::uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[2 * i] += tensor::low(words[i]);
        sums[2 * i + 1] += tensor::high(words[i]);
      }
      finite += finite_rows[row] ? 1 : 0;
    }
#pragma unroll
    for (int other = 4; other < 32; other *= 2) {
#pragma unroll
      for (float& sum : sums) sum += __shfl_xor_sync(all_lanes, sum, other);
      finite += __shfl_xor_sync(all_lanes, finite, other);
    }
    if (lane >= 4 || first + quarter >= G * columns) continue;
    const float factor = Tq == 1 ? 0 : 1 / fmaxf(finite, 1);
#pragma unroll
    for (float& sum : sums) sum *= factor;
    float* const mean = means + head * D + 8 * column;
    *reinterpret_cast<float4*>(mean) = make_float4(sums[0], sums[1], sums[2], sums[3]);
    *reinterpret_cast<float4*>(mean + 4) = make_float4(sums[4], sums[5], sums[6], sums[7]);
    if (column == 0) finite_of[head] = fmaxf(finite, 1);
      // In three parts: rows 2 h and 2 h + 1 of a tile of 8, row 2 h of the next.
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = tensor::pack(sums[2 * i], sums[2 * i + 1]);
        sums[2 * i] -= tensor::low(words[i]);
        sums[2 * i + 1] -= tensor::high(words[i]);
      }
      const int row = head / 4 * 16 + head % 4 * 2 + (part < 2 ? part : 8);
      *reinterpret_cast<uint4*>(points + piece(row, column)) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  __syncthreads();

  // The warp's rows as matrix instructions want them, for good.
  const int base = 32 * warp;
  std::uint32_t own[2][steps][4];
  if (base < rows) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        load_matrices(own[part][s], rows_at + piece(base + 16 * part + lane % 16, 2 * s + lane / 16));
      }
    }
    for (int four = 0; four < G; four += 4) {
      float sum[2][2][4] = {};
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        std::uint32_t mean[4];
        load_matrices(mean, points_at + piece(four * 4 + lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          tensor::multiply(sum[part][0], own[part][s], mean[0], mean[1]);
          tensor::multiply(sum[part][1], own[part][s], mean[2], mean[3]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = i % 2 * 2;
        const float product = sum[i / 2][0][e] + (sum[i / 2][0][e + 1] + sum[i / 2][1][e]);
        if (four + quarter < G) products[(base + 8 * i + eighth) * G + four + quarter] = product;
      }
    }
    const auto measure = [&](auto alike) {  // whether the warp's rows are of one head
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        float length[2] = {};
        const float* mean[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          mean[half] = means + row_heads[base + 16 * part + 8 * half + eighth] * D + 2 * quarter;
        }
#pragma unroll
        for (int s = 0; s < steps; ++s) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float2 center = *reinterpret_cast<const float2*>(mean[0] + 16 * s + 8 * e);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const std::uint32_t both = own[part][s][half + 2 * e];
              if (!alike.value && half > 0) center = *reinterpret_cast<const float2*>(mean[1] + 16 * s + 8 * e);
              const float first = tensor::low(both) - center.x, second = tensor::high(both) - center.y;
              length[half] += first * first + second * second;
            }
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          length[half] += __shfl_xor_sync(all_lanes, length[half], 1);
          length[half] += __shfl_xor_sync(all_lanes, length[half], 2);
          const int row = base + 16 * part + 8 * half + eighth;
          if (quarter == 0) lengths[row] = finite_rows[row] ? length[half] : 0;
        }
      }
    };
    if (row_heads[base] == row_heads[base + 31]) {
      measure(std::true_type{});
    } else {
      measure(std::false_type{});
    }
  }
  for (int i = warp; i < G * G; i += warps) {
    float product = 0;
    for (int d = lane; d < D; d += 32) product += means[i / G * D + d] * means[i % G * D + d];
    product = sum_of_warp(product);
    if (lane == 0) head_products[i / G][i % G] = product;
  }
  __syncthreads();
  if (warp < G) {
    float spread = 0;
    for (int t = lane; t < Tq; t += 32) spread += lengths[warp * Tq + t];
    spread = sum_of_warp(spread);
    if (lane == 0) {
      // The squares of rows sum to those about the mean and those of the mean.
      const bool flat = Tq > 1 && spread <= 1e-12f * (spread + finite_of[warp] * head_products[warp][warp]);
      factors[warp] = flat || spread == 0 ? 0 : rsqrtf(spread / finite_of[warp]);
    }
  }
  if (thread == 0) candidate_count = 0;
  await_kernel_before();
  __syncthreads();

  // A lane has a row of its own: 8 * quarter + eighth of the warp's.
  const int mine = base + 8 * quarter + eighth;
  const std::int64_t at = static_cast<std::int64_t>(block.list) * call.rows;
  const float need = mine < R ? call.needs[at + mine] : -1;
  float distance = 0, own_length = 0;
  int nearest = -1;
  if (base < rows) {
    const float factor = factors[row_heads[mine]];
    distance = own_length = lengths[mine] * factor * factor;
    lengths[mine] = distance;
  }

  const int n = min(call.n, R), each = max(1, call.n / 4);
  bool is_picked = false;
#pragma unroll 1
  for (int first = 0; first < n; first += each) {
    const int count = min(each, n - first);
    // At least `count` gains are no smaller than the count-th of 32 half warps' largest: few are left to rank.
    const unsigned gain = need < 0 || is_picked || base >= rows ? 0 : __float_as_uint(need * distance) + 1;
    unsigned most = gain;
#pragma unroll
    for (int step = 8; step > 0; step /= 2) most = max(most, __shfl_xor_sync(all_lanes, most, step));
    if (lane % 16 == 0) half_maxima[2 * warp + lane / 16] = most;
    __syncthreads();
    if (thread < at_once) pick_heads[thread] = -1;
    const unsigned other = half_maxima[lane];
    int above = 0;
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(half_maxima + i);
      above += (four.x > other) + (four.y > other) + (four.z > other) + (four.w > other);
    }
    const unsigned least = max(__reduce_min_sync(all_lanes, above < count ? other : 0xffffffffu), 1u);
    const unsigned found = __ballot_sync(all_lanes, gain >= least);
    int to = 0;
    if (lane == 0 && found != 0) to = atomicAdd(&candidate_count, __popc(found));
    to = __shfl_sync(all_lanes, to, 0) + __popc(found & ((1u << lane) - 1));
    if (gain >= least) candidates[to] = static_cast<unsigned long long>(gain) << 32 | static_cast<unsigned>(~mine);
    __syncthreads();
    const int all = candidate_count;
    for (int i = warp; i < all; i += warps) {
      const unsigned long long key = candidates[i];
      int rank = 0;
      for (int j = 0; j < all; j += 32) {
        rank += __popc(__ballot_sync(all_lanes, j + lane < all && candidates[min(j + lane, all - 1)] > key));
      }
      if (rank >= count) continue;
      const int row = static_cast<int>(~static_cast<unsigned>(key)), head = row_heads[row];
      if (lane < columns) {
        *reinterpret_cast<uint4*>(points + piece(rank, lane)) =
            *reinterpret_cast<const uint4*>(own_rows + piece(row, lane));
      }
      const float factor = 2 * factors[head];
      if (lane < G) {  // what of a distance to rows of head `lane` depends on the pick alone
        pick_lengths[rank][lane] =
            lengths[row] + factors[lane] * factor * (products[row * G + lane] - head_products[lane][head]);
      }
      if (lane == 0) {
        picked[first + rank] = row;
        taken[row] = static_cast<std::uint8_t>(rank + 1);
        pick_heads[rank] = head;
        pick_factors[rank] = factor;
      }
    }
    if (thread >= all && thread < count) picked[first + thread] = -1;
    __syncthreads();
    if (thread == 0) candidate_count = 0;
    if (base >= rows) continue;

    float sum[2][2][4] = {};  // [rows, picks]
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      std::uint32_t point[4];
      load_matrices(point, points_at + piece(lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        tensor::multiply(sum[part][0], own[part][s], point[0], point[1]);
        tensor::multiply(sum[part][1], own[part][s], point[2], point[3]);
      }
    }
    float near[4];
    int who[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      near[i] = __int_as_float(0x7f800000);
      who[i] = -1;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int pick = j / 2 * 8 + 2 * quarter + j % 2, head = pick_heads[pick];
      const float factor = pick_factors[pick];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = base + 8 * i + eighth, own_head = row_heads[row];
        const float product = products[row * G + max(head, 0)] - sum[i / 2][j / 2][i % 2 * 2 + j % 2];
        const float apart = fmaf(factors[own_head] * factor, product, pick_lengths[pick][own_head]);
        if (head >= 0 && apart < near[i]) {
          near[i] = apart;
          who[i] = pick;
        }
      }
    }
    // Lane `quarter` of four ends with its own row's nearest; of equal ones the earlier pick.
    const auto closer = [](float& apart, int& pick, float its, int its_pick) {
      if (its < apart || (its == apart && its_pick >= 0 && its_pick < pick)) {
        apart = its;
        pick = its_pick;
      }
    };
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const bool odd = quarter % 2 != 0;
      const float give = odd ? near[i] : near[i + 1];
      const int give_pick = odd ? who[i] : who[i + 1];
      near[i] = odd ? near[i + 1] : near[i];
      who[i] = odd ? who[i + 1] : who[i];
      closer(near[i], who[i], __shfl_xor_sync(all_lanes, give, 1), __shfl_xor_sync(all_lanes, give_pick, 1));
    }
    const bool upper = quarter / 2 != 0;
    const float give = upper ? near[0] : near[2];
    const int give_pick = upper ? who[0] : who[2];
    near[0] = upper ? near[2] : near[0];
    who[0] = upper ? who[2] : who[0];
    closer(near[0], who[0], __shfl_xor_sync(all_lanes, give, 2), __shfl_xor_sync(all_lanes, give_pick, 2));
    near[0] = fmaxf(own_length + near[0], 0.0f);
    if (taken[mine] != 0 && !is_picked) {
      is_picked = true;
      near[0] = 0;
      who[0] = taken[mine] - 1;
    }
    if (who[0] >= 0 && (nearest < 0 || near[0] < distance)) {
      distance = near[0];
      nearest = first + who[0];
    }
  }
  if (need < 0) nearest = -1;

  // Members of each pick, by row.
  for (int i = thread; i < warps * tile::most_picks / 4; i += tile::threads) {
    reinterpret_cast<std::uint32_t*>(joined)[i] = 0;
  }
  __syncthreads();
  // Lanes in the order of their rows.
  const int in_order = __shfl_sync(all_lanes, nearest, lane % 8 * 4 + lane / 8), row = base + lane;
  const float row_need = __shfl_sync(all_lanes, need, lane % 8 * 4 + lane / 8);
  const unsigned alike = __match_any_sync(all_lanes, in_order);
  const int place = __popc(alike & ((1u << lane) - 1));
  if (in_order >= 0 && place == 0) joined[warp][in_order] = static_cast<std::uint8_t>(__popc(alike));
  if (row < R) call.nearest[at + row] = in_order;
  __syncthreads();
  if (thread < tile::most_picks) {
    int sum = 0;
    for (int i = 0; i < warps; ++i) {
      places[i][thread] = static_cast<std::uint16_t>(sum);
      sum += joined[i][thread];
    }
    starts[thread + 1] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    int two[2] = {starts[1 + 2 * lane], starts[2 + 2 * lane]}, through = two[0] + two[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(all_lanes, through, step);
      if (lane >= step) through += before;
    }
    starts[1 + 2 * lane] = through - two[1];
    starts[2 + 2 * lane] = through;
    if (lane == 0) starts[0] = 0;
  }
  __syncthreads();
  uint2* const members = reinterpret_cast<uint2*>(candidates);  // row and need, by pick
  if (in_order >= 0) {
    members[starts[in_order] + places[warp][in_order] + place] = make_uint2(row, __float_as_uint(row_need));
  }
  __syncthreads();
  constexpr int own_columns = D / 32, together = 4;
  const int column = lane * own_columns / 8, in_column = lane * own_columns % 8 * 2;
  for (int query = warp; query < n; query += warps) {
    const int pick = picked[query], begin = starts[query], end = starts[query + 1];
    float values[own_columns] = {}, weight = 0;
    const auto add = [&](int of, float by) {
      const char* const from = own_rows + piece(of, column) + in_column;
#pragma unroll
      for (int i = 0; i < own_columns; i += 2) {
        const std::uint32_t both = *reinterpret_cast<const std::uint32_t*>(from + 2 * i);
        values[i] += by * tensor::low(both);
        values[i + 1] += by * tensor::high(both);
      }
    };
#pragma unroll 1
    for (int first = begin; first < end; first += together) {
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const uint2 member = members[min(first + i, end - 1)];
        const float by = first + i < end ? __uint_as_float(member.y) : 0;
        weight += by;
        add(static_cast<int>(member.x), by);
      }
    }
    float factor = call.scale / weight;
    if (weight <= 1e-6f) {
#pragma unroll
      for (float& value : values) value = 0;
      add(max(pick, 0), 1);
      factor = call.scale;
    }
#pragma unroll
    for (float& value : values) value = pick < 0 ? __int_as_float(0x7fc00000) : value * factor;
    store_query<T, D>(call, block.list, query, lane * own_columns, values);
    if (lane == 0) call.picked[static_cast<std::int64_t>(block.list) * call.n + query] = pick;
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
