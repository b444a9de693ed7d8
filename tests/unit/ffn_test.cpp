// SPDX-License-Identifier: Apache-2.0
// cpu::ffn against exact arithmetic on the same stored values.
#include "support/ffn_case.hpp"

#include <skim/cpu/ffn.hpp>
#include <skim/cpu/neuron_selector/calibrated_set.hpp>
#include <skim/cpu/neuron_selector/fastforward.hpp>
#include <skim/cpu/neuron_selector/oracle.hpp>
#include <skim/cpu/neuron_selector/random_neurons.hpp>
#include <skim/cpu/neuron_selector/static_set.hpp>
#include <skim/reference/fastforward.hpp>
#include <skim/reference/ffn.hpp>
#include <skim/testing/ffn_matchers.hpp>

#include <gtest/gtest.h>

#include <numeric>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
using skim::neuron_retention;

const skim::serial_executor serial;

/// Calls `body(op, args, workspace)` with the case's own arithmetic and `selector`.
template <class Selector, class Body>
void with_op(const ffn_case& c, const Selector& selector, ffn_inputs& inputs, const Body& body) {
  const skim::ffn_args args = inputs.args();
  const auto call = [&](const auto& op) {
    aligned_memory workspace(op.workspace_bytes(args, 1));
    body(op, args, workspace.get());
    EXPECT_TRUE(workspace.guards_intact());
    EXPECT_TRUE(inputs.out().outside_intact());
  };
  with_accumulate(c.multiply, [&](auto accumulate) {
    call(skim::cpu::ffn<Selector, decltype(accumulate)>{selector, accumulate});
  });
}

skim::testing::arithmetic arithmetic_of(const ffn_case& c) {
  return multiplies_pairs(c.multiply, c.weights) ? skim::testing::arithmetic::dot_pairs().on_normal_data()
                                                 : skim::testing::arithmetic::widen_fma().on_normal_data();
}

constexpr int shards = 4;
class ffn : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, ffn, testing::Range(0, shards));

template <class Body>
void for_shard(int shard, const Body& body) {
  const std::vector<ffn_case> cases = ffn_sample();
  for (std::size_t i = static_cast<std::size_t>(shard) * SKIM_TEST_STRIDE; i < cases.size();
       i += shards * SKIM_TEST_STRIDE) {
    SCOPED_TRACE(testing::Message() << cases[i]);
    body(cases[i]);
    if (testing::Test::HasFailure()) return;
  }
}

void expect_the_references(const ffn_case& c) {
  ffn_inputs inputs(c);
  with_op(c, skim::all_neurons{}, inputs, [&](const auto& op, const skim::ffn_args& args, skim::memory workspace) {
    ASSERT_TRUE(op.compute(args, inputs.lists(), workspace, serial).ok());
    const auto rounding = arithmetic_of(c);
    const auto truth = skim::testing::compute_exactly(args, inputs.neurons(), rounding);
    EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::ffn_matcher(truth, rounding)));
  });
}

TEST_P(ffn, equals_the_reference) {
  for_shard(GetParam(), expect_the_references);
}

/// More columns than a work unit has, and in each unit several tiles.
TEST(ffn_columns, of_wide_layers_are_the_references) {
  for (const auto& [weights, multiply] : {std::pair{skim::element::f32, multiply_kind::widen_fma},
                                          {skim::element::f16, multiply_kind::widen_fma},
                                          {skim::element::bf16, multiply_kind::dot_pairs},
                                          {skim::element::bf16, multiply_kind::amx},
                                          {skim::element::q8_0, multiply_kind::widen_fma},
                                          {skim::element::q8_0, multiply_kind::dot_pairs}}) {
    ffn_case c;
    c.weights = weights;
    c.multiply = multiply;
    c.M = 19;
    c.d = weights == skim::element::q8_0 ? 2112 : 2101;
    c.f = 70;
    SCOPED_TRACE(testing::Message() << c);
    expect_the_references(c);
  }
}

TEST_P(ffn, compensates_as_the_reference) {
  for_shard(GetParam(), [](const ffn_case& c) {
    ffn_inputs inputs(c);
    const skim::calibrated_set selector{neuron_retention::budget(1), {}, inputs.compensator()};
    std::vector<float> statistic(static_cast<std::size_t>(c.f));
    skim::calibrated_set whole = selector;
    whole.statistic = skim::tensor_view<const float, 1>(statistic.data(), {c.f});
    with_op(c, whole, inputs, [&](const auto& op, const skim::ffn_args& args, skim::memory workspace) {
      ASSERT_TRUE(op.compute(args, inputs.lists(), workspace, serial).ok());
      ASSERT_TRUE(op.compensate(args, workspace, serial).ok());
      const auto rounding = arithmetic_of(c);
      auto truth = skim::testing::compute_exactly(args, inputs.neurons(), rounding);
      if (!runs_dense(whole.keep, args)) {  // one neuron of one leaves nothing to make up for
        truth.add(skim::testing::compensate_exactly(args, whole.compensator, rounding), c.out_type);
      }
      EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::ffn_matcher(truth, rounding, 2)));
    });
  });
}

/// The dense path, and a list of every neuron.
TEST_P(ffn, gives_the_same_bits_with_all_neurons_listed) {
  for_shard(GetParam(), [](ffn_case c) {
    c.neurons = neurons_kind::every;
    ffn_inputs listed(c), dense(c);
    with_op(c, skim::all_neurons{}, listed, [&](const auto& op, const skim::ffn_args& args, skim::memory workspace) {
      ASSERT_TRUE(op.compute(args, listed.lists(), workspace, serial).ok());
    });
    skim::fastforward selector;
    selector.keep = neuron_retention::share(1);
    selector.predictor = dense.predictor();
    with_op(c, selector, dense, [&](const auto& op, const skim::ffn_args& args, skim::memory workspace) {
      const skim::report report = op.run(args, {}, workspace, serial);
      ASSERT_TRUE(report.ok());
      EXPECT_EQ(report.taken, skim::path::dense);
    });
    EXPECT_EQ(listed.out().bytes(), dense.out().bytes());
  });
}

void expect_predictions_of_the_reference(const ffn_case& c) {
  ffn_inputs inputs(c);
  skim::fastforward selector;
  selector.predictor = inputs.predictor();
  with_op(c, selector, inputs, [&](const auto& op, const skim::ffn_args& args, skim::memory workspace) {
    std::vector<float> scores(static_cast<std::size_t>(c.f));
    ASSERT_TRUE(op.score(args, {scores.data(), {1, c.f}}, {}, workspace, serial).ok());
    const std::vector<double> expected = skim::reference::predict(args, selector.predictor);
    double size = 0;
    for (const double value : expected) size = std::max(size, std::fabs(value));
    for (std::size_t j = 0; j < scores.size(); ++j) {
      ASSERT_NEAR(static_cast<double>(scores[j]), expected[j], 0x1p-24 * 8 * static_cast<double>(c.d + 32) * (size + 1))
          << j;
    }
  });
}

TEST_P(ffn, predicts_as_the_reference) {
  for_shard(GetParam(), expect_predictions_of_the_reference);
}

TEST(ffn_predictor, takes_wide_layers_in_several_pieces) {
  for (const skim::element type : {skim::element::f32, skim::element::f16, skim::element::bf16}) {
    ffn_case c;
    c.weights = c.x_type = type;
    c.M = 5;
    c.d = 1100;
    c.f = 2100;
    c.padding = 3;
    SCOPED_TRACE(testing::Message() << c);
    expect_predictions_of_the_reference(c);
  }
}

/// How far the statistic may be off: a token's row of unit length by twice its values' errors over its norm, and a
/// statistic is a norm of one number per token.
double statistic_bound(const skim::ffn_args& args) {
  namespace truth = skim::testing::detail;
  const skim::testing::arithmetic rounding;
  const std::vector<double> x = truth::widened(args.x), up = truth::widened(args.up), gate = truth::widened(args.gate);
  const std::size_t d = static_cast<std::size_t>(args.x.extents[1]);
  double total = 0;
  for (std::int64_t t = 0; t < args.x.extents[0]; ++t) {
    double square = 0, error = 0;
    for (std::int64_t j = 0; j < args.up.extents[0]; ++j) {
      const std::size_t row = static_cast<std::size_t>(j) * d, token = static_cast<std::size_t>(t);
      truth::uncertain z = truth::projection(x, token, d, up.data() + row, 1, rounding);
      if (is_gated(args)) {
        const truth::uncertain g = truth::projection(x, token, d, gate.data() + row, 1, rounding);
        z = truth::product(truth::activated(args.act, g), z, rounding);
      } else {
        z = truth::activated(args.act, z);
      }
      square += z.value * z.value;
      error += z.error * z.error;
    }
    const double off = square > 0 ? 2 * std::sqrt(error / square) : 1;
    total += off < 1 ? off * off : 1;
  }
  return std::sqrt(total) + 0x1p-20 * std::sqrt(static_cast<double>(args.x.extents[0]));
}

TEST_P(ffn, finds_the_statistic_of_the_reference) {
  for_shard(GetParam(), [](const ffn_case& c) {
    ffn_inputs inputs(c);
    with_op(c, skim::oracle{}, inputs, [&](const auto& op, const skim::ffn_args& args, skim::memory workspace) {
      std::vector<float> scores(static_cast<std::size_t>(c.f));
      ASSERT_TRUE(op.score(args, {scores.data(), {1, c.f}}, {}, workspace, serial).ok());
      const std::vector<double> expected = skim::reference::neuron_statistic(args);
      const double bound = statistic_bound(args);
      for (std::size_t j = 0; j < scores.size(); ++j) {
        ASSERT_NEAR(static_cast<double>(scores[j]), expected[j], bound) << j;
      }
    });
  });
}

std::vector<float> statistic_of(const skim::ffn_args& args) {
  const skim::cpu::ffn op{skim::oracle{}};
  aligned_memory workspace(op.workspace_bytes(args, 1));
  std::vector<float> scores(static_cast<std::size_t>(args.up.extents[0]));
  EXPECT_TRUE(op.score(args, {scores.data(), {1, args.up.extents[0]}}, {}, workspace.get(), serial).ok());
  return scores;
}

TEST(NeuronStatistic, CountsTokensOfEverySizeByTheirDirection) {
  for (const skim::activation act : {skim::activation::silu, skim::activation::relu}) {
    for (const float size : {1e-18f, 1e-12f, 1e-5f, 1e5f, 1e10f, 1e18f}) {  // values of about its square
      ffn_case c;
      c.M = 20;
      c.act = act;
      ffn_inputs inputs(c);
      const skim::ffn_args args = inputs.args();
      for (std::int64_t i = 0; i < c.d; ++i) {
        const std::int64_t at = args.x.offset(7, i);
        float* const x = static_cast<float*>(const_cast<void*>(args.x.data)) + at;
        *x *= size;
      }
      const std::vector<float> scores = statistic_of(args);
      const std::vector<double> expected = skim::reference::neuron_statistic(args);
      const double bound = statistic_bound(args);
      for (std::size_t j = 0; j < scores.size(); ++j) {
        ASSERT_NEAR(static_cast<double>(scores[j]), expected[j], bound) << to_string(act) << ", size " << size;
      }
    }
  }
}

TEST(NeuronStatistic, OfATokenWithNanIsThatOfTheOthers) {
  ffn_case c;
  c.M = 20;
  ffn_inputs inputs(c);
  const skim::ffn_args args = inputs.args();
  const auto scores_with = [&](float value) {
    for (std::int64_t i = 0; i < c.d; ++i) {
      static_cast<float*>(const_cast<void*>(args.x.data))[args.x.offset(7, i)] = value;
    }
    return statistic_of(args);
  };
  const std::vector<float> expected = scores_with(0);
  EXPECT_EQ(scores_with(std::numeric_limits<float>::quiet_NaN()), expected);
  EXPECT_EQ(scores_with(std::numeric_limits<float>::infinity()), expected);
}

/// The steps one by one, on a case where they leave something out.
TEST(FfnSteps, MakeUpARun) {
  for (const skim::element out : {skim::element::f32, skim::element::f16, skim::element::bf16}) {
    ffn_case c;
    c.M = 40;
    c.d = 64;
    c.f = 200;
    c.out_type = out;
    ffn_inputs whole(c), steps(c);
    skim::fastforward selector{neuron_retention::budget(77), whole.predictor(), whole.compensator()};
    const skim::cpu::ffn op{selector};
    const skim::ffn_args args = whole.args(), same = steps.args();
    aligned_memory workspace(op.workspace_bytes(args, 1));
    const skim::report report = op.run(args, {}, workspace.get(), serial);
    ASSERT_TRUE(report.ok());
    EXPECT_EQ(report.taken, skim::path::sparse);

    std::vector<float> scores(200);
    std::vector<std::int32_t> list(77);
    std::int32_t count = -1;
    const skim::index_lists lists{list.data(), &count, 1, 77};
    const skim::tensor_view<float, 2> view(scores.data(), {1, 200});
    ASSERT_TRUE(op.score(same, view, {}, workspace.get(), serial).ok());
    ASSERT_TRUE(op.choose(same, view, lists, workspace.get(), serial).ok());
    EXPECT_EQ(count, 77);
    EXPECT_EQ(list, skim::reference::top_neurons(scores, 77));
    ASSERT_TRUE(op.compute(same, lists, workspace.get(), serial).ok());
    ASSERT_TRUE(op.compensate(same, workspace.get(), serial).ok());
    EXPECT_EQ(whole.out().bytes(), steps.out().bytes());
  }
}

/// A predictor made by hand: one hidden unit that is the mean of x's first element, and w2 names the neurons.
TEST(FastForward, PicksTheNeuronsThatItsPredictorNames) {
  constexpr std::int64_t M = 9, d = 4, f = 50;
  ffn_case c;
  c.M = M;
  c.d = d;
  c.f = f;
  ffn_inputs inputs(c);
  std::vector<float> x(M * d, 0.5f), query(d, 0.0f), w1(d, 0.0f), w2(f, 0.0f);
  w1[0] = 1;
  for (const int j : {3, 17, 18, 44, 49}) w2[static_cast<std::size_t>(j)] = 1;
  skim::fastforward selector;
  selector.keep = neuron_retention::budget(7);  // ties: the lowest of the neurons that are not named follow
  selector.predictor.query = skim::tensor_view<const float, 1>(query.data(), {d});
  selector.predictor.w1 = skim::tensor_view<const float, 2>(w1.data(), {d, 1});
  selector.predictor.w2 = skim::tensor_view<const float, 2>(w2.data(), {1, f});
  skim::ffn_args args = inputs.args();
  args.x = skim::tensor_view<const float, 2>(x.data(), {M, d});
  const skim::cpu::ffn op{selector};
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(args, {}, workspace.get(), serial).ok());
  const auto truth = skim::testing::compute_exactly(args, {0, 1, 3, 17, 18, 44, 49});
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::ffn_matcher(truth, {})));
}

/// A token with a NaN or an infinity loses its own output; the neurons are those that the others ask for.
TEST(FastForward, TokensThatAreLostHaveNoSay) {
  constexpr std::int64_t M = 9, d = 24, f = 50;
  ffn_case c;
  c.M = M;
  c.d = d;
  c.f = f;
  ffn_inputs inputs(c);
  std::vector<float> x(M * d), out(M * d);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = skim::draw_uniform(3, i) - 0.5f;
  const auto scores_of = [&](std::int64_t rows) {
    skim::ffn_args args = inputs.args();
    args.x = skim::tensor_view<const float, 2>(x.data(), {rows, d});
    args.out = skim::tensor_view<float, 2>(out.data(), {rows, d});
    args.first_block = 3;
    skim::fastforward selector;
    selector.keep = neuron_retention::budget(7);
    selector.predictor = inputs.predictor();
    const skim::cpu::ffn op{selector};
    aligned_memory workspace(op.workspace_bytes(args, 1));
    std::vector<float> scores(f);
    EXPECT_TRUE(op.score(args, {scores.data(), {1, f}}, {}, workspace.get(), serial).ok());
    return scores;
  };
  const std::vector<float> expected = scores_of(M - 1);
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    x[(M - 1) * d + 5] = value;
    EXPECT_EQ(scores_of(M), expected) << value;
  }
  for (std::int64_t t = 0; t < M; ++t) x[static_cast<std::size_t>(t * d)] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(scores_of(M), std::vector<float>(f, 0.0f));
}

TEST(FastForward, IsDenseAtThePromptsEdgesAndInDecoding) {
  ffn_case c;
  ffn_inputs inputs(c);
  skim::fastforward selector{neuron_retention::budget(9), inputs.predictor(), inputs.compensator()};
  skim::ffn_args args = inputs.args();
  aligned_memory workspace(skim::cpu::ffn{selector}.workspace_bytes(args, 1));
  const auto taken = [&] {
    const skim::report report = skim::cpu::ffn{selector}.run(args, {}, workspace.get(), serial);
    EXPECT_TRUE(report.ok());
    return report.taken;
  };
  EXPECT_EQ(taken(), skim::path::sparse);
  args.last = true;
  EXPECT_EQ(taken(), skim::path::dense);
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::matches_ffn(args)))
      << "dense blocks get no compensation";
  args.last = false;
  args.first_block = 0;
  EXPECT_EQ(taken(), skim::path::dense);
  selector.keep.dense_edges = false;
  EXPECT_EQ(taken(), skim::path::sparse);
  args.first_block = 5;
  args.decode = true;
  EXPECT_EQ(taken(), skim::path::dense);
  selector.keep.sparse_decode = true;
  EXPECT_EQ(taken(), skim::path::sparse);
}

TEST(StaticSet, KeepsWhatTheFirstBlockUsed) {
  ffn_case c;
  c.M = 20;
  c.f = 90;
  ffn_inputs first(c);
  const skim::cpu::ffn op{skim::static_set{neuron_retention::budget(30)}};
  skim::ffn_args args = first.args();
  aligned_memory workspace(op.workspace_bytes(args, 1)), state(op.state_bytes(args));
  ASSERT_TRUE(op.reset(args, state.get(), serial).ok());
  args.first_block = 0;
  ASSERT_EQ(op.run(args, state.get(), workspace.get(), serial).taken, skim::path::dense);
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::matches_ffn(args)));
  const std::vector<double> exact = skim::reference::neuron_statistic(args);
  const std::vector<float> statistic(exact.begin(), exact.end());

  std::vector<float> other = normal_values(20 * 24, 99);
  args.x = skim::tensor_view<const float, 2>(other.data(), {20, 24});
  args.first_block = 1;
  ASSERT_EQ(op.run(args, state.get(), workspace.get(), serial).taken, skim::path::sparse);
  const auto truth = skim::testing::compute_exactly(args, skim::reference::top_neurons(statistic, 30));
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::ffn_matcher(truth, {})));
  EXPECT_TRUE(state.guards_intact());
}

TEST(RandomNeurons, ChangeWithBlockAndSeedOnly) {
  ffn_case c;
  c.f = 1000;
  ffn_inputs inputs(c);
  skim::ffn_args args = inputs.args();
  skim::random_neurons selector{neuron_retention::budget(500), 1};
  aligned_memory workspace(skim::cpu::ffn{selector}.workspace_bytes(args, 1));
  const auto draw = [&] {
    std::vector<float> scores(1000);
    EXPECT_TRUE(skim::cpu::ffn{selector}.score(args, {scores.data(), {1, 1000}}, {}, workspace.get(), serial).ok());
    return skim::reference::top_neurons(scores, 500);
  };
  const auto first = draw();
  EXPECT_EQ(draw(), first);
  args.first_block = 2;
  const auto second = draw();
  std::vector<std::int32_t> both;
  std::set_intersection(first.begin(), first.end(), second.begin(), second.end(), std::back_inserter(both));
  EXPECT_NEAR(static_cast<double>(both.size()), 250, 60);  // hypergeometric, standard deviation 8
  args.first_block = 1;
  selector.seed = 2;
  EXPECT_NE(draw(), first);
}

TEST(CalibratedSet, TakesTheHighestOfItsStatistic) {
  ffn_case c;
  ffn_inputs inputs(c);
  std::vector<float> statistic = normal_values(c.f, 3);
  skim::calibrated_set selector;
  selector.keep = neuron_retention::share(0.3);
  selector.statistic = skim::tensor_view<const float, 1>(statistic.data(), {c.f});
  const skim::cpu::ffn op{selector};
  const skim::ffn_args args = inputs.args();
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(args, {}, workspace.get(), serial).ok());
  const auto truth = skim::testing::compute_exactly(args, skim::reference::top_neurons(statistic, 12));
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::ffn_matcher(truth, {})));
}

/// A policy of one's own: the last neurons first.
struct last_neurons {
  neuron_retention keep;

  skim::report check(const skim::ffn_args&) const { return {}; }
  void score(const skim::ffn_args&, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref executor) const {
    executor.parallel_for(scores.extents[0], [&](std::int64_t block, unsigned) {
      for (std::int64_t j = 0; j < scores.extents[1]; ++j) *scores.at(block, j) = static_cast<float>(j);
    });
  }
};

TEST(OwnNeuronSelector, JoinsIn) {
  ffn_case c;
  ffn_inputs inputs(c);
  const skim::cpu::ffn op{last_neurons{neuron_retention::budget(3)}};
  const skim::ffn_args args = inputs.args();
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(args, {}, workspace.get(), serial).ok());
  const auto truth = skim::testing::compute_exactly(args, {37, 38, 39});
  EXPECT_TRUE(skim::testing::satisfies(args.out, skim::testing::ffn_matcher(truth, {})));
}

/// What must be refused, with nothing written.
TEST(FfnRefusals, WriteNothing) {
  ffn_case c;
  ffn_inputs inputs(c);
  const std::vector<unsigned char> before = inputs.out().bytes();
  skim::fastforward selector{neuron_retention::budget(9), inputs.predictor(), inputs.compensator()};
  const skim::cpu::ffn op{selector};
  const skim::ffn_args args = inputs.args();
  aligned_memory workspace(op.workspace_bytes(args, 1));
  const skim::memory whole = workspace.get();
  EXPECT_EQ(op.run(args, {}, {whole.data, whole.bytes - 1}, serial).code, skim::status::short_workspace);
  EXPECT_EQ(op.run(args, {}, {static_cast<char*>(whole.data) + 8, whole.bytes}, serial).code,
            skim::status::short_workspace);
  EXPECT_EQ(op.run(args, {}, {}, serial).code, skim::status::short_workspace);

  std::vector<std::int32_t> list{3, 3};
  std::int32_t count = 2;
  const skim::index_lists lists{list.data(), &count, 1, 2};
  EXPECT_EQ(op.compute(args, lists, whole, serial).code, skim::status::bad_index);
  list = {5, 2};
  EXPECT_EQ(op.compute(args, lists, whole, serial).code, skim::status::bad_index);
  list = {5, static_cast<std::int32_t>(c.f)};
  EXPECT_EQ(op.compute(args, lists, whole, serial).code, skim::status::bad_index);
  list = {-1, 2};
  EXPECT_EQ(op.compute(args, lists, whole, serial).code, skim::status::bad_index);
  count = 3;
  EXPECT_EQ(op.compute(args, lists, whole, serial).code, skim::status::bad_index);

  std::vector<float> scores(static_cast<std::size_t>(c.f), -1.0f);
  EXPECT_EQ(op.score(args, {scores.data(), {1, c.f - 1}}, {}, whole, serial).code, skim::status::bad_extent);
  EXPECT_EQ(op.choose(args, {scores.data(), {1, c.f}}, lists, whole, serial).code, skim::status::bad_extent);
  skim::fastforward narrow = selector;
  narrow.predictor.w2.extents[1] = c.f - 1;
  EXPECT_EQ(skim::cpu::ffn{narrow}.run(args, {}, whole, serial).code, skim::status::bad_extent);
  const skim::cpu::ffn stateful{skim::static_set{neuron_retention::budget(9)}};
  EXPECT_EQ(stateful.run(args, {}, whole, serial).code, skim::status::short_workspace);
  aligned_memory larger(stateful.workspace_bytes(args, 1));
  EXPECT_EQ(stateful.run(args, {}, larger.get(), serial).code, skim::status::short_state);
  EXPECT_EQ(inputs.out().bytes(), before);
}

/// A NaN in a weight that is not chosen, or in another token, does not leak.
TEST(FfnLeaks, StayInTheirTokenAndNeuron) {
  constexpr std::int64_t M = 5, d = 24, f = 40;
  std::vector<float> x = normal_values(M * d, 1), up = normal_values(f * d, 2), down = normal_values(f * d, 3);
  std::vector<float> out(M * d);
  up[3 * d + 5] = down[8 * d] = std::numeric_limits<float>::quiet_NaN();
  x[2 * d + 7] = std::numeric_limits<float>::infinity();
  skim::ffn_args args;
  args.x = skim::tensor_view<const float, 2>(x.data(), {M, d});
  args.up = skim::tensor_view<const float, 2>(up.data(), {f, d});
  args.down = skim::tensor_view<const float, 2>(down.data(), {f, d});
  args.out = skim::tensor_view<float, 2>(out.data(), {M, d});
  std::vector<std::int32_t> list;
  for (std::int32_t j = 0; j < f; ++j) {
    if (j != 3 && j != 8) list.push_back(j);
  }
  std::int32_t count = f - 2;
  const skim::cpu::ffn<> op;
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.compute(args, {list.data(), &count, 1, count}, workspace.get(), serial).ok());
  for (std::int64_t t = 0; t < M; ++t) {
    for (std::int64_t c = 0; c < d; ++c) {
      EXPECT_EQ(std::isfinite(out[static_cast<std::size_t>(t * d + c)]), t != 2) << t << ", " << c;
    }
  }
}

}  // namespace
