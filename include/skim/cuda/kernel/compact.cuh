// SPDX-License-Identifier: Apache-2.0
/// \file Moving what stays of a cache together on a GPU: keys, values, scales, positions, inverse norms, weights.
#pragma once

#include <skim/cuda/kernel/eviction_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct compacting {
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int rows_at_once = 64;  // where rows move in order: so many are in registers at a time
  static constexpr int units = 32;         // of such a row, which a block moves
  static constexpr std::int64_t refill_blocks = 128;
};

/// What belongs to a token beside its key and value: read at one slot, written at another.
struct token_metadata {
  std::int32_t position;
  float norm, weight, k_scale, v_scale;

  SKIM_DEVICE token_metadata(const eviction_call& call, int head, int slot) {
    const cache_rows& kv = call.kv;
    position = call.positions[head * kv.positions_stride + kv.metadata_row(slot)];
    norm = call.inverse_norms ? *call.norm(head, slot) : 0;
    weight = call.weights ? *call.weight(head, slot) : 0;
    k_scale = kv.scale(kv.k, head, slot);
    v_scale = call.values_in_keys ? 0 : kv.scale(kv.v, head, slot);
  }
  SKIM_DEVICE void put(const eviction_call& call, int head, int slot) const {
    const cache_rows& kv = call.kv;
    if (head == 0 || kv.positions_stride != 0) {  // a row that all heads share moves once
      call.positions[head * kv.positions_stride + kv.metadata_row(slot)] = position;
    }
    if (call.inverse_norms) *call.norm(head, slot) = norm;
    if (call.weights) *call.weight(head, slot) = weight;
    if (kv.k.scales) *const_cast<float*>(kv.scale_at(kv.k, head, slot)) = k_scale;
    if (kv.v.scales && !call.values_in_keys) *const_cast<float*>(kv.scale_at(kv.v, head, slot)) = v_scale;
  }
};

/// A row of keys or values by a warp.
SKIM_DEVICE void move_row(const cache_rows& kv, const stored_rows& of, char* data, int head, int source, int target) {
  const int lane = threadIdx.x % 32, bytes = of.dim * of.element_bytes;
  const char* const from = kv.row(of, head, source);
  char* const to = data + (kv.row(of, head, target) - of.data);
  const auto both = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  const int whole = both % 16 == 0 ? bytes / 16 * 16 : 0;
  for (int at = lane * 16; at < whole; at += 512) {
    *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
  }
  for (int at = whole + lane * 2; at < bytes; at += 64) {  // elements have two bytes or four
    *reinterpret_cast<std::uint16_t*>(to + at) = *reinterpret_cast<const std::uint16_t*>(from + at);
  }
}

/// The survivors behind slot `count` move into the holes before it, of which there are as many: each by a warp, in any order.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) refill_slots(const eviction_call call, const index_lists lists) {
  start_in_chain();
  const int head = blockIdx.y, warps = Threads / 32;
  const kept_slots kept(lists, call.list(head));
  const int staying = kept.below(kept.count);
  for (int i = blockIdx.x * warps + threadIdx.x / 32; i < kept.count - staying; i += gridDim.x * warps) {
    const int source = kept.list[staying + i], target = kept.missing(i, staying);
    move_row(call.kv, call.kv.k, call.k_data, head, source, target);
    if (!call.values_in_keys) move_row(call.kv, call.kv.v, call.v_data, head, source, target);
    if (threadIdx.x % 32 == 0) token_metadata(call, head, source).put(call, head, target);
  }
}

/// Units of a row that blocks move one after another.
template <class Unit>
SKIM_HD SKIM_INLINE constexpr int strips_of(const stored_rows& rows) {
  return (rows.dim * rows.element_bytes + compacting::units * static_cast<int>(sizeof(Unit)) - 1) /
         (compacting::units * static_cast<int>(sizeof(Unit)));
}

/// Survivors close up in order, a block for each head and strip of rows: targets lie before all sources that are still to
/// be read. The last strip is metadata.
template <int Threads, class Unit>
__global__ void __launch_bounds__(Threads) close_up_slots(const eviction_call call, const index_lists lists) {
  constexpr int rows = compacting::rows_at_once, units = compacting::units, each = rows * units / Threads;
  start_in_chain();
  const int head = blockIdx.y, thread = threadIdx.x;
  const kept_slots kept(lists, call.list(head));
  const cache_rows& kv = call.kv;
  const int first = kept.missing(0, kept.count);
  const int of_keys = strips_of<Unit>(kv.k), strips = of_keys + (call.values_in_keys ? 0 : strips_of<Unit>(kv.v));
  if (static_cast<int>(blockIdx.x) >= strips) {
    for (int begin = first; begin < kept.count; begin += Threads) {
      const int target = begin + thread;
      const token_metadata moved(call, head, kept.list[min(target, kept.count - 1)]);
      __syncthreads();
      if (target < kept.count) moved.put(call, head, target);
      __syncthreads();
    }
    return;
  }
  const bool keys = static_cast<int>(blockIdx.x) < of_keys;
  const stored_rows& of = keys ? kv.k : kv.v;
  char* const data = keys ? call.k_data : call.v_data;
  const int unit = thread % units + (static_cast<int>(blockIdx.x) - (keys ? 0 : of_keys)) * units;
  const std::int64_t at = static_cast<std::int64_t>(unit) * static_cast<int>(sizeof(Unit));
  const bool exists = at < of.dim * of.element_bytes;
  for (int begin = first; begin < kept.count; begin += rows) {
    Unit moved[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int target = begin + thread / units + i * (Threads / units);
      if (exists && target < kept.count) {
        moved[i] = *reinterpret_cast<const Unit*>(kv.row(of, head, kept.list[target]) + at);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int target = begin + thread / units + i * (Threads / units);
      if (exists && target < kept.count) {
        *reinterpret_cast<Unit*>(data + (kv.row(of, head, target) - of.data) + at) = moved[i];
      }
    }
    __syncthreads();
  }
}

/// Whether rows are whole pieces of 16 bytes, wherever they lie.
inline bool moves_by_16(const stored_rows& rows) {
  return rows_of_16(rows) && rows.dim * rows.element_bytes % 16 == 0;
}

/// Lets the cache follow the lists.
inline void compact_cache(const eviction_call& call, const index_lists& lists, launcher& launch) {
  using own = compacting;
  if (call.kv.tokens == 0) return;
  if (call.refill) {
    const std::int64_t blocks = smaller(own::refill_blocks, pieces(call.kv.tokens, own::warps));
    return launch(&refill_slots<own::threads>, blocks, call.heads, own::threads, 0, call, lists);
  }
  const auto close_up = [&](auto unit) {
    using Unit = decltype(unit);
    const std::int64_t strips = strips_of<Unit>(call.kv.k) + (call.values_in_keys ? 0 : strips_of<Unit>(call.kv.v)) + 1;
    launch(&close_up_slots<own::threads, Unit>, strips, call.heads, own::threads, 0, call, lists);
  };
  if (moves_by_16(call.kv.k) && moves_by_16(call.kv.v)) {
    close_up(uint4{});
  } else {
    close_up(std::uint16_t{});
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
