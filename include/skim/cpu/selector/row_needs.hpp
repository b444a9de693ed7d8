// SPDX-License-Identifier: Apache-2.0
/// \file What each of a KV head's own rows needs of the past, on the CPU: step 1 of `query_choice::needed`. In f32.
///
/// A small matrix product: rows are broadcast, 8 (or 4) at a time, against keys in the lanes, two vectors at a time, as in
/// attend_tile.hpp but the other way round. There are fewer keys than rows to pack, and a row's sums end in one register.
#pragma once

#include <skim/cpu/kernel/lane_rows.hpp>
#include <skim/cpu/kernel/position_order.hpp>
#include <skim/cpu/selector/quoka_queries.hpp>
#include <skim/cpu/simd/math.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

inline constexpr std::int64_t rows_weighed = 64;  // whose logits are kept at once: the keys' lanes are read as often
static_assert(rows_weighed % broadcasts == 0);

/// Scratch for the choice of one KV head, one a worker. Rows are padded, and their number to whole broadcasts.
struct needed_scratch {
  float* x;                 // [R, padded D]: scale * q
  float* y;                 // [R to whole vectors, padded D]: features
  float* features;          // [D, R by `lane_rows`]: the same
  float* row;               // [1 + lanes, padded D]: a key, and a vector of keys; a head's mean
  float* lanes;             // [D, samples + Tq, each padded]: keys; then [picked rows of a round, padded D + 1]
  float* bias;              // [samples + Tq, padded]: -inf where a lane holds no key
  std::int32_t* positions;  // [Tq, padded]: of own keys; behind the last its own, so that lanes are hidden with it
  position_range* own;      // [Tq in vectors]: that of the positions in a vector
  float* logits;            // [rows_weighed, samples + Tq, padded]
  float* need;              // [R to whole vectors, as below]
  float* size;              // [R]: |y|^2
  float* nearest;           // [R]: squared distance to the nearest picked row
  std::int32_t* owner;      // [R]: which of the picked rows that is
  float* gain;              // [R]
  std::uint32_t* ranks;     // [R]: those of gains
  std::int32_t* picked;     // [R]: row numbers, in the order picked

  needed_scratch(arena& arena, const query_rule& rule, std::int64_t Tq, std::int64_t G, std::int64_t D) {
    const std::int64_t R = round_up(Tq * G, broadcasts), length = padded_row(D);
    const bool needed = rule.choice == query_choice::needed;
    const std::int64_t chosen = needed ? R : 0, met = needed ? most_met(rule, Tq) : 0;
    x = arena.take<float>(saturated(R, length));
    y = arena.take<float>(saturated(round_up(chosen, simd::lanes), length));
    features = arena.take<float>(saturated(round_up(chosen, simd::lanes), D));
    row = arena.take<float>(saturated(1 + simd::lanes, length));
    lanes = arena.take<float>(saturated(greater(met, needed ? round_rows(rule, R) : 0), length + 1));
    bias = arena.take<float>(met);
    positions = arena.take<std::int32_t>(met);
    own = arena.take<position_range>(needed ? round_up(Tq, simd::lanes) / simd::lanes : 0);
    logits = arena.take<float>(saturated(rows_weighed, met));
    need = arena.take<float>(round_up(chosen, simd::lanes));
    size = arena.take<float>(round_up(chosen, simd::lanes));
    nearest = arena.take<float>(round_up(chosen, simd::lanes));
    owner = arena.take<std::int32_t>(round_up(chosen, simd::lanes));
    gain = arena.take<float>(round_up(chosen, simd::lanes));
    ranks = arena.take<std::uint32_t>(round_up(chosen, simd::lanes));
    picked = arena.take<std::int32_t>(R);
  }

  /// Lanes for sampled and own keys; samples are fewer than twice as many as the rule says.
  SKIM_INLINE static std::int64_t most_met(const query_rule& rule, std::int64_t Tq) {
    return round_up(2 * rule.samples, simd::lanes) + round_up(Tq, simd::lanes);
  }
  /// Rows that a round picks of R, in whole broadcasts.
  SKIM_INLINE static std::int64_t round_rows(const query_rule& rule, std::int64_t R) {
    return round_up(smaller(greater(rule.n / 4, 1), R), broadcasts);
  }
};

/// One KV head of a block, for the steps below.
struct needed_job {
  const query_rule& rule;
  const attention_args& args;
  const attention_sequence& block;
  std::int64_t head;
  const slot_order& past;  // the candidates
  const needed_scratch& scratch;
  std::int64_t D, length, G, R;

  SKIM_INLINE const float* x(std::int64_t r) const { return scratch.x + r * length; }
  SKIM_INLINE const void* q(std::int64_t r) const {
    return args.q.at(block.first_row + r % block.Tq, head * G + r / block.Tq);
  }
};

/// x = scale * q of all rows; those with an infinity or NaN are silenced.
SKIM_NOINLINE inline void load_own_rows(const needed_job& job) {
  const float scale = logit_scale(job.args);
  constexpr std::int64_t ahead = 16;  // rows of one head lie apart in q
  const std::int64_t bytes = bytes_of(job.args.q.type, job.D);
  for (std::int64_t r = 0; r < smaller(ahead, job.R); ++r) simd::prefetch(job.q(r), bytes);
  for (std::int64_t r = 0; r < job.R; ++r) {
    if (r + ahead < job.R) simd::prefetch(job.q(r + ahead), bytes);
    float* const row = job.scratch.x + r * job.length;
    simd::store(row + job.length - simd::lanes, simd::floats(0.0f));
    widen({job.q(r), job.args.q.type}, job.D, row);
    simd::floats spoilt(0.0f);
    for (std::int64_t d = 0; d < job.length; d += simd::lanes) {
      const simd::floats value = simd::load(row + d) * simd::floats(scale);
      simd::store(row + d, value);
      spoilt = simd::fma(value, simd::floats(0.0f), spoilt);
    }
    if (!(simd::sum(spoilt) == 0)) silence(row);
  }
  for (std::int64_t r = job.R; r < round_up(job.R, broadcasts); ++r)
    clear_row(job.scratch.x + r * job.length, job.length);
}

/// Which past keys need is estimated from, in order of position: every `step`th from the fifth on.
struct sampled_keys {
  std::int64_t step, count;

  SKIM_INLINE sampled_keys(std::int64_t n, std::int64_t samples)
      : step(greater(n / samples, 1)), count(n > first ? (n - first + step - 1) / step : 0) {}
  SKIM_INLINE std::int64_t slot(const slot_order& past, std::int64_t i) const { return past.at(first + i * step); }

 private:
  static constexpr std::int64_t first = 4;
};

/// Asks for the sampled keys and the block's own, which lie far apart: they arrive while its rows are loaded.
SKIM_INLINE void fetch_keys_met(const needed_job& job) {
  const kv_view& kv = job.block.kv;
  const sampled_keys samples(job.past.count, job.rule.samples);
  const head_rows keys(kv, kv.k, job.head);
  const auto fetch = [&](std::int64_t slot) SKIM_LAMBDA_INLINE {
    simd::prefetch(keys.at(kv.place(slot)).data, bytes_of(kv.k.type, job.D));
  };
  for (std::int64_t i = 0; i < samples.count; ++i) fetch(samples.slot(job.past, i));
  for (std::int64_t t = 0; t < job.block.Tq; ++t) fetch(job.block.past(job.head) + t);
}

/// Puts a vector of keys into lanes: those of `slot(0)`, `slot(1)`, ...; where that is below 0, or the key not finite, what
/// hides it there.
template <class Math, class Slot>
SKIM_INLINE void put_keys(const needed_job& job, const lane_rows<Math>& lanes, std::int64_t lane, const Slot& slot) {
  using step = typename Math::step;
  const kv_view& kv = job.block.kv;
  float* const row = job.scratch.row;
  step* const keys = reinterpret_cast<step*>(row + job.length);
  for (std::int64_t i = 0; i < simd::lanes; ++i) {
    step* const key = keys + i * job.length;
    const std::int64_t at = slot(i);
    bool hidden = at < 0;
    if (!hidden) {
      simd::store(row + job.length - simd::lanes, simd::floats(0.0f));
      widen(kv.row(kv.k, job.head, at), job.D, row);
      simd::floats spoilt(0.0f);
      for (std::int64_t d = 0; d < job.length; d += simd::lanes)
        spoilt = simd::fma(simd::load(row + d), simd::floats(0.0f), spoilt);
      hidden = !(simd::sum(spoilt) == 0);
    }
    if (hidden) {
      for (std::int64_t d = 0; d < lanes.steps(); ++d) key[d] = 0;
    } else {
      Math::round_row(row, job.D, key);
    }
    job.scratch.bias[lane + i] = hidden ? minus_infinity : 0.0f;
  }
  lanes.put_vector(lane, keys, job.length);
}

/// The largest of some logits, and the sum of 2^(logit - largest).
struct exponential_sum {
  float largest, sum;
};

/// Which keys a row sees: all, or own ones by position.
struct sees_all {
  SKIM_INLINE bool none(std::int64_t) const { return false; }
  SKIM_INLINE simd::float_mask operator()(std::int64_t) const { return simd::float_mask(true); }
};
struct sees_own {
  const std::int32_t* positions;
  const position_range* vectors;  // of positions
  position_range group;           // what is seen by this row or others that were multiplied with it
  simd::ints low, high;

  /// Of the keys from `i` on: nobody has looked at their logits then.
  SKIM_INLINE bool none(std::int64_t i) const {
    const position_range keys = vectors[i / simd::lanes];
    return keys.end <= group.begin || group.end <= keys.begin;
  }
  SKIM_INLINE simd::float_mask operator()(std::int64_t i) const {
    const simd::ints at = simd::load(positions + i);
    return simd::as_float_mask((low <= at) & (at <= high));
  }
};

/// Of logits [count, padded] times `factor`, those hidden by `bias` or not `seen(vector)` left out.
template <class Seen>
SKIM_INLINE exponential_sum sum_exponentials(float* logits, const float* bias, std::int64_t count, float factor,
                                             const Seen& seen) {
  const simd::floats scale(factor), least(minus_infinity);
  simd::floats most = least;
  for (std::int64_t i = 0; i < count; i += simd::lanes) {
    if (seen.none(i)) continue;
    const simd::floats logit =
        xsimd::select(seen(i), simd::fma(simd::load(logits + i), scale, simd::load(bias + i)), least);
    simd::store(logits + i, logit);
    most = simd::larger(logit, most);
  }
  const float largest = simd::max_lane(most);
  if (largest == minus_infinity) return {largest, 0};
  simd::floats sum(0.0f);
  for (std::int64_t i = 0; i < count; i += simd::lanes) {
    if (seen.none(i)) continue;
    sum = sum + simd::exp2_nonpositive(simd::load(logits + i) - simd::floats(largest));
  }
  return {largest, simd::sum(sum)};
}

/// The positions of own tokens [begin, end), modulo Tq: of `broadcasts` rows, or of the keys in a block of lanes.
SKIM_INLINE position_range own_range(const needed_job& job, std::int64_t begin, std::int64_t end) {
  position_range range{std::int64_t{1} << 31, 0};
  for (std::int64_t i = begin, t = begin % job.block.Tq; i < end; ++i) {
    const std::int64_t position = job.block.kv.position(job.head, job.block.past(job.head) + t);
    if (++t == job.block.Tq) t = 0;
    range.begin = smaller(range.begin, position);
    range.end = greater(range.end, position + 1);
  }
  return range;
}

/// The rows that meet keys, as steps: x in f32; q as it is stored, unscaled, where pairs are multiplied.
template <class Math>
SKIM_INLINE const typename Math::step* steps_of_rows(const needed_job& job) {
  if constexpr (Math::values == 1) {
    return job.scratch.x;
  } else {
    typename Math::step* const steps = reinterpret_cast<typename Math::step*>(job.scratch.y);  // not needed yet
    for (std::int64_t r = 0; r < round_up(job.R, broadcasts); ++r) {
      Math::load_row(static_cast<const bf16*>(job.q(smaller(r, job.R - 1))), job.D, steps + r * job.length);
    }
    return steps;
  }
}

/// Rows whose logits are kept at once, and what each group of them that is multiplied together sees of own positions.
struct weighed_rows {
  std::int64_t begin, end;
  position_range seen[rows_weighed / broadcasts];

  SKIM_INLINE weighed_rows(const needed_job& job, std::int64_t first) : begin(first) {
    end = smaller(begin + rows_weighed, round_up(job.R, broadcasts));
    for (std::int64_t r = begin; r < end; r += broadcasts) {
      seen[(r - begin) / broadcasts] = job.args.mask.keys(own_range(job, r, smaller(r + broadcasts, job.R)));
    }
  }
  SKIM_INLINE position_range seen_by(std::int64_t r) const { return seen[(r - begin) / broadcasts]; }
};

/// logits of rows with the keys in a block of lanes, own keys from the `own`th on where that is not below 0.
template <class Math, int Vectors>
SKIM_NOINLINE void multiply_keys(const needed_job& job, const typename Math::step* steps, const lane_rows<Math>& lanes,
                                 std::int64_t lane, std::int64_t own, const weighed_rows& rows) {
  position_range keys{std::int64_t{1} << 31, 0};
  for (std::int64_t v = 0; own >= 0 && v < Vectors; ++v) {
    const position_range vector = job.scratch.own[own / simd::lanes + v];
    keys = {smaller(keys.begin, vector.begin), greater(keys.end, vector.end)};
  }
  for (std::int64_t r = rows.begin; r < rows.end; r += broadcasts) {
    const position_range seen = rows.seen_by(r);
    if (own >= 0 && (keys.end <= seen.begin || seen.end <= keys.begin)) continue;
    float* const logits = job.scratch.logits + (r - rows.begin) * lanes.stride;
    multiply_lanes<Math, Vectors>(step_rows<typename Math::step>{steps + r * job.length, job.length}, lanes, lane,
                                  [&](auto i, std::int64_t v, simd::floats sums)
                                      SKIM_LAMBDA_INLINE { simd::store(logits + i * lanes.stride + v, sums); });
  }
}

/// need of rows, from their logits [width], those of own keys from `first_own` on. `factor`: what turns products into logits
/// to base 2. `share`: past keys for each sampled one.
SKIM_NOINLINE inline void find_needs(const needed_job& job, std::int64_t width, std::int64_t first_own, float factor,
                                     double share, const weighed_rows& rows) {
  const needed_scratch& scratch = job.scratch;
  const std::int64_t end = smaller(rows.end, job.R);
  exponential_sum past[rows_weighed], own[rows_weighed];
  for (std::int64_t r = rows.begin; r < end; ++r) {
    float* const logits = scratch.logits + (r - rows.begin) * width;
    const std::int64_t position = job.block.kv.position(job.head, job.block.past(job.head) + r % job.block.Tq);
    const auto clamped = [](std::int64_t x) { return static_cast<std::int32_t>(smaller(greater(x, 0), 0x7fffffff)); };
    const sees_own seen{scratch.positions, scratch.own, rows.seen_by(r),
                        simd::ints(clamped(position - job.args.mask.left)),
                        simd::ints(clamped(position + job.args.mask.right))};
    past[r - rows.begin] = sum_exponentials(logits, scratch.bias, first_own, factor, sees_all{});
    own[r - rows.begin] =
        sum_exponentials(logits + first_own, scratch.bias + first_own, width - first_own, factor, seen);
  }
  // sigmoid(P - O) from what exceeds the larger maximum
  for (std::int64_t r = rows.begin; r < end; ++r) {
    const exponential_sum P = past[r - rows.begin], O = own[r - rows.begin];
    const double gap = static_cast<double>(P.largest - O.largest), less = std::exp2(gap > 0 ? -gap : gap);
    const double before = static_cast<double>(P.sum) * share * (gap > 0 ? 1 : less);
    const double after = static_cast<double>(O.sum) * (gap > 0 ? less : 1);
    const bool both = P.sum > 0 && O.sum > 0;
    scratch.need[r] = is_silent(job.x(r)) ? 0.0f : both ? static_cast<float>(before / (before + after)) : 1.0f;
  }
}

/// Step 1: need of every row.
template <class Math>
SKIM_NOINLINE void weigh_rows(const needed_job& job) {
  const kv_view& kv = job.block.kv;
  const needed_scratch& scratch = job.scratch;
  const std::int64_t Tq = job.block.Tq, n = job.past.count, past = job.block.past(job.head);
  const sampled_keys samples(n, job.rule.samples);
  const std::int64_t w = samples.count;
  const std::int64_t first_own = round_up(w, simd::lanes), width = first_own + round_up(Tq, simd::lanes);
  const lane_rows<Math> lanes{reinterpret_cast<typename Math::step*>(scratch.lanes), job.D, width};
  const typename Math::step* const steps = steps_of_rows<Math>(job);
  const float factor = 1.44269504f * (Math::values == 1 ? 1.0f : logit_scale(job.args));
  for (std::int64_t i = 0; i < first_own; i += simd::lanes) {
    put_keys(job, lanes, i,
             [&](std::int64_t j) SKIM_LAMBDA_INLINE { return i + j < w ? samples.slot(job.past, i + j) : -1; });
  }
  for (std::int64_t t = 0; t < width - first_own; t += simd::lanes) {
    put_keys(job, lanes, first_own + t,
             [&](std::int64_t j) SKIM_LAMBDA_INLINE { return t + j < Tq ? past + t + j : -1; });
    for (std::int64_t i = t; i < t + simd::lanes; ++i) {
      scratch.positions[i] = static_cast<std::int32_t>(kv.position(job.head, past + smaller(i, Tq - 1)));
    }
    scratch.own[t / simd::lanes] = own_range(job, t, smaller(t + simd::lanes, Tq));
  }
  const double share = w > 0 ? static_cast<double>(n) / static_cast<double>(w) : 1;
  for (std::int64_t begin = 0; begin < job.R; begin += rows_weighed) {
    const weighed_rows rows(job, begin);
    each_block(lanes, [&](auto vectors, std::int64_t lane) SKIM_LAMBDA_INLINE {
      multiply_keys<Math, vectors>(job, steps, lanes, lane, lane - first_own, rows);
    });
    find_needs(job, lanes.stride, first_own, factor, share, rows);
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
