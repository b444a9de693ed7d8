// SPDX-License-Identifier: Apache-2.0
/// \file The FFN on Hopper: a warpgroup gathers rows of weights, the copy engine brings x or values, two warpgroups multiply
/// them by `wgmma`. f16 and bf16.
#pragma once

#include <skim/cuda/arch/tensor_map.cuh>
#include <skim/cuda/arch/wgmma_ffn.cuh>
#include <skim/cuda/kernel/ffn_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Rows of a tile in shared memory: panels of 64 columns, 128 bytes, swizzled. First x or values, then weights.
struct warpgroup_ffn {
  static constexpr int threads = 384, rows_bytes = ffn_tile::rows * 128, most_bytes = 220 * 1024;

  /// Stages of so many bytes, in front of which the copy engine needs a multiple of 1024.
  SKIM_HD static constexpr int stages(int stage_bytes) {
    return most_bytes / stage_bytes < 7 ? most_bytes / stage_bytes : 7;
  }
  static constexpr int bytes = most_bytes + 1024 + 256;

  /// Of a step of the product with rows of weights, `Columns` of them; of the one with 64 rows of 128 columns each.
  SKIM_HD static constexpr int by_columns(int columns) { return rows_bytes + columns * 128; }
  static constexpr int by_terms = rows_bytes + ffn_tile::step * ffn_tile::columns * 2;
};

#if SKIM_CUDA_SM90

/// Stages in shared memory with their barriers: weights arrive by every thread of the producer, the rest by its first.
template <int StageBytes>
struct ffn_ring {
  static constexpr int stages = warpgroup_ffn::stages(StageBytes);

  std::uint32_t base, barriers;

  SKIM_DEVICE explicit ffn_ring(std::uint32_t raw)
      : base((raw + 1023) / 1024 * 1024), barriers(base + warpgroup_ffn::most_bytes) {}
  SKIM_DEVICE std::uint32_t stage(int at) const { return base + at * StageBytes; }
  SKIM_DEVICE std::uint32_t full(int at) const { return barriers + 8 * at; }
  SKIM_DEVICE std::uint32_t empty(int at) const { return barriers + 8 * (stages + at); }
  SKIM_DEVICE void make() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        make_barrier(full(i), 129);
        make_barrier(empty(i), 2);
      }
      publish_barriers();
    }
    __syncthreads();
  }
};

/// The producer's part, `n` steps: `copy_weights(to, step)` of each thread; tiles of `map` from (row, column + 64 step) on.
/// `before_map()` is called before the first of these, when weights fill all stages.
template <int StageBytes, class CopyWeights, class BeforeMap>
SKIM_DEVICE void fill_stages(const ffn_ring<StageBytes>& ring, int n, const CUtensorMap& map, int row, int column,
                             const CopyWeights& copy_weights, const BeforeMap& before_map) {
  constexpr int stages = ffn_ring<StageBytes>::stages;
  const auto finish = [&](int step, int stage) {
    if (threadIdx.x == 0) {
      arrive_expecting(ring.full(stage), warpgroup_ffn::rows_bytes);
      copy_tile(ring.stage(stage), map, row, column + step * ffn_tile::step, ring.full(stage));
    }
  };
  const int early = min(n, stages);
  for (int step = 0; step < early; ++step) {
    copy_weights(ring.stage(step) + warpgroup_ffn::rows_bytes, step);
    arrive_with_copies(ring.full(step));
  }
  before_map();
  for (int step = 0; step < early; ++step) finish(step, step);
  int stage = 0, phase = 0;
  for (int step = stages; step < n; ++step) {
    await(ring.empty(stage), phase);
    finish(step, stage);
    copy_weights(ring.stage(stage) + warpgroup_ffn::rows_bytes, step);
    arrive_with_copies(ring.full(stage));
    phase ^= stage == stages - 1 ? 1 : 0;
    stage = stage == stages - 1 ? 0 : stage + 1;
  }
}

/// The consumers' part. `multiply(a, b, part, keep)` begins the product of 16 terms, part 0 to 3 of a step's.
template <int StageBytes>
class ffn_stages {
 public:
  SKIM_DEVICE explicit ffn_stages(const ffn_ring<StageBytes>& ring) : ring_(ring) {}

  template <class Multiply>
  SKIM_DEVICE void multiply(int n, const Multiply& multiply) {
    const int group = threadIdx.x / 128 - 1;
    int before = -1;
#pragma unroll 1
    for (int step = 0; step < n; ++step) {
      await(ring_.full(stage_), phase_);
      show_copies();
      begin_products();
      const std::uint32_t a = ring_.stage(stage_) + group * 64 * 128,
                          b = ring_.stage(stage_) + warpgroup_ffn::rows_bytes;
#pragma unroll
      for (int part = 0; part < 4; ++part) multiply(a + part * 32, b, part, step | part);
      end_products();
      await_products<1>();
      release(before);
      before = stage_;
      phase_ ^= stage_ == ring_.stages - 1 ? 1 : 0;
      stage_ = stage_ == ring_.stages - 1 ? 0 : stage_ + 1;
    }
    await_products<0>();
    release(before);
  }

 private:
  SKIM_DEVICE void release(int stage) const {
    if (stage >= 0 && threadIdx.x % 128 == 0) arrive(ring_.empty(stage));
  }

  const ffn_ring<StageBytes>& ring_;
  int stage_ = 0, phase_ = 0;
};

/// As `copy_16`, and the 256 bytes around it to the second cache: of rows that are read on, or in pieces of so many.
SKIM_DEVICE void gather_16(std::uint32_t to, const void* from, bool given) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(given ? 16 : 0));
}

/// For the two warpgroups that multiply.
SKIM_DEVICE void await_consumers() {
  asm volatile("bar.sync 1, 256;" ::: "memory");
}

/// Sums of both warpgroups [128, 2 * Count] in shared memory, in place of the stages.
template <int Count>
SKIM_DEVICE void share_sums(const float (&sums)[Count], float* to) {
  constexpr int pitch = 2 * Count + 8;
  const int thread = threadIdx.x - 128, lane = thread % 32;
  float* const own = to + (thread / 32 * 16 + lane / 4) * pitch + lane % 4 * 2;
  await_consumers();  // both have read all stages
#pragma unroll
  for (int n = 0; n < Count / 4; ++n) {
    *reinterpret_cast<float2*>(own + 8 * n) = make_float2(sums[4 * n], sums[4 * n + 1]);
    *reinterpret_cast<float2*>(own + 8 * n + 8 * pitch) = make_float2(sums[4 * n + 2], sums[4 * n + 3]);
  }
  await_consumers();
}

/// The product with 64 rows of 128 columns a step.
template <class T>
SKIM_DEVICE void multiply_terms(ffn_stages<warpgroup_ffn::by_terms>& stages, float (&sums)[64], int n) {
  stages.multiply(n, [&](std::uint32_t a, std::uint32_t b, int part, int keep) {
    ffn_product<T>::multiply_by_terms(sums, swizzled(a, 16, 1024),
                                      swizzled(b + part * 2048, ffn_tile::step * 128, 1024), keep);
  });
}

/// Copies 16-byte piece `thread % 16` of rows of 128 columns, eight rows at once; `rows` point to them, or are null: zeros.
SKIM_DEVICE void copy_terms(std::uint32_t to, const char* const (&rows)[ffn_tile::step / 8]) {
  const int chunk = threadIdx.x % 16, first = threadIdx.x / 16;
  const std::uint32_t own = to + chunk / 8 * (ffn_tile::step * 128) + first * 128 + ((chunk % 8 ^ first % 8) << 4);
#pragma unroll
  for (int i = 0; i < ffn_tile::step / 8; ++i) gather_16(own + i * 8 * 128, rows[i], rows[i] != nullptr);
}

#endif  // SKIM_CUDA_SM90

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
    if (!call.x_early) await_kernel_before();
    int at_run = 0;
    while (at_run + 1 < call.runs.count && tile >= call.runs.run[at_run + 1].first_tile) ++at_run;
    if (!call.runs.run[at_run].compensated) {
      await_kernel_before();
      return;
    }
    const ffn_run& run = call.runs.run[at_run];
    const int own = tile - run.first_tile, block = own / run.tiles_of_block;
    const int first_row = run.first_row + block * run.block_rows + (own - block * run.tiles_of_block) * ffn_tile::rows;
    if (thread < 128) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 80;");
      const int column = first + thread % 16 * 8;
      const char* const from = call.c1 + (thread / 16 * call.c1_row + column) * element_bytes;
      const std::int64_t eight_rows = 8 * call.c1_row * element_bytes;
      const int left = column < call.C ? call.d - thread / 16 : 0;
      fill_stages(
          ring, steps, x_map, first_row, 0,
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
  await_kernel_before();
  let_next_kernel_start();  // after the wait: the next kernel may read lists at once
  if (at_tile == compensator_tiles && tile == 0 && call.splits > 1) {
    for (int i = thread; i < call.runs.tiles * call.column_tiles; i += warpgroup_ffn::threads) call.arrivals[i] = 0;
  }
  const ffn_rows at = rows_of_tile(call, tile);
  const int first = (at_tile - compensator_tiles) * neurons;
  if (at.rows <= 0 || first >= at.count) return;
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
