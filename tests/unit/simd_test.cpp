// SPDX-License-Identifier: Apache-2.0
#include "support/values.hpp"

#include <skim/cpu/simd/convert.hpp>
#include <skim/cpu/simd/math.hpp>
#include <skim/cpu/simd/transpose.hpp>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

namespace {

namespace simd = skim::cpu::simd;
using skim::bf16;
using skim::f16;

constexpr std::int64_t W = simd::lanes;
constexpr skim::activation every_activation[] = {skim::activation::silu, skim::activation::gelu_tanh,
                                                 skim::activation::gelu_erf, skim::activation::relu,
                                                 skim::activation::relu_squared};
constexpr float infinity = std::numeric_limits<float>::infinity();

bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : skim::detail::bits_from_float(a) == skim::detail::bits_from_float(b);
}

template <class T>
class sixteen_bit_rows : public testing::Test {};
using sixteen_bit_types = testing::Types<f16, bf16>;
TYPED_TEST_SUITE(sixteen_bit_rows, sixteen_bit_types);

TYPED_TEST(sixteen_bit_rows, every_pattern_widens_as_the_scalar_form_does) {
  for (unsigned first = 0; first < 65536; first += static_cast<unsigned>(W)) {
    TypeParam stored[W];
    float wide[W];
    for (std::int64_t i = 0; i < W; ++i) stored[i].bits = static_cast<std::uint16_t>(first + static_cast<unsigned>(i));
    simd::store(wide, simd::load(stored));
    for (std::int64_t i = 0; i < W; ++i) {
      ASSERT_TRUE(same(wide[i], skim::to_float(stored[i]))) << "pattern " << stored[i].bits;
    }
  }
}

/// Every 16-bit value, its neighbours in f32, and the midpoints between two of them with their neighbours.
template <class T>
std::vector<float> values_around_every_pattern() {
  std::vector<float> values;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = skim::to_float(T{static_cast<std::uint16_t>(bits)});
    const float next = skim::to_float(T{static_cast<std::uint16_t>(bits + 1)});
    const float middle = value / 2 + next / 2;
    for (const float x : {value, middle}) {
      values.insert(values.end(), {std::nextafter(x, -infinity), x, std::nextafter(x, infinity)});
    }
  }
  values.resize(values.size() / static_cast<std::size_t>(W) * static_cast<std::size_t>(W));
  return values;
}

TYPED_TEST(sixteen_bit_rows, rounding_is_the_scalar_form_s) {
  const std::vector<float> values = values_around_every_pattern<TypeParam>();
  for (std::size_t first = 0; first < values.size(); first += static_cast<std::size_t>(W)) {
    TypeParam stored[W];
    simd::store(stored, simd::load(values.data() + first));
    for (std::int64_t i = 0; i < W; ++i) {
      const float value = values[first + static_cast<std::size_t>(i)];
      const TypeParam expected = skim::from_float<TypeParam>(value);
      if (std::isnan(value)) {
        ASSERT_TRUE(std::isnan(skim::to_float(stored[i])));
      } else {
        ASSERT_EQ(stored[i].bits, expected.bits) << value;
      }
    }
  }
}

/// Every sign and quiet bit with payloads from the lowest to the highest, many of which a 16-bit type cannot hold.
std::vector<float> many_nans() {
  std::vector<float> nans;
  for (const std::uint32_t first : {0x7f800000u, 0xff800000u}) {
    for (std::uint32_t payload = 1; payload < 0x800000u; payload += payload < 0x300u || payload > 0x7ffd00u ? 1 : 251) {
      nans.push_back(skim::detail::float_from_bits(first + payload));
    }
  }
  nans.resize(nans.size() / static_cast<std::size_t>(W) * static_cast<std::size_t>(W) -
              static_cast<std::size_t>(W) / 2);
  return nans;
}

/// As integers: what tells them apart must not be a comparison that the test is about.
bool is_nan_pattern(f16 x) {
  return (x.bits & 0x7fffu) > 0x7c00u;
}
bool is_nan_pattern(bf16 x) {
  return (x.bits & 0x7fffu) > 0x7f80u;
}
bool is_nan_pattern(float x) {
  return (skim::detail::bits_from_float(x) & 0x7fffffffu) > 0x7f800000u;
}

TYPED_TEST(sixteen_bit_rows, keep_every_nan) {
  const std::vector<float> nans = many_nans();
  const std::int64_t n = static_cast<std::int64_t>(nans.size());
  std::vector<TypeParam> stored(nans.size());
  std::vector<float> wide(nans.size());
  simd::narrow(nans.data(), n, stored.data());
  simd::widen(stored.data(), n, wide.data());
  for (std::size_t i = 0; i < nans.size(); ++i) {  // the last ones are the tail of a row
    const std::uint32_t bits = skim::detail::bits_from_float(nans[i]);
    ASSERT_TRUE(is_nan_pattern(stored[i])) << std::hex << bits << " became " << stored[i].bits;
    ASSERT_EQ(stored[i].bits >> 15, bits >> 31) << std::hex << bits;
    ASSERT_TRUE(is_nan_pattern(wide[i])) << std::hex << bits;
  }
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const TypeParam pattern{static_cast<std::uint16_t>(bits)};
    ASSERT_EQ(is_nan_pattern(skim::to_float(pattern)), is_nan_pattern(pattern)) << std::hex << bits;
  }
}

template <class T>
class row_conversions : public testing::Test {};
using row_types = testing::Types<float, f16, bf16>;
TYPED_TEST_SUITE(row_conversions, row_types);

TYPED_TEST(row_conversions, touch_exactly_n_elements_at_any_alignment) {
  constexpr skim::element type = skim::element_of<TypeParam>;
  const std::int64_t most = 2 * W + 3;
  const std::vector<float> values = skim_test::normal_values(most, 3);
  for (std::int64_t shift = 0; shift < 3; ++shift) {
    for (std::int64_t n = 0; n <= most; ++n) {
      const std::size_t size = static_cast<std::size_t>(most + 6) * sizeof(TypeParam);
      std::vector<unsigned char> narrow(size, 0xa5), untouched = narrow;
      TypeParam* const to = reinterpret_cast<TypeParam*>(narrow.data()) + shift;
      simd::narrow(values.data(), n, to);
      std::vector<float> wide(static_cast<std::size_t>(most + 2), 99.0f);
      simd::widen(to, n, wide.data() + 1);
      for (std::int64_t i = 0; i < n; ++i) {
        skim::store_element(untouched.data(), type, i + shift, values[static_cast<std::size_t>(i)]);
        ASSERT_EQ(wide[static_cast<std::size_t>(i + 1)], skim::load_element(untouched.data(), type, i + shift));
      }
      ASSERT_EQ(narrow, untouched) << "n " << n << ", shift " << shift;
      ASSERT_EQ(wide[0], 99.0f);
      ASSERT_EQ(wide[static_cast<std::size_t>(n + 1)], 99.0f);
    }
  }
}

float exp2_of(float x) {
  float lanes[W];
  simd::store(lanes, simd::exp2_nonpositive(simd::floats(x)));
  return lanes[W - 1];
}

TEST(Exp2, RelativeErrorIsBelowItsBound) {
  double worst = 0;
  float worst_at = 0;
  const auto check = [&](float x) {
    const double error = std::fabs(static_cast<double>(exp2_of(x)) / std::exp2(static_cast<double>(x)) - 1);
    if (error > worst) {
      worst = error;
      worst_at = x;
    }
  };
  for (int i = 0; i <= 126 * 4096; ++i) check(-static_cast<float>(i) / 4096.0f);
  for (float x = -1.0f; x < -1e-8f; x *= 0.999f) check(x);
  EXPECT_LT(worst, 1.2e-7) << "at " << worst_at;
}

TEST(Exp2, Ends) {
  EXPECT_EQ(exp2_of(0.0f), 1.0f);
  EXPECT_EQ(exp2_of(-0.0f), 1.0f);
  EXPECT_EQ(exp2_of(-1.0f), 0.5f);
  EXPECT_EQ(exp2_of(-126.0f), 0x1p-126f);
  EXPECT_EQ(exp2_of(std::nextafter(-126.0f, -infinity)), 0.0f);
  EXPECT_EQ(exp2_of(-1e30f), 0.0f);
  EXPECT_EQ(exp2_of(-infinity), 0.0f);
  EXPECT_TRUE(std::isnan(exp2_of(std::numeric_limits<float>::quiet_NaN())));
}

/// Calls `expect(function of a NaN, its bits, name)`.
template <class Function>
void expect_nan_of_every_nan(const char* name, const Function& function) {
  const std::vector<float> nans = many_nans();
  for (std::size_t first = 0; first + static_cast<std::size_t>(W) <= nans.size();
       first += static_cast<std::size_t>(W)) {
    float got[W];
    simd::store(got, function(simd::load(nans.data() + first)));
    for (std::int64_t i = 0; i < W; ++i) {
      ASSERT_TRUE(is_nan_pattern(got[i]))
          << name << " of " << std::hex << skim::detail::bits_from_float(nans[first + static_cast<std::size_t>(i)]);
    }
  }
}

TEST(Functions, OfEveryNanAreNan) {
  expect_nan_of_every_nan("exp2", [](simd::floats x) { return simd::exp2_nonpositive(x); });
  expect_nan_of_every_nan("sigmoid", [](simd::floats x) { return simd::sigmoid(x); });
  expect_nan_of_every_nan(
      "soft cap", [](simd::floats x) { return simd::soft_cap(x, simd::floats(30.0f), simd::floats(1 / 30.0f)); });
  for (const skim::activation act : every_activation) {
    expect_nan_of_every_nan(to_string(act), [act](simd::floats x) { return simd::activate(act, x); });
  }
}

TEST(Activations, AreWithinTheirBound) {
  for (const skim::activation act : every_activation) {
    for (float x = -60.0f; x <= 60.0f; x += 0.01f) {
      float got[W];
      simd::store(got, simd::activate(act, simd::floats(x)));
      const double wide = static_cast<double>(x), expected = skim::activate(act, wide);
      ASSERT_NEAR(static_cast<double>(got[W - 1]), expected, 4e-7 * (std::fabs(expected) + std::fabs(wide)))
          << to_string(act) << " of " << x;
    }
  }
}

TEST(SoftCap, IsTheScaledHyperbolicTangent) {
  for (float x = -200.0f; x <= 200.0f; x += 0.37f) {
    float got[W];
    simd::store(got, simd::soft_cap(simd::floats(x), simd::floats(30.0f), simd::floats(1 / 30.0f)));
    const double expected = 30 * std::tanh(static_cast<double>(x) / 30);
    ASSERT_NEAR(static_cast<double>(got[0]), expected, 6e-7 * std::fabs(expected) + 1e-7) << x;
  }
}

TEST(Lanes, SumsMaximaAndSelection) {
  const std::vector<float> a = skim_test::normal_values(W, 1), b = skim_test::normal_values(W, 2);
  float larger[W], sum = 0, most = -infinity, fused[W];
  simd::store(larger, simd::larger(simd::load(a.data()), simd::load(b.data())));
  simd::store(fused, simd::fma(simd::load(a.data()), simd::load(b.data()), simd::floats(0.25f)));
  for (std::int64_t i = 0; i < W; ++i) {
    const float x = a[static_cast<std::size_t>(i)], y = b[static_cast<std::size_t>(i)];
    EXPECT_EQ(larger[i], std::max(x, y));
    EXPECT_NEAR(fused[i], x * y + 0.25f, 1e-6);
    sum += x;
    most = std::max(most, x);
  }
  EXPECT_NEAR(simd::sum(simd::load(a.data())), sum, 1e-5);
  EXPECT_EQ(simd::max_lane(simd::load(a.data())), most);
}

TEST(Lanes, BitsOfAMaskAndTheLowest) {
  for (std::int64_t lane = 0; lane < W; ++lane) {
    float values[W];
    for (std::int64_t i = 0; i < W; ++i) values[i] = i == lane || i == W - 1 ? 1.0f : 0.0f;
    const std::uint32_t bits = simd::bits_of(simd::load(static_cast<const float*>(values)) > simd::floats(0.5f));
    EXPECT_EQ(bits, 1u << lane | 1u << (W - 1));
    EXPECT_EQ(simd::lowest_bit(bits), lane);
  }
}

TEST(Transpose, PutsRowsIntoColumns) {
  constexpr std::int64_t source_stride = W + 3, stride = W + 1;
  float source[W * source_stride], target[W * stride];
  for (std::int64_t i = 0; i < W * source_stride; ++i) source[i] = static_cast<float>(i);
  for (float& x : target) x = -1;
  simd::store_transposed(static_cast<const float*>(source), source_stride, static_cast<float*>(target), stride);
  for (std::int64_t i = 0; i < W; ++i) {
    for (std::int64_t j = 0; j < W; ++j) EXPECT_EQ(target[i * stride + j], source[j * source_stride + i]);
    EXPECT_EQ(target[i * stride + W], -1) << "beyond row " << i;
  }
}

TEST(Lanes, LargerTakesTheSecondWhereTheFirstIsNan) {
  const simd::floats nan(std::numeric_limits<float>::quiet_NaN()), one(1.0f);
  float got[W];
  simd::store(got, simd::larger(nan, one));
  EXPECT_EQ(got[0], 1.0f);
}

TEST(Lanes, SmallerTakesTheSecondWhereOneIsNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const auto& [a, b, expected] :
       {std::array{nan, 1.0f, 1.0f}, {1.0f, nan, nan}, {1.0f, 2.0f, 1.0f}, {2.0f, -1.0f, -1.0f}}) {
    float got[W];
    simd::store(got, simd::smaller(simd::floats(a), simd::floats(b)));
    EXPECT_TRUE(same(got[W - 1], expected)) << a << " and " << b;
  }
}

}  // namespace
