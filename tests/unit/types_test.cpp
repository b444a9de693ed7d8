// SPDX-License-Identifier: Apache-2.0
#include <skim/types.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace {

using skim::bf16;
using skim::f16;

constexpr float infinity = std::numeric_limits<float>::infinity();

/// The value of a 16-bit pattern, from the format's definition.
double value_of(unsigned bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000u ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

template <class T>
constexpr int exponent_bits = std::is_same_v<T, f16> ? 5 : 8;

template <class T>
class sixteen_bits : public testing::Test {};
using sixteen_bit_types = testing::Types<f16, bf16>;
TYPED_TEST_SUITE(sixteen_bits, sixteen_bit_types);

TYPED_TEST(sixteen_bits, every_pattern_widens_exactly_and_comes_back) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const TypeParam stored{static_cast<std::uint16_t>(bits)};
    const double expected = value_of(bits, exponent_bits<TypeParam>);
    const float wide = skim::to_float(stored);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      ASSERT_TRUE(std::isnan(skim::to_float(skim::from_float<TypeParam>(wide)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(wide), expected) << bits;
    ASSERT_EQ(std::signbit(wide), bits >= 0x8000u) << bits;
    ASSERT_EQ(skim::from_float<TypeParam>(wide).bits, bits);
  }
}

TYPED_TEST(sixteen_bits, values_between_two_patterns_round_to_the_nearer_and_ties_to_even) {
  const unsigned largest = TypeParam{std::uint16_t{std::is_same_v<TypeParam, f16> ? 0x7bff : 0x7f7f}}.bits;
  for (unsigned bits = 0; bits < largest; ++bits) {
    const double low = value_of(bits, exponent_bits<TypeParam>), high = value_of(bits + 1, exponent_bits<TypeParam>);
    const float middle = static_cast<float>((low + high) / 2);  // exact: one bit more than 16-bit types have
    ASSERT_EQ(static_cast<double>(middle), (low + high) / 2);
    const unsigned even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(skim::from_float<TypeParam>(middle).bits, even) << bits;
    ASSERT_EQ(skim::from_float<TypeParam>(-middle).bits, even | 0x8000u) << bits;
    ASSERT_EQ(skim::from_float<TypeParam>(std::nextafter(middle, 0.0f)).bits, bits) << bits;
    ASSERT_EQ(skim::from_float<TypeParam>(std::nextafter(middle, infinity)).bits, bits + 1) << bits;
  }
}

TEST(F16, OverflowsAtTheMidpointBeyondItsLargestValue) {
  EXPECT_EQ(skim::from_float<f16>(65519.996f).bits, 0x7bffu);
  EXPECT_EQ(skim::from_float<f16>(65520.0f).bits, 0x7c00u);
  EXPECT_EQ(skim::from_float<f16>(-1e30f).bits, 0xfc00u);
  EXPECT_EQ(skim::from_float<f16>(infinity).bits, 0x7c00u);
}

TEST(F16, TinyValuesBecomeSignedZero) {
  EXPECT_EQ(skim::from_float<f16>(0x1p-25f).bits, 0u);  // a tie with the smallest subnormal, to even
  EXPECT_EQ(skim::from_float<f16>(std::nextafter(0x1p-25f, 1.0f)).bits, 1u);
  EXPECT_EQ(skim::from_float<f16>(-1e-40f).bits, 0x8000u);
}

TEST(Bf16, OverflowsAtTheMidpointBeyondItsLargestValue) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(skim::from_float<bf16>(largest).bits, 0x7f80u);
  EXPECT_EQ(skim::from_float<bf16>(skim::to_float(bf16{0x7f7f})).bits, 0x7f7fu);
  EXPECT_EQ(skim::from_float<bf16>(-infinity).bits, 0xff80u);
}

TEST(Bf16, NanPayloadsInTheLowerHalfDoNotBecomeInfinite) {
  EXPECT_TRUE(std::isnan(skim::to_float(skim::from_float<bf16>(skim::detail::float_from_bits(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(skim::to_float(skim::from_float<bf16>(skim::detail::float_from_bits(0xffffffffu)))));
}

TEST(Elements, TagsSizesAndNames) {
  static_assert(skim::element_of<float> == skim::element::f32 && skim::element_of<f16> == skim::element::f16);
  static_assert(skim::element_of<bf16> == skim::element::bf16 && skim::element_of<int> == skim::element::none);
  EXPECT_EQ(skim::bytes_of(skim::element::f32, 3), 12);
  EXPECT_EQ(skim::bytes_of(skim::element::f16, 3), 6);
  EXPECT_EQ(skim::bytes_of(skim::element::bf16, -3), -6);
  for (const skim::element stored : {skim::element::f32, skim::element::f16, skim::element::bf16}) {
    EXPECT_TRUE(skim::is_stored(stored));
    EXPECT_EQ(skim::format_of(stored).range, 0) << "not scaled to a range";
  }
  EXPECT_TRUE(skim::is_stored(skim::element::q8_0) && skim::is_stored(skim::element::int8));
  EXPECT_EQ(skim::element_of<std::int8_t>, skim::element::int8);
  EXPECT_EQ(skim::bytes_of(skim::element::int8, 3), 3);
  EXPECT_EQ(skim::format_of(skim::element::int8).range, 127);
  EXPECT_EQ(skim::bytes_of(skim::element::q8_0, 96), 3 * 34);
  EXPECT_EQ(skim::format_of(skim::element::q8_0).values, 32);
  for (const int number : {0, 6, 200}) EXPECT_FALSE(skim::is_stored(static_cast<skim::element>(number))) << number;
  EXPECT_STREQ(to_string(skim::element::bf16), "bf16");
  EXPECT_STREQ(to_string(skim::element::q8_0), "q8_0");
  EXPECT_STREQ(to_string(skim::element::int8), "int8");
}

TEST(Elements, LoadAndStoreByTag) {
  float wide[2] = {};
  f16 half[2] = {};
  bf16 brain[2] = {};
  skim::store_element(wide, skim::element::f32, 1, 1.0009766f);
  skim::store_element(half, skim::element::f16, 1, 1.0009766f);
  skim::store_element(brain, skim::element::bf16, 1, 1.0009766f);
  EXPECT_EQ(skim::load_element(wide, skim::element::f32, 1), 1.0009766f);
  EXPECT_EQ(skim::load_element(half, skim::element::f16, 1), 1.0009766f);
  EXPECT_EQ(skim::load_element(brain, skim::element::bf16, 1), 1.0f);
  EXPECT_EQ(wide[0], 0.0f);
  EXPECT_EQ(half[0].bits, 0u);
  EXPECT_EQ(brain[0].bits, 0u);
}

TEST(Int8, RoundsToNearestEvenAndStaysWithinItsRange) {
  for (int i = -130 * 8; i <= 130 * 8; ++i) {
    const float value = static_cast<float>(i) / 8, nearest = std::nearbyint(value);
    EXPECT_EQ(skim::from_float<std::int8_t>(value), std::fmin(127.0f, std::fmax(-127.0f, nearest))) << value;
  }
  EXPECT_EQ(skim::from_float<std::int8_t>(infinity), 127);
  EXPECT_EQ(skim::from_float<std::int8_t>(-infinity), -127);
  EXPECT_EQ(skim::from_float<std::int8_t>(std::nanf("")), 0);
  EXPECT_EQ(skim::to_float(std::int8_t{-128}), -128.0f);
}

/// Each number within half a step of its block's scale, which f16 rounds up; the largest exact to that rounding.
TEST(Q8, KeepsNumbersOfEverySize) {
  for (const float size : {1e-30f, 1e-9f, 3e-7f, 1e-5f, 0.02f, 1.0f, 300.0f, 1e6f, 8.3e6f}) {
    float values[64], largest[2] = {};
    for (int i = 0; i < 64; ++i) {
      values[i] = size * std::sin(static_cast<float>(i * i + 1));
      largest[i / 32] = std::fmax(largest[i / 32], std::fabs(values[i]));
    }
    skim::q8_0 blocks[2];
    skim::store_elements(blocks, skim::element::q8_0, values, 64);
    for (int i = 0; i < 64; ++i) {
      const double scale = static_cast<double>(skim::to_float(blocks[i / 32].scale));
      const double wanted = static_cast<double>(largest[i / 32]) / 127;
      EXPECT_GE(scale, wanted * (1 - 0x1p-23));
      EXPECT_LE(scale, std::fmax(wanted * (1 + 0x1p-10), wanted + 0x1p-24)) << size;
      const double got = static_cast<double>(skim::load_element(blocks, skim::element::q8_0, i));
      EXPECT_EQ(got, scale * blocks[i / 32].values[i % 32]);
      EXPECT_NEAR(got, static_cast<double>(values[i]), scale * 0.5001) << size;
    }
  }
}

TEST(Q8, IsZeroOrNotANumberAsAWhole) {
  float values[32] = {};
  skim::q8_0 block = skim::block_from_floats(values);
  EXPECT_EQ(block.scale.bits, 0u);
  EXPECT_EQ(skim::to_float(block, 7), 0.0f);
  for (const float bad : {infinity, -infinity, std::nanf(""), 9e6f}) {  // beyond 127 of the largest f16
    values[5] = bad;
    block = skim::block_from_floats(values);
    for (int i = 0; i < 32; ++i) EXPECT_TRUE(std::isnan(skim::to_float(block, i))) << bad;
  }
}

}  // namespace
