// SPDX-License-Identifier: Apache-2.0
/// \file CAOTE and FastCAOTE on a GPU: the base's scores become weights, the values' centre is summed, and each value's
/// distance from it is taken.
#pragma once

#include <skim/cuda/kernel/smooth_tokens.cuh>
#include <skim/cuda/kernel/stream_rows.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/evictor/caote.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

struct value_sums {
  static constexpr int threads = 256, rows = 128;  // rows that a block adds up
};

struct caote_call {
  static constexpr float protected_weight = -1;  // marks, among weights, a token that stays whatever its score

  eviction_call call;
  token_order order;         // ranks, where tokens are protected
  bool protects, weighted;   // weighted: the centre is, as CAOTE's; else FastCAOTE's plain mean
  float *centers, *partial;  // [Hk, Dv]; [Hk, pieces, Dv]
  int pieces;

  // As `stream_rows` asks.
  static constexpr int sums = 1;
  float* scores;  // [Hk, stride]: first the base's, then weights
  std::int64_t score_stride;

  SKIM_HD SKIM_INLINE const stored_rows& rows_of() const { return call.kv.v; }
  SKIM_DEVICE const float* other(int head) const {
    return centers + static_cast<std::int64_t>(head) * padded(call.kv.v.dim);
  }
  SKIM_DEVICE float& score(int head, int slot) const { return scores[head * score_stride + slot]; }
  SKIM_DEVICE void add(float (&squares)[1], float x, float scale, float center) const {
    const float apart = x * scale - center;
    squares[0] += apart * apart;
  }
  SKIM_DEVICE bool usual(int, int, float, const float (&squares)[1]) const {
    return squares[0] > 1e-30f && squares[0] < 1e38f;
  }
  SKIM_DEVICE void put(int head, int slot, float, const float (&squares)[1]) const {
    put_distance(head, slot, sqrtf(squares[0]));
  }
  SKIM_DEVICE void put_unusual(int head, int slot) const {
    const char* const row = call.kv.row(call.kv.v, head, slot);
    const double scale = call.kv.scale(call.kv.v, head, slot), most = 3.4028234663852886e38;
    double squares = 0;
    for (int d = threadIdx.x % 32; d < call.kv.v.dim; d += 32) {
      const double apart = load(row, call.kv.v.type, d) * scale - static_cast<double>(other(head)[d]);
      squares += apart * apart;
    }
    const double length = sqrt(sum_of_warp(squares));
    if (threadIdx.x % 32 == 0) {
      put_distance(head, slot, static_cast<float>(length > most && isfinite(length) ? most : length));
    }
  }

 private:
  /// A score beyond f32 is the largest number: infinite are those of tokens that stay, and of values with an infinity.
  SKIM_DEVICE void put_distance(int head, int slot, float apart) const {
    constexpr float most = 3.402823466e38f, least_remainder = 1e-6f;
    const float weight = score(head, slot), found = weight / fmaxf(1 - weight, least_remainder) * apart;
    score(head, slot) = weight == protected_weight ? -minus_infinity() : found > most && apart <= most ? most : found;
  }
};

/// Turns each head's scores into weights hn, in place. A block for each head.
template <int Threads, class Base>
__global__ void __launch_bounds__(Threads) weigh_tokens(const caote_call own, const Base base) {
  __shared__ double of_warps[Threads / 32];
  __shared__ int counts[Threads / 32];
  start_in_chain();
  const int head = blockIdx.y, n = own.call.kv.length(head);
  const retention keep = own.call.kept(head);
  double total = 0;
  int unprotected = 0;
  for (int slot = threadIdx.x; slot < n; slot += Threads) {
    const float score = own.score(head, slot), h = base.caote_weight(score);
    bool kept = false;
    if (own.protects) {
      const int rank = own.order.ranks[head * own.order.stride + slot];
      kept = rank < keep.sinks || rank >= n - keep.recent;
    }
    const float weight = h > 0 ? h : 0;  // NaN becomes 0 too
    own.score(head, slot) = kept ? caote_call::protected_weight : weight;
    total += kept ? 0 : static_cast<double>(weight);
    unprotected += kept ? 0 : 1;
  }
  total = sum_of_block<Threads>(total, of_warps);
  unprotected = sum_of_block<Threads>(unprotected, counts);
  const double uniform = 1 / static_cast<double>(max(unprotected, 1));
  for (int slot = threadIdx.x; slot < n; slot += Threads) {
    float& h = own.score(head, slot);
    if (h == caote_call::protected_weight) continue;
    h = static_cast<float>(total > 0 ? static_cast<double>(h) / total : uniform);
  }
}

/// Sums of weighted values, or of values that count alike, over pieces of the slots; rows with an infinity or NaN are left
/// out. A warp for each row, of which a lane has `Each` numbers at a time; longer rows are gone through once more for each
/// `32 Each` numbers.
template <int Threads, int Each>
__global__ void __launch_bounds__(Threads, 3) sum_values(const caote_call own) {
  constexpr int warps = Threads / 32, at_once = 4, columns = 32 * Each;
  __shared__ float sums[warps][columns];
  start_in_chain();
  const cache_rows& kv = own.call.kv;
  const int head = blockIdx.y, n = kv.length(head), first = blockIdx.x * value_sums::rows, D = kv.v.dim;
  const int count = min(value_sums::rows, n - first), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float share = 1 / static_cast<float>(max(n, 1));
  float* const to = own.partial + (static_cast<std::int64_t>(head) * own.pieces + blockIdx.x) * D;
  for (int begin = 0; begin < D; begin += columns) {
    float sum[Each] = {};
    for (int r = warp; r < count; r += at_once * warps) {
      float values[at_once][Each], factors[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int slot = first + min(r + i * warps, count - 1);
        const char* const row = kv.row(kv.v, head, slot);
        const float weight = own.weighted ? own.score(head, slot) : share;
        factors[i] = r + i * warps < count && weight > 0 ? weight * kv.scale(kv.v, head, slot) : 0;
#pragma unroll
        for (int j = 0; j < Each; ++j) values[i][j] = load(row, kv.v.type, min(begin + lane + 32 * j, D - 1));
        bool finite = true;
        for (int d = lane; D > columns && d < D; d += 32) finite &= isfinite(load(row, kv.v.type, d));
#pragma unroll
        for (int j = 0; j < Each; ++j) finite &= isfinite(values[i][j]);
        if (!__all_sync(all_lanes, finite) || !isfinite(factors[i])) factors[i] = 0;
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
#pragma unroll
        for (int j = 0; j < Each; ++j) sum[j] += factors[i] != 0 ? values[i][j] * factors[i] : 0;
      }
    }
#pragma unroll
    for (int j = 0; j < Each; ++j) sums[warp][lane + 32 * j] = sum[j];
    __syncthreads();
    for (int d = threadIdx.x; d < columns && begin + d < D; d += Threads) {
      float all = 0;
      for (int w = 0; w < warps; ++w) all += sums[w][d];
      to[begin + d] = all;
    }
    __syncthreads();
  }
}

template <int Threads>
__global__ void __launch_bounds__(Threads) find_centers(const caote_call own) {
  start_in_chain();
  const int head = blockIdx.y, Dv = own.call.kv.v.dim, d = blockIdx.x * Threads + threadIdx.x;
  if (d >= Dv) return;
  float sum = 0;
  for (int piece = 0; piece < own.pieces; ++piece) {
    sum += own.partial[(static_cast<std::int64_t>(head) * own.pieces + piece) * Dv + d];
  }
  own.centers[static_cast<std::int64_t>(head) * padded(Dv) + d] = sum;
}

/// What `caote<Base>` and `fast_caote<Base>` share: everything but the centre.
template <class Policy, class Base, bool Weighted>
struct caote_kernel {
  using base = score_kernel<Base>;

  static std::size_t state_bytes(const Policy& policy, const eviction_args& args) {
    return base::state_bytes(policy.base, args);
  }
  static std::size_t workspace_bytes(const Policy& policy, const eviction_args& args) {
    skim::detail::arena arena;
    static_cast<void>(lay_out(args, arena));
    return arena.used() + base::workspace_bytes(policy.base, args);
  }
  static void reset(const Policy& policy, const eviction_args& args, memory state, launcher& launch) {
    base::reset(policy.base, args, state, launch);
  }
  static void observe(const Policy& policy, const eviction_args& args, const eviction_call& call, memory state,
                      memory workspace, launcher& launch) {
    base::observe(policy.base, args, call, state, workspace, launch);
  }
  static void compact(const Policy& policy, const eviction_args& args, eviction_call& call, const index_lists& lists,
                      memory state, memory workspace, launcher& launch) {
    base::compact(policy.base, args, call, lists, state, workspace, launch);
  }

  static void score(const Policy& policy, const eviction_args& args, const eviction_call& call,
                    const tensor_view<float, 2>& scores, memory state, memory workspace, launcher& launch) {
    skim::detail::arena arena(workspace.data);
    caote_call own = lay_out(args, arena);
    const memory rest{static_cast<char*>(workspace.data) + arena.used(), workspace.bytes - arena.used()};
    base::score(policy.base, args, call, scores, state, rest, launch);
    own.call = call;
    own.scores = scores.data;
    own.score_stride = scores.strides[0];
    own.protects = policy.smooth == 1 && call.keep.sinks + call.keep.recent > 0;
    own.weighted = Weighted;
    if (own.protects) find_order(call, own.order, launch);
    launch(&weigh_tokens<1024, Base>, 1, call.heads, 1024, 0, own, policy.base);
    launch(&sum_values<value_sums::threads, 4>, own.pieces, call.heads, value_sums::threads, 0, own);
    launch(&find_centers<128>, detail::pieces(args.kv.v.dim, 128), call.heads, 128, 0, own);
    stream(own, launch);
  }

 private:
  static caote_call lay_out(const eviction_args& args, skim::detail::arena& arena) {
    caote_call own{};
    own.order = token_order(arena, args.kv.heads, args.kv.tokens);
    own.pieces = static_cast<int>(detail::pieces(args.kv.tokens, value_sums::rows));
    own.centers = arena.take<float>(args.kv.heads * padded(args.kv.v.dim));
    own.partial = arena.take<float>(args.kv.heads * own.pieces * args.kv.v.dim);
    return own;
  }
};

}  // namespace detail

/// As on the CPU, bounds too, but that CAOTE does not choose jointly.
template <class Base>
struct score_kernel<caote<Base>> : detail::caote_kernel<caote<Base>, Base, true> {
  static report check(const caote<Base>& policy, const eviction_args& args) {
    if (policy.joint) return fault(status::unsupported, "joint (on a GPU)", 1, 0);
    return score_kernel<Base>::check(policy.base, args);
  }
};
template <class Base>
struct score_kernel<fast_caote<Base>> : detail::caote_kernel<fast_caote<Base>, Base, false> {
  static report check(const fast_caote<Base>& policy, const eviction_args& args) {
    return score_kernel<Base>::check(policy.base, args);
  }
};

}}}  // namespace skim::v0_2::cuda
