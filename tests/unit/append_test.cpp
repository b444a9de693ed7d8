// SPDX-License-Identifier: Apache-2.0
// cpu::append against the reference, byte by byte, with everything around the written rows untouched.
#include "support/attention_sample.hpp"
#include "support/executors.hpp"
#include "support/faults.hpp"

#include <skim/cpu/append.hpp>
#include <skim/reference/append.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using skim::element;

struct append_case {
  cache_shape cache;
  skim::element k_type = skim::element::f32, v_type = skim::element::f32;
  std::int64_t Tq = 0, Tk = 0;
  memory_order order = memory_order::token_major;
  bool shared_positions = false, lengths = false;
};

std::ostream& operator<<(std::ostream& to, const append_case& c) {
  return to << "cache " << to_string(c.cache.type) << " " << to_string(c.cache.v_type) << ", k " << to_string(c.k_type)
            << ", v " << to_string(c.v_type) << ", D " << c.cache.D << ", Dv " << c.cache.Dv << ", Hk " << c.cache.heads
            << ", Tq " << c.Tq << ", Tk " << c.Tk << ", layout " << static_cast<int>(c.cache.layout) << ", page "
            << c.cache.page_size << ", order " << static_cast<int>(c.cache.order) << ", padding " << c.cache.padding
            << ", shift " << c.cache.shift << ", values in keys " << c.cache.values_in_keys << ", positions "
            << c.cache.positions << c.shared_positions << ", norms " << c.cache.inverse_norms << ", lengths "
            << c.lengths;
}

std::vector<append_case> append_sample() {
  const std::vector<head_dims> dims = sampled_dims();
  std::vector<append_case> cases;
  const pairwise_sample sample({5, 3, 3, static_cast<int>(dims.size()), 3, 4, 3, 5, 3, 3, 2, 2, 3, 2, 2, 7});
  for (const auto& row : sample.rows()) {
    const int* next = row.data();
    const auto take = [&next] { return static_cast<std::size_t>(*next++); };
    append_case c;
    c.cache.type = cache_types[take()];
    c.k_type = element_types[take()];
    c.v_type = element_types[take()];
    const head_dims size = dims[take()];
    c.cache.D = size.D;
    c.cache.Dv = size.Dv;
    c.cache.heads = static_cast<std::int64_t>(take()) + 1;
    c.Tq = std::vector<std::int64_t>{0, 1, 7, 40}[take()];
    c.Tk = std::vector<std::int64_t>{0, 5, 61}[take()];
    const cache_form form = sampled_forms[take()];
    c.cache.layout = form.layout;
    c.cache.page_size = form.page_size;
    c.cache.order = static_cast<memory_order>(take());
    c.order = static_cast<memory_order>(take());
    c.cache.padding = take() ? 3 : 0;
    c.cache.shift = static_cast<std::int64_t>(take());
    const std::size_t positions = take();
    c.cache.positions = positions > 0;
    c.shared_positions = positions > 1;
    c.cache.inverse_norms = take();
    c.lengths = take();
    const std::size_t values = take();  // of K's type, inside keys, of a type of their own
    c.cache.values_in_keys = values == 1 && size.Dv <= size.D;
    if (values > 1 && c.cache.order != memory_order::interleaved) c.cache.v_type = cache_types[values - 2];
    const auto has = [&](element type) { return c.cache.type == type || c.cache.v_type == type; };
    if (has(element::int8)) c.cache.scales = true;
    if (has(element::q8_0)) {  // whole blocks
      c.cache.D = (c.cache.D + 31) / 32 * 32;
      c.cache.Dv = (c.cache.Dv + 31) / 32 * 32;
      c.cache.padding = c.cache.padding > 0 ? 32 : 0;
      c.cache.shift *= 32;
    }
    c.cache.capacity = (c.Tk + c.Tq + 1 + form.page_size) / form.page_size * form.page_size;
    if (c.cache.layout == skim::kv_layout::ring) c.cache.ring_start = c.cache.capacity - 1 - c.Tk;  // the chunk wraps
    cases.push_back(c);
  }
  return cases;
}

/// A chunk and a cache, which a kernel and the reference fill alike.
struct append_run {
  cache_storage cache;
  strided_tensor k, v;
  std::vector<std::int32_t> lengths;
  skim::append_args args;

  explicit append_run(const append_case& c)
      : cache(c.cache),
        k({c.Tq, c.cache.heads, c.cache.D, c.k_type, c.order, c.cache.padding, c.cache.shift}),
        v({c.Tq, c.cache.heads, c.cache.Dv, c.v_type, c.order, c.cache.padding, c.cache.shift}) {
    std::vector<float> keys = normal_values(c.Tq * c.cache.heads * c.cache.D, 11);
    std::fill_n(keys.begin(), std::min<std::size_t>(keys.size(), static_cast<std::size_t>(c.cache.D)), 0.0f);
    k.fill(keys);
    v.fill(normal_values(c.Tq * c.cache.heads * c.cache.Dv, 12));
    args.k = k.view();
    args.v = v.view();
    args.kv = cache.view(c.Tk + c.Tq);
    if (c.shared_positions) args.kv.positions_stride = 0;
    for (std::int64_t h = 0; h < c.cache.heads; ++h) {
      lengths.push_back(static_cast<std::int32_t>(c.Tq + c.Tk / (h + 1)));
    }
    // Heads that share a row of positions must be of one length.
    if (c.lengths && !c.shared_positions) args.kv.lengths = lengths.data();
    args.position = 3 * c.Tk + 1000;
  }
};

void expect_same(append_run& got, append_run& expected, const append_case& c) {
  EXPECT_EQ(got.cache.k_bytes(), expected.cache.k_bytes());
  EXPECT_EQ(got.cache.v_bytes(), expected.cache.v_bytes());
  const auto bits = [](const std::vector<float>& scales) {
    std::vector<std::uint32_t> all(scales.size());
    if (!all.empty()) std::memcpy(all.data(), scales.data(), scales.size() * sizeof(float));
    return all;
  };
  EXPECT_EQ(bits(got.cache.k_scales()), bits(expected.cache.k_scales()));
  EXPECT_EQ(bits(got.cache.v_scales()), bits(expected.cache.v_scales()));
  const double tolerance = 0x1p-24 * ((c.cache.scales ? 5 : 4) + static_cast<double>(c.cache.D) / 8);
  for (std::int64_t i = 0; i < c.cache.heads * c.cache.capacity; ++i) {
    if (c.cache.positions) {
      EXPECT_EQ(got.args.kv.positions[i], expected.args.kv.positions[i]) << "entry " << i;
    }
    if (!c.cache.inverse_norms) continue;
    const double a = static_cast<double>(got.args.kv.inverse_norms[i]);
    const double b = static_cast<double>(expected.args.kv.inverse_norms[i]);
    if (std::isnan(b)) {
      EXPECT_TRUE(std::isnan(a)) << "entry " << i;
    } else if (a != b) {  // infinite for keys below 1e-38
      EXPECT_NEAR(a, b, tolerance * b) << "entry " << i;
    }
  }
}

TEST(Append, EqualsTheReference) {
  for (const append_case& c : append_sample()) {
    SCOPED_TRACE(testing::Message() << c);
    append_run got(c), expected(c);
    ASSERT_TRUE(skim::cpu::append(got.args, skim::serial_executor{}).ok());
    skim::reference::append(expected.args);
    expect_same(got, expected, c);
    if (HasFailure()) return;
  }
}

class append_executors : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(kinds, append_executors, testing::ValuesIn(every_executor));

TEST_P(append_executors, write_the_same) {
  append_case c;
  c.cache = cache_shape{3, 40, 24, 64};
  c.cache.type = skim::element::bf16;
  c.cache.positions = c.cache.inverse_norms = true;
  c.Tq = 31;
  c.Tk = 20;
  append_run got(c), expected(c);
  run_on(GetParam(), [&](const auto& executor) { EXPECT_TRUE(skim::cpu::append(got.args, executor).ok()); });
  skim::reference::append(expected.args);
  expect_same(got, expected, c);
}

class key_sizes : public testing::TestWithParam<float> {};
INSTANTIATE_TEST_SUITE_P(sizes, key_sizes,
                         testing::Values(1e-44f, 1e-38f, 1e-25f, 1e-20f, 1e-16f, 1.0f, 1e18f, 1e19f, 1e30f, 3e38f));

TEST_P(key_sizes, do_not_overflow_norms) {
  append_case c;
  c.cache = cache_shape{1, 33, 1, 4};
  c.cache.inverse_norms = true;
  c.Tq = 2;
  append_run got(c), expected(c);
  for (append_run* run : {&got, &expected}) run->k.fill(std::vector<float>(66, GetParam()));
  ASSERT_TRUE(skim::cpu::append(got.args, skim::serial_executor{}).ok());
  skim::reference::append(expected.args);
  expect_same(got, expected, c);
}

TEST(Append, KeepsNanKeysApart) {
  append_case c;
  c.cache = cache_shape{1, 8, 8, 4};
  c.cache.inverse_norms = true;
  c.Tq = 3;
  append_run run(c);
  std::vector<float> keys(24, 1.0f);
  keys[9] = std::numeric_limits<float>::quiet_NaN();
  keys[17] = std::numeric_limits<float>::infinity();
  run.k.fill(keys);
  ASSERT_TRUE(skim::cpu::append(run.args, skim::serial_executor{}).ok());
  EXPECT_NEAR(run.args.kv.inverse_norms[0], 1 / std::sqrt(8.0f), 1e-6f);
  EXPECT_TRUE(std::isnan(run.args.kv.inverse_norms[1]));
  EXPECT_EQ(run.args.kv.inverse_norms[2], 0.0f);
}

/// Values inside keys: a token is stored once, and no v is looked at.
TEST(Append, StoresValuesInKeysOnce) {
  append_case c;
  c.cache = cache_shape{2, 40, 24, 20};
  c.cache.type = skim::element::f16;
  c.cache.values_in_keys = true;
  c.Tq = 5;
  c.Tk = 10;
  append_run run(c), expected(c);
  run.args.v = {};
  ASSERT_TRUE(skim::cpu::append(run.args, skim::serial_executor{}).ok());
  skim::reference::append(expected.args);
  expect_same(run, expected, c);
  EXPECT_TRUE(run.cache.v_bytes().empty());
  for (std::int64_t slot = 10; slot < 15; ++slot) {
    for (std::int64_t d = 0; d < 24; ++d) {
      const float key = skim::load_element(run.k.view().at(slot - 10, 1), skim::element::f32, d);
      const void* const value = run.args.kv.row_address(run.args.kv.v, 1, slot);
      EXPECT_EQ(skim::load_element(value, skim::element::f16, d), skim::to_float(skim::from_float<skim::f16>(key)));
    }
  }
}

TEST(Append, IndicesAreReadByCheckIndices) {
  append_case c;
  c.cache = cache_shape{2, 8, 4, 20};
  c.Tq = 5;
  c.Tk = 10;
  append_run run(c);
  EXPECT_TRUE(check_indices(run.args).ok());
  const std::int32_t lengths[] = {15, 4};
  run.args.kv.lengths = lengths;
  EXPECT_TRUE(check(run.args).ok()) << "follows no pointer";
  expect_report(check_indices(run.args), {skim::status::bad_index, "kv.lengths[h]", "4"});
}

TEST(Append, RefusesBadInputAndWritesNothing) {
  append_case c;
  c.cache = cache_shape{2, 8, 4, 20};
  c.Tq = 5;
  c.Tk = 10;
  const auto expect_fault = [&](const auto& make, const expectation& expected) {
    SCOPED_TRACE(expected.argument);
    append_run run(c);
    const auto k = run.cache.k_bytes(), v = run.cache.v_bytes();
    make(run.args);
    expect_report(skim::cpu::append(run.args, skim::serial_executor{}), expected);
    EXPECT_EQ(run.cache.k_bytes(), k);
    EXPECT_EQ(run.cache.v_bytes(), v);
  };
  using skim::element;
  using skim::status;
  expect_fault([](auto& a) { a.k.data = nullptr; }, {status::null_pointer, "k.data", ""});
  expect_fault([](auto& a) { a.v.data = nullptr; }, {status::null_pointer, "v.data", ""});
  expect_fault([](auto& a) { a.kv.k.data = nullptr; }, {status::null_pointer, "kv.k.data", ""});
  expect_fault([](auto& a) { a.k.type = element::none; }, {status::bad_type, "k.type", "none"});
  expect_fault([](auto& a) { a.v.type = element::none; }, {status::bad_type, "v.type", "none"});
  expect_fault([](auto& a) { a.kv.v.type = element::none; }, {status::bad_type, "kv.v.type", "none"});
  expect_fault([](auto& a) { a.k.strides[2] = 2; }, {status::bad_stride, "k.strides[2]", "2"});
  expect_fault([](auto& a) { a.v.strides[0] = huge; }, {status::bad_stride, "v.strides[0]", "4611686018427387904"});
  expect_fault([](auto& a) { a.k.extents[0] = -1; }, {status::bad_extent, "k.extents[0]", "-1"});
  expect_fault([](auto& a) { a.k.extents[0] = 16; }, {status::bad_extent, "kv.tokens", "15"});
  expect_fault([](auto& a) { a.k.extents[1] = 1; }, {status::bad_extent, "k.extents[1]", "1"});
  expect_fault([](auto& a) { a.k.extents[2] = 7; }, {status::bad_extent, "k.extents[2]", "7"});
  expect_fault([](auto& a) { a.v.extents[0] = 4; }, {status::bad_extent, "v.extents[0]", "4"});
  expect_fault([](auto& a) { a.v.extents[1] = 3; }, {status::bad_extent, "v.extents[1]", "3"});
  expect_fault([](auto& a) { a.v.extents[2] = 5; }, {status::bad_extent, "v.extents[2]", "5"});
  expect_fault([](auto& a) { a.kv.capacity = 14; }, {status::bad_extent, "kv.capacity", "14"});
  expect_fault([](auto& a) { a.position = -1; }, {status::bad_value, "position", "-1"});
  expect_fault([](auto& a) { a.position = (std::int64_t{1} << 31) - 5; },
               {status::bad_value, "position", "2147483643"});
  expect_fault([](auto& a) { a.kv.v.data = a.kv.k.data; },
               {status::bad_value, "kv.v.data (that of kv.k, without values_in_keys)", "1"});
  expect_fault([](auto& a) { a.kv = with_values_in_keys(a.kv, 9); },
               {status::bad_extent, "kv.v.dim (values_in_keys)", "9"});
  expect_fault([](auto& a) { a.kv.values_in_keys = true; },
               {status::bad_value, "kv.v.data (values_in_keys, differs from kv.k)", "1"});
}

}  // namespace
