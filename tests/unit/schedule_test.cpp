// SPDX-License-Identifier: Apache-2.0
// The layer schedule: shares of random importances against the paper's allocation and against a search for the one common
// factor; neurons in whole pieces.
#include "support/faults.hpp"

#include <skim/neuron_selector/schedule.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace {

using namespace skim_test;
using skim::neuron_schedule;
using skim::status;
using numbers = std::vector<double>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

numbers fractions_of(const numbers& importance, const neuron_schedule& schedule) {
  numbers fractions(importance.size(), not_a_number);
  const std::int64_t layers = static_cast<std::int64_t>(importance.size());
  EXPECT_TRUE(kept_fractions(importance.data(), layers, schedule, fractions.data()).ok());
  return fractions;
}

std::vector<std::int64_t> neurons_of(const numbers& importance, std::int64_t f, const neuron_schedule& schedule) {
  std::vector<std::int64_t> neurons(importance.size(), -7);
  numbers scratch(importance.size());
  const std::int64_t layers = static_cast<std::int64_t>(importance.size());
  EXPECT_TRUE(kept_neurons(importance.data(), layers, f, schedule, scratch.data(), neurons.data()).ok());
  return neurons;
}

double sum(const numbers& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

/// The paper's allocation: T = b L, S = sum s; layer by layer b_l = min(1, s_l / S * T), T -= b_l, S -= s_l.
numbers sequential_fractions(const numbers& importance, double mean) {
  double T = mean * static_cast<double>(importance.size()), S = sum(importance);
  numbers fractions;
  for (const double s : importance) {
    fractions.push_back(std::min(1.0, s / S * T));
    T -= fractions.back();
    S -= s;
  }
  return fractions;
}

/// clamp(factor * s_l, least, 1) with the factor whose sum is right, found by bisection: for importances above 0.
numbers clamped_fractions(const numbers& importance, const neuron_schedule& schedule) {
  const double target = schedule.mean * static_cast<double>(importance.size());
  double low = 0, high = 2 / *std::min_element(importance.begin(), importance.end());
  numbers fractions = importance;
  for (int i = 0; i < 200; ++i) {
    const double factor = (low + high) / 2;
    for (std::size_t l = 0; l < importance.size(); ++l) {
      fractions[l] = std::min(1.0, std::max(schedule.least, factor * importance[l]));
    }
    (sum(fractions) < target ? low : high) = factor;
  }
  return fractions;
}

/// Random layers and a random schedule. `spread` is the standard deviation of the importances' logarithm.
struct draw {
  numbers importance;
  neuron_schedule schedule;

  draw(std::mt19937& random, double spread) {
    std::uniform_real_distribution<double> uniform;
    std::normal_distribution<double> normal;
    schedule.mean = 0.02 + 0.97 * uniform(random);
    schedule.least = uniform(random) < 0.3 ? 0 : schedule.mean * uniform(random);
    const std::size_t layers = 1 + random() % 48;
    for (std::size_t l = 0; l < layers; ++l) importance.push_back(std::exp(spread * normal(random)));
  }
};

void expect_near(const numbers& got, const numbers& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t l = 0; l < got.size(); ++l) EXPECT_NEAR(got[l], expected[l], tolerance) << "layer " << l;
}

TEST(KeptFractions, OfRandomImportancesSumToTheMeanWithinBounds) {
  std::mt19937 random(1);
  int capped = 0, floored = 0, both = 0;
  for (int i = 0; i < 4000; ++i) {
    const draw d(random, i % 4);
    const numbers fractions = fractions_of(d.importance, d.schedule);
    EXPECT_NEAR(sum(fractions), d.schedule.mean * static_cast<double>(fractions.size()), 1e-11);
    const auto [least, most] = std::minmax_element(fractions.begin(), fractions.end());
    EXPECT_GE(*least, d.schedule.least);
    EXPECT_LE(*most, 1);
    expect_near(fractions, clamped_fractions(d.importance, d.schedule), 1e-9);
    const bool cap = *most == 1, floor = *least == d.schedule.least && d.schedule.least > 0;
    capped += cap;
    floored += floor;
    both += cap && floor;
    if (HasFailure()) FAIL() << "draw " << i;
  }
  EXPECT_GT(capped, 500);
  EXPECT_GT(floored, 500);
  EXPECT_GT(both, 100);
}

TEST(KeptFractions, AreThePapersWhereNoneIsHeldBack) {
  std::mt19937 random(2);
  int compared = 0;
  for (int i = 0; i < 4000; ++i) {
    draw d(random, 0.5);
    d.schedule.least = 0;
    const numbers expected = sequential_fractions(d.importance, d.schedule.mean);
    const double most = *std::max_element(expected.begin(), expected.end());
    if (most >= 1) continue;
    expect_near(fractions_of(d.importance, d.schedule), expected, 1e-11);
    ++compared;
  }
  EXPECT_GT(compared, 1000);
}

TEST(KeptFractions, GiveWhatACapFreesToAllOtherLayers) {
  // Shares of 2: 0.2, 1.6, 0.2. In the paper's order nothing of the rest reaches layer 0.
  expect_near(fractions_of({1, 8, 1}, {2.0 / 3, 0.1, 64}), {0.5, 1, 0.5}, 1e-15);
  expect_near(sequential_fractions({1, 8, 1}, 2.0 / 3), {0.2, 1, 0.8}, 1e-15);
  // A floor takes it from all others: shares of 1.5 are 0.03, 0.735, 0.735.
  expect_near(fractions_of({2, 49, 49}, {0.5, 0.2, 64}), {0.2, 0.65, 0.65}, 1e-15);
}

TEST(KeptFractions, RiseWithImportance) {
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) {
    draw d(random, 1.5);
    const numbers before = fractions_of(d.importance, d.schedule);
    for (std::size_t a = 0; a < before.size(); ++a) {
      for (std::size_t b = 0; b < before.size(); ++b) {
        if (d.importance[a] > d.importance[b]) continue;
        EXPECT_LE(before[a], before[b] + 1e-12);
      }
    }
    const std::size_t raised = random() % before.size();
    d.importance[raised] *= 1.7;
    const numbers after = fractions_of(d.importance, d.schedule);
    for (std::size_t l = 0; l < before.size(); ++l) {
      if (l == raised) {
        EXPECT_GE(after[l], before[l] - 1e-12);
      } else {
        EXPECT_LE(after[l], before[l] + 1e-12);
      }
    }
  }
}

TEST(KeptFractions, DoNotDependOnTheOrderOfLayersOrTheUnitOfImportance) {
  std::mt19937 random(4);
  for (int i = 0; i < 1000; ++i) {
    const draw d(random, 1.5);
    const numbers before = fractions_of(d.importance, d.schedule);
    std::vector<std::size_t> order(before.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), random);
    numbers importance, expected;
    for (const std::size_t l : order) {
      importance.push_back(d.importance[l] * 1e-7);
      expected.push_back(before[l]);
    }
    expect_near(fractions_of(importance, d.schedule), expected, 1e-11);
    for (double& value : importance) value *= 1e307;
    expect_near(fractions_of(importance, d.schedule), expected, 1e-11);
  }
}

TEST(KeptFractions, CountWhatIsNoImportanceAsZero) {
  const neuron_schedule schedule{0.5, 0.1, 64};
  for (const double nothing : {0.0, -0.0, -3.0, not_a_number, infinity, -infinity}) {
    expect_near(fractions_of({nothing, 1, 1}, schedule), {0.1, 0.7, 0.7}, 1e-15);
    expect_near(fractions_of({nothing, nothing, nothing, nothing}, schedule), {0.5, 0.5, 0.5, 0.5}, 0);
    // Once those that count are full, the others share what is left.
    expect_near(fractions_of({nothing, 1, nothing, nothing}, schedule), {1.0 / 3, 1, 1.0 / 3, 1.0 / 3}, 1e-15);
  }
  const double most = std::numeric_limits<double>::max(), least = std::numeric_limits<double>::denorm_min();
  expect_near(fractions_of({most, most, most}, schedule), {0.5, 0.5, 0.5}, 1e-15);
  expect_near(fractions_of({least, least, 2 * least}, schedule), {0.375, 0.375, 0.75}, 1e-15);
  expect_near(fractions_of({most, least}, {0.5, 0, 64}), {1, 0}, 0);
}

TEST(KeptFractions, OfOneLayerOrOfEverything) {
  EXPECT_EQ(fractions_of({3}, {0.3, 0.1, 64}), numbers{0.3});
  EXPECT_EQ(fractions_of({0}, {0.3, 0.1, 64}), numbers{0.3});
  EXPECT_EQ(fractions_of({}, {}), numbers{});
  std::mt19937 random(5);
  for (int i = 0; i < 200; ++i) {
    draw d(random, 2);
    d.schedule.mean = 1;
    expect_near(fractions_of(d.importance, d.schedule), numbers(d.importance.size(), 1.0), 1e-13);
    d.schedule.least = d.schedule.mean = 0.37;
    expect_near(fractions_of(d.importance, d.schedule), numbers(d.importance.size(), 0.37), 1e-13);
  }
}

TEST(KeptNeurons, SumToTheBudgetInWholePieces) {
  std::mt19937 random(6);
  for (int i = 0; i < 4000; ++i) {
    draw d(random, i % 4);
    const std::int64_t widths[] = {64, 100, 1000, 3072, 14336}, pieces[] = {1, 7, 64, 96};
    const std::int64_t f = widths[random() % 5];
    d.schedule.multiple = std::min(f, pieces[random() % 4]);
    const double multiple = static_cast<double>(d.schedule.multiple), width = static_cast<double>(f);
    const numbers fractions = fractions_of(d.importance, d.schedule);
    const std::vector<std::int64_t> neurons = neurons_of(d.importance, f, d.schedule);
    // Where a share is less than the one piece that every layer gets, others give up some of theirs.
    const bool scarce = *std::min_element(fractions.begin(), fractions.end()) * width < multiple;
    double total = 0;
    bool one_each = true;
    for (std::size_t l = 0; l < neurons.size(); ++l) {
      const double kept = static_cast<double>(neurons[l]), exact = fractions[l] * width;
      total += kept;
      one_each = one_each && neurons[l] == d.schedule.multiple;
      EXPECT_TRUE(neurons[l] % d.schedule.multiple == 0 || neurons[l] == f);
      EXPECT_GE(neurons[l], d.schedule.multiple);
      EXPECT_LE(neurons[l], f);
      EXPECT_LT(kept, exact + multiple + 1e-9) << "layer " << l;
      EXPECT_TRUE(scarce || kept > exact - multiple - 1e-9) << "layer " << l;
    }
    const double budget = d.schedule.mean * static_cast<double>(neurons.size()) * width;
    if (total > budget && one_each) continue;  // no layer goes without
    EXPECT_LE(std::abs(total - budget), multiple / 2 + 1e-6);
    if (HasFailure()) FAIL() << "draw " << i << ", f " << f << ", multiple " << multiple;
  }
}

TEST(KeptNeurons, OfSmallCases) {
  using list = std::vector<std::int64_t>;
  EXPECT_EQ(neurons_of({1, 1}, 1024, {0.5, 0.1, 64}), (list{512, 512}));
  EXPECT_EQ(neurons_of({1, 2, 1}, 256, {0.5, 0.1, 64}), (list{128, 192, 64}));  // exact: 96, 192, 96
  EXPECT_EQ(neurons_of({1, 1, 1}, 100, {1, 0.1, 64}), (list{100, 100, 100}));
  EXPECT_EQ(neurons_of({1, 0, 0}, 640, {0.25, 0, 64}), (list{320, 64, 64}));  // 480 in all, 448 in whole pieces
  EXPECT_EQ(neurons_of({1, 0, 0}, 640, {0.1, 0, 64}), (list{64, 64, 64}));    // 192, all to layer 0, by shares
  EXPECT_EQ(neurons_of({1, 5}, 50, {0.1, 0, 64}), (list{50, 50}));            // a piece is more than a layer has
  EXPECT_EQ(neurons_of({1, 1, 1}, 10, {0.5, 0.1, 1}), (list{5, 5, 5}));
  EXPECT_EQ(neurons_of({}, 10, {}), list{});
}

using schedule_fault = fault<neuron_schedule>;
const std::vector<schedule_fault> faults{
    {"mean 0", [](auto& s) { s.mean = 0; }, {status::bad_value, "schedule.mean", "0"}},
    {"mean above 1", [](auto& s) { s.mean = 1.01; }, {status::bad_value, "schedule.mean", "1.01"}},
    {"mean NaN", [](auto& s) { s.mean = not_a_number; }, {status::bad_value, "schedule.mean", "nan"}},
    {"negative least", [](auto& s) { s.least = -0.1; }, {status::bad_value, "schedule.least", "-0.1"}},
    {"least above mean", [](auto& s) { s.least = 0.6; }, {status::bad_value, "schedule.least", "0.6"}},
    {"least NaN", [](auto& s) { s.least = not_a_number; }, {status::bad_value, "schedule.least", "nan"}},
    {"multiple", [](auto& s) { s.multiple = 0; }, {status::bad_value, "schedule.multiple", "0"}},
};

TEST(Schedule, FaultsAreNamed) {
  const double importance[] = {1, 2};
  double fractions[] = {7, 7};
  std::int64_t neurons[] = {7, 7};
  const auto expect = [&](const skim::report& got, const expectation& expected) {
    expect_report(got, expected);
    EXPECT_TRUE(fractions[0] == 7 && fractions[1] == 7 && neurons[0] == 7 && neurons[1] == 7);
  };
  for (const schedule_fault& fault : faults) {
    SCOPED_TRACE(fault.name);
    neuron_schedule schedule;
    fault.make(schedule);
    expect(kept_fractions(importance, 2, schedule, fractions), fault.expected);
    expect(kept_neurons(importance, 2, 640, schedule, fractions, neurons), fault.expected);
  }
  const neuron_schedule good;
  expect(kept_fractions(importance, -1, good, fractions), {status::bad_extent, "layers", "-1"});
  expect(kept_fractions(nullptr, 2, good, fractions), {status::null_pointer, "importance", ""});
  expect(kept_fractions(importance, 2, good, nullptr), {status::null_pointer, "fractions", ""});
  expect(kept_neurons(importance, 2, 0, good, fractions, neurons), {status::bad_extent, "f", "0"});
  expect(kept_neurons(importance, 2, huge, good, fractions, neurons),
         {status::unsupported, "f", "4611686018427387904"});
  expect(kept_neurons(nullptr, 2, 640, good, fractions, neurons), {status::null_pointer, "importance", ""});
  expect(kept_neurons(importance, 2, 640, good, nullptr, neurons), {status::null_pointer, "scratch", ""});
  expect(kept_neurons(importance, 2, 640, good, fractions, nullptr), {status::null_pointer, "neurons", ""});
  EXPECT_TRUE(kept_fractions(nullptr, 0, good, nullptr).ok());
}

/// Losses in a table, [layers][levels].
struct loss_table {
  std::vector<float> keep, loss;
  std::int64_t layers;

  skim::neuron_losses view() const {
    return {keep.data(), loss.data(), layers, static_cast<std::int64_t>(keep.size())};
  }
  std::vector<std::int64_t> neurons(std::int64_t f, double most) const {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(layers), -7);
    EXPECT_TRUE(neurons_for_loss(view(), f, most, counts.data()).ok());
    return counts;
  }
};

TEST(neurons_for_loss, by_hand) {
  // Layer 0 costs 0.4 for the first three neurons that it leaves out, layer 1 next to nothing, layer 2 too much.
  const loss_table table{{0.25f, 0.625f}, {1.6f, 0.4f, 0.02f, 0.01f, 9, 8}, 3};
  EXPECT_EQ(table.neurons(8, 0), (std::vector<std::int64_t>{8, 8, 8}));
  EXPECT_EQ(table.neurons(8, 0.015), (std::vector<std::int64_t>{8, 5, 8}));
  EXPECT_EQ(table.neurons(8, 0.02), (std::vector<std::int64_t>{8, 2, 8}));
  EXPECT_EQ(table.neurons(8, 0.41), (std::vector<std::int64_t>{8, 2, 8}));
  EXPECT_EQ(table.neurons(8, 0.43), (std::vector<std::int64_t>{5, 2, 8}));
  EXPECT_EQ(table.neurons(8, 5), (std::vector<std::int64_t>{2, 2, 8}));
  EXPECT_EQ(table.neurons(8, 20), (std::vector<std::int64_t>{2, 2, 2}));
}

TEST(neurons_for_loss, odd_losses) {
  const float infinite = std::numeric_limits<float>::infinity(), unknown = std::numeric_limits<float>::quiet_NaN();
  const loss_table table{{0.5f}, {-1, infinite, unknown, 0}, 4};
  EXPECT_EQ(table.neurons(7, 0), (std::vector<std::int64_t>{4, 7, 7, 4})) << "a gain pays for nobody";
  EXPECT_EQ((loss_table{{}, {}, 2}).neurons(7, 1), (std::vector<std::int64_t>{7, 7}));
  EXPECT_EQ((loss_table{{0.9f, 0.95f}, {0, 0}, 1}).neurons(2, 1), (std::vector<std::int64_t>{2})) << "rounded up";
}

TEST(neurons_for_loss, against_a_search_of_all_choices) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> step(0.01f, 1);
  const std::vector<float> keep = {0.25f, 0.5f, 0.75f};
  const std::int64_t f = 8, layers = 4, piece = 2;
  for (int i = 0; i < 200; ++i) {
    loss_table table{keep, {}, layers};
    for (std::int64_t l = 0; l < layers; ++l) {  // convex: each piece costs more than the one before
      std::array<float, 3> steps{step(random), step(random), step(random)};
      std::sort(steps.begin(), steps.end());
      table.loss.insert(table.loss.end(), {steps[0] + steps[1] + steps[2], steps[0] + steps[1], steps[0]});
    }
    const double most = static_cast<double>(3 * step(random));
    const auto loss_of = [&](const std::vector<std::int64_t>& counts) {
      double loss = 0;
      for (std::size_t l = 0; l < counts.size(); ++l) {
        if (counts[l] < f) loss += static_cast<double>(table.loss[l * 3 + static_cast<std::size_t>(counts[l] / 2 - 1)]);
      }
      return loss;
    };
    const auto all_of = [](const std::vector<std::int64_t>& counts) {
      return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    };
    std::int64_t fewest = f * layers;
    for (int code = 0; code < 256; ++code) {
      const std::vector<std::int64_t> counts = {2 + code % 4 * 2, 2 + code / 4 % 4 * 2, 2 + code / 16 % 4 * 2,
                                                2 + code / 64 * 2};
      if (loss_of(counts) <= most) fewest = std::min(fewest, all_of(counts));
    }
    std::vector<std::int64_t> counts = table.neurons(f, most);
    EXPECT_LE(loss_of(counts), most);
    EXPECT_GE(all_of(counts), fewest);
    EXPECT_LT(all_of(counts), fewest + piece) << "of convex losses in equal pieces the cheapest ones are the most";
    for (std::int64_t& each : counts) {
      if (each == piece) continue;
      each -= piece;
      EXPECT_GT(loss_of(counts), most) << "one more piece would have fitted";
      each += piece;
    }
  }
}

TEST(neurons_for_loss, refuses_what_makes_no_sense) {
  const loss_table good{{0.5f, 0.75f}, {1, 1}, 1};
  std::int64_t count = 0;
  const auto refused = [&](const skim::neuron_losses& losses, std::int64_t f, double most) {
    return neurons_for_loss(losses, f, most, &count);
  };
  expect_report(refused(good.view(), 0, 1), {status::bad_extent, "f", "0"});
  expect_report(refused(good.view(), 8, -1), {status::bad_value, "most", "-1"});
  expect_report(refused(good.view(), 8, not_a_number), {status::bad_value, "most", ""});
  expect_report(refused(good.view(), 8, infinity), {status::bad_value, "most", ""});
  expect_report(neurons_for_loss(good.view(), 8, 1, nullptr), {status::null_pointer, "neurons", ""});
  expect_report(refused(loss_table{{0.5f, 0.5f}, {1, 1}, 1}.view(), 8, 1), {status::bad_value, "keep", "0.5"});
  expect_report(refused(loss_table{{0, 0.5f}, {1, 1}, 1}.view(), 8, 1), {status::bad_value, "keep", "0"});
  expect_report(refused(loss_table{{0.5f, 1}, {1, 1}, 1}.view(), 8, 1), {status::bad_value, "keep", "1"});
  skim::neuron_losses none = good.view();
  none.loss = nullptr;
  expect_report(refused(none, 8, 1), {status::null_pointer, "loss", ""});
}

}  // namespace
