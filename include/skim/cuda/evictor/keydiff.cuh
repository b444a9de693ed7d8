// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff on a GPU: the sum of unit keys is kept, so that scoring is one read of K.
#pragma once

#include <skim/cuda/kernel/stream_rows.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/evictor/keydiff.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

/// Whether 1 / |row| is a factor for f32: squares and products of such rows neither overflow nor vanish.
SKIM_DEVICE bool is_usable(float inverse_length) {
  return inverse_length >= 1e-18f && inverse_length < 1e15f;
}

/// What makes a row a unit row: a power of two where its size is unusual, then a factor; 0 for zeros, NaN for a row that is
/// not finite.
struct unit_factors {
  int exponent;
  float inverse;

  SKIM_DEVICE float operator()(float x) const { return (exponent == 0 ? x : scalbnf(x, exponent)) * inverse; }
};

/// By a warp.
SKIM_DEVICE unit_factors scale_to_one(const cache_rows& kv, const stored_rows& of, int head, int slot) {
  const char* const row = kv.row(of, head, slot);
  const float scale = kv.scale(of, head, slot);
  float largest = 0, spoilt = 0;
  for (int d = threadIdx.x % 32; d < of.dim; d += 32) {
    const float x = load(row, of.type, d) * scale;
    largest = fmaxf(largest, fabsf(x));
    spoilt += x * 0;
  }
  if (!(sum_of_warp(spoilt) == 0)) return {0, __int_as_float(0x7fc00000)};
  largest = largest_of_warp(largest);
  if (largest == 0) return {0, 0};
  const int exponent = -ilogbf(largest);
  float squares = 0;
  for (int d = threadIdx.x % 32; d < of.dim; d += 32) {
    const float x = scalbnf(load(row, of.type, d) * scale, exponent);
    squares += x * x;
  }
  return {exponent, 1 / sqrtf(sum_of_warp(squares))};
}

struct keydiff_call {
  eviction_call call;
  std::int64_t* unit_sums;  // [Hk, D]: of unit keys, in fixed point of 2^-30
  float* anchors;           // [Hk, padded(D)], of length -1
  float* scores;            // [Hk, stride]
  std::int64_t score_stride;

  SKIM_DEVICE float* anchor(int head) const { return anchors + head * padded(call.kv.k.dim); }
  SKIM_DEVICE float& score(int head, int slot) const { return scores[head * score_stride + slot]; }
  SKIM_DEVICE float inverse_length(int head, int slot, float squares) const {
    if (call.inverse_norms) return *call.norm(head, slot);
    return squares == 0 ? 0 : 1 / sqrtf(squares);
  }
};

/// What `stream_rows` asks: the dot product with the anchor and, where no norms are stored, a key's squares.
template <bool Norms>
struct keydiff_scores : keydiff_call {
  static constexpr int sums = Norms ? 1 : 2;

  SKIM_HD SKIM_INLINE const stored_rows& rows_of() const { return call.kv.k; }
  SKIM_DEVICE const float* other(int head) const { return anchor(head); }
  SKIM_DEVICE void add(float (&to)[sums], float x, float, float of_anchor) const {
    to[0] += x * of_anchor;
    if constexpr (!Norms) to[1] += x * x;
  }
  SKIM_DEVICE float inverse(int head, int slot, float scale, const float (&found)[sums]) const {
    if constexpr (Norms) return *call.norm(head, slot);
    return inverse_length(head, slot, found[sums - 1] * scale * scale);
  }
  SKIM_DEVICE bool usual(int head, int slot, float scale, const float (&found)[sums]) const {
    return is_usable(inverse(head, slot, scale, found));
  }
  SKIM_DEVICE void put(int head, int slot, float scale, const float (&found)[sums]) const {
    score(head, slot) = found[0] * scale * inverse(head, slot, scale, found);
  }
  SKIM_DEVICE void put_unusual(int head, int slot) const {
    const stored_rows& of = call.kv.k;
    const unit_factors unit = scale_to_one(call.kv, of, head, slot);
    const char* const row = call.kv.row(of, head, slot);
    const float scale = call.kv.scale(of, head, slot);
    float sum = 0;
    for (int d = threadIdx.x % 32; d < of.dim; d += 32) sum += unit(load(row, of.type, d) * scale) * anchor(head)[d];
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) score(head, slot) = sum;
  }
};

struct unit_keys {
  static constexpr int threads = 256, rows = 32;
  static constexpr std::int64_t most_blocks = 64;  // of a head
};

/// A component of a unit key as a multiple of 2^-30, to nearest even; what is no component of one counts as 0.
SKIM_DEVICE long long fixed_point(float component) {
  return fabsf(component) <= 2 ? __double2ll_rn(static_cast<double>(component) * 0x1p30) : 0;
}

/// Adds unit keys to the sums: of the chunk, or, with `Sign` -1, of those that are not listed. Integers: any order will do.
template <int Threads, int Sign>
__global__ void __launch_bounds__(Threads) add_unit_keys(const keydiff_call own, const index_lists lists) {
  __shared__ int slots[unit_keys::rows];
  __shared__ unit_factors units[unit_keys::rows];
  start_in_chain();
  const eviction_call& call = own.call;
  const cache_rows& kv = call.kv;
  const int head = blockIdx.y, n = kv.length(head), warp = threadIdx.x / 32;
  int all = min(call.new_tokens, n);
  if constexpr (Sign < 0) all = n - lists.counts[call.list(head)];
  for (int first = blockIdx.x * unit_keys::rows; first < all; first += gridDim.x * unit_keys::rows) {
    const int count = min(unit_keys::rows, all - first);
    for (int r = warp; r < count; r += Threads / 32) {
      int slot;
      if constexpr (Sign < 0) {
        const kept_slots kept(lists, call.list(head));
        slot = kept.missing(first + r, kept.count);
      } else {
        slot = n - all + first + r;
      }
      const char* const row = kv.row(kv.k, head, slot);
      const float scale = kv.scale(kv.k, head, slot);
      float squares = 0;
      for (int d = threadIdx.x % 32; d < kv.k.dim && !call.inverse_norms; d += 32) {
        const float x = load(row, kv.k.type, d) * scale;
        squares += x * x;
      }
      unit_factors unit{0, own.inverse_length(head, slot, sum_of_warp(squares))};
      if (!is_usable(unit.inverse)) unit = scale_to_one(kv, kv.k, head, slot);
      if (threadIdx.x % 32 == 0) {
        slots[r] = slot;
        units[r] = unit;
      }
    }
    __syncthreads();
    for (int d = threadIdx.x; d < kv.k.dim; d += Threads) {
      long long sum = 0;
      for (int r = 0; r < count; ++r) {
        const float x = load(kv.row(kv.k, head, slots[r]), kv.k.type, d) * kv.scale(kv.k, head, slots[r]);
        sum += Sign * fixed_point(units[r](x));
      }
      atomicAdd(reinterpret_cast<unsigned long long*>(own.unit_sums) + static_cast<std::int64_t>(head) * kv.k.dim + d,
                static_cast<unsigned long long>(sum));
    }
    __syncthreads();
  }
}

/// The mean of the unit keys, made -1 long; zeros where it is zero. A block for each head.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_anchors(const keydiff_call own) {
  __shared__ double of_warps[Threads / 32];
  start_in_chain();
  const int head = blockIdx.y, D = own.call.kv.k.dim;
  const std::int64_t* const sum = own.unit_sums + static_cast<std::int64_t>(head) * D;
  float* const anchor = own.anchor(head);
  const double share = 0x1p-30 / max(own.call.kv.length(head), 1);
  const auto mean = [&](int d) { return static_cast<double>(static_cast<float>(static_cast<double>(sum[d]) * share)); };
  double squares = 0;
  for (int d = threadIdx.x; d < D; d += Threads) squares += mean(d) * mean(d);
  squares = sum_of_block<Threads>(squares, of_warps);
  const double inverse = squares == 0 ? 0 : -1 / sqrt(squares);
  for (int d = threadIdx.x; d < D; d += Threads) anchor[d] = static_cast<float>(mean(d) * inverse);
}

}  // namespace detail

/// As on the CPU, bounds too; of anchors `anchor::unit_mean` alone.
template <class Anchor>
struct score_kernel<keydiff<Anchor>> {
  static_assert(std::is_same_v<Anchor, anchor::unit_mean>, "on a GPU KeyDiff has the anchor unit_mean alone");
  using policy_type = keydiff<Anchor>;

  static report check(const policy_type&, const eviction_args&) { return {}; }
  static std::size_t state_bytes(const policy_type&, const eviction_args& args) {
    skim::detail::arena arena;
    arena.take<std::int64_t>(args.kv.heads * args.kv.k.dim);
    return arena.used();
  }
  static std::size_t workspace_bytes(const policy_type&, const eviction_args& args) {
    skim::detail::arena arena;
    arena.take<float>(args.kv.heads * detail::padded(args.kv.k.dim));
    return arena.used();
  }

  static void reset(const policy_type&, const eviction_args& args, memory state, detail::launcher& launch) {
    launch.clear(state.data, static_cast<std::size_t>(args.kv.heads * args.kv.k.dim) * sizeof(std::int64_t));
  }
  static void observe(const policy_type&, const eviction_args& args, const detail::eviction_call& call, memory state,
                      memory, detail::launcher& launch) {
    using own = detail::unit_keys;
    launch(&detail::add_unit_keys<own::threads, 1>,
           detail::smaller(detail::pieces(args.new_tokens, own::rows), own::most_blocks), args.kv.heads, own::threads,
           0, call_of(call, state, {}), index_lists{});
  }
  static void score(const policy_type&, const eviction_args& args, const detail::eviction_call& call,
                    const tensor_view<float, 2>& scores, memory state, memory workspace, detail::launcher& launch) {
    detail::keydiff_call own = call_of(call, state, workspace);
    own.scores = scores.data;
    own.score_stride = scores.strides[0];
    launch(&detail::find_anchors<256>, 1, args.kv.heads, 256, 0, own);
    if (call.inverse_norms) return detail::stream(detail::keydiff_scores<true>{own}, launch);
    detail::stream(detail::keydiff_scores<false>{own}, launch);
  }
  static void compact(const policy_type&, const eviction_args& args, const detail::eviction_call& call,
                      const index_lists& lists, memory state, memory, detail::launcher& launch) {
    using own = detail::unit_keys;
    launch(&detail::add_unit_keys<own::threads, -1>,
           detail::smaller(detail::pieces(args.kv.tokens, own::rows), own::most_blocks), args.kv.heads, own::threads, 0,
           call_of(call, state, {}), lists);
  }

 private:
  static detail::keydiff_call call_of(const detail::eviction_call& call, memory state, memory workspace) {
    detail::keydiff_call own{};
    own.call = call;
    own.unit_sums = static_cast<std::int64_t*>(state.data);
    own.anchors = static_cast<float*>(workspace.data);
    return own;
  }
};

}}}  // namespace skim::v0_2::cuda
