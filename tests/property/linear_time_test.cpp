// SPDX-License-Identifier: Apache-2.0
// Calls whose time could grow with the square of something: of sequences, of blocks, of both. Loops within loops are in no
// count that a caller can see, so it is processor time that is compared: of a call and of one 16 times as large, with
// room for four times what is linear. What is quadratic takes 256 times as long.
#include "support/values.hpp"

#include <skim/buffer.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/attention_importance.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/executor.hpp>

#include <gtest/gtest.h>

#include <ctime>

namespace {

using namespace skim_test;

/// Processor seconds of a call: the least of five.
template <class Call>
double seconds_of(const Call& call) {
  double least = 1e9;
  for (int i = 0; i < 5; ++i) {
    const std::clock_t start = std::clock();
    EXPECT_TRUE(call().ok());
    least = std::min(least, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return std::max(least, 1e-3);  // below, clocks say little
}

/// Sequences of one row and few keys, and perhaps a last one with many of both.
class one_row_sequences {
 public:
  static constexpr std::int64_t D = 8, keys = 20;

  one_row_sequences(std::int64_t count, std::int64_t long_rows) {
    const std::int64_t rows = count + long_rows, tokens = long_rows + 40;
    q_ = normal_values(rows * D, 1);
    kv_ = normal_values(tokens * D, 2);
    v_ = normal_values(tokens * D, 3);
    out_.resize(q_.size());
    for (std::int64_t s = 0; s < count; ++s) add(keys, 1);
    if (long_rows > 0) add(tokens, long_rows);
  }

  skim::attention_args args() {
    skim::attention_args all;
    all.q = skim::tensor_view<const float, 3>(q_.data(), {offsets_.back(), 1, D});
    all.out = skim::tensor_view<float, 3>(out_.data(), {offsets_.back(), 1, D});
    all.sequences = views_.data();
    all.offsets = offsets_.data();
    all.sequence_count = static_cast<std::int64_t>(views_.size());
    return all;
  }

  template <class Op>
  double seconds(const Op& op) {
    const skim::attention_args all = args();
    const skim::buffer workspace(op.workspace_bytes(all, 1));
    return seconds_of([&] { return op.run(all, {}, workspace, skim::serial_executor{}); });
  }

 private:
  void add(std::int64_t tokens, std::int64_t rows) {
    views_.push_back(skim::contiguous_kv(skim::tensor_view<const float, 3>(kv_.data(), {tokens, 1, D}),
                                         skim::tensor_view<const float, 3>(v_.data(), {tokens, 1, D}), tokens));
    offsets_.push_back(offsets_.back() + rows);
  }

  std::vector<float> q_, kv_, v_, out_;
  std::vector<skim::kv_view> views_;
  std::vector<std::int64_t> offsets_{0};
};

TEST(LinearTime, InSequences) {
  const skim::cpu::attention<> dense;
  EXPECT_LE(one_row_sequences(16384, 0).seconds(dense), 64 * one_row_sequences(1024, 0).seconds(dense));
  const skim::cpu::attention sparse{
      skim::quoka::paper(skim::queries::newest(1), skim::retention::budget(4).dense_under(0))};
  EXPECT_LE(one_row_sequences(16384, 0).seconds(sparse), 64 * one_row_sequences(1024, 0).seconds(sparse));
}

/// Many sequences of one block beside one of many blocks.
TEST(LinearTime, InSequencesAndBlocks) {
  const skim::cpu::attention op{
      skim::quoka::paper(skim::queries::newest(1), skim::retention::budget(4).dense_under(0).for_every(1))};
  const double apart = one_row_sequences(2048, 0).seconds(op) + one_row_sequences(0, 2048).seconds(op);
  EXPECT_LE(one_row_sequences(2048, 2048).seconds(op), 4 * apart);
}

TEST(LinearTime, OfImportanceInBlocks) {
  const auto seconds = [](std::int64_t Tq) {
    one_row_sequences of(0, Tq);
    skim::attention_args args = of.args();
    args.kv = args.sequences[0];
    args.sequences = nullptr;
    args.sequence_count = 1;
    args.mask = skim::mask::window(16);
    std::vector<float> lse(static_cast<std::size_t>(Tq));
    args.lse = skim::tensor_view<float, 2>(lse.data(), {Tq, 1});
    std::vector<std::int32_t> indices(lse.size()), counts(lse.size(), 0);
    const skim::index_lists lists{indices.data(), counts.data(), Tq, 1, 1};
    const skim::cpu::attend<> attend;
    skim::buffer workspace(attend.workspace_bytes(args, 1, 1));
    EXPECT_TRUE(attend.run(args, lists, workspace, skim::serial_executor{}).ok());
    skim::attention_importance_args call;
    double sum = 0;
    call.attended = args;
    call.read = &lists;
    call.sum = &sum;
    const skim::cpu::attention_importance op;
    workspace.reserve(op.workspace_bytes(call, 1));
    return seconds_of([&] { return op.run(call, workspace, skim::serial_executor{}); });
  };
  EXPECT_LE(seconds(16384), 64 * seconds(1024));
}

}  // namespace
