// SPDX-License-Identifier: Apache-2.0
// cuda::ffn against exact arithmetic on the same stored values.
#include <skim/cuda/ffn.cuh>
#include <skim/cuda/neuron_selector/fastforward.cuh>
#include <skim/reference/fastforward.hpp>
#include <skim/reference/ffn.hpp>
#include <skim/testing/ffn_matchers.hpp>

#include "on_device.hpp"
#include "support/ffn_case.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace {

using namespace skim_test;
using skim::neuron_retention;

using bytes = std::vector<unsigned char>;

/// What the GPU says once it is done.
const char* outcome_of(const skim::cuda::launch_report& report) {
  if (!report) return report.error != cudaSuccess ? cudaGetErrorString(report.error) : "refused";
  return cudaGetErrorString(cudaDeviceSynchronize());
}
#define EXPECT_DONE(call) ASSERT_STREQ(outcome_of(call), "no error")  // lists in `call` live as long

/// Lists in memory that the GPU reads, which the stack is not.
struct own_lists {
  std::vector<std::int32_t> indices, counts;

  own_lists(std::int64_t rows, std::int64_t capacity)
      : indices(static_cast<std::size_t>(rows * capacity)), counts(static_cast<std::size_t>(rows), -1) {}
  explicit own_lists(const std::vector<std::int32_t>& neurons)
      : indices(neurons), counts(1, static_cast<std::int32_t>(neurons.size())) {}

  skim::index_lists get() {
    const std::int64_t rows = static_cast<std::int64_t>(counts.size());
    return {indices.data(), counts.data(), rows, static_cast<std::int64_t>(indices.size()) / rows};
  }
};

/// The same with widths and strides that tensor cores take; `i` spreads widths beyond the CPU's sample.
ffn_case for_tensor_cores(ffn_case c, std::size_t i) {
  constexpr std::int64_t widths[] = {8, 64, 72, 128, 256, 320, 40, 448};
  if (c.weights == skim::element::f32) c.weights = i % 2 ? skim::element::f16 : skim::element::bf16;
  c.d = widths[i % 8];
  c.f += i % 3 == 0 ? 300 : 0;
  c.padding = c.padding / 3 * 8;
  return c;
}

/// How a call rounds.
struct gpu_rounding {
  skim::testing::arithmetic sums;
  skim::testing::detail::value_rounding values;

  gpu_rounding(const skim::ffn_args& args, const skim::neuron_compensator& added, std::size_t products) {
    const skim::element stored = args.up.type;
    sums = {0x1p-24, 0, 1e-10};
    values.more = static_cast<std::int64_t>(products);
    if (!skim::cuda::detail::by_tensor_cores(args, added)) return;
    sums = {0x1p-22, args.x.type == stored ? 0 : skim::testing::roundoff(stored), 5e-5};
    values.stored = stored;
  }
};

/// The FFN of listed neurons and a compensator.
skim::testing::ffn_matcher is_exact(const skim::ffn_args& args, const std::vector<std::int32_t>& neurons,
                                    const skim::neuron_compensator& added = {}) {
  const bool some = compensates(added);
  const std::size_t C = some ? static_cast<std::size_t>(added.c1.extents[1]) : 0;
  const gpu_rounding rounding(args, added, C), other(args, added, neurons.size());
  skim::testing::ffn_truth truth = compute_exactly(args, neurons, rounding.sums, rounding.values);
  if (some) truth.join(compensate_exactly(args, added, other.sums, other.values));
  skim::testing::arithmetic whole = rounding.sums;
  if (neurons.size() < 16) whole.nmse = std::numeric_limits<double>::infinity();  // too few values to average over
  return {truth, whole};
}

constexpr int shards = 4;
class gpu_ffn : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, gpu_ffn, testing::Range(0, shards));

/// Calls `body(case)` for a shard's cases, and for those that tensor cores take.
template <class Body>
void for_shard(int shard, const Body& body) {
  const std::vector<ffn_case> cases = ffn_sample(value_types);
  for (std::size_t i = static_cast<std::size_t>(shard); i < cases.size(); i += shards) {
    for (const ffn_case& c : {cases[i], for_tensor_cores(cases[i], i / shards)}) {
      SCOPED_TRACE(testing::Message() << c);
      body(c);
      if (testing::Test::HasFailure()) return;
    }
  }
}

/// Calls `body(args, workspace)` and looks whether it wrote where it may not.
template <class Op, class Body>
void with_workspace(const Op& op, ffn_inputs& inputs, const Body& body) {
  const skim::ffn_args args = inputs.args();
  const guarded_device_memory workspace(op.workspace_bytes(args));
  body(args, workspace.get());
  EXPECT_TRUE(workspace.guards_intact());
  EXPECT_TRUE(inputs.out().outside_intact());
}

TEST_P(gpu_ffn, equals_the_reference) {
  NEEDS_A_GPU();
  for_shard(GetParam(), [](const ffn_case& c) {
    ffn_inputs inputs(c);
    const skim::cuda::ffn<> op;
    with_workspace(op, inputs, [&](const skim::ffn_args& args, skim::memory workspace) {
      EXPECT_DONE(op.compute(args, own_lists(inputs.neurons()).get(), workspace, nullptr));
      EXPECT_TRUE(skim::testing::satisfies(args.out, is_exact(args, inputs.neurons())));
    });
  });
}

TEST_P(gpu_ffn, compensates_as_the_reference) {
  NEEDS_A_GPU();
  for_shard(GetParam(), [](const ffn_case& c) {
    ffn_inputs inputs(c);
    const skim::cuda::ffn op{skim::fastforward{neuron_retention::budget(1), inputs.predictor(), inputs.compensator()}};
    with_workspace(op, inputs, [&](const skim::ffn_args& args, skim::memory workspace) {
      EXPECT_DONE(op.compute(args, own_lists(inputs.neurons()).get(), workspace, nullptr));
      const bool dense = runs_dense(op.selector.keep, args);
      EXPECT_TRUE(skim::testing::satisfies(
          args.out, is_exact(args, inputs.neurons(), dense ? skim::neuron_compensator{} : op.compensator())));
    });
  });
}

TEST_P(gpu_ffn, gives_the_same_bits_with_all_neurons_listed) {
  NEEDS_A_GPU();
  for_shard(GetParam(), [](ffn_case c) {
    c.neurons = neurons_kind::every;
    ffn_inputs listed(c), dense(c);
    const skim::cuda::ffn<> op;
    with_workspace(op, listed, [&](const skim::ffn_args& args, skim::memory workspace) {
      EXPECT_DONE(op.compute(args, own_lists(listed.neurons()).get(), workspace, nullptr));
    });
    with_workspace(op, dense, [&](const skim::ffn_args& args, skim::memory workspace) {
      EXPECT_DONE(op.run(args, workspace, nullptr));
    });
    EXPECT_EQ(listed.out().bytes(), dense.out().bytes());
  });
}

/// Scores within the bound, and of a list no neuron that another, not in it, beats by more than twice that.
TEST_P(gpu_ffn, predicts_and_chooses_as_the_reference) {
  NEEDS_A_GPU();
  for_shard(GetParam(), [](const ffn_case& c) {
    ffn_inputs inputs(c);
    const skim::cuda::ffn op{skim::fastforward{neuron_retention::share(0.4), inputs.predictor(), inputs.compensator()}};
    with_workspace(op, inputs, [&](const skim::ffn_args& args, skim::memory workspace) {
      std::vector<float> scores(static_cast<std::size_t>(c.f));
      const skim::tensor_view<float, 2> view(scores.data(), {1, c.f});
      EXPECT_DONE(op.score(args, view, workspace, nullptr));
      const std::vector<double> expected = skim::reference::predict(args, op.selector.predictor);
      double size = 0;
      for (const double value : expected) size = std::max(size, std::fabs(value));
      const double bound = 0x1p-24 * 8 * static_cast<double>(c.d + 32) * (size + 1);
      for (std::size_t j = 0; j < scores.size(); ++j) {
        ASSERT_NEAR(static_cast<double>(scores[j]), expected[j], bound) << j;
      }
      const std::int64_t capacity = op.list_capacity(args);
      std::vector<std::int32_t> list(static_cast<std::size_t>(capacity) + 3, -7), count(1, -1);
      EXPECT_DONE(op.choose(args, view, {list.data(), count.data(), 1, capacity}, nullptr));
      ASSERT_EQ(count[0], capacity);
      EXPECT_EQ(std::vector<std::int32_t>(3, -7), std::vector<std::int32_t>(list.end() - 3, list.end()));
      list.resize(static_cast<std::size_t>(capacity));
      EXPECT_EQ(list, skim::reference::top_neurons(scores, capacity));
    });
  });
}

/// FastForward whole: the output is the FFN of the neurons that the steps name, to the bit and to the bound.
TEST_P(gpu_ffn, is_its_steps) {
  NEEDS_A_GPU();
  for_shard(GetParam(), [](const ffn_case& c) {
    ffn_inputs whole(c), steps(c);
    const skim::cuda::ffn op{skim::fastforward{neuron_retention::share(0.5), whole.predictor(), whole.compensator()}};
    const bool sparse = !runs_dense(op.selector.keep, whole.args());
    with_workspace(op, whole, [&](const skim::ffn_args& args, skim::memory workspace) {
      const skim::cuda::launch_report report = op.run(args, workspace, nullptr);
      EXPECT_DONE(report);
      EXPECT_EQ(report.taken, sparse ? skim::path::sparse : skim::path::dense);
    });
    with_workspace(op, steps, [&](const skim::ffn_args& args, skim::memory workspace) {
      std::vector<float> scores(static_cast<std::size_t>(c.f));
      const skim::tensor_view<float, 2> view(scores.data(), {1, c.f});
      const std::int64_t capacity = op.list_capacity(args);
      own_lists own(1, capacity);
      const skim::index_lists lists = own.get();
      ASSERT_TRUE(op.score(args, view, workspace, nullptr).ok());
      ASSERT_TRUE(op.choose(args, view, lists, nullptr).ok());
      EXPECT_DONE(op.compute(args, lists, workspace, nullptr));
      EXPECT_TRUE(skim::testing::satisfies(
          args.out, is_exact(args, own.indices, sparse ? op.compensator() : skim::neuron_compensator{})));
    });
    EXPECT_EQ(whole.out().bytes(), steps.out().bytes());
  });
}

/// A layer that has several tiles, steps and segments of each kind.
ffn_case large_case(skim::element weights, std::int64_t M, bool gated = true) {
  ffn_case c;
  c.weights = c.x_type = c.out_type = weights;
  c.M = M;
  c.d = 512;
  c.f = 2100;
  c.gated = gated;
  c.padding = 8;
  return c;
}

/// Of the rows [first, first + rows) of a call, alone.
skim::ffn_args part_of(const skim::ffn_args& args, std::int64_t first, std::int64_t rows) {
  skim::ffn_args part = args;
  part.x = skim::rows(args.x, first, rows);
  part.out = skim::rows(args.out, first, rows);
  return part;
}

/// Prompts of 130, 0, 300 and 2400 rows in blocks of 128, their edges dense, give what their blocks give alone.
TEST(GpuFfn, ACallOfSeveralBlocksHasTheBitsOfEach) {
  NEEDS_A_GPU();
  for (const skim::element weights : {skim::element::bf16, skim::element::f16, skim::element::f32}) {
    for (const bool gated : {true, false}) {
      const std::int64_t last_rows = weights == skim::element::f32 ? 200 : 2400;
      const ffn_case c = large_case(weights, 430 + last_rows, gated);
      SCOPED_TRACE(testing::Message() << c);
      ffn_inputs together(c), alone(c);
      const skim::cuda::ffn op{
          skim::fastforward{neuron_retention::share(0.5), together.predictor(), together.compensator()}};
      const skim::ffn_prompt prompts[] = {
          {130, 1, false, false}, {0, 0, false, false}, {300, 0, true, false}, {last_rows, 3, false, false}};
      with_workspace(op, together, [&](skim::ffn_args args, skim::memory workspace) {
        args.block_tokens = 128;
        args.prompts = prompts;
        args.prompt_count = 4;
        const guarded_device_memory enough(op.workspace_bytes(args));
        EXPECT_DONE(op.run(args, enough.get(), nullptr));
        EXPECT_TRUE(enough.guards_intact());
        static_cast<void>(workspace);
      });
      with_workspace(op, alone, [&](skim::ffn_args args, skim::memory workspace) {
        skim::ffn_args all = args;
        all.block_tokens = 128;
        all.prompts = prompts;
        all.prompt_count = 4;
        for_each_block(
            all, [&](const skim::ffn_args& block, std::int64_t) { EXPECT_DONE(op.run(block, workspace, nullptr)); });
      });
      EXPECT_TRUE(together.out().bytes() == alone.out().bytes());
    }
  }
}

/// Whatever lies in the workspace, and again.
TEST(GpuFfn, LeavesTheSameBitsEveryTime) {
  NEEDS_A_GPU();
  for (const std::int64_t M : {128, 1900}) {
    const ffn_case c = large_case(skim::element::bf16, M);
    bytes first;
    for (int turn = 0; turn < 10; ++turn) {
      ffn_inputs inputs(c);
      const skim::cuda::ffn op{
          skim::fastforward{neuron_retention::share(0.5), inputs.predictor(), inputs.compensator()}};
      skim::ffn_args args = inputs.args();
      args.block_tokens = 128;
      const guarded_device_memory workspace(op.workspace_bytes(args));
      ASSERT_EQ(cudaMemset(workspace.get().data, 37 * turn, workspace.get().bytes), cudaSuccess);
      EXPECT_DONE(op.run(args, workspace.get(), nullptr));
      if (turn == 0) first = inputs.out().bytes();
      EXPECT_TRUE(first == inputs.out().bytes()) << turn;
    }
  }
}

TEST(GpuFfn, CanBeCapturedInAGraph) {
  NEEDS_A_GPU();
  const ffn_case c = large_case(skim::element::bf16, 300);
  ffn_inputs plain(c), captured(c);
  const skim::cuda::ffn op{skim::fastforward{neuron_retention::share(0.5), plain.predictor(), plain.compensator()}};
  skim::ffn_args args = plain.args(), again = captured.args();
  args.block_tokens = again.block_tokens = 128;
  const guarded_device_memory workspace(op.workspace_bytes(args));
  EXPECT_DONE(op.run(args, workspace.get(), nullptr));
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_TRUE(op.run(again, workspace.get(), stream).ok());
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int turn = 0; turn < 3; ++turn) ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_TRUE(plain.out().bytes() == captured.out().bytes());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

/// A NaN in a weight that is not chosen, or in another token, does not leak.
TEST(GpuFfn, WhatIsLostStaysInItsTokenAndNeuron) {
  NEEDS_A_GPU();
  for (const skim::element type : {skim::element::bf16, skim::element::f32}) {
    constexpr std::int64_t M = 130, d = 64, f = 200;
    ffn_case c;
    c.weights = c.x_type = type;
    c.M = M;
    c.d = d;
    c.f = f;
    c.neurons = neurons_kind::third;
    ffn_inputs inputs(c);
    const skim::ffn_args args = inputs.args();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const auto lose = [&](const skim::tensor_view<const void, 2>& of, std::int64_t i, std::int64_t j) {
      skim::store_element(const_cast<void*>(of.data), of.type, of.offset(i, j), nan);
    };
    lose(args.up, 3, 5);
    lose(args.down, 198, 0);
    lose(args.x, 2, 7);
    lose(args.x, 128, 7);
    const skim::cuda::ffn<> op;
    const guarded_device_memory workspace(op.workspace_bytes(args));
    EXPECT_DONE(op.compute(args, own_lists(inputs.neurons()).get(), workspace.get(), nullptr));
    for (std::int64_t t = 0; t < M; ++t) {
      for (std::int64_t j = 0; j < d; ++j) {
        const float value = skim::load_element(args.out.data, args.out.type, args.out.offset(t, j));
        ASSERT_EQ(std::isfinite(value), t != 2 && t != 128) << t << ", " << j;
      }
    }
  }
}

/// Tokens with a NaN have no say in what their block chooses.
TEST(GpuFfn, TokensThatAreLostHaveNoSay) {
  NEEDS_A_GPU();
  ffn_case c;
  c.M = 9;
  c.f = 50;
  ffn_inputs inputs(c);
  const skim::cuda::ffn op{skim::fastforward{neuron_retention::budget(7), inputs.predictor(), {}}};
  const skim::ffn_args args = inputs.args();
  const auto scores_of = [&](std::int64_t rows) {
    std::vector<float> scores(50);
    const skim::ffn_args part = part_of(args, 0, rows);
    const guarded_device_memory workspace(op.workspace_bytes(part));
    const auto expect_done = [&] { EXPECT_DONE(op.score(part, {scores.data(), {1, 50}}, workspace.get(), nullptr)); };
    expect_done();
    return scores;
  };
  const std::vector<float> expected = scores_of(8);
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    skim::store_element(const_cast<void*>(args.x.data), args.x.type, args.x.offset(8, 5), value);
    EXPECT_EQ(scores_of(9), expected) << value;
  }
  EXPECT_EQ(scores_of(0), std::vector<float>(50, 0.0f));
  for (std::int64_t t = 0; t < 9; ++t) {
    skim::store_element(const_cast<void*>(args.x.data), args.x.type, args.x.offset(t, 0),
                        std::numeric_limits<float>::quiet_NaN());
  }
  EXPECT_EQ(scores_of(9), std::vector<float>(50, 0.0f));
}

/// More rows than a pass takes, more runs than a kernel's parameters, more lists than scratch.
TEST(GpuFfn, CallsOfEverySizeAreCutIntoPasses) {
  NEEDS_A_GPU();
  ffn_case c;
  c.weights = c.x_type = c.out_type = skim::element::bf16;
  c.M = 9000;
  c.d = 64;
  c.f = 72;
  for (const std::int64_t block : {0, 1, 100, 5000}) {
    ffn_inputs together(c), alone(c);
    const skim::cuda::ffn op{
        skim::fastforward{neuron_retention::share(0.5), together.predictor(), together.compensator()}};
    std::vector<skim::ffn_prompt> prompts;
    for (std::int64_t p = 0, left = c.M; p < 150; ++p) {
      const std::int64_t rows = p == 149 ? left : (p * 37) % 50;
      prompts.push_back({rows, p % 3, p % 5 == 0, false});
      left -= rows;
    }
    skim::ffn_args args = together.args(), parts = alone.args();
    for (skim::ffn_args* each : {&args, &parts}) {
      each->block_tokens = block;
      each->prompts = prompts.data();
      each->prompt_count = 150;
    }
    const guarded_device_memory workspace(op.workspace_bytes(args));
    EXPECT_DONE(op.run(args, workspace.get(), nullptr));
    std::int64_t done = 0;
    for_each_block(parts, [&](const skim::ffn_args& one, std::int64_t) {
      if (++done % 97 == 0 || one.x.extents[0] > 60 || done < 20) {
        const guarded_device_memory own(op.workspace_bytes(one));
        EXPECT_DONE(op.run(one, own.get(), nullptr));
        for (std::int64_t t = 0; t < one.x.extents[0]; ++t) {
          const std::size_t at = static_cast<std::size_t>(static_cast<const char*>(one.out.at(t)) -
                                                          static_cast<const char*>(parts.out.data));
          const unsigned char* const got = static_cast<const unsigned char*>(args.out.data) + at;
          ASSERT_EQ(std::memcmp(got, one.out.at(t), 128), 0) << block << ", " << done << ", " << t;
        }
      }
    });
    EXPECT_TRUE(workspace.guards_intact());
    EXPECT_TRUE(together.out().outside_intact());
  }
}

/// Of many neurons, at full width, as models have them.
TEST(GpuFfn, AWideLayerIsTheReferences) {
  NEEDS_A_GPU();
  for (const skim::element weights : {skim::element::bf16, skim::element::f16}) {
    ffn_case c = large_case(weights, 9);
    c.d = 2048;
    c.f = 1500;
    c.neurons = neurons_kind::third;
    ffn_inputs inputs(c);
    const skim::cuda::ffn op{
        skim::fastforward{neuron_retention::budget(500), inputs.predictor(), inputs.compensator()}};
    with_workspace(op, inputs, [&](const skim::ffn_args& args, skim::memory workspace) {
      EXPECT_DONE(op.compute(args, own_lists(inputs.neurons()).get(), workspace, nullptr));
      EXPECT_TRUE(skim::testing::satisfies(args.out, is_exact(args, inputs.neurons(), op.compensator())));
    });
  }
}

}  // namespace
