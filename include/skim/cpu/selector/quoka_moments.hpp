// SPDX-License-Identifier: Apache-2.0
/// \file What standardises QUOKA's products on the CPU: mean and deviation of each query's products with sampled keys. Sums
/// in f64, so that keys and queries of every size count.
#pragma once

#include <skim/cpu/kernel/position_order.hpp>
#include <skim/cpu/selector/quoka_score.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// Which candidates, in order of position, moments are of: every 32nd from the 17th on, or all of few.
struct moment_places {
  std::int64_t first = 16, step = 32, count;

  SKIM_INLINE explicit moment_places(std::int64_t n) : count(n > 16 ? (n - 16 + 31) / 32 : 0) {
    if (count < 32) {
      first = 0;
      step = 1;
      count = n;
    }
  }
  SKIM_INLINE std::int64_t slot(const slot_order& past, std::int64_t i) const { return past.at(first + i * step); }
};

/// Asks for the keys of places [begin, end), which lie far apart, while other things are done.
SKIM_INLINE void fetch_moments(const kv_view& kv, std::int64_t head, const slot_order& past, std::int64_t begin,
                               std::int64_t end) {
  const head_rows keys(kv, kv.k, head);
  const moment_places places(past.count);
  for (std::int64_t i = begin; i < smaller(end, places.count); ++i) {
    simd::prefetch(keys.at(kv.place(places.slot(past, i))).data, bytes_of(kv.k.type, kv.k.dim));
  }
}

SKIM_INLINE void round_to_bf16(float* row, std::int64_t length) {
  for (std::int64_t d = 0; d < length; d += simd::lanes) {
    bf16 rounded[simd::lanes];
    simd::store(static_cast<bf16*>(rounded), simd::load(static_cast<const float*>(row) + d));
    simd::store(row + d, simd::load(static_cast<const bf16*>(rounded)));
  }
}

/// To integers times a scale for each 32 numbers. `row [length]`, zeros behind D.
SKIM_INLINE void round_to_blocks(float* row, std::int64_t length) {
  for (std::int64_t begin = 0; begin < length; begin += 32) {
    const std::int64_t end = smaller(begin + 32, length);
    simd::floats largest(0.0f);
    for (std::int64_t d = begin; d < end; d += simd::lanes) {
      largest = simd::larger(xsimd::abs(simd::load(static_cast<const float*>(row) + d)), largest);
    }
    const float scale = scale_of_query_block(simd::max_lane(largest)), factor = scale > 0 ? 1 / scale : 0.0f;
    for (std::int64_t d = begin; d < end; d += simd::lanes) {
      const simd::ints number =
          simd::round_to_ints(simd::load(static_cast<const float*>(row) + d) * simd::floats(factor));
      simd::store(row + d, xsimd::to_float(number) * simd::floats(scale));
    }
  }
}

/// Queries of any size to about 1: what is standardised does not change with it. Rounded to bf16 or 8 bits where keys are.
SKIM_NOINLINE inline void scale_queries(float* rows, std::int64_t n, std::int64_t D, element type) {
  const std::int64_t length = padded_row(D);
  for (std::int64_t i = 0; i < n; ++i) {
    float* const row = rows + i * length;
    if (is_silent(row)) continue;
    const to_one scaled(simd::max_lane(larger_of_row(row, length, simd::floats(0.0f))));
    for (std::int64_t d = 0; d < length; d += simd::lanes) {
      simd::store(row + d, scaled(simd::load(static_cast<const float*>(row) + d)));
    }
    if (type == element::bf16) round_to_bf16(row, length);
    if (has_8_bits(type)) round_to_blocks(row, length);
  }
}

/// And from there up, where keys are so small that products of them vanish.
SKIM_NOINLINE inline void raise_queries(float* rows, std::int64_t n, std::int64_t D) {
  const std::int64_t length = padded_row(D);
  for (std::int64_t i = 0; i < n; ++i) {
    if (!is_silent(rows + i * length)) scale_row(0x1p64f, D, rows + i * length);
  }
}

/// Count, mean and summed squared deviations of one query's products.
struct product_moments {
  double count, mean, spread;

  SKIM_INLINE void merge(double number, double center, double squares) {
    if (number == 0) return;
    const double all = count + number, apart = center - mean;
    spread += squares + apart * apart * count * number / all;
    mean += apart * number / all;
    count = all;
  }

  /// 0 if the query does not score.
  SKIM_INLINE double deviation() const {
    if (count < 2) return 0;
    const double root = std::sqrt(mean * mean + spread / count), s = std::sqrt(spread / (count - 1));
    return s > 1e-6 * root ? s : 0;
  }
};

/// Scratch of `find_moments`, one a worker.
struct moment_scratch {
  float* keys;            // [64, padded D], or as many steps
  float* products;        // [64, queries in lanes]
  product_moments* sums;  // [queries in lanes]

  moment_scratch(arena& arena, std::int64_t n, std::int64_t D) {
    keys = arena.take<float>(keys_of_tile * padded_row(D));
    products = arena.take<float>(saturated(keys_of_tile, packed_queries::lanes_of(n)));
    sums = arena.take<product_moments>(packed_queries::lanes_of(n));
  }
};

/// Takes in a tile's products [count, lanes]: sums about the tile's own mean, in f32 and each query's scaled so that squares
/// neither overflow nor vanish; merged in f64.
SKIM_NOINLINE inline void add_products(const float* products, std::int64_t count, std::int64_t lanes,
                                       product_moments* sums) {
  const simd::floats zero(0.0f), one(1.0f);
  for (std::int64_t lane = 0; lane < lanes; lane += simd::lanes) {
    simd::floats sum = zero, number = zero, most = zero, first = zero, second = zero;
    for (std::int64_t i = 0; i < count; ++i) {
      const simd::floats p = simd::load(products + i * lanes + lane);
      const simd::float_mask finite = p * zero == zero;
      sum = sum + xsimd::select(finite, p, zero);
      number = number + xsimd::select(finite, one, zero);
      most = simd::larger(xsimd::select(finite, xsimd::abs(p), zero), most);
    }
    const simd::floats center = sum / simd::larger(number, one);
    float scales[simd::lanes];
    double units[simd::lanes];
    simd::store(scales, most);
    for (std::int64_t i = 0; i < simd::lanes; ++i) {
      const int power = scales[i] > 1e-37f ? std::ilogb(scales[i]) : -126;
      scales[i] = static_cast<float>(std::ldexp(1.0, -power));
      units[i] = std::ldexp(1.0, power);
    }
    const simd::floats scale = simd::load(static_cast<const float*>(scales));
    for (std::int64_t i = 0; i < count; ++i) {
      const simd::floats apart = (simd::load(products + i * lanes + lane) - center) * scale;
      const simd::floats finite = xsimd::select(apart * zero == zero, apart, zero);
      first = first + finite;
      second = simd::fma(finite, finite, second);
    }
    float numbers[simd::lanes], centers[simd::lanes], firsts[simd::lanes], seconds[simd::lanes];
    simd::store(numbers, number);
    simd::store(centers, center);
    simd::store(firsts, first);
    simd::store(seconds, second);
    for (std::int64_t i = 0; i < simd::lanes; ++i) {
      const double n = static_cast<double>(numbers[i]), left = static_cast<double>(firsts[i]), unit = units[i];
      const double shift = n > 0 ? left / n : 0, squares = static_cast<double>(seconds[i]) - left * shift;
      sums[lane + i].merge(n, static_cast<double>(centers[i]) + shift * unit,
                           (squares > 0 ? squares : 0) * unit * unit);
    }
  }
}

/// What moments say of the queries: whether any scores, and the deviations that lie farthest apart.
struct moments_found {
  bool some = false;
  double least = 1, most = 0;

  /// Whether products vanish, f32 being relative down to 2^-126 only, and all may be raised.
  SKIM_INLINE bool want_raising() const { return least < 0x1p-100 && most < 1; }
};

/// Finds factors and offsets of the packed queries, 0 and -inf for those that do not score.
template <class Math>
SKIM_NOINLINE moments_found find_moments(const attention_sequence& block, std::int64_t head, const slot_order& past,
                                         const packed_queries& queries, const moment_scratch& scratch) {
  using step = typename Math::step;
  const kv_view& kv = block.kv;
  const std::int64_t stride = padded_row(kv.k.dim), lanes = padded_row(queries.n);
  const head_rows rows(kv, kv.k, head);
  const moment_places places(past.count);
  for (std::int64_t j = 0; j < lanes; ++j) scratch.sums[j] = {0, 0, 0};
  step* const keys = reinterpret_cast<step*>(scratch.keys);
  for (std::int64_t begin = 0; begin < places.count; begin += keys_of_tile) {
    const std::int64_t count = smaller(keys_of_tile, places.count - begin);
    const auto slot = [&](std::int64_t i) SKIM_LAMBDA_INLINE { return places.slot(past, begin + i); };
    const key_rows<Math, decltype(slot)> found{&kv, &rows, count, slot, keys};
    if constexpr (Math::values == 1) {
      if (!queries.in_lanes) load_keys<Math>(kv, rows, count, slot, keys);
    }
    for (std::int64_t i = 0; i < count; i += broadcasts) {
      float* const products = scratch.products + i * lanes;
      fetch_moments(kv, head, past, begin + keys_of_tile + i, begin + keys_of_tile + i + broadcasts);
      if (queries.in_lanes) {
        const auto take = [&](auto k, std::int64_t lane, simd::floats dot)
                              SKIM_LAMBDA_INLINE { simd::store(products + k * lanes + lane, dot); };
        if constexpr (Math::values == 4) {
          multiply_all_lanes(found.at(i), queries.lanes<Math>(), take, fetch_between<Math>(queries.data));
        } else {
          multiply_all_lanes(found.at(i), queries.lanes<Math>(), take);
        }
        continue;
      }
      for (std::int64_t k = 0; k < broadcasts; ++k) {
        for (std::int64_t j = 0; j < lanes; ++j) {
          products[k * lanes + j] = j < queries.n ? dot_of(static_cast<const float*>(queries.data) + j * stride,
                                                           scratch.keys + (i + k) * stride, stride)
                                                  : 0.0f;
        }
      }
    }
    add_products(scratch.products, count, lanes, scratch.sums);
  }
  moments_found found;
  for (std::int64_t j = 0; j < queries.n; ++j) {
    const double s = scratch.sums[j].deviation();
    const float factor = s > 0 ? static_cast<float>(1 / s) : 0.0f;
    const float offset = s > 0 ? static_cast<float>(-scratch.sums[j].mean / s) : 0.0f;
    const bool scores = factor > 0 && factor * 0 == 0 && offset * 0 == 0;
    queries.factors[j] = scores ? factor : 0.0f;
    queries.offsets[j] = scores ? offset : minus_infinity;
    found.some |= scores;
    if (s > 0 && s < found.least) found.least = s;
    if (s > found.most) found.most = s;
  }
  return found;
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
