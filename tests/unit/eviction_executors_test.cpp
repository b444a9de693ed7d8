// SPDX-License-Identifier: Apache-2.0
// Evictions leave the same bits on every executor, for every number of workers and whatever lies in the workspace.
#include "support/eviction_case.hpp"
#include "support/executors.hpp"

namespace {

using namespace skim_test;
using skim::compaction;
using skim::retention;

/// Everything that an eviction leaves.
struct outcome {
  std::vector<std::int32_t> indices, counts;
  std::vector<unsigned char> state;
  cache_snapshot cache;
};

bool operator==(const outcome& a, const outcome& b) {
  return a.indices == b.indices && a.counts == b.counts && a.state == b.state && a.cache == b.cache;
}

/// State from zeroed memory: what no one writes is equal, whatever the workspace holds.
template <class Policy>
outcome evict(const Policy& policy, const eviction_case& c, executor_choice choice, unsigned char fill = 0xff) {
  eviction_inputs inputs(c);
  const skim::eviction_args args = inputs.args();
  const skim::cpu::eviction<Policy> op{policy};
  aligned_memory state(op.state_bytes(args), 0), workspace(op.workspace_bytes(args, choice.workers), fill);
  lists_memory kept(skim::list_rows(args), op.list_capacity(args));
  run_on(choice, [&](const auto& executor) {
    EXPECT_TRUE(op.reset(args, state.get(), executor).ok());
    EXPECT_TRUE(op.observe(args, state.get(), workspace.get(), executor).ok());
    const skim::report report = op.run(args, kept.lists, state.get(), workspace.get(), executor);
    EXPECT_TRUE(report.ok());
    EXPECT_EQ(report.taken, skim::path::sparse);
  });
  EXPECT_TRUE(state.guards_intact() && workspace.guards_intact() && kept.guards_intact());
  const auto* const bytes = static_cast<const unsigned char*>(state.data());
  return {kept.indices, kept.counts, {bytes, bytes + op.state_bytes(args)}, inputs.snapshot()};
}

/// More than one work unit of every loop, and a rest: of keys, of rows of K and V, of rows of queries.
eviction_case wide_case() {
  eviction_case c;
  c.call.kv_type = skim::element::bf16;
  c.call.Tq = 130;
  c.call.Tk = 900;
  c.call.G = 5;
  c.call.Hk = 3;
  c.call.D = 20;
  c.call.Dv = 28;
  c.call.positions = positions_kind::shuffled;
  c.call.mask = skim::mask::full();
  return c;
}

/// A policy for each kind of loop; those left out share theirs. Each takes long to compile for all executors.
template <class Body>
void for_each_policy(const Body& body) {
  const retention keep = retention::budget(384, 4, 40);
  body(skim::h2o{keep});
  body(skim::keydiff<skim::anchor::median>{keep});
  body(skim::keydiff<skim::anchor::pairwise>{keep});
  body(skim::caote{skim::snapkv{keep, 20, 5}});
  body(skim::fast_caote{skim::keydiff<>{keep}});
  body(skim::random_tokens{keep, 7});
}

class eviction_executors : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(kinds, eviction_executors, testing::ValuesIn(every_executor));

TEST_P(eviction_executors, leave_the_serial_bits) {
  for (const compaction how : {compaction::refill, compaction::stable}) {
    eviction_case c = wide_case();
    c.how = how;
    for_each_policy(
        [&](const auto& policy) { EXPECT_TRUE(evict(policy, c, GetParam()) == evict(policy, c, executor_choice{})); });
  }
}

TEST_P(eviction_executors, leave_the_serial_pages) {
  eviction_case c = wide_case();
  c.call.layout = skim::kv_layout::paged;
  c.call.page_size = 16;
  c.call.positions = positions_kind::shared_holes;
  c.how = compaction::pages;
  c.share_heads = true;
  for_each_policy(
      [&](const auto& policy) { EXPECT_TRUE(evict(policy, c, GetParam()) == evict(policy, c, executor_choice{})); });
}

TEST_P(eviction_executors, leave_the_serial_joint_choice) {
  eviction_case c = wide_case();
  c.call.Tk = 300;
  const auto policy = skim::caote{skim::tova{retention::budget(384, 4, 40)}, true};
  EXPECT_TRUE(evict(policy, c, GetParam()) == evict(policy, c, executor_choice{}));
}

TEST(EvictionWorkspace, ContentsDoNotMatter) {
  for (const unsigned char fill : {0x00, 0x7f, 0x3f}) {
    for_each_policy([&](const auto& policy) {
      EXPECT_TRUE(evict(policy, wide_case(), executor_choice{}, fill) == evict(policy, wide_case(), executor_choice{}))
          << "filled with " << int{fill};
    });
  }
}

/// Layouts, orders and alignments of the same tokens keep the same slots.
TEST(EvictionLayouts, KeepTheSameTokens) {
  for_each_policy([&](const auto& policy) {
    const outcome expected = evict(policy, wide_case(), executor_choice{});
    for (const memory_order order : {memory_order::head_major, memory_order::interleaved}) {
      for (const skim::kv_layout layout :
           {skim::kv_layout::contiguous, skim::kv_layout::paged, skim::kv_layout::ring}) {
        eviction_case c = wide_case();
        c.call.kv_order = order;
        c.call.layout = layout;
        c.call.page_size = 32;
        c.call.padding = 3;
        c.call.shift = 1;
        const outcome got = evict(policy, c, executor_choice{});
        EXPECT_EQ(got.indices, expected.indices) << c;
        EXPECT_EQ(got.counts, expected.counts) << c;
      }
    }
  });
}

}  // namespace
