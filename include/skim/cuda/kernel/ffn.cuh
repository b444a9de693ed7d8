// SPDX-License-Identifier: Apache-2.0
/// \file Launches the FFN of blocks on listed neurons: which kernels a call takes, how it is cut, what scratch that needs.
#pragma once

#include <skim/cuda/arch/ffn_sm80.cuh>
#include <skim/cuda/arch/ffn_sm90.cuh>
#include <skim/cuda/kernel/ffn_any.cuh>
#include <skim/cuda/kernel/ffn_runs.cuh>
#include <skim/neuron_selector/compensator.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Whether 16 bytes at a time can be copied of every row of a matrix of 16-bit numbers.
inline bool rows_of_16(const tensor_view<const void, 2>& matrix) {
  return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && matrix.strides[0] % 8 == 0;
}
inline bool is_16_bit(element type) {
  return type == element::bf16 || type == element::f16;
}
inline std::int64_t whole_steps(std::int64_t n) {
  return pieces(n, ffn_tile::step) * ffn_tile::step;
}

/// Whether tensor cores take a call.
inline bool by_tensor_cores(const ffn_args& args, const neuron_compensator& added) {
  if (!is_16_bit(args.up.type) || args.x.extents[1] % 8 != 0) return false;
  if (!rows_of_16(args.up) || !rows_of_16(args.down) || (is_gated(args) && !rows_of_16(args.gate))) return false;
  return !compensates(added) || (added.c1.type == args.up.type && added.c1.extents[1] % 8 == 0 &&
                                 rows_of_16(added.c1) && rows_of_16(added.c2));
}
/// Whether kernels on tensor cores take x as it is; else it is rounded to the weights' type first.
inline bool takes_x(const ffn_args& args) {
  return args.x.type == args.up.type && rows_of_16(args.x) && args.x.strides[0] >= args.x.extents[1] &&
         args.x.strides[0] < std::int64_t{1} << 38;  // as the copy engine's
}

/// Scratch of the two products, for lists of at most `longest` neurons.
struct ffn_scratch {
  static constexpr std::int64_t most_rows = 4096, most_shared_units = 66;

  std::int64_t rows, values_row;  // that tensor cores take at a time; others take half as many of 16-bit weights
  char *values, *x;
  float* partial;
  unsigned* arrivals;

  ffn_scratch(const ffn_args& args, const neuron_compensator& added, std::int64_t longest, skim::detail::arena& arena) {
    const std::int64_t M = args.x.extents[0], d = args.x.extents[1];
    const std::int64_t C = compensates(added) ? added.c1.extents[1] : 0;
    const bool narrow = is_16_bit(args.up.type);
    rows = smaller(M, most_rows);
    values_row = whole_steps(longest) + whole_steps(C);
    values = arena.take<char>((narrow ? greater(2 * rows, 4) : 4 * rows) * values_row);
    x = arena.take<char>(narrow ? rows * d * 2 : 0);
    const std::int64_t column_tiles = pieces(d, ffn_tile::columns);
    const std::int64_t units = narrow ? smaller(most_shared_units / column_tiles, M) * column_tiles : 0;
    const std::int64_t splits =
        segments_of(static_cast<int>(values_row / ffn_tile::step), static_cast<int>(column_tiles));
    partial = arena.take<float>(splits > 1 ? units * splits * ffn_tile::rows * ffn_tile::columns : 0);
    arrivals = arena.take<unsigned>(units);
  }
};

inline ffn_call describe(const ffn_args& args, const neuron_compensator& added, const ffn_runs& runs,
                         const ffn_scratch& scratch) {
  ffn_call call{};
  const auto bytes = [](const auto& matrix) { return static_cast<const char*>(matrix.data); };
  const tensor_view<void, 2> out = rows(args.out, runs.first_row, runs.rows);
  call.x = bytes(rows(args.x, runs.first_row, runs.rows));
  call.out = static_cast<char*>(out.data);
  call.gate = bytes(args.gate);
  call.up = bytes(args.up);
  call.down = bytes(args.down);
  call.x_row = args.x.strides[0];
  call.out_row = args.out.strides[0];
  call.gate_row = args.gate.strides[0];
  call.up_row = args.up.strides[0];
  call.down_row = args.down.strides[0];
  call.x_type = args.x.type;
  call.out_type = args.out.type;
  call.weight_type = args.up.type;
  call.act = args.act;
  call.gated = is_gated(args);
  call.d = static_cast<int>(args.x.extents[1]);
  call.f = static_cast<int>(args.up.extents[0]);
  if (compensates(added)) {
    call.c1 = bytes(added.c1);
    call.c2 = bytes(added.c2);
    call.c1_row = added.c1.strides[0];
    call.c2_row = added.c2.strides[0];
    call.c_type = added.c1.type;
    call.c_act = added.act;
    call.C = static_cast<int>(added.c1.extents[1]);
  }
  call.out_in_pairs =
      call.out_type != element::f32 && call.out_row % 2 == 0 && reinterpret_cast<std::uintptr_t>(call.out) % 4 == 0;
  call.values = scratch.values;
  call.values_row = scratch.values_row;
  call.partial = scratch.partial;
  call.arrivals = scratch.arrivals;
  call.column_tiles = static_cast<int>(pieces(call.d, ffn_tile::columns));
  call.splits = 1;
  call.x_early = true;
  call.runs = runs;
  return call;
}

/// The two products of one call, on 16-bit weights: tiles of the compensator's neurons, and the longest list.
template <class T>
void compute_by_tensor_cores(ffn_call call, const ffn_scratch& scratch, bool direct_x, bool compensated,
                             std::int64_t longest, launcher& launch) {
  const std::int64_t tiles = call.runs.tiles;
  if (!direct_x) {
    constexpr int threads = 256;
    launch(&round_rows<T, threads>, pieces(call.d, threads), smaller(call.runs.rows, 65535), threads, 0, call,
           reinterpret_cast<T*>(scratch.x));
    call.x = scratch.x;
    call.x_row = call.d;
    call.x_type = element_of<T>;
    call.x_early = false;
  }
  const int own_tiles = static_cast<int>(compensated ? pieces(call.C, ffn_tile::columns) : 0);
  const std::int64_t units = tiles * call.column_tiles;
  const int most_steps =
      static_cast<int>((whole_steps(longest) + whole_steps(compensated ? call.C : 0)) / ffn_tile::step);
  if (units <= ffn_scratch::most_shared_units) call.splits = segments_of(most_steps, call.column_tiles);
  const auto grid = [&](std::int64_t neurons) { return (own_tiles + pieces(greater(longest, 1), neurons)) * tiles; };
  CUtensorMap x_map, values_map;
  if (launch.hopper() && map_matrix<T>(x_map, call.x, call.runs.rows, call.d, call.x_row, ffn_tile::rows) &&
      map_matrix<T>(values_map, call.values, call.runs.rows, call.values_row, call.values_row, ffn_tile::rows)) {
    const auto find = [&](auto gated, auto columns) {
      constexpr int neurons = gated.value ? columns.value / 2 : columns.value;
      launch(&find_values_by_warpgroups<T, gated.value, columns.value>, grid(neurons), 1, warpgroup_ffn::threads,
             warpgroup_ffn::bytes, call, own_tiles, x_map);
    };
    // Narrow tiles where there are processors for all.
    const bool narrow = grid(call.gated ? 56 : 112) <= 132;
    constexpr std::integral_constant<int, 112> half{};
    constexpr std::integral_constant<int, 224> whole{};
    if (call.gated) {
      narrow ? find(std::true_type{}, half) : find(std::true_type{}, whole);
    } else {
      narrow ? find(std::false_type{}, half) : find(std::false_type{}, whole);
    }
    launch(call.splits > 1 ? &sum_values_by_warpgroups<T, true> : &sum_values_by_warpgroups<T, false>,
           units * call.splits, 1, warpgroup_ffn::threads, warpgroup_ffn::bytes, call, values_map);
    return;
  }
  launch(call.gated ? &find_values_by_tensor_cores<T, true> : &find_values_by_tensor_cores<T, false>,
         grid(call.gated ? tensor_ffn::columns / 2 : tensor_ffn::columns), 1, tensor_ffn::threads, tensor_ffn::bytes,
         call, own_tiles);
  launch(call.splits > 1 ? &sum_values_by_tensor_cores<T, true> : &sum_values_by_tensor_cores<T, false>,
         units * call.splits, 1, tensor_ffn::threads, tensor_ffn::bytes, call);
}

/// The FFN of the blocks of `runs`, and what their compensator adds. `lists`: rows as `runs` number them, of at most
/// `longest` neurons, which scratch was made for.
inline void compute_runs(const ffn_args& args, const neuron_compensator& added, const ffn_runs& runs,
                         const index_lists& lists, std::int64_t longest, const ffn_scratch& scratch, launcher& launch) {
  const bool tensor = by_tensor_cores(args, added), halved = !tensor && is_16_bit(args.up.type);
  for_parts(runs, halved ? greater(scratch.rows / 2, 1) : scratch.rows, [&](const ffn_runs& part) {
    ffn_call call = describe(args, added, part, scratch);
    call.indices = lists.indices;
    call.counts = lists.counts;
    call.list_capacity = lists.capacity;
    bool compensated = false, dense = false;
    for (int i = 0; i < part.count; ++i) {
      compensated = compensated || (part.run[i].compensated && part.run[i].rows > 0);
      dense = dense || (part.run[i].lists == 0 && part.run[i].rows > 0);
    }
    compensated = compensated && call.C > 0;
    const std::int64_t most = dense ? call.f : smaller(longest, smaller(lists.capacity, call.f));
    if (tensor && args.up.type == element::bf16) {
      compute_by_tensor_cores<bf16>(call, scratch, takes_x(args), compensated, most, launch);
    } else if (tensor) {
      compute_by_tensor_cores<f16>(call, scratch, takes_x(args), compensated, most, launch);
    } else {
      constexpr int threads = plain_ffn::threads, halves = ffn_tile::rows / plain_ffn::rows;
      const int own_tiles = static_cast<int>(compensated ? pieces(call.C, plain_ffn::columns) : 0);
      launch(&find_values_plainly<threads>, (own_tiles + pieces(greater(most, 1), plain_ffn::columns)) * part.tiles,
             halves, threads, 0, call, own_tiles);
      launch(&sum_values_plainly<threads>, pieces(call.d, plain_ffn::columns) * part.tiles, halves, threads, 0, call);
    }
  });
}

/// What the GPU cannot do, by name.
inline report check_limits(const ffn_args& args, const neuron_compensator& added) {
  if (report r = check_loadable(args.x.type, "x"); !r) return r;
  if (report r = check_loadable(args.up.type, "up"); !r) return r;
  if (report r = check_loadable(args.out.type, "out"); !r) return r;
  return compensates(added) ? check_loadable(added.c1.type, "compensator.c1") : report{};
}

}}}}  // namespace skim::v0_2::cuda::detail
