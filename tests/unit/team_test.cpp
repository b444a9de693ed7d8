// SPDX-License-Identifier: Apache-2.0
// Whole operations on a team of threads, small enough for ThreadSanitizer: every thread calls `run` itself.
#include "support/attention_sample.hpp"
#include "support/executors.hpp"

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;

class team : public testing::TestWithParam<unsigned> {};
INSTANTIATE_TEST_SUITE_P(sizes, team, testing::Values(1u, 2u, 3u, 7u));

template <class Operation>
void expect_serial_bits(const Operation& op, const attention_case& c, unsigned members) {
  attention_inputs alone(c), together(c);
  const skim::attention_args args = together.args();
  aligned_memory workspace(op.workspace_bytes(args, members)), own(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(alone.args(), {}, own.get(), skim::serial_executor{}).ok());
  std::vector<skim::report> reports(members);
  skim::team_barrier barrier;
  std::vector<std::thread> threads;
  for (unsigned ith = 0; ith < members; ++ith) {
    threads.emplace_back([&, ith] {
      const skim::team_executor executor(ith, members, barrier);
      for (int run = 0; run < 2; ++run) reports[ith] = op.run(args, {}, workspace.get(), executor);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const skim::report& report : reports) {
    EXPECT_TRUE(report.ok());
    EXPECT_EQ(report.taken, reports[0].taken);
  }
  EXPECT_EQ(together.out().bytes(), alone.out().bytes());
  EXPECT_EQ(together.lse().bytes(), alone.lse().bytes());
  EXPECT_TRUE(workspace.guards_intact());
}

attention_case small_call() {
  attention_case c;
  c.Tq = 9;
  c.Tk = 1100;  // several pieces of keys
  c.G = 2;
  c.Hk = 2;
  c.D = 16;
  c.Dv = 8;
  c.lse = true;
  return c;
}

TEST_P(team, attends) {
  attention_case c = small_call();
  expect_serial_bits(skim::cpu::attention<>{}, c, GetParam());
  c.sequences = 3;
  c.Tk = 300;
  expect_serial_bits(skim::cpu::attention<>{}, c, GetParam());
  c.batch = true;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  expect_serial_bits(skim::cpu::attention<>{}, c, GetParam());
}

TEST_P(team, selects_and_attends) {
  attention_case c = small_call();
  c.lengths = true;
  const skim::retention keep = skim::retention::budget(100, 4, 20).for_every(5);
  expect_serial_bits(skim::cpu::attention{skim::quoka::paper(skim::queries::lowest_cosine(4), keep)}, c, GetParam());
  expect_serial_bits(skim::cpu::attention{skim::quoka::paper(skim::queries::farthest_point(4), keep)}, c, GetParam());
  expect_serial_bits(skim::cpu::attention{skim::quoka{skim::queries::needed(4), keep}}, c, GetParam());
  expect_serial_bits(skim::cpu::attention{skim::sink_window{skim::retention::budget(100, 4)}}, c, GetParam());
}

TEST_P(team, appends) {
  cache_shape shape{2, 16, 8, 64};
  shape.type = skim::element::bf16;
  shape.positions = shape.inverse_norms = true;
  cache_storage alone(shape), together(shape);
  strided_tensor k({30, 2, 16}), v({30, 2, 8});
  k.fill(normal_values(30 * 2 * 16, 1));
  v.fill(normal_values(30 * 2 * 8, 2));
  skim::append_args args;
  args.k = k.view();
  args.v = v.view();
  args.position = 5;
  args.kv = alone.view(50);
  ASSERT_TRUE(skim::cpu::append(args, skim::serial_executor{}).ok());
  args.kv = together.view(50);
  run_on_own({executor_kind::team, GetParam()},
             [&](const auto& executor) { EXPECT_TRUE(skim::cpu::append(args, executor).ok()); });
  EXPECT_EQ(together.k_bytes(), alone.k_bytes());
  EXPECT_EQ(together.v_bytes(), alone.v_bytes());
  for (std::int64_t i = 20; i < 50; ++i) {
    EXPECT_EQ(together.view(50).positions[i], alone.view(50).positions[i]);
    EXPECT_EQ(together.view(50).inverse_norms[i], alone.view(50).inverse_norms[i]);
  }
}

/// All members of a refused call return, and agree.
TEST_P(team, refuses_together) {
  attention_inputs inputs(small_call());
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<> op;
  run_on_own({executor_kind::team, GetParam()}, [&](const auto& executor) {
    EXPECT_EQ(op.run(args, {}, {}, executor).code, skim::status::short_workspace);
  });
}

}  // namespace
