// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's scores on the CPU: one per key, streaming K once.
///
/// The chosen queries lie in the SIMD lanes and keys are broadcast against them, as in attend_tile.hpp, with a running
/// maximum instead of a `[n, Tk]` matrix. One to three queries (decode, or the mean) leave most lanes idle; then D lies in
/// the lanes instead. What standardises a product is a factor and an offset, applied to the finished sum.
#pragma once

#include <skim/cpu/kernel/lane_rows.hpp>
#include <skim/cpu/selector/quoka_queries.hpp>
#include <skim/selector/quoka.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t fewest_packed_queries = 4;
inline constexpr std::int64_t keys_of_tile = 64;  // widened together: within the first-level cache up to D = 128
inline constexpr std::int64_t score_keys = 512;   // of a work unit, of all its heads

/// Whether `is_usable` holds for the factors of a tile: one answer, which a loop over its keys does not have to wait for.
SKIM_INLINE bool all_usable(const float* factors) {
  bool all = true;
  for (std::int64_t i = 0; i < keys_of_tile; i += simd::lanes) {
    const simd::floats factor = simd::load(factors + i);
    all &= xsimd::all(factor > simd::floats(least_inverse) && factor < simd::floats(most_inverse));
  }
  return all;
}

/// Queries ready to meet keys: those of one KV head and block.
struct packed_queries {
  void* data;      // in lanes: steps of D [n lanes by `lane_rows`, a multiple]; else f32 rows [n, padded D]
  float* factors;  // [n rounded up to lanes]: standardised = product * factor + offset; null: the product
  float* offsets;
  std::int64_t n;  // as few as 1; rounded up to lanes where they are in lanes; 0: none scores
  std::int64_t D;
  bool in_lanes;

  /// Where they are in lanes.
  template <class Math>
  SKIM_INLINE lane_rows<Math> lanes() const {
    return {static_cast<typename Math::step*>(data), D, n};
  }

  /// Floats of room for `n` queries.
  SKIM_INLINE static std::int64_t lanes_of(std::int64_t n) { return padded_row(greater(n, fewest_packed_queries)); }
};

/// Packs row by row; lanes beyond the last query repeat it, which no maximum notices.
template <class Math>
SKIM_INLINE void pack_lanes(const float* rows, std::int64_t n, const lane_rows<Math>& target) {
  const std::int64_t length = padded_row(target.D);
  const float* row = rows;
  for (std::int64_t lane = 0, i = 0; lane < target.stride; ++lane) {
    while (i < n && is_silent(rows + i * length)) ++i;
    if (i < n) row = rows + i++ * length;
    target.put(lane, row);
  }
}

/// Of the `n` rows those that have a say; a row of zeros if none has. `target` says where to.
template <class Math>
SKIM_NOINLINE packed_queries pack_queries(reduction reduce, const float* rows, std::int64_t n, packed_queries target) {
  const std::int64_t length = padded_row(target.D);
  float* const plain = static_cast<float*>(target.data);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) count += is_silent(rows + i * length) ? 0 : 1;
  target.in_lanes = count >= fewest_packed_queries && reduce != reduction::mean;
  target.n = target.in_lanes ? padded_row(count) : count;
  if (target.in_lanes) {
    pack_lanes(rows, n, target.lanes<Math>());
  } else if (count == 0 || reduce == reduction::mean) {  // the mean of dot products is the dot product with the mean
    target.n = 1;
    clear_row(plain, length);
    for (std::int64_t i = 0; i < n; ++i) {
      const float* const row = rows + i * length;
      if (!is_silent(row)) add_scaled_of(row, 1.0f / static_cast<float>(count), plain, length);
    }
  } else {
    float* row = plain;
    for (std::int64_t i = 0; i < n; ++i) {
      if (is_silent(rows + i * length)) continue;
      std::memcpy(row, rows + i * length, static_cast<std::size_t>(length) * sizeof(float));
      row += length;
    }
  }
  return target;
}

/// The largest product with one key where there are few queries. A NaN key makes every product NaN, and the maximum with
/// them; standardised ones that are NaN are left out.
SKIM_INLINE float score_key(const packed_queries& queries, const float* key, std::int64_t length) {
  const float* const rows = static_cast<const float*>(queries.data);
  float best = queries.factors ? minus_infinity : dot_of(rows, key, length);
  for (std::int64_t j = queries.factors ? 0 : 1; j < queries.n; ++j) {
    float dot = dot_of(rows + j * length, key, length);
    if (queries.factors) dot = dot * queries.factors[j] + queries.offsets[j];
    best = dot > best ? dot : best;
  }
  return best;
}

/// Keys whose turn comes next. In a tile of one head rows lie apart, which no prefetcher follows. They are fetched while
/// others are multiplied, a line at a time: fetches that come together wait for each other, and hold up what follows.
struct coming_keys {
  head_rows rows;
  const kv_view* kv;
  std::int64_t begin, count;

  coming_keys(const kv_view& of, std::int64_t head, std::int64_t first, std::int64_t end)
      : rows(of, of.k, head), kv(&of), begin(first), count(smaller(greater(end - first, 0), keys_of_tile)) {}

  SKIM_INLINE const char* row(std::int64_t i) const {
    return static_cast<const char*>(rows.at(kv->place(begin + i)).data);
  }
  SKIM_INLINE void fetch() const {
    for (std::int64_t i = 0; i < count; ++i) simd::prefetch(row(i), bytes_of(kv->k.type, kv->k.dim));
  }
};

/// Fetches the coming keys from `begin` on between the steps of multiplying as many others: a row's lines from its first
/// byte to its last. `none`: what can be asked for where there are fewer.
template <class Math>
struct fetch_between {
  static constexpr std::uint64_t every = Math::values == 4 ? 1 : steps_between;
  const char* rows[broadcasts];
  std::int64_t apart;  // of what is asked for in a row

  SKIM_INLINE fetch_between(const coming_keys& next, std::int64_t begin, const void* none) {
    const kv_tensor& keys = next.kv->k;
    const std::int64_t turns =
        (keys.dim + Math::values - 1) / Math::values / static_cast<std::int64_t>(every * broadcasts);
    apart = turns > 1 ? (bytes_of(keys.type, keys.dim) - 1) / (turns - 1) : 0;
    for (std::int64_t j = 0; j < broadcasts; ++j) {
      rows[j] = begin + j < next.count ? next.row(begin + j) : static_cast<const char*>(none);
    }
  }
  /// Nothing new: for those who ask elsewhere, by the same code.
  SKIM_INLINE explicit fetch_between(const void* none) : apart(0) {
    for (std::int64_t j = 0; j < broadcasts; ++j) rows[j] = static_cast<const char*>(none);
  }
  SKIM_INLINE void operator()(std::int64_t step) const {
    const std::uint64_t turn = static_cast<std::uint64_t>(step) / every;  // unsigned: a shift
    simd::prefetch_line(rows[turn % broadcasts] + static_cast<std::int64_t>(turn / broadcasts) * apart);
  }
};

/// Loads the keys of `count` slots, `slot(i)`, as rows of steps; rows up to a whole broadcast are zeros.
template <class Math, class Slot>
SKIM_INLINE void load_keys(const kv_view& kv, const head_rows& rows, std::int64_t count, const Slot& slot,
                           typename Math::step* keys) {
  const std::int64_t stride = padded_row(kv.k.dim);
  for (std::int64_t i = 0; i < count; ++i) {
    typename Math::step* const key = keys + i * stride;
    if constexpr (Math::values == 1) simd::store(key + stride - simd::lanes, simd::floats(0.0f));
    load_row<Math>(rows.at(kv.place(slot(i))), kv.k.dim, key);
  }
  for (std::int64_t i = count; i < round_up(count, broadcasts); ++i) {
    std::memset(keys + i * stride, 0, static_cast<std::size_t>(stride) * sizeof(*keys));
  }
}

/// Keys as rows to multiply, `broadcasts` at a time, those of slots `slot(i)`. Steps are read where they are stored, if the
/// keys are steps there and equally far apart, else copied; integers of 8 bits where they are stored.
template <class Math, class Slot>
struct key_rows {
  using step = typename Math::step;
  const kv_view* kv;
  const head_rows* rows;
  std::int64_t count;
  Slot slot;
  step* scratch;  // [broadcasts, padded D]

  SKIM_INLINE auto at(std::int64_t i) const {
    if constexpr (Math::values == 4) {
      return integers_at(i);
    } else {
      return steps_at(i);
    }
  }

 private:
  SKIM_INLINE stored_row row(std::int64_t i) const { return rows->at(kv->place(slot(i))); }
  SKIM_INLINE const char* bytes_at(std::int64_t i) const { return static_cast<const char*>(row(i).data); }

  SKIM_INLINE step_rows<step> steps_at(std::int64_t i) const {
    constexpr std::int64_t size = sizeof(step);
    const kv_tensor& k = kv->k;
    if (k.type == Math::stored && !k.scales && k.dim % Math::values == 0 && i + broadcasts <= count) {
      const char *const first = bytes_at(i), *const second = bytes_at(i + 1);
      bool even = reinterpret_cast<std::uintptr_t>(first) % size == 0 && (second - first) % size == 0;
      for (std::int64_t j = 2; j < broadcasts; ++j) even &= bytes_at(i + j) - first == j * (second - first);
      if (even) return {reinterpret_cast<const step*>(first), (second - first) / size};
    }
    const auto own = [&](std::int64_t j) SKIM_LAMBDA_INLINE { return slot(i + j); };
    load_keys<Math>(*kv, *rows, smaller(count - i, broadcasts), own, scratch);
    return {scratch, padded_row(k.dim)};
  }

  /// A row that ends inside a block is copied.
  SKIM_INLINE integer_rows integers_at(std::int64_t i) const {
    const std::int64_t D = kv->k.dim, blocks = Math::blocks_of(D), block_bytes = blocks * Math::block_values;
    float* const scales = reinterpret_cast<float*>(scratch);
    char* const copies = reinterpret_cast<char*>(scales + broadcasts * blocks);
    const bool in_blocks = kv->k.type == element::q8_0;
    integer_rows answer;
    answer.block_bytes = in_blocks ? bytes_of(element::q8_0, 32) : Math::block_values;
    answer.scales = scales;
    for (std::int64_t j = 0; j < broadcasts; ++j) {
      const bool some = i + j < count;
      const stored_row from = row(some ? i + j : i);
      float* const own = scales + j * blocks;
      if (in_blocks) {
        const q8_0* const stored = static_cast<const q8_0*>(from.data);
        answer.rows[j] = reinterpret_cast<const char*>(stored->values);
        Math::load_scales(stored, some ? from.scale : 0.0f, blocks, own);
        continue;
      }
      answer.rows[j] = static_cast<const char*>(from.data);
      Math::load_scales(some ? from.scale : 0.0f, blocks, own);
      if (D % Math::block_values == 0) continue;
      std::memset(copies + j * block_bytes, 0, static_cast<std::size_t>(block_bytes));
      std::memcpy(copies + j * block_bytes, from.data, static_cast<std::size_t>(D));
      answer.rows[j] = copies + j * block_bytes;
    }
    return answer;
  }
};

/// Those of a tile that has been loaded.
template <class Math>
struct loaded_keys {
  const typename Math::step* rows;
  std::int64_t stride;

  SKIM_INLINE step_rows<typename Math::step> at(std::int64_t i) const { return {rows + i * stride, stride}; }
};

/// dots [round_up(count, broadcasts)] = max over queries of q . key, standardised or not, for a tile of keys.
template <class Math, bool Standardised, class Keys>
SKIM_NOINLINE void score_keys_of_tile(const packed_queries& queries, const Keys& keys, std::int64_t count,
                                      const coming_keys& next, float* dots) {
  const lane_rows<Math> lanes = queries.lanes<Math>();
  for (std::int64_t i = 0; i < count; i += broadcasts) {
    const auto group = keys.at(i);
    const fetch_between<Math> fetch(next, i, queries.data);
    simd::floats best[broadcasts];
    simd::unroll<broadcasts>([&](auto j) SKIM_LAMBDA_INLINE { best[j] = simd::floats(minus_infinity); });
    each_block(lanes, [&](auto vectors, std::int64_t begin) SKIM_LAMBDA_INLINE {
      multiply_lanes<Math, vectors>(
          group, lanes, begin,
          [&](auto j, std::int64_t lane, simd::floats dot) SKIM_LAMBDA_INLINE {
            if constexpr (Standardised) {
              const simd::floats z =
                  simd::fma(dot, simd::load(queries.factors + lane), simd::load(queries.offsets + lane));
              best[j] = simd::larger(z, best[j]);
            } else {
              static_cast<void>(lane);
              best[j] = simd::larger(best[j], dot);
            }
          },
          fetch);
    });
    simd::unroll<broadcasts>([&](auto j) SKIM_LAMBDA_INLINE { dots[i + j] = simd::max_lane(best[j]); });
  }
}

/// A head whose past keys are scored, and what the whole chunk sees.
struct score_job {
  const kv_view* kv;
  std::int64_t head;
  position_range seen;
  bool windowed;  // some past keys may lie outside every query's window
};

SKIM_INLINE bool out_of_sight(const score_job& job, std::int64_t begin, std::int64_t end) {
  if (!job.windowed) return false;
  bool out = true;
  for (std::int64_t slot = begin; slot < end; ++slot) {
    const std::int64_t position = job.kv->position(job.head, slot);
    out &= position < job.seen.begin || position >= job.seen.end;
  }
  return out;
}

/// factors [64] = what turns q . k into the cosine for a tile's widened keys: 1 / |k|. Keys of unusual size are
/// scaled for that, whatever norm is stored for them.
SKIM_NOINLINE inline void find_factors(const score_job& job, std::int64_t begin, std::int64_t count, float* keys,
                                       float* factors) {
  const kv_view& kv = *job.kv;
  const std::int64_t stride = padded_row(kv.k.dim);
  for (std::int64_t i = 0; i < keys_of_tile; i += simd::lanes) simd::store(factors + i, simd::floats(1.0f));
  const float* const stored = kv.inverse_norms ? kv.inverse_norms + job.head * kv.inverse_norms_stride : nullptr;
  for (std::int64_t i = 0; i < count; ++i) {
    factors[i] = stored ? stored[kv.metadata_row(begin + i)] : inverse_length(keys + i * stride, stride);
  }
  if (all_usable(factors)) return;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!is_usable(factors[i])) factors[i] = scale_to_one(keys + i * stride, stride);
  }
}

/// scores [slot] for a tile of keys [begin, begin + count); -inf, unread, where all lies outside every window.
template <class Math>
SKIM_NOINLINE void score_tile_of_slots(const score_job& job, similarity measure, const packed_queries& queries,
                                       std::int64_t begin, std::int64_t count, const coming_keys& next, float* scratch,
                                       float* scores) {
  using step = typename Math::step;
  const kv_view& kv = *job.kv;
  const std::int64_t stride = padded_row(kv.k.dim);
  const head_rows rows(kv, kv.k, job.head);
  step* const keys = reinterpret_cast<step*>(scratch);
  float dots[keys_of_tile], factors[keys_of_tile];
  if (out_of_sight(job, begin, begin + count)) {
    for (std::int64_t i = 0; i < count; ++i) scores[begin + i] = minus_infinity;
    return;
  }
  const auto slot = [&](std::int64_t i) SKIM_LAMBDA_INLINE { return begin + i; };
  if (queries.in_lanes && queries.factors) {
    const key_rows<Math, decltype(slot)> found{&kv, &rows, count, slot, keys};
    score_keys_of_tile<Math, true>(queries, found, count, next, dots);
  } else if constexpr (Math::values == 1) {  // others are for what is standardised, and in lanes
    load_keys<Math>(kv, rows, count, slot, keys);
    const bool scales = measure == similarity::cosine;
    if (scales) find_factors(job, begin, count, keys, factors);
    if (!queries.in_lanes) {
      next.fetch();
      for (std::int64_t i = 0; i < count; ++i) dots[i] = score_key(queries, keys + i * stride, stride);
    } else {
      score_keys_of_tile<Math, false>(queries, loaded_keys<Math>{keys, stride}, count, next, dots);
    }
    for (std::int64_t i = 0; scales && i < count; ++i) dots[i] *= factors[i];
  }
  std::memcpy(scores + begin, dots, static_cast<std::size_t>(count) * sizeof(float));
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
