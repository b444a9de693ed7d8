// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the FFN: what `check` names, blocks and prompts, lists, retention, transposing, activations; the
// reference by hand.
#include "support/faults.hpp"
#include "support/values.hpp"

#include <skim/neuron_selector/all_neurons.hpp>
#include <skim/neuron_selector/calibrated_set.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/neuron_selector/oracle.hpp>
#include <skim/neuron_selector/random_neurons.hpp>
#include <skim/neuron_selector/static_set.hpp>
#include <skim/reference/fastforward.hpp>
#include <skim/reference/ffn.hpp>
#include <skim/weights.hpp>

#include <limits>
#include <numeric>

namespace {

using namespace skim_test;
using skim::activation;
using skim::element;
using skim::status;
using skim::tensor_view;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t wide = (std::int64_t{1} << 24) + 1;
constexpr auto no_activation = static_cast<activation>(5);

char anything[1];  // `check` follows no pointer, so that any but null will do

/// M 3, d 8, f 20.
skim::ffn_args good_args() {
  skim::ffn_args args;
  args.x = {anything, {3, 8}, element::f32};
  args.gate = {anything, {20, 8}, element::bf16};
  args.up = {anything, {20, 8}, element::bf16};
  args.down = {anything, {20, 8}, element::bf16};
  args.out = {anything, {3, 8}, element::f16};
  return args;
}

using ffn_fault = fault<skim::ffn_args>;
const std::vector<ffn_fault> ffn_faults{
    {"x null", [](auto& a) { a.x.data = nullptr; }, {status::null_pointer, "x.data", ""}},
    {"x type", [](auto& a) { a.x.type = element::none; }, {status::bad_type, "x.type", "none"}},
    {"negative M", [](auto& a) { a.x.extents[0] = -1; }, {status::bad_extent, "x.extents[0]", "-1"}},
    {"large M",
     [](auto& a) { a.x.extents[0] = a.out.extents[0] = wide; },
     {status::bad_extent, "x.extents[0]", "16777217"}},
    {"negative d", [](auto& a) { a.x.extents[1] = -8; }, {status::bad_extent, "x.extents[1]", "-8"}},
    {"d 0", [](auto& a) { a.x.extents[1] = 0; }, {status::bad_extent, "x.extents[1]", "0"}},
    {"large d", [](auto& a) { a.x.extents[1] = wide; }, {status::unsupported, "x.extents[1]", "16777217"}},
    {"x inner stride", [](auto& a) { a.x.strides[1] = 2; }, {status::bad_stride, "x.strides[1]", "2"}},
    {"x reach", [](auto& a) { a.x.strides[0] = huge; }, {status::bad_stride, "x.strides[0]", "4611686018427387904"}},
    {"up null", [](auto& a) { a.up.data = nullptr; }, {status::null_pointer, "up.data", ""}},
    {"up type", [](auto& a) { a.up.type = element::none; }, {status::bad_type, "up.type", "none"}},
    {"negative f", [](auto& a) { a.up.extents[0] = -20; }, {status::bad_extent, "up.extents[0]", "-20"}},
    {"f 0", [](auto& a) { a.up.extents[0] = 0; }, {status::bad_extent, "up.extents[0]", "0"}},
    {"large f", [](auto& a) { a.up.extents[0] = wide; }, {status::unsupported, "up.extents[0]", "16777217"}},
    {"d of up", [](auto& a) { a.up.extents[1] = 7; }, {status::bad_extent, "up.extents[1]", "7"}},
    {"a stride that one row never takes",
     [](auto& a) {
       a.up.extents[0] = a.gate.extents[0] = a.down.extents[0] = 1;
       a.up.strides[0] = -std::numeric_limits<std::int64_t>::max();
     },
     {status::bad_stride, "up.strides[0]", "-9223372036854775807"}},
    {"up inner stride", [](auto& a) { a.up.strides[1] = 20; }, {status::bad_stride, "up.strides[1]", "20"}},
    {"up reach",
     [](auto& a) { a.up.strides[0] = -huge; },
     {status::bad_stride, "up.strides[0]", "-4611686018427387904"}},
    {"down null", [](auto& a) { a.down.data = nullptr; }, {status::null_pointer, "down.data", ""}},
    {"down type", [](auto& a) { a.down.type = element::none; }, {status::bad_type, "down.type", "none"}},
    {"down of another type", [](auto& a) { a.down.type = element::f16; }, {status::bad_type, "down.type", "f16"}},
    {"down not transposed",
     [](auto& a) {
       a.down = {anything, {8, 20}, element::bf16};
     },
     {status::bad_extent, "down.extents[0]", "8"}},
    {"d of down", [](auto& a) { a.down.extents[1] = 9; }, {status::bad_extent, "down.extents[1]", "9"}},
    {"down inner stride", [](auto& a) { a.down.strides[1] = 0; }, {status::bad_stride, "down.strides[1]", "0"}},
    {"down reach",
     [](auto& a) { a.down.strides[0] = huge; },
     {status::bad_stride, "down.strides[0]", "4611686018427387904"}},
    {"act", [](auto& a) { a.act = no_activation; }, {status::bad_value, "act", "5"}},
    {"negative block", [](auto& a) { a.first_block = -1; }, {status::bad_value, "first_block", "-1"}},
    {"huge block", [](auto& a) { a.first_block = huge; }, {status::bad_value, "first_block", "4611686018427387904"}},
    {"negative block_tokens", [](auto& a) { a.block_tokens = -4; }, {status::bad_value, "block_tokens", "-4"}},
    {"large block_tokens", [](auto& a) { a.block_tokens = wide; }, {status::bad_value, "block_tokens", "16777217"}},
    {"prompts null", [](auto& a) { a.prompt_count = 2; }, {status::null_pointer, "prompts", ""}},
    {"out null", [](auto& a) { a.out.data = nullptr; }, {status::null_pointer, "out.data", ""}},
    {"out type", [](auto& a) { a.out.type = element::none; }, {status::bad_type, "out.type", "none"}},
    {"M of out", [](auto& a) { a.out.extents[0] = 4; }, {status::bad_extent, "out.extents[0]", "4"}},
    {"negative out", [](auto& a) { a.out.extents[0] = -3; }, {status::bad_extent, "out.extents[0]", "-3"}},
    {"d of out", [](auto& a) { a.out.extents[1] = 20; }, {status::bad_extent, "out.extents[1]", "20"}},
    {"out inner stride", [](auto& a) { a.out.strides[1] = 3; }, {status::bad_stride, "out.strides[1]", "3"}},
    {"out reach",
     [](auto& a) { a.out.strides[0] = huge; },
     {status::bad_stride, "out.strides[0]", "4611686018427387904"}},
};

const std::vector<ffn_fault> gate_faults{
    {"gate null", [](auto& a) { a.gate.data = nullptr; }, {status::null_pointer, "gate.data", ""}},
    {"gate type", [](auto& a) { a.gate.type = element::none; }, {status::bad_type, "gate.type", "none"}},
    {"gate of another type", [](auto& a) { a.gate.type = element::f32; }, {status::bad_type, "gate.type", "f32"}},
    {"f of gate", [](auto& a) { a.gate.extents[0] = 19; }, {status::bad_extent, "gate.extents[0]", "19"}},
    {"gate without neurons", [](auto& a) { a.gate.extents[0] = 0; }, {status::bad_extent, "gate.extents[0]", "0"}},
    {"d of gate", [](auto& a) { a.gate.extents[1] = 7; }, {status::bad_extent, "gate.extents[1]", "7"}},
    {"gate inner stride", [](auto& a) { a.gate.strides[1] = 2; }, {status::bad_stride, "gate.strides[1]", "2"}},
    {"gate reach",
     [](auto& a) { a.gate.strides[0] = huge; },
     {status::bad_stride, "gate.strides[0]", "4611686018427387904"}},
};

/// Before there is memory, tensors have no pointers; `prompts` describes a shape.
void expect_shape_report(const skim::report& got, const expectation& expected) {
  if (expected.code != status::null_pointer || expected.argument == "prompts") return expect_report(got, expected);
  EXPECT_TRUE(got.ok());
}

TEST(FfnCheck, FaultsAreNamed) {
  const skim::index_lists lists{nullptr, nullptr, 1, 0};
  const auto expect = [&](const ffn_fault& fault, skim::ffn_args args) {
    SCOPED_TRACE(fault.name);
    fault.make(args);
    expect_report(check(args), fault.expected);
    expect_report(check_indices(args, lists), fault.expected);
    expect_shape_report(check_shape(args), fault.expected);
  };
  skim::ffn_args gated = good_args(), plain = good_args();
  plain.gate = {};
  ASSERT_TRUE(check(gated).ok());
  ASSERT_TRUE(check(plain).ok());
  EXPECT_TRUE(is_gated(gated));
  EXPECT_FALSE(is_gated(plain));
  for (const ffn_fault& fault : ffn_faults) {
    expect(fault, gated);
    expect(fault, plain);
  }
  for (const ffn_fault& fault : gate_faults) expect(fault, gated);
}

TEST(FfnCheck, TakesWhatItCan) {
  skim::ffn_args args = good_args();
  args.x = {nullptr, {0, 8}, element::f32};
  args.out = {nullptr, {0, 8}, element::f16};
  EXPECT_TRUE(check(args).ok()) << "an empty block";
  args.x.extents[1] = 7;
  expect_report(check(args), {status::bad_extent, "up.extents[1]", "8"});

  args = good_args();
  args.x.strides[0] = args.up.strides[0] = args.out.strides[0] = -100;
  args.gate.strides[0] = 0;
  EXPECT_TRUE(check(args).ok()) << "any row strides";
  for (int act = 0; act < 5; ++act) {
    args.act = static_cast<activation>(act);
    EXPECT_TRUE(check(args).ok());
    EXPECT_STRNE(to_string(args.act), "unknown");
  }
  EXPECT_STREQ(to_string(no_activation), "unknown");
  args.x = {anything, {wide - 1, wide - 1}, element::f32};
  args.out = {anything, {wide - 1, wide - 1}, element::f32};
  args.gate = args.up = args.down = {anything, {wide - 1, wide - 1}, element::bf16};
  EXPECT_TRUE(check(args).ok()) << "the largest sizes";
}

TEST(FfnCheck, ShapesNeedNoPointers) {
  skim::ffn_args args = good_args();
  args.x.data = args.gate.data = args.up.data = args.down.data = nullptr;
  args.out.data = nullptr;
  EXPECT_TRUE(check_shape(args).ok());
  EXPECT_TRUE(is_gated(args)) << "by its shape";
  EXPECT_EQ(ffn_cost(args, 10).flops, ffn_cost(good_args(), 10).flops);
  args.gate = {};
  EXPECT_TRUE(check_shape(args).ok());
  EXPECT_FALSE(is_gated(args));

  skim::fastforward fastforward;
  fastforward.predictor = {
      {nullptr, {8}, element::f32}, {nullptr, {8, 4}, element::f32}, {nullptr, {4, 20}, element::f32}};
  EXPECT_TRUE(fastforward.check(args, skim::pointers::ignored).ok());
  expect_report(fastforward.check(args), {status::null_pointer, "predictor.query.data", ""});
  skim::calibrated_set calibrated;
  calibrated.statistic = {nullptr, {20}};
  EXPECT_TRUE(calibrated.check(args, skim::pointers::ignored).ok());
  expect_report(calibrated.check(args), {status::null_pointer, "statistic.data", ""});
  calibrated.statistic = {nullptr, {19}};
  expect_report(calibrated.check(args, skim::pointers::ignored), {status::bad_extent, "statistic.extents[0]", "19"});
}

TEST(FfnPrompts, FaultsAreNamed) {
  using prompts = std::vector<skim::ffn_prompt>;
  const auto expect = [](const prompts& given, std::int64_t count, const expectation& expected) {
    skim::ffn_args args = good_args();
    args.first_block = -1;  // not looked at
    args.prompts = given.data();
    args.prompt_count = count;
    expect_report(check(args), expected);
    expect_report(check_shape(args), expected);
  };
  skim::ffn_args args = good_args();
  const prompts good{{1, 0, false, false}, {0, 4, true, false}, {2, 0, true, true}};
  args.first_block = -1;
  args.prompts = good.data();
  args.prompt_count = 3;
  EXPECT_TRUE(check(args).ok());
  EXPECT_TRUE(skim::oracle{}.check(args).ok());
  expect_report(skim::static_set{}.check(args), {status::unsupported, "prompt_count", "3"});
  args.prompt_count = 0;
  args.x.extents[0] = args.out.extents[0] = 0;
  EXPECT_TRUE(check(args).ok()) << "no prompt has no rows";
  EXPECT_EQ(block_count(args), 0);

  expect(good, -1, {status::bad_extent, "prompt_count", "-1"});
  expect(good, huge, {status::bad_extent, "prompt_count", "4611686018427387904"});
  expect(good, 2, {status::bad_extent, "x.extents[0]", "3"});
  expect({{3, 0}, {1, 0}}, 2, {status::bad_extent, "prompts[p].rows", "1"});
  expect({{4, 0}}, 1, {status::bad_extent, "prompts[p].rows", "4"});
  expect({{-1, 0}, {4, 0}}, 2, {status::bad_extent, "prompts[p].rows", "-1"});
  expect({{3, -2}}, 1, {status::bad_value, "prompts[p].first_block", "-2"});
  expect({{3, huge}}, 1, {status::bad_value, "prompts[p].first_block", "4611686018427387904"});
}

/// What a block is of a call.
struct block_place {
  std::int64_t row, rows, number;
  bool last, decode;

  bool operator==(const block_place& other) const {
    return row == other.row && rows == other.rows && number == other.number && last == other.last &&
           decode == other.decode;
  }
};
std::ostream& operator<<(std::ostream& to, const block_place& b) {
  return to << b.rows << " rows from " << b.row << ", number " << b.number << (b.last ? ", last" : "")
            << (b.decode ? ", decode" : "");
}

std::vector<block_place> blocks_of(const skim::ffn_args& args) {
  const auto place_of = [&args](const skim::ffn_args& block) {
    EXPECT_EQ(block_count(block), 1);
    EXPECT_EQ(block.out.extents[0], block.x.extents[0]);
    const std::int64_t offset = static_cast<const float*>(block.x.data) - static_cast<const float*>(args.x.data);
    EXPECT_EQ(static_cast<float*>(block.out.data) - static_cast<float*>(args.out.data), offset);
    return block_place{offset / 8, block.x.extents[0], block.first_block, block.last, block.decode};
  };
  std::vector<block_place> places;
  skim::for_each_block(args, [&](const skim::ffn_args& block, std::int64_t index) {
    EXPECT_EQ(index, static_cast<std::int64_t>(places.size()));
    places.push_back(place_of(block));
    std::int64_t found = 0;
    skim::for_some_blocks(args, index, 1, [&](const skim::ffn_args& alone, std::int64_t of) {
      EXPECT_EQ(of, index);
      EXPECT_EQ(place_of(alone), places.back());
      ++found;
    });
    EXPECT_EQ(found, 1);
  });
  EXPECT_EQ(block_count(args), static_cast<std::int64_t>(places.size()));
  return places;
}

TEST(FfnBlocks, AreThePromptsRowsCut) {
  std::vector<float> x(8 * 100), out(8 * 100);
  const auto call = [&](std::int64_t M, std::int64_t block_tokens) {
    skim::ffn_args args = good_args();
    args.x = tensor_view<const float, 2>(x.data(), {M, 8});
    args.out = tensor_view<float, 2>(out.data(), {M, 8});
    args.block_tokens = block_tokens;
    args.first_block = 5;
    return args;
  };
  using places = std::vector<block_place>;
  skim::ffn_args args = call(10, 0);
  EXPECT_EQ(blocks_of(args), (places{{0, 10, 5, false, false}}));
  args.block_tokens = 4;
  args.last = true;
  EXPECT_EQ(blocks_of(args), (places{{0, 4, 5, false, false}, {4, 4, 6, false, false}, {8, 2, 7, true, false}}));
  args.block_tokens = 5;
  args.decode = true;
  EXPECT_EQ(blocks_of(args), (places{{0, 5, 5, false, true}, {5, 5, 6, true, true}}));
  EXPECT_EQ(blocks_of(call(10, 10)), (places{{0, 10, 5, false, false}}));
  EXPECT_EQ(blocks_of(call(10, 1 << 20)), (places{{0, 10, 5, false, false}}));
  EXPECT_EQ(blocks_of(call(0, 0)), (places{{0, 0, 5, false, false}}));
  EXPECT_EQ(blocks_of(call(0, 3)), (places{{0, 0, 5, false, false}}));
  EXPECT_EQ(blocks_of(call(100, 1)).size(), 100u);

  const skim::ffn_prompt prompts[] = {
      {5, 0, false, false}, {0, 3, true, false}, {1, 9, false, true}, {4, 2, true, false}};
  args = call(10, 3);
  args.prompts = prompts;
  args.prompt_count = 4;
  EXPECT_EQ(blocks_of(args), (places{{0, 3, 0, false, false},
                                     {3, 2, 1, false, false},
                                     {5, 0, 3, true, false},
                                     {5, 1, 9, false, true},
                                     {6, 3, 2, false, false},
                                     {9, 1, 3, true, false}}));
}

TEST(FfnCheck, CostOfSomeNeurons) {
  skim::ffn_args args = good_args();
  skim::cost_estimate cost = ffn_cost(args, 10);
  EXPECT_EQ(cost.flops, 2 * 3 * 8 * 10 * 3);
  EXPECT_EQ(cost.bytes, 3 * 10 * 8 * 2 + 3 * 8 * (4 + 2));
  args.gate = {};
  cost = ffn_cost(args, 10);
  EXPECT_EQ(cost.flops, 2 * 3 * 8 * 10 * 2);
  EXPECT_EQ(cost.bytes, 2 * 10 * 8 * 2 + 3 * 8 * (4 + 2));
}

TEST(NeuronLists, FaultsAreNamed) {
  const skim::ffn_args args = good_args();
  const auto checked = [&](std::vector<std::int32_t> list, std::int32_t count) {
    return check_indices(args, {list.data(), &count, 1, static_cast<std::int64_t>(list.size())});
  };
  const auto expect = [&](std::vector<std::int32_t> list, std::int32_t count, const char* argument, const char* got) {
    SCOPED_TRACE(testing::PrintToString(list));
    expect_report(checked(list, count), {status::bad_index, argument, got});
  };
  EXPECT_TRUE(checked({0, 1, 7, 19}, 4).ok());
  EXPECT_TRUE(checked({5, 9, 3, -1}, 2).ok()) << "entries behind the count are not read";
  EXPECT_TRUE(checked({-1}, 0).ok());
  expect({0, 3, 2}, 3, "lists.indices[r][i]", "2");
  expect({0, 3, 3}, 3, "lists.indices[r][i]", "3");
  expect({-1, 3}, 2, "lists.indices[r][i]", "-1");
  expect({0, 20}, 2, "lists.indices[r][i]", "20");
  expect({0, std::numeric_limits<std::int32_t>::max()}, 2, "lists.indices[r][i]", "2147483647");
  expect({0, 1}, -1, "lists.counts[r]", "-1");
  expect({0, 1}, 3, "lists.counts[r]", "3");

  std::int32_t indices[] = {0, 1}, count = 2;
  expect_report(check_indices(args, {indices, &count, 2, 2}), {status::bad_extent, "lists.rows", "2"});
  expect_report(check_indices(args, {indices, &count, 0, 2}), {status::bad_extent, "lists.rows", "0"});
  expect_report(check_indices(args, {indices, &count, 1, -2}), {status::bad_extent, "lists.capacity", "-2"});
  expect_report(check_indices(args, {indices, nullptr, 1, 2}), {status::null_pointer, "lists.counts", ""});
  expect_report(check_indices(args, {nullptr, &count, 1, 2}), {status::null_pointer, "lists.indices", ""});
  count = 0;
  EXPECT_TRUE(check_indices(args, {nullptr, &count, 1, 0}).ok());
}

TEST(NeuronLists, HaveARowForEachBlock) {
  skim::ffn_args args = good_args();
  args.block_tokens = 2;
  std::int32_t indices[] = {0, 1, 19, 4, 7, 7}, counts[] = {3, 2};
  EXPECT_TRUE(check_indices(args, {indices, counts, 2, 3}).ok());
  expect_report(check_indices(args, {indices, counts, 1, 3}), {status::bad_extent, "lists.rows", "1"});
  counts[1] = 3;
  expect_report(check_indices(args, {indices, counts, 2, 3}), {status::bad_index, "lists.indices[r][i]", "7"});
  counts[1] = 4;
  expect_report(check_indices(args, {indices, counts, 2, 3}), {status::bad_index, "lists.counts[r]", "4"});
}

using skim::neuron_retention;

TEST(NeuronRetention, CountsNeurons) {
  EXPECT_EQ(neuron_retention::budget(7).neurons(20), 7);
  EXPECT_EQ(neuron_retention::budget(70).neurons(20), 70);
  EXPECT_EQ(neuron_retention::share(0.5).neurons(20), 10);
  EXPECT_EQ(neuron_retention::share(0.5).neurons(21), 11);
  EXPECT_EQ(neuron_retention::share(0.01).neurons(20), 1);
  EXPECT_EQ(neuron_retention::share(0.55).neurons(100), 55);
  EXPECT_EQ(neuron_retention::share(1e-300).neurons(20), 1);
  EXPECT_EQ(neuron_retention::share(1).neurons(21), 21);
  EXPECT_EQ(neuron_retention::share(0.25).neurons(14336), 3584);
}

TEST(NeuronRetention, FaultsAreNamed) {
  const auto expect = [](neuron_retention keep, const char* argument, const char* got) {
    expect_report(check(keep), {status::bad_value, argument, got});
  };
  EXPECT_TRUE(check(neuron_retention::budget(1)).ok());
  EXPECT_TRUE(check(neuron_retention::share(1)).ok());
  EXPECT_TRUE(check(neuron_retention::share(1e-9)).ok());
  expect({}, "keep.count", "0");
  expect(neuron_retention::budget(-1), "keep.count", "-1");
  expect(neuron_retention::share(-0.1), "keep.fraction", "-0.1");
  expect(neuron_retention::share(1.001), "keep.fraction", "1.001");
  expect(neuron_retention::share(std::numeric_limits<double>::quiet_NaN()), "keep.fraction", "nan");
  expect({5, 0.5}, "keep.count", "5");
}

TEST(NeuronRetention, FirstAndLastBlockAndGeneratedTokensAreDense) {
  const auto dense = [](neuron_retention keep, std::int64_t block, bool last, bool decode) {
    skim::ffn_args args = good_args();
    args.first_block = block;
    args.last = last;
    args.decode = decode;
    return runs_dense(keep, args);
  };
  neuron_retention keep = neuron_retention::share(0.5);
  EXPECT_TRUE(dense(keep, 0, false, false));
  EXPECT_TRUE(dense(keep, 0, true, false));
  EXPECT_TRUE(dense(keep, 9, true, false));
  EXPECT_FALSE(dense(keep, 1, false, false));
  EXPECT_TRUE(dense(keep, 1, false, true));
  keep.sparse_decode = true;  // a generated token is no block of the prompt
  for (const bool last : {false, true}) {
    EXPECT_FALSE(dense(keep, 0, last, true));
    EXPECT_FALSE(dense(keep, 9, last, true));
  }
  keep.dense_edges = false;
  EXPECT_FALSE(dense(keep, 0, true, false));
  EXPECT_FALSE(dense(keep, 0, true, true));
  for (keep.count = 19, keep.fraction = 0; keep.count < 22; ++keep.count) {
    EXPECT_EQ(dense(keep, 3, false, false), keep.count >= 20);
    EXPECT_EQ(dense(keep, 3, false, true), keep.count >= 20);
  }
}

TEST(Transpose, TurnsRowsIntoColumns) {
  for (const element type : {element::f32, element::f16, element::bf16}) {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {3, 5}, {32, 32}, {33, 70}, {100, 31}, {1, 65}, {64, 1}}) {
      const std::int64_t size = bytes_of(type, 1), from_stride = columns + 3, to_stride = rows + 1;
      std::vector<unsigned char> from(static_cast<std::size_t>(rows * from_stride * size));
      std::vector<unsigned char> to(static_cast<std::size_t>(columns * to_stride * size), 0xa5), expected = to;
      for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i * 37 + i / 251);
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t j = 0; j < columns; ++j) {
          std::copy_n(from.begin() + (i * from_stride + j) * size, size, expected.begin() + (j * to_stride + i) * size);
        }
      }
      const skim::report report = skim::transpose({from.data(), {rows, columns}, {from_stride, 1}, type},
                                                  {to.data(), {columns, rows}, {to_stride, 1}, type});
      EXPECT_TRUE(report.ok());
      EXPECT_EQ(to, expected) << rows << " x " << columns << " " << to_string(type);
    }
  }
}

struct transpose_args {
  tensor_view<const void, 2> from{anything, {3, 5}, element::f32};
  tensor_view<void, 2> to{anything, {5, 3}, element::f32};
};

TEST(Transpose, FaultsAreNamed) {
  const std::vector<fault<transpose_args>> faults{
      {"from null", [](auto& a) { a.from.data = nullptr; }, {status::null_pointer, "from.data", ""}},
      {"from type", [](auto& a) { a.from.type = element::none; }, {status::bad_type, "from.type", "none"}},
      {"negative rows", [](auto& a) { a.from.extents[0] = -3; }, {status::bad_extent, "from.extents[0]", "-3"}},
      {"negative columns", [](auto& a) { a.from.extents[1] = -5; }, {status::bad_extent, "from.extents[1]", "-5"}},
      {"from inner stride", [](auto& a) { a.from.strides[1] = 3; }, {status::bad_stride, "from.strides[1]", "3"}},
      {"from reach",
       [](auto& a) { a.from.strides[0] = huge; },
       {status::bad_stride, "from.strides[0]", "4611686018427387904"}},
      {"to null", [](auto& a) { a.to.data = nullptr; }, {status::null_pointer, "to.data", ""}},
      {"to type", [](auto& a) { a.to.type = element::none; }, {status::bad_type, "to.type", "none"}},
      {"other type", [](auto& a) { a.to.type = element::bf16; }, {status::bad_type, "to.type", "bf16"}},
      {"rows", [](auto& a) { a.to.extents[0] = 3; }, {status::bad_extent, "to.extents[0]", "3"}},
      {"columns", [](auto& a) { a.to.extents[1] = 5; }, {status::bad_extent, "to.extents[1]", "5"}},
      {"to inner stride", [](auto& a) { a.to.strides[1] = 0; }, {status::bad_stride, "to.strides[1]", "0"}},
      {"to reach",
       [](auto& a) { a.to.strides[0] = huge; },
       {status::bad_stride, "to.strides[0]", "4611686018427387904"}},
  };
  for (const auto& fault : faults) {
    SCOPED_TRACE(fault.name);
    transpose_args args;
    fault.make(args);
    expect_report(skim::transpose(args.from, args.to), fault.expected);
  }
  EXPECT_TRUE(skim::transpose({nullptr, {0, 5}, element::f32}, {nullptr, {5, 0}, element::f32}).ok());
}

/// d 8, f 20, r 4, c 3.
struct fitted_parts {
  skim::neuron_predictor predictor{
      {anything, {8}, element::f32}, {anything, {8, 4}, element::bf16}, {anything, {4, 20}, element::f16}};
  skim::neuron_compensator compensator{{anything, {8, 3}, element::bf16}, {anything, {3, 8}, element::bf16}};
};

TEST(FittedParts, FaultsAreNamed) {
  using part_fault = fault<fitted_parts>;
  const std::vector<part_fault> predictor_faults{
      {"null", [](auto& p) { p.predictor.query.data = nullptr; }, {status::null_pointer, "predictor.query.data", ""}},
      {"type",
       [](auto& p) { p.predictor.query.type = element::none; },
       {status::bad_type, "predictor.query.type", "none"}},
      {"d", [](auto& p) { p.predictor.query.extents[0] = 7; }, {status::bad_extent, "predictor.query.extents[0]", "7"}},
      {"d", [](auto& p) { p.predictor.query.extents[0] = 0; }, {status::bad_extent, "predictor.query.extents[0]", "0"}},
      {"stride",
       [](auto& p) { p.predictor.query.strides[0] = 2; },
       {status::bad_stride, "predictor.query.strides[0]", "2"}},
      {"w1 null", [](auto& p) { p.predictor.w1.data = nullptr; }, {status::null_pointer, "predictor.w1.data", ""}},
      {"w1 type",
       [](auto& p) { p.predictor.w1.type = element::none; },
       {status::bad_type, "predictor.w1.type", "none"}},
      {"d of w1", [](auto& p) { p.predictor.w1.extents[0] = 9; }, {status::bad_extent, "predictor.w1.extents[0]", "9"}},
      {"r 0", [](auto& p) { p.predictor.w1.extents[1] = 0; }, {status::bad_extent, "predictor.w1.extents[1]", "0"}},
      {"large r",
       [](auto& p) { p.predictor.w1.extents[1] = wide; },
       {status::unsupported, "predictor.w1.extents[1]", "16777217"}},
      {"w1 stride",
       [](auto& p) { p.predictor.w1.strides[1] = 8; },
       {status::bad_stride, "predictor.w1.strides[1]", "8"}},
      {"w2 null", [](auto& p) { p.predictor.w2.data = nullptr; }, {status::null_pointer, "predictor.w2.data", ""}},
      {"w2 type",
       [](auto& p) { p.predictor.w2.type = element::none; },
       {status::bad_type, "predictor.w2.type", "none"}},
      {"r of w2", [](auto& p) { p.predictor.w2.extents[0] = 5; }, {status::bad_extent, "predictor.w2.extents[0]", "5"}},
      {"f of w2",
       [](auto& p) { p.predictor.w2.extents[1] = 19; },
       {status::bad_extent, "predictor.w2.extents[1]", "19"}},
      {"w2 stride",
       [](auto& p) { p.predictor.w2.strides[1] = 4; },
       {status::bad_stride, "predictor.w2.strides[1]", "4"}},
  };
  const std::vector<part_fault> compensator_faults{
      {"c1 null", [](auto& p) { p.compensator.c1.data = nullptr; }, {status::null_pointer, "compensator.c1.data", ""}},
      {"c1 type",
       [](auto& p) { p.compensator.c1.type = element::none; },
       {status::bad_type, "compensator.c1.type", "none"}},
      {"d of c1",
       [](auto& p) { p.compensator.c1.extents[0] = 9; },
       {status::bad_extent, "compensator.c1.extents[0]", "9"}},
      {"c 0", [](auto& p) { p.compensator.c1.extents[1] = 0; }, {status::bad_extent, "compensator.c1.extents[1]", "0"}},
      {"large c",
       [](auto& p) { p.compensator.c1.extents[1] = wide; },
       {status::unsupported, "compensator.c1.extents[1]", "16777217"}},
      {"c1 stride",
       [](auto& p) { p.compensator.c1.strides[1] = 8; },
       {status::bad_stride, "compensator.c1.strides[1]", "8"}},
      {"c2 null", [](auto& p) { p.compensator.c2.data = nullptr; }, {status::null_pointer, "compensator.c2.data", ""}},
      {"c2 type",
       [](auto& p) { p.compensator.c2.type = element::none; },
       {status::bad_type, "compensator.c2.type", "none"}},
      {"types",
       [](auto& p) { p.compensator.c2.type = element::f16; },
       {status::bad_type, "compensator.c2.type", "f16"}},
      {"c of c2",
       [](auto& p) { p.compensator.c2.extents[0] = 4; },
       {status::bad_extent, "compensator.c2.extents[0]", "4"}},
      {"d of c2",
       [](auto& p) { p.compensator.c2.extents[1] = 7; },
       {status::bad_extent, "compensator.c2.extents[1]", "7"}},
      {"c2 stride",
       [](auto& p) { p.compensator.c2.strides[1] = 3; },
       {status::bad_stride, "compensator.c2.strides[1]", "3"}},
      {"act", [](auto& p) { p.compensator.act = no_activation; }, {status::bad_value, "compensator.act", "5"}},
  };
  const fitted_parts good;
  ASSERT_TRUE(check(good.predictor, 8, 20).ok());
  ASSERT_TRUE(check(good.compensator, 8).ok());
  for (const part_fault& fault : predictor_faults) {
    SCOPED_TRACE(fault.name);
    fitted_parts parts;
    fault.make(parts);
    expect_report(check(parts.predictor, 8, 20), fault.expected);
  }
  for (const part_fault& fault : compensator_faults) {
    SCOPED_TRACE(fault.name);
    fitted_parts parts;
    fault.make(parts);
    expect_report(check(parts.compensator, 8), fault.expected);
  }
  EXPECT_TRUE(check(skim::neuron_compensator{}, 8).ok());
  EXPECT_FALSE(compensates(skim::neuron_compensator{}));
  EXPECT_TRUE(compensates(good.compensator));
}

TEST(FittedParts, HaveThePapersSizes) {
  const std::pair<std::int64_t, std::int64_t> ranks[] = {{1, 1},      {16, 1},     {17, 2},     {32, 2},
                                                         {128, 8},    {144, 16},   {2048, 128}, {3072, 256},
                                                         {3584, 256}, {4096, 256}, {4097, 512}};
  for (const auto& [d, r] : ranks) EXPECT_EQ(skim::predictor_rank(d), r) << d;
  const std::pair<std::int64_t, std::int64_t> widths[] = {{1, 1}, {7, 1}, {8, 1}, {128, 16}, {4096, 512}};
  for (const auto& [d, c] : widths) EXPECT_EQ(skim::compensator_width(d), c) << d;
}

TEST(Activation, ValuesByHand) {
  const auto expect = [](activation act, double x, double expected) {
    EXPECT_NEAR(activate(act, x), expected, 1e-15 * (1 + std::fabs(expected))) << to_string(act) << " of " << x;
  };
  for (int act = 0; act < 5; ++act) expect(static_cast<activation>(act), 0, 0);
  expect(activation::silu, 1, 0.7310585786300049);
  expect(activation::silu, -1, -0.2689414213699951);
  expect(activation::silu, std::log(3.0), 0.75 * std::log(3.0));
  expect(activation::gelu_tanh, 1, 0.8411919906082768);
  expect(activation::gelu_tanh, -1, -0.15880800939172324);
  expect(activation::gelu_erf, 1, 0.8413447460685429);
  expect(activation::gelu_erf, -1, -0.15865525393145707);
  expect(activation::relu, 1.5, 1.5);
  expect(activation::relu, -1.5, 0);
  expect(activation::relu_squared, 1.5, 2.25);
  expect(activation::relu_squared, -1.5, 0);
}

TEST(Activation, OfLargeArgumentsIsTheArgumentOrZero) {
  for (int i = 0; i < 5; ++i) {
    const activation act = static_cast<activation>(i);
    EXPECT_TRUE(std::isnan(activate(act, std::numeric_limits<double>::quiet_NaN()))) << to_string(act);
    for (const double x : {40.0, 700.0, 1e4, 3.4e38, 1e150, 1.7e308}) {
      EXPECT_EQ(activate(act, x), act == activation::relu_squared ? x * x : x) << to_string(act) << " of " << x;
      EXPECT_NEAR(activate(act, -x), 0, 1e-15) << to_string(act) << " of -" << x;
    }
    EXPECT_EQ(activate(act, infinity), infinity) << to_string(act);
  }
}

/// 2 tokens, d 2, 3 neurons; every product is exact.
struct small_ffn {
  float x[4] = {1, 2, -1, 1};
  float gate[6] = {1, 0, 0, 1, 1, 1};
  float up[6] = {1, 1, 2, 0, 0, -1};
  float down[6] = {1, 0, 0, 1, 2, 3};
  float out[4] = {7, 7, 7, 7};
  skim::ffn_args args;

  small_ffn() {
    args.x = tensor_view<const float, 2>(x, {2, 2});
    args.gate = tensor_view<const float, 2>(gate, {3, 2});
    args.up = tensor_view<const float, 2>(up, {3, 2});
    args.down = tensor_view<const float, 2>(down, {3, 2});
    args.out = tensor_view<float, 2>(out, {2, 2});
    args.act = activation::relu;
    EXPECT_TRUE(check(args).ok());
  }
};

using numbers = std::vector<double>;
using neurons = std::vector<std::int32_t>;
namespace reference = skim::reference;

TEST(ReferenceFfn, OfTwoTokensAndThreeNeuronsByHand) {
  const small_ffn of;
  EXPECT_EQ(reference::every_neuron(of.args), (neurons{0, 1, 2}));
  // x gate^T: 1 2 3, -1 1 0. x up^T: 3 2 -2, 0 -2 -1.
  EXPECT_EQ(reference::neuron_values(of.args, {0, 1, 2}), (numbers{3, 4, -6, 0, -2, 0}));
  EXPECT_EQ(reference::neuron_values(of.args, {2}), (numbers{-6, 0}));
  EXPECT_EQ(reference::ffn(of.args, {0, 1, 2}), (numbers{3 - 12, 4 - 18, 0, -2}));
  EXPECT_EQ(reference::ffn(of.args, {0, 2}), (numbers{3 - 12, -18, 0, 0}));
  EXPECT_EQ(reference::ffn(of.args, {}), (numbers{0, 0, 0, 0}));
}

TEST(ReferenceFfn, WithoutAGate) {
  small_ffn of;
  of.args.gate = {};
  of.args.act = activation::relu_squared;
  EXPECT_EQ(reference::neuron_values(of.args, {0, 1, 2}), (numbers{9, 4, 0, 0, 0, 0}));
  EXPECT_EQ(reference::ffn(of.args, {0, 1, 2}), (numbers{9, 4, 0, 0}));
}

TEST(ReferenceFfn, StatisticOfUnitRows) {
  const small_ffn of;
  const numbers got = reference::neuron_statistic(of.args);
  // Rows 3 4 -6 (length sqrt 61) and 0 -2 0 (length 2).
  const numbers expected{std::sqrt(9 / 61.0), std::sqrt(16 / 61.0 + 1), std::sqrt(36 / 61.0)};
  for (std::size_t j = 0; j < 3; ++j) EXPECT_NEAR(got[j], expected[j], 1e-15);
  small_ffn zero_row;
  zero_row.x[2] = zero_row.x[3] = 0;
  const numbers one = reference::neuron_statistic(zero_row.args);
  for (std::size_t j = 0; j < 3; ++j) EXPECT_NEAR(one[j], std::sqrt(numbers{9, 16, 36}[j] / 61), 1e-15);
  zero_row.x[0] = zero_row.x[1] = 0;
  EXPECT_EQ(reference::neuron_statistic(zero_row.args), (numbers{0, 0, 0}));
}

TEST(ReferenceFfn, CompensationAndPredictionByHand) {
  const small_ffn of;
  const float c1[] = {1, 0, 0, 1, 1, 1}, c2[] = {1, 0, 0, 1, 10, 10};  // [2, 3], [3, 2]
  skim::neuron_compensator compensator;
  compensator.c1 = tensor_view<const float, 2>(c1, {2, 3});
  compensator.c2 = tensor_view<const float, 2>(c2, {3, 2});
  compensator.act = activation::relu;
  ASSERT_TRUE(check(compensator, 2).ok());
  // x c1: 3 2 2, 0 1 1 (row 0 of c1 is 1 0 0, row 1 is 1 1 1).
  EXPECT_EQ(reference::compensation(of.args, compensator), (numbers{3 + 20, 2 + 20, 10, 1 + 10}));

  // A query of sqrt(2) ln(3) / 2 along x's first number: logits ln(3) / 2 and -ln(3) / 2, weights 3/4 and 1/4, a = 1/2 7/4.
  const float query[] = {static_cast<float>(std::sqrt(2.0) * std::log(3.0) / 2), 0};
  const float w1[] = {2, -2, 0, 0}, w2[] = {1, 2, 3, 100, 100, 100};  // hidden: relu(1, -1)
  skim::neuron_predictor predictor;
  predictor.query = tensor_view<const float, 1>(query, {2});
  predictor.w1 = tensor_view<const float, 2>(w1, {2, 2});
  predictor.w2 = tensor_view<const float, 2>(w2, {2, 3});
  ASSERT_TRUE(check(predictor, 2, 3).ok());
  numbers scores = reference::predict(of.args, predictor);
  for (std::size_t j = 0; j < 3; ++j) EXPECT_NEAR(scores[j], numbers({1, 2, 3})[j], 1e-6);
  skim::ffn_args none = of.args;
  none.x.extents[0] = none.out.extents[0] = 0;
  EXPECT_EQ(reference::predict(none, predictor), (numbers{0, 0, 0}));
  EXPECT_EQ(reference::ffn(none, {0, 1, 2}), numbers{});
  EXPECT_EQ(reference::neuron_statistic(none), (numbers{0, 0, 0}));
  skim::ffn_args one = of.args;  // one token: its own weight is 1
  one.x.extents[0] = one.out.extents[0] = 1;
  EXPECT_EQ(reference::predict(one, predictor), (numbers{2, 4, 6}));
}

TEST(ReferenceFfn, TopNeuronsAscendAndTiesGoToTheLower) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  using reference::top_neurons;
  EXPECT_EQ(top_neurons({1, 5, 3, 4}, 2), (neurons{1, 3}));
  EXPECT_EQ(top_neurons({2, 2, 2, 2}, 2), (neurons{0, 1}));
  EXPECT_EQ(top_neurons({1, 2, 3, 2, 2}, 3), (neurons{1, 2, 3}));
  EXPECT_EQ(top_neurons({-0.0f, 0.0f, -1}, 1), (neurons{0}));
  EXPECT_EQ(top_neurons({nan, -inf, nan, -1}, 3), (neurons{0, 1, 3}));
  EXPECT_EQ(top_neurons({nan, inf, -inf}, 1), (neurons{1}));
  EXPECT_EQ(top_neurons({1, 2}, 5), (neurons{0, 1}));
  EXPECT_EQ(top_neurons({1, 2}, 0), neurons{});
  EXPECT_EQ(top_neurons({}, 3), neurons{});
}

}  // namespace
