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
  static constexpr int threads = 256;
  static constexpr int columns = 32, groups = 32;  // of a block that adds up these sums: numbers, and sums at a time
  static constexpr int tokens = 1024;              // whose weights a block adds up

  /// Rows that a block adds up.
  SKIM_HD SKIM_INLINE static int rows(int tokens, int heads) { return streaming::slots(tokens, heads, 128); }
};

struct caote_call {
  static constexpr float protected_weight = -1;  // marks, among weights, a token that stays whatever its score

  eviction_call call;
  token_order order;         // ranks, where tokens are protected
  bool protects, weighted;   // weighted: the centre is, as CAOTE's; else FastCAOTE's plain mean
  float *centers, *partial;  // [Hk, Dv]; [Hk, pieces, Dv]
  double2* totals;           // [Hk, weight_pieces]: of weights, and how many tokens these are
  int pieces, weight_pieces;

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
  SKIM_DEVICE float known(int head, int slot) const { return score(head, slot); }  // the weight
  SKIM_DEVICE bool usual(float, float, const float (&squares)[1]) const {
    return squares[0] > 1e-30f && squares[0] < 1e38f;
  }
  SKIM_DEVICE void put(int head, int slot, float weight, float, const float (&squares)[1]) const {
    put_distance(head, slot, weight, sqrtf(squares[0]));
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
      put_distance(head, slot, score(head, slot),
                   static_cast<float>(length > most && isfinite(length) ? most : length));
    }
  }

 private:
  /// A score beyond f32 is the largest number: infinite are those of tokens that stay, and of values with an infinity.
  SKIM_DEVICE void put_distance(int head, int slot, float weight, float apart) const {
    constexpr float most = 3.402823466e38f, least_remainder = 1e-6f;
    const float found = weight / fmaxf(1 - weight, least_remainder) * apart;
    score(head, slot) = weight == protected_weight ? -minus_infinity() : found > most && apart <= most ? most : found;
  }
};

/// Turns scores into weights, in place, and adds up those of each piece.
template <int Threads, class Base>
__global__ void __launch_bounds__(Threads) weigh_tokens(const caote_call own, const Base base) {
  __shared__ double of_warps[Threads / 32];
  start_in_chain();
  const int head = blockIdx.y, n = own.call.kv.length(head), first = blockIdx.x * value_sums::tokens;
  const retention keep = own.call.kept(head);
  double total = 0, unprotected = 0;
#pragma unroll
  for (int i = 0; i < value_sums::tokens / Threads; ++i) {
    const int slot = first + i * Threads + static_cast<int>(threadIdx.x);
    if (slot >= n) continue;
    const float h = base.caote_weight(own.score(head, slot));
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
  unprotected = sum_of_block<Threads>(unprotected, of_warps);
  if (threadIdx.x == 0) own.totals[head * own.weight_pieces + blockIdx.x] = make_double2(total, unprotected);
}

/// Makes a head's weights add up to one: hn.
template <int Threads>
__global__ void __launch_bounds__(Threads) share_weights(const caote_call own) {
  __shared__ double of_warps[Threads / 32];
  start_in_chain();
  const int head = blockIdx.y, n = own.call.kv.length(head), first = blockIdx.x * value_sums::tokens;
  double total = 0, unprotected = 0;
  for (int piece = threadIdx.x; piece < own.weight_pieces; piece += Threads) {
    const double2 its = own.totals[head * own.weight_pieces + piece];
    total += its.x;
    unprotected += its.y;
  }
  total = sum_of_block<Threads>(total, of_warps);
  unprotected = sum_of_block<Threads>(unprotected, of_warps);
  const double uniform = 1 / fmax(unprotected, 1.0);
#pragma unroll
  for (int i = 0; i < value_sums::tokens / Threads; ++i) {
    const int slot = first + i * Threads + static_cast<int>(threadIdx.x);
    if (slot >= n) continue;
    float& h = own.score(head, slot);
    if (h == caote_call::protected_weight) continue;
    h = static_cast<float>(total > 0 ? static_cast<double>(h) / total : uniform);
  }
}

/// Sums of weighted values, or of values that count alike, over pieces of the slots; rows with an infinity or NaN are left
/// out. Groups of `Lanes` lanes share a row; longer rows are gone through once more for each of their pieces.
template <class T, bool Wide, int Lanes>
__global__ void __launch_bounds__(value_sums::threads, 3) sum_values(const caote_call own) {
  using piece_type = stored_piece<T, Wide>;
  constexpr int count = piece_type::count, groups = value_sums::threads / Lanes, at_once = 4, columns = Lanes * count;
  __shared__ float sums[groups][columns];
  start_in_chain();
  const cache_rows& kv = own.call.kv;
  const int head = static_cast<int>(blockIdx.x) % own.call.heads, piece = static_cast<int>(blockIdx.x) / own.call.heads;
  const int n = kv.length(head), D = kv.v.dim, most = value_sums::rows(kv.tokens, own.call.heads);
  const int first = piece * most, rows = min(most, n - first);
  const int lane = threadIdx.x % Lanes, group = static_cast<int>(threadIdx.x) / Lanes;
  const unsigned of_group = (~0u >> (32 - Lanes)) << (threadIdx.x % 32 / Lanes * Lanes);
  const float share = 1 / static_cast<float>(max(n, 1));
  const row_addresses addresses(kv, kv.v, head, 0);
  float* const to = own.partial + (static_cast<std::int64_t>(head) * own.pieces + piece) * D;
  for (int begin = 0; begin < D; begin += columns) {
    float sum[count] = {};
    for (int r = group; r - group < rows; r += at_once * groups) {
      const T* from[at_once];
      float factors[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int slot = first + min(r + i * groups, rows - 1);
        from[i] = reinterpret_cast<const T*>(addresses.row(slot));
        const float weight = own.weighted ? own.score(head, slot) : share;
        factors[i] = r + i * groups < rows && weight > 0 ? weight * kv.scale(kv.v, head, slot) : 0;
      }
      const int at = min(begin + lane * count, D - count);
      const piece_type stored[at_once] = {piece_type(from[0] + at), piece_type(from[1] + at), piece_type(from[2] + at),
                                          piece_type(from[3] + at)};
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        float values[count], spoilt = factors[i] * 0;
        for (int d = lane * count; D > columns && d < D; d += columns) {
          piece_type(from[i] + d).widen(values);
#pragma unroll
          for (int j = 0; j < count; ++j) spoilt += values[j] * 0;
        }
        stored[i].widen(values);
#pragma unroll
        for (int j = 0; j < count; ++j) spoilt += values[j] * 0;
        const bool left_out = (__ballot_sync(all_lanes, !(spoilt == 0)) & of_group) != 0;
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += left_out || factors[i] == 0 ? 0 : values[j] * factors[i];
      }
    }
#pragma unroll
    for (int j = 0; j < count; ++j) sums[group][lane * count + j] = sum[j];
    __syncthreads();
    for (int d = threadIdx.x; d < columns && begin + d < D; d += value_sums::threads) {
      float all = 0;
#pragma unroll
      for (int g = 0; g < groups; ++g) all += sums[g][d];
      to[begin + d] = all;
    }
    __syncthreads();
  }
}

/// Adds up the sums over pieces: every thirty-second by a warp, then theirs.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_centers(const caote_call own) {
  constexpr int columns = value_sums::columns, groups = Threads / columns;
  __shared__ float sums[groups][columns];
  start_in_chain();
  const int head = blockIdx.y, Dv = own.call.kv.v.dim, column = threadIdx.x % columns, group = threadIdx.x / columns;
  const int d = blockIdx.x * columns + column;
  const float* const partial = own.partial + static_cast<std::int64_t>(head) * own.pieces * Dv + min(d, Dv - 1);
  float sum = 0;
#pragma unroll 8
  for (int piece = group; piece < own.pieces; piece += groups) sum += partial[std::int64_t{piece} * Dv];
  sums[group][column] = sum;
  __syncthreads();
  if (group != 0 || d >= Dv) return;
  for (int other = 1; other < groups; ++other) sum += sums[other][column];
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
  static auto leaving(const Policy& policy, const eviction_args& args, eviction_call& call, memory state) {
    return base::leaving(policy.base, args, call, state);
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
    if (own.protects) find_order(call, own.order, nullptr, 0, launch);
    launch(&weigh_tokens<256, Base>, own.weight_pieces, call.heads, 256, 0, own, policy.base);
    launch(&share_weights<256>, own.weight_pieces, call.heads, 256, 0, own);
    with_lanes(call.kv.v, [&](auto type, auto wide, auto lanes) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      launch(&sum_values<T, wide.value, lanes.value>, std::int64_t{own.pieces} * call.heads, 1, value_sums::threads, 0,
             own);
    });
    constexpr int threads = value_sums::columns * value_sums::groups;
    launch(&find_centers<threads>, detail::pieces(args.kv.v.dim, value_sums::columns), call.heads, threads, 0, own);
    stream(own, launch);
  }

 private:
  static caote_call lay_out(const eviction_args& args, skim::detail::arena& arena) {
    caote_call own{};
    own.order = token_order(arena, args.kv.heads, args.kv.tokens);
    own.weight_pieces = static_cast<int>(detail::pieces(args.kv.tokens, value_sums::tokens));
    own.totals = arena.take<double2>(args.kv.heads * own.weight_pieces);
    const std::int64_t rows = value_sums::rows(static_cast<int>(args.kv.tokens), static_cast<int>(args.kv.heads));
    own.pieces = static_cast<int>(detail::pieces(args.kv.tokens, greater(rows, 1)));
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
