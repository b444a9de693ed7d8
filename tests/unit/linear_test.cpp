// SPDX-License-Identifier: Apache-2.0
// cpu::linear against exact arithmetic on the same stored values, its arguments' faults, its bits and its workspace.
#include "support/executors.hpp"
#include "support/faults.hpp"
#include "support/ffn_case.hpp"

#include <skim/cpu/linear.hpp>
#include <skim/reference/linear.hpp>
#include <skim/testing/ffn_matchers.hpp>

#include <gtest/gtest.h>

#include <cmath>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
using skim::element;
using skim::status;
using skim::tensor_view;

struct linear_case {
  element weight = element::f32, x = element::f32, out = element::f32;
  element bias = element::none;  ///< none: there is no bias
  std::int64_t M = 5, n_in = 24, n_out = 40, padding = 0;
  multiply_kind multiply = multiply_kind::widen_fma;
};

std::ostream& operator<<(std::ostream& to, const linear_case& c) {
  return to << "weight " << to_string(c.weight) << ", x " << to_string(c.x) << ", out " << to_string(c.out) << ", bias "
            << to_string(c.bias) << ", M " << c.M << ", n_in " << c.n_in << ", n_out " << c.n_out << ", padding "
            << c.padding << ", " << to_string(c.multiply);
}

/// Values and weights of one case; outputs have the size of inputs.
class linear_inputs {
 public:
  explicit linear_inputs(const linear_case& c)
      : x_(matrix_shape(c.M, c.n_in, c.x, c.padding)),
        weight_(matrix_shape(c.n_out, c.n_in, c.weight, c.padding)),
        bias_(matrix_shape(1, c.n_out, c.bias == element::none ? element::f32 : c.bias, 0)),
        out_(matrix_shape(c.M, c.n_out, c.out, c.padding)) {
    std::vector<float> weights = normal_values(c.n_out * c.n_in, 2);
    for (float& value : weights) value /= std::sqrt(static_cast<float>(c.n_in));
    x_.fill(normal_values(c.M * c.n_in, 1));
    weight_.fill(weights);
    bias_.fill(normal_values(c.n_out, 3));
    args_.x = matrix(x_);
    args_.weight = matrix(weight_);
    args_.out = matrix(out_);
    if (c.bias != element::none) args_.bias = tensor_view<const void, 1>(bias_.view().data, {c.n_out}, c.bias);
  }
  linear_inputs(const linear_inputs&) = delete;
  linear_inputs& operator=(const linear_inputs&) = delete;

  const skim::linear_args& args() const { return args_; }
  strided_tensor& out() { return out_; }

 private:
  strided_tensor x_, weight_, bias_, out_;
  skim::linear_args args_;
};

/// The output's bytes.
std::vector<unsigned char> run(const linear_case& c, linear_inputs& inputs, executor_choice choice = {},
                               unsigned char fill = 0xff) {
  with_accumulate(c.multiply, [&](auto accumulate) {
    const skim::cpu::linear op{accumulate};
    aligned_memory workspace(op.workspace_bytes(inputs.args(), choice.workers), fill);
    run_on(choice, [&](const auto& executor) {
      const skim::report report = op.run(inputs.args(), workspace.get(), executor);
      EXPECT_TRUE(report.ok());
      EXPECT_EQ(report.taken, skim::path::dense);
    });
    EXPECT_TRUE(workspace.guards_intact());
    EXPECT_TRUE(inputs.out().outside_intact());
  });
  return inputs.out().bytes();
}

skim::testing::arithmetic arithmetic_of(const linear_case& c) {
  return multiplies_pairs(c.multiply, c.weight) ? skim::testing::arithmetic::dot_pairs().on_normal_data()
                                                : skim::testing::arithmetic::widen_fma().on_normal_data();
}

/// Every two values of every two parameters meet.
std::vector<linear_case> linear_sample() {
  const std::int64_t W = skim::cpu::simd::lanes;
  const std::vector<std::int64_t> tokens{0, 1, 3, W, 2 * W + 1, 127, 128, 129, 300, 520};
  const std::vector<std::int64_t> inputs{1, 2, 7, 33, 64, 255, 257, 300, 513}, outputs{1, 2, 31, 32, 33, 64, 100};
  const auto count = [](const auto& values) { return static_cast<int>(std::size(values)); };
  const pairwise_sample sample({count(weight_types), value_types, value_types, 1 + value_types, count(tokens),
                                count(inputs), count(outputs), 2, 3});
  std::vector<linear_case> cases;
  for (const auto& row : sample.rows()) {
    const int* next = row.data();
    const auto take = [&next] { return static_cast<std::size_t>(*next++); };
    linear_case c;
    c.weight = weight_types[take()];
    c.x = weight_types[take()];
    c.out = weight_types[take()];
    c.bias = static_cast<element>(take());
    c.M = tokens[take()];
    c.n_in = inputs[take()];
    c.n_out = outputs[take()];
    c.padding = static_cast<std::int64_t>(take()) * 3;
    c.multiply = static_cast<multiply_kind>(take());
    if (c.weight == element::q8_0) {  // in whole blocks
      c.n_in = (c.n_in + 31) / 32 * 32;
      c.padding = (c.padding + 31) / 32 * 32;
    }
    cases.push_back(c);
  }
  return cases;
}

TEST(Linear, IsTheReference) {
  const std::vector<linear_case> cases = linear_sample();
  for (std::size_t i = 0; i < cases.size(); i += SKIM_TEST_STRIDE) {
    SCOPED_TRACE(testing::Message() << cases[i]);
    linear_inputs inputs(cases[i]);
    run(cases[i], inputs);
    const auto rounding = arithmetic_of(cases[i]);
    EXPECT_TRUE(skim::testing::satisfies(inputs.args().out, skim::testing::matches_linear(inputs.args(), rounding)));
    if (HasFailure()) return;
  }
}

/// More than one unit of every loop, and a rest.
linear_case wide_case(element weight, multiply_kind multiply) {
  linear_case c;
  c.weight = weight;
  c.bias = element::bf16;
  c.multiply = multiply;
  c.M = 700;
  c.n_in = weight == element::q8_0 ? 320 : 300;
  c.n_out = 110;
  return c;
}
const linear_case wide_cases[] = {
    wide_case(element::q8_0, multiply_kind::widen_fma), wide_case(element::q8_0, multiply_kind::amx),
    wide_case(element::f32, multiply_kind::widen_fma),  wide_case(element::f16, multiply_kind::widen_fma),
    wide_case(element::bf16, multiply_kind::dot_pairs), wide_case(element::bf16, multiply_kind::amx)};

TEST(Linear, LeavesTheSerialBits) {
  for (const linear_case& c : wide_cases) {
    linear_inputs inputs(c);
    const auto expected = run(c, inputs);
    for (const executor_choice choice : every_executor) {
      linear_inputs other(c);
      EXPECT_TRUE(run(c, other, choice) == expected) << c << " on " << choice;
    }
    linear_inputs other(c);
    EXPECT_TRUE(run(c, other, {}, 0x3f) == expected) << c << ", other contents of the workspace";
  }
}

/// Tokens do not see each other, nor do outputs.
TEST(Linear, OfSomeTokensAndOutputsIsAPartOfTheWhole) {
  for (const linear_case& c : wide_cases) {
    linear_inputs whole(c), pieces(c);
    const auto all = run(c, whole);
    with_accumulate(c.multiply, [&](auto accumulate) {
      const skim::cpu::linear op{accumulate};
      aligned_memory workspace(op.workspace_bytes(pieces.args(), 1));
      for (std::int64_t row = 0, count = 1; row < c.M; row += count, count = std::min(2 * count, c.M - row)) {
        for (std::int64_t output = 0; output < c.n_out; output += 33) {
          skim::linear_args args = pieces.args();
          const std::int64_t outputs = std::min<std::int64_t>(33, c.n_out - output);
          args.x = rows(args.x, row, count);
          args.out = rows(args.out, row, count);
          args.out.data = args.out.at(0, output);
          args.bias.data = args.bias.at(output);
          args.weight = rows(args.weight, output, outputs);
          args.out.extents[1] = args.bias.extents[0] = outputs;
          ASSERT_TRUE(op.run(args, workspace.get(), skim::serial_executor{}).ok());
        }
      }
    });
    EXPECT_TRUE(pieces.out().bytes() == all) << c;
  }
}

/// A NaN or infinity spoils its own token or output, and nothing else.
TEST(Linear, DoesNotLeak) {
  const linear_case c;
  linear_inputs inputs(c);
  const skim::linear_args args = inputs.args();
  skim::store_element(const_cast<void*>(args.x.data), c.x, args.x.offset(2, 5), std::nanf(""));
  skim::store_element(const_cast<void*>(args.weight.data), c.weight, args.weight.offset(33, 1), INFINITY);
  run(c, inputs);
  for (std::int64_t t = 0; t < c.M; ++t) {
    for (std::int64_t o = 0; o < c.n_out; ++o) {
      const float value = skim::load_element(args.out.data, c.out, args.out.offset(t, o));
      EXPECT_EQ(std::isfinite(value), t != 2 && o != 33) << t << ", " << o;
    }
  }
}

TEST(LinearReference, ByHand) {
  const float x[] = {1, 2, -1, 1}, weight[] = {1, 0, 0, 1, 3, -1}, bias[] = {10, 20, 30};
  float out[6] = {};
  skim::linear_args args;
  args.x = tensor_view<const float, 2>(x, {2, 2});
  args.weight = tensor_view<const float, 2>(weight, {3, 2});
  args.out = tensor_view<float, 2>(out, {2, 3});
  EXPECT_EQ(skim::reference::linear(args), (std::vector<double>{1, 2, 1, -1, 1, -4}));
  args.bias = tensor_view<const float, 1>(bias, {3});
  EXPECT_EQ(skim::reference::linear(args), (std::vector<double>{11, 22, 31, 9, 21, 26}));
  aligned_memory workspace(skim::cpu::linear<>{}.workspace_bytes(args, 1));
  ASSERT_TRUE(skim::cpu::linear<>{}.run(args, workspace.get(), skim::serial_executor{}).ok());
  EXPECT_EQ(std::vector<float>(out, out + 6), (std::vector<float>{11, 22, 31, 9, 21, 26}));
  const skim::cost_estimate cost = skim::cpu::linear<>{}.cost(args);
  EXPECT_EQ(cost.flops, 2 * 2 * 2 * 3);
  EXPECT_EQ(cost.bytes, 4 * (6 + 4 + 6));
}

char anything[1];  // `check` follows no pointer, so that any but null will do
constexpr std::int64_t wide = (std::int64_t{1} << 24) + 1;

/// M 3, n_in 8, n_out 20.
skim::linear_args good_args() {
  skim::linear_args args;
  args.x = {anything, {3, 8}, element::f32};
  args.weight = {anything, {20, 8}, element::bf16};
  args.bias = {anything, {20}, element::f16};
  args.out = {anything, {3, 20}, element::f16};
  return args;
}

using linear_fault = fault<skim::linear_args>;
const std::vector<linear_fault> linear_faults{
    {"x null", [](auto& a) { a.x.data = nullptr; }, {status::null_pointer, "x.data", ""}},
    {"x type", [](auto& a) { a.x.type = element::none; }, {status::bad_type, "x.type", "none"}},
    {"negative M", [](auto& a) { a.x.extents[0] = -1; }, {status::bad_extent, "x.extents[0]", "-1"}},
    {"large M", [](auto& a) { a.x.extents[0] = wide; }, {status::bad_extent, "x.extents[0]", "16777217"}},
    {"n_in 0", [](auto& a) { a.x.extents[1] = 0; }, {status::bad_extent, "x.extents[1]", "0"}},
    {"large n_in", [](auto& a) { a.x.extents[1] = wide; }, {status::unsupported, "x.extents[1]", "16777217"}},
    {"x inner stride", [](auto& a) { a.x.strides[1] = 2; }, {status::bad_stride, "x.strides[1]", "2"}},
    {"weight null", [](auto& a) { a.weight.data = nullptr; }, {status::null_pointer, "weight.data", ""}},
    {"weight type", [](auto& a) { a.weight.type = element::none; }, {status::bad_type, "weight.type", "none"}},
    {"n_out 0", [](auto& a) { a.weight.extents[0] = 0; }, {status::bad_extent, "weight.extents[0]", "0"}},
    {"negative n_out", [](auto& a) { a.weight.extents[0] = -2; }, {status::bad_extent, "weight.extents[0]", "-2"}},
    {"large n_out",
     [](auto& a) { a.weight.extents[0] = wide; },
     {status::unsupported, "weight.extents[0]", "16777217"}},
    {"n_in of weight", [](auto& a) { a.weight.extents[1] = 7; }, {status::bad_extent, "weight.extents[1]", "7"}},
    {"weight reach",
     [](auto& a) { a.weight.strides[0] = huge; },
     {status::bad_stride, "weight.strides[0]", "4611686018427387904"}},
    {"bias null", [](auto& a) { a.bias.data = nullptr; }, {status::null_pointer, "bias.data", ""}},
    {"bias type", [](auto& a) { a.bias.type = element::none; }, {status::bad_type, "bias.type", "none"}},
    {"bias", [](auto& a) { a.bias.extents[0] = 19; }, {status::bad_extent, "bias.extents[0]", "19"}},
    {"empty bias", [](auto& a) { a.bias.extents[0] = 0; }, {status::bad_extent, "bias.extents[0]", "0"}},
    {"bias stride", [](auto& a) { a.bias.strides[0] = 2; }, {status::bad_stride, "bias.strides[0]", "2"}},
    {"out null", [](auto& a) { a.out.data = nullptr; }, {status::null_pointer, "out.data", ""}},
    {"out type", [](auto& a) { a.out.type = element::none; }, {status::bad_type, "out.type", "none"}},
    {"M of out", [](auto& a) { a.out.extents[0] = 4; }, {status::bad_extent, "out.extents[0]", "4"}},
    {"n_out of out", [](auto& a) { a.out.extents[1] = 8; }, {status::bad_extent, "out.extents[1]", "8"}},
    {"out inner stride", [](auto& a) { a.out.strides[1] = 0; }, {status::bad_stride, "out.strides[1]", "0"}},
};

TEST(LinearCheck, FaultsAreNamed) {
  ASSERT_TRUE(check(good_args()).ok());
  const skim::cpu::linear<> op;
  for (const linear_fault& fault : linear_faults) {
    SCOPED_TRACE(fault.name);
    skim::linear_args args = good_args();
    fault.make(args);
    expect_report(check(args), fault.expected);
    expect_report(op.run(args, {}, skim::serial_executor{}), fault.expected);
    if (fault.expected.code == status::null_pointer) {
      EXPECT_TRUE(op.check_shape(args).ok());
      EXPECT_GT(op.workspace_bytes(args, 1), 0u);
    } else {
      expect_report(op.check_shape(args), fault.expected);
      EXPECT_EQ(op.workspace_bytes(args, 1), 0u);
    }
  }
}

TEST(LinearCheck, TakesWhatItCan) {
  skim::linear_args args = good_args();
  args.x = {nullptr, {0, 8}, element::f32};
  args.out = {nullptr, {0, 20}, element::f16};
  EXPECT_TRUE(check(args).ok()) << "no tokens";
  args = good_args();
  args.bias = {};
  EXPECT_TRUE(check(args).ok()) << "no bias";
  args.x.strides[0] = args.out.strides[0] = -100;
  args.weight.strides[0] = 0;
  EXPECT_TRUE(check(args).ok()) << "any row strides";
}

TEST(LinearWorkspace, IsNoLargerForFewerTokensAndWorkers) {
  const skim::cpu::linear<> op;
  for (const std::int64_t n_in : {std::int64_t{1}, std::int64_t{300}, wide - 1}) {
    std::size_t fewer_tokens = 1;
    for (const std::int64_t M : {std::int64_t{0}, std::int64_t{1}, std::int64_t{100}, std::int64_t{512}, wide - 1}) {
      skim::linear_args args = good_args();
      args.x = {nullptr, {M, n_in}, element::f32};
      args.weight = {nullptr, {20, n_in}, element::bf16};
      args.out = {nullptr, {M, 20}, element::f32};
      EXPECT_GE(op.workspace_bytes(args, 3), fewer_tokens);
      fewer_tokens = op.workspace_bytes(args, 3);
      EXPECT_EQ(op.workspace_bytes(args, 0), op.workspace_bytes(args, 1));
      for (const unsigned workers : {1u, 2u, 100u}) {
        EXPECT_LT(op.workspace_bytes(args, workers), op.workspace_bytes(args, workers + 1));
      }
    }
  }
  linear_case c;
  linear_inputs inputs(c);
  const std::vector<unsigned char> before = inputs.out().bytes();
  aligned_memory workspace(op.workspace_bytes(inputs.args(), 1));
  const skim::memory whole = workspace.get();
  EXPECT_EQ(op.run(inputs.args(), {whole.data, whole.bytes - 1}, skim::serial_executor{}).code,
            status::short_workspace);
  EXPECT_EQ(inputs.out().bytes(), before);
}

}  // namespace
