// SPDX-License-Identifier: Apache-2.0
// cuda::check_indices finds what the CPU's finds, and says the same of it.
#include <skim/cuda/check_indices.cuh>

#include "bf16_case.hpp"
#include "captured_call.hpp"
#include "on_device.hpp"

#include <functional>

namespace {

using namespace skim_test;

std::string text_of(const skim::report& report) {
  char text[256];
  return describe(report, text, sizeof text);
}

/// A number of the caller's that kernels only read.
std::int32_t& number(const std::int32_t* array, std::int64_t at) {
  return const_cast<std::int32_t*>(array)[at];
}

/// A call and its lists, of which a test spoils some numbers.
struct spoiled_call {
  attention_inputs inputs;
  skim::attention_args args = inputs.args();
  skim::index_lists lists;

  explicit spoiled_call(const attention_case& c) : inputs(c), lists(*inputs.lists()) {}

  skim::kv_view& view(std::int64_t s = 0) { return inputs.view(s); }
  std::int32_t& offset(std::int64_t s) { return number(args.batch.offsets, s); }
  std::int32_t& tokens(std::int64_t s) { return number(args.batch.tokens, s); }
  std::int32_t& page(std::int64_t s, std::int64_t i) {
    return number(args.batch.block_tables, s * args.batch.table_stride + i);
  }
  /// The first row of lists from `r` on that has more than three slots.
  std::int64_t long_row(std::int64_t r = 0) const {
    while (lists.counts[r] < 4) ++r;
    return r;
  }
};

struct index_spoil {
  const char* name;
  std::function<void(spoiled_call&)> how;
};

void expect_same(const attention_case& c, const std::vector<index_spoil>& faults) {
  SCOPED_TRACE(testing::Message() << c);
  guarded_device_memory found(sizeof(skim::cuda::index_fault));
  const auto answer = [&](const spoiled_call& call) {
    auto* const to = static_cast<skim::cuda::index_fault*>(found.get().data);
    EXPECT_TRUE(skim::cuda::check_indices(call.args, &call.lists, to, nullptr).ok());
    skim::cuda::index_fault fault;
    EXPECT_EQ(cudaMemcpy(&fault, to, sizeof fault, cudaMemcpyDefault), cudaSuccess);
    EXPECT_TRUE(found.guards_intact());
    return text_of(report_of(fault));
  };
  EXPECT_EQ(answer(spoiled_call(c)), "ok");
  for (const index_spoil& fault : faults) {
    SCOPED_TRACE(fault.name);
    spoiled_call call(c);
    fault.how(call);
    const std::string expected = text_of(check_indices(call.args, &call.lists));
    EXPECT_EQ(expected.substr(0, 18), "index out of range") << expected;
    EXPECT_EQ(answer(call), expected);
  }
}

attention_case listed_case() {
  attention_case c = bf16_case(64, 40, 300, 3);
  c.lists = lists_kind::third;
  c.block_rows = 7;
  return c;
}

const std::vector<index_spoil> spoilt_lists{
    {"a count below 0", [](spoiled_call& c) { c.lists.counts[3] = -2; }},
    {"a count beyond the row",
     [](spoiled_call& c) { c.lists.counts[5] = static_cast<std::int32_t>(c.lists.capacity) + 1; }},
    {"a slot below 0", [](spoiled_call& c) { c.lists.row(c.long_row())[0] = -1; }},
    {"a slot twice", [](spoiled_call& c) { c.lists.row(c.long_row(4))[2] = c.lists.row(c.long_row(4))[1]; }},
    {"slots that descend",
     [](spoiled_call& c) { std::swap(c.lists.row(c.long_row())[1], c.lists.row(c.long_row())[2]); }},
    {"a slot that is none of the past",
     [](spoiled_call& c) {
       const std::int64_t r = c.long_row(2);
       c.lists.row(r)[c.lists.counts[r] - 1] = 400;
     }},
    {"a count, and a slot of a row before it",
     [](spoiled_call& c) {
       c.lists.counts[7] = -1;
       c.lists.row(c.long_row())[3] = 0;
     }},
    {"two slots",
     [](spoiled_call& c) {
       c.lists.row(c.long_row(3))[1] = -5;
       c.lists.row(c.long_row(1))[3] = 1 << 29;
     }},
};

TEST(gpu_indices, lists_are_looked_through) {
  NEEDS_A_GPU();
  attention_case c = listed_case();
  expect_same(c, spoilt_lists);
  c.block_rows = 0;
  c.Hk = 8;
  expect_same(c, spoilt_lists);
  c.block_rows = 16;
  c.sequences = 3;
  expect_same(c, spoilt_lists);
  c.batch = true;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  expect_same(c, spoilt_lists);
}

TEST(gpu_indices, tables_lengths_and_positions_are_looked_through) {
  NEEDS_A_GPU();
  const std::vector<index_spoil> faults{
      {"a page below 0", [](spoiled_call& c) { number(c.view().block_table, 4) = -1; }},
      {"a page beyond the pool",
       [](spoiled_call& c) { number(c.view().block_table, 0) = static_cast<std::int32_t>(c.view().pages); }},
      {"a length below the chunk's", [](spoiled_call& c) { number(c.view().lengths, 1) = 39; }},
      {"a length beyond the tokens", [](spoiled_call& c) { number(c.view().lengths, 0) = 341; }},
      {"a position below 0", [](spoiled_call& c) { number(c.view().positions, c.view().positions_stride + 17) = -8; }},
      {"positions and a slot",
       [](spoiled_call& c) {
         c.lists.row(c.long_row())[0] = -1;
         number(c.view().positions, 300) = -1;
         number(c.view().positions, 20) = -2;
       }},
      {"a page and a length",
       [](spoiled_call& c) {
         number(c.view().lengths, 1) = 1;
         number(c.view().block_table, 20) = 1000;
       }},
  };
  attention_case c = listed_case();
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  c.lengths = true;
  c.positions = positions_kind::holes;
  expect_same(c, faults);
  c.sequences = 3;
  expect_same(c, faults);
  expect_same(c, {{"the last sequence's page, and a slot of the first's",
                   [](spoiled_call& call) {
                     number(call.view(2).block_table, 1) = -1;
                     call.lists.row(call.long_row())[0] = -1;
                   }},
                  {"pages of two", [](spoiled_call& call) {
                     number(call.view(2).block_table, 1) = -1;
                     number(call.view(0).block_table, 1) = -2;
                   }}});
}

TEST(gpu_indices, the_arrays_of_a_batch_are_looked_through) {
  NEEDS_A_GPU();
  attention_case c = listed_case();  // chunks of 40, 0, 21, 14 and 11 rows
  c.batch = true;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  c.sequences = 5;
  expect_same(c, {{"rows that do not begin at 0", [](spoiled_call& call) { call.offset(0) = 1; }},
                  {"rows that descend", [](spoiled_call& call) { call.offset(2) = 39; }},
                  {"more rows than the most", [](spoiled_call& call) { call.offset(2) = 81; }},
                  {"fewer rows than q has", [](spoiled_call& call) { call.offset(5) -= 1; }},
                  {"fewer tokens than rows", [](spoiled_call& call) { call.tokens(3) = 13; }},
                  {"more tokens than the most", [](spoiled_call& call) { call.tokens(0) = 341; }},
                  {"rows and tokens",
                   [](spoiled_call& call) {
                     call.offset(4) = 500;
                     call.tokens(2) = -1;
                   }},
                  {"a page below 0", [](spoiled_call& call) { call.page(2, 3) = -4; }},
                  {"pages of two sequences, and a slot", [](spoiled_call& call) {
                     call.page(3, 0) = 1 << 20;
                     call.page(1, 9) = 1 << 21;
                     call.lists.row(call.long_row())[0] = -1;
                   }}});
}

/// Numbers behind those that are in use may be any; and a graph looks at what is there when it is replayed.
TEST(gpu_indices, captured_looks_at_what_is_there) {
  NEEDS_A_GPU();
  attention_case c = listed_case();
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  spoiled_call call(c);
  std::vector<skim::cuda::index_fault> found(1);
  const captured_call looks(
      [&](cudaStream_t stream) { return skim::cuda::check_indices(call.args, &call.lists, found.data(), stream); });
  const std::int32_t page = call.view().block_table[2];
  for (const std::int32_t now : {page, -1, page}) {
    number(call.view().block_table, 2) = now;
    looks.replay();
    EXPECT_EQ(report_of(found[0]).ok(), now == page);
  }
  EXPECT_EQ(text_of(skim::cuda::check_indices(call.args, &call.lists, nullptr, nullptr)),
            "null pointer: found is null");
}

}  // namespace
