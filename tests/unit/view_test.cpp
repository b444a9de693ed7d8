// SPDX-License-Identifier: Apache-2.0
#include "support/cache_storage.hpp"

#include <gtest/gtest.h>

#include <set>

namespace {

using namespace skim_test;

TEST(TensorView, ContiguousStridesAndOffsets) {
  float data[2 * 3 * 4];
  const skim::tensor_view<float, 3> view(data, {2, 3, 4});
  EXPECT_EQ(view.strides[0], 12);
  EXPECT_EQ(view.strides[1], 4);
  EXPECT_EQ(view.strides[2], 1);
  EXPECT_EQ(view.offset(1, 2, 3), 23);
  EXPECT_EQ(view.offset(1), 12);
  EXPECT_EQ(view.at(1, 2, 3), data + 23);
  EXPECT_EQ(view.type, skim::element::f32);
}

TEST(TensorView, ElementsAndRankAreDeduced) {
  float data[2 * 3] = {};
  const skim::tensor_view whole(data, {2, 3}), spread(data, {2, 2}, {3, 1});
  static_assert(std::is_same_v<decltype(whole), const skim::tensor_view<float, 2>>);
  EXPECT_EQ(whole.at(1, 2), data + 5);
  EXPECT_EQ(spread.at(1, 1), data + 4);
}

TEST(TensorView, HeadMajorMemoryIsTheSameTypeWithOtherStrides) {
  skim::bf16 data[2 * 3 * 4];
  const skim::tensor_view<skim::bf16, 3> view(data, {2, 3, 4}, {4, 8, 1});
  const skim::tensor_view<const void, 3> erased = view;
  EXPECT_EQ(erased.type, skim::element::bf16);
  EXPECT_EQ(view.at(1, 2, 3), data + 23);
  EXPECT_EQ(erased.at(1, 2, 3), data + 23);
}

TEST(TensorView, ConversionsAddConstAndEraseOnly) {
  using view = skim::tensor_view<float, 2>;
  static_assert(std::is_convertible_v<view, skim::tensor_view<const float, 2>>);
  static_assert(std::is_convertible_v<view, skim::tensor_view<void, 2>>);
  static_assert(std::is_convertible_v<view, skim::tensor_view<const void, 2>>);
  static_assert(!std::is_convertible_v<skim::tensor_view<const float, 2>, view>);
  static_assert(!std::is_convertible_v<skim::tensor_view<const void, 2>, skim::tensor_view<void, 2>>);
  static_assert(!std::is_convertible_v<view, skim::tensor_view<float, 3>>);
}

TEST(TensorView, AbsurdSizesDoNotOverflowBeforeCheckSeesThem) {
  const std::int64_t huge = std::int64_t{1} << 62;
  const skim::tensor_view<const float, 3> view(nullptr, {huge, huge, huge});
  EXPECT_EQ(view.extents[0], huge);
}

class kv_views : public testing::TestWithParam<std::tuple<skim::kv_layout, memory_order>> {};
INSTANTIATE_TEST_SUITE_P(
    layouts, kv_views,
    testing::Combine(testing::Values(skim::kv_layout::contiguous, skim::kv_layout::paged, skim::kv_layout::ring),
                     testing::Values(memory_order::token_major, memory_order::head_major, memory_order::interleaved)));

TEST_P(kv_views, rows_of_slots_and_heads_never_overlap) {
  cache_shape shape{3, 5, 7, 12};
  std::tie(shape.layout, shape.order) = GetParam();
  shape.page_size = 4;
  shape.ring_start = shape.layout == skim::kv_layout::ring ? 9 : 0;
  shape.padding = 2;
  cache_storage cache(shape);
  const skim::kv_view kv = cache.view(12);
  std::set<const void*> places;
  for (std::int64_t slot = 0; slot < 12; ++slot) {
    for (std::int64_t head = 0; head < 3; ++head) {
      for (const skim::kv_tensor& tensor : {kv.k, kv.v}) {
        for (std::int64_t d = 0; d < tensor.dim; ++d) {
          places.insert(static_cast<const float*>(tensor.data) + kv.row_offset(tensor, head, slot) + d);
        }
      }
    }
  }
  EXPECT_EQ(places.size(), 12u * 3 * (5 + 7));
}

TEST(KvView, RingRowsWrapAround) {
  float k[8 * 2 * 3], v[8 * 2 * 3];
  const skim::kv_view kv =
      skim::ring_kv(skim::tensor_view<float, 3>(k, {8, 2, 3}), skim::tensor_view<float, 3>(v, {8, 2, 3}), 6, 5);
  const std::int64_t rows[] = {6, 7, 0, 1, 2};
  for (std::int64_t slot = 0; slot < 5; ++slot) {
    EXPECT_EQ(kv.metadata_row(slot), rows[slot]);
    EXPECT_EQ(kv.row_offset(kv.k, 1, slot), rows[slot] * 6 + 3);
  }
}

TEST(KvView, PagedRowsFollowTheBlockTable) {
  float k[5 * 4 * 2 * 3], v[5 * 4 * 2 * 1];
  const std::int32_t table[] = {3, 0, 4};
  const skim::kv_view kv = skim::paged_kv(skim::tensor_view<float, 4>(k, {5, 4, 2, 3}),
                                          skim::tensor_view<float, 4>(v, {5, 4, 2, 1}), table, 3, 11);
  EXPECT_EQ(kv.capacity, 12);
  EXPECT_EQ(kv.pages, 5);
  EXPECT_EQ(kv.heads, 2);
  EXPECT_EQ(kv.row_offset(kv.k, 1, 0), 3 * 24 + 3);
  EXPECT_EQ(kv.row_offset(kv.k, 0, 6), 0 * 24 + 2 * 6);
  EXPECT_EQ(kv.row_offset(kv.v, 1, 10), 4 * 8 + 2 * 2 + 1);
  EXPECT_EQ(kv.metadata_row(10), 10);
}

TEST(KvView, RowsBringTypeAndScale) {
  cache_shape shape{2, 3, 5, 8};
  shape.type = skim::element::bf16;
  shape.v_type = skim::element::f32;
  shape.layout = skim::kv_layout::paged;
  shape.page_size = 2;
  shape.scales = true;
  cache_storage cache(shape);
  const skim::kv_cache kv = cache.view(7);
  kv.scale(kv.k, 1, 5) = 0.25f;
  kv.scale(kv.v, 1, 5) = 4;
  const skim::kv_view read = kv;
  EXPECT_EQ(read.row(read.k, 1, 5).scale, 0.25f);
  EXPECT_EQ(read.row(read.v, 1, 5).scale, 4);
  EXPECT_EQ(read.row(read.k, 1, 5).type, skim::element::bf16);
  EXPECT_EQ(read.row(read.v, 1, 5).type, skim::element::f32);
  EXPECT_EQ(read.row(read.v, 1, 5).data, kv.row_address(kv.v, 1, 5));
  EXPECT_EQ(read.row(read.v, 1, read.place(5)).data, kv.row_address(kv.v, 1, 5));
  std::set<const float*> places;
  for (std::int64_t slot = 0; slot < 7; ++slot) {
    for (std::int64_t head = 0; head < 2; ++head) places.insert(&kv.scale(kv.k, head, slot));
  }
  EXPECT_EQ(places.size(), 7u * 2) << "a scale for each row and head";
}

TEST(KvView, IsWritableOrReadOnly) {
  static_assert(std::is_convertible_v<skim::kv_cache, skim::kv_view>);
  static_assert(!std::is_convertible_v<skim::kv_view, skim::kv_cache>);
  static_assert(std::is_convertible_v<skim::kv_cache_tensor, skim::kv_tensor>);
  static_assert(!std::is_convertible_v<skim::kv_tensor, skim::kv_cache_tensor>);
  const float k[6 * 2 * 3] = {}, v[6 * 2 * 1] = {};  // const memory is enough to read
  const skim::kv_view kv = skim::contiguous_kv(skim::tensor_view<const float, 3>(k, {6, 2, 3}),
                                               skim::tensor_view<const float, 3>(v, {6, 2, 1}), 4);
  EXPECT_EQ(kv.k.rows, 6);
  EXPECT_EQ(kv.k.heads, 2);
  EXPECT_EQ(kv.row_address(kv.k, 1, 2), k + 15);
  float to[6 * 2 * 3];
  const skim::kv_cache cache =
      skim::contiguous_cache(skim::tensor_view<float, 3>(to, {6, 2, 3}), skim::tensor_view<float, 3>(to, {6, 2, 3}), 4);
  *static_cast<float*>(cache.row_address(cache.k, 1, 2)) = 7;
  EXPECT_EQ(to[15], 7);
}

TEST(KvView, ValuesInKeysAreTheirFirstNumbers) {
  float k[4 * 2 * 6];
  const skim::tensor_view<float, 3> keys(k, {4, 2, 6});
  const skim::kv_cache kv = skim::with_values_in_keys(skim::contiguous_cache(keys, keys, 3), 5);
  EXPECT_TRUE(kv.values_in_keys);
  EXPECT_EQ(kv.k.dim, 6);
  EXPECT_EQ(kv.v.dim, 5);
  EXPECT_EQ(kv.row_address(kv.v, 1, 2), kv.row_address(kv.k, 1, 2));
  EXPECT_TRUE(skim::kv_view(kv).values_in_keys);
}

class parts : public testing::TestWithParam<skim::kv_layout> {};
INSTANTIATE_TEST_SUITE_P(layouts, parts, testing::Values(skim::kv_layout::contiguous, skim::kv_layout::paged));

TEST_P(parts, of_a_view_are_the_same_rows) {
  cache_shape shape{2, 3, 5, 12};
  shape.layout = GetParam();
  shape.page_size = 2;
  shape.positions = shape.inverse_norms = shape.scales = true;
  cache_storage cache(shape);
  const skim::kv_view all = cache.view(11), part = skim::rows(all, 4, 6);
  EXPECT_EQ(part.tokens, 6);
  for (std::int64_t head = 0; head < 2; ++head) {
    for (std::int64_t slot = 0; slot < 6; ++slot) {
      EXPECT_EQ(part.row_address(part.k, head, slot), all.row_address(all.k, head, slot + 4));
      EXPECT_EQ(part.row_address(part.v, head, slot), all.row_address(all.v, head, slot + 4));
      EXPECT_EQ(&part.scale(part.k, head, slot), &all.scale(all.k, head, slot + 4));
      const std::int64_t at = head * part.positions_stride + part.metadata_row(slot);
      EXPECT_EQ(part.positions + at, all.positions + head * all.positions_stride + all.metadata_row(slot + 4));
      EXPECT_EQ(part.inverse_norms + at, all.inverse_norms + head * all.positions_stride + all.metadata_row(slot + 4));
    }
  }
  skim::kv_view computed = all;
  computed.positions = nullptr;
  computed.first_position = 100;
  EXPECT_EQ(skim::rows(computed, 4, 6).position(0, 2), 106);
}

TEST(KvView, PrefixForgetsTheNewest) {
  cache_storage cache({2, 3, 5, 12});
  skim::kv_view kv = cache.view(10);
  const std::int32_t lengths[] = {10, 7};
  kv.lengths = lengths;
  const skim::kv_view before = skim::prefix(skim::prefix(kv, 3), 1);
  EXPECT_EQ(before.tokens, 6);
  EXPECT_EQ(before.length(0), 6);
  EXPECT_EQ(before.length(1), 3);
  EXPECT_EQ(before.row_address(before.k, 1, 2), kv.row_address(kv.k, 1, 2));
}

TEST(TensorView, RowsOfOneAreAnother) {
  skim::bf16 data[4 * 3];
  const skim::tensor_view<void, 2> view = skim::tensor_view<skim::bf16, 2>(data, {4, 3});
  const skim::tensor_view<void, 2> part = skim::rows(view, 1, 2);
  EXPECT_EQ(part.extents[0], 2);
  EXPECT_EQ(part.at(1, 2), data + 8);
  EXPECT_EQ(skim::rows(skim::tensor_view<float, 2>(nullptr, {4, 3}), 1, 2).data, nullptr);
}

TEST(KvView, PositionsAndLengths) {
  float k[4], v[4];
  skim::kv_view kv =
      skim::contiguous_kv(skim::tensor_view<float, 3>(k, {4, 1, 1}), skim::tensor_view<float, 3>(v, {4, 1, 1}), 3);
  kv.first_position = 100;
  EXPECT_EQ(kv.position(0, 2), 102);
  EXPECT_EQ(kv.length(0), 3);
  std::int32_t positions[] = {5, 8, 9, 40, 7, 11, 20, 21};
  const std::int32_t lengths[] = {3, 2};
  kv.positions = positions;
  kv.positions_stride = 4;
  kv.lengths = lengths;
  EXPECT_EQ(kv.position(1, 2), 20);
  EXPECT_EQ(kv.length(1), 2);
  kv.positions_stride = 0;
  EXPECT_EQ(kv.position(1, 2), 9);
  kv.layout = skim::kv_layout::ring;
  kv.ring_start = 3;
  EXPECT_EQ(kv.position(0, 0), 40);
  EXPECT_EQ(kv.position(0, 1), 5);
}

}  // namespace
