// SPDX-License-Identifier: Apache-2.0
#include <skim/attention.hpp>
#include <skim/interop/eigen.hpp>

#include <gtest/gtest.h>

namespace {

template <class T>
using row_major = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Element (r, c) of the view is that of the matrix, at the same address.
template <class T, class X>
void expect_same(const skim::tensor_view<T, 2>& view, const X& x) {
  ASSERT_EQ(view.extents[0], x.rows());
  ASSERT_EQ(view.extents[1], x.cols());
  for (Eigen::Index r = 0; r < x.rows(); ++r) {
    for (Eigen::Index c = 0; c < x.cols(); ++c) {
      EXPECT_EQ(static_cast<const void*>(view.at(r, c)), static_cast<const void*>(&x.coeffRef(r, c)));
    }
  }
}

TEST(EigenViews, EveryFormWithMemoryIsViewedWhereItLies) {
  row_major<float> rows(5, 8);
  Eigen::MatrixXf columns(5, 8);
  Eigen::VectorXf vector(6);
  float memory[60] = {};
  const Eigen::Map<row_major<float>, Eigen::Unaligned, Eigen::OuterStride<>> padded(memory, 5, 8,
                                                                                    Eigen::OuterStride<>(12));
  const Eigen::Ref<row_major<float>> reference(rows);
  expect_same(skim::as_view(rows), rows);
  expect_same(skim::as_view(columns), columns);
  expect_same(skim::as_view(vector), vector);
  expect_same(skim::as_view(padded), padded);
  expect_same(skim::as_view(reference), reference);
  expect_same(skim::as_view(rows.block(1, 2, 3, 4)), rows.block(1, 2, 3, 4));
  expect_same(skim::as_view(rows.row(2)), rows.row(2));
  expect_same(skim::as_view(columns.transpose()), columns.transpose());
  expect_same(skim::as_view(rows.array()), rows.array());
  EXPECT_EQ(skim::as_view(padded).strides[0], 12);
  EXPECT_EQ(skim::as_view(padded).strides[1], 1);
  EXPECT_EQ(skim::as_view(columns).strides[1], 5);
  EXPECT_EQ(skim::as_view(columns.transpose()).strides[1], 1);
}

template <class T, class X>
constexpr bool views_as = std::is_same_v<decltype(skim::as_view(std::declval<X>())), skim::tensor_view<T, 2>>;

TEST(EigenViews, ConstnessAndElementTypesFollowTheMatrix) {
  static_assert(views_as<float, row_major<float>&>);
  static_assert(views_as<const float, const row_major<float>&>);
  static_assert(views_as<float, Eigen::Map<row_major<float>>>);
  static_assert(views_as<const float, Eigen::Map<const row_major<float>>>);
  static_assert(views_as<const float, Eigen::Ref<const row_major<float>>&>);
  static_assert(views_as<float, Eigen::Transpose<row_major<float>>>);
  static_assert(views_as<const float, Eigen::Transpose<const row_major<float>>>);
  static_assert(views_as<skim::f16, row_major<Eigen::half>&>);
  static_assert(views_as<const skim::bf16, const row_major<Eigen::bfloat16>&>);
  static_assert(views_as<double, Eigen::MatrixXd&>);  // for the reference, whose output is double
}

TEST(EigenViews, SixteenBitValuesKeepTheirBits) {
  row_major<Eigen::half> halves(1, 3);
  row_major<Eigen::bfloat16> brains(1, 3);
  const float values[] = {1.5f, -0.0078125f, 60000.0f};
  for (int i = 0; i < 3; ++i) {
    halves(0, i) = static_cast<Eigen::half>(values[i]);
    brains(0, i) = static_cast<Eigen::bfloat16>(values[i]);
  }
  const skim::tensor_view<void, 2> erased_halves = skim::as_view(halves), erased_brains = skim::as_view(brains);
  EXPECT_EQ(erased_halves.type, skim::element::f16);
  EXPECT_EQ(erased_brains.type, skim::element::bf16);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(skim::load_element(erased_halves.data, erased_halves.type, i), static_cast<float>(halves(0, i)));
    EXPECT_EQ(skim::load_element(erased_brains.data, erased_brains.type, i), static_cast<float>(brains(0, i)));
  }
}

TEST(EigenViews, HeadsSplitTheColumns) {
  row_major<float> projected(3, 24);
  const auto heads = skim::as_heads(projected, 4);
  EXPECT_EQ(heads.extents[0], 3);
  EXPECT_EQ(heads.extents[1], 4);
  EXPECT_EQ(heads.extents[2], 6);
  EXPECT_EQ(heads.at(2, 3, 5), &projected(2, 23));
  const auto part = skim::as_heads(projected.middleCols(6, 12), 2);  // e.g. the keys of a fused projection
  EXPECT_EQ(part.strides[0], 24);
  EXPECT_EQ(part.at(1, 1, 2), &projected(1, 14));
}

TEST(EigenViews, CheckRefusesHeadsThatDoNotDivideAndColumnMajor) {
  row_major<float> q(2, 24), k(8, 12), v(8, 12), out(2, 24);
  skim::attention_args args;
  args.q = skim::as_heads(q, 4);
  args.out = skim::as_heads(out, 4);
  args.kv = skim::contiguous_kv(skim::as_heads(k, 2), skim::as_heads(v, 2), 8);
  EXPECT_TRUE(check(args).ok());
  args.q = skim::as_heads(q, 5);
  EXPECT_EQ(check(args).code, skim::status::bad_extent);
  char name[96];
  EXPECT_STREQ(argument_name(check(args), name, sizeof name), "q.extents[2]");
  args.q = skim::as_heads(q, 0);
  EXPECT_FALSE(check(args).ok());
  Eigen::MatrixXf columns(2, 24);
  args.q = skim::as_heads(columns, 4);
  EXPECT_EQ(check(args).code, skim::status::bad_stride);
}

}  // namespace
