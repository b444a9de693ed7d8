// SPDX-License-Identifier: Apache-2.0
// cuda::attend against exact arithmetic on the same stored values.
#include "attention_rounding.hpp"
#include "on_device.hpp"
#include "support/attention_sample.hpp"
#include "support/expect_attention.hpp"

#include <gtest/gtest.h>

namespace {

using namespace skim_test;

/// What the GPU refuses gives way.
attention_case on_gpu(attention_case c) {
  c.bias = bias_kind::none;
  c.slopes = false;
  return c;
}

/// The same with types, strides and dimensions that tensor cores take.
attention_case for_tensor_cores(attention_case c, std::size_t i) {
  constexpr std::int64_t dims[] = {64, 80, 96, 128, 192, 256};
  c.D = c.Dv = dims[i % 6];
  if (c.kv_type == skim::element::f32) c.kv_type = i % 2 ? skim::element::f16 : skim::element::bf16;
  c.v_type = skim::element::none;
  c.values_in_keys = c.scales = false;
  c.padding = c.padding / 3 * 8;
  c.shift = c.shift * 8;
  return c;
}

void expect_exact(const attention_case& c, bool tensor_cores) {
  SCOPED_TRACE(testing::Message() << c);
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const skim::cuda::attend op;
  ASSERT_TRUE(check_indices(args, inputs.lists()).ok());
  ASSERT_EQ(by_tensor_cores(args), tensor_cores);
  guarded_device_memory workspace(op.workspace_bytes(args, inputs.lists() ? c.block_rows : 0));
  const skim::cuda::launch_report report =
      inputs.lists() ? op.run(args, *inputs.lists(), workspace.get(), nullptr) : op.run(args, workspace.get(), nullptr);
  ASSERT_TRUE(report.ok()) << cudaGetErrorString(report.error);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);

  expect_attention(c, inputs, rounding_of(args));
  EXPECT_TRUE(workspace.guards_intact());
}

constexpr int shards = 8;
class gpu_attend : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, gpu_attend, testing::Range(0, shards));

TEST_P(gpu_attend, equals_the_reference) {
  NEEDS_A_GPU();
  const std::vector<attention_case> cases = attention_sample(types_on_gpu);
  for (std::size_t i = static_cast<std::size_t>(GetParam()); i < cases.size(); i += shards) {
    const attention_case c = on_gpu(cases[i]);
    if (c.kv_type == skim::element::f32 || c.D != c.Dv || c.D % 16 != 0) expect_exact(c, false);
    if (HasFailure()) return;
  }
}

TEST_P(gpu_attend, by_tensor_cores_equals_the_reference) {
  NEEDS_A_GPU();
  const std::vector<attention_case> cases = attention_sample(types_on_gpu);
  for (std::size_t i = static_cast<std::size_t>(GetParam()); i < cases.size(); i += shards) {
    expect_exact(for_tensor_cores(on_gpu(cases[i]), i), true);
    if (HasFailure()) return;
  }
}

}  // namespace
