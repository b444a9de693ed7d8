// SPDX-License-Identifier: Apache-2.0
// Eviction on a GPU against the reference: observe, score, choose, compact, and all of them in one run.
#include <skim/cuda/eviction.cuh>
#include <skim/cuda/evictor/caote.cuh>
#include <skim/cuda/evictor/h2o.cuh>
#include <skim/cuda/evictor/keydiff.cuh>
#include <skim/cuda/evictor/random_tokens.cuh>
#include <skim/cuda/evictor/snapkv.cuh>
#include <skim/cuda/evictor/tova.cuh>
#include <skim/selector/sink_window.hpp>

#include "captured_call.hpp"
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
#define SKIM_TEST_WEIGHT_ROUNDOFF 0x1p-22
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
using skim::h2o;
using skim::keydiff;
using skim::random_tokens;
using skim::retention;
using skim::sink_window;
using skim::snapkv;
using skim::tova;

constexpr int shards = 8;
class gpu_evicts : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, gpu_evicts, testing::Range(0, shards));

/// Lots are the CPU's, and so are lists: by the step, and by a whole run.
void expect_drawn(const random_tokens& policy, const eviction_case& c) {
  eviction_inputs inputs(c);
  const skim::eviction_args args = inputs.args();
  const skim::cpu::eviction<random_tokens> on_cpu{policy};
  aligned_memory workspace(on_cpu.workspace_bytes(args, 1));
  scores_memory scores(args.kv.heads, args.kv.tokens);
  ASSERT_TRUE(on_cpu.score(args, scores.view(), {}, workspace.get(), skim::serial_executor{}).ok());
  for (std::int64_t head = 0; head < args.kv.heads; ++head) {
    ASSERT_EQ(scores_of(policy, args, head), scores.row(head, args.kv.length(head))) << "head " << head;
  }
  eviction_inputs others(c);
  lists_memory expected(skim::list_rows(args), on_cpu.list_capacity(args));
  ASSERT_TRUE(on_cpu.run(args, expected.lists, {}, workspace.get(), skim::serial_executor{}).ok());
  const auto lists = lists_of(policy, others.args());
  for (std::int64_t row = 0; row < skim::list_rows(args); ++row) {
    EXPECT_EQ(lists[static_cast<std::size_t>(row)], expected.row(row)) << "row " << row;
  }
  EXPECT_TRUE(inputs.snapshot() == others.snapshot());
}

TEST_P(gpu_evicts, as_the_reference_stage_by_stage) {
  NEEDS_A_GPU();
  const std::vector<policy_case> cases = eviction_sample(types_on_gpu);
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
    switch (c.policy % 7) {
      case 0:
        expect_eviction(h2o{c.keep}, c.eviction);
        break;
      case 1:
        expect_eviction(tova{c.keep}, c.eviction);
        break;
      case 2:
        expect_eviction(snapkv_of(c), c.eviction);
        break;
      case 3:
        expect_eviction(caote{h2o{c.keep}}, c.eviction);
        break;
      case 4:
        expect_eviction(caote{snapkv_of(c)}, c.eviction);
        break;
      case 5:
        expect_eviction(fast_caote{tova{c.keep}}, c.eviction);
        break;
      default:
        expect_eviction(fast_caote{h2o{c.keep}}, c.eviction);
    }
    if (i / shards % 2 == 0) {
      expect_eviction(sink_window{{c.keep.count, 0, c.keep.sinks, 0}}, c.eviction);
    } else {
      expect_drawn({c.keep, i}, c.eviction);
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
      expect_smoothed(c, [](const retention& keep, std::int64_t width) { return h2o{keep, width}; });
      expect_smoothed(c, [](const retention& keep, std::int64_t width) { return tova{keep, width}; });
      expect_smoothed(c, [](const retention& keep, std::int64_t width) { return fast_caote{tova{keep}, width}; });
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
        for (const retention keep :
             {retention::budget(n / 2), retention::budget(n - 1, n / 9, n / 3),
              retention::budget(n / 2, n / 4, n / 2 - n / 4), retention::budget(1),
              retention::budget(n - std::min<std::int64_t>(n / 2, 128)),
              retention::budget(std::min<std::int64_t>(n / 2, 100)),
              retention::budget(n - std::min<std::int64_t>(n / 3, 700), std::min<std::int64_t>(n / 9, 4), n / 8)}) {
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

/// Positions of one digit and of several, in blocks that sort alone and together; a position may come twice.
TEST(gpu_smooths, many_tokens_as_the_reference) {
  NEEDS_A_GPU();
  for (const std::int64_t n : {1, 2, 700, 8191, 8192, 8193, 30000}) {
    for (const std::int32_t apart : {1, 3, 127, 65000}) {
      for (const bool ordered : {false, true}) {
        scored_tokens tokens(n, ordered);
        for (std::int32_t& position : tokens.positions) position = position / 3 * apart;
        if (n > 2) tokens.positions[2] = tokens.positions[0];
        for (const std::int64_t width : {3, 63}) {
          SCOPED_TRACE(testing::Message() << n << " tokens " << apart << " apart, width " << width);
          skim::eviction_args args;
          args.kv = tokens.kv;
          std::vector<float> scores = tokens.scores;
          const auto order_of = [&](void* memory) {
            skim::detail::arena arena(memory);
            const skim::cuda::detail::token_order order(arena, 1, n);
            return std::pair{order, arena.used()};
          };
          const guarded_device_memory workspace(order_of(nullptr).second);
          skim::cuda::detail::launcher launch(nullptr);
          skim::cuda::detail::smooth_tokens(skim::cuda::detail::call_of(args, {}), width, false,
                                            skim::tensor_view<float, 2>(scores.data(), {1, n}),
                                            order_of(workspace.get().data).first, launch);
          ASSERT_EQ(launch.error(), cudaSuccess);
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
          const auto exact =
              reference::smoothed_by_position(args.kv, 0, {tokens.scores.begin(), tokens.scores.end()}, width);
          for (std::size_t slot = 0; slot < scores.size(); ++slot) {
            if (std::isnan(exact[slot])) {
              ASSERT_TRUE(std::isnan(scores[slot])) << "slot " << slot;
            } else {
              ASSERT_NEAR(scores[slot], exact[slot], static_cast<double>(width + 2) * f32_roundoff * 2)
                  << "slot " << slot;
            }
          }
          ASSERT_TRUE(workspace.guards_intact());
        }
      }
    }
  }
}

/// Rows of many blocks close up in order, whatever leaves: each block writes where others read.
TEST(gpu_compacts, many_rows_in_order) {
  NEEDS_A_GPU();
  const std::int64_t n = 9000, heads = 3, D = 20, Dv = 200;
  std::mt19937 random(7);
  for (const int kind : {0, 1, 2, 3}) {
    for (const std::int64_t shift : {0, 1}) {  // rows that are whole pieces of 16 bytes, and not
      SCOPED_TRACE(testing::Message() << "kind " << kind << ", shift " << shift);
      const auto filled = [&](std::int64_t dim) {
        std::vector<float> values(static_cast<std::size_t>(n * heads * dim + shift));
        for (float& value : values) value = static_cast<float>(random() % 100000);
        return values;
      };
      std::vector<float> k = filled(D), v = filled(Dv);
      std::vector<std::int32_t> positions(static_cast<std::size_t>(heads * n));
      for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(5 * i);
      const auto before_k = k, before_v = v;
      const auto before = positions;
      skim::eviction_args args;
      args.kv = skim::contiguous_cache(skim::tensor_view<float, 3>(k.data() + shift, {n, heads, D}),
                                       skim::tensor_view<float, 3>(v.data() + shift, {n, heads, Dv}), n);
      args.kv.positions = positions.data();
      args.kv.positions_stride = n;
      args.how = compaction::stable;
      lists_memory kept(heads, n - 1);
      for (std::int64_t head = 0; head < heads; ++head) {
        std::int32_t count = 0;
        for (std::int64_t slot = 0; slot < n; ++slot) {
          // One early; runs as long as many blocks; every second or third; few anywhere.
          const bool leaves = kind == 0   ? slot == 7 * head
                              : kind == 1 ? slot / 1500 % 2 == head % 2
                              : kind == 2 ? slot % (2 + head) == 0
                                          : random() % 50 == 0;
          if (!leaves) kept.lists.row(head)[count++] = static_cast<std::int32_t>(slot);
        }
        kept.counts[static_cast<std::size_t>(head)] = count;
      }
      const skim::cuda::eviction op{sink_window{retention::budget(n - 1)}};
      const guarded_device_memory workspace(op.workspace_bytes(args));
      const skim::cuda::launch_report done = op.compact(args, kept.lists, {}, workspace.get(), nullptr);
      ASSERT_TRUE(done.ok()) << to_string(done.code);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      for (std::int64_t head = 0; head < heads; ++head) {
        const std::vector<std::int64_t> list = kept.row(head);
        for (std::int64_t i = 0; i < static_cast<std::int64_t>(list.size()); ++i) {
          const std::int64_t source = list[static_cast<std::size_t>(i)];
          const auto row = [&](const std::vector<float>& of, std::int64_t slot, std::int64_t dim) {
            const auto begin = of.begin() + shift + (slot * heads + head) * dim;
            return std::vector<float>(begin, begin + dim);
          };
          ASSERT_EQ(row(k, i, D), row(before_k, source, D)) << "head " << head << ", slot " << i;
          ASSERT_EQ(row(v, i, Dv), row(before_v, source, Dv)) << "head " << head << ", slot " << i;
          ASSERT_EQ(positions[static_cast<std::size_t>(head * n + i)],
                    before[static_cast<std::size_t>(head * n + source)]);
        }
      }
      ASSERT_TRUE(workspace.guards_intact());
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

struct weights_shape {
  std::int64_t D, Tq, Tk, G, Hk;
};

/// What tensor cores multiply: both types, every dimension; more rows of q than there is room for at once, more keys than
/// blocks have in one turn; groups of any size, by which tiles of rows end anywhere.
TEST(gpu_weights, of_rows_by_tensor_cores) {
  NEEDS_A_GPU();
  const weights_shape shapes[] = {{64, 128, 300, 4, 2}, {64, 3, 6100, 1, 12}, {80, 33, 500, 5, 1},
                                  {96, 50, 200, 7, 2},  {128, 130, 90, 9, 1}, {128, 2, 4500, 12, 13},
                                  {192, 40, 310, 3, 2}, {256, 70, 150, 8, 1}, {256, 1, 700, 71, 1}};
  const skim::mask masks[] = {skim::mask::causal(), skim::mask::window(150), skim::mask::full()};
  int i = 0;
  for (const weights_shape& shape : shapes) {
    for (const skim::element type : {skim::element::bf16, skim::element::f16}) {
      eviction_case c;
      c.call.D = c.call.Dv = shape.D;
      c.call.Tq = shape.Tq;
      c.call.Tk = shape.Tk;
      c.call.G = shape.G;
      c.call.Hk = shape.Hk;
      c.call.kv_type = c.call.q_type = type;
      c.call.mask = masks[i % 3];
      c.call.soft_cap = i % 5 == 0 ? 5.0f : 0;
      c.call.scale = i % 4 == 0 ? -0.1f : 0;
      c.call.sinks = i % 2 == 0;
      c.call.lengths = i % 3 == 0;
      c.call.positions = i % 4 < 2 ? positions_kind::holes : positions_kind::shuffled;
      c.call.lists = i % 2 == 0 ? lists_kind::none : lists_kind::third;
      c.call.block_rows = i % 4 == 1 ? 0 : 20;
      const cache_form form = sampled_forms[static_cast<std::size_t>(i) % sampled_forms.size()];
      c.call.layout = form.layout;
      c.call.page_size = form.page_size;
      SCOPED_TRACE(testing::Message() << c);
      const retention keep = retention::budget(shape.Tk / 2, 4, 10);
      if (i % 3 == 0) expect_eviction(h2o{keep}, c);
      if (i % 3 == 1) expect_eviction(tova{keep}, c);
      if (i % 3 == 2) expect_eviction(snapkv{keep, 32, 5}, c);
      if (HasFailure()) return;
      ++i;
    }
  }
}

/// A small cache that tensor cores read if its type is one of theirs.
eviction_case case_of(skim::element type) {
  eviction_case c = small_case();
  c.call.kv_type = c.call.q_type = type;
  c.call.D = c.call.Dv = 64;
  return c;
}

/// Of logits near 1e8 a rounding may be 8; a softmax weight is at most 1 all the same.
TEST(gpu_weights, of_huge_logits_are_at_most_one) {
  NEEDS_A_GPU();
  for (const skim::element type : {skim::element::f32, skim::element::bf16}) {
    eviction_case c = case_of(type);
    c.call.scale = 1e7f;
    eviction_inputs inputs(c);
    const skim::eviction_args args = inputs.args();
    for (std::int64_t h = 0; h < 2; ++h) {
      double most = 0;
      for (const double weight : scores_of(h2o{retention::budget(30)}, args, h)) most = std::max(most, weight);
      EXPECT_LE(most, 12 * (1 + 0x1p-20));  // 12 queries
      EXPECT_GT(most, 0);
      for (const double weight : scores_of(tova{retention::budget(30)}, args, h)) EXPECT_LE(weight, 1 + 0x1p-20);
    }
  }
}

/// A row whose log-sum-exp is NaN has no say, nor has a key that is hidden, whatever is in it.
TEST(gpu_weights, of_rows_that_are_lost_and_keys_that_are_hidden_are_zero) {
  NEEDS_A_GPU();
  for (const skim::element type : {skim::element::f32, skim::element::bf16}) {
    eviction_case c = case_of(type);
    c.call.Tk = 200;
    c.call.positions = positions_kind::holes;
    c.call.mask = skim::mask::window(200);
    eviction_inputs inputs(c);
    const skim::eviction_args args = inputs.args();
    const float not_a_number = std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t h = 0; h < 4; ++h) *args.attended.lse.at(7, h) = not_a_number;
    for (std::int64_t d = 0; d < 64; ++d) {
      skim::store_element(args.kv.row_address(args.kv.k, 0, 3), type, d, not_a_number);
      skim::store_element(const_cast<void*>(static_cast<const void*>(args.attended.q.at(7, 1))), type, d, not_a_number);
    }
    eviction_run<h2o> run(h2o{retention::budget(30)}, args);
    run.observe();
    for (std::int64_t h = 0; h < 2; ++h) {
      const std::vector<double> got = run.scores_of(h);
      const std::vector<double> exact = reference::observe(h2o{}, args, h, std::vector<double>(200, 0.0));
      for (std::size_t slot = 0; slot < got.size(); ++slot) EXPECT_NEAR(got[slot], exact[slot], 1e-5) << slot;
    }
    EXPECT_EQ(run.scores_of(0)[3], 0);
  }
}

/// What the chain of a whole run leaves is what it leaves in a graph, replayed.
template <class Policy>
void expect_captured(const Policy& policy) {
  eviction_case c = small_case();
  eviction_inputs direct(c), captured(c);
  eviction_run<Policy> first(policy, direct.args()), second(policy, captured.args());
  lists_memory lists(2, 40), others(2, 40);
  ASSERT_TRUE(first.run(lists).ok());
  captured_call([&](cudaStream_t stream) {
    return second.op.op.run(second.args, others.lists, second.state.get(), second.workspace.get(), stream);
  }).replay();
  EXPECT_EQ(lists.indices, others.indices);
  EXPECT_TRUE(direct.snapshot() == captured.snapshot());
  EXPECT_EQ(first.state_bytes(), second.state_bytes());
}

TEST(gpu_eviction_runs, captured_give_the_same_bits) {
  NEEDS_A_GPU();
  expect_captured(fast_caote{keydiff<>{retention::budget(40, 4, 10)}, 5});
  expect_captured(snapkv{retention::budget(40, 4), 8, 5});
  expect_captured(caote{h2o{retention::budget(40, 4, 10)}, false, 3});
  expect_captured(random_tokens{retention::budget(40), 3});
  expect_captured(sink_window{retention::budget(40, 4)});
}

}  // namespace
