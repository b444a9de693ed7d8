// SPDX-License-Identifier: Apache-2.0
// Bad input: `check` names the argument, what it got and what it expected; `run` answers the same and writes nothing.
#include "support/attention_case.hpp"
#include "support/executors.hpp"
#include "support/faults.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>

namespace {

using namespace skim_test;
using skim::status;

using attention_fault = fault<skim::attention_args>;

// Most views are contiguous with Tq 7, Tk 40, Hq 6, Hk 2, D 8, Dv 4.
attention_case good_attention() {
  attention_case c;
  c.Hk = 2;
  c.G = 3;
  c.D = 8;
  c.Dv = 4;
  c.lse = true;
  return c;
}

const std::vector<attention_fault> tensor_faults{
    {"q null", [](auto& a) { a.q.data = nullptr; }, {status::null_pointer, "q.data", ""}},
    {"q type", [](auto& a) { a.q.type = skim::element::none; }, {status::bad_type, "q.type", "none"}},
    {"q of an unknown type",
     [](auto& a) { a.q.type = static_cast<skim::element>(77); },
     {status::bad_type, "q.type", "an unknown type"}},
    {"negative Tq", [](auto& a) { a.q.extents[0] = -1; }, {status::bad_extent, "q.extents[0]", "-1"}},
    {"negative Hq", [](auto& a) { a.q.extents[1] = -6; }, {status::bad_extent, "q.extents[1]", "-6"}},
    {"negative D", [](auto& a) { a.q.extents[2] = -8; }, {status::bad_extent, "q.extents[2]", "-8"}},
    {"no query heads",
     [](auto& a) { a.q.extents[1] = a.out.extents[1] = a.lse.extents[1] = 0; },
     {status::bad_extent, "q.extents[1]", "0"}},
    {"q inner stride", [](auto& a) { a.q.strides[2] = 2; }, {status::bad_stride, "q.strides[2]", "2"}},
    {"q reach", [](auto& a) { a.q.strides[0] = huge; }, {status::bad_stride, "q.strides[0]", "4611686018427387904"}},
    {"q reach of heads",
     [](auto& a) { a.q.strides[1] = std::int64_t{1} << 60; },
     {status::bad_stride, "q.strides[1]", "1152921504606846976"}},
    {"q reach in a few tokens",
     [](auto& a) { a.q.strides[0] = (std::int64_t{1} << 57) / 6 + 1; },
     {status::bad_stride, "q.strides[0]", "24019198012642646"}},
    {"q between two addresses",
     [](auto& a) { a.q.data = static_cast<const char*>(a.q.data) + 1; },
     {status::bad_value, "q.data", ""}},
    {"q negative reach",
     [](auto& a) { a.q.strides[0] = std::numeric_limits<std::int64_t>::min(); },
     {status::bad_stride, "q.strides[0]", "-9223372036854775808"}},
    {"absurd extents",
     [](auto& a) {
       a.q = skim::tensor_view<const float, 3>(static_cast<const float*>(a.q.data), {huge, huge, huge});
     },
     {status::bad_stride, "q.strides[1]", "4611686018427387904"}},
    {"overflowing Tq",
     [](auto& a) {
       a.q.extents[0] = a.out.extents[0] = a.lse.extents[0] = a.kv.tokens = a.kv.capacity = std::int64_t{1} << 30;
       a.kv.k.rows = a.kv.v.rows = a.kv.capacity;
     },
     {status::bad_extent, "q.extents[0]", "1073741824"}},
    {"more tokens than the cache", [](auto& a) { a.q.extents[0] = 48; }, {status::bad_extent, "kv.tokens", "47"}},
    {"D of q", [](auto& a) { a.q.extents[2] = 7; }, {status::bad_extent, "q.extents[2]", "7"}},
    {"group", [](auto& a) { a.q.extents[1] = 5; }, {status::bad_group, "q.extents[1]", "5"}},
    {"out null", [](auto& a) { a.out.data = nullptr; }, {status::null_pointer, "out.data", ""}},
    {"out type", [](auto& a) { a.out.type = skim::element::none; }, {status::bad_type, "out.type", "none"}},
    {"out tokens", [](auto& a) { a.out.extents[0] = 6; }, {status::bad_extent, "out.extents[0]", "6"}},
    {"out heads", [](auto& a) { a.out.extents[1] = 2; }, {status::bad_extent, "out.extents[1]", "2"}},
    {"out Dv", [](auto& a) { a.out.extents[2] = 3; }, {status::bad_extent, "out.extents[2]", "3"}},
    {"out inner stride", [](auto& a) { a.out.strides[2] = 0; }, {status::bad_stride, "out.strides[2]", "0"}},
    {"out all in one place",
     [](auto& a) { a.out.strides[0] = a.out.strides[1] = 0; },
     {status::bad_stride, "out.strides[0]", "0"}},
    {"out tokens inside each other",
     [](auto& a) { a.out.strides[0] = a.out.strides[1] * 5; },
     {status::bad_stride, "out.strides[0]", "20"}},
    {"out heads inside each other",
     [](auto& a) { a.out.strides[1] = -3; },
     {status::bad_stride, "out.strides[1]", "-3"}},
    {"out between two addresses",
     [](auto& a) { a.out.data = static_cast<char*>(a.out.data) + 2; },
     {status::bad_value, "out.data", ""}},
    {"lse tokens in one place", [](auto& a) { a.lse.strides[0] = 0; }, {status::bad_stride, "lse.strides[0]", "0"}},
    {"lse between two addresses",
     [](auto& a) { a.lse.data = reinterpret_cast<float*>(reinterpret_cast<char*>(a.lse.data) + 3); },
     {status::bad_value, "lse.data", ""}},
    {"sink logits between two addresses",
     [](auto& a) { a.sink_logits = reinterpret_cast<const float*>(static_cast<const char*>(a.q.data) + 1); },
     {status::bad_value, "sink_logits", ""}},
    {"slopes between two addresses",
     [](auto& a) { a.alibi_slopes = reinterpret_cast<const float*>(static_cast<const char*>(a.q.data) + 2); },
     {status::bad_value, "alibi_slopes", ""}},
    {"out reach", [](auto& a) { a.out.strides[1] = -huge; }, {status::bad_stride, "out.strides[1]", ""}},
    {"negative out", [](auto& a) { a.out.extents[2] = -4; }, {status::bad_extent, "out.extents[2]", "-4"}},
    {"lse tokens", [](auto& a) { a.lse.extents[0] = 8; }, {status::bad_extent, "lse.extents[0]", "8"}},
    {"lse heads", [](auto& a) { a.lse.extents[1] = 7; }, {status::bad_extent, "lse.extents[1]", "7"}},
    {"lse tokens, without memory",
     [](auto& a) {
       a.lse.data = nullptr;
       a.lse.extents[0] = 128;
     },
     {status::bad_extent, "lse.extents[0]", "128"}},
    {"lse stride, without memory",
     [](auto& a) {
       a.lse.data = nullptr;
       a.lse.strides[0] = huge;
     },
     {status::bad_stride, "lse.strides[0]", ""}},
    {"lse inner stride", [](auto& a) { a.lse.strides[1] = 2; }, {status::bad_stride, "lse.strides[1]", "2"}},
    {"lse reach", [](auto& a) { a.lse.strides[0] = huge; }, {status::bad_stride, "lse.strides[0]", ""}},
};

const std::vector<attention_fault> cache_faults{
    {"no KV heads", [](auto& a) { a.kv.heads = 0; }, {status::bad_extent, "kv.heads", "0"}},
    {"negative KV heads", [](auto& a) { a.kv.heads = -2; }, {status::bad_extent, "kv.heads", "-2"}},
    {"negative tokens", [](auto& a) { a.kv.tokens = -1; }, {status::bad_extent, "kv.tokens", "-1"}},
    {"too many tokens",
     [](auto& a) { a.kv.tokens = std::int64_t{1} << 31; },
     {status::bad_extent, "kv.tokens", "2147483648"}},
    {"too large a capacity",
     [](auto& a) { a.kv.capacity = std::int64_t{1} << 61; },
     {status::bad_extent, "kv.capacity", "2305843009213693952"}},
    {"capacity", [](auto& a) { a.kv.capacity = 46; }, {status::bad_extent, "kv.capacity", "46"}},
    {"layout", [](auto& a) { a.kv.layout = static_cast<skim::kv_layout>(3); }, {status::bad_value, "kv.layout", "3"}},
    {"k null", [](auto& a) { a.kv.k.data = nullptr; }, {status::null_pointer, "kv.k.data", ""}},
    {"v null", [](auto& a) { a.kv.v.data = nullptr; }, {status::null_pointer, "kv.v.data", ""}},
    {"k type", [](auto& a) { a.kv.k.type = skim::element::none; }, {status::bad_type, "kv.k.type", "none"}},
    {"v type", [](auto& a) { a.kv.v.type = skim::element::none; }, {status::bad_type, "kv.v.type", "none"}},
    {"k of half a block", [](auto& a) { a.kv.k.type = skim::element::q8_0; }, {status::bad_extent, "kv.k.dim", "8"}},
    {"heads of v half a block apart",
     [](auto& a) {
       a.kv.v.type = skim::element::q8_0;
       a.kv.v.dim = 32;
       a.kv.v.head_stride = 48;
     },
     {status::bad_stride, "kv.v.head_stride", "48"}},
    {"out in blocks",
     [](auto& a) {
       a.out.type = skim::element::q8_0;
       a.out.extents[2] = 32;
       a.out.strides[0] = 6 * 32;
       a.out.strides[1] = 32;
     },
     {status::bad_type, "out.type", "q8_0"}},
    {"k dim", [](auto& a) { a.kv.k.dim = 0; }, {status::bad_extent, "kv.k.dim", "0"}},
    {"v dim", [](auto& a) { a.kv.v.dim = -4; }, {status::bad_extent, "kv.v.dim", "-4"}},
    {"large k dim", [](auto& a) { a.kv.k.dim = 4097; }, {status::unsupported, "kv.k.dim", "4097"}},
    {"k inner stride", [](auto& a) { a.kv.k.dim_stride = 2; }, {status::bad_stride, "kv.k.dim_stride", "2"}},
    {"v inner stride", [](auto& a) { a.kv.v.dim_stride = 0; }, {status::bad_stride, "kv.v.dim_stride", "0"}},
    {"k reach", [](auto& a) { a.kv.k.row_stride = huge; }, {status::bad_stride, "kv.k.row_stride", ""}},
    {"v reach", [](auto& a) { a.kv.v.head_stride = huge; }, {status::bad_stride, "kv.v.head_stride", ""}},
    {"rows of k", [](auto& a) { a.kv.k.rows = 49; }, {status::bad_extent, "kv.k.rows", "49"}},
    {"rows of v", [](auto& a) { a.kv.v.rows = 3; }, {status::bad_extent, "kv.v.rows", "3"}},
    {"heads of k", [](auto& a) { a.kv.k.heads = 1; }, {status::bad_extent, "kv.k.heads", "1"}},
    {"heads of v", [](auto& a) { a.kv.v.heads = 1; }, {status::bad_extent, "kv.v.heads", "1"}},
    {"scales' reach",
     [](auto& a) {
       static const float scale = 1;
       a.kv.k.scales = &scale;
       a.kv.k.scale_row_stride = huge;
     },
     {status::bad_stride, "kv.k.scale_row_stride (with heads and pages)", ""}},
    {"ring start",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::ring;
       a.kv.ring_start = a.kv.capacity;
     },
     {status::bad_value, "kv.ring_start", "50"}},
    {"negative ring start",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::ring;
       a.kv.ring_start = -1;
     },
     {status::bad_value, "kv.ring_start", "-1"}},
    {"block table null",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
     },
     {status::null_pointer, "kv.block_table", ""}},
    {"page size", [](auto& a) { a.kv.layout = skim::kv_layout::paged; }, {status::bad_extent, "kv.page_size", "0"}},
    {"pages",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
       a.kv.pages = -1;
     },
     {status::bad_extent, "kv.pages", "-1"}},
    {"a capacity of broken pages",
     [](auto& a) {
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 16;
     },
     {status::bad_extent, "kv.capacity", "50"}},
    {"pages of k",
     [](auto& a) {
       static const std::int32_t table = 0;
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
       a.kv.pages = 100;
       a.kv.block_table = &table;
     },
     {status::bad_extent, "kv.k.pages", "1"}},
    {"pages of v",
     [](auto& a) {
       static const std::int32_t table = 0;
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
       a.kv.pages = a.kv.k.pages = 100;
       a.kv.v.pages = 50;
       a.kv.block_table = &table;
     },
     {status::bad_extent, "kv.v.pages", "50"}},
    {"page stride",
     [](auto& a) {
       static const std::int32_t table = 0;
       a.kv.layout = skim::kv_layout::paged;
       a.kv.page_size = 1;
       a.kv.pages = a.kv.k.pages = a.kv.v.pages = 100;
       a.kv.block_table = &table;
       a.kv.k.page_stride = huge;
     },
     {status::bad_stride, "kv.k.page_stride", ""}},
    {"negative first position",
     [](auto& a) { a.kv.first_position = -1; },
     {status::bad_value, "kv.first_position", "-1"}},
    {"first position",
     [](auto& a) { a.kv.first_position = (std::int64_t{1} << 31) - 47; },
     {status::bad_value, "kv.first_position", "2147483601"}},
    {"positions' reach",
     [](auto& a) {
       static const std::int32_t position = 0;
       a.kv.positions = &position;
       a.kv.positions_stride = huge;
     },
     {status::bad_stride, "kv.positions_stride", ""}},
    {"norms' reach",
     [](auto& a) {
       static const float norm = 0;
       a.kv.inverse_norms = &norm;
       a.kv.inverse_norms_stride = -huge;
     },
     {status::bad_stride, "kv.inverse_norms_stride", ""}},
    {"k between two addresses",
     [](auto& a) { a.kv.k.data = static_cast<const char*>(a.kv.k.data) + 1; },
     {status::bad_value, "kv.k.data", ""}},
    {"a stride that is never taken",
     [](auto& a) { a.kv.k.page_stride = -std::numeric_limits<std::int64_t>::max(); },
     {status::bad_stride, "kv.k.page_stride", "-9223372036854775807"}},
    {"positions between two addresses",
     [](auto& a) { a.kv.positions = reinterpret_cast<const std::int32_t*>(static_cast<const char*>(a.q.data) + 1); },
     {status::bad_value, "kv.positions", ""}},
    {"norms between two addresses",
     [](auto& a) { a.kv.inverse_norms = reinterpret_cast<const float*>(static_cast<const char*>(a.q.data) + 1); },
     {status::bad_value, "kv.inverse_norms", ""}},
    {"lengths between two addresses",
     [](auto& a) { a.kv.lengths = reinterpret_cast<const std::int32_t*>(static_cast<const char*>(a.q.data) + 1); },
     {status::bad_value, "kv.lengths", ""}},
    {"the largest stride of positions",
     [](auto& a) {
       static const std::int32_t position = 0;
       a.kv.positions = &position;
       a.kv.positions_stride = std::numeric_limits<std::int64_t>::max();
     },
     {status::bad_stride, "kv.positions_stride", "9223372036854775807"}},
    {"lengths ahead", [](auto& a) { a.kv.lengths_ahead = -1; }, {status::bad_extent, "kv.lengths_ahead", "-1"}},
};

/// Faults of a cache whose values are said to lie in its keys, which are the keys' first four numbers.
void share_values(skim::attention_args& a) {
  a.kv = with_values_in_keys(a.kv, 4);
}
const std::vector<attention_fault> shared_value_faults{
    {"v and k in one place, unsaid",
     [](auto& a) { a.kv.v.data = a.kv.k.data; },
     {status::bad_value, "kv.v.data (that of kv.k, without values_in_keys)", ""}},
    {"v behind the first numbers of k",
     [](auto& a) {
       a.kv.v = a.kv.k;
       a.kv.v.dim = 4;
       a.kv.v.data = static_cast<const float*>(a.kv.k.data) + 7;
     },
     {status::bad_value, "kv.v.data (inside rows of kv.k; bytes behind it)", "28"}},
    {"k behind the first numbers of v",
     [](auto& a) {
       a.kv.v = a.kv.k;
       a.kv.v.dim = 4;
       a.kv.v.data = static_cast<const float*>(a.kv.k.data) - 3;
     },
     {status::bad_value, "kv.v.data (inside rows of kv.k; bytes behind it)", "-12"}},
    {"v elsewhere",
     [](auto& a) {
       const void* const v = a.kv.v.data;
       share_values(a);
       a.kv.v.data = v;
     },
     {status::bad_value, "kv.v.data (values_in_keys, differs from kv.k)", ""}},
    {"v longer than k",
     [](auto& a) {
       share_values(a);
       a.kv.v.dim = 9;
     },
     {status::bad_extent, "kv.v.dim (values_in_keys)", "9"}},
    {"another type",
     [](auto& a) {
       share_values(a);
       a.kv.v.type = skim::element::bf16;
     },
     {status::bad_type, "kv.v.type", "bf16"}},
    {"other rows",
     [](auto& a) {
       share_values(a);
       ++a.kv.v.row_stride;
     },
     {status::bad_stride, "kv.v.row_stride", "17"}},
    {"other heads",
     [](auto& a) {
       share_values(a);
       ++a.kv.v.head_stride;
     },
     {status::bad_stride, "kv.v.head_stride", "9"}},
    {"scales for values alone",
     [](auto& a) {
       static const float scale = 1;
       share_values(a);
       a.kv.v.scales = &scale;
     },
     {status::bad_value, "kv.v.scales (values_in_keys, differ from kv.k)", ""}},
};

const float infinite = std::numeric_limits<float>::infinity(), nan_value = std::numeric_limits<float>::quiet_NaN();

const std::vector<attention_fault> value_faults{
    {"scale NaN", [](auto& a) { a.scale = nan_value; }, {status::bad_value, "scale", "nan"}},
    {"scale infinite", [](auto& a) { a.scale = infinite; }, {status::bad_value, "scale", "inf"}},
    {"negative soft cap", [](auto& a) { a.soft_cap = -1; }, {status::bad_value, "soft_cap", "-1"}},
    {"soft cap NaN", [](auto& a) { a.soft_cap = nan_value; }, {status::bad_value, "soft_cap", "nan"}},
    {"soft cap without a finite inverse",
     [](auto& a) { a.soft_cap = 2e-39f; },
     {status::bad_value, "soft_cap", "2e-39"}},
    {"soft cap infinite", [](auto& a) { a.soft_cap = infinite; }, {status::bad_value, "soft_cap", "inf"}},
    {"mask left", [](auto& a) { a.mask.left = -1; }, {status::bad_value, "mask.left", "-1"}},
    {"mask right", [](auto& a) { a.mask.right = huge; }, {status::bad_value, "mask.right", "4611686018427387904"}},
    {"empty window", [](auto& a) { a.mask = skim::mask::window(0); }, {status::bad_value, "mask.left", "-1"}},
};

/// A good bias, and then one thing wrong with it.
void give_bias(skim::attention_args& a) {
  static const float values[6 * 7 * 50] = {};
  a.bias = skim::tensor_view<const float, 3>(values, {6, 7, 50});
}
const std::vector<attention_fault> bias_faults{
    {"bias null",
     [](auto& a) {
       give_bias(a);
       a.bias.data = nullptr;
     },
     {status::null_pointer, "bias.data", ""}},
    {"bias type",
     [](auto& a) {
       give_bias(a);
       a.bias.type = skim::element::none;
     },
     {status::bad_type, "bias.type", "none"}},
    {"bias of five heads",
     [](auto& a) {
       give_bias(a);
       a.bias.extents[0] = 5;
     },
     {status::bad_extent, "bias.extents[0]", "5"}},
    {"bias of six rows",
     [](auto& a) {
       give_bias(a);
       a.bias.extents[1] = 6;
     },
     {status::bad_extent, "bias.extents[1]", "6"}},
    {"bias of few keys",
     [](auto& a) {
       give_bias(a);
       a.bias.extents[2] = 46;
     },
     {status::bad_extent, "bias.extents[2]", "46"}},
    {"bias inner stride",
     [](auto& a) {
       give_bias(a);
       a.bias.strides[2] = 7;
     },
     {status::bad_stride, "bias.strides[2]", "7"}},
    {"bias reach",
     [](auto& a) {
       give_bias(a);
       a.bias.strides[0] = huge;
     },
     {status::bad_stride, "bias.strides[0]", ""}},
};

class attention_faults : public testing::TestWithParam<attention_fault> {};
INSTANTIATE_TEST_SUITE_P(tensors, attention_faults, testing::ValuesIn(tensor_faults));
INSTANTIATE_TEST_SUITE_P(cache, attention_faults, testing::ValuesIn(cache_faults));
INSTANTIATE_TEST_SUITE_P(shared_values, attention_faults, testing::ValuesIn(shared_value_faults));
INSTANTIATE_TEST_SUITE_P(values, attention_faults, testing::ValuesIn(value_faults));
INSTANTIATE_TEST_SUITE_P(bias, attention_faults, testing::ValuesIn(bias_faults));

TEST_P(attention_faults, are_named_and_nothing_is_written) {
  attention_inputs inputs(good_attention());
  skim::attention_args args = inputs.args();
  const skim::cpu::attention dense_op;
  const skim::cpu::attend attend_op;
  const skim::cpu::attention sparse_op{
      skim::quoka::paper(skim::queries::lowest_cosine(4), skim::retention::budget(10).dense_under(0))};
  ASSERT_TRUE(sparse_op.check(args).ok());
  aligned_memory workspace(1 << 22);
  GetParam().make(args);
  const expectation& expected = GetParam().expected;
  expect_report(check(args), expected);
  expect_report(check_indices(args), expected);
  const bool of_memory = expected.code == status::null_pointer ||
                         std::string(GetParam().name).find("between two addresses") != std::string::npos;
  if (!of_memory) {
    EXPECT_FALSE(check_shape(args));
    EXPECT_EQ(sparse_op.workspace_bytes(args, 1), 0u);
    EXPECT_EQ(sparse_op.state_bytes(args), 0u);
  } else {
    EXPECT_TRUE(check_shape(args).ok()) << "before there is memory";
    EXPECT_GT(sparse_op.workspace_bytes(args, 1), 0u);
  }

  const skim::serial_executor executor;
  std::vector<std::int32_t> indices(2 * 40, -7), counts(2, -7);
  std::vector<float> scores(2 * 50, -7);
  const skim::tensor_view<float, 2> scores_view(scores.data(), {2, 50});
  const skim::index_lists lists{indices.data(), counts.data(), 2, 40};
  const auto before = inputs.out().bytes();
  expect_report(dense_op.run(args, {}, workspace.get(), executor), expected);
  expect_report(attend_op.run(args, lists, workspace.get(), executor), expected);
  expect_report(sparse_op.run(args, {}, workspace.get(), executor), expected);
  expect_report(sparse_op.select(args, lists, {}, workspace.get(), executor), expected);
  expect_report(sparse_op.score(args, scores_view, {}, workspace.get(), executor), expected);
  expect_report(sparse_op.choose(args, scores_view, lists, workspace.get(), executor), expected);
  EXPECT_EQ(inputs.out().bytes(), before);
  EXPECT_EQ(inputs.lse().bytes(), std::vector<unsigned char>(inputs.lse().bytes().size(), 0xff));
  EXPECT_EQ(indices, std::vector<std::int32_t>(indices.size(), -7));
  EXPECT_EQ(counts, std::vector<std::int32_t>(counts.size(), -7));
  EXPECT_EQ(scores, std::vector<float>(scores.size(), -7));
}

TEST(Attention, KeysAndValuesMayDifferInTypeOrShareMemory) {
  attention_inputs inputs(good_attention());
  skim::attention_args args = inputs.args();
  args.kv.v.type = skim::element::bf16;
  EXPECT_TRUE(check(args).ok());
  args = inputs.args();
  share_values(args);
  EXPECT_TRUE(check(args).ok());
  give_bias(args);
  EXPECT_TRUE(check(args).ok());
}

/// A view that is not written may have its extents all the same; what `check` accepts, sizes are stated for.
TEST(Attention, AnLseWithoutMemoryIsNotWritten) {
  attention_inputs inputs(good_attention());
  skim::attention_args args = inputs.args();
  const skim::cpu::attention<> op;
  const std::size_t bytes = op.workspace_bytes(args, 1);
  args.lse.data = nullptr;
  EXPECT_TRUE(op.check(args).ok());
  EXPECT_EQ(op.workspace_bytes(args, 1), bytes);
  args.lse.extents[0] = 128;
  aligned_memory workspace(64);
  EXPECT_EQ(op.run(args, {}, workspace.get(), skim::serial_executor{}).code, status::bad_extent);
}

/// Of one head there is no stride from head to head: what it says does not hide that values lie inside keys.
TEST(Attention, ValuesInsideKeysOfOneHeadAreRefused) {
  std::vector<float> memory(40 * 24);
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(memory.data(), {4, 1, 24});
  args.out = skim::tensor_view<float, 3>(memory.data(), {4, 1, 16});
  args.kv = skim::contiguous_kv(skim::tensor_view<const float, 3>(memory.data(), {40, 1, 24}),
                                skim::tensor_view<const float, 3>(memory.data() + 8, {40, 1, 16}, {24, 16, 1}), 40);
  expect_report(check(args), {status::bad_value, "kv.v.data (inside rows of kv.k; bytes behind it)", "32"});
}

TEST(Attention, ScalesWithoutAllTheirDigitsAreRefused) {
  attention_inputs inputs(good_attention());
  skim::attention_args args = inputs.args();
  for (const float scale : {1e-40f, -1e-45f, 0x1p-121f}) {
    args.scale = scale;
    EXPECT_EQ(check(args).code, status::bad_value) << scale;
    EXPECT_STREQ(check(args).argument, "scale");
  }
  for (const float scale : {0x1p-120f, -0x1p-120f, 1e30f, -1e30f}) {
    args.scale = scale;
    EXPECT_TRUE(check(args).ok()) << scale;
  }
  args.scale = 0;
  args.soft_cap = 1e30f;
  EXPECT_TRUE(check(args).ok());
}

// Several sequences.

const std::vector<attention_fault> sequence_faults{
    {"negative count", [](auto& a) { a.sequence_count = -1; }, {status::bad_extent, "sequence_count", "-1"}},
    {"offsets null", [](auto& a) { a.offsets = nullptr; }, {status::null_pointer, "offsets", ""}},
    {"a batch too",
     [](auto& a) { a.batch.sequences = 3; },
     {status::bad_value, "batch.sequences (with sequences)", "3"}},
    {"no sequences", [](auto& a) { a.sequences = nullptr; }, {status::null_pointer, "sequences", ""}},
    {"negative count without sequences",
     [](auto& a) {
       a.sequences = nullptr;
       a.sequence_count = -5;
     },
     {status::bad_extent, "sequence_count", "-5"}},
    {"rows left over", [](auto& a) { a.sequence_count = 2; }, {status::bad_value, "offsets[sequence_count]", "7"}},
};

class sequence_arguments : public testing::TestWithParam<attention_fault> {};
INSTANTIATE_TEST_SUITE_P(sequences, sequence_arguments, testing::ValuesIn(sequence_faults));

attention_case good_sequences() {
  attention_case c = good_attention();
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
  const auto three_heads = [](auto& kv) { kv.heads = kv.k.heads = kv.v.heads = 3; };
  expect_fault(three_heads, {status::bad_extent, "sequences[s].heads", "3"});
  expect_fault([](auto& kv) { kv.k.dim = 7; }, {status::bad_extent, "sequences[s].k.dim", "7"});
  expect_fault([](auto& kv) { kv.v.dim = 3; }, {status::bad_extent, "sequences[s].v.dim", "3"});
  expect_fault([](auto& kv) { kv.k.type = skim::element::f16; }, {status::bad_type, "sequences[s].k.type", "f16"});
  expect_fault([](auto& kv) { kv.v.type = skim::element::bf16; }, {status::bad_type, "sequences[s].v.type", "bf16"});
  expect_fault([](auto& kv) { kv.tokens = 1; }, {status::bad_extent, "kv.tokens", "1"});
  static const float scale = 1;
  expect_fault([](auto& kv) { kv.v.scales = &scale; },
               {status::bad_value, "sequences[s].k.scales and v.scales (where others have none)", ""});
}

TEST(Sequences, OffsetsStartAtZeroAndAscend) {
  attention_inputs inputs(good_sequences());
  skim::attention_args args = inputs.args();
  const std::int64_t late[] = {1, 7, 7, 11}, back[] = {0, 7, 6, 11},
                     low[] = {0, 7, (std::numeric_limits<std::int64_t>::min)(), 11};
  args.offsets = late;
  expect_report(check(args), {status::bad_value, "offsets[0]", "1"});
  args.offsets = back;
  expect_report(check(args), {status::bad_value, "offsets[s + 1]", "6"});
  args.offsets = low;
  expect_report(check(args), {status::bad_value, "offsets[s + 1]", "-9223372036854775808"});
}

// A batch in one pool.

attention_case good_batch() {
  attention_case c = good_sequences();
  c.batch = true;
  c.layout = skim::kv_layout::paged;
  c.page_size = 16;
  return c;
}

const std::vector<attention_fault> batch_faults{
    {"negative count", [](auto& a) { a.batch.sequences = -1; }, {status::bad_extent, "batch.sequences", "-1"}},
    {"no pages",
     [](auto& a) { a.kv.layout = skim::kv_layout::ring; },
     {status::unsupported, "kv.layout (with batch)", "ring"}},
    {"tables null", [](auto& a) { a.batch.block_tables = nullptr; }, {status::null_pointer, "batch.block_tables", ""}},
    {"tokens null", [](auto& a) { a.batch.tokens = nullptr; }, {status::null_pointer, "batch.tokens", ""}},
    {"offsets null", [](auto& a) { a.batch.offsets = nullptr; }, {status::null_pointer, "batch.offsets", ""}},
    {"short tables", [](auto& a) { a.batch.table_stride = 3; }, {status::bad_extent, "batch.table_stride", "3"}},
    {"most rows", [](auto& a) { a.batch.most_rows = 48; }, {status::bad_extent, "batch.most_rows", "48"}},
    {"keys null", [](auto& a) { a.kv.k.data = nullptr; }, {status::null_pointer, "kv.k.data", ""}},
    {"lengths", [](auto& a) { a.kv.lengths = a.batch.tokens; }, {status::unsupported, "kv.lengths (with batch)", ""}},
    {"positions",
     [](auto& a) { a.kv.positions = a.batch.tokens; },
     {status::unsupported, "kv.positions (with batch)", ""}},
    {"norms",
     [](auto& a) {
       static const float norm = 0;
       a.kv.inverse_norms = &norm;
     },
     {status::unsupported, "kv.inverse_norms (with batch)", ""}},
};

class batch_arguments : public testing::TestWithParam<attention_fault> {};
INSTANTIATE_TEST_SUITE_P(batches, batch_arguments, testing::ValuesIn(batch_faults));

TEST_P(batch_arguments, are_named) {
  attention_inputs inputs(good_batch());
  skim::attention_args args = inputs.args();
  ASSERT_TRUE(check_indices(args).ok());
  GetParam().make(args);
  expect_report(check(args), GetParam().expected);
  const skim::cpu::attention<> op;
  expect_report(op.run(args, {}, {}, skim::serial_executor{}), GetParam().expected);
}

/// A batch's numbers lie in memory that the host may not reach: `check` leaves them alone, operations on the CPU read them.
TEST(Batches, NumbersAreReadByCheckIndicesAndByTheOperation) {
  attention_inputs inputs(good_batch());
  skim::attention_args args = inputs.args();
  const auto expect_fault = [&](expectation expected) {
    EXPECT_TRUE(check(args).ok());
    expect_report(check_indices(args), expected);
    expect_report(skim::cpu::attention<>{}.check(args), expected);
  };
  std::vector<std::int32_t> offsets(args.batch.offsets, args.batch.offsets + 4);
  std::vector<std::int32_t> tokens(args.batch.tokens, args.batch.tokens + 3);
  const auto good_offsets = offsets, good_tokens = tokens;
  args.batch.offsets = offsets.data();
  args.batch.tokens = tokens.data();
  offsets[0] = 1;
  expect_fault({status::bad_index, "batch.offsets[0]", "1"});
  offsets = {0, 7, 6, 11};
  expect_fault({status::bad_index, "batch.offsets[s + 1]", "6"});
  offsets = {0, 8, 8, 11};
  expect_fault({status::bad_index, "batch.offsets[s + 1]", "8"});
  offsets = {0, 7, 7, 10};
  expect_fault({status::bad_index, "batch.offsets[sequences]", "10"});
  offsets = good_offsets;
  tokens[0] = 6;
  expect_fault({status::bad_index, "batch.tokens[s]", "6"});
  tokens[0] = 48;
  expect_fault({status::bad_index, "batch.tokens[s]", "48"});
  tokens = good_tokens;
  ASSERT_TRUE(check_indices(args).ok());
  std::vector<std::int32_t> tables(args.batch.block_tables, args.batch.block_tables + 3 * args.batch.table_stride);
  args.batch.block_tables = tables.data();
  tables[static_cast<std::size_t>(2 * args.batch.table_stride)] = -1;
  expect_report(check_indices(args), {status::bad_index, "kv.block_table[i]", "-1"});
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
  attention_case c = good_attention();
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
  attention_case c = good_attention();
  c.layout = skim::kv_layout::paged;
  c.page_size = 4;
  c.positions = positions_kind::holes;
  c.lengths = c.sinks = c.inverse_norms = true;
  attention_inputs inputs(c);
  skim::attention_args args = inputs.args();
  std::uintptr_t address = 64;
  const auto nowhere = [&](auto*& pointer) {
    pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(address += 64);
  };
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
  const skim::cpu::attention op{
      skim::quoka::paper(skim::queries::lowest_cosine(4), skim::retention::budget(10).dense_under(0))};
  EXPECT_TRUE(op.check(args).ok());
  EXPECT_GT(op.workspace_bytes(args, 2), 0u);
  EXPECT_EQ(op.list_capacity(args), 10);
  EXPECT_GT(op.cost(args).flops, 0);
}

// What `check` may not read.

TEST(CheckIndices, BlockTablesPointIntoThePool) {
  attention_case c = good_attention();
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
    expect_report(r, {status::bad_index, "kv.block_table[i]", std::to_string(wrong)});
    EXPECT_EQ(r.expected.whole, wrong < 0 ? 0 : args.kv.pages - 1);
    table[5] = right;
  }
  table.back() = -1;  // a page behind the last token is not read
  EXPECT_TRUE(check_indices(args).ok());
}

TEST(CheckIndices, LengthsLieBetweenTheChunkAndAllTokens) {
  attention_inputs inputs(good_attention());
  skim::attention_args args = inputs.args();
  std::int32_t lengths[] = {47, 7};
  args.kv.lengths = lengths;
  EXPECT_TRUE(check_indices(args).ok());
  lengths[1] = 6;
  expect_report(check_indices(args), {status::bad_index, "kv.lengths[h]", "6"});
  lengths[1] = 48;
  expect_report(check_indices(args), {status::bad_index, "kv.lengths[h]", "48"});
}

TEST(CheckIndices, PositionsAreNotNegative) {
  attention_inputs inputs(good_attention());
  skim::attention_args args = inputs.args();
  std::vector<std::int32_t> positions(static_cast<std::size_t>(2 * args.kv.capacity));
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
  args.kv.positions = positions.data();
  args.kv.positions_stride = args.kv.capacity;
  EXPECT_TRUE(check_indices(args).ok());
  positions[static_cast<std::size_t>(args.kv.capacity) + 3] = -3;
  expect_report(check_indices(args), {status::bad_index, "kv.positions[h][i]", "-3"});
  args.kv.positions_stride = 0;
  EXPECT_TRUE(check_indices(args).ok()) << "all heads share the first row";
}

TEST(CheckIndices, ListsAscendWithinThePast) {
  attention_inputs inputs(good_attention());
  const skim::attention_args args = inputs.args();
  std::vector<std::int32_t> indices{0, 5, 39, 1, 2, 3}, counts{3, 3};
  const auto expect_fault = [&](skim::index_lists lists, expectation expected) {
    expect_report(check_indices(args, &lists), expected);
  };
  const skim::index_lists good{indices.data(), counts.data(), 2, 3};
  ASSERT_TRUE(check_indices(args, &good).ok());
  expect_fault({indices.data(), counts.data(), 3, 3}, {status::bad_extent, "lists.rows", "3"});
  expect_fault({indices.data(), nullptr, 2, 3}, {status::null_pointer, "lists.counts", ""});
  expect_fault({nullptr, counts.data(), 2, 3}, {status::null_pointer, "lists.indices", ""});
  expect_fault({indices.data(), counts.data(), 2, 2}, {status::bad_index, "lists.counts[r]", "3"});
  expect_fault({indices.data(), counts.data(), 2, -1}, {status::bad_extent, "lists.capacity", "-1"});
  expect_fault({indices.data(), counts.data(), 2, 3, -1}, {status::bad_extent, "lists.block_rows", "-1"});
  expect_fault({indices.data(), counts.data(), 2, 3, 6}, {status::bad_extent, "lists.rows", "2"});
  counts[1] = -1;
  expect_fault(good, {status::bad_index, "lists.counts[r]", "-1"});
  counts[1] = 3;
  indices[2] = 40;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]", "40"});
  indices[2] = 5;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]", "5"});
  indices[2] = 4;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]", "4"});
  indices[2] = 39;
  indices[0] = -1;
  expect_fault(good, {status::bad_index, "lists.indices[r][i]", "-1"});
}

/// The past of a block is all that stands before it.
TEST(CheckIndices, ListsOfABlockReachItsOwnPast) {
  attention_inputs inputs(good_attention());  // 7 rows behind 40: blocks of 6 and of 1
  const skim::attention_args args = inputs.args();
  std::vector<std::int32_t> indices{39, 39, 45, 45}, counts{1, 1, 1, 1};
  const skim::index_lists lists{indices.data(), counts.data(), 4, 1, 6};
  EXPECT_TRUE(check_indices(args, &lists).ok());
  indices[1] = 40;
  expect_report(check_indices(args, &lists), {status::bad_index, "lists.indices[r][i]", "40"});
  indices[1] = 0;
  indices[2] = 46;
  expect_report(check_indices(args, &lists), {status::bad_index, "lists.indices[r][i]", "46"});
}

// Memory and lists given to an operation.

class short_memory : public testing::Test {
 protected:
  attention_inputs inputs_{good_attention()};
  skim::attention_args args_ = inputs_.args();
  const skim::cpu::attention<skim::quoka> op_{
      skim::quoka::paper(skim::queries::lowest_cosine(4), skim::retention::budget(10).dense_under(0))};
  const std::size_t bytes_ = op_.workspace_bytes(args_, 1);
  aligned_memory workspace_{bytes_ + 64};
  std::vector<unsigned char> untouched_ = inputs_.out().bytes();

  void expect_refused(skim::memory workspace) {
    const skim::report r = op_.run(args_, {}, workspace, skim::serial_executor{});
    const std::size_t given = workspace.data ? workspace.bytes : 0;
    expect_report(r, {status::short_workspace, "workspace.bytes", std::to_string(given)});
    EXPECT_EQ(r.expected.whole, static_cast<std::int64_t>(bytes_));
    std::vector<std::int32_t> indices(20, -7), counts(2, -7);
    const skim::index_lists lists{indices.data(), counts.data(), 2, 10};
    expect_report(op_.select(args_, lists, {}, workspace, skim::serial_executor{}),
                  {status::short_workspace, "workspace.bytes", std::to_string(given)});
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
  EXPECT_EQ(r.expected.whole, static_cast<std::int64_t>(op_.workspace_bytes(args_, 3)));
  EXPECT_EQ(inputs_.out().bytes(), untouched_);
}

TEST_F(short_memory, lists_are_refused) {
  std::vector<std::int32_t> indices(20, -7), counts(2, -7);
  const auto expect_fault = [&](skim::index_lists lists, expectation expected) {
    expect_report(op_.select(args_, lists, {}, workspace_.get(), skim::serial_executor{}), expected);
    EXPECT_EQ(counts, std::vector<std::int32_t>(2, -7));
  };
  expect_fault({indices.data(), counts.data(), 1, 10}, {status::bad_extent, "lists.rows", "1"});
  expect_fault({indices.data(), counts.data(), 2, 9}, {status::bad_extent, "lists.capacity", "9"});
  expect_fault({indices.data(), counts.data(), 2, -1}, {status::bad_extent, "lists.capacity", "-1"});
  expect_fault({indices.data(), nullptr, 2, 10}, {status::null_pointer, "lists.counts", ""});
  expect_fault({nullptr, counts.data(), 2, 10}, {status::null_pointer, "lists.indices", ""});
  expect_fault({indices.data(), counts.data(), 2, 10, 5}, {status::bad_value, "lists.block_rows", "5"});
}

TEST_F(short_memory, scores_are_refused) {
  std::vector<float> scores(100, -7);
  std::vector<std::int32_t> indices(20, -7), counts(2, -7);
  const skim::index_lists lists{indices.data(), counts.data(), 2, 10};
  const auto expect_fault = [&](skim::tensor_view<float, 2> view, expectation expected) {
    expect_report(op_.score(args_, view, {}, workspace_.get(), skim::serial_executor{}), expected);
    expect_report(op_.choose(args_, view, lists, workspace_.get(), skim::serial_executor{}), expected);
    EXPECT_EQ(scores, std::vector<float>(100, -7));
    EXPECT_EQ(counts, std::vector<std::int32_t>(2, -7));
  };
  expect_fault({nullptr, {2, 40}}, {status::null_pointer, "scores.data", ""});
  expect_fault({scores.data(), {1, 40}}, {status::bad_extent, "scores.extents[0]", "1"});
  expect_fault({scores.data(), {2, 39}}, {status::bad_extent, "scores.extents[1]", "39"});
  expect_fault({scores.data(), {2, 40}, {1, 2}}, {status::bad_stride, "scores.strides[1]", "2"});
  EXPECT_TRUE(op_.score(args_, {scores.data(), {2, 50}}, {}, workspace_.get(), skim::serial_executor{}).ok());
}

/// A selector with state.
struct remembering_selector {
  skim::report check(const skim::attention_args&) const { return {}; }
  std::int64_t list_capacity(const skim::attention_args&) const { return 0; }
  std::size_t state_bytes(const skim::attention_args&) const { return 128; }
  void select(const skim::attention_args&, const skim::index_lists& lists, skim::memory state, skim::memory,
              skim::executor_ref executor) const {
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) {
      lists.counts[row] = 0;
      static_cast<char*>(state.data)[row] = 1;
    });
  }
};

TEST(ShortState, IsRefused) {
  attention_inputs inputs(good_attention());
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<remembering_selector> op;
  aligned_memory workspace(op.workspace_bytes(args, 1)), state(128);
  ASSERT_EQ(op.state_bytes(args), 128u);
  const auto untouched = inputs.out().bytes();
  for (const skim::memory given : {skim::memory{state.data(), 127}, skim::memory{nullptr, 128}, skim::memory{}}) {
    expect_report(op.run(args, given, workspace.get(), skim::serial_executor{}),
                  {status::short_state, "state.bytes", std::to_string(given.data ? given.bytes : 0)});
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
  EXPECT_EQ(argument(retention::share(-1e-50)), "keep.fraction");
  EXPECT_EQ(argument(retention::share(1 + 1e-9)), "keep.fraction");
  EXPECT_EQ(argument(retention{5, -1e-50, 0, 0}), "keep.fraction");
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

TEST(Retention, BoundsOfDenseBlocksAreChecked) {
  using skim::retention;
  const retention ten = retention::budget(10);
  expect_report(check(ten.dense_under(-2)), {status::bad_value, "keep.dense_below", "-2"});
  expect_report(check(ten.dense_under(0, -2)), {status::bad_value, "keep.rows_below", "-2"});
  expect_report(check(ten.for_every(-1)), {status::bad_value, "keep.every", "-1"});
  expect_report(check(ten.dense_under(huge)), {status::bad_value, "keep.dense_below", ""});
  EXPECT_TRUE(check(ten.dense_under(-1, -1)).ok());
  const retention all = ten.dense_under(5, 6).for_every(7);
  EXPECT_EQ(all.count, 10);
  EXPECT_EQ(all.dense_below, 5);
  EXPECT_EQ(all.rows_below, 6);
  EXPECT_EQ(all.every, 7);
}

TEST(Retention, DenseBlocksHaveAShortPastOrFewRows) {
  using skim::retention;
  const skim::dense_crossing measured{100, 4};
  const retention ten = retention::budget(10);
  const auto dense = [&](const retention& keep, std::int64_t past, std::int64_t rows) {
    return skim::runs_dense(keep, past, rows, measured);
  };
  EXPECT_TRUE(dense(ten.dense_under(0), 10, 50)) << "nothing to leave out";
  EXPECT_FALSE(dense(ten.dense_under(0), 11, 1)) << "0 is none, not the measured one";
  EXPECT_TRUE(dense(ten, 99, 50));
  EXPECT_FALSE(dense(ten, 100, 50));
  EXPECT_FALSE(dense(ten, 100, 1)) << "rows_below is 0 unless asked for";
  EXPECT_TRUE(dense(ten.dense_under(-1, -1), 100, 3));
  EXPECT_FALSE(dense(ten.dense_under(-1, -1), 100, 4));
  EXPECT_TRUE(dense(ten.dense_under(0, 9), 100, 8));
  // Lists have room for the longest past that is read whole.
  EXPECT_EQ(skim::list_capacity(ten, 1000, measured), 99);
  EXPECT_EQ(skim::list_capacity(ten, 50, measured), 50);
  EXPECT_EQ(skim::list_capacity(ten.dense_under(0), 1000, measured), 10);
  EXPECT_EQ(skim::list_capacity(ten.dense_under(0, 2), 1000, measured), 1000);
}

TEST(Selectors, ParametersAreChecked) {
  attention_inputs inputs(good_attention());
  const skim::attention_args args = inputs.args();
  const auto expect_fault = [&](const auto& selector, const char* argument, const char* got) {
    const skim::cpu::attention op{selector};
    const auto untouched = inputs.out().bytes();
    aligned_memory workspace(1 << 20);
    expect_report(op.check(args), {status::bad_value, argument, got});
    expect_report(op.check_shape(args), {status::bad_value, argument, got});
    expect_report(op.run(args, {}, workspace.get(), skim::serial_executor{}), {status::bad_value, argument, got});
    EXPECT_EQ(op.workspace_bytes(args, 1), 0u);
    EXPECT_EQ(inputs.out().bytes(), untouched);
  };
  const skim::retention ten = skim::retention::budget(10);
  skim::quoka policy = skim::quoka::paper(skim::queries::lowest_cosine(4), ten);
  expect_fault(skim::quoka::paper(skim::queries::lowest_cosine(0), ten), "queries.n", "0");
  expect_fault(skim::quoka::paper(skim::queries::farthest_point(-1), ten), "queries.n", "-1");
  expect_fault(skim::quoka::paper(skim::queries::all(), skim::retention::budget(0)), "keep.count", "0");
  expect_fault(skim::quoka::paper(skim::queries::all(), skim::retention::share(1.5)), "keep.fraction", "1.5");
  expect_fault(skim::quoka::paper(skim::queries::all(), ten.for_every(-3)), "keep.every", "-3");
  policy.queries.choice = static_cast<skim::query_choice>(9);
  expect_fault(policy, "queries.choice", "9");
  policy = skim::quoka::paper(skim::queries::lowest_cosine(4), ten, static_cast<skim::similarity>(3));
  expect_fault(policy, "similarity", "3");
  policy =
      skim::quoka::paper(skim::queries::lowest_cosine(4), ten, skim::similarity::dot, static_cast<skim::reduction>(3));
  expect_fault(policy, "reduce", "3");
  for (const std::int64_t width : {-1, 0, 4, 65}) {
    policy = skim::quoka{};
    policy.smooth = width;
    expect_fault(policy, "smooth", std::to_string(width).c_str());
  }
  policy = skim::quoka{};
  policy.queries.samples = 0;
  expect_fault(policy, "queries.samples", "0");
  policy = skim::quoka{};
  policy.queries.rows = static_cast<skim::query_rows>(2);
  expect_fault(policy, "queries.rows", "2");
  policy.queries.rows = skim::query_rows::group_means;
  expect_fault(policy, "queries.rows (need is of a head's own rows)", "group_means");
  policy.queries = {skim::query_choice::farthest_point, 4};
  expect_fault(policy, "queries.rows (this choice is made on group means)", "own");
  policy.queries = skim::queries::lowest_cosine(4);
  expect_fault(policy, "similarity (the paper's choice pairs queries of different tokens)", "standardised");
  policy.queries = skim::queries::needed(4);
  policy.reduce = skim::reduction::mean;
  expect_fault(policy, "reduce (with standardised scores)", "mean");
  policy = skim::quoka{};
  policy.keep = skim::retention::preset(0);
  expect_fault(policy, "keep.count", "0");
  policy.keep = skim::retention::budget(100, 4, 128);  // what a host sets does not shrink
  expect_fault(policy, "keep.recent", "128");
  expect_fault(skim::sink_window{skim::retention::budget(0)}, "keep.count", "0");
  expect_fault(skim::sink_window{skim::retention::budget(10, 11)}, "keep.sinks", "11");
  expect_fault(skim::sink_window{skim::retention::budget(10, 1, 2)}, "keep.recent (sink_window derives it)", "2");
}

TEST(Report, DescribesItselfInOneLine) {
  char text[200];
  EXPECT_STREQ(describe(skim::report{}, text, sizeof text), "ok");
  const skim::report r =
      skim::detail::part_fault(status::bad_group, "q", skim::part::extents, 1, 7, 2, "a multiple of");
  EXPECT_STREQ(describe(r, text, sizeof text),
               "query heads are no multiple of KV heads: q.extents[1] is 7, expected a multiple of 2");
  const skim::report null =
      skim::detail::part_fault(status::null_pointer, "q", skim::part::data, 0, skim::quantity(), skim::quantity());
  EXPECT_STREQ(describe(null, text, sizeof text), "null pointer: q.data is null");
  EXPECT_STREQ(describe(skim::null_fault("offsets"), text, sizeof text), "null pointer: offsets is null");
  EXPECT_STREQ(describe(skim::detail::check_same_type(skim::element::f16, skim::element::bf16, "kv.v"), text, 200),
               "bad element type: kv.v.type is f16, expected bf16");
  EXPECT_STREQ(describe(skim::detail::check_real("scale", nan_value, -1, 1), text, sizeof text),
               "value out of range: scale is nan, expected a finite number of at least -1");
  EXPECT_STREQ(describe(check(skim::retention::share(1 + 1e-9)), text, sizeof text),
               "value out of range: keep.fraction is 1.0000000010000001, expected above 0 and at most 1");
  EXPECT_STREQ(describe(skim::quantity(0x1.fffffep127), text, sizeof text), "3.40282347e+38");
  EXPECT_STREQ(describe(skim::detail::check_real("scale", 1.1f, -1, 1), text, sizeof text),
               "value out of range: scale is 1.1, expected at most 1");
  EXPECT_STREQ(describe(skim::detail::check_real("scale", 2.5f, -1, 1), text, sizeof text),
               "value out of range: scale is 2.5, expected at most 1");
  const volatile std::size_t few = 5;  // volatile: compilers would warn that the line is cut
  EXPECT_STREQ(describe(r, text, few), "quer");
  EXPECT_FALSE(r);
  for (int code = 0; code <= static_cast<int>(status::unsupported); ++code) {
    EXPECT_STRNE(to_string(static_cast<status>(code)), "unknown status");
  }
}

TEST(Blocks, LieAtEvenAddresses) {
  alignas(2) char memory[2 * 34 + 2] = {};
  const auto check = [&](std::int64_t at) {
    const skim::tensor_view<const void, 3> blocks(memory + at, {2, 1, 32}, skim::element::q8_0);
    return skim::detail::check_tensor(blocks, "blocks");
  };
  EXPECT_TRUE(check(2).ok());
  expect_report(check(1), {status::bad_value, "blocks.data", ""});
}

}  // namespace
