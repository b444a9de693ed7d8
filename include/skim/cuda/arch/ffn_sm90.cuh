// SPDX-License-Identifier: Apache-2.0
/// \file The FFN on Hopper: a warpgroup gathers rows of weights, the copy engine brings x or values, two warpgroups multiply
/// them by `wgmma`. f16 and bf16.
#pragma once

#include <skim/cuda/arch/ffn_stages.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// As `find_values_by_tensor_cores`, `Columns` rows of weights at a time: of gate and up in turn, so that both sums of a
/// neuron are one thread's. Without Hopper's instructions it has no body.
template <class T, bool Gated, int Columns>
__global__ void __launch_bounds__(warpgroup_ffn::threads, 1)
    find_values_by_warpgroups(const ffn_call call, int compensator_tiles, const __grid_constant__ CUtensorMap x_map) {
#if SKIM_CUDA_SM90
  constexpr int neurons = Gated ? Columns / 2 : Columns, element_bytes = static_cast<int>(sizeof(T));
  extern __shared__ __align__(128) char raw[];
  const std::uint32_t raw_at = shared_address(raw);
  float* const products = reinterpret_cast<float*>(raw + ((raw_at + 1023) / 1024 * 1024 - raw_at));
  const int thread = threadIdx.x, at_tile = blockIdx.x / call.runs.tiles, tile = blockIdx.x % call.runs.tiles;
  const int steps = (call.d + ffn_tile::step - 1) / ffn_tile::step;

  if (at_tile < compensator_tiles) {
    // Nothing of this depends on lists: it overlaps with the kernels that choose them.
    using ring_type = ffn_ring<warpgroup_ffn::by_terms>;
    const ring_type ring(raw_at);
    ring.make();
    const int first = at_tile * ffn_tile::columns;
    const tile_place place = place_of_tile(call, tile);
    if (!call.runs.run[place.run].compensated) return await_kernel_before();
    if (!call.x_early) await_kernel_before();
    if (thread == 128) {
      if (!call.x_early) show_memory();
      copy_first_steps(ring, steps, x_map, place.first, 0);
    }
    if (thread < 128) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 80;");
      const int column = first + thread % 16 * 8;
      const char* const from = call.c1 + (thread / 16 * call.c1_row + column) * element_bytes;
      const std::int64_t eight_rows = 8 * call.c1_row * element_bytes;
      const int left = column < call.C ? call.d - thread / 16 : 0;
      fill_stages(
          ring, steps, x_map, place.first, 0,
          [&](std::uint32_t to, int step) {
            const char* const first_of_step = from + step * (ffn_tile::step / 8) * eight_rows;
            const char* rows[ffn_tile::step / 8];
#pragma unroll
            for (int i = 0; i < ffn_tile::step / 8; ++i) {
              rows[i] = step * ffn_tile::step + 8 * i < left ? first_of_step + i * eight_rows : nullptr;
            }
            copy_terms(to, rows);
          },
          [] {});
      await_kernel_before();
      let_next_kernel_start();
      return;
    }
    __syncwarp();
    asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
    float sums[64];
    ffn_stages<warpgroup_ffn::by_terms> stages(ring);
    multiply_terms<T>(stages, sums, steps);
    share_sums(sums, products);
    await_kernel_before();
    let_next_kernel_start();
    const ffn_rows at = rows_of_tile(call, tile);
    const int whole = (at.C + ffn_tile::step - 1) / ffn_tile::step * ffn_tile::step;
    write_values<T, false>(call, at, call.c_act, products, ffn_tile::columns + 8, first,
                           min(first + ffn_tile::columns, whole), at.C, at.padded + first, thread - 128, 256);
    return;
  }

  using ring_type = ffn_ring<warpgroup_ffn::by_columns(Columns)>;
  const ring_type ring(raw_at);
  ring.make();
  const tile_place place = place_of_tile(call, tile);
  if (place.rows <= 0) return await_kernel_before();
  if (call.x_early && thread == 128) copy_first_steps(ring, steps, x_map, place.first, 0);
  await_kernel_before();
  let_next_kernel_start();  // after the wait: the next kernel may read lists at once
  if (!call.x_early && thread == 128) {
    show_memory();
    copy_first_steps(ring, steps, x_map, place.first, 0);
  }
  if (at_tile == compensator_tiles && tile == 0 && call.splits > 1) {
    for (int i = thread; i < call.runs.tiles * call.column_tiles; i += warpgroup_ffn::threads) call.arrivals[i] = 0;
  }
  const ffn_rows at = rows_of_tile(call, tile);
  const int first = (at_tile - compensator_tiles) * neurons;
  if (first >= at.count) {
    if (thread < 128) drop_first_steps(ring, steps);
    return;
  }
  if (thread < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 80;");
    const int chunk = thread % 8, row = thread / 8;
    const char* from[Columns / 16];  // rows 16 apart: all of gate or all of up
#pragma unroll
    for (int i = 0; i < Columns / 16; ++i) {
      const std::int64_t neuron = at.neuron(min(first + (Gated ? row / 2 + 8 * i : row + 16 * i), at.count - 1));
      from[i] = (Gated && row % 2 == 0 ? call.gate + neuron * call.gate_row * element_bytes
                                       : call.up + neuron * call.up_row * element_bytes) +
                chunk * 16;
    }
    const std::uint32_t own = row * 128 + ((chunk ^ row % 8) << 4);
    if (!call.x_early && thread == 0) show_memory();
    fill_stages(
        ring, steps, x_map, at.first, 0,
        [&](std::uint32_t to, int step) {
          const bool given = step * ffn_tile::step + chunk * 8 < call.d;
#pragma unroll
          for (int i = 0; i < Columns / 16; ++i) {
            gather_16(to + own + i * 16 * 128, from[i] + (given ? step * 128 : 0), given);
          }
        },
        [] {});
    return;
  }
  __syncwarp();
  asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
  float sums[Columns / 2];
  ffn_stages<warpgroup_ffn::by_columns(Columns)> stages(ring);
  stages.multiply(steps, [&](std::uint32_t a, std::uint32_t b, int part, int keep) {
    ffn_product<T>::multiply(sums, swizzled(a, 16, 1024), swizzled(b + part * 32, 16, 1024), keep);
  });
  share_sums(sums, products);
  const int last = first + neurons < at.count ? first + neurons : at.padded;
  write_values<T, Gated>(call, at, call.act, products, Columns + 8, first, last, at.count, first, thread - 128, 256);
#endif
}

/// As `sum_values_by_tensor_cores`.
template <class T, bool Splits>
__global__ void __launch_bounds__(warpgroup_ffn::threads, 1)
    sum_values_by_warpgroups(const ffn_call call, const __grid_constant__ CUtensorMap values_map) {
#if SKIM_CUDA_SM90
  constexpr int element_bytes = static_cast<int>(sizeof(T));
  extern __shared__ __align__(128) char raw[];
  __shared__ int last;
  const ffn_ring<warpgroup_ffn::by_terms> ring(shared_address(raw));
  const int thread = threadIdx.x, splits = Splits ? call.splits : 1, split = blockIdx.x % splits,
            unit = blockIdx.x / splits;
  ring.make();
  let_next_kernel_start();
  // The kernel before let this one start after its own wait: lists are there, and weights, but not yet its values.
  const ffn_rows at = rows_of_tile(call, unit % call.runs.tiles);
  const int first = unit / call.runs.tiles * ffn_tile::columns;
  const int steps = at.steps(), segments = segments_of(steps, call.column_tiles);
  if (at.rows <= 0 || split >= segments) return await_kernel_before();
  const int begin = segment_at(steps, segments, split).begin;
  const int end = segment_at(steps, segments, Splits ? split : segments - 1).end;
  if (thread < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 80;");
    const int column = first + thread % 16 * 8;
    // Addresses of rows go through shared memory behind the stages, 16 steps at a time and as many ahead.
    constexpr int rows = ffn_tile::step / 8, steps_at_once = 16, each = steps_at_once * ffn_tile::step / 128;
    static_assert(warpgroup_ffn::stages(warpgroup_ffn::by_terms) * warpgroup_ffn::by_terms +
                          2 * steps_at_once * ffn_tile::step * static_cast<int>(sizeof(char*)) <=
                      warpgroup_ffn::most_bytes,
                  "there is room for addresses");
    const char** const addresses =
        reinterpret_cast<const char**>(raw + (ring.stage(ring.stages) - shared_address(raw)));
    int ahead[each];
    const auto look_up = [&](int step) {
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int own = (begin + step) * ffn_tile::step + thread + 128 * i;
        ahead[i] = own < at.count ? at.neuron(own) : own - at.padded;  // a row of the compensator's, if it is one
      }
    };
    const auto share_addresses = [&](int step) {
      const char** const to = addresses + step / steps_at_once % 2 * (steps_at_once * ffn_tile::step);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int own = (begin + step) * ffn_tile::step + thread + 128 * i;
        const bool given = own < at.count || (own >= at.padded && own < at.padded + at.C);
        const std::int64_t row = ahead[i];
        const char* const address = own < at.count ? call.down + row * call.down_row * element_bytes
                                                   : call.c2 + row * call.c2_row * element_bytes;
        to[thread + 128 * i] = given ? address : nullptr;
      }
      asm volatile("bar.sync 2, 128;" ::: "memory");
    };
    look_up(0);
    fill_stages(
        ring, end - begin, values_map, at.first, begin * ffn_tile::step,
        [&](std::uint32_t to, int step) {
          if (step % steps_at_once == 0) {
            share_addresses(step);
            look_up(step + steps_at_once);
          }
          const char* const* const own = addresses + step % (2 * steps_at_once) * ffn_tile::step + thread / 16;
          const char* from[rows];
#pragma unroll
          for (int i = 0; i < rows; ++i) from[i] = own[8 * i];
#pragma unroll
          for (int i = 0; i < rows; ++i) {
            from[i] = from[i] && column < call.d ? from[i] + column * element_bytes : nullptr;
          }
          copy_terms(to, from);
        },
        [] {
          await_kernel_before();
          if (threadIdx.x == 0) show_memory();
        });
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
  await_kernel_before();
  if (thread == 128) {
    show_memory();
    copy_first_steps(ring, end - begin, values_map, at.first, begin * ffn_tile::step);
  }
  __syncwarp();
  float all[64];
#pragma unroll
  for (float& sum : all) sum = 0;
  ffn_stages<warpgroup_ffn::by_terms> stages(ring);
#pragma unroll 1
  for (int segment = split; segment < (Splits ? split + 1 : segments); ++segment) {
    const step_range range = segment_at(steps, segments, segment);
    if (range.begin == range.end) continue;
    float sums[64];
    multiply_terms<T>(stages, sums, range.end - range.begin);
#pragma unroll
    for (int i = 0; i < 64; ++i) all[i] += sums[i];
  }
  if (Splits && segments > 1 &&
      !join_segments<256>(call, all, unit, split, segments, thread - 128, &last, [] { await_consumers(); })) {
    return;
  }
  const int lane = thread % 32;
  write_output<1, 16>(call, at, (thread - 128) / 32 * 16 + lane / 4, 0, first + lane % 4 * 2,
                      [&](int, int n, int half, int e) { return all[4 * n + 2 * half + e]; });
#endif
}

}}}}  // namespace skim::v0_2::cuda::detail
