// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's queries from a KV head's own rows, on the CPU: steps 2 to 4 of `query_choice::needed`, and the plain choices
/// among rows. In f32.
#pragma once

#include <skim/cpu/kernel/radix_select.hpp>
#include <skim/cpu/selector/row_needs.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES { namespace detail {

/// The features with rows in the lanes; each of them meets what is picked.
SKIM_INLINE lane_rows<simd::tile_math<accumulate::widen_fma>> features_in_lanes(const needed_job& job) {
  return {job.scratch.features, job.D, padded_row(job.R)};
}

/// Step 2: features of every row, and their squared lengths; zeros of silent rows.
SKIM_NOINLINE inline void find_features(const needed_job& job) {
  const needed_scratch& scratch = job.scratch;
  const std::int64_t Tq = job.block.Tq, length = job.length;
  const auto lanes = features_in_lanes(job);
  float* const center = scratch.row;
  const auto put = [&](std::int64_t r) SKIM_LAMBDA_INLINE {  // into its lane, with all of a vector
    const std::int64_t begin = r + 1 - simd::lanes;
    if ((r + 1) % simd::lanes == 0) lanes.put_vector(begin, scratch.y + begin * length, length);
  };
  for (std::int64_t first = 0; first < job.R; first += Tq) {
    simd::floats most(0.0f);
    std::int64_t finite = 0;
    for (std::int64_t r = first; r < first + Tq; ++r) {
      if (is_silent(job.x(r))) continue;
      ++finite;
      most = larger_of_row(job.x(r), length, most);
    }
    // Features do not change with the rows' common size, but squares of it would overflow or vanish.
    const to_one scaled(simd::max_lane(most));
    // The mean in two steps: what the first, rounded, leaves is small.
    clear_row(center, length);
    for (int pass = 0; pass < 2; ++pass) {
      float* const sum = scratch.lanes;
      clear_row(sum, length);
      for (std::int64_t r = first; r < first + Tq; ++r) {
        if (is_silent(job.x(r))) continue;
        float* const y = scratch.y + r * length;
        for (std::int64_t d = 0; d < length; d += simd::lanes) {
          const simd::floats value = pass == 0 ? scaled(simd::load(job.x(r) + d)) : simd::load(y + d);
          if (pass == 0) simd::store(y + d, value);
          simd::store(sum + d, simd::load(sum + d) + (value - simd::load(center + d)));
        }
      }
      if (Tq > 1) add_scaled_of(sum, finite > 0 ? 1 / static_cast<float>(finite) : 0.0f, center, length);
    }
    double spread = 0;
    simd::floats squares(0.0f);
    for (std::int64_t r = first; r < first + Tq; ++r) {
      float* const y = scratch.y + r * length;
      if (is_silent(job.x(r))) continue;
      for (std::int64_t d = 0; d < length; d += simd::lanes) {
        const simd::floats value = simd::load(y + d);
        squares = simd::fma(value, value, squares);
        simd::store(y + d, value - simd::load(center + d));
      }
      scratch.size[r] = dot_of(y, y, length);
      spread += static_cast<double>(scratch.size[r]);
    }
    const double size = static_cast<double>(simd::sum(squares));
    const bool flat = Tq > 1 && std::sqrt(spread) <= 1e-6 * std::sqrt(size);
    const double rms = Tq > 1 ? std::sqrt(spread / static_cast<double>(greater(finite, 1))) : std::sqrt(size);
    const float factor = flat || !(rms > 0) ? 0.0f : static_cast<float>(1 / rms);
    for (std::int64_t r = first; r < first + Tq; ++r) {
      float* const y = scratch.y + r * length;
      if (is_silent(job.x(r))) {
        clear_row(y, length);
        scratch.size[r] = 0;
      } else {
        scale_row(factor, length, y);
        scratch.size[r] *= factor * factor;
      }
      put(r);
    }
  }
  for (std::int64_t r = job.R; r < lanes.stride; ++r) {
    clear_row(scratch.y + r * length, length);
    scratch.size[r] = 0;
    put(r);
  }
}

/// `meet_picked` for the rows [first, first + Vectors * lanes). `picked` [some, padded D]: features of those in places from
/// `begin` on; `sizes` [some]: their squared lengths.
template <int Vectors>
SKIM_NOINLINE void meet_rows(const needed_job& job, std::int64_t first, std::int64_t begin, std::int64_t some,
                             const float* picked, const float* sizes) {
  using math = simd::tile_math<accumulate::widen_fma>;
  constexpr std::int64_t width = Vectors * simd::lanes;
  const needed_scratch& scratch = job.scratch;
  float closest[static_cast<std::size_t>(width)];       // 2 y . y_c - |y_c|^2
  std::int32_t owner[static_cast<std::size_t>(width)];  // whose that is
  for (std::int64_t i = 0; i < width; ++i) closest[i] = minus_infinity, owner[i] = 0;
  for (std::int64_t c = 0; c < some; c += broadcasts) {
    multiply_lanes<math, Vectors>(
        step_rows<float>{picked + c * job.length, job.length}, features_in_lanes(job), first,
        [&](auto i, std::int64_t lane, simd::floats sums) SKIM_LAMBDA_INLINE {
          float* const most = closest + (lane - first);
          std::int32_t* const whose = owner + (lane - first);
          const simd::floats close = simd::fma(sums, simd::floats(2.0f), simd::floats(-sizes[c + i]));
          const simd::float_mask closer = close > simd::load(most);
          const simd::ints before = simd::load(static_cast<const std::int32_t*>(whose));
          const simd::ints place(static_cast<std::int32_t>(begin + c + i));
          simd::store(most, xsimd::select(closer, close, simd::load(most)));
          simd::store(whose, simd::as_ints(xsimd::select(closer, simd::as_floats(place), simd::as_floats(before))));
        });
  }
  for (std::int64_t i = 0; i < smaller(width, job.R - first); ++i) {
    const float distance = scratch.size[first + i] - closest[i], squared = distance > 0 ? distance : 0;
    const bool nearer = squared < scratch.nearest[first + i];
    scratch.nearest[first + i] = nearer ? squared : scratch.nearest[first + i];
    scratch.owner[first + i] = nearer ? owner[i] : scratch.owner[first + i];
  }
}

/// Brings every row's nearest picked row up to date with those in the places [begin, end), 8 (or 4) of which are broadcast
/// at a time; the places up to a whole broadcast are infinitely far.
SKIM_NOINLINE inline void meet_picked(const needed_job& job, std::int64_t begin, std::int64_t end) {
  const needed_scratch& scratch = job.scratch;
  const std::int64_t count = end - begin, some = round_up(count, broadcasts);
  float *const picked = scratch.lanes, *const sizes = picked + some * job.length;
  for (std::int64_t i = 0; i < some; ++i) {
    const std::int64_t r = scratch.picked[begin + smaller(i, count - 1)];
    std::memcpy(picked + i * job.length, scratch.y + r * job.length,
                static_cast<std::size_t>(job.length) * sizeof(float));
    sizes[i] = i < count ? scratch.size[r] : std::numeric_limits<float>::infinity();
  }
  const auto lanes = features_in_lanes(job);
  each_block(lanes, [&](auto vectors, std::int64_t first)
                        SKIM_LAMBDA_INLINE { meet_rows<vectors>(job, first, begin, some, picked, sizes); });
}

/// The first of the highest of ranks [n, to whole vectors]; some are not 0.
SKIM_INLINE std::int64_t first_of_highest(const std::uint32_t* ranks, std::int64_t n) {
  const stored_ranks stored{ranks};
  simd::ints most(first_signed);
  for (std::int64_t i = 0; i < n; i += simd::lanes) most = simd::larger(most, stored.vector(i));
  std::int32_t lanes[simd::lanes];
  simd::store(lanes, most);
  std::int32_t highest = lanes[0];
  for (const std::int32_t lane : lanes) highest = lane > highest ? lane : highest;
  for (std::int64_t i = 0;; i += simd::lanes) {
    const std::uint32_t bits = simd::bits_of(simd::as_float_mask(stored.vector(i) == simd::ints(highest)));
    if (bits != 0) return i + simd::lowest_bit(bits);
  }
}

/// Step 3: up to n rows, in the order picked. Returns how many: fewer where fewer are finite.
SKIM_NOINLINE inline std::int64_t pick_needed(const needed_job& job) {
  const needed_scratch& scratch = job.scratch;
  const std::int64_t a_round = greater(job.rule.n / 4, 1), rows = round_up(job.R, simd::lanes);
  constexpr float taken = -1;
  std::int64_t left = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const bool silent = r >= job.R || is_silent(job.x(r));
    left += silent ? 0 : 1;
    scratch.nearest[r] = silent ? taken : std::numeric_limits<float>::infinity();
    scratch.owner[r] = -1;
    if (r >= job.R) scratch.need[r] = 0;
  }
  std::int64_t picked = 0;
  const std::int64_t wanted = smaller(job.rule.n, left);
  while (picked < wanted) {
    const std::int64_t count = smaller(a_round, wanted - picked);
    const float* const apart = picked == 0 ? scratch.size : scratch.nearest;
    for (std::int64_t r = 0; r < rows; r += simd::lanes) {
      simd::store(scratch.gain + r, simd::load(static_cast<const float*>(scratch.need) + r) * simd::load(apart + r));
    }
    rank_scores(scratch.gain, rows, scratch.ranks);
    for (std::int64_t r = 0; r < rows; ++r) {
      if (scratch.nearest[r] == taken) scratch.ranks[r] = 0;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t r = first_of_highest(scratch.ranks, rows);
      scratch.picked[picked + i] = static_cast<std::int32_t>(r);
      scratch.ranks[r] = 0;
    }
    meet_picked(job, picked, picked + count);
    picked += count;
    for (std::int64_t i = 0; i < picked; ++i) scratch.nearest[scratch.picked[i]] = taken;
  }
  return picked;
}

/// Step 4: queries [picked, padded D], the means of the picked rows' members.
SKIM_NOINLINE inline void average_members(const needed_job& job, std::int64_t picked, float* queries) {
  const needed_scratch& scratch = job.scratch;
  float* const weights = scratch.size;  // which no one needs any more; [picked]
  for (std::int64_t i = 0; i < picked; ++i) {
    clear_row(queries + i * job.length, job.length);
    weights[i] = 0;
  }
  for (std::int64_t r = 0; r < job.R; ++r) {
    if (is_silent(job.x(r))) continue;
    const std::int64_t i = scratch.owner[r];
    weights[i] += scratch.need[r];
    add_scaled_of(job.x(r), scratch.need[r], queries + i * job.length, job.length);
  }
  for (std::int64_t i = 0; i < picked; ++i) {
    float* const query = queries + i * job.length;
    if (weights[i] <= 1e-6f) {
      std::memcpy(query, job.x(scratch.picked[i]), static_cast<std::size_t>(job.length) * sizeof(float));
    } else {
      scale_row(1 / weights[i], job.length, query);
    }
  }
}

/// queries [kept, padded D] of one KV head's own rows; places without a say are marked.
SKIM_NOINLINE inline void choose_own_queries(const query_rule& rule, const attention_args& args,
                                             const attention_sequence& block, std::int64_t head, const slot_order& past,
                                             const needed_scratch& scratch, float* queries) {
  const std::int64_t D = args.q.extents[2], G = group_size(args), R = block.Tq * G, kept = rule.kept(block.Tq, G);
  const needed_job job{rule, args, block, head, past, scratch, D, padded_row(D), G, R};
  const bool needed = kept < R && rule.choice == query_choice::needed;
  if (needed) fetch_keys_met(job);
  load_own_rows(job);
  if (needed) {
    const kv_tensor& keys = block.kv.k;
    const bool exact = args.q.type == element::bf16 && keys.type == element::bf16 && !keys.scales;  // as they are
    simd::with_math(accumulate::dot_pairs{}, exact ? keys.type : element::none,
                    [&](auto math) { weigh_rows<decltype(math)>(job); });
    find_features(job);
    const std::int64_t picked = pick_needed(job);
    average_members(job, picked, queries);
    for (std::int64_t i = picked; i < kept; ++i) {
      clear_row(queries + i * job.length, job.length);
      silence(queries + i * job.length);
    }
    return;
  }
  if (kept < R && rule.choice == query_choice::random) queries::draw_rows(rule, R, block.Tk(), scratch.picked);
  for (std::int64_t i = 0; i < kept; ++i) {
    if (kept == R || rule.choice == query_choice::newest) {
      scratch.picked[i] = static_cast<std::int32_t>(kept == R ? i : i % G * block.Tq + block.Tq - 1 - i / G);
    }
    std::memcpy(queries + i * job.length, job.x(scratch.picked[i]),
                static_cast<std::size_t>(job.length) * sizeof(float));
  }
}

}}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES::detail
