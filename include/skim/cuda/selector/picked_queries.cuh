// SPDX-License-Identifier: Apache-2.0
/// \file Steps 2 to 4 of `query_choice::needed` by tensor cores, for blocks of at most 512 packed rows. As
/// needed_queries.cuh, but that rows are multiplied as they are stored and means taken away afterwards.
#pragma once

#include <skim/cuda/selector/row_features.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Picks rows in rounds, then averages those that are nearest to each pick.
template <class T, int D>
class row_picker : row_features<T, D> {
  using features = row_features<T, D>;
  using features::base, features::block, features::call, features::candidates, features::columns, features::eighth;
  using features::G, features::lane, features::lengths, features::own, features::own_rows, features::piece;
  using features::points, features::products, features::quarter, features::R, features::rows, features::steps;
  using features::thread, features::warp, features::warps;
  using typename features::tensor;
  using typename features::tile;
  static constexpr int at_once = tile::at_once;

 public:
  struct scratch : features::scratch {
    std::uint8_t taken[tile::most_rows];  // a picked row's rank in its round + 1
    alignas(16) unsigned half_maxima[32];
    int candidate_count, picked[tile::most_picks], starts[tile::most_picks + 1];
    float pick_factors[at_once], pick_lengths[at_once][tile::most_group];
    int pick_heads[at_once];
    std::uint8_t joined[warps][tile::most_picks];
    std::uint16_t places[warps][tile::most_picks];
  };

  SKIM_DEVICE row_picker(const quoka_call& of_call, const quoka_block& of_block, scratch& to, char* shared)
      : features(of_call, of_block, to, shared), at(to) {}

  SKIM_DEVICE void run() {
    at.taken[thread] = 0;
    if (thread == 0) at.candidate_count = 0;
    this->find();
    await_kernel_before();
    __syncthreads();
    // A lane has a row of its own.
    mine = base + 8 * quarter + eighth;
    need = mine < R ? call.needs[static_cast<std::int64_t>(block.list) * call.rows + mine] : -1;
    if (base < rows) {
      const float factor = at.factors[at.row_heads[mine]];
      distance = own_length = lengths[mine] * factor * factor;
      lengths[mine] = distance;
    }
    const int n = min(call.n, R), each = max(1, call.n / 4);
#pragma unroll 1
    for (int first = 0; first < n; first += each) {
      pick(first, min(each, n - first));
      if (base < rows) measure_again(first);
    }
    if (need < 0) nearest = -1;
    sort_members();
    average(n);
  }

 private:
  scratch& at;
  int mine, nearest = -1;
  float need, distance = 0, own_length = 0;  // to the nearest pick, at first |y|^2; |y|^2
  bool is_picked = false;

  SKIM_DEVICE void pick(int first, int count) {
    // At least `count` gains are no smaller than the count-th of 32 half warps' largest: few are left to rank.
    const unsigned gain = need < 0 || is_picked || base >= rows ? 0 : __float_as_uint(need * distance) + 1;
    unsigned most = gain;
#pragma unroll
    for (int step = 8; step > 0; step /= 2) most = max(most, __shfl_xor_sync(all_lanes, most, step));
    if (lane % 16 == 0) at.half_maxima[2 * warp + lane / 16] = most;
    __syncthreads();
    if (thread < at_once) at.pick_heads[thread] = -1;
    const unsigned other = at.half_maxima[lane];
    int above = 0;
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(at.half_maxima + i);
      above += (four.x > other) + (four.y > other) + (four.z > other) + (four.w > other);
    }
    const unsigned least = max(__reduce_min_sync(all_lanes, above < count ? other : 0xffffffffu), 1u);
    const unsigned found = __ballot_sync(all_lanes, gain >= least);
    int to = 0;
    if (lane == 0 && found != 0) to = atomicAdd(&at.candidate_count, __popc(found));
    to = __shfl_sync(all_lanes, to, 0) + __popc(found & ((1u << lane) - 1));
    if (gain >= least) candidates[to] = static_cast<unsigned long long>(gain) << 32 | static_cast<unsigned>(~mine);
    __syncthreads();
    const int all = at.candidate_count;
    for (int i = warp; i < all; i += warps) {
      const unsigned long long key = candidates[i];
      int rank = 0;
      for (int j = 0; j < all; j += 32) {
        rank += __popc(__ballot_sync(all_lanes, j + lane < all && candidates[min(j + lane, all - 1)] > key));
      }
      if (rank >= count) continue;
      const int row = static_cast<int>(~static_cast<unsigned>(key)), head = at.row_heads[row];
      if (lane < columns) {
        *reinterpret_cast<uint4*>(points + piece(rank, lane)) =
            *reinterpret_cast<const uint4*>(own_rows + piece(row, lane));
      }
      const float factor = 2 * at.factors[head];
      if (lane < G) {  // what of a distance to rows of head `lane` depends on the pick alone
        at.pick_lengths[rank][lane] =
            lengths[row] + at.factors[lane] * factor * (products[row * G + lane] - at.head_products[lane][head]);
      }
      if (lane == 0) {
        at.picked[first + rank] = row;
        at.taken[row] = static_cast<std::uint8_t>(rank + 1);
        at.pick_heads[rank] = head;
        at.pick_factors[rank] = factor;
      }
    }
    if (thread >= all && thread < count) at.picked[first + thread] = -1;
    __syncthreads();
    if (thread == 0) at.candidate_count = 0;
  }

  /// Whether picks of the round that began at `first` are nearer than those before.
  SKIM_DEVICE void measure_again(int first) {
    float sum[2][2][4] = {};  // [rows, picks]
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      std::uint32_t point[4];
      load_matrices(point, shared_address(points) + piece(lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2));
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
      const int pick = j / 2 * 8 + 2 * quarter + j % 2, head = at.pick_heads[pick];
      const float factor = at.pick_factors[pick];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = base + 8 * i + eighth, own_head = at.row_heads[row];
        const float product = products[row * G + max(head, 0)] - sum[i / 2][j / 2][i % 2 * 2 + j % 2];
        const float apart = fmaf(at.factors[own_head] * factor, product, at.pick_lengths[pick][own_head]);
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
    if (at.taken[mine] != 0 && !is_picked) {
      is_picked = true;
      near[0] = 0;
      who[0] = at.taken[mine] - 1;
    }
    if (who[0] >= 0 && (nearest < 0 || near[0] < distance)) {
      distance = near[0];
      nearest = first + who[0];
    }
  }

  /// Rows in the order of the picks that they are nearest to, then of their own.
  SKIM_DEVICE void sort_members() {
    for (int i = thread; i < warps * tile::most_picks / 4; i += tile::threads) {
      reinterpret_cast<std::uint32_t*>(at.joined)[i] = 0;
    }
    __syncthreads();
    // Lanes in the order of their rows.
    const int in_order = __shfl_sync(all_lanes, nearest, lane % 8 * 4 + lane / 8), row = base + lane;
    const float row_need = __shfl_sync(all_lanes, need, lane % 8 * 4 + lane / 8);
    const unsigned alike = __match_any_sync(all_lanes, in_order);
    const int place = __popc(alike & ((1u << lane) - 1));
    if (in_order >= 0 && place == 0) at.joined[warp][in_order] = static_cast<std::uint8_t>(__popc(alike));
    if (row < R) call.nearest[static_cast<std::int64_t>(block.list) * call.rows + row] = in_order;
    __syncthreads();
    if (thread < tile::most_picks) {
      int sum = 0;
      for (int i = 0; i < warps; ++i) {
        at.places[i][thread] = static_cast<std::uint16_t>(sum);
        sum += at.joined[i][thread];
      }
      at.starts[thread + 1] = sum;
    }
    __syncthreads();
    if (warp == 0) {
      int two[2] = {at.starts[1 + 2 * lane], at.starts[2 + 2 * lane]}, through = two[0] + two[1];
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(all_lanes, through, step);
        if (lane >= step) through += before;
      }
      at.starts[1 + 2 * lane] = through - two[1];
      at.starts[2 + 2 * lane] = through;
      if (lane == 0) at.starts[0] = 0;
    }
    __syncthreads();
    uint2* const members = reinterpret_cast<uint2*>(candidates);  // row and need, by pick
    if (in_order >= 0) {
      members[at.starts[in_order] + at.places[warp][in_order] + place] = make_uint2(row, __float_as_uint(row_need));
    }
    __syncthreads();
  }

  SKIM_DEVICE void average(int n) {
    const uint2* const members = reinterpret_cast<const uint2*>(candidates);
    constexpr int own_columns = D / 32, together = 4;
    const int column = lane * own_columns / 8, in_column = lane * own_columns % 8 * 2;
    for (int query = warp; query < n; query += warps) {
      const int pick = at.picked[query], begin = at.starts[query], end = at.starts[query + 1];
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
};

/// A block for each list.
template <class T, int D>
__global__ void __launch_bounds__(tensor_picking::threads, 1) pick_by_tensor_cores(const quoka_call call) {
  extern __shared__ __align__(16) char shared[];
  __shared__ typename row_picker<T, D>::scratch scratch;
  static_assert(sizeof(scratch) <= tensor_picking::other_bytes, "counted by the host");
  let_next_kernel_start();
  const quoka_block block(call, blockIdx.y);
  if (block.reads_all) return await_kernel_before();
  if (!block.takes_every_row(call)) return row_picker<T, D>(call, block, scratch, shared).run();
  await_kernel_before();
  for (int i = threadIdx.x; i < block.rows * D; i += tensor_picking::threads) {
    const float value = load(reinterpret_cast<const T*>(call.q), block.query_offset(call, i / D) + i % D);
    store_query(call, block.list, i / D, i % D, call.scale * value);
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
