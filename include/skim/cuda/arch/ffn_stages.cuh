// SPDX-License-Identifier: Apache-2.0
/// \file Stages of the FFN's products on Hopper: how they are filled, multiplied and set free.
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

/// Copies the tile of step `step` of `map` from (row, column) on. One thread.
template <int StageBytes>
SKIM_DEVICE void copy_step(const ffn_ring<StageBytes>& ring, int stage, const CUtensorMap& map, int row, int column,
                           int step) {
  arrive_expecting(ring.full(stage), warpgroup_ffn::rows_bytes);
  copy_tile(ring.stage(stage), map, row, column + step * ffn_tile::step, ring.full(stage));
}
/// Those of the first steps, of `n`, before and beside the producer, which brings all others.
template <int StageBytes>
SKIM_DEVICE void copy_first_steps(const ffn_ring<StageBytes>& ring, int n, const CUtensorMap& map, int row,
                                  int column) {
  for (int step = 0; step < min(n, ring.stages); ++step) copy_step(ring, step, map, row, column, step);
}
/// Where nothing is to be computed after all: what is under way has to land. For the first 128 threads.
template <int StageBytes>
SKIM_DEVICE void drop_first_steps(const ffn_ring<StageBytes>& ring, int n) {
  for (int step = 0; step < min(n, ring.stages); ++step) {
    arrive(ring.full(step));
    if (threadIdx.x == 0) await(ring.full(step), 0);
  }
}

/// The producer's part, `n` steps: `copy_weights(to, step)` of each thread; from the second turn of stages on also tiles of
/// `map`. `before_map()` is called before these.
template <int StageBytes, class CopyWeights, class BeforeMap>
SKIM_DEVICE void fill_stages(const ffn_ring<StageBytes>& ring, int n, const CUtensorMap& map, int row, int column,
                             const CopyWeights& copy_weights, const BeforeMap& before_map) {
  constexpr int stages = ffn_ring<StageBytes>::stages;
  const int early = min(n, stages);
  for (int step = 0; step < early; ++step) {
    copy_weights(ring.stage(step) + warpgroup_ffn::rows_bytes, step);
    arrive_with_copies(ring.full(step));
  }
  before_map();
  int stage = 0, phase = 0;
  for (int step = stages; step < n; ++step) {
    await(ring.empty(stage), phase);
    if (threadIdx.x == 0) copy_step(ring, stage, map, row, column, step);
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

}}}}  // namespace skim::v0_2::cuda::detail
