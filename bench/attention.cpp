// SPDX-License-Identifier: Apache-2.0
// Dense and QUOKA attention, as an engine calls them: one chunk, one layer after another.
#include "layers.hpp"

#include <skim/cpu/simd/tile_math.hpp>
#include <skim/reference/attention.hpp>

#include <benchmark/benchmark.h>
#include <unistd.h>

namespace bench {
namespace {

using skim::element;

struct row {
  shape of;
  element type;
  std::string name;
  const char* label;
};

/// A call's arguments but for the cache.
struct call {
  skim::buffer q, out;
  skim::attention_args args;

  explicit call(const row& r)
      : q(static_cast<std::size_t>(skim::bytes_of(type_of_rows(r.type), r.of.Tq * r.of.Hq * r.of.D))), out(q.bytes()) {
    const element type = type_of_rows(r.type);
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < r.of.Tq * r.of.Hq * r.of.D; ++i) {
      skim::store_element(q.data(), type, i, normal(generator));
    }
    args.q = skim::tensor_view<const void, 3>(q.data(), {r.of.Tq, r.of.Hq, r.of.D}, type);
    args.out = skim::tensor_view<void, 3>(out.data(), {r.of.Tq, r.of.Hq, r.of.D}, type);
  }
};

/// Lists for what `op` selects.
struct listed {
  std::vector<std::int32_t> indices, counts;
  skim::index_lists lists;

  template <class Op>
  listed(const Op& op, const skim::attention_args& args)
      : indices(static_cast<std::size_t>(list_rows(args, op.block_rows()) * op.list_capacity(args))),
        counts(static_cast<std::size_t>(list_rows(args, op.block_rows()))),
        lists{indices.data(), counts.data(), list_rows(args, op.block_rows()), op.list_capacity(args),
              op.block_rows()} {}
};

/// The first stage of QUOKA's scoring by itself: every KV head's queries for the block.
void pick(const skim::quoka& policy, const skim::attention_args& args, std::int64_t round, skim::memory workspace,
          skim::executor_ref executor) {
  namespace kernel = skim::cpu::detail;
  skim::detail::arena arena(workspace.data);
  const kernel::quoka_scratch scratch(arena, policy, args, executor.concurrency(), args.kv.tokens);
  const skim::attention_sequence block = skim::block_of(skim::sequence_at(args, 0), round, policy.keep.every);
  const std::int64_t D = args.q.extents[2], kept = policy.queries.kept(block.Tq, skim::group_size(args));
  executor.parallel_for(block.kv.heads, [&](std::int64_t head, unsigned worker) {
    skim::detail::arena own(kernel::worker_piece(scratch.workers, scratch.worker_bytes, worker));
    float* const rows = own.take<float>(kept * kernel::padded_row(D));
    const kernel::order_scratch order(own, static_cast<std::int64_t>(scratch.tokens));
    kernel::choose_scoring_queries(policy, args, block, head, {nullptr, 0, block.past(head)}, own, rows);
  });
}

/// A part of a call: its time, and what it has to compute and to move at least, from which report.cpp makes its floor.
struct stage {
  const char* name;
  double us = 0, flops = 0, bytes = 0;
  bool pairs = false;  // bf16 products, whatever the row's own are

  void set(benchmark::State& state) const {
    const std::string key = name;
    state.counters[key + "_us"] = us / static_cast<double>(state.iterations());
    state.counters[key + "_flops"] = flops;
    state.counters[key + "_bytes"] = bytes;
    if (pairs) state.counters[key + "_pairs"] = 1;
  }
};

/// QUOKA's stages timed apart, over as many calls as `run` was. Where it runs dense there is nothing to select.
template <class Accumulate>
void time_stages(benchmark::State& state, const skim::cpu::attention<skim::quoka, Accumulate>& op, call& one,
                 layers& cache, skim::memory workspace, skim::executor_ref executor) {
  const skim::attention_args& args = one.args;
  if (op.run(args, {}, workspace, executor).taken == skim::path::dense) return;
  const listed chosen(op, args);
  const skim::cpu::attend reader{op.accumulate};
  const std::int64_t past = skim::longest_past(args, op.block_rows()), heads = args.kv.heads;
  const std::int64_t rounds = skim::block_count(args.q.extents[0], op.block_rows());
  const std::int64_t rows = op.block_rows() > 0 ? std::min(op.block_rows(), args.q.extents[0]) : args.q.extents[0];
  std::vector<float> of_keys(static_cast<std::size_t>(heads * past));
  const skim::tensor_view<float, 2> scores(of_keys.data(), {heads, past});

  const skim::cost_estimate all = op.cost(args), select = op.selector.cost(args);
  const double keys = static_cast<double>(rounds * heads * past);
  const double scored = 2 * keys * static_cast<double>(op.selector.queries.kept(rows, skim::group_size(args))) *
                        static_cast<double>(args.q.extents[2]);
  const bool pairs = skim::cpu::simd::becomes_pairs(args.kv.k.type) && SKIM_CPU_DOT_PAIRS &&
                     op.selector.similarity == skim::similarity::standardised;
  stage picking{"pick", 0, select.flops - scored, 0, pairs}, scoring{"score", 0, scored, select.bytes, pairs};
  stage choosing{"top_k", 0, 0, 4 * keys}, attending{"attend", 0, all.flops - select.flops, all.bytes - select.bytes};
  skim::report report;
  for (benchmark::IterationCount i = 0; i < state.iterations() && report; ++i) {
    one.args.kv = cache.next(args.kv.tokens);
    for (std::int64_t round = 0; round < rounds && report; ++round) {
      const double picked = microseconds([&] { pick(op.selector, args, round, workspace, executor); });
      picking.us += picked;
      scoring.us += microseconds([&] { report = op.score(args, scores, {}, workspace, executor, round); }) - picked;
      if (!report) break;
      choosing.us += microseconds([&] { report = op.choose(args, scores, chosen.lists, workspace, executor, round); });
    }
    if (report) attending.us += microseconds([&] { report = reader.run(args, chosen.lists, workspace, executor); });
  }
  if (!report) return state.SkipWithError(skim::to_string(report.code));
  for (const stage& each : {picking, scoring, choosing, attending}) each.set(state);
}

/// Normalised mean squared error of the kernel with f32 output against the reference, which reads the same stored values
/// and the same lists: six rows of the chunk, from both its ends and its middle.
template <class Op>
double sampled_nmse(const Op& op, skim::attention_args args, skim::memory workspace, skim::executor_ref executor) {
  const std::int64_t Tq = args.q.extents[0], Hq = args.q.extents[1], D = args.q.extents[2];
  std::vector<float> out(static_cast<std::size_t>(Tq * Hq * D));
  args.out = skim::tensor_view<float, 3>(out.data(), {Tq, Hq, D});
  const listed chosen(op, args);
  const skim::report run = op.run(args, {}, workspace, executor);
  const bool sparse = run.taken == skim::path::sparse;
  if (sparse && !op.select(args, chosen.lists, {}, workspace, executor)) return -1;
  const skim::attention_sequence sequence = skim::sequence_at(args, 0);
  double error = 0, power = 0;
  std::vector<double> exact(static_cast<std::size_t>(D));
  for (const std::int64_t t : {std::int64_t{0}, Tq / 2, Tq - 1}) {
    for (const std::int64_t h : {std::int64_t{0}, Hq - 1}) {
      const std::int64_t every = chosen.lists.block_rows, b = sparse && every > 0 ? t / every : 0;
      const skim::attention_sequence block = sparse ? skim::block_of(sequence, b, every) : sequence;
      const auto slots =
          skim::reference::slots_read(block, b, h / skim::group_size(args), sparse ? &chosen.lists : nullptr);
      skim::reference::attend_row(args, sequence, t, h, slots, exact.data());
      for (std::int64_t d = 0; d < D; ++d) {
        const double right = exact[static_cast<std::size_t>(d)];
        const double wrong = static_cast<double>(out[static_cast<std::size_t>((t * Hq + h) * D + d)]) - right;
        error += wrong * wrong;
        power += right * right;
      }
    }
  }
  return error / power;
}

template <class Op>
void measure(benchmark::State& state, const Op& op, const row& r, layers& cache, const skim::tbb_executor& executor) {
  show_progress(r.name);
  call one(r);
  one.args.kv = cache.next(r.of.Tk + r.of.Tq);
  const skim::buffer workspace(op.workspace_bytes(one.args, executor.concurrency()));
  for (auto _ : state) {
    one.args.kv = cache.next(r.of.Tk + r.of.Tq);
    const skim::report report = op.run(one.args, {}, workspace, executor);
    if (!report) return state.SkipWithError(skim::to_string(report.code));
  }
  const skim::cost_estimate cost = op.cost(one.args);
  using benchmark::Counter;
  state.counters["flops"] = Counter(cost.flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = Counter(cost.bytes, Counter::kIsIterationInvariantRate);
  state.counters["nmse"] = sampled_nmse(op, one.args, workspace, executor);
  state.SetLabel(r.label);
  if constexpr (std::is_same_v<decltype(op.selector), skim::quoka>) {
    time_stages(state, op, one, cache, workspace, executor);
  }
}

/// Registers rows; keeps the first complaint of a `check`.
class registrar {
 public:
  explicit registrar(const skim::tbb_executor& executor)
      : executor_(executor), store_(std::make_shared<layer_store>(executor)) {}

  template <class Op>
  void add(const Op& op, const row& r) {
    const skim::tensor_view<const void, 3> past(nullptr, {r.of.Tk + r.of.Tq, r.of.Hk, r.of.D}, r.type);
    skim::attention_args args;
    args.q = {nullptr, {r.of.Tq, r.of.Hq, r.of.D}, type_of_rows(r.type)};
    args.out = {nullptr, {r.of.Tq, r.of.Hq, r.of.D}, type_of_rows(r.type)};
    args.kv = skim::contiguous_kv(past, past, r.of.Tk + r.of.Tq);
    if (const skim::report report = op.check_shape(args); !report && complaint_.empty()) {
      char text[160];
      complaint_ = r.name + ": " + skim::describe(report, text, sizeof text);
    }
    if (!complaint_.empty()) return;
    store_->reserve(r.of, r.type);
    const double rows = static_cast<double>(r.of.Tq) * static_cast<double>(r.of.Hq * r.of.D);
    call_bytes_ =
        std::max(call_bytes_, 3 * sizeof(float) * rows);  // queries, output, the output that errors are seen in
    benchmark::RegisterBenchmark(r.name.c_str(),
                                 [op, r, store = store_, executor = executor_](benchmark::State& state) {
                                   measure(state, op, r, store->get(r.of, r.type), executor);
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }

  std::string complaint() const {
    if (!complaint_.empty()) return complaint_;
    const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
    const double needed = store_->bytes() + call_bytes_;
    if (needed < 0.9 * memory) return "";
    return "these shapes need " + std::to_string(static_cast<std::int64_t>(needed / 1e9)) +
           " GB, more than this machine has";
  }

 private:
  skim::tbb_executor executor_;
  std::shared_ptr<layer_store> store_;
  double call_bytes_ = 0;
  std::string complaint_;
};

std::string name_of(const char* method, const row& r, const char* variant, std::int64_t budget, unsigned threads) {
  std::string name = std::string("attention/") + method + "/" + skim::to_string(r.type) + "/" + variant;
  const std::pair<const char*, std::int64_t> parts[] = {
      {"Hq:", r.of.Hq}, {"/Hk:", r.of.Hk}, {"/D:", r.of.D}, {"/Tq:", r.of.Tq}, {"/Tk:", r.of.Tk}};
  for (const auto& [key, value] : parts) name += key + std::to_string(value);
  if (budget > 0) name += "/budget:" + std::to_string(budget);
  return name + "/threads:" + std::to_string(threads);
}

template <class Accumulate>
void add_methods(registrar& to, row r, const char* variant, const attention_rows& rows, unsigned threads) {
  r.name = name_of("dense", r, variant, 0, threads);
  to.add(skim::cpu::attention{skim::dense{}, Accumulate{}}, r);
  for (const std::int64_t budget : rows.budgets) {
    struct rule {
      const char* name;
      std::int64_t n, every;
    };
    for (const rule& of : {rule{"quoka", 48, 64}, rule{"quoka_64", 64, 128}, rule{"quoka_32", 32, 128}}) {
      r.name = name_of(of.name, r, variant, budget, threads);
      to.add(skim::cpu::attention{skim::quoka{skim::queries::needed(of.n),
                                              skim::retention::preset(budget).for_every(of.every)},
                                  Accumulate{}},
             r);
    }
    r.name = name_of("quoka_paper", r, variant, budget, threads);
    to.add(skim::cpu::attention{skim::quoka::paper(skim::queries::lowest_cosine(16), skim::retention::budget(budget)),
                                Accumulate{}},
           r);
  }
}

}  // namespace

std::string add_attention_rows(const attention_rows& rows, const skim::tbb_executor& executor) {
  using skim::accumulate::dot_pairs;
  using skim::accumulate::widen_fma;
  registrar to(executor);
  const unsigned threads = executor.concurrency();
  for (const element type : rows.storage) {
    const bool pairs = SKIM_CPU_DOT_PAIRS && skim::cpu::simd::becomes_pairs(type);
    for (const shape& of : rows.shapes) {
      if (pairs && rows.pairs_first) {
        add_methods<dot_pairs>(to, {of, type, "", "dot_pairs"}, "", rows, threads);
        add_methods<widen_fma>(to, {of, type, "", "widen_fma"}, "widen_fma/", rows, threads);
      } else {
        add_methods<widen_fma>(to, {of, type, "", "widen_fma"}, "", rows, threads);
        if (pairs) add_methods<dot_pairs>(to, {of, type, "", "dot_pairs"}, "dot_pairs/", rows, threads);
      }
    }
  }
  return to.complaint();
}

}  // namespace bench
