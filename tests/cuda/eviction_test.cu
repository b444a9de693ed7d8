// SPDX-License-Identifier: Apache-2.0
// Eviction on a GPU against the reference: observe, score, choose, compact, and all of them in one run.
#include <skim/cuda/eviction.cuh>
#include <skim/cuda/evictor/caote.cuh>
#include <skim/cuda/evictor/keydiff.cuh>

#include "on_device.hpp"

namespace skim_test {

/// `cuda::eviction` in the CPU's words: each step is over when it returns.
template <class Policy>
struct gpu_eviction {
  Policy policy;
  skim::cuda::eviction<Policy> op{policy};

  static skim::report finished(const skim::cuda::launch_report& report) {
    EXPECT_EQ(report.error, cudaSuccess) << cudaGetErrorString(report.error);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return report;
  }
  template <class... Given>
  skim::report reset(const skim::eviction_args& args, skim::memory state, const Given&...) const {
    return finished(op.reset(args, state, nullptr));
  }
  skim::report check(const skim::eviction_args& args) const { return op.check(args); }
  std::size_t state_bytes(const skim::eviction_args& args) const { return op.state_bytes(args); }
  std::size_t workspace_bytes(const skim::eviction_args& args, unsigned) const { return op.workspace_bytes(args); }
  std::int64_t list_capacity(const skim::eviction_args& args) const { return op.list_capacity(args); }
  template <class Executor>
  skim::report observe(const skim::eviction_args& args, skim::memory state, skim::memory workspace,
                       const Executor&) const {
    return finished(op.observe(args, state, workspace, nullptr));
  }
  template <class Executor>
  skim::report score(const skim::eviction_args& args, skim::tensor_view<float, 2> scores, skim::memory state,
                     skim::memory workspace, const Executor&) const {
    return finished(op.score(args, scores, state, workspace, nullptr));
  }
  template <class Executor>
  skim::report choose(const skim::eviction_args& args, skim::tensor_view<const float, 2> scores,
                      const skim::index_lists& lists, skim::memory workspace, const Executor&) const {
    return finished(op.choose(args, scores, lists, workspace, nullptr));
  }
  template <class Executor>
  skim::report compact(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                       skim::memory workspace, const Executor&) const {
    return finished(op.compact(args, lists, state, workspace, nullptr));
  }
  template <class Executor>
  skim::report run(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                   skim::memory workspace, const Executor&) const {
    return finished(op.run(args, lists, state, workspace, nullptr));
  }
};

}  // namespace skim_test

#define SKIM_TEST_EVICTION gpu_eviction
#include "support/eviction_sample.hpp"
#include "support/expect_eviction.hpp"
#include "support/expect_smoothed.hpp"

#include <gtest/gtest.h>

#include <random>

namespace {

using namespace skim_test;
using skim::caote;
using skim::compaction;
using skim::fast_caote;
using skim::keydiff;
using skim::retention;

constexpr int shards = 8;
class gpu_evicts : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, gpu_evicts, testing::Range(0, shards));

TEST_P(gpu_evicts, as_the_reference_stage_by_stage) {
  NEEDS_A_GPU();
  const std::vector<policy_case> cases = eviction_sample();
  for (std::size_t i = static_cast<std::size_t>(GetParam()); i < cases.size(); i += shards) {
    policy_case c = cases[i];
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << c);
    if (c.eviction.how == compaction::pages) c.eviction.how = compaction::stable;
    switch (i / shards % 3) {
      case 0:
        expect_eviction(keydiff<>{c.keep}, c.eviction);
        break;
      case 1:
        expect_eviction(fast_caote{keydiff<>{c.keep}}, c.eviction);
        break;
      default:
        expect_eviction(caote{keydiff<>{c.keep}}, c.eviction);
    }
    if (HasFailure()) return;
  }
}

TEST(gpu_smooths, as_the_reference_by_position) {
  NEEDS_A_GPU();
  for (const cache_form form : sampled_forms) {
    for (const bool share : {false, true}) {
      eviction_case c = small_case();
      c.call.layout = form.layout;
      c.call.page_size = form.page_size;
      c.call.lengths = !share;
      c.share_heads = share;
      expect_smoothed(c, [](const retention& keep, std::int64_t width) { return keydiff<>{keep, {}, width}; });
      expect_smoothed(c, [](const retention& keep, std::int64_t width) { return fast_caote{keydiff<>{keep}, width}; });
      expect_smoothed(c, [](const retention& keep, std::int64_t width) {
        return caote{keydiff<>{keep}, false, width};
      });
      if (HasFailure()) return;
    }
  }
}

/// A row of scores with many equals, of tokens in no order, and which of them stay.
struct scored_tokens {
  std::vector<float> scores;
  std::vector<std::int32_t> positions;
  skim::kv_cache kv;

  scored_tokens(std::int64_t n, bool ordered) : scores(static_cast<std::size_t>(n)), positions(scores.size()) {
    std::mt19937 random(static_cast<unsigned>(n));
    const std::vector<float> few{-1, -0.0f, 0, 0.5f, 0.5f, 2, std::numeric_limits<float>::quiet_NaN()};
    for (float& score : scores) {
      score = random() % 4 == 0 ? few[random() % few.size()] : static_cast<float>(random() % 1000) * 1e-3f;
    }
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(3 * i);
    if (!ordered) std::shuffle(positions.begin(), positions.end(), random);
    kv.heads = 1;
    kv.tokens = kv.capacity = n;
    kv.k.dim = kv.v.dim = 1;
    kv.k.type = kv.v.type = skim::element::f32;
    kv.positions = positions.data();
    kv.positions_stride = n;
  }
};

TEST(gpu_chooses, by_blocks_and_by_clusters_what_the_reference_keeps) {
  NEEDS_A_GPU();
  for (const std::int64_t n : {2, 37, 1000, 5000, 8192, 9000, 20000, 70000, 100000, 131072, 170000}) {
    for (const bool later : {false, true}) {
      for (const bool ordered : {false, true}) {
        scored_tokens tokens(n, ordered);
        for (const retention keep : {retention::budget(n / 2), retention::budget(n - 1, n / 9, n / 3),
                                     retention::budget(n / 2, n / 4, n / 2 - n / 4), retention::budget(1)}) {
          SCOPED_TRACE(testing::Message() << n << " tokens, " << keep.count << " " << keep.sinks << " " << keep.recent
                                          << (later ? ", later" : "") << (ordered ? ", in order" : ""));
          skim::eviction_args args;
          args.kv = tokens.kv;
          lists_memory lists(1, keep.count);
          skim::cuda::detail::token_rows rows{};
          rows.call = skim::cuda::detail::call_of(args, keep);
          rows.lists = lists.lists;
          rows.scores = tokens.scores.data();
          rows.score_stride = rows.columns = static_cast<int>(n);
          rows.by_four = n % 4 == 0;
          rows.later = later;
          const auto expected =
              skim::reference::keep_tokens(args.kv, 0, keep, {tokens.scores.begin(), tokens.scores.end()},
                                           later ? skim::reference::ties::later : skim::reference::ties::earlier);
          for (const bool clusters : {false, true}) {
            skim::cuda::detail::launcher launch(nullptr);
            std::fill(lists.indices.begin(), lists.indices.end() - 1, -1);
            if (clusters && !skim::cuda::detail::choose_by_clusters(rows, n, 1, launch)) continue;
            if (!clusters) skim::cuda::detail::choose_by_blocks(rows, 1, launch);
            ASSERT_EQ(launch.error(), cudaSuccess);
            ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
            ASSERT_EQ(lists.row(0), expected) << (clusters ? "by clusters" : "by blocks");
            ASSERT_TRUE(lists.guards_intact());
          }
        }
      }
    }
  }
}

/// Positions that repeat, which a cache should not have, cost no memory behind a list.
TEST(gpu_chooses, no_more_than_asked_for_where_positions_repeat) {
  NEEDS_A_GPU();
  for (const std::int64_t n : {300, 12000, 100000}) {
    scored_tokens tokens(n, true);
    std::fill(tokens.positions.begin(), tokens.positions.end(), 5);
    const retention keep = retention::budget(n / 2, n / 9, n / 7);
    skim::eviction_args args;
    args.kv = tokens.kv;
    for (const bool clusters : {false, true}) {
      lists_memory lists(1, keep.count);
      skim::cuda::detail::token_rows rows{};
      rows.call = skim::cuda::detail::call_of(args, keep);
      rows.lists = lists.lists;
      rows.scores = tokens.scores.data();
      rows.score_stride = rows.columns = static_cast<int>(n);
      skim::cuda::detail::launcher launch(nullptr);
      if (clusters && !skim::cuda::detail::choose_by_clusters(rows, n, 1, launch)) continue;
      if (!clusters) skim::cuda::detail::choose_by_blocks(rows, 1, launch);
      ASSERT_EQ(launch.error(), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      EXPECT_TRUE(lists.guards_intact()) << n << (clusters ? ", by clusters" : ", by blocks");
    }
  }
}

/// Keys of every size have a direction, those that are not finite leave first.
TEST(gpu_keydiff, takes_keys_of_unusual_size) {
  NEEDS_A_GPU();
  for (const float size : {1e-40f, 1e-25f, 1e25f, 3e38f}) {
    for (const bool norms : {false, true}) {
      eviction_case c = whole_case(200);
      c.call.kv_type = skim::element::f32;
      c.call.inverse_norms = norms;
      eviction_inputs inputs(c);
      const skim::eviction_args args = inputs.args();
      const std::int64_t D = args.kv.k.dim;
      const auto bare = scores_of(keydiff<>{retention::budget(40)}, args, 0);
      for (std::int64_t slot = 0; slot < 200; slot += 3) {
        float* const key = static_cast<float*>(args.kv.row_address(args.kv.k, 0, slot));
        float largest = 0;
        for (std::int64_t d = 0; d < D; ++d) largest = std::max(largest, std::fabs(key[d]));
        for (std::int64_t d = 0; d < D; ++d) key[d] = key[d] / largest * size;
        if (norms) args.kv.inverse_norms[args.kv.metadata_row(slot)] = size < 1 ? HUGE_VALF : 0;
      }
      const auto got = scores_of(keydiff<>{retention::budget(40)}, args, 0);
      // Subnormal numbers have few digits.
      const double error = size < 1e-37f ? 1e-3 : 1e-5;
      for (std::size_t slot = 0; slot < got.size(); ++slot) ASSERT_NEAR(got[slot], bare[slot], error) << slot;
    }
  }
}

/// What the chain of a whole run leaves is what it leaves in a graph, replayed.
TEST(gpu_eviction_runs, captured_give_the_same_bits) {
  NEEDS_A_GPU();
  eviction_case c = small_case();
  const fast_caote policy{keydiff<>{retention::budget(40, 4, 10)}, 5};
  eviction_inputs direct(c), captured(c);
  eviction_run<fast_caote<keydiff<>>> first(policy, direct.args()), second(policy, captured.args());
  lists_memory lists(2, 40), others(2, 40);
  ASSERT_TRUE(first.run(lists).ok());
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_TRUE(second.op.op.run(second.args, others.lists, second.state.get(), second.workspace.get(), stream).ok());
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(lists.indices, others.indices);
  EXPECT_TRUE(direct.snapshot() == captured.snapshot());
  EXPECT_EQ(first.state_bytes(), second.state_bytes());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
