// SPDX-License-Identifier: Apache-2.0
// A stored type with scales that the library does not know passes through everything that touches stored rows.
#include "support/scaled_i16.hpp"

#include "support/expect_eviction.hpp"
#include "support/own_evictor.hpp"

#include <skim/reference/append.hpp>

namespace {

using namespace skim_test;
using skim::compaction;
using skim::element;
using skim::retention;

TEST(StoredType, IsKnownByItsFormat) {
  EXPECT_EQ(static_cast<int>(i16), 6);
  EXPECT_TRUE(skim::is_stored(i16));
  EXPECT_EQ(skim::bytes_of(i16, 5), 10);
  EXPECT_EQ(skim::format_of(i16).range, 32767);
  EXPECT_EQ(skim::format_of(element::bf16).range, 0);
  EXPECT_FALSE(skim::is_stored(static_cast<element>(7)));
}

// Append.

struct storage_kind {
  skim::kv_layout layout;
  memory_order order;
  element type, v_type;
  bool inside;
};

const std::vector<storage_kind> storage_kinds{
    {skim::kv_layout::contiguous, memory_order::token_major, i16, i16, false},
    {skim::kv_layout::paged, memory_order::head_major, i16, element::f16, false},
    {skim::kv_layout::ring, memory_order::interleaved, i16, i16, false},
    {skim::kv_layout::paged, memory_order::token_major, element::bf16, i16, false},
    {skim::kv_layout::ring, memory_order::token_major, i16, i16, true},
};

cache_shape shape_of(const storage_kind& kind, std::int64_t D, std::int64_t Dv) {
  cache_shape shape{3, D, Dv, 48};
  shape.type = kind.type;
  shape.v_type = kind.v_type;
  shape.layout = kind.layout;
  shape.order = kind.order;
  shape.values_in_keys = kind.inside;
  shape.page_size = kind.layout == skim::kv_layout::paged ? 16 : 1;
  shape.ring_start = kind.layout == skim::kv_layout::ring ? 30 : 0;
  shape.scales = shape.positions = shape.inverse_norms = true;
  return shape;
}

/// A chunk of rows of every size: zeros, tiny and huge ones, some with a NaN or an infinity.
std::vector<float> sized_rows(std::int64_t rows, std::int64_t dim, unsigned seed) {
  std::vector<float> values = normal_values(rows * dim, seed);
  const float sizes[] = {1, 0, 1e-44f, 1e-38f, 1e-20f, 1e30f, 100, 1e38f};
  const float infinity = std::numeric_limits<float>::infinity();
  for (std::int64_t row = 0; row < rows; ++row) {
    float* const first = values.data() + row * dim;
    for (std::int64_t d = 0; d < dim; ++d) first[d] *= sizes[row % 8];
    if (row % 11 == 9) first[dim / 2] = row % 2 == 0 ? infinity : std::numeric_limits<float>::quiet_NaN();
  }
  return values;
}

struct chunk_of_rows {
  std::vector<float> k, v;
  skim::append_args args;

  chunk_of_rows(cache_storage& storage, std::int64_t Tq, std::int64_t tokens) {
    const cache_shape& shape = storage.shape();
    k = sized_rows(Tq * shape.heads, shape.D, 5);
    v = sized_rows(Tq * shape.heads, shape.Dv, 6);
    args.k = skim::tensor_view<const float, 3>(k.data(), {Tq, shape.heads, shape.D});
    args.v = skim::tensor_view<const float, 3>(v.data(), {Tq, shape.heads, shape.Dv});
    args.kv = storage.view(tokens);
    args.position = 100;
  }
};

TEST(StoredType, IsAppendedWithItsScales) {
  for (const storage_kind& kind : storage_kinds) {
    for (const std::int64_t D : {1, 7, 40, 130}) {
      const cache_shape shape = shape_of(kind, D, kind.inside ? (D + 1) / 2 : D + 3);
      cache_storage got(shape), expected(shape);
      chunk_of_rows chunk(got, 27, 41), same(expected, 27, 41);
      ASSERT_TRUE(skim::cpu::append(chunk.args, skim::serial_executor{}).ok());
      skim::reference::append(same.args);
      const cache_snapshot a(got, chunk.args.kv), b(expected, same.args.kv);
      EXPECT_EQ(a.k, b.k);
      EXPECT_EQ(a.v, b.v);
      EXPECT_EQ(a.k_scales, b.k_scales);
      EXPECT_EQ(a.v_scales, b.v_scales);
      const double tolerance = f32_roundoff * (5 + static_cast<double>(D) / 8);
      for (std::int64_t i = 0; i < 3 * 48; ++i) {
        const double x = static_cast<double>(chunk.args.kv.inverse_norms[i]);
        const double y = static_cast<double>(same.args.kv.inverse_norms[i]);
        EXPECT_TRUE(x == y || (std::isnan(x) && std::isnan(y)) || std::fabs(x - y) <= tolerance * y) << x << " " << y;
      }
    }
  }
}

/// What is read is what was given, to half a step of the scale; a row with a NaN or an infinity reads as NaN throughout.
TEST(StoredType, IsReadAsItWasGiven) {
  const cache_shape shape = shape_of(storage_kinds[0], 40, 24);
  cache_storage storage(shape);
  chunk_of_rows chunk(storage, 40, 41);
  ASSERT_TRUE(skim::cpu::append(chunk.args, skim::serial_executor{}).ok());
  const skim::kv_cache& kv = chunk.args.kv;
  int spoilt = 0;
  for (std::int64_t h = 0; h < 3; ++h) {
    const vector_list keys = reference::rows_of(kv, kv.k, h);
    for (std::int64_t t = 0; t < 40; ++t) {
      const float* const given = chunk.k.data() + (t * 3 + h) * 40;
      const bool finite = std::all_of(given, given + 40, [](float x) { return std::isfinite(x); });
      const float step = kv.scale(kv.k, h, t + 1);
      spoilt += !finite;
      for (std::size_t d = 0; d < 40; ++d) {
        const double got = keys[static_cast<std::size_t>(t + 1)][d], exact = static_cast<double>(given[d]);
        if (!finite) {
          EXPECT_TRUE(std::isnan(got));
        } else {
          EXPECT_NEAR(got, exact, static_cast<double>(step) * (0.5 + 1e-2)) << "size " << exact;
        }
      }
    }
  }
  EXPECT_GT(spoilt, 5);
}

// Eviction.

eviction_case scaled_case(compaction how, element v_type, bool inside) {
  eviction_case c;
  c.call.kv_type = i16;
  c.call.v_type = v_type;
  c.call.values_in_keys = inside;
  c.call.scales = true;
  c.call.Tq = 11;
  c.call.Tk = 60;
  c.call.G = 2;
  c.call.Hk = 2;
  c.call.D = 37;
  c.call.Dv = 20;
  c.call.positions = positions_kind::holes;
  c.how = how;
  if (how == compaction::pages) {
    c.call.layout = skim::kv_layout::paged;
    c.call.page_size = 8;
    c.share_heads = true;
  }
  return c;
}

TEST(StoredType, IsEvicted) {
  const retention keep = retention::budget(40, 2, 5);
  for (const compaction how : {compaction::refill, compaction::stable, compaction::pages}) {
    for (const bool norms : {false, true}) {
      for (const element v_type : {i16, element::f16}) {
        eviction_case c = scaled_case(how, v_type, false);
        c.call.inverse_norms = norms;
        SCOPED_TRACE(testing::Message() << c);
        expect_eviction(skim::keydiff<>{keep}, c);
        expect_eviction(skim::keydiff<skim::anchor::mean>{keep}, c);
        expect_eviction(skim::keydiff<skim::anchor::median>{keep}, c);
        expect_eviction(skim::keydiff<skim::anchor::pairwise>{keep}, c);
        expect_eviction(skim::caote{skim::tova{keep}}, c);
        expect_eviction(skim::fast_caote{skim::keydiff<>{keep}}, c);
        if (how != compaction::pages) expect_eviction(skim::caote{skim::h2o{keep}, true}, c);
      }
      expect_eviction(skim::fast_caote{skim::keydiff<>{keep}}, scaled_case(how, i16, true));
    }
  }
}

}  // namespace
