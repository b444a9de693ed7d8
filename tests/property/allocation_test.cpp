// SPDX-License-Identifier: Apache-2.0
// Kernels allocate nothing while they run.
#include "allocation_counter.hpp"
#include "calls.hpp"

#include "support/eviction_case.hpp"
#include "support/ffn_case.hpp"

#include <skim/skim.hpp>

#include <cstdlib>

namespace {

using namespace skim_test;

/// Runs `operation(executor)` and returns how many allocations it made; threads exist before it starts.
template <class Operation>
int allocations_of(executor_choice choice, const Operation& operation) {
  allocations_counted = 0;
  if (choice.kind == executor_kind::team) {
    std::atomic<unsigned> ready{0}, done{0};
    skim::team_barrier barrier;
    std::vector<std::thread> members;
    for (unsigned ith = 0; ith < choice.workers; ++ith) {
      members.emplace_back([&, ith] {
        ++ready;
        while (!count_allocations) std::this_thread::yield();
        operation(skim::executor_ref(skim::team_executor(ith, choice.workers, barrier)));
        ++done;
      });
    }
    while (ready < choice.workers) std::this_thread::yield();
    count_allocations = true;
    while (done < choice.workers) std::this_thread::yield();
    count_allocations = false;
    for (std::thread& member : members) member.join();
  } else {
    run_on(choice, [&](skim::executor_ref executor) {
      count_allocations = true;
      operation(executor);
      count_allocations = false;
    });
  }
  return allocations_counted;
}

class allocation : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(kinds, allocation,
                         testing::Values(executor_choice{executor_kind::serial, 1},
                                         executor_choice{executor_kind::host_pool, 3},
                                         executor_choice{executor_kind::team, 3}));

attention_case large_call() {
  attention_case c;
  c.Tq = 70;
  c.Tk = 3000;
  c.G = 3;
  c.Hk = 2;
  c.sequences = 3;
  c.lse = c.sinks = c.lengths = true;
  c.soft_cap = 20;
  c.kv_type = c.out_type = skim::element::bf16;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  return c;
}

template <class Selector, class Accumulate>
void expect_none_of(const skim::cpu::attention<Selector, Accumulate>& op, executor_choice choice,
                    const attention_case& c) {
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const std::int64_t rows = skim::list_rows(args, op.block_rows()), capacity = op.list_capacity(args);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity)), counts(static_cast<std::size_t>(rows));
  const skim::index_lists lists{indices.data(), counts.data(), rows, capacity, op.block_rows()};
  const skim::cpu::attend<Accumulate> listed;
  aligned_memory workspace(op.workspace_bytes(args, choice.workers));
  aligned_memory scratch(listed.workspace_bytes(args, lists.block_rows, choice.workers));
  std::atomic<int> refused{0};
  EXPECT_EQ(allocations_of(choice,
                           [&](skim::executor_ref executor) {
                             if (!op.run(args, {}, workspace.get(), executor)) ++refused;
                             if (!op.select(args, lists, {}, workspace.get(), executor)) ++refused;
                             if (!listed.run(args, lists, scratch.get(), executor)) ++refused;
                             if (!op.check(args) || !(op.cost(args).flops > 0)) ++refused;
                             if (!check_indices(args, &lists)) ++refused;
                             // A bad report allocates nothing either.
                             if (op.run(args, {}, {}, executor).ok()) ++refused;
                           }),
            0);
  EXPECT_EQ(refused, 0);
}

template <class Selector, class Accumulate>
void expect_none(const skim::cpu::attention<Selector, Accumulate>& op, executor_choice choice) {
  attention_case c = large_call();
  expect_none_of(op, choice, c);
  c.lengths = false;
  c.batch = c.slopes = true;
  c.bias = bias_kind::shared;
  expect_none_of(op, choice, c);
}

TEST_P(allocation, is_not_done_by_attention) {
  expect_none(skim::cpu::attention<>{}, GetParam());
  expect_none(skim::cpu::attention<skim::dense, skim::accumulate::dot_pairs>{}, GetParam());
}

TEST_P(allocation, is_not_done_by_selections) {
  const skim::retention keep = skim::retention::budget(100, 4, 20);
  expect_none(skim::cpu::attention{skim::quoka::paper(skim::queries::lowest_cosine(16), keep)}, GetParam());
  expect_none(skim::cpu::attention{skim::quoka{skim::queries::needed(16), keep}}, GetParam());
  expect_none(skim::cpu::attention{skim::quoka::paper(skim::queries::farthest_point(16), keep.for_every(32))},
              GetParam());
  expect_none(skim::cpu::attention{skim::sink_window{skim::retention::budget(100, 4)}}, GetParam());
}

TEST_P(allocation, is_not_done_by_append) {
  cache_shape shape{2, 40, 24, 64};
  shape.type = skim::element::f16;
  shape.positions = shape.inverse_norms = true;
  cache_storage cache(shape);
  strided_tensor k({40, 2, 40}), v({40, 2, 24});
  skim::append_args args;
  args.k = k.view();
  args.v = v.view();
  args.kv = cache.view(50);
  std::atomic<int> refused{0};
  EXPECT_EQ(allocations_of(GetParam(),
                           [&](skim::executor_ref executor) {
                             if (!skim::cpu::append(args, executor)) ++refused;
                           }),
            0);
  EXPECT_EQ(refused, 0);
}

template <class Policy>
void expect_no_eviction_allocates(const Policy& policy, executor_choice choice) {
  eviction_case c{large_call()};
  c.call.sequences = 1;
  c.call.lengths = false;
  c.call.positions = positions_kind::holes;
  eviction_inputs inputs(c);
  const skim::eviction_args args = inputs.args();
  const skim::cpu::eviction op{policy};
  lists_memory kept(c.call.Hk, op.list_capacity(args));
  scores_memory scores(c.call.Hk, args.kv.tokens);
  aligned_memory state(op.state_bytes(args)), workspace(op.workspace_bytes(args, choice.workers));
  std::atomic<int> refused{0};
  EXPECT_EQ(allocations_of(choice,
                           [&](skim::executor_ref executor) {
                             if (!op.reset(args, state.get(), executor)) ++refused;
                             if (!op.run(args, kept.lists, state.get(), workspace.get(), executor)) ++refused;
                             if (!op.score(args, scores.view(), state.get(), workspace.get(), executor)) ++refused;
                             if (!op.choose(args, scores.view(), kept.lists, workspace.get(), executor)) ++refused;
                             if (op.run(args, kept.lists, {}, {}, executor).ok()) ++refused;
                           }),
            0);
  EXPECT_EQ(refused, 0);
}

TEST_P(allocation, is_not_done_by_evictions) {
  const skim::retention keep = skim::retention::budget(100, 4, 20);
  expect_no_eviction_allocates(skim::keydiff{keep}, GetParam());
  expect_no_eviction_allocates(skim::keydiff{keep, skim::anchor::median{}}, GetParam());
  expect_no_eviction_allocates(skim::h2o{keep, 5}, GetParam());
  expect_no_eviction_allocates(skim::caote{skim::snapkv{keep}}, GetParam());
  expect_no_eviction_allocates(skim::fast_caote{skim::tova{keep}}, GetParam());
}

TEST_P(allocation, is_not_done_by_attention_importance) {
  attention_case c = large_call();
  c.sequences = 1;
  attention_inputs inputs(c);
  double sum = 0;
  skim::attention_importance_args args;
  args.attended = inputs.args();
  args.sum = &sum;
  const skim::cpu::attention_importance op;
  aligned_memory workspace(op.workspace_bytes(args, GetParam().workers));
  std::atomic<int> refused{0};
  EXPECT_EQ(allocations_of(GetParam(),
                           [&](skim::executor_ref executor) {
                             if (!op.run(args, workspace.get(), executor)) ++refused;
                           }),
            0);
  EXPECT_EQ(refused, 0);
}

TEST_P(allocation, is_not_done_by_ffns) {
  ffn_case c;
  c.M = 300;
  c.d = 100;
  c.f = 200;
  c.weights = skim::element::bf16;
  ffn_inputs inputs(c);
  const skim::ffn_args args = inputs.args();
  const auto expect_none_of = [&](const auto& op) {
    std::vector<float> scores(200);
    const skim::tensor_view<float, 2> view(scores.data(), {1, 200});
    std::vector<std::int32_t> indices(200), counts(1);
    const skim::index_lists chosen{indices.data(), counts.data(), 1, 200};
    aligned_memory state(op.state_bytes(args)), workspace(op.workspace_bytes(args, GetParam().workers));
    std::atomic<int> refused{0};
    EXPECT_EQ(allocations_of(GetParam(),
                             [&](skim::executor_ref executor) {
                               if (!op.reset(args, state.get(), executor)) ++refused;
                               if (!op.run(args, state.get(), workspace.get(), executor)) ++refused;
                               if (!op.score(args, view, state.get(), workspace.get(), executor)) ++refused;
                               if (!op.choose(args, view, chosen, workspace.get(), executor)) ++refused;
                               if (!op.compute(args, inputs.lists(), workspace.get(), executor)) ++refused;
                               if (!op.compensate(args, workspace.get(), executor)) ++refused;
                               if (op.run(args, {}, {}, executor).ok()) ++refused;
                             }),
              0);
    EXPECT_EQ(refused, 0);
  };
  const skim::neuron_retention keep = skim::neuron_retention::share(0.5);
  const skim::fastforward selector{keep, inputs.predictor(), inputs.compensator()};
  expect_none_of(skim::cpu::ffn{selector});
  expect_none_of(skim::cpu::ffn{selector, skim::cpu::request_amx()});
  expect_none_of(skim::cpu::ffn{skim::static_set{keep}});
}

TEST_P(allocation, is_not_done_by_linear_layers) {
  strided_tensor x({1, 300, 100}), weight({1, 200, 100}), out({1, 300, 200});
  x.fill(normal_values(300 * 100, 1));
  weight.fill(normal_values(200 * 100, 2));
  const auto matrix = [](strided_tensor& tensor) {
    const skim::tensor_view<void, 3> all = tensor.view();
    return skim::tensor_view<void, 2>(all.data, {all.extents[1], all.extents[2]}, all.type);
  };
  skim::linear_args args;
  args.x = matrix(x);
  args.weight = matrix(weight);
  args.out = matrix(out);
  const skim::cpu::linear op{};
  aligned_memory workspace(op.workspace_bytes(args, GetParam().workers));
  std::atomic<int> refused{0};
  EXPECT_EQ(allocations_of(GetParam(),
                           [&](skim::executor_ref executor) {
                             if (!op.run(args, workspace.get(), executor)) ++refused;
                           }),
            0);
  EXPECT_EQ(refused, 0);
}

TEST(AllocationCounter, Counts) {
  EXPECT_GT(allocations_of({},
                           [](const auto&) {
                             int* volatile kept = new int(10);  // volatile: or the pair is optimised away
                             delete kept;
                           }),
            0);
#if SKIM_TEST_COUNTS_MALLOC
  EXPECT_EQ(allocations_of({},
                           [](const auto&) {
                             void* volatile kept = std::malloc(100);
                             std::free(kept);
                           }),
            1);
#endif
}

}  // namespace
