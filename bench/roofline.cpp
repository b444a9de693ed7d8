// SPDX-License-Identifier: Apache-2.0
// The machine's ceilings, measured in the same run as everything that is compared with them.
#include "bench.hpp"

#include <skim/cpu/features.hpp>
#include <skim/cpu/simd/amx.hpp>
#include <skim/cpu/simd/tile_math.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>

namespace bench {
namespace {

namespace simd = skim::cpu::simd;

// Two units with a latency of four to five cycles need ten chains; more hide the loop. All stay in registers.
constexpr int chains = simd::registers >= 32 ? 24 : 12;
constexpr std::int64_t piece_steps = 1 << 16;   // some 100 us
constexpr std::int64_t pieces_per_thread = 64;  // balance out a thread that starts late

/// What one loop over all pieces does.
struct work {
  double flops = 0, bytes = 0;
};

/// Every multiply-add depends on the chain's last one only.
struct fma_f32 {
  static constexpr std::int64_t flops_per_step = 2 * chains * simd::lanes;

  static float piece() {
    simd::floats sum[chains];
    simd::unroll<chains>([&](auto i) SKIM_LAMBDA_INLINE { sum[i] = simd::floats(static_cast<float>(i)); });
    for (std::int64_t step = 0; step < piece_steps; ++step) {
      simd::unroll<chains>(
          [&](auto i) SKIM_LAMBDA_INLINE { sum[i] = simd::fma(sum[i], simd::floats(0.5f), simd::floats(1.0f)); });
    }
    simd::unroll<chains>([&](auto i) SKIM_LAMBDA_INLINE { sum[0] += sum[i]; });
    return simd::sum(sum[0]);
  }
};

#if SKIM_CPU_DOT_PAIRS
struct dot_bf16 {
  static constexpr std::int64_t flops_per_step = 4 * chains * simd::lanes;

  static float piece() {
    using math = simd::tile_math<skim::accumulate::dot_pairs>;
    std::uint32_t pairs[simd::lanes];
    math::pack(pairs, simd::floats(0.5f), simd::floats(0.25f));
    const simd::floats packed = math::load_steps(pairs);
    simd::floats sum[chains];
    simd::unroll<chains>([&](auto i) SKIM_LAMBDA_INLINE { sum[i] = simd::floats(static_cast<float>(i)); });
    for (std::int64_t step = 0; step < piece_steps; ++step) {
      simd::unroll<chains>([&](auto i) SKIM_LAMBDA_INLINE { sum[i] = math::multiply_add(packed, pairs[0], sum[i]); });
    }
    simd::unroll<chains>([&](auto i) SKIM_LAMBDA_INLINE { sum[0] += sum[i]; });
    return simd::sum(sum[0]);
  }
};
#endif

#if SKIM_CPU_AMX
/// Four tiles of sums and four of operands are all that there are.
struct amx_bf16 {
  static constexpr std::int64_t flops_per_step = std::int64_t{4} * 2 * 16 * 16 * 32;

  static float piece() {
    const simd::amx_registers registers;
    alignas(64) float sums[16 * 16];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (std::int64_t step = 0; step < piece_steps; ++step) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    return sums[0];
  }
};
#endif

template <class Kind>
work multiply(const skim::tbb_executor& executor) {
  const std::int64_t pieces = pieces_per_thread * executor.concurrency();
  executor.parallel_for(pieces, [](std::int64_t, unsigned) {
    float sum = Kind::piece();
    benchmark::DoNotOptimize(sum);
  });
  return {static_cast<double>(pieces * piece_steps * Kind::flops_per_step), 0};
}

template <class Kind>
double rate(const skim::tbb_executor& executor) {
  using clock = std::chrono::steady_clock;
  multiply<Kind>(executor);  // wakes the threads, and lets the clock settle for wide registers
  double flops = 0, seconds = 0;
  const clock::time_point start = clock::now();
  while (seconds < 0.1) {
    flops += multiply<Kind>(executor).flops;
    seconds = std::chrono::duration<double>(clock::now() - start).count();
  }
  return flops / seconds;
}

/// Four times the last-level cache: caches do not evict in strict order, and at twice its size some of a pass would still
/// be there at the next.
struct memory_pass {
  static constexpr std::int64_t piece = 1 << 20;  // floats: 4 MiB
  std::vector<float> data;

  memory_pass() : data(static_cast<std::size_t>((last_level_cache_bytes() / piece + 1) * piece), 1.0f) {}

  work operator()(const skim::tbb_executor& executor) const {
    return {0, read_once(data.data(), static_cast<std::int64_t>(data.size()), piece, executor)};
  }
};

template <class Loop>
void add_row(const char* kind, const skim::tbb_executor& executor, const Loop& loop) {
  const std::string name = std::string("roofline/") + kind + "/threads:" + std::to_string(executor.concurrency());
  benchmark::RegisterBenchmark(
      name.c_str(),
      [name, executor, loop](benchmark::State& state) {
        show_progress(name);
        work done;
        for (auto _ : state) {
          const work once = loop(executor);
          done.flops += once.flops;
          done.bytes += once.bytes;
        }
        if (done.flops > 0) state.counters["flops"] = benchmark::Counter(done.flops, benchmark::Counter::kIsRate);
        if (done.bytes > 0) state.counters["bytes"] = benchmark::Counter(done.bytes, benchmark::Counter::kIsRate);
      })
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

std::int64_t last_level_cache_bytes() {
  std::int64_t most = 0;
  for (const auto& cache : benchmark::CPUInfo::Get().caches) most = std::max(most, std::int64_t{cache.size});
  return most > 0 ? most : std::int64_t{64} << 20;
}

double read_once(const float* from, std::int64_t count, std::int64_t piece, const skim::tbb_executor& executor) {
  const std::int64_t pieces = count / piece;
  executor.parallel_for(pieces, [&](std::int64_t index, unsigned) {
    constexpr int streams = 8;  // one after another reads a third less: the prefetcher works page by page
    const float* const begin = from + index * piece;
    simd::floats sum[streams];
    simd::unroll<streams>([&](auto i) SKIM_LAMBDA_INLINE { sum[i] = simd::floats(0.0f); });
    for (std::int64_t at = 0; at < piece / streams; at += simd::lanes) {
      simd::unroll<streams>([&](auto i)
                                SKIM_LAMBDA_INLINE { sum[i] += simd::load(begin + i * (piece / streams) + at); });
    }
    simd::unroll<streams>([&](auto i) SKIM_LAMBDA_INLINE { sum[0] += sum[i]; });
    float total = simd::sum(sum[0]);
    benchmark::DoNotOptimize(total);
  });
  return static_cast<double>(pieces * piece * 4);
}

multiply_rates measure_multiply_rates(const skim::tbb_executor& executor) {
#if SKIM_CPU_DOT_PAIRS
  return {rate<fma_f32>(executor), rate<dot_bf16>(executor)};
#else
  return {rate<fma_f32>(executor), 0};
#endif
}

void add_roofline_rows(const skim::tbb_executor& executor) {
  add_row("fma_f32", executor, multiply<fma_f32>);
#if SKIM_CPU_DOT_PAIRS
  add_row("dot_bf16", executor, multiply<dot_bf16>);
#endif
#if SKIM_CPU_AMX
  if (skim::cpu::request_amx().granted) add_row("amx_bf16", executor, multiply<amx_bf16>);
#endif
  const auto memory = std::make_shared<memory_pass>();
  add_row("read", executor, [memory](const skim::tbb_executor& with) { return (*memory)(with); });
}

}  // namespace bench
