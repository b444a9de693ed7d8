// SPDX-License-Identifier: Apache-2.0
/// \file Compiled once per processor level, with SKIM_UNIT naming the function. As in a host's unit of this kind there
/// is nothing in it but the library; no standard container, no Eigen, no oneTBB. The intrinsics come first, as behind many
/// a host's own headers: GCC's warnings about them must not come either.
#include <immintrin.h>

#include "unit.hpp"

#include <skim/skim.hpp>

namespace {

skim::report wrong(const char* argument) {
  return skim::fault(skim::status::bad_value, argument, 0, 1);
}

/// The absolute values of an output.
template <class View>
float sum_of(const View& out) {
  float sum = 0;
  const auto add = [&](const void* row, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) sum += std::fabs(static_cast<const float*>(row)[i]);
  };
  for (std::int64_t t = 0; t < out.extents[0]; ++t) add(out.at(t), out.strides[0]);
  return sum;
}

/// A policy of the host's own is a type of its own in each unit.
struct later_keys {
  skim::retention keep = skim::retention::budget(64);

  skim::report check(const skim::attention_args&) const { return {}; }
  void score(const skim::attention_blocks&, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref on) const {
    on.parallel_for(scores.extents[0], [&](std::int64_t row, unsigned) {
      for (std::int64_t slot = 0; slot < scores.extents[1]; ++slot) *scores.at(row, slot) = static_cast<float>(slot);
    });
  }
};

template <class Op>
skim::report run_attention(const Op& op, const unit_call& call, float& sum) {
  const skim::attention_args& args = call.attention;
  skim::index_lists lists = call.lists;
  lists.block_rows = op.block_rows();
  lists.rows = skim::list_rows(args, lists.block_rows);
  if (skim::report r = op.check_shape(args); !r) return r;
  if (op.workspace_bytes(args, call.executor.concurrency()) > call.workspace.bytes) return wrong("call.workspace");
  if (op.state_bytes(args) > 0 || !(op.cost(args).flops > 0) || op.needs().lse) return wrong("selector");
  if (skim::report r = op.reset(args, call.state, call.executor); !r) return r;
  if (skim::report r = op.run(args, {}, call.workspace, call.executor); !r) return r;
  sum = sum_of(args.out);
  if (skim::report r = op.score(args, call.scores, {}, call.workspace, call.executor); !r) return r;
  if (skim::report r = op.choose(args, call.scores, lists, call.workspace, call.executor); !r) return r;
  if (skim::report r = op.select(args, lists, {}, call.workspace, call.executor); !r) return r;
  const skim::cpu::attend reader{op.accumulate};
  if (reader.workspace_bytes(args, lists.block_rows, 1) > call.workspace.bytes) return wrong("call.workspace");
  if (!(reader.cost(args, lists).flops > 0)) return wrong("attend");
  if (skim::report r = skim::check_indices(args, &lists); !r) return r;
  if (skim::report r = reader.run(args, lists, call.workspace, call.executor); !r) return r;
  return std::fabs(sum_of(args.out) - sum) <= 1e-3f * sum ? skim::report{} : wrong("attend");
}

/// What stays: the sum of its positions.
float positions_of(const skim::kv_cache& kv, const skim::index_lists& kept) {
  float sum = 0;
  for (std::int64_t head = 0; head < kv.heads; ++head) {
    for (std::int64_t slot = 0; slot < kept.counts[head]; ++slot) sum += static_cast<float>(kv.position(head, slot));
  }
  return sum;
}

template <class Evictor>
skim::report run_eviction(const Evictor& evictor, const unit_call& call, float& sum) {
  const skim::cpu::eviction op{evictor};
  skim::eviction_args args = call.eviction;
  if (skim::report r = op.check_shape(args); !r) return r;
  if (op.workspace_bytes(args, call.executor.concurrency()) > call.workspace.bytes) return wrong("call.workspace");
  if (op.state_bytes(args) > call.state.bytes) return wrong("call.state");
  static_cast<void>(op.cost(args));
  for (const bool whole : {false, true}) {
    if (skim::report r = skim::cpu::append(call.append, call.executor); !r) return r;  // the cache as it was
    if (skim::report r = op.reset(args, call.state, call.executor); !r) return r;
    if (whole) {
      if (skim::report r = op.run(args, call.kept, call.state, call.workspace, call.executor); !r) return r;
      if (positions_of(args.kv, call.kept) != sum) return wrong("eviction");
      continue;
    }
    if (skim::report r = skim::check_indices(args, skim::kept_by(evictor, args), op.needs()); !r) return r;
    if (skim::report r = op.observe(args, call.state, call.workspace, call.executor); !r) return r;
    if (skim::report r = op.score(args, call.scores, call.state, call.workspace, call.executor); !r) return r;
    if (skim::report r = op.choose(args, call.scores, call.kept, call.workspace, call.executor); !r) return r;
    if (skim::report r = op.compact(args, call.kept, call.state, call.workspace, call.executor); !r) return r;
    sum = positions_of(args.kv, call.kept);
  }
  return {};
}

/// The evictor by itself, and as what CAOTE weighs values by.
template <class Evictor>
skim::report run_forms(const Evictor& evictor, const unit_call& call, float*& sum) {
  if (skim::report r = run_eviction(evictor, call, *sum++); !r) return r;
  if (skim::report r = run_eviction(skim::caote{evictor}, call, *sum++); !r) return r;
  return run_eviction(skim::fast_caote{evictor}, call, *sum++);
}

/// A chunk goes into an empty cache and half of it out again.
skim::report run_bounded(const unit_call& call, float& sum) {
  skim::cpu::bounded_cache<skim::keydiff<>> cache;
  cache.op.evictor.keep = skim::retention::budget(call.kept.capacity);
  cache.settings = call.eviction;
  cache.settings.new_tokens = cache.kv().tokens = 0;
  cache.state = call.state;
  cache.kept = call.kept;
  if (skim::report r = cache.op.reset(cache.settings, cache.state, call.executor); !r) return r;
  if (skim::report r = cache.append(call.append.k, call.append.v, call.executor); !r) return r;
  if (skim::report r = cache.evict({}, nullptr, call.workspace, call.executor); !r) return r;
  sum = positions_of(cache.kv(), cache.kept);
  return {};
}

template <class Op>
skim::report run_ffn(const Op& op, const unit_call& call, float& sum) {
  const skim::ffn_args& args = call.ffn;
  if (skim::report r = op.check_shape(args); !r) return r;
  if (op.workspace_bytes(args, call.executor.concurrency()) > call.workspace.bytes) return wrong("call.workspace");
  if (op.state_bytes(args) > call.state.bytes || !(op.cost(args).flops > 0)) return wrong("neuron selector");
  skim::tensor_view<float, 2> scores = call.scores;
  scores.extents[0] = 1;
  scores.extents[1] = scores.strides[0] = args.up.extents[0];
  skim::ffn_args first = args;  // dense: what policies with a state observe
  first.first_block = 0;
  if (skim::report r = op.reset(args, call.state, call.executor); !r) return r;
  if (skim::report r = op.run(first, call.state, call.workspace, call.executor); !r) return r;
  if (skim::report r = op.run(args, call.state, call.workspace, call.executor); !r) return r;
  sum = sum_of(args.out);
  if (skim::report r = op.score(args, scores, call.state, call.workspace, call.executor); !r) return r;
  if (skim::report r = op.choose(args, scores, call.neurons, call.workspace, call.executor); !r) return r;
  if (skim::report r = skim::check_indices(args, call.neurons); !r) return r;
  if (skim::report r = op.compute(args, call.neurons, call.workspace, call.executor); !r) return r;
  if (skim::report r = op.compensate(args, call.workspace, call.executor); !r) return r;
  return std::fabs(sum_of(args.out) - sum) <= 1e-3f * sum ? skim::report{} : wrong("ffn");
}

template <class Op>
skim::report run_linear(const Op& op, const unit_call& call, float& sum) {
  if (skim::report r = op.check_shape(call.linear); !r) return r;
  if (op.workspace_bytes(call.linear, call.executor.concurrency()) > call.workspace.bytes) return wrong("workspace");
  if (!(op.cost(call.linear).flops > 0)) return wrong("linear");
  if (skim::report r = op.run(call.linear, call.workspace, call.executor); !r) return r;
  sum = sum_of(call.linear.out);
  return {};
}

skim::report run_importance(const unit_call& call, float& sum) {
  double mass = 0;
  skim::attention_importance_args args;
  args.attended = call.attention;
  args.sum = &mass;
  const skim::cpu::attention_importance op;
  if (skim::report r = skim::check_indices(args); !r) return r;
  if (op.workspace_bytes(args, call.executor.concurrency()) > call.workspace.bytes) return wrong("call.workspace");
  if (!(op.cost(args).flops > 0)) return wrong("attention_importance");
  if (skim::report r = op.run(args, call.workspace, call.executor); !r) return r;
  sum = static_cast<float>(mass);
  return {};
}

}  // namespace

skim::report SKIM_UNIT(const unit_call& call) {
  using namespace skim;
  const retention keep = retention::budget(64, 4, 16), stays = retention::budget(call.kept.capacity);
  const neuron_retention some = neuron_retention::budget(40);
  team_barrier barrier;
  unit_call alone = call, team = call;  // the library's own executors
  alone.executor = serial_executor{};
  const team_executor member(0, 1, barrier);
  team.executor = member;

  float* sum = call.sums;
  char text[200];
  if (describe(check_shape(append_args{}), text, sizeof text)[0] == '\0') return wrong("text");
  if (!(cost(call.append).bytes > 0)) return wrong("call.append");
  if (report r = cpu::append(call.append, call.executor); !r) return r;
  if (report r = run_attention(cpu::attention{later_keys{}}, alone, *sum++); !r) return r;
  if (report r = run_attention(cpu::attention{quoka::paper(queries::farthest_point(16), keep)}, team, *sum++); !r)
    return r;
  const retention share = retention::share(0.25).dense_under(0, 2).for_every(16);
  const cpu::attention every{quoka::paper(queries::random(16), share, similarity::dot, reduction::mean)};
  if (report r = run_attention(every, call, *sum++); !r) return r;
  if (report r = run_attention(cpu::attention{sink_window{retention::budget(64, 4)}}, call, *sum++); !r) return r;
  if (report r = run_attention(cpu::attention{dense{}, accumulate::dot_pairs{}}, call, *sum++); !r) return r;
  if (report r = run_attention(cpu::attention<>{}, call, *sum++); !r) return r;  // last: its log-sum-exp stays
  if (report r = run_importance(call, *sum++); !r) return r;

  if (report r = run_forms(keydiff{stays}, call, sum); !r) return r;
  if (report r = run_forms(keydiff{stays, anchor::mean{}}, call, sum); !r) return r;
  if (report r = run_forms(keydiff{stays, anchor::median{}}, call, sum); !r) return r;
  if (report r = run_forms(keydiff{stays, anchor::pairwise{}}, call, sum); !r) return r;
  if (report r = run_forms(h2o{stays}, call, sum); !r) return r;
  if (report r = run_forms(tova{stays}, call, sum); !r) return r;
  if (report r = run_forms(snapkv{stays}, call, sum); !r) return r;
  if (report r = run_eviction(sink_window{stays}, call, *sum++); !r) return r;
  if (report r = run_eviction(random_tokens{stays}, call, *sum++); !r) return r;
  if (report r = run_bounded(call, *sum++); !r) return r;
  tensor_view<float, 2> pooled = call.scores;
  pooled.extents[0] = 1;
  if (report r = cpu::rank_scores(call.scores, call.workspace, call.executor); !r) return r;
  if (report r = cpu::pool_scores(call.scores, pooled, call.executor); !r) return r;

  if (report r = run_ffn(cpu::ffn<>{}, call, *sum++); !r) return r;
  if (report r = run_ffn(cpu::ffn{call.fastforward}, call, *sum++); !r) return r;
  if (report r = run_ffn(cpu::ffn{call.calibrated_set, accumulate::amx{}}, call, *sum++); !r) return r;
  if (report r = run_ffn(cpu::ffn{oracle{some}}, call, *sum++); !r) return r;
  if (report r = run_ffn(cpu::ffn{static_set{some}}, call, *sum++); !r) return r;
  if (report r = run_ffn(cpu::ffn{random_neurons{some}}, call, *sum++); !r) return r;
  if (report r = run_linear(cpu::linear<>{}, call, *sum++); !r) return r;
  if (report r = run_linear(cpu::linear{accumulate::dot_pairs{}}, call, *sum++); !r) return r;
  return sum == call.sums + unit_rules ? report{} : wrong("unit_rules");
}
