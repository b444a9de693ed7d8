// SPDX-License-Identifier: Apache-2.0
// Sequences of very different lengths in one call: each has the bits, the path and, in sum, the cost of a call of its own.
#include "support/executors.hpp"
#include "support/values.hpp"

#include <skim/buffer.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>

#include <gtest/gtest.h>

#include <numeric>

namespace {

using namespace skim_test;

/// Several sequences, each with the chunk's rows and caches of its own, and the output of a call.
class unequal_sequences {
 public:
  static constexpr std::int64_t Hk = 2, G = 3, D = 16;

  unequal_sequences(const std::vector<std::int64_t>& tokens, std::int64_t Tq) : Tq_(Tq) {
    const std::int64_t count = static_cast<std::int64_t>(tokens.size());
    const std::int64_t all = std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});
    k_ = normal_values(static_cast<std::size_t>(all * Hk * D), 1);
    v_ = normal_values(static_cast<std::size_t>(all * Hk * D), 2);
    q_ = normal_values(static_cast<std::size_t>(count * Tq * Hk * G * D), 3);
    out_.resize(q_.size());
    std::int64_t first = 0;
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t n = tokens[static_cast<std::size_t>(s)];
      views_.push_back(skim::contiguous_kv(skim::tensor_view<const float, 3>(k_.data() + first * Hk * D, {n, Hk, D}),
                                           skim::tensor_view<const float, 3>(v_.data() + first * Hk * D, {n, Hk, D}),
                                           n));
      offsets_.push_back(s * Tq);
      first += n;
    }
    offsets_.push_back(count * Tq);
  }

  skim::attention_args together() {
    skim::attention_args args;
    const std::int64_t rows = offsets_.back();
    args.q = skim::tensor_view<const float, 3>(q_.data(), {rows, Hk * G, D});
    args.out = skim::tensor_view<float, 3>(out_.data(), {rows, Hk * G, D});
    args.sequences = views_.data();
    args.offsets = offsets_.data();
    args.sequence_count = static_cast<std::int64_t>(views_.size());
    return args;
  }

  skim::attention_args alone(std::int64_t s) {
    skim::attention_args args = together();
    args.q = skim::rows(args.q, s * Tq_, Tq_);
    args.out = skim::rows(args.out, s * Tq_, Tq_);
    args.kv = views_[static_cast<std::size_t>(s)];
    args.sequences = nullptr;
    args.offsets = nullptr;
    args.sequence_count = 1;
    return args;
  }

  /// What `op` gives for all sequences in one call, and for each in a call of its own.
  template <class Op>
  void expect_equal(const Op& op) {
    const skim::serial_executor serial;
    const skim::attention_args all = together();
    aligned_memory workspace(op.workspace_bytes(all, 1));
    ASSERT_TRUE(op.run(all, {}, workspace.get(), serial).ok());
    EXPECT_TRUE(workspace.guards_intact());
    const std::vector<float> expected = out_;
    std::fill(out_.begin(), out_.end(), -7.0f);
    bool sparse = false;
    for (std::int64_t s = 0; s < all.sequence_count; ++s) {
      const skim::attention_args one = alone(s);
      aligned_memory own(op.workspace_bytes(one, 1));
      const skim::report answer = op.run(one, {}, own.get(), serial);
      ASSERT_TRUE(answer.ok());
      sparse |= answer.taken == skim::path::sparse;
    }
    EXPECT_EQ(out_, expected);
    EXPECT_EQ(op.run(all, {}, workspace.get(), serial).taken, sparse ? skim::path::sparse : skim::path::dense);

    // The same from lists over all sequences.
    std::fill(out_.begin(), out_.end(), -7.0f);
    const std::int64_t rows = skim::list_rows(all, op.block_rows()), capacity = op.list_capacity(all);
    std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity)),
        counts(static_cast<std::size_t>(rows));
    const skim::index_lists lists{indices.data(), counts.data(), rows, capacity, op.block_rows()};
    ASSERT_TRUE(op.select(all, lists, {}, workspace.get(), serial).ok());
    ASSERT_TRUE(check_indices(all, &lists).ok());
    const skim::cpu::attend<> listed;
    aligned_memory scratch(listed.workspace_bytes(all, op.block_rows(), 1));
    ASSERT_TRUE(listed.run(all, lists, scratch.get(), serial).ok());
    EXPECT_EQ(out_, expected);
  }

 private:
  std::int64_t Tq_;
  std::vector<float> k_, v_, q_, out_;
  std::vector<skim::kv_view> views_;
  std::vector<std::int64_t> offsets_;
};

skim::cpu::attention<skim::quoka> keeps(std::int64_t budget, std::int64_t every = 0) {
  return {skim::quoka::paper(skim::queries::farthest_point(4), skim::retention::budget(budget, 2, 5).for_every(every))};
}

/// The same by our rule.
skim::cpu::attention<skim::quoka> needs(std::int64_t budget, std::int64_t every = 0) {
  return {skim::quoka{skim::queries::needed(5), skim::retention::budget(budget, 2, 5).for_every(every)}};
}

/// Around twice the budget, where the measured crossing lies, beside a long one: short ones stay dense.
TEST(UnequalSequences, ShortOnesStayDenseBesideALongOne) {
  std::vector<std::int64_t> tokens{4000};
  for (std::int64_t Tk = 257; Tk < 530; Tk += 23) tokens.push_back(Tk + 3);
  unequal_sequences(tokens, 3).expect_equal(keeps(256));
  unequal_sequences(tokens, 3).expect_equal(needs(256));
}

/// More tokens than one group of sequences holds, with the longest first, last and in between.
TEST(UnequalSequences, AreTakenInGroupsWithoutATrace) {
  std::vector<std::int64_t> tokens(40, 900);
  tokens[0] = tokens[23] = tokens[24] = tokens[39] = 70000;
  unequal_sequences(tokens, 2).expect_equal(keeps(100));
  unequal_sequences(tokens, 2).expect_equal(needs(100));
  tokens.resize(25);
  unequal_sequences(tokens, 70).expect_equal(keeps(30, 16));
  unequal_sequences(tokens, 70).expect_equal(needs(30, 16));
}

/// One prompt of 131072 tokens and 255 of 2048: scores and lists as long as their own sequences need, not as the longest.
TEST(UnequalSequences, NeedTheLargestCallsScratchAndTheirSums) {
  skim::attention_args args;
  std::vector<skim::kv_view> views;
  std::vector<std::int64_t> offsets{0};
  const auto cache = [](std::int64_t n) {
    return skim::contiguous_kv({nullptr, {n, 8, 128}, skim::element::bf16}, {nullptr, {n, 8, 128}, skim::element::bf16},
                               n);
  };
  std::int64_t sum = 0;
  for (int s = 0; s < 256; ++s) {
    const std::int64_t tokens = s == 77 ? 131072 : 2048;
    views.push_back(cache(tokens));
    offsets.push_back(offsets.back() + 16);
    sum += tokens;
  }
  args.q = {nullptr, {offsets.back(), 32, 128}, skim::element::f32};
  args.out = {nullptr, {offsets.back(), 32, 128}, skim::element::f32};
  args.sequences = views.data();
  args.offsets = offsets.data();
  args.sequence_count = 256;
  skim::attention_args one = args;
  one.q.extents[0] = one.out.extents[0] = 16;
  one.kv = views[77];
  one.sequences = nullptr;
  one.sequence_count = 1;
  for (const skim::quoka& rule :
       {skim::quoka::paper(skim::queries::lowest_cosine(16), skim::retention::budget(1024)),
        skim::quoka::paper(skim::queries::lowest_cosine(16), skim::retention::share(0.5)), skim::quoka{}}) {
    const skim::cpu::attention op{rule};
    ASSERT_TRUE(op.check_shape(args).ok() && op.check_shape(one).ok());
    const double together = static_cast<double>(op.workspace_bytes(args, 4)),
                 alone = static_cast<double>(op.workspace_bytes(one, 4));
    const double of_tokens = 8.0 * static_cast<double>(sum) * 8;              // a score and a list entry each
    const double of_rows = 256.0 * 32 * 16 * (2 * 128 + 64) * sizeof(float);  // queries kept, output pieces
    EXPECT_LE(together, 2 * alone + of_tokens + of_rows)
        << "alone " << alone << ", tokens " << of_tokens << ", rows " << of_rows;
  }
}

/// Runs loops on the calling thread and counts their indices.
struct counting_executor {
  std::int64_t* indices;

  unsigned concurrency() const { return 1; }
  template <class Body>
  void parallel_for(std::int64_t n, const Body& body) const {
    *indices += n + 1;
    for (std::int64_t i = 0; i < n; ++i) body(i, 0u);
  }
};

/// Work is in proportion to what there is: neither sequences times sequences nor sequences times the longest.
TEST(UnequalSequences, AreNotWalkedForEachOther) {
  for (const skim::cpu::attention<skim::quoka>& op : {keeps(8), needs(8)}) {
    const auto loops = [&op](const std::vector<std::int64_t>& tokens) {
      unequal_sequences of(tokens, 1);
      const skim::attention_args args = of.together();
      skim::buffer workspace(op.workspace_bytes(args, 1));
      std::int64_t indices = 0;
      EXPECT_TRUE(op.run(args, {}, workspace, counting_executor{&indices}).ok());
      return indices;
    };
    const std::vector<std::int64_t> few(256, 30), many(4096, 30), some(2000, 30);
    EXPECT_LE(loops(many), 17 * loops(few));
    std::vector<std::int64_t> tokens = some;
    tokens[1000] = 40000;
    EXPECT_LE(loops(tokens), 3 * (loops(some) + loops({40000})));
  }
}

/// A budget that covers everything lists what a window hides too: the bits of dense.
TEST(UnequalSequences, OfACoveringBudgetHaveTheBitsOfDense) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::int64_t> tokens;
    const std::int64_t Tq = 1 + static_cast<std::int64_t>(random() % 40);
    for (unsigned s = 0; s < 1 + random() % 4; ++s) tokens.push_back(Tq + static_cast<std::int64_t>(random() % 1500));
    unequal_sequences of(tokens, Tq);
    skim::attention_args args = of.together();
    args.mask = skim::mask::window(1 + static_cast<std::int64_t>(random() % 700));
    const auto bits = [&] {
      return std::vector<float>(static_cast<const float*>(args.out.data),
                                static_cast<const float*>(args.out.data) + args.q.extents[0] * args.q.extents[1] * 16);
    };
    const skim::serial_executor serial;
    const skim::cpu::attention<> dense_op;
    skim::buffer workspace(dense_op.workspace_bytes(args, 1));
    ASSERT_TRUE(dense_op.run(args, {}, workspace, serial).ok());
    const std::vector<float> expected = bits();
    const auto op = round % 2 == 0 ? keeps(2000) : needs(2000);
    const std::int64_t rows = skim::list_rows(args, 0), capacity = op.list_capacity(args);
    std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity)),
        counts(static_cast<std::size_t>(rows));
    const skim::index_lists lists{indices.data(), counts.data(), rows, capacity, 0};
    workspace.reserve(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.select(args, lists, {}, workspace, serial).ok());
    const skim::cpu::attend<> listed;
    workspace.reserve(listed.workspace_bytes(args, 0, 1));
    ASSERT_TRUE(listed.run(args, lists, workspace, serial).ok());
    ASSERT_EQ(bits(), expected) << "round " << round;
  }
}

}  // namespace
