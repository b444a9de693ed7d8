// SPDX-License-Identifier: Apache-2.0
/// \file How an FFN's blocks are cut into tiles of rows, columns and splits, and what its kernels share.
///
/// Two products make an FFN. The first gives the values of a tile of rows for some neurons; they go to scratch, rounded to
/// what the second multiplies: [rows, the list's neurons, zeros up to a multiple of 64, those of the compensator, zeros].
/// The second sums over that row in segments, which follow from its length and d alone; segments are added in order, by one
/// block or by the last of several. So a block of tokens has the same bits alone, in a longer call and on every GPU.
#pragma once

#include <skim/cuda/launch.cuh>
#include <skim/ffn.hpp>
#include <skim/index_lists.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Rows of a tile, columns of one of the second product, and neurons of a step of its sum.
struct ffn_tile {
  static constexpr int rows = 128, columns = 128, step = 64;
};

/// Blocks of tokens that follow each other and have as many rows each, but perhaps the last. Dense ones are one block.
struct ffn_run {
  int first_row = 0, rows = 0, block_rows = 1;
  int first_tile = 0, tiles_of_block = 0;
  int first_list = 0, lists = 0;  // none: all neurons
  int neurons = 0;                // that each is to have
  bool compensated = false;
};

struct ffn_runs {
  static constexpr int most = 64, most_lists = 256;  // a kernel's parameters have 4096 bytes; lists: of scratch

  ffn_run run[most];
  int count = 0, tiles = 0, first_row = 0, rows = 0, first_list = 0, lists = 0;
};

/// Rows of one block that chooses neurons.
struct row_range {
  int first, rows;
};
SKIM_DEVICE row_range block_of_list(const ffn_runs& runs, int list, int& neurons) {
  int at = 0;
  while (list < runs.run[at].first_list || list >= runs.run[at].first_list + runs.run[at].lists) ++at;
  const ffn_run& run = runs.run[at];
  const int first = (list - run.first_list) * run.block_rows;
  neurons = run.neurons;
  return {run.first_row + first, min(run.block_rows, run.rows - first)};
}

struct ffn_call {
  const char *x, *gate, *up, *down, *c1, *c2;  // x and out: from the runs' first row on
  char* out;
  std::int64_t x_row, gate_row, up_row, down_row, c1_row, c2_row, out_row;  // strides in elements
  const std::int32_t *indices, *counts;                                     // of lists
  std::int64_t list_capacity;
  char* values;  // [rows, values_row], of the weights' type or f32
  std::int64_t values_row;
  float* partial;      // [row tiles * column tiles, splits, tile], where several blocks share a sum
  unsigned* arrivals;  // [row tiles * column tiles]
  int d, f, C, splits, column_tiles;
  element x_type, weight_type, c_type, out_type;
  activation act, c_act;
  bool gated, out_in_pairs, x_early;  // x_early: what kernels read as x is older than the chain
  ffn_runs runs;
};

struct ffn_rows {
  int first, rows;  // of the runs' rows
  const std::int32_t* list;
  int count, padded, C;  // neurons of the list, their room in a row of values, neurons of the compensator

  SKIM_DEVICE int steps() const { return padded / ffn_tile::step + (C + ffn_tile::step - 1) / ffn_tile::step; }
  SKIM_DEVICE int neuron(int i) const { return list ? __ldcg(list + i) : i; }
};

/// Where tile `tile` of rows lies.
struct tile_place {
  int run, block, first, rows;
};
SKIM_DEVICE tile_place place_of_tile(const ffn_call& call, int tile) {
  int at = 0;
  while (at + 1 < call.runs.count && tile >= call.runs.run[at + 1].first_tile) ++at;
  const ffn_run& run = call.runs.run[at];
  const int own = tile - run.first_tile, block = own / run.tiles_of_block;
  const int before = (own - block * run.tiles_of_block) * ffn_tile::rows, first = block * run.block_rows + before;
  return {at, block, run.first_row + first, min(min(ffn_tile::rows, run.block_rows - before), run.rows - first)};
}
/// With what it computes. Reads its list's length, where that is not known.
SKIM_DEVICE ffn_rows rows_of_tile(const ffn_call& call, int tile) {
  const tile_place place = place_of_tile(call, tile);
  const ffn_run& run = call.runs.run[place.run];
  ffn_rows rows;
  rows.first = place.first;
  rows.rows = place.rows;
  const std::int64_t list = run.first_list + place.block;
  rows.list = run.lists > 0 ? call.indices + list * call.list_capacity : nullptr;
  rows.count = run.lists == 0 ? call.f : call.counts ? __ldcg(call.counts + list) : run.neurons;
  rows.padded = (rows.count + ffn_tile::step - 1) / ffn_tile::step * ffn_tile::step;
  rows.C = run.compensated ? call.C : 0;
  return rows;
}

/// Into how many segments a sum of `steps` is cut: as many as one tile of rows needs for 132 processors.
SKIM_HD SKIM_INLINE constexpr int segments_of(int steps, int column_tiles) {
  const int wanted = 132 / column_tiles, most = steps / 8 < 8 ? steps / 8 : 8;
  const int segments = wanted < most ? wanted : most;
  return segments > 1 ? segments : 1;
}

/// Steps [begin, end) of segment `i` of `segments`.
struct step_range {
  int begin, end;
};
SKIM_DEVICE step_range segment_at(int steps, int segments, int i) {
  const int each = steps / segments, more = steps % segments;
  const int begin = i * each + min(i, more);
  return {begin, begin + each + (i < more ? 1 : 0)};
}

/// Within 4e-7 (|act(x)| + |x|) of the definition.
SKIM_DEVICE float activate(activation act, float x) {
  switch (act) {
    case activation::silu:
      return __fdividef(x, 1 + power_of_2(-log2_e * x));
    case activation::gelu_tanh:
      return __fdividef(x, 1 + power_of_2(-2 * 0.7978845608f * log2_e * (x + 0.044715f * x * x * x)));
    case activation::gelu_erf:
      return 0.5f * x * erfcf(-0.7071067812f * x);
    case activation::relu:
      return x < 0 ? 0 : x;
    case activation::relu_squared:
      return x < 0 ? 0 : x * x;
  }
  return x;
}

/// Rounds the values of a tile of neurons, of which `sums [rows, pitch]` in shared memory are the products with x: those of
/// gate and up side by side. Values `first` to `last` of the row are written; from `count` on they are zeros. Both ends are
/// even. `threads` threads.
template <class T, bool Gated>
SKIM_DEVICE void write_values(const ffn_call& call, const ffn_rows& at, activation act, const float* sums, int pitch,
                              int first, int last, int count, int column, int thread, int threads) {
  const int pairs = (last - first) / 2;
  char* const to = call.values + (at.first * call.values_row + column) * static_cast<int>(sizeof(T));
  for (int pair = thread % 32; pair < pairs; pair += 32) {
    const int left = count - first - 2 * pair;
#pragma unroll 4
    for (int row = thread / 32; row < at.rows; row += threads / 32) {
      float value[2] = {0, 0};
      if (left > 0) {
        if constexpr (Gated) {
          const float4 both = *reinterpret_cast<const float4*>(sums + row * pitch + 4 * pair);
          value[0] = activate(act, both.x) * both.y;
          value[1] = left > 1 ? activate(act, both.z) * both.w : 0;
        } else {
          const float2 both = *reinterpret_cast<const float2*>(sums + row * pitch + 2 * pair);
          value[0] = activate(act, both.x);
          value[1] = left > 1 ? activate(act, both.y) : 0;
        }
      }
      *reinterpret_cast<std::uint32_t*>(to + (row * call.values_row + 2 * pair) * static_cast<int>(sizeof(T))) =
          tensor_type<T>::pack(value[0], value[1]);
    }
  }
}

/// Columns of a tile's output that a thread has: in each of `Parts` parts, `part_rows` apart, of rows `row` and row + 8 the
/// columns first + 8 n and the next, as `mma.sync` spreads sums: `sum(part, n, half, e)`.
template <int Parts, int Groups, class Sum>
SKIM_DEVICE void write_output(const ffn_call& call, const ffn_rows& at, int row, int part_rows, int first,
                              const Sum& sum) {
  const auto store_all = [&](auto type) {
    using Out = decltype(type);
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = row + part * part_rows + 8 * half;
        if (own >= at.rows) continue;
        Out* const to = reinterpret_cast<Out*>(call.out) + (at.first + own) * call.out_row + first;
#pragma unroll
        for (int n = 0; n < Groups; ++n) {
          if (first + 8 * n >= call.d) continue;  // d is even
          store_pair(to + 8 * n, sum(part, n, half, 0), sum(part, n, half, 1), call.out_in_pairs);
        }
      }
    }
  };
  if (call.out_type == element::bf16) {
    store_all(bf16{});
  } else if (call.out_type == element::f16) {
    store_all(f16{});
  } else {
    store_all(0.0f);
  }
}

/// Sums of one segment of several go to scratch; who comes last adds up all, in order. `Threads` threads with `Sums` sums
/// each, a multiple of 4, which wait for each other by `wait()`. Says whether `sums` are the whole now.
template <int Threads, int Sums, class Wait>
SKIM_DEVICE bool join_segments(const ffn_call& call, float (&sums)[Sums], int unit, int segment, int segments,
                               int thread, int* last, const Wait& wait) {
  constexpr int each = Threads * Sums / 4;
  float4* const all = reinterpret_cast<float4*>(call.partial) + static_cast<std::int64_t>(unit) * call.splits * each;
#pragma unroll
  for (int i = 0; i < Sums / 4; ++i) {
    __stcg(all + segment * each + i * Threads + thread,
           make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
  }
  __threadfence();
  wait();
  if (thread == 0) *last = atomicAdd(call.arrivals + unit, 1u) == static_cast<unsigned>(segments - 1) ? 1 : 0;
  wait();
  if (*last == 0) return false;
  __threadfence();
#pragma unroll
  for (float& sum : sums) sum = 0;
#pragma unroll 1
  for (int s = 0; s < segments; ++s) {  // all loads of a segment are under way at once
    float4 more[Sums / 4];
#pragma unroll
    for (int i = 0; i < Sums / 4; ++i) more[i] = __ldcg(all + s * each + i * Threads + thread);
#pragma unroll
    for (int i = 0; i < Sums / 4; ++i) {
      sums[4 * i] += more[i].x;
      sums[4 * i + 1] += more[i].y;
      sums[4 * i + 2] += more[i].z;
      sums[4 * i + 3] += more[i].w;
    }
  }
  return true;
}

/// x, rounded to T and in rows of d, where kernels cannot take it as it is. Grid: pieces of a row, rows.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) round_rows(const ffn_call call, T* to) {
  start_in_chain();
  const int d = blockIdx.x * Threads + threadIdx.x;
  if (d >= call.d) return;
  for (std::int64_t row = blockIdx.y; row < call.runs.rows; row += gridDim.y) {
    store(to, element_of<T>, row * call.d + d, load(call.x, call.x_type, row * call.x_row + d));
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
