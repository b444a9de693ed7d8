// SPDX-License-Identifier: Apache-2.0
// Sequences of one pool, told by arrays that only the device can read: each has the bits that it has alone.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>

#include "bf16_case.hpp"
#include "captured_call.hpp"
#include "on_device.hpp"

namespace {

using namespace skim_test;
using skim::retention;

/// Numbers where the host cannot read them.
class device_numbers {
 public:
  explicit device_numbers(std::vector<std::int32_t> values) : values_(std::move(values)) {
    EXPECT_EQ(cudaMalloc(&data_, values_.size() * sizeof(std::int32_t)), cudaSuccess);
    write(values_);
  }
  ~device_numbers() { cudaFree(data_); }
  device_numbers(const device_numbers&) = delete;
  device_numbers& operator=(const device_numbers&) = delete;

  void write(const std::vector<std::int32_t>& values) {
    ASSERT_EQ(values.size(), values_.size());
    values_ = values;
    ASSERT_EQ(cudaMemcpy(data_, values_.data(), values_.size() * sizeof(std::int32_t), cudaMemcpyDefault), cudaSuccess);
  }
  const std::int32_t* get() const { return data_; }
  std::int64_t operator[](std::int64_t i) const { return values_[static_cast<std::size_t>(i)]; }

 private:
  std::vector<std::int32_t> values_;
  std::int32_t* data_ = nullptr;
};

/// A batch, and its sequences alone in memory of their own.
class batch_inputs {
 public:
  explicit batch_inputs(const attention_case& c)
      : case_(c),
        inputs_(c),
        alone_(c),
        args_(inputs_.args()),
        tables_(copied(args_.batch.block_tables, args_.batch.sequences * args_.batch.table_stride)),
        tokens_(copied(args_.batch.tokens, args_.batch.sequences)),
        offsets_(copied(args_.batch.offsets, args_.batch.sequences + 1)) {
    args_.batch.block_tables = tables_.get();
    args_.batch.tokens = tokens_.get();
    args_.batch.offsets = offsets_.get();
  }

  const skim::attention_args& args() const { return args_; }
  const skim::index_lists* lists() const { return inputs_.lists(); }
  attention_inputs& inputs() { return inputs_; }
  device_numbers& tokens() { return tokens_; }
  device_numbers& offsets() { return offsets_; }

  skim::attention_args alone(std::int64_t s) {
    skim::attention_args one = alone_.args();
    const std::int64_t first = offsets_[s], rows = offsets_[s + 1] - first;
    one.batch = {};
    one.kv = alone_.view(s);
    one.kv.tokens = tokens_[s];
    one.q.data = one.q.at(first, 0);
    one.out.data = one.out.at(first, 0);
    one.q.extents[0] = one.out.extents[0] = rows;
    if (one.lse.data) {
      one.lse.data = one.lse.at(first);
      one.lse.extents[0] = rows;
    }
    return one;
  }
  /// Of the lists of sequence `s`, which begin at block `block`.
  skim::index_lists lists_of(std::int64_t s, std::int64_t& block) const {
    skim::index_lists own = *lists();
    const std::int64_t heads = args_.kv.heads;
    const std::int64_t blocks = skim::block_count(offsets_[s + 1] - offsets_[s], own.block_rows);
    own.indices = own.row(block * heads);
    own.counts += block * heads;
    own.rows = blocks * heads;
    block += blocks;
    return own;
  }

  void expect_equal_outputs() {
    EXPECT_EQ(inputs_.out().bytes(), alone_.out().bytes());
    EXPECT_EQ(inputs_.lse().bytes(), alone_.lse().bytes());
  }

 private:
  static std::vector<std::int32_t> copied(const std::int32_t* from, std::int64_t count) { return {from, from + count}; }

  attention_case case_;
  attention_inputs inputs_, alone_;
  skim::attention_args args_;
  device_numbers tables_, tokens_, offsets_;
};

attention_case batch_case(std::int64_t D, std::int64_t Tq, std::int64_t Tk, std::int64_t G, std::int64_t sequences) {
  attention_case c = bf16_case(D, Tq, Tk, G);
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  c.batch = c.lse = true;
  c.sequences = sequences;
  return c;
}

/// Rows long and short, none, pasts long and none.
std::vector<attention_case> batch_cases() {
  std::vector<attention_case> cases{batch_case(128, 300, 2000, 4, 7), batch_case(64, 1, 3000, 8, 40),
                                    batch_case(64, 40, 0, 2, 5),      batch_case(96, 70, 900, 3, 3),
                                    batch_case(40, 50, 700, 2, 4),    batch_case(128, 9, 1500, 1, 1)};
  cases[3].kv_type = skim::element::f16;
  cases[4].kv_type = skim::element::f32;
  return cases;
}

void expect_attends_as_alone(const attention_case& c) {
  SCOPED_TRACE(testing::Message() << c);
  batch_inputs batch(c);
  const skim::cuda::attend op;
  const bool listed = batch.lists() != nullptr;
  ASSERT_TRUE(op.check(batch.args()).ok());
  guarded_device_memory workspace(op.workspace_bytes(batch.args(), c.block_rows));
  const skim::cuda::launch_report report = listed ? op.run(batch.args(), *batch.lists(), workspace.get(), nullptr)
                                                  : op.run(batch.args(), workspace.get(), nullptr);
  ASSERT_TRUE(report.ok()) << cudaGetErrorString(report.error);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(workspace.guards_intact());
  for (std::int64_t s = 0, block = 0; s < c.sequences; ++s) {
    const skim::attention_args one = batch.alone(s);
    guarded_device_memory own(op.workspace_bytes(one, c.block_rows));
    ASSERT_TRUE(
        (listed ? op.run(one, batch.lists_of(s, block), own.get(), nullptr) : op.run(one, own.get(), nullptr)).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  batch.expect_equal_outputs();
}

TEST(gpu_batch, attends_as_each_alone) {
  NEEDS_A_GPU();
  for (attention_case c : batch_cases()) {
    for (const std::int64_t left : {skim::mask::unbounded, std::int64_t{200}}) {
      c.mask.left = left;
      expect_attends_as_alone(c);
    }
    c.lists = lists_kind::third;
    for (const std::int64_t rows : {0, 7, 64}) {
      c.block_rows = rows;
      expect_attends_as_alone(c);
    }
    if (HasFailure()) return;
  }
}

/// More results of splits than a launch may leave in scratch.
TEST(gpu_batch, attends_a_part_at_a_time) {
  NEEDS_A_GPU();
  attention_case c = batch_case(128, 300, 16400, 4, 64);
  batch_inputs batch(c);
  skim::detail::arena arena;
  const skim::cuda::detail::attend_plan plan(batch.args(), 0, 0, nullptr, 0, 0, arena);
  EXPECT_LT(plan.sequences, 64);
  expect_attends_as_alone(c);
}

TEST(gpu_batch, selects_and_attends_as_each_alone) {
  NEEDS_A_GPU();
  for (const attention_case& c : batch_cases()) {
    SCOPED_TRACE(testing::Message() << c);
    for (const skim::retention keep :
         {retention::preset(60).dense_under(0), retention::preset(50).for_every(16).dense_under(500),
          retention::preset_share(0.2).for_every(32).dense_under(0, 3)}) {
      for (const skim::quoka& rule : {skim::quoka{}, skim::quoka::paper()}) {
        for (const std::int64_t left : {skim::mask::unbounded, std::int64_t{400}}) {
          skim::quoka policy = rule;
          policy.keep = keep;
          SCOPED_TRACE(testing::Message() << "keep " << keep.count << ", every " << keep.every << ", left " << left
                                          << ", n " << policy.queries.n);
          const skim::cuda::attention<skim::quoka> op{policy};
          batch_inputs batch(c);
          skim::attention_args args = batch.args();
          args.mask.left = left;
          ASSERT_TRUE(op.check(args).ok());
          guarded_device_memory workspace(op.workspace_bytes(args));
          ASSERT_TRUE(op.run(args, workspace.get(), nullptr).ok());
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
          EXPECT_TRUE(workspace.guards_intact());
          for (std::int64_t s = 0; s < c.sequences; ++s) {
            skim::attention_args one = batch.alone(s);
            one.mask.left = left;
            guarded_device_memory own(op.workspace_bytes(one));
            ASSERT_TRUE(op.run(one, own.get(), nullptr).ok());
            ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
          }
          batch.expect_equal_outputs();
          if (HasFailure()) return;
        }
      }
    }
  }
}

/// Lists are numbered by the blocks that there are, as on the CPU; rows behind them are empty.
TEST(gpu_batch, numbers_lists_by_blocks) {
  NEEDS_A_GPU();
  const attention_case c = batch_case(128, 100, 900, 4, 6);
  batch_inputs batch(c);
  skim::quoka policy;
  policy.keep = retention::preset(50).for_every(32).dense_under(0);
  const skim::cuda::attention<skim::quoka> op{policy};
  const std::int64_t heads = c.Hk, capacity = op.list_capacity(batch.args());
  const std::int64_t rows = skim::list_rows(batch.args(), 32);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity), -1),
      counts(static_cast<std::size_t>(rows), -1);
  skim::index_lists lists{indices.data(), counts.data(), rows, capacity, 32};
  guarded_device_memory workspace(op.workspace_bytes(batch.args()));
  ASSERT_TRUE(op.select(batch.args(), lists, workspace.get(), nullptr).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_TRUE(check_indices(batch.inputs().args(), &lists).ok());
  std::int64_t block = 0;
  for (std::int64_t s = 0; s < c.sequences; ++s) {
    const skim::attention_args one = batch.alone(s);
    const std::int64_t blocks = skim::block_count(one.q.extents[0], 32), room = op.list_capacity(one);
    std::vector<std::int32_t> own_indices(static_cast<std::size_t>(blocks * heads * room)),
        own_counts(static_cast<std::size_t>(blocks * heads));
    skim::index_lists own{own_indices.data(), own_counts.data(), blocks * heads, room, 32};
    ASSERT_TRUE(op.select(one, own, workspace.get(), nullptr).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (std::int64_t r = 0; r < blocks * heads; ++r) {
      const std::int32_t* const list = lists.row(block * heads + r);
      ASSERT_EQ(lists.counts[block * heads + r], own.counts[r]);
      ASSERT_TRUE(std::equal(list, list + own.counts[r], own.row(r)));
    }
    block += blocks;
  }
  ASSERT_LT(block * heads, rows);
  for (std::int64_t r = block * heads; r < rows; ++r) EXPECT_EQ(lists.counts[r], 0);
}

/// A graph serves whatever the arrays say when it is replayed.
TEST(gpu_batch, replays_with_other_rows_and_tokens) {
  NEEDS_A_GPU();
  attention_case c = batch_case(128, 60, 1500, 4, 4);  // 60, 0, 31 and 21 rows behind 1500, 750, 500 and 375 tokens
  skim::quoka policy;
  policy.keep = retention::preset(60).for_every(16).dense_under(0);
  const skim::cuda::attention<skim::quoka> op{policy};
  batch_inputs batch(c);
  skim::attention_args most = batch.args();
  most.batch.most_rows = 112;
  guarded_device_memory workspace(op.workspace_bytes(most));
  const captured_call call([&](cudaStream_t stream) { return op.run(most, workspace.get(), stream); });
  struct step {
    std::vector<std::int32_t> offsets, tokens;
  };
  for (const step& now : {step{{0, 60, 60, 91, 112}, {1560, 750, 531, 396}}, step{{0, 1, 2, 3, 112}, {900, 1, 77, 109}},
                          step{{0, 112, 112, 112, 112}, {112, 0, 5, 0}}, step{{0, 0, 50, 51, 112}, {0, 750, 302, 100}},
                          step{{0, 28, 56, 84, 112}, {1501, 701, 444, 28}}}) {
    batch.offsets().write(now.offsets);
    batch.tokens().write(now.tokens);
    call.replay();
    if (HasFatalFailure()) return;
    EXPECT_TRUE(workspace.guards_intact());
    for (std::int64_t s = 0; s < 4; ++s) {
      const skim::attention_args one = batch.alone(s);
      guarded_device_memory own(op.workspace_bytes(one));
      ASSERT_TRUE(op.run(one, own.get(), nullptr).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    }
    SCOPED_TRACE(testing::Message() << "offsets[1] " << now.offsets[1]);
    batch.expect_equal_outputs();
    if (HasFailure()) return;
  }
}

}  // namespace
