// SPDX-License-Identifier: Apache-2.0
/// \file Step 2 of `query_choice::needed` by tensor cores: a block's rows in shared memory as they are stored, and what of
/// their features does not depend on other rows.
#pragma once

#include <skim/cuda/selector/tensor_needs.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Sixteen warps of 32 rows; in shared memory rows of 2 D bytes whose 16 bytes number c stand at c ^ (row % 8).
struct tensor_picking {
  static constexpr int threads = 512, warps = threads / 32, most_rows = 512, most_picks = 64, most_group = 8;
  static constexpr int at_once = 16;                     // rows picked in a round, at most
  static constexpr std::size_t other_bytes = 10 * 1024;  // of shared memory, whose size is known when compiled

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
           bytes(rows, group, D) + other_bytes <= shared_bytes_of_block();
  }
};

/// With x a row, m and u its head's mean and one over the root of its mean squared distance from it, X [row, head] = x . m of
/// any head and a = u^2 |x - m|^2: |y_r - y_c|^2 = a_r + a_c - 2 u_r u_c (x_r . x_c - X_c - X_r + m_r . m_c), X_c with the mean
/// of r's head, X_r with that of c's. Products x . x are exact, sums f32.
template <class T, int D>
class row_features {
 public:
  using tile = tensor_picking;
  using tensor = tensor_type<T>;
  static constexpr int columns = D / 8, steps = D / 16, warps = tile::warps;

  /// In shared memory, of sizes known when compiled.
  struct scratch {
    float head_products[tile::most_group][tile::most_group], factors[tile::most_group];  // m . m; u
    float finite_of[tile::most_group];                                                   // rows of a head, at least 1
    bool finite_rows[tile::most_rows];
    std::uint8_t row_heads[tile::most_rows];
  };

  /// `shared`: `tensor_picking::bytes`.
  SKIM_DEVICE row_features(const quoka_call& of_call, const quoka_block& of_block, scratch& to, char* shared)
      : call(of_call), block(of_block), at(to) {
    R = block.rows;
    rows = tile::rows_of(R);
    G = call.group;
    Tq = block.Tq;
    candidates = reinterpret_cast<unsigned long long*>(shared);
    lengths = reinterpret_cast<float*>(candidates + tile::most_rows);
    means = lengths + tile::most_rows;
    own_rows = reinterpret_cast<char*>(means + tile::most_group * D);
    points = own_rows + rows * 2 * D;
    products = reinterpret_cast<float*>(points + tile::mean_rows(G) * 2 * D);
    thread = threadIdx.x;
    warp = thread / 32;
    lane = thread % 32;
    eighth = lane / 4;
    quarter = lane % 4;
    base = 32 * warp;
  }

  /// All of it but what `lengths` become once factors are known: a = u^2 times them.
  SKIM_DEVICE void find() {
    load_rows();
    __syncthreads();
    find_means();
    __syncthreads();
    if (base < rows) {
      keep_rows();
      multiply_means();
      if (at.row_heads[base] == at.row_heads[base + 31]) {
        measure(std::true_type{});
      } else {
        measure(std::false_type{});
      }
    }
    multiply_heads();
    __syncthreads();
    find_factors();
  }

 protected:
  static SKIM_DEVICE int piece(int row, int column) { return row * 2 * D + ((column ^ (row & 7)) << 4); }

  const quoka_call& call;
  const quoka_block& block;
  scratch& at;
  int R, rows, G, Tq, thread, warp, lane, eighth, quarter, base;  // base: the warp's first row
  unsigned long long* candidates;
  float *lengths, *means;          // [rows]: |x - m|^2; [G, D]
  char *own_rows, *points;         // points: rows of means, then the picks of a round
  float* products;                 // [rows, G]: X
  std::uint32_t own[2][steps][4];  // the warp's rows as matrix instructions want them

 private:
  /// Zeros in place of rows with an infinity or NaN.
  SKIM_DEVICE void load_rows() {
    const T* const q =
        reinterpret_cast<const T*>(call.q) + block.first_token * call.q_row + block.head * G * call.q_head;
    constexpr int rows_at_once = tile::threads / columns;
    const int column = thread % columns, more_heads = rows_at_once / Tq, more_tokens = rows_at_once % Tq;
    int token = thread / columns % Tq, head = thread / columns / Tq;
#pragma unroll 4
    for (int row = thread / columns; row < rows; row += rows_at_once) {
      copy_16(shared_address(own_rows + piece(row, column)),
              q + token * call.q_row + min(head, G - 1) * call.q_head + 8 * column, row < R);
      token += more_tokens;
      head += more_heads + (token >= Tq ? 1 : 0);
      token -= token >= Tq ? Tq : 0;
    }
    end_copies();
    for (int i = thread; i < tile::mean_rows(G) * columns; i += tile::threads) {
      reinterpret_cast<uint4*>(points)[i] = make_uint4(0, 0, 0, 0);
    }
    at.row_heads[thread] = static_cast<std::uint8_t>(min(thread, R - 1) / Tq);
    await_copies<0>();
    for (int first = 0; first < rows; first += rows_at_once) {  // what a thread copied itself
      const int row = first + thread / columns;
      uint4* const own_piece = reinterpret_cast<uint4*>(own_rows + piece(min(row, rows - 1), column));
      const unsigned all = __ballot_sync(all_lanes, row < rows && all_finite<T>(*own_piece));
      constexpr unsigned whole = columns == 16 ? 0xffffu : 0xffu;
      const bool finite = (all >> (lane / columns * columns) & whole) == whole;
      if (row >= rows) continue;
      if (!finite) *own_piece = make_uint4(0, 0, 0, 0);
      if (column == 0) at.finite_rows[row] = finite && row < R;
    }
  }

  /// Eight lanes share the rows of a head's 16 bytes.
  SKIM_DEVICE void find_means() {
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
        finite += at.finite_rows[row] ? 1 : 0;
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
      if (column == 0) at.finite_of[head] = fmaxf(finite, 1);
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
  }

  SKIM_DEVICE void keep_rows() {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        load_matrices(own[part][s], shared_address(own_rows) + piece(base + 16 * part + lane % 16, 2 * s + lane / 16));
      }
    }
  }

  SKIM_DEVICE void multiply_means() {
    for (int four = 0; four < G; four += 4) {
      float sum[2][2][4] = {};
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        std::uint32_t mean[4];
        load_matrices(mean, shared_address(points) + piece(four * 4 + lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
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
  }

  /// `alike`: whether the warp's rows are of one head.
  template <class Alike>
  SKIM_DEVICE void measure(Alike alike) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float length[2] = {};
      const float* mean[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mean[half] = means + at.row_heads[base + 16 * part + 8 * half + eighth] * D + 2 * quarter;
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
        if (quarter == 0) lengths[row] = at.finite_rows[row] ? length[half] : 0;
      }
    }
  }

  SKIM_DEVICE void multiply_heads() {
    for (int i = warp; i < G * G; i += warps) {
      float product = 0;
      for (int d = lane; d < D; d += 32) product += means[i / G * D + d] * means[i % G * D + d];
      product = sum_of_warp(product);
      if (lane == 0) at.head_products[i / G][i % G] = product;
    }
  }

  SKIM_DEVICE void find_factors() {
    if (warp < G) {
      float spread = 0;
      for (int t = lane; t < Tq; t += 32) spread += lengths[warp * Tq + t];
      spread = sum_of_warp(spread);
      if (lane == 0) {
        // The squares of rows sum to those about the mean and those of the mean.
        const bool flat = Tq > 1 && spread <= 1e-12f * (spread + at.finite_of[warp] * at.head_products[warp][warp]);
        at.factors[warp] = flat || spread == 0 ? 0 : rsqrtf(spread / at.finite_of[warp]);
      }
    }
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
