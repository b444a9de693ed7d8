// SPDX-License-Identifier: Apache-2.0
// Evictors, as an engine calls them: one chunk was appended and attended, the cache shrinks to its budget again.
#include "layers.hpp"

#include <benchmark/benchmark.h>

#include <cmath>

namespace bench {
namespace {

struct row {
  shape of;  // Tk tokens stay, Tq are new: as many leave
  skim::element type;
  std::string name;
};

std::string name_of(const char* method, const row& r, unsigned threads) {
  std::string name = std::string("eviction/") + method + "/" + skim::to_string(r.type);
  const std::pair<const char*, std::int64_t> parts[] = {
      {"/Hk:", r.of.Hk}, {"/D:", r.of.D}, {"/Tk:", r.of.Tk}, {"/evict:", r.of.Tq}, {"/threads:", threads}};
  for (const auto& [key, value] : parts) name += key + std::to_string(value);
  return name;
}

/// What the chunk's attention leaves to evictors that look at it. Random queries; the log-sum-exp of logits of a standard
/// deviation of one, so that weights have the size of a model's.
struct attended_chunk {
  skim::buffer q;
  std::vector<float> lse;
  skim::eviction_args args;

  explicit attended_chunk(const row& r)
      : q(static_cast<std::size_t>(skim::bytes_of(type_of_rows(r.type), r.of.Tq * r.of.Hq * r.of.D))),
        lse(static_cast<std::size_t>(r.of.Tq * r.of.Hq), std::log(static_cast<float>(r.of.Tk)) + 0.5f) {
    const skim::element type = type_of_rows(r.type);
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < r.of.Tq * r.of.Hq * r.of.D; ++i) {
      skim::store_element(q.data(), type, i, normal(generator));
    }
    args.attended.q = skim::tensor_view<const void, 3>(q.data(), {r.of.Tq, r.of.Hq, r.of.D}, type);
    args.attended.lse = skim::tensor_view<float, 2>(lse.data(), {r.of.Tq, r.of.Hq});
    args.new_tokens = r.of.Tq;
  }

  /// The next layer's cache, full again: the last `Tq` tokens count as new ones.
  void visit(const skim::kv_cache& kv, std::int64_t position) {
    args.kv = kv;
    const std::int64_t Tq = args.new_tokens;
    for (std::int64_t head = 0; head < kv.heads; ++head) {
      std::int32_t* const positions = kv.positions + head * kv.positions_stride + kv.tokens - Tq;
      for (std::int64_t t = 0; t < Tq; ++t) positions[t] = static_cast<std::int32_t>(position + t);
    }
  }
};

template <class Op>
void measure(benchmark::State& state, const Op& op, const row& r, layers& cache, const skim::tbb_executor& executor) {
  show_progress(r.name);
  const std::int64_t tokens = r.of.Tk + r.of.Tq;
  attended_chunk chunk(r);
  chunk.visit(cache.next_bounded(tokens).kv, tokens);
  std::vector<skim::buffer> states;
  for (std::int64_t layer = 0; layer < cache.count(tokens); ++layer) {
    states.emplace_back(op.state_bytes(chunk.args));
    if (!op.reset(chunk.args, states.back(), executor)) return state.SkipWithError("reset");
  }
  const skim::buffer workspace(op.workspace_bytes(chunk.args, executor.concurrency()));
  std::vector<std::int32_t> indices(static_cast<std::size_t>(r.of.Hk * r.of.Tk)),
      counts(static_cast<std::size_t>(r.of.Hk));
  const skim::index_lists lists{indices.data(), counts.data(), r.of.Hk, r.of.Tk};
  std::int64_t position = tokens;
  skim::report report;
  for (auto _ : state) {
    const layers::bounded next = cache.next_bounded(tokens);
    chunk.visit(next.kv, position += r.of.Tq);
    report = op.run(chunk.args, lists, states[static_cast<std::size_t>(next.layer)], workspace, executor);
    if (!report) return state.SkipWithError(skim::to_string(report.code));
  }
  if (report.taken != skim::path::sparse || counts[0] != r.of.Tk) return state.SkipWithError("nothing was evicted");
  const skim::cost_estimate cost = op.cost(chunk.args);
  using benchmark::Counter;
  state.counters["flops"] = Counter(cost.flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = Counter(cost.bytes, Counter::kIsIterationInvariantRate);
}

/// Reads the next layer's keys once: the time that every policy which looks at all keys is measured by.
void measure_read(benchmark::State& state, const row& r, layers& cache, const skim::tbb_executor& executor) {
  show_progress(r.name);
  const std::int64_t tokens = r.of.Tk + r.of.Tq, floats = tokens * r.of.Hk * skim::bytes_of(r.type, r.of.D) / 4;
  double bytes = 0;
  for (auto _ : state) {
    bytes = read_once(static_cast<const float*>(cache.next(tokens).k.data), floats, 1 << 17, executor);  // 512 KiB
  }
  state.counters["bytes"] = benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate);
}

template <class Measure>
void add_row(const row& r, const std::shared_ptr<layer_store>& store, const Measure& how) {
  store->reserve(r.of, r.type);
  benchmark::RegisterBenchmark(r.name.c_str(),
                               [r, store, how](benchmark::State& state) { how(state, store->get(r.of, r.type)); })
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

void add_eviction_rows(const std::vector<skim::element>& storage, const skim::tbb_executor& executor) {
  const auto store = std::make_shared<layer_store>(executor);
  for (const skim::element type : storage) {
    row r{{32, 8, 128, 128, 32768}, type, ""};
    const skim::retention keep = skim::retention::budget(r.of.Tk);
    r.name = name_of("read_k", r, executor.concurrency());
    add_row(r, store,
            [r, executor](benchmark::State& state, layers& cache) { measure_read(state, r, cache, executor); });
    const auto add = [&](const char* method, const auto& policy) {
      r.name = name_of(method, r, executor.concurrency());
      const skim::cpu::eviction op{policy};
      add_row(r, store,
              [op, r, executor](benchmark::State& state, layers& cache) { measure(state, op, r, cache, executor); });
    };
    add("keydiff", skim::keydiff<>{keep});
    add("keydiff(mean)", skim::keydiff<skim::anchor::mean>{keep});
    add("h2o", skim::h2o{keep});
    add("tova", skim::tova{keep});
    add("snapkv", skim::snapkv{keep});
    add("sink_window", skim::sink_window{skim::retention::budget(r.of.Tk, 4)});
    add("random", skim::random_tokens{keep});
    add("caote(snapkv)", skim::caote{skim::snapkv{keep}});
    add("fast_caote(keydiff)", skim::fast_caote{skim::keydiff<>{keep}});
  }
}

}  // namespace bench
