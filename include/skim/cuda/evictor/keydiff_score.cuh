// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff's scores on a GPU: each key's cosine with the anchor, K read once.
#pragma once

#include <skim/cuda/kernel/stream_rows.cuh>
#include <skim/cuda/kernel/unit_rows.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Numbers of 16 bits that make one of an anchor's: the rest that the ones before leave, `part_step` times as large each.
inline constexpr int anchor_parts = 3;
SKIM_HD SKIM_INLINE constexpr float part_step(element type) {
  return type == element::f16 ? 2048.0f : 1.0f;  // f16 ends at 2^-24
}

struct keydiff_call {
  eviction_call call;
  std::int64_t* unit_sums;  // [Hk, D]: of unit keys, in fixed point of 2^-30
  float* anchors;           // [Hk, padded(D)], of length -1
  float* scores;            // [Hk, stride]
  std::int64_t score_stride;

  SKIM_DEVICE float* anchor(int head) const { return anchors + head * padded(call.kv.k.dim); }
  SKIM_DEVICE float& score(int head, int slot) const { return scores[head * score_stride + slot]; }
  /// What makes a key a unit key. By a warp.
  SKIM_DEVICE unit_factors unit_of(int head, int slot) const {
    const cache_rows& kv = call.kv;
    const char* const row = kv.row(kv.k, head, slot);
    const float scale = kv.scale(kv.k, head, slot);
    unit_factors unit{0, 0};
    if (call.inverse_norms) {
      unit.inverse = *call.norm(head, slot);
    } else {
      float squares = 0;
      for (int d = threadIdx.x % 32; d < kv.k.dim; d += 32) {
        const float x = load(row, kv.k.type, d) * scale;
        squares += x * x;
      }
      squares = sum_of_warp(squares);
      if (squares != 0) unit.inverse = 1 / sqrtf(squares);
    }
    if (!is_usable(unit.inverse)) unit = scale_to_one(kv, kv.k, head, slot);
    return unit;
  }
};

/// anchor [D] = the mean of a head's unit keys, made -1 long; zeros where it is zero. By `threads` of which this is number
/// `thread`, which `sum_of_all` sums over.
template <class Sum>
SKIM_DEVICE void find_anchor(const keydiff_call& own, int head, float* anchor, int thread, int threads,
                             const Sum& sum_of_all) {
  const int D = own.call.kv.k.dim;
  const std::int64_t* const sum = own.unit_sums + static_cast<std::int64_t>(head) * D;
  const double share = 0x1p-30 / max(own.call.kv.length(head), 1);
  double squares = 0;
  for (int d = thread; d < D; d += threads) {
    anchor[d] = static_cast<float>(static_cast<double>(sum[d]) * share);
    squares += static_cast<double>(anchor[d]) * static_cast<double>(anchor[d]);
  }
  squares = sum_of_all(squares);
  const double inverse = squares == 0 ? 0 : -1 / sqrt(squares);
  for (int d = thread; d < D; d += threads) anchor[d] = static_cast<float>(static_cast<double>(anchor[d]) * inverse);
}

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
  /// A stored norm.
  SKIM_DEVICE float known(int head, int slot) const {
    if constexpr (Norms) return *call.norm(head, slot);
    return 0;
  }
  SKIM_DEVICE float inverse(float known, float scale, const float (&found)[sums]) const {
    if constexpr (Norms) return known;
    const float squares = found[sums - 1] * scale * scale;
    return squares == 0 ? 0 : 1 / sqrtf(squares);
  }
  SKIM_DEVICE bool usual(float known, float scale, const float (&found)[sums]) const {
    return is_usable(inverse(known, scale, found));
  }
  SKIM_DEVICE void put(int head, int slot, float known, float scale, const float (&found)[sums]) const {
    score(head, slot) = found[0] * scale * inverse(known, scale, found);
  }
  SKIM_DEVICE void put_unusual(int head, int slot) const { put_unusual(head, slot, anchor(head)); }
  SKIM_DEVICE void put_unusual(int head, int slot, const float* of_anchor) const {
    const stored_rows& of = call.kv.k;
    const unit_factors unit = scale_to_one(call.kv, of, head, slot);
    const char* const row = call.kv.row(of, head, slot);
    const float scale = call.kv.scale(of, head, slot);
    float sum = 0;
    for (int d = threadIdx.x % 32; d < of.dim; d += 32) sum += unit(load(row, of.type, d) * scale) * of_anchor[d];
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) score(head, slot) = sum;
  }
};

/// The scores of keys in 16 bits by tensor cores: as K is read once, nothing else takes time. Each warp has 16 keys; one
/// product with the anchor's parts, and where norms are not stored, of keys with themselves, whose diagonal are the squares.
struct tensor_keydiff {
  static constexpr int threads = 128, warps = threads / 32, keys = 16;  // of a warp at a time
  static constexpr int warps_at_once = 2112;  // as many as an H200 holds have all keys: each finds its head's anchor

  /// Of a head.
  SKIM_HD SKIM_INLINE static int warps_of(int tokens, int heads) {
    const int most = (warps_at_once + heads - 1) / heads, tiles = (tokens + keys - 1) / keys;
    return tiles < most ? tiles : most;
  }
};

/// Keys `group` and 8 + group of a warp's 16, of which a lane has a quarter of each 32 numbers.
template <int D>
struct key_pair {
  row_piece<32> low[D / 32], high[D / 32];

  SKIM_DEVICE void load(const row_addresses& addresses, int first, int n) {
    const int group = static_cast<int>(threadIdx.x) % 32 / 4;
    const char* const rows[2] = {addresses.row(min(first + group, n - 1)),
                                 addresses.row(min(first + 8 + group, n - 1))};
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const uint4 lower = load_once_of_many(rows[0] + 64 * c), upper = load_once_of_many(rows[1] + 64 * c);
      low[c] = {{lower.x, lower.y, lower.z, lower.w}};
      high[c] = {{upper.x, upper.y, upper.z, upper.w}};
    }
  }
};

template <class T, int D, bool Norms>
__global__ void __launch_bounds__(tensor_keydiff::threads, D <= 128 ? 4 : 3)
    score_keys_by_tensor_cores(const keydiff_scores<Norms> own) {
  using tile = tensor_keydiff;
  constexpr int chunks = D / 32;
  constexpr bool ahead =
      D <= 128;  // one tile is loaded while another is multiplied, where there are registers for both
  __shared__ float anchors[tile::warps][D];
  __shared__ __align__(16) std::uint16_t parts_of_warps[tile::warps][anchor_parts][D];  // the same in 16 bits
  const cache_rows& kv = own.call.kv;
  // Warps that follow each other have heads that do: their rows often lie side by side.
  const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4, warp = static_cast<int>(threadIdx.x) / 32;
  const int work = static_cast<int>(blockIdx.x) * tile::warps + warp, head = work % own.call.heads, n = kv.length(head);
  const int pieces = tile::warps_of(kv.tokens, own.call.heads), piece = work / own.call.heads;
  const std::int64_t tiles = (kv.tokens + tile::keys - 1) / tile::keys;
  const int first = static_cast<int>(tiles * piece / pieces) * tile::keys;
  const int end = min(static_cast<int>(tiles * (piece + 1) / pieces) * tile::keys, piece < pieces ? n : 0);
  const row_addresses addresses(kv, kv.k, head, 16 * quarter);
  let_next_kernel_start();
  key_pair<D> keys, next;
  if (first < end) keys.load(addresses, first, n);  // keys are older than the chain
  if (ahead && first + tile::keys < end) next.load(addresses, first + tile::keys, n);
  await_kernel_before();
  if (first >= end) return;
  float* const exact = anchors[warp];
  std::uint16_t(&parts)[anchor_parts][D] = parts_of_warps[warp];
  find_anchor(own, head, exact, lane, 32, [](double sum) { return sum_of_warp(sum); });
  constexpr element type = std::is_same_v<T, f16> ? element::f16 : element::bf16;
  for (int d = lane; d < D; d += 32) {
    float rest = exact[d];
#pragma unroll
    for (int part = 0; part < anchor_parts; ++part, rest *= part_step(type)) {
      store(parts, type, part * D + d, rest);
      rest -= load(parts, type, part * D + d);
    }
  }
  __syncwarp();
  row_piece<32> anchor[chunks] = {};
  if (group < anchor_parts) {
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      anchor[c] = *reinterpret_cast<const row_piece<32>*>(parts[group] + 32 * c + 8 * quarter);
    }
  }
  constexpr float step = 1 / part_step(type);
#pragma unroll 1
  for (int begin = first; begin < end; begin += tile::keys) {
    const int slot = begin + (quarter == 0 ? group : 8 + group);
    const float known = own.known(head, min(slot, n - 1));
    float products[4] = {}, low_squares[4] = {}, high_squares[4] = {};
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
#pragma unroll
      for (int half = 0; half < 4; half += 2) {
        const std::uint32_t(&a)[4] = keys.low[c].words, (&b)[4] = keys.high[c].words, (&with)[4] = anchor[c].words;
        const std::uint32_t rows[4] = {a[half], b[half], a[half + 1], b[half + 1]};
        tensor_type<T>::multiply(products, rows, with[half], with[half + 1]);
        if constexpr (!Norms) {
          tensor_type<T>::multiply(low_squares, rows, a[half], a[half + 1]);
          tensor_type<T>::multiply(high_squares, rows, b[half], b[half + 1]);
        }
      }
    }
    // Lanes of quarter 0 and 1 have the parts of their group's two products; then one takes the lower key, one the other.
    const auto joined = [&](float part, float next) {
      const float sum = quarter == 0 ? part + next * step : quarter == 1 ? part * (step * step) : 0;
      return sum + __shfl_xor_sync(all_lanes, sum, 1);
    };
    const float lower = joined(products[0], products[1]), upper = joined(products[2], products[3]);
    float found[keydiff_scores<Norms>::sums] = {quarter == 0 ? lower : upper};
    if constexpr (!Norms) {
      const bool odd = group % 2 != 0;
      const float low_own = __shfl_sync(all_lanes, odd ? low_squares[1] : low_squares[0], 4 * group + group / 2);
      const float low_other = __shfl_sync(all_lanes, odd ? high_squares[3] : high_squares[2], 4 * group + group / 2);
      found[1] = quarter == 0 ? low_own : low_other;
    }
    const bool mine = quarter < 2 && slot < n, usual = !mine || own.usual(known, 1, found);
    if (mine && usual) own.put(head, slot, known, 1, found);
    for (unsigned left = __ballot_sync(all_lanes, !usual); left != 0; left &= left - 1) {
      own.put_unusual(head, __shfl_sync(all_lanes, slot, __ffs(static_cast<int>(left)) - 1), exact);
    }
    if constexpr (ahead) {
      keys = next;
      if (begin + 2 * tile::keys < end) next.load(addresses, begin + 2 * tile::keys, n);
    } else if (begin + tile::keys < end) {
      keys.load(addresses, begin + tile::keys, n);
    }
  }
}

template <class T, int D, bool Norms>
void score_together(const keydiff_scores<Norms>& scoring, launcher& launch) {
  const eviction_call& call = scoring.call;
  if (call.kv.tokens == 0) return;
  const std::int64_t work = std::int64_t{tensor_keydiff::warps_of(call.kv.tokens, call.heads)} * call.heads;
  launch(&score_keys_by_tensor_cores<T, D, Norms>, pieces(work, tensor_keydiff::warps), 1, tensor_keydiff::threads, 0,
         scoring);
}

/// Calls `body(type, dim)` where tensor cores score, as `with_tensor_cores`.
template <class Body>
bool keydiff_by_tensor_cores(kv_view kv, const Body& body) {
  kv.v = kv.k;
  bool taken = false;
  with_tensor_cores(kv, [&](auto type, auto dim) {
    if constexpr (dim.value % 32 == 0) {
      taken = true;
      body(type, dim);
    }
  });
  return taken;
}

}}}}  // namespace skim::v0_2::cuda::detail
