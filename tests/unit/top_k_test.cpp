// SPDX-License-Identifier: Apache-2.0
// Stable top-k, and sink_window, which is top-k over equal scores.
#include <skim/cpu/attention.hpp>
#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/kernel/top_k.hpp>
#include <skim/reference/quoka.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/testing/matchers.hpp>
#include "support/attention_sample.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace {

using namespace skim_test;
using skim::retention;
using list_of_slots = std::vector<std::int64_t>;

TEST(RankBits, OrderLikeTheScores) {
  const float largest = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float ascending[] = {-largest, -3e38f, -1, -1e-45f, 0, 1e-45f, 1, 3e38f, largest};
  for (std::size_t i = 1; i < std::size(ascending); ++i) {
    EXPECT_LT(skim::rank_bits(ascending[i - 1]), skim::rank_bits(ascending[i])) << ascending[i];
  }
  EXPECT_EQ(skim::rank_bits(0.0f), skim::rank_bits(-0.0f));
  EXPECT_EQ(skim::rank_bits(nan), skim::rank_bits(-nan));
  EXPECT_LT(skim::rank_bits(nan), skim::rank_bits(-largest));
  EXPECT_GT(skim::rank_bits(nan), 0u);
  EXPECT_LT(skim::rank_bits(largest), 0xffffffffu);
}

TEST(RankBits, OfManyScoresAreThoseOfEach) {
  std::mt19937 random(7);
  std::vector<float> scores = {0.0f, -0.0f, 1e-45f, -1e-45f, std::numeric_limits<float>::infinity()};
  scores.push_back(-scores.back());
  for (int i = 0; i < 5000; ++i) scores.push_back(skim::detail::float_from_bits(static_cast<std::uint32_t>(random())));
  std::vector<std::uint32_t> ranks(scores.size() + 1, 7);
  skim::cpu::detail::rank_scores(scores.data(), static_cast<std::int64_t>(scores.size()), ranks.data());
  for (std::size_t i = 0; i < scores.size(); ++i) EXPECT_EQ(ranks[i], skim::rank_bits(scores[i])) << scores[i];
  EXPECT_EQ(ranks.back(), 7u);
}

/// Ranks at both ends of what there is, in few bins or many, one value only, and as many as leave a tail.
TEST(RadixSelect, TakesTheHighestAndOfEqualsTheFirst) {
  namespace kernel = skim::cpu::detail;
  std::mt19937 random(11);
  std::vector<std::int32_t> histogram(kernel::histogram_bins);
  for (int round = 0; round < 3000; ++round) {
    const std::size_t n = random() % 300 + 1;
    const int spread = static_cast<int>(random() % 33), ends = static_cast<int>(random() % 4);
    const std::uint32_t base = static_cast<std::uint32_t>(random());
    std::vector<std::uint32_t> ranks(n);
    for (std::uint32_t& rank : ranks) {
      rank = spread == 32 ? static_cast<std::uint32_t>(random()) : base + random() % (1u << spread);
      if (random() % 8 < static_cast<unsigned>(ends)) rank = random() % 2 ? 0 : 0xffffffffu;
    }
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return ranks[a] > ranks[b]; });
    const std::size_t count = random() % n + 1;
    std::vector<std::size_t> expected(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count));
    std::sort(expected.begin(), expected.end());
    const auto check = [&](const auto& key) {
      const std::int64_t size = static_cast<std::int64_t>(n);
      const kernel::rank_threshold limit =
          kernel::find_threshold(key, size, static_cast<std::int64_t>(count), histogram.data());
      EXPECT_EQ(limit.rank, ranks[order[count - 1]]);
      EXPECT_EQ(limit.equals, std::count(ranks.begin(), ranks.end(), limit.rank));
      std::vector<std::size_t> taken;
      kernel::take_above(key, size, limit, [&](std::int64_t i) { taken.push_back(static_cast<std::size_t>(i)); });
      EXPECT_EQ(taken, expected) << "n " << n << ", count " << count << ", spread " << spread;
    };
    check(kernel::stored_ranks{ranks.data()});
    check([&](std::int64_t i) { return ranks[static_cast<std::size_t>(i)]; });
  }
}

/// The kernel's list for given scores.
list_of_slots select_top_k(const skim::attention_args& args, std::int64_t head, const retention& keep,
                           const float* scores) {
  const skim::attention_sequence sequence = skim::sequence_at(args, 0);
  const std::int64_t Tk = sequence.Tk();
  skim::detail::arena measure;
  skim::cpu::detail::rank_scratch(measure, Tk);
  aligned_memory memory(measure.used());
  skim::detail::arena arena(memory.data());
  const skim::cpu::detail::rank_scratch scratch(arena, Tk);
  std::vector<std::int32_t> list(static_cast<std::size_t>(std::min(keep.keys(Tk), Tk) + 1), -7);
  const std::int64_t count = skim::cpu::detail::top_k(args, sequence, head, keep, scores, scratch, list.data());
  EXPECT_TRUE(memory.guards_intact());
  EXPECT_EQ(list.back(), -7);
  return {list.begin(), list.begin() + count};
}

class top_k : public testing::TestWithParam<positions_kind> {};
INSTANTIATE_TEST_SUITE_P(positions, top_k,
                         testing::Values(positions_kind::from_zero, positions_kind::from_first, positions_kind::holes,
                                         positions_kind::shuffled));

TEST_P(top_k, equals_the_reference_on_scores_full_of_ties) {
  const float largest = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float few[] = {nan, -nan, -largest, -1, -0.0f, 0.0f, 1e-45f, 1, largest};
  std::mt19937 random(3);
  for (int round = 0; round < 400; ++round) {
    attention_case c;
    c.D = c.Dv = 1;
    c.Hk = 2;
    c.Tq = static_cast<std::int64_t>(random() % 9 + 1);
    c.Tk = static_cast<std::int64_t>(random() % 200 + 1);
    c.positions = GetParam();
    c.lengths = random() % 2;
    c.mask = sampled_masks[random() % sampled_masks.size()];
    attention_inputs inputs(c, random());
    const skim::attention_args args = inputs.args();
    std::vector<float> scores;
    const bool ties = random() % 4 != 0;
    for (std::int64_t slot = 0; slot < c.Tk; ++slot) {
      scores.push_back(ties ? few[random() % std::size(few)] : static_cast<float>(random()) / 1e9f - 2);
    }
    retention keep;
    keep.sinks = static_cast<std::int64_t>(random() % 5);
    keep.recent = static_cast<std::int64_t>(random() % 5);
    keep.count = static_cast<std::int64_t>(random() % 60) + std::max<std::int64_t>(keep.sinks + keep.recent, 1);
    const skim::attention_sequence sequence = skim::sequence_at(args, 0);
    for (std::int64_t head = 0; head < 2; ++head) {
      const list_of_slots slots = skim::reference::candidates(args, sequence, head);
      std::vector<double> wide;
      for (const std::int64_t slot : slots) wide.push_back(static_cast<double>(scores[static_cast<std::size_t>(slot)]));
      ASSERT_EQ(select_top_k(args, head, keep, scores.data()),
                skim::reference::top_k(keep, sequence, head, slots, wide))
          << "round " << round << ", head " << head << ", " << c << ", budget " << keep.count << ", sinks "
          << keep.sinks << ", recent " << keep.recent;
    }
  }
}

TEST(TopK, EqualScoresKeepTheEarliestPositions) {
  attention_case c;
  c.Tk = 30;
  c.positions = positions_kind::shuffled;
  c.mask = skim::mask::full();
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  std::vector<float> scores(30, 0.0f);
  for (std::size_t i = 0; i < 30; i += 2) scores[i] = -0.0f;
  list_of_slots by_position(30);
  std::iota(by_position.begin(), by_position.end(), std::int64_t{0});
  std::sort(by_position.begin(), by_position.end(),
            [&](std::int64_t a, std::int64_t b) { return args.kv.position(0, a) < args.kv.position(0, b); });
  by_position.resize(11);
  std::sort(by_position.begin(), by_position.end());
  EXPECT_EQ(select_top_k(args, 0, retention::budget(11), scores.data()), by_position);
}

TEST(SinkWindow, EqualsTheReference) {
  const pairwise_sample sample({5, 3, static_cast<int>(sampled_masks.size()), 4, 3, 2, 5, 2, 2});
  for (const auto& row : sample.rows()) {
    attention_case c;
    c.D = c.Dv = 4;
    c.positions = static_cast<positions_kind>(row[0]);
    c.Hk = row[1] + 1;
    c.mask = sampled_masks[static_cast<std::size_t>(row[2])];
    c.Tk = std::vector<std::int64_t>{0, 20, 113, 1000}[static_cast<std::size_t>(row[3])];
    c.Tq = std::vector<std::int64_t>{0, 1, 64}[static_cast<std::size_t>(row[4])];
    c.lengths = row[5];
    const retention keeps[] = {retention::budget(1), retention::budget(20, 4), retention::budget(6, 6),
                               retention::share(0.3, 2), retention::share(1)};
    const std::int64_t every[] = {0, 20};
    const skim::sink_window policy{keeps[row[6]].dense_under(0).for_every(every[row[8]])};
    c.sequences = row[7] ? 3 : 1;
    SCOPED_TRACE(testing::Message() << c << ", retention " << row[6]);
    attention_inputs inputs(c);
    const skim::attention_args args = inputs.args();
    const skim::cpu::attention op{policy};
    const std::int64_t rows = skim::list_rows(args, op.block_rows()), capacity = op.list_capacity(args);
    std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity + 1), -7);
    std::vector<std::int32_t> counts(static_cast<std::size_t>(rows));
    const skim::index_lists lists{indices.data(), counts.data(), rows, capacity, op.block_rows()};
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.select(args, lists, {}, workspace.get(), skim::serial_executor{}).ok());
    ASSERT_TRUE(check_indices(args, &lists).ok());
    EXPECT_EQ(indices.back(), -7);
    skim::for_each_block(args, op.block_rows(), [&](const skim::attention_sequence& block, std::int64_t index) {
      for (std::int64_t head = 0; head < c.Hk; ++head) {
        const std::int64_t r = index * c.Hk + head;
        const list_of_slots list(lists.row(r), lists.row(r) + lists.counts[r]);
        ASSERT_EQ(list, skim::reference::select(policy, args, block, head)) << "row " << r;
      }
    });
    if (HasFailure()) return;
  }
}

// Selectors of one's own.

/// Scores keys by their first number.
struct first_number {
  retention keep = retention::budget(20, 2, 3).dense_under(0).for_every(8);

  skim::report check(const skim::attention_args&) const { return {}; }
  void score(const skim::attention_blocks& blocks, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    executor.parallel_for(scores.extents[0], [&](std::int64_t row, unsigned) {
      const skim::kv_view kv = blocks.at(row / skim::first_view(*blocks.args).heads).kv;
      const std::int64_t head = row % kv.heads;
      for (std::int64_t slot = 0; slot < kv.length(head); ++slot) {
        *scores.at(row, slot) = skim::load_element(kv.row_address(kv.k, head, slot), kv.k.type, 0);
      }
    });
  }
};

/// Gives lists: every third past key.
struct every_third {
  skim::report check(const skim::attention_args&) const { return {}; }
  std::int64_t list_capacity(const skim::attention_args& args) const { return (skim::most_tokens(args) + 2) / 3; }
  void select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory, skim::memory,
              skim::executor_ref executor) const {
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) {
      const skim::attention_sequence sequence = skim::sequence_at(args, row / skim::first_view(args).heads);
      lists.counts[row] = 0;
      for (std::int64_t slot = 0; slot < sequence.past(row % sequence.kv.heads); slot += 3) {
        lists.row(row)[lists.counts[row]++] = static_cast<std::int32_t>(slot);
      }
    });
  }
};

attention_case own_selector_case(bool batch) {
  attention_case c;
  c.Tq = 20;
  c.Tk = 130;
  c.Hk = c.G = 2;
  c.D = c.Dv = 8;
  c.sequences = 3;
  c.batch = batch;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  c.kv_type = skim::element::bf16;
  return c;
}

/// The lists of `select` [rows][slots]; `run` reads what they name.
template <class Selector>
std::vector<list_of_slots> lists_of(const skim::cpu::attention<Selector>& op, attention_inputs& inputs) {
  const skim::attention_args args = inputs.args();
  const std::int64_t rows = skim::list_rows(args, op.block_rows()), capacity = op.list_capacity(args);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity)), counts(static_cast<std::size_t>(rows));
  const skim::index_lists lists{indices.data(), counts.data(), rows, capacity, op.block_rows()};
  aligned_memory workspace(op.workspace_bytes(args, 1));
  EXPECT_EQ(op.select(args, lists, {}, workspace.get(), skim::serial_executor{}).taken, skim::path::sparse);
  EXPECT_TRUE(check_indices(args, &lists).ok());
  std::vector<list_of_slots> all;
  for (std::int64_t r = 0; r < rows; ++r) all.emplace_back(lists.row(r), lists.row(r) + lists.counts[r]);
  EXPECT_EQ(op.run(args, {}, workspace.get(), skim::serial_executor{}).taken, skim::path::sparse);
  EXPECT_TRUE(workspace.guards_intact());
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::matches_attention(args, &lists)));
  return all;
}

TEST(OwnSelector, ThatScoresLeavesTheChoiceToTheOperation) {
  for (const bool batch : {false, true}) {
    attention_inputs inputs(own_selector_case(batch));
    const skim::attention_args args = inputs.args();
    const skim::cpu::attention op{first_number{}};
    const std::vector<list_of_slots> lists = lists_of(op, inputs);
    skim::for_each_block(args, op.block_rows(), [&](const skim::attention_sequence& block, std::int64_t index) {
      for (std::int64_t head = 0; head < 2 && block.Tq > 0; ++head) {
        const list_of_slots slots = skim::reference::candidates(args, block, head);
        std::vector<double> scores;
        for (const std::int64_t slot : slots) {
          scores.push_back(skim::reference::row_of(block.kv, block.kv.k, head, slot).front());
        }
        EXPECT_EQ(lists[static_cast<std::size_t>(index * 2 + head)],
                  skim::reference::top_k(op.selector.keep, block, head, slots, scores));
      }
    });
    const retention all = retention::budget(1000);
    const skim::cpu::attention keeps_all{first_number{all}};
    aligned_memory workspace(keeps_all.workspace_bytes(args, 1));
    EXPECT_EQ(keeps_all.run(args, {}, workspace.get(), skim::serial_executor{}).taken, skim::path::dense);
  }
}

TEST(OwnSelector, ThatGivesListsIsTakenAtItsWord) {
  for (const bool batch : {false, true}) {
    attention_inputs inputs(own_selector_case(batch));
    const skim::cpu::attention op{every_third{}};
    const std::vector<list_of_slots> lists = lists_of(op, inputs);
    ASSERT_EQ(lists.size(), 6u);
    EXPECT_EQ(lists[1].size(), 44u) << "of 130";
    EXPECT_EQ(lists[5].size(), 15u) << "of 43";
    EXPECT_EQ(lists[5][2], 6);
  }
}

}  // namespace
