// SPDX-License-Identifier: Apache-2.0
// Bad input: `check` names the argument, what it got and what it expected; `run` answers the same and writes nothing.
#include "support/attention_case.hpp"
#include "support/executors.hpp"
#include "support/faults.hpp"

#include <skim/skim.hpp>

namespace {

using namespace skim_test;
using skim::status;

using attention_fault = fault<skim::attention_args>;

// Most views are contiguous with Tq 7, Tk 40, Hq 6, Hk 2, D 8, Dv 4.
attention_case good_case() {
  attention_case c;
  c.Hk = 2;
  c.G = 3;
  c.D = 8;
  c.Dv = 4;
  c.lse = true;
  return c;
}

const std::vector<attention_fault> tensor_faults{
    {"q null", [](auto& a) { a.q.data = nullptr; }, {status::null_pointer, "q.data"}},
    {"q type", [](auto& a) { a.q.type = skim::element::none; }, {status::bad_type, "q.type"}},
    {"negative Tq", [](auto& a) { a.q.extents[0] = -1; }, {status::bad_extent, "q.extents[0]"}},
    {"negative Hq", [](auto& a) { a.q.extents[1] = -6; }, {status::bad_extent, "q.extents[1]"}},
    {"negative D", [](auto& a) { a.q.extents[2] = -8; }, {status::bad_extent, "q.extents[2]"}},
    {"no query heads",
     [](auto& a) { a.q.extents[1] = a.out.extents[1] = a.lse.extents[1] = 0; },
     {status::bad_extent, "q.extents[1]"}},
    {"q inner stride", [](auto& a) { a.q.strides[2] = 2; }, {status::bad_stride, "q.strides[2]"}},
    {"q reach", [](auto& a) { a.q.strides[0] = huge; }, {status::bad_stride, "q.extents[0]"}},
    {"q reach in sum",
     [](auto& a) { a.q.strides[0] = a.q.strides[1] = std::int64_t{1} << 57; },
     {status::bad_stride, "q.extents[1]"}},
    {"q negative reach",
     [](auto& a) { a.q.strides[0] = std::numeric_limits<std::int64_t>::min(); },
     {status::bad_stride, "q.extents[0]"}},
    {"absurd extents",
     [](auto& a) {
       a.q = skim::tensor_view<const float, 3>(static_cast<const float*>(a.q.data), {huge, huge, huge});
     },
     {status::bad_stride, "q.extents[1]"}},
    {"overflowing Tq",
     [](auto& a) {
       a.q.extents[0] = a.out.extents[0] = a.lse.extents[0] = a.kv.tokens = a.kv.capacity = std::int64_t{1} << 30;
     },
     {status::bad_extent, "q.extents[0]"}},
    {"more tokens than the cache", [](auto& a) { a.q.extents[0] = 48; }, {status::bad_extent, "kv.tokens"}},
    {"D of q", [](auto& a) { a.q.extents[2] = 7; }, {status::bad_extent, "q.extents[2]"}},
    {"group", [](auto& a) { a.q.extents[1] = 5; }, {status::bad_group, "q.extents[1]"}},
    {"out null", [](auto& a) { a.out.data = nullptr; }, {status::null_pointer, "out.data"}},
    {"out type", [](auto& a) { a.out.type = skim::element::none; }, {status::bad_type, "out.type"}},
    {"out tokens", [](auto& a) { a.out.extents[0] = 6; }, {status::bad_extent, "out.extents[0]"}},
    {"out heads", [](auto& a) { a.out.extents[1] = 2; }, {status::bad_extent, "out.extents[1]"}},
    {"out Dv", [](auto& a) { a.out.extents[2] = 3; }, {status::bad_extent, "out.extents[2]"}},
    {"out inner stride", [](auto& a) { a.out.strides[2] = 0; }, {status::bad_stride, "out.strides[2]"}},
    {"out reach", [](auto& a) { a.out.strides[1] = -huge; }, {status::bad_stride, "out.extents[1]"}},
    {"negative out", [](auto& a) { a.out.extents[2] = -4; }, {status::bad_extent, "out.extents[2]"}},
    {"lse tokens", [](auto& a) { a.lse.extents[0] = 8; }, {status::bad_extent, "lse.extents[0]"}},
    {"lse heads", [](auto& a) { a.lse.extents[1] = 7; }, {status::bad_extent, "lse.extents[1]"}},
    {"lse inner stride", [](auto& a) { a.lse.strides[1] = 2; }, {status::bad_stride, "lse.strides[1]"}},
    {"lse reach", [](auto& a) { a.lse.strides[0] = huge; }, {status::bad_stride, "lse.extents[0]"}},
};

const std::vector<attention_fault> cache_faults{
    {"no KV heads", [](auto& a) { a.kv.heads = 0; }, {status::bad_extent, "kv.heads"}},
    {"negative KV heads", [](auto& a) { a.kv.heads = -2; }, {status::bad_extent, "kv.heads"}},
    {"negative tokens", [](auto& a) { a.kv.tokens = -1; }, {status::bad_extent, "kv.tokens"}},
    {"too many tokens", [](auto& a) { a.kv.tokens = std::int64_t{1} << 31; }, {status::bad_extent, "kv.tokens"}},
    {"capacity", [](auto& a) { a.kv.capacity = 46; }, {status::bad_extent, "kv.capacity"}},
    {"k null", [](auto& a) { a.kv.k.data = nullptr; }, {status::null_pointer, "kv.k.data"}},
    {"v null", [](auto& a) { a.kv.v.data = nullptr; }, {status::null_pointer, "kv.v.data"}},
    {"k type", [](auto& a) { a.kv.k.type = skim::element::none; }, {status::bad_type, "kv.k.type"}},
    {"v type", [](auto& a) { a.kv.v.type = skim::element::none; }, {status::bad_type, "kv.v.type"}},
    {"k and v types", [](auto& a) { a.kv.v.type = skim::element::bf16; }, {status::bad_type, "kv.v.type"}},
    {"k dim", [](auto& a) { a.kv.k.dim = 0; }, {status::bad_extent, "kv.k.dim"}},
    {"v dim", [](auto& a) { a.kv.v.dim = -4; }, {status::bad_extent, "kv.v.dim"}},
    {"large k dim", [](auto& a) { a.kv.k.dim = 4097; }, {status::unsupported, "kv.k.dim"}},
    {"k inner stride", [](auto& a) { a.kv.k.dim_stride = 2; }, {status::bad_stride, "kv.k.dim_stride"}},
    {"v inner stride", [](auto& a) { a.kv.v.dim_stride = 0; }, {status::bad_stride, "kv.v.dim_stride"}},
    {"k reach", [](auto& a) { a.kv.k.row_stride = huge; }, {status::bad_stride, "kv.k.dim"}},
    {"v reach", [](auto& a) { a.kv.v.head_stride = huge; }, {status::bad_stride, "kv.v.dim"}},
    {"ring start",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::ring;
       a.kv.ring_start = a.kv.capacity;
     },
     {status::bad_value, "kv.ring_start"}},
    {"negative ring start",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::ring;
       a.kv.ring_start = -1;
     },
     {status::bad_value, "kv.ring_start"}},
    {"block table null",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
     },
     {status::null_pointer, "kv.block_table"}},
    {"page size", [](auto& a) { a.kv.layout = skim::kv_layout::paged; }, {status::bad_extent, "kv.page_size"}},
    {"pages",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
       a.kv.pages = -1;
     },
     {status::bad_extent, "kv.pages"}},
    {"page stride",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
       a.kv.pages = 100;
       a.kv.k.page_stride = huge;
     },
     {status::bad_stride, "kv.k.dim"}},
    {"negative first position", [](auto& a) { a.kv.first_position = -1; }, {status::bad_value, "kv.first_position"}},
    {"first position",
     [](auto& a) { a.kv.first_position = (std::int64_t{1} << 31) - 47; },
     {status::bad_value, "kv.first_position"}},
};

const std::vector<attention_fault> value_faults{
    {"scale NaN", [](auto& a) { a.scale = std::numeric_limits<float>::quiet_NaN(); }, {status::bad_value, "scale"}},
    {"scale infinite", [](auto& a) { a.scale = std::numeric_limits<float>::infinity(); }, {status::bad_value, "scale"}},
    {"negative soft cap", [](auto& a) { a.soft_cap = -1; }, {status::bad_value, "soft_cap"}},
    {"soft cap NaN",
     [](auto& a) { a.soft_cap = std::numeric_limits<float>::quiet_NaN(); },
     {status::bad_value, "soft_cap"}},
    {"mask left", [](auto& a) { a.mask.left = -1; }, {status::bad_value, "mask.left"}},
    {"mask right", [](auto& a) { a.mask.right = huge; }, {status::bad_value, "mask.right"}},
    {"empty window", [](auto& a) { a.mask = skim::mask::window(0); }, {status::bad_value, "mask.left"}},
    {"dense_below", [](auto& a) { a.dense_below = -2; }, {status::bad_value, "dense_below"}},
};

class attention_faults : public testing::TestWithParam<attention_fault> {};
INSTANTIATE_TEST_SUITE_P(tensors, attention_faults, testing::ValuesIn(tensor_faults));
INSTANTIATE_TEST_SUITE_P(cache, attention_faults, testing::ValuesIn(cache_faults));
INSTANTIATE_TEST_SUITE_P(values, attention_faults, testing::ValuesIn(value_faults));

TEST_P(attention_faults, are_named_and_nothing_is_written) {
  attention_inputs inputs(good_case());
  skim::attention_args args = inputs.args();
  const skim::cpu::attention dense_op;
  const skim::cpu::attention sparse_op{skim::quoka{skim::queries::lowest_cosine(4), skim::retention::budget(10)}};
  ASSERT_TRUE(sparse_op.check(args).ok());
  aligned_memory workspace(1 << 22);
  GetParam().make(args);
  expect_report(check(args), GetParam().expected);
  expect_report(check_indices(args), GetParam().expected);

  const skim::serial_executor executor;
  std::vector<std::int32_t> indices(2 * 40, -7), counts(2, -7);
  const skim::index_lists lists{indices.data(), counts.data(), 2, 40};
  const auto before = inputs.out().bytes();
  expect_report(dense_op.run(args, {}, workspace.get(), executor), GetParam().expected);
  expect_report(sparse_op.run(args, {}, workspace.get(), executor), GetParam().expected);
  expect_report(sparse_op.select(args, lists, {}, workspace.get(), executor), GetParam().expected);
  expect_report(sparse_op.attend(args, lists, workspace.get(), executor), GetParam().expected);
  EXPECT_EQ(inputs.out().bytes(), before);
  EXPECT_EQ(inputs.lse().bytes(), std::vector<unsigned char>(inputs.lse().bytes().size(), 0xff));
  EXPECT_EQ(indices, std::vector<std::int32_t>(indices.size(), -7));
  EXPECT_EQ(counts, std::vector<std::int32_t>(counts.size(), -7));
}

// Several sequences.

const std::vector<attention_fault> sequence_faults{
    {"negative count", [](auto& a) { a.sequence_count = -1; }, {status::bad_extent, "sequence_count"}},
    {"offsets null", [](auto& a) { a.offsets = nullptr; }, {status::null_pointer, "offsets"}},
    {"rows left over", [](auto& a) { a.sequence_count = 2; }, {status::bad_value, "offsets[sequence_count]"}},
};

class sequence_arguments : public testing::TestWithParam<attention_fault> {};
INSTANTIATE_TEST_SUITE_P(sequences, sequence_arguments, testing::ValuesIn(sequence_faults));

attention_case good_sequences() {
  attention_case c = good_case();
  c.sequences = 3;
  return c;
}

TEST_P(sequence_arguments, are_named) {
  attention_inputs inputs(good_sequences());
  skim::attention_args args = inputs.args();
  ASSERT_TRUE(check(args).ok());
  GetParam().make(args);
  expect_report(check(args), GetParam().expected);
}

TEST(Sequences, MustAgreeWithTheFirst) {
  attention_inputs inputs(good_sequences());
  const skim::attention_args args = inputs.args();
  const auto expect_fault = [&](const std::function<void(skim::kv_view&)>& make, expectation expected) {
    const skim::kv_view good = inputs.view(2);
    make(inputs.view(2));
    expect_report(check(args), expected);
    inputs.view(2) = good;
  };
  expect_fault([](auto& kv) { kv.heads = 3; }, {status::bad_extent, "sequences[s].heads"});
  expect_fault([](auto& kv) { kv.k.dim = 7; }, {status::bad_extent, "sequences[s].k.dim"});
  expect_fault([](auto& kv) { kv.v.dim = 3; }, {status::bad_extent, "sequences[s].v.dim"});
  expect_fault([](auto& kv) { kv.k.type = kv.v.type = skim::element::f16; }, {status::bad_type, "sequences[s].k.type"});
  expect_fault([](auto& kv) { kv.tokens = 1; }, {status::bad_extent, "kv.tokens"});
}

TEST(Sequences, OffsetsStartAtZeroAndAscend) {
  attention_inputs inputs(good_sequences());
  skim::attention_args args = inputs.args();
  const std::int64_t late[] = {1, 7, 7, 11}, back[] = {0, 7, 6, 11};
  args.offsets = late;
  expect_report(check(args), {status::bad_value, "offsets[0]"});
  args.offsets = back;
  expect_report(check(args), {status::bad_value, "offsets[s + 1]"});
}

TEST(Sequences, NoneIsNothingToDo) {
  attention_inputs inputs(good_sequences());
  skim::attention_args args = inputs.args();
  const std::int64_t offsets[] = {0};
  args.offsets = offsets;
  args.sequence_count = 0;
  args.q.extents[0] = args.out.extents[0] = args.lse.extents[0] = 0;
  const skim::cpu::attention<> op;
  EXPECT_TRUE(op.run(args, {}, {}, skim::serial_executor{}).ok());
}

TEST(Attention, AnEmptyChunkNeedsNoPointers) {
  skim::attention_args args;
  attention_case c = good_case();
  c.Tk = 0;
  c.Tq = 0;
  attention_inputs inputs(c);
  args = inputs.args();
  args.q.data = nullptr;
  args.out.data = nullptr;
  args.kv.k.data = args.kv.v.data = nullptr;
  EXPECT_TRUE(check(args).ok());
}

TEST(Attention, CheckFollowsNoPointer) {
  attention_case c = good_case();
  c.layout = skim::kv_layout::paged;
  c.page_size = 4;
  c.positions = positions_kind::holes;
  c.lengths = c.sinks = c.inverse_norms = true;
  attention_inputs inputs(c);
  skim::attention_args args = inputs.args();
  const auto nowhere = [](auto*& pointer) { pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(64); };
  nowhere(args.q.data);
  nowhere(args.out.data);
  nowhere(args.lse.data);
  nowhere(args.sink_logits);
  nowhere(args.kv.k.data);
  nowhere(args.kv.v.data);
  nowhere(args.kv.block_table);
  nowhere(args.kv.lengths);
  nowhere(args.kv.positions);
  nowhere(args.kv.inverse_norms);
  const skim::cpu::attention op{skim::quoka{skim::queries::lowest_cosine(4), skim::retention::budget(10)}};
  EXPECT_TRUE(op.check(args).ok());
  EXPECT_GT(op.workspace_bytes(args, 2), 0u);
  EXPECT_EQ(op.list_capacity(args), 10);
  EXPECT_GT(op.cost(args).flops, 0);
}

// What `check` may not read.

TEST(CheckIndices, BlockTablesPointIntoThePool) {
  attention_case c = good_case();
  c.layout = skim::kv_layout::paged;
  c.page_size = 8;
  attention_inputs inputs(c);
  skim::attention_args args = inputs.args();
  ASSERT_TRUE(check_indices(args).ok());
  std::vector<std::int32_t> table(args.kv.block_table, args.kv.block_table + args.kv.capacity / 8);
  args.kv.block_table = table.data();
  for (const std::int32_t wrong : {-1, static_cast<std::int32_t>(args.kv.pages)}) {
    const std::int32_t right = table[5];
    table[5] = wrong;
    const skim::report r = check_indices(args);
    expect_report(r, {status::bad_index, "kv.block_table[i]"});
    EXPECT_EQ(r.got, wrong);
    EXPECT_EQ(r.expected, args.kv.pages - 1);
    table[5] = right;
  }
  table.back() = -1;  // a page behind the last token is not read
  EXPECT_TRUE(check_indices(args).ok());
}

TEST(CheckIndices, LengthsLieBetweenTheChunkAndAllTokens) {
  attention_inputs inputs(good_case());
  skim::attention_args args = inputs.args();
  std::int32_t lengths[] = {47, 7};
  args.kv.lengths = lengths;
  EXPECT_TRUE(check_indices(args).ok());
  lengths[1] = 6;
  expect_report(check_indices(args), {status::bad_index, "kv.lengths[h]"});
  lengths[1] = 48;
  expect_report(check_indices(args), {status::bad_index, "kv.lengths[h]"});
}

TEST(CheckIndices, ListsAscendWithinThePast) {
  attention_inputs inputs(good_case());
  const skim::attention_args args = inputs.args();
  std::vector<std::int32_t> indices{0, 5, 39, 1, 2, 3}, counts{3, 3};
  const auto expect_fault = [&](skim::index_lists lists, expectation expected) {
    expect_report(check_indices(args, &lists), expected);
  };
  const skim::index_lists good{indices.data(), counts.data(), 2, 3};
  ASSERT_TRUE(check_indices(args, &good).ok());
  expect_fault({indices.data(), counts.data(), 3, 3}, {status::bad_extent, "lists.rows"});
  expect_fault({indices.data(), nullptr, 2, 3}, {status::null_pointer, "lists.counts"});
  expect_fault({nullptr, counts.data(), 2, 3}, {status::null_pointer, "lists.indices"});
  expect_fault({indices.data(), counts.data(), 2, 2}, {status::bad_index, "lists.counts[r]"});
  counts[1] = -1;
  expect_fault(good, {status::bad_index, "lists.counts[r]"});
  counts[1] = 3;
  indices[2] = 40;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]"});
  indices[2] = 5;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]"});
  indices[2] = 4;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]"});
  indices[2] = 39;
  indices[0] = -1;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]"});
}

// Memory and lists given to an operation.

class short_memory : public testing::Test {
 protected:
  attention_inputs inputs_{good_case()};
  skim::attention_args args_ = inputs_.args();
  const skim::cpu::attention<skim::quoka<>> op_{{{4}, skim::retention::budget(10)}};
  const std::size_t bytes_ = op_.workspace_bytes(args_, 1);
  aligned_memory workspace_{bytes_ + 64};
  std::vector<unsigned char> untouched_ = inputs_.out().bytes();

  void expect_refused(skim::memory workspace) {
    const skim::report r = op_.run(args_, {}, workspace, skim::serial_executor{});
    expect_report(r, {status::short_workspace, "workspace.bytes"});
    EXPECT_EQ(r.expected, static_cast<std::int64_t>(bytes_));
    std::vector<std::int32_t> indices(20, -7), counts(2, -7);
    const skim::index_lists lists{indices.data(), counts.data(), 2, 10};
    expect_report(op_.select(args_, lists, {}, workspace, skim::serial_executor{}),
                  {status::short_workspace, "workspace.bytes"});
    EXPECT_EQ(counts, std::vector<std::int32_t>(2, -7));
    EXPECT_EQ(inputs_.out().bytes(), untouched_);
  }
};

TEST_F(short_memory, workspaces_are_refused) {
  char* const data = static_cast<char*>(workspace_.data());
  expect_refused({data, bytes_ - 1});
  expect_refused({data + 4, bytes_});
  expect_refused({nullptr, bytes_});
  expect_refused({data, 0});
  EXPECT_TRUE(op_.run(args_, {}, {data, bytes_}, skim::serial_executor{}).ok());
}

TEST_F(short_memory, workspaces_are_measured_against_the_executor) {
  thread_pool pool(3);
  const skim::report r = op_.run(args_, {}, {workspace_.data(), bytes_}, pool.executor());
  EXPECT_EQ(r.code, status::short_workspace);
  EXPECT_EQ(r.expected, static_cast<std::int64_t>(op_.workspace_bytes(args_, 3)));
  EXPECT_EQ(inputs_.out().bytes(), untouched_);
}

TEST_F(short_memory, lists_are_refused) {
  std::vector<std::int32_t> indices(20, -7), counts(2, -7);
  const auto expect_fault = [&](skim::index_lists lists, expectation expected) {
    expect_report(op_.select(args_, lists, {}, workspace_.get(), skim::serial_executor{}), expected);
    EXPECT_EQ(counts, std::vector<std::int32_t>(2, -7));
  };
  expect_fault({indices.data(), counts.data(), 1, 10}, {status::bad_extent, "lists.rows"});
  expect_fault({indices.data(), counts.data(), 2, 9}, {status::bad_extent, "lists.capacity"});
  expect_fault({indices.data(), counts.data(), 2, -1}, {status::bad_extent, "lists.capacity"});
  expect_fault({indices.data(), nullptr, 2, 10}, {status::null_pointer, "lists.counts"});
  expect_fault({nullptr, counts.data(), 2, 10}, {status::null_pointer, "lists.indices"});
}

/// A selector with state.
struct remembering_selector {
  skim::report check(const skim::attention_args&) const { return {}; }
  std::int64_t list_capacity(const skim::attention_args&) const { return 0; }
  std::size_t workspace_bytes(const skim::attention_args&, unsigned) const { return 0; }
  std::size_t state_bytes(const skim::attention_args&) const { return 128; }
  template <class Executor>
  void select(const skim::attention_args&, const skim::index_lists& lists, skim::memory state, skim::memory,
              const Executor& executor) const {
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) {
      lists.counts[row] = 0;
      static_cast<char*>(state.data)[row] = 1;
    });
  }
};

TEST(ShortState, IsRefused) {
  attention_inputs inputs(good_case());
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<remembering_selector> op;
  aligned_memory workspace(op.workspace_bytes(args, 1)), state(128);
  ASSERT_EQ(op.state_bytes(args), 128u);
  const auto untouched = inputs.out().bytes();
  for (const skim::memory given : {skim::memory{state.data(), 127}, skim::memory{nullptr, 128}, skim::memory{}}) {
    expect_report(op.run(args, given, workspace.get(), skim::serial_executor{}), {status::short_state, "state.bytes"});
  }
  EXPECT_EQ(inputs.out().bytes(), untouched);
  const skim::report r = op.run(args, state.get(), workspace.get(), skim::serial_executor{});
  EXPECT_TRUE(r.ok());
  EXPECT_EQ(r.taken, skim::path::sparse);
}

// Policies' own parameters.

TEST(Retention, ParametersAreChecked) {
  using skim::retention;
  const auto argument = [](retention keep) { return std::string(check(keep).argument); };
  EXPECT_TRUE(check(retention::budget(1)).ok());
  EXPECT_TRUE(check(retention::budget(512, 4, 508)).ok());
  EXPECT_TRUE(check(retention::share(1)).ok());
  EXPECT_TRUE(check(retention::share(0.25, 4, 128)).ok());
  EXPECT_EQ(check(retention::budget(0)).code, status::bad_value);
  EXPECT_EQ(argument(retention::budget(0)), "keep.count");
  EXPECT_EQ(argument(retention::budget(-5)), "keep.count");
  EXPECT_EQ(argument(retention::budget(8, -1, 0)), "keep.sinks");
  EXPECT_EQ(argument(retention::budget(8, 0, -1)), "keep.recent");
  EXPECT_EQ(argument(retention::budget(8, 5, 4)), "keep.recent");
  EXPECT_EQ(argument(retention::budget(8, std::int64_t{1} << 62, std::int64_t{1} << 62)), "keep.sinks");
  EXPECT_EQ(argument(retention::share(0)), "keep.count");
  EXPECT_EQ(argument(retention::share(-0.1)), "keep.fraction");
  EXPECT_EQ(argument(retention::share(1.01)), "keep.fraction");
  EXPECT_EQ(argument(retention::share(std::numeric_limits<double>::quiet_NaN())), "keep.fraction");
  EXPECT_EQ(argument(retention{8, 0.5, 0, 0}), "keep.count");
}

TEST(Retention, AShareRoundsUpAndCoversItsEnds) {
  using skim::retention;
  EXPECT_EQ(retention::share(0.25).keys(100), 25);
  EXPECT_EQ(retention::share(0.25).keys(101), 26);
  EXPECT_EQ(retention::share(0.25).keys(1), 1);
  EXPECT_EQ(retention::share(0.25).keys(0), 0);
  EXPECT_EQ(retention::share(1).keys(77), 77);
  EXPECT_EQ(retention::share(1).keys(2147483647), 2147483647);
  EXPECT_EQ(retention::share(1e-30).keys(5), 1);
  for (std::int64_t percent = 1; percent <= 100; ++percent) {  // 0.07 * 100 > 7 and 0.29 * 100 < 29 in doubles
    EXPECT_EQ(retention::share(static_cast<double>(percent) / 100).keys(100), percent);
    EXPECT_EQ(retention::share(static_cast<double>(percent) / 100).keys(101), percent + 1) << percent;
  }
  EXPECT_EQ(retention::share(0.1, 4, 8).keys(50), 12);
  EXPECT_EQ(retention::budget(9).keys(3), 9);
}

TEST(Selectors, ParametersAreChecked) {
  attention_inputs inputs(good_case());
  const skim::attention_args args = inputs.args();
  const auto expect_fault = [&](const auto& selector, const char* argument) {
    const skim::cpu::attention op{selector};
    const auto untouched = inputs.out().bytes();
    aligned_memory workspace(1 << 20);
    expect_report(op.check(args), {status::bad_value, argument});
    expect_report(op.run(args, {}, workspace.get(), skim::serial_executor{}), {status::bad_value, argument});
    EXPECT_EQ(inputs.out().bytes(), untouched);
  };
  const skim::retention ten = skim::retention::budget(10);
  expect_fault(skim::quoka{skim::queries::lowest_cosine(0), ten}, "queries.n");
  expect_fault(skim::quoka{skim::queries::farthest_point(-1), ten}, "queries.n");
  expect_fault(skim::quoka{skim::queries::all(), skim::retention::budget(0)}, "keep.count");
  expect_fault(skim::sink_window{skim::retention::budget(0)}, "keep.count");
  expect_fault(skim::sink_window{skim::retention::budget(10, 11)}, "keep.sinks");
}

TEST(Report, DescribesItselfInOneLine) {
  char text[120];
  EXPECT_STREQ(describe(skim::report{}, text, sizeof text), "ok");
  skim::report r = skim::detail::fault(status::bad_group, "q.extents[1]", 7, 2, "a multiple of");
  EXPECT_STREQ(describe(r, text, sizeof text),
               "query heads are no multiple of KV heads: q.extents[1] is 7, expected a multiple of 2");
  EXPECT_STREQ(describe(skim::detail::null_fault("q.data"), text, sizeof text), "null pointer: q.data is null");
  const volatile std::size_t few = 5;  // volatile: compilers would warn that the line is cut
  EXPECT_STREQ(describe(r, text, few), "quer");
  EXPECT_FALSE(r);
  for (int code = 0; code <= static_cast<int>(status::unsupported); ++code) {
    EXPECT_STRNE(to_string(static_cast<status>(code)), "unknown status");
  }
}

}  // namespace
