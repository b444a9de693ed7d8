// SPDX-License-Identifier: Apache-2.0
// The FFN of a block of tokens: dense, FastForward and other libraries, one layer after another.
#include "ffn.hpp"

#include <skim/cpu/features.hpp>
#include <skim/cpu/simd/math.hpp>
#include <skim/cpu/simd/tile_math.hpp>
#include <skim/reference/fastforward.hpp>
#include <skim/reference/ffn.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

namespace bench {
namespace {

using skim::element;

/// One model's layers for all rows of its shape and type; made when the first of them runs.
class ffn_store {
 public:
  ffn_store(const ffn_shape& of, element type, const skim::tbb_executor& executor)
      : of_(of), type_(type), executor_(executor) {}

  const ffn_layers& get() {
    if (!made_) made_.emplace(of_, type_, executor_);
    return *made_;
  }

 private:
  ffn_shape of_;
  element type_;
  skim::tbb_executor executor_;
  std::optional<ffn_layers> made_;
};

std::string name_of(const std::string& method, const ffn_shape& of, element type, unsigned threads,
                    const std::string& variant = "", int keep = 0) {
  std::string name = method + "/" + skim::to_string(type) + "/" + variant;
  const std::pair<const char*, std::int64_t> parts[] = {{"M:", of.M}, {"/d:", of.d}, {"/f:", of.f}};
  for (const auto& [key, value] : parts) name += key + std::to_string(value);
  if (keep > 0) name += "/keep:" + std::to_string(keep);
  return name + "/threads:" + std::to_string(threads);
}

void register_row(const std::string& name, const std::function<void(benchmark::State&)>& measure) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [name, measure](benchmark::State& state) {
                                 show_progress(name);
                                 measure(state);
                               })
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

skim::buffer output_of(const ffn_layers& layers) {
  return skim::buffer(static_cast<std::size_t>(layers.shape.M * skim::bytes_of(layers.type, layers.shape.d)));
}

/// An operation, layer by layer: one value of it per layer.
template <class Op>
struct layered {
  const ffn_layers* layers;
  std::vector<Op> ops;
  skim::buffer out, workspace;

  layered(const ffn_layers& of, std::vector<Op> of_layers, unsigned workers)
      : layers(&of), ops(std::move(of_layers)), out(output_of(of)) {
    workspace = skim::buffer(ops[0].workspace_bytes(args(0), workers));
  }
  skim::ffn_args args(std::int64_t layer) {
    skim::ffn_args args = layers->args(layer);
    args.out = {out.data(), {layers->shape.M, layers->shape.d}, layers->type};
    return args;
  }
};

/// Normalised mean squared error of the first layer with f32 output against the reference, which reads the same stored
/// values and computes the same neurons: the block's last token.
template <class Op>
double sampled_nmse(layered<Op>& with, const skim::tbb_executor& executor) {
  const Op& op = with.ops[0];
  skim::ffn_args args = with.args(0);
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1], f = args.up.extents[0];
  std::vector<float> out(static_cast<std::size_t>(M * d)), numbers(static_cast<std::size_t>(f));
  args.out = skim::tensor_view<float, 2>(out.data(), {M, d});
  const skim::memory workspace = with.workspace;
  std::vector<std::int32_t> neurons = skim::reference::every_neuron(args);
  const skim::report run = op.run(args, {}, workspace, executor);
  if (run.taken == skim::path::sparse) {
    const skim::tensor_view<float, 2> scores(numbers.data(), {1, f});
    std::int32_t count = 0;
    const skim::index_lists lists{neurons.data(), &count, 1, f};
    if (!op.score(args, scores, {}, workspace, executor)) return -1;
    if (!op.choose(args, scores, lists, workspace, executor)) return -1;
    neurons.resize(static_cast<std::size_t>(count));
  }
  skim::ffn_args last = args;
  last.x.data = args.x.at(M - 1);
  last.x.extents[0] = 1;
  std::vector<double> exact = skim::reference::ffn(last, neurons);
  const skim::neuron_compensator compensator = op.compensator();
  if (run.taken == skim::path::sparse && skim::compensates(compensator)) {
    const std::vector<double> rest = skim::reference::compensation(last, compensator);
    for (std::size_t c = 0; c < exact.size(); ++c) exact[c] += rest[c];
  }
  double error = 0, power = 0;
  for (std::size_t c = 0; c < exact.size(); ++c) {
    const double wrong = static_cast<double>(out[static_cast<std::size_t>((M - 1) * d) + c]) - exact[c];
    error += wrong * wrong;
    power += exact[c] * exact[c];
  }
  return error / power;
}

/// The steps of a sparse call, timed apart over as many calls as `run` was.
template <class Op>
void time_steps(benchmark::State& state, layered<Op>& with, const skim::tbb_executor& executor) {
  const std::int64_t f = with.layers->shape.f;
  std::vector<float> numbers(static_cast<std::size_t>(f));
  const skim::tensor_view<float, 2> scores(numbers.data(), {1, f});
  std::vector<std::int32_t> indices(numbers.size());
  std::int32_t count = 0;
  const skim::index_lists lists{indices.data(), &count, 1, f};
  double select = 0, compute = 0, compensate = 0;
  const skim::memory workspace = with.workspace;
  for (benchmark::IterationCount i = 0; i < state.iterations(); ++i) {
    const std::size_t layer = i % with.ops.size();
    const Op& op = with.ops[layer];
    const skim::ffn_args args = with.args(static_cast<std::int64_t>(layer));
    skim::report report;
    select += microseconds([&] {
      report = op.score(args, scores, {}, workspace, executor);
      if (report) report = op.choose(args, scores, lists, workspace, executor);
    });
    if (report) compute += microseconds([&] { report = op.compute(args, lists, workspace, executor); });
    if (report) compensate += microseconds([&] { report = op.compensate(args, workspace, executor); });
    if (!report) return state.SkipWithError(skim::to_string(report.code));
  }
  const double calls = static_cast<double>(state.iterations());
  state.counters["select_us"] = select / calls;
  state.counters["compute_us"] = compute / calls;
  state.counters["compensate_us"] = compensate / calls;
}

const char* label_of(skim::accumulate::widen_fma) {
  return "widen_fma";
}
const char* label_of(skim::accumulate::dot_pairs) {
  return "dot_pairs";
}
const char* label_of(skim::accumulate::amx) {
  return "amx";
}

/// What a row's repetitions share.
struct row_result {
  skim::path way;                // that its calls have to go
  std::optional<double> nmse{};  // found by the first
};

template <class Op>
void measure(benchmark::State& state, layered<Op> with, row_result& result, const skim::tbb_executor& executor) {
  std::size_t layer = 0;
  skim::report report;
  for (auto _ : state) {
    layer = (layer + 1) % with.ops.size();
    report = with.ops[layer].run(with.args(static_cast<std::int64_t>(layer)), {}, with.workspace, executor);
    if (!report) return state.SkipWithError(skim::to_string(report.code));
  }
  if (report.taken != result.way) return state.SkipWithError("the call did not go the way that the row is about");
  const skim::cost_estimate cost = with.ops[0].cost(with.args(0));
  using benchmark::Counter;
  state.counters["flops"] = Counter(cost.flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = Counter(cost.bytes, Counter::kIsIterationInvariantRate);
  state.SetLabel(label_of(with.ops[0].accumulate));
  if (!result.nmse) result.nmse = sampled_nmse(with, executor);
  state.counters["nmse"] = *result.nmse;
  if (result.way == skim::path::sparse) time_steps(state, with, executor);
}

/// |a - b| / |b| of outputs [M, d].
double relative_difference(const skim::buffer& a, const skim::buffer& b, const ffn_layers& layers) {
  double difference = 0, length = 0;
  for (std::int64_t i = 0; i < layers.shape.M * layers.shape.d; ++i) {
    const double right = static_cast<double>(skim::load_element(b.data(), layers.type, i));
    const double wrong = static_cast<double>(skim::load_element(a.data(), layers.type, i)) - right;
    difference += wrong * wrong;
    length += right * right;
  }
  return std::sqrt(difference / length);
}

/// Ends the program if a peer computes something else than skim's dense FFN: its times would mean nothing.
void compare_with_dense(const std::string& name, const ffn_layers& layers, const ffn_call& call,
                        const skim::tbb_executor& executor) {
  const double limit = layers.type == element::f32 ? 1e-5 : 1e-2;  // a peer may round the values between its products
  skim::buffer out = output_of(layers);
  for (std::int64_t layer = 0; layer < layers.count(); ++layer) {
    layered<skim::cpu::ffn<>> dense(layers, {{}}, executor.concurrency());
    const skim::report report = dense.ops[0].run(dense.args(layer), {}, dense.workspace, executor);
    call(layer, out.data());
    const double difference = relative_difference(out, dense.out, layers);
    if (report && difference < limit) continue;
    std::cerr << "\n"
              << name << ": differs from skim by " << difference << " (relative norm) in layer " << layer << "\n";
    std::exit(2);
  }
}

void measure_peer(benchmark::State& state, const ffn_layers& layers, const ffn_call& call) {
  skim::buffer out = output_of(layers);
  std::int64_t layer = 0;
  for (auto _ : state) {
    layer = (layer + 1) % layers.count();
    call(layer, out.data());
  }
  skim::ffn_args args = layers.args(0);
  args.out = {out.data(), {layers.shape.M, layers.shape.d}, layers.type};
  const skim::cost_estimate cost = skim::ffn_cost(args, layers.shape.f);
  using benchmark::Counter;
  state.counters["flops"] = Counter(cost.flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = Counter(cost.bytes, Counter::kIsIterationInvariantRate);
  // Threads of the peer's own spin for a while after their work, on the cores that the next row is timed on.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
}

void add_peer_row(const ffn_peer& peer, const std::string& name, const std::shared_ptr<ffn_store>& store,
                  const skim::tbb_executor& executor) {
  const auto call = std::make_shared<ffn_call>();  // made by the first repetition for all
  register_row(name, [peer, name, store, executor, call](benchmark::State& state) {
    const ffn_layers& layers = store->get();
    try {
      if (!*call) {
        ffn_call made = peer.make(layers, executor);
        compare_with_dense(name, layers, made, executor);
        *call = std::move(made);
      }
      measure_peer(state, layers, *call);
    } catch (const std::exception& error) {
      state.SkipWithError(error.what());
    }
  });
}

/// What all of our own rows of one shape and type have in common.
struct own_rows {
  ffn_shape of;
  element type;
  std::shared_ptr<ffn_store> store;
  skim::tbb_executor executor;
};

/// `variant`: the part of the name that tells ways to multiply apart; empty for the best.
template <class Accumulate>
void add_own_rows(const own_rows& rows, const std::string& variant, const Accumulate& how) {
  const unsigned threads = rows.executor.concurrency();
  const auto dense = std::make_shared<row_result>(row_result{skim::path::dense});
  register_row(name_of("ffn/dense", rows.of, rows.type, threads, variant), [rows, how, dense](benchmark::State& state) {
    const ffn_layers& layers = rows.store->get();
    using op = skim::cpu::ffn<skim::all_neurons, Accumulate>;
    const std::vector<op> ops(static_cast<std::size_t>(layers.count()), op{{}, how});
    measure(state, layered(layers, ops, rows.executor.concurrency()), *dense, rows.executor);
  });
  const std::string name = name_of("ffn/fastforward", rows.of, rows.type, threads, variant, 50);
  const auto sparse = std::make_shared<row_result>(row_result{skim::path::sparse});
  register_row(name, [rows, how, sparse](benchmark::State& state) {
    const ffn_layers& layers = rows.store->get();
    std::vector<skim::cpu::ffn<skim::fastforward, Accumulate>> ops;
    for (std::int64_t layer = 0; layer < layers.count(); ++layer) ops.push_back({layers.fastforward(layer, 0.5), how});
    measure(state, layered(layers, ops, rows.executor.concurrency()), *sparse, rows.executor);
  });
}

void add_own_rows(const own_rows& rows, bool pairs_first) {
  using skim::accumulate::dot_pairs;
  const bool pairs =
      skim::cpu::simd::with_math(dot_pairs{}, rows.type, [](auto math) { return decltype(math)::values == 2; });
  if (!pairs) {
    return add_own_rows(rows, "", skim::accumulate::widen_fma{});
  }
  const skim::accumulate::amx amx = skim::cpu::request_amx();
  if (amx.granted) add_own_rows(rows, "", amx);
  const bool pairs_are_best = pairs_first && !amx.granted, widening_is_best = !pairs_first && !amx.granted;
  add_own_rows(rows, pairs_are_best ? "" : "dot_pairs/", dot_pairs{});
  if (widening_is_best) add_own_rows(rows, "", skim::accumulate::widen_fma{});
}

std::vector<ffn_peer> peers() {
  std::vector<ffn_peer> all;
#if SKIM_BENCH_ONEDNN
  all.push_back(onednn_peer());
#else
  std::cerr << "Without oneDNN's rows (Debian: apt-get install libdnnl-dev)\n";
#endif
#if SKIM_BENCH_OPENBLAS
  all.push_back(openblas_peer());
#else
  std::cerr << "Without OpenBLAS's rows (Debian: apt-get install libopenblas-dev)\n";
#endif
  all.push_back(eigen_peer());
  return all;
}

}  // namespace

void multiply_by_silu(const float* gate, float* values, std::int64_t count) {
  namespace simd = skim::cpu::simd;
  std::int64_t i = 0;
  for (; i + simd::lanes <= count; i += simd::lanes) {
    simd::store(values + i, simd::load(values + i) * simd::activate(skim::activation::silu, simd::load(gate + i)));
  }
  for (; i < count; ++i) {
    values[i] *= static_cast<float>(skim::activate(skim::activation::silu, static_cast<double>(gate[i])));
  }
}

void add_ffn_rows(const std::vector<element>& storage, bool pairs_first, const skim::tbb_executor& executor) {
  const std::vector<ffn_peer> beside = peers();
  for (const ffn_shape& of : {ffn_shape{128, 4096, 14336}, ffn_shape{128, 3072, 8192}, ffn_shape{128, 2048, 8192}}) {
    for (const element type : storage) {
      if (type != element::f32 && type != element::bf16) continue;
      const auto store = std::make_shared<ffn_store>(of, type, executor);
      add_own_rows({of, type, store, executor}, pairs_first);
      for (const ffn_peer& peer : beside) {
        if (peer.f32_only && type != element::f32) continue;
        const std::string method = std::string("peer/") + peer.name + "/ffn";
        add_peer_row(peer, name_of(method, of, type, executor.concurrency()), store, executor);
      }
    }
  }
}

}  // namespace bench
