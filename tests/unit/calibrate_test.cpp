// SPDX-License-Identifier: Apache-2.0
#include "support/executors.hpp"
#include "support/values.hpp"

#include <skim/calibrate/fastforward.hpp>
#include <skim/interop/eigen.hpp>
#include <skim/reference/fastforward.hpp>
#include <skim/reference/ffn.hpp>

#include <gtest/gtest.h>

#include <cmath>

namespace {

using namespace skim::calibrate;

// One type for all executors, so that the fit is compiled once.
const skim::serial_executor serial;

matrix<float> random_matrix(Eigen::Index rows, Eigen::Index columns, unsigned seed) {
  const std::vector<float> values = skim_test::normal_values(rows * columns, seed);
  return Eigen::Map<const matrix<float>>(values.data(), rows, columns);
}

std::vector<double> as_doubles(const matrix<float>& values) {
  return {values.data(), values.data() + values.size()};
}

/// Compares `gradient` with central differences of `loss` in every parameter.
template <class Parameters, class Loss>
void expect_gradient(Parameters parameters, const Parameters& gradient, const Loss& loss) {
  constexpr double step = 1e-5;
  for (Eigen::Index i = 0; i < parameters.values.size(); ++i) {
    const double value = parameters.values(i);
    parameters.values(i) = value + step;
    const double above = loss(parameters);
    parameters.values(i) = value - step;
    const double below = loss(parameters);
    parameters.values(i) = value;
    const double difference = (above - below) / (2 * step);
    EXPECT_NEAR(gradient.values(i), difference, 1e-7 * (1 + std::abs(difference))) << "parameter " << i;
  }
}

TEST(calibrate_losses, the_predictors_gradient_is_that_of_finite_differences) {
  const Eigen::Index d = 6, r = 3, f = 8;
  predictor_parameters<double> parameters(d, r, f);
  parameters.values = random_matrix(1, parameters.values.size(), 1).cast<double>();
  const matrix<double> x[] = {random_matrix(5, d, 2).cast<double>(), random_matrix(1, d, 3).cast<double>(),
                              random_matrix(4, d, 4).cast<double>()};
  const std::vector<const matrix<double>*> blocks = {&x[0], &x[1], &x[2]};
  matrix<double> labels = 4 * random_matrix(3, f, 5).cast<double>();
  labels(1, 2) = 0;
  predictor_parameters<double> gradient(d, r, f);
  const double loss = predictor_loss(parameters, blocks, labels, &gradient);
  EXPECT_EQ(loss, predictor_loss<double>(parameters, blocks, labels, nullptr));
  EXPECT_GT(gradient.query().norm(), 1e-3);
  EXPECT_GT(gradient.w1().norm(), 1e-3);
  expect_gradient(parameters, gradient, [&](const predictor_parameters<double>& at) {
    return predictor_loss<double>(at, blocks, labels, nullptr);
  });
  const row<double> once = gradient.values;
  predictor_loss(parameters, blocks, labels, &gradient);
  EXPECT_TRUE(gradient.values.isApprox(2 * once)) << "gradients are added to what is there";
}

TEST(calibrate_losses, the_compensators_gradient_is_that_of_finite_differences) {
  const Eigen::Index d = 7, c = 3;
  compensator_parameters<double> parameters(d, c);
  parameters.values = random_matrix(1, parameters.values.size(), 1).cast<double>();
  const matrix<double> x = random_matrix(9, d, 2).cast<double>(), missing = random_matrix(9, d, 3).cast<double>();
  compensator_parameters<double> gradient(d, c);
  const double loss = compensator_loss(parameters, x, missing, &gradient);
  EXPECT_NEAR(loss, (compensation(parameters, x) - missing).squaredNorm(), 1e-12 * loss);
  expect_gradient(parameters, gradient, [&](const compensator_parameters<double>& at) {
    return compensator_loss<double>(at, x, missing, nullptr);
  });
}

TEST(calibrate_losses, large_logits_do_not_overflow) {
  matrix<float> scores(1, 4), labels(1, 4), gradient;
  scores << 500, -500, 500, -500;
  labels << 2, 3, -1, -4;
  EXPECT_EQ(cross_entropy(scores, labels, &gradient), 3 * 500 + 500);
  EXPECT_TRUE(gradient.isApprox((matrix<float>(1, 4) << 0, -3, 1, 0).finished()));
}

TEST(calibrate_labels, fifths_by_strength) {
  row<float> statistic(20);
  for (Eigen::Index j = 0; j < 20; ++j) statistic(j) = static_cast<float>((j * 7) % 20);  // 0, 7, 14, 1, 8, ...
  const row<float> labels = fifth_labels(statistic, 10);
  for (Eigen::Index j = 0; j < 20; ++j) {
    const int rank = 19 - (static_cast<int>(j) * 7) % 20;  // 0 is the strongest
    EXPECT_EQ(labels(j), rank < 10 ? static_cast<float>(32 >> (rank / 2)) : -1.0f) << j;
  }
}

TEST(calibrate_labels, fifths_of_other_counts_and_ties) {
  row<float> statistic(6);
  statistic << 1, 3, 3, 3, 2, 3;
  EXPECT_EQ(fifth_labels(statistic, 3), (row<float>(6) << -1, 32, 16, 4, -1, -1).finished());
  EXPECT_EQ(fifth_labels(statistic, 6), (row<float>(6) << 2, 32, 32, 16, 4, 8).finished());
}

TEST(calibrate_labels, margins_by_hand) {
  const row<float> lengths = (row<float>(3) << 1, 2, 0.5f).finished();
  matrix<float> statistics(3, 3);
  statistics << 2, 0.5f, 2,  // shares 4/6, 1/6, 1/6
      0, 1, 0,               // 0, 1, 0
      9, 4.5f, 18;           // held out
  // Means over the first two: 1/3, 7/12, 1/12; with 2 neurons kept the threshold is 1/3.
  const matrix<float> labels = neuron_labels(statistics, lengths, 2, labeling::margin, {0, 1});
  EXPECT_TRUE(labels.isApprox((matrix<float>(3, 3) << 1, -.5f, -.5f, -1, 2, -1, 0, 0, 0).finished(), 1e-6f)) << labels;
  const matrix<float> rare = neuron_labels(statistics, lengths, 3, labeling::margin, {1});
  EXPECT_EQ(rare(1, 0), 0) << "the threshold is 0: only what is active counts";
  EXPECT_EQ(rare(1, 1), 100);
}

struct ffn_case {
  bool gated;
  skim::activation act;
};

class calibrate_ffn : public testing::TestWithParam<ffn_case> {};

TEST_P(calibrate_ffn, is_the_references) {
  const Eigen::Index M = 5, d = 9, f = 14;
  const matrix<float> x = random_matrix(M, d, 1), gate = random_matrix(f, d, 2), up = random_matrix(f, d, 3),
                      down = random_matrix(f, d, 4);
  ffn_layer layer;
  if (GetParam().gated) layer.gate = skim::as_view(gate);
  layer.up = skim::as_view(up);
  layer.down = skim::as_view(down);
  layer.act = GetParam().act;
  skim::ffn_args args = skim::calibrate::detail::arguments(layer, skim::as_view(x));
  const ffn_weights weights(layer);
  const matrix<float> z = neuron_values(weights, x);

  const auto expect_near = [](const matrix<float>& got, const std::vector<double>& wanted) {
    const std::vector<double> values = as_doubles(got);
    ASSERT_EQ(values.size(), wanted.size());
    double size = 0;
    for (const double each : wanted) size = std::max(size, std::abs(each));
    for (std::size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(values[i], wanted[i], 1e-5 * size) << i;
  };
  expect_near(z, skim::reference::neuron_values(args, skim::reference::every_neuron(args)));
  expect_near(neuron_statistic(z), skim::reference::neuron_statistic(args));
  row<float> chosen = row<float>::Ones(f);
  chosen(2) = chosen(3) = chosen(13) = 0;
  expect_near(left_out(weights, z, chosen), skim::reference::ffn(args, {2, 3, 13}));
}

INSTANTIATE_TEST_SUITE_P(
    all, calibrate_ffn,
    testing::Values(ffn_case{true, skim::activation::silu}, ffn_case{false, skim::activation::silu},
                    ffn_case{true, skim::activation::gelu_tanh}, ffn_case{true, skim::activation::gelu_erf},
                    ffn_case{true, skim::activation::relu}, ffn_case{false, skim::activation::relu_squared}));

TEST(calibrate_ffn_layer, zero_tokens_count_as_zeros) {
  matrix<float> z = matrix<float>::Zero(3, 4);
  z(1, 2) = -7;
  EXPECT_EQ(neuron_statistic(z), (row<float>(4) << 0, 0, 1, 0).finished());
}

/// Blocks in which one token, told by its first feature, names one of four sets of neurons, while the others name any;
/// and the predictor that reads it.
struct planted {
  static constexpr Eigen::Index d = 16, M = 6, f = 32, kept = 16;
  predictor_parameters<float> truth{d, 4, f};
  std::vector<matrix<float>> x;
  matrix<float> statistics;
  block_split split;

  explicit planted(Eigen::Index blocks) : statistics(blocks, f) {
    random_numbers random(3);
    truth.query()(0) = 40;
    truth.w2().setZero();
    for (Eigen::Index k = 0; k < 4; ++k) {
      truth.w1()(1 + k, k) = 1;
      std::vector<Eigen::Index> neurons(static_cast<std::size_t>(f));
      for (Eigen::Index j = 0; j < f; ++j) neurons[static_cast<std::size_t>(j)] = j;
      random.shuffle(neurons);
      for (Eigen::Index j = 0; j < kept; ++j)
        truth.w2()(k, neurons[static_cast<std::size_t>(j)]) = 1 + 0.02f * static_cast<float>(j);
    }
    for (Eigen::Index b = 0; b < blocks; ++b) {
      matrix<float> tokens = 0.1f * random_matrix(M, d, static_cast<unsigned>(b));
      for (Eigen::Index t = 0; t < M; ++t) tokens(t, 1 + static_cast<Eigen::Index>((random.symmetric() + 1) * 2)) += 1;
      tokens(b % M, 0) += 1;
      statistics.row(b) = logits(truth, tokens).array().exp();
      x.push_back(tokens);
      (b % 5 == 0 ? split.held_out : split.training).push_back(b);
    }
  }

  /// Share of the truth's neurons that scores choose on the held-out blocks.
  template <class Scores>
  double recall(const Scores& scores) const {
    double sum = 0;
    for (const Eigen::Index b : split.held_out) {
      sum += static_cast<double>(strongest(statistics.row(b), kept).dot(strongest(scores(b), kept))) / kept;
    }
    return sum / static_cast<double>(split.held_out.size());
  }
};

class calibrate_planted : public testing::TestWithParam<labeling> {};

TEST_P(calibrate_planted, predictor_is_recovered) {
  const planted data(500);
  const training how{40, 40, 16, 2e-2, 0.0};
  const row<float> lengths = row<float>::Ones(data.statistics.cols());
  const matrix<float> labels = neuron_labels(data.statistics, lengths, data.kept, GetParam(), data.split.training);
  const predictor_parameters<float> fitted = fit_predictor(data.x, labels, 8, {how, &data.split, 1, 5, {}}, serial);
  const double recall =
      data.recall([&](Eigen::Index b) { return logits(fitted, data.x[static_cast<std::size_t>(b)]); });
  const row<float> mean = data.statistics.colwise().mean();
  EXPECT_GE(recall, 0.98);
  EXPECT_LT(data.recall([&](Eigen::Index) { return mean; }), 0.8) << "a constant set must not do";
}

INSTANTIATE_TEST_SUITE_P(labels, calibrate_planted, testing::Values(labeling::fifths, labeling::margin));

/// A plain FFN of 16 strong neurons and 16 weak ones; the weak ones look in two directions only, so that two SiLU units
/// can stand in for all of them.
struct two_directions {
  static constexpr Eigen::Index d = 16, f = 32;
  matrix<float> up = random_matrix(f, d, 7), down = random_matrix(f, d, 8);

  two_directions() {
    for (Eigen::Index j = 4; j < f; j += 2) up.row(j) = up.row(j % 4);
    for (Eigen::Index j = 0; j < f; j += 2) up.row(j) *= 0.2f;
  }

  ffn_layer layer() const {
    ffn_layer view;
    view.up = skim::as_view(up);
    view.down = skim::as_view(down);
    return view;
  }
};

/// Six prompts of `blocks` blocks of normal values about a mean, as behind a norm's weights; layer l gets other ones.
input_source normal_inputs(Eigen::Index blocks, Eigen::Index M, Eigen::Index d) {
  return [=](std::int64_t layer, const input_sink& sink) {
    for (Eigen::Index b = 0; b < 6 * blocks; ++b) {
      const matrix<float> x = random_matrix(M, d, static_cast<unsigned>(1000 * layer + b)).array() + 0.5f;
      sink(10 + b % 6, skim::as_view(x));
    }
  };
}

options quick() {
  options how;
  how.predictor = {3, 3, 8, 1e-2, 0.01};
  how.compensator = {3, 3, 8, 1e-2, 0.0};
  return how;
}

TEST(calibrate_fit, compensators_stand_in_for_what_is_left_out) {
  const two_directions model;
  options how = quick();
  how.compensator = {60, 60, 4, 3e-2, 0.0};
  const fit_result fitted = fit({model.layer()}, normal_inputs(20, 16, model.d), how, serial);
  ASSERT_EQ(fitted.reports.size(), 1u);
  const layer_report& report = fitted.reports[0];
  for (const selection_report& each : {report.oracle, report.predictor, report.calibrated_set}) {
    EXPECT_GT(each.error, 0.02);
    EXPECT_LE(each.captured, 1 + 1e-6);
  }
  EXPECT_LT(report.oracle.compensated_error, 0.7 * report.oracle.error);
  EXPECT_LT(report.calibrated_set.compensated_error, 0.3 * report.calibrated_set.error);
  EXPECT_LT(report.predictor.compensated_error, 0.5 * report.predictor.error);
  EXPECT_EQ(report.oracle.recall, 1);
  EXPECT_EQ(report.oracle.captured, 1);
  EXPECT_EQ(report.held_out_blocks, 20);
  EXPECT_EQ(report.training_blocks, 100);
}

/// All numbers of a model in one row.
std::vector<float> numbers_of(const fitted_model& model) {
  std::vector<float> all;
  for (const fitted_layer& layer : model.layers) {
    for (const auto* part :
         {&layer.query, &layer.w1, &layer.w2, &layer.c1, &layer.c2, &layer.statistic, &layer.set_c1, &layer.set_c2}) {
      all.insert(all.end(), part->begin(), part->end());
    }
  }
  return all;
}

TEST(calibrate_fit, same_seed_same_bits_for_any_workers) {
  const two_directions model;
  const std::vector<ffn_layer> layers = {model.layer(), model.layer()};
  const input_source source = normal_inputs(4, 7, model.d);
  const auto with = [&](unsigned workers, std::uint64_t seed) {
    options how = quick();
    how.seed = seed;
    skim_test::thread_pool pool(workers);
    return numbers_of(fit(layers, source, how, pool.executor()).model);
  };
  const std::vector<float> one = with(1, 9);
  EXPECT_EQ(one, with(3, 9));
  EXPECT_NE(one, with(1, 10));
}

TEST(calibrate_fit, goes_on_after_each_layer_with_the_same_bits) {
  const two_directions model;
  const std::vector<ffn_layer> layers = {model.layer(), model.layer(), model.layer()};
  std::vector<fit_result> parts;
  options how = quick();
  how.after_layer = [&](const fit_result& so_far) { parts.push_back(so_far); };
  const input_source source = normal_inputs(2, 5, model.d);
  const fit_result whole = fit(layers, source, how, serial);
  ASSERT_EQ(parts.size(), 3u);
  for (std::size_t done = 1; done <= 3; ++done) {
    ASSERT_EQ(parts[done - 1].model.layers.size(), done);
    std::vector<std::int64_t> asked, expected;
    for (std::size_t layer = done; layer < 3; ++layer) expected.push_back(static_cast<std::int64_t>(layer));
    const fit_result resumed = fit(
        layers,
        [&](std::int64_t layer, const input_sink& sink) {
          asked.push_back(layer);
          source(layer, sink);
        },
        quick(), serial, parts[done - 1]);
    EXPECT_EQ(asked, expected);
    EXPECT_EQ(numbers_of(resumed.model), numbers_of(whole.model));
    ASSERT_EQ(resumed.reports.size(), 3u);
    for (std::size_t layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(resumed.reports[layer].predictor.error, whole.reports[layer].predictor.error);
    }
  }
}

TEST(calibrate_fit, refuses_to_go_on_with_another_models_layers) {
  const two_directions model;
  const std::vector<ffn_layer> layers = {model.layer(), model.layer()};
  const input_source source = normal_inputs(1, 5, model.d);
  const fit_result one = fit({model.layer()}, source, quick(), serial);
  const auto refuses = [&](const fit_result& so_far, const std::vector<ffn_layer>& of, const options& how = quick()) {
    try {
      static_cast<void>(fit(of, source, how, serial, so_far));
    } catch (const std::invalid_argument& problem) {
      return std::string(problem.what()) == "calibrate: so_far is of another model or of other options";
    }
    return false;
  };
  EXPECT_FALSE(refuses(one, layers));
  EXPECT_TRUE(refuses(one, {}));
  options how = quick();
  how.keep = skim::neuron_retention::share(0.25);
  EXPECT_TRUE(refuses(one, layers, how));
  how = quick();
  how.rank = 7;
  EXPECT_TRUE(refuses(one, layers, how));
  fit_result broken = one;
  broken.reports.clear();
  EXPECT_TRUE(refuses(broken, layers));
  broken = one;
  broken.model.layers[0].set_c2.pop_back();
  EXPECT_TRUE(refuses(broken, layers));
  broken = one;
  broken.model.act = skim::activation::relu;
  EXPECT_TRUE(refuses(broken, layers));
}

TEST(calibrate_fit, asks_for_each_layer_once_and_reports_progress) {
  const two_directions model;
  std::vector<std::int64_t> asked;
  std::vector<std::string> stages;
  const input_source inner = normal_inputs(2, 5, model.d);
  options how = quick();
  how.keep = skim::neuron_retention::budget(10);
  how.rank = 3;
  how.report = [&](const progress& now) {
    EXPECT_EQ(now.layers, 2);
    EXPECT_LE(now.epoch, now.epochs);
    if (stages.empty() || stages.back() != now.stage) stages.push_back(now.stage);
  };
  const fit_result fitted = fit(
      {model.layer(), model.layer()},
      [&](std::int64_t layer, const input_sink& sink) {
        asked.push_back(layer);
        inner(layer, sink);
      },
      how, serial);
  EXPECT_EQ(asked, (std::vector<std::int64_t>{0, 1}));
  const std::vector<std::string> of_one = {"inputs", "compensator", "predictor", "predicted", "constant"};
  std::vector<std::string> expected = of_one;
  expected.insert(expected.end(), of_one.begin(), of_one.end());
  EXPECT_EQ(stages, expected);

  const skim::fastforward policy = fitted.model.fastforward(1);
  EXPECT_TRUE(skim::check(policy.predictor, model.d, model.f).ok());
  EXPECT_TRUE(skim::check(policy.compensator, model.d).ok());
  EXPECT_EQ(policy.predictor.w1.extents[1], 3);
  EXPECT_EQ(policy.keep.neurons(model.f), 10);
  EXPECT_TRUE(skim::check(fitted.model.calibrated_set(1).compensator, model.d).ok());
  EXPECT_EQ(fitted.model.calibrated_set(1).statistic.extents[0], model.f);
}

TEST(calibrate_fit, keeping_everything_leaves_nothing_to_compensate) {
  const two_directions model;
  options how = quick();
  how.keep = skim::neuron_retention::share(1);
  const fit_result fitted = fit({model.layer()}, normal_inputs(2, 5, model.d), how, serial);
  EXPECT_EQ(fitted.reports[0].predictor.recall, 1);
  EXPECT_EQ(fitted.reports[0].predictor.compensated_error, 0);
  EXPECT_EQ(fitted.model.layers[0].c2, std::vector<float>(fitted.model.layers[0].c2.size(), 0.0f));
}

/// The message with which `fit` refuses, or "fitted".
std::string refusal(const std::vector<ffn_layer>& layers, const input_source& source, const options& how = quick()) {
  try {
    static_cast<void>(fit(layers, source, how, serial));
  } catch (const std::invalid_argument& problem) {
    return problem.what();
  }
  return "fitted";
}

TEST(calibrate_fit, refuses_what_does_not_fit) {
  const two_directions model;
  const input_source good = normal_inputs(1, 5, model.d);
  ffn_layer narrow = model.layer();
  narrow.up.extents[0] = narrow.down.extents[0] = 20;
  ffn_layer other = model.layer();
  other.down.extents[0] = 20;
  EXPECT_EQ(refusal({model.layer()}, good), "fitted");
  EXPECT_EQ(refusal({model.layer(), narrow}, good),
            "calibrate: layer 1: its shape or activation differs from layer 0's");
  EXPECT_EQ(refusal({other}, good), "calibrate: layer 0: bad extent: down.extents[0] is 20, expected 32");
  EXPECT_EQ(refusal({model.layer()}, normal_inputs(1, 5, model.d + 1)),
            "calibrate: layer 0: bad extent: up.extents[1] is 16, expected 17");
  EXPECT_EQ(refusal({model.layer()}, [](std::int64_t, const input_sink&) {}),
            "calibrate: layer 0: blocks of 0 prompts came, at least 2 are needed");
  matrix<float> x = random_matrix(5, model.d, 1);
  x(3, 3) = std::nanf("");
  EXPECT_EQ(refusal({model.layer()}, [&](std::int64_t, const input_sink& sink) { sink(4, skim::as_view(x)); }),
            "calibrate: layer 0: an input of prompt 4 is not finite");
  options how = quick();
  how.keep = skim::neuron_retention::share(0);
  EXPECT_EQ(refusal({model.layer()}, good, how), "calibrate: options.keep is not valid");
  how = quick();
  how.compensator.batch = 0;
  EXPECT_EQ(refusal({model.layer()}, good, how), "calibrate: a batch has at least 1 block");
}

TEST(calibrate_descend, stops_when_the_held_out_loss_no_longer_falls) {
  // Every step away from the start makes the held-out block worse.
  block_split split{{0}, {1}};
  struct point {
    row<float> values = row<float>::Zero(1);
  } start;
  const auto loss = [](const point& now, const Eigen::Index* blocks, Eigen::Index count, point* gradient) {
    double sum = 0;
    for (Eigen::Index i = 0; i < count; ++i) {
      const float wanted = blocks[i] == 0 ? 5.0f : -5.0f, off = now.values(0) - wanted;
      if (gradient) gradient->values(0) += 2 * off;
      sum += static_cast<double>(off * off);
    }
    return sum;
  };
  std::int64_t epochs = 0;
  const descent how{{50, 4, 1, 0.1, 0.0}, &split, 1, 0, [&](std::int64_t epoch, double) { epochs = epoch; }};
  EXPECT_EQ(descend(start, loss, how, serial), 25);
  EXPECT_EQ(start.values(0), 0) << "the best parameters stay";
  EXPECT_EQ(epochs, 4) << "its patience";
  split.held_out = {0};
  EXPECT_LT(descend(start, loss, how, serial), 15);
  EXPECT_EQ(epochs, 50);
}

}  // namespace
