// SPDX-License-Identifier: Apache-2.0
/// \file Moving what stays of a cache together on a GPU: keys, values, scales, positions, inverse norms, weights.
#pragma once

#include <skim/cuda/kernel/eviction_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

struct compacting {
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int rows = 128,
                       units = 16;  // where rows move in order: of a block, and what it moves of each at a time
  static constexpr int parts = 3;   // that blocks move: keys, values, metadata
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
  SKIM_DEVICE unsigned mixed() const {
    return static_cast<unsigned>(position) ^ __float_as_uint(norm) ^ __float_as_uint(weight) ^
           __float_as_uint(k_scale) ^ __float_as_uint(v_scale);
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

/// A row of keys or values that a warp moves: its first 512 bytes are on their way from the start.
class moved_row {
 public:
  SKIM_DEVICE moved_row(const cache_rows& kv, const stored_rows& of, char* data, int head, int source, int target)
      : from_(kv.row(of, head, source)),
        to_(data + (kv.row(of, head, target) - of.data)),
        bytes_(of.dim * of.element_bytes) {
    const auto both = reinterpret_cast<std::uintptr_t>(from_) | reinterpret_cast<std::uintptr_t>(to_);
    whole_ = both % 16 == 0 ? bytes_ / 16 * 16 : 0;
    if (first() < whole_) first_ = *reinterpret_cast<const uint4*>(from_ + first());
  }
  SKIM_DEVICE void put() const {
    if (first() < whole_) *reinterpret_cast<uint4*>(to_ + first()) = first_;
    for (int at = first() + 512; at < whole_; at += 512) {
      *reinterpret_cast<uint4*>(to_ + at) = *reinterpret_cast<const uint4*>(from_ + at);
    }
    for (int at = whole_ + first() / 8; at < bytes_; at += 64) {  // elements have two bytes or four
      *reinterpret_cast<std::uint16_t*>(to_ + at) = *reinterpret_cast<const std::uint16_t*>(from_ + at);
    }
  }

 private:
  static SKIM_DEVICE int first() { return static_cast<int>(threadIdx.x) % 32 * 16; }

  const char* from_;
  char* to_;
  int bytes_, whole_;
  uint4 first_;
};

/// For evictors that keep no sum over tokens: see `refill_slots`.
struct no_farewell {
  struct memory {};
};

/// The survivors behind slot `count` move into the holes before it, of which there are as many: each by a warp, in any order.
/// `leaving(head, slot, leaves, shared)` sees every token that leaves while it is still there: a block calls it together, with
/// a token for each warp, if it `leaves`.
template <int Threads, class Leaving>
__global__ void __launch_bounds__(Threads, 3)
    refill_slots(const eviction_call call, const index_lists lists, const Leaving leaving) {
  constexpr bool sees = !std::is_same_v<Leaving, no_farewell>;
  constexpr int warps = Threads / 32;
  __shared__ typename Leaving::memory shared;
  start_in_chain();
  const int head = blockIdx.y;
  const kept_slots kept(call, lists, head);
  if (static_cast<int>(blockIdx.x) * warps >= kept.evicted) return;
  const int staying = kept.below(kept.count), holes = kept.count - staying;
  for (int first = blockIdx.x * warps; first < (sees ? kept.evicted : holes); first += gridDim.x * warps) {
    const int i = first + static_cast<int>(threadIdx.x) / 32;
    const bool fills = i < holes;
    const int source = kept.list[staying + min(i, holes - 1)], target = kept.missing(min(i, kept.evicted - 1));
    if (!sees && !fills) continue;
    const token_metadata metadata(call, head, source);
    const moved_row keys(call.kv, call.kv.k, call.k_data, head, source, target);
    const stored_rows& values_of = call.values_in_keys ? call.kv.k : call.kv.v;  // which then have moved
    const moved_row values(call.kv, values_of, call.values_in_keys ? call.k_data : call.v_data, head, source, target);
    if constexpr (sees) leaving(head, target, i < kept.evicted, shared);
    if (!fills) continue;
    keys.put();
    if (!call.values_in_keys) values.put();
    if (threadIdx.x % 32 == 0) metadata.put(call, head, target);
  }
}

/// The same of tokens that leave a cache whose rows close up.
template <int Threads, class Leaving>
__global__ void __launch_bounds__(Threads)
    take_leave(const eviction_call call, const index_lists lists, const Leaving leaving) {
  constexpr int warps = Threads / 32;
  __shared__ typename Leaving::memory shared;
  start_in_chain();
  const int head = blockIdx.y;
  const kept_slots kept(call, lists, head);
  for (int first = blockIdx.x * warps; first < kept.evicted; first += gridDim.x * warps) {
    const int i = first + static_cast<int>(threadIdx.x) / 32;
    leaving(head, kept.missing(min(i, kept.evicted - 1)), i < kept.evicted, shared);
  }
}

/// Which blocks that move rows in order have read theirs. Zeros before the launch.
struct moving_order {
  std::uint32_t* turn;  // of the block that starts next
  std::uint32_t* read;  // [pieces, Hk, parts]: strips that the block has read

  static std::int64_t items(const eviction_args& args) {
    return pieces(args.kv.tokens, compacting::rows) * args.kv.heads * compacting::parts;
  }
  SKIM_DEVICE int take_turn() const { return static_cast<int>(atomicAdd(turn, 1u)); }
  /// Once all threads of the block have what they loaded.
  SKIM_DEVICE void tell(int item, int strips) const {
    __syncthreads();
    if (threadIdx.x != 0) return;
    asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%0], %1;" ::"l"(read + item), "r"(strips) : "memory");
  }
  SKIM_DEVICE void await(int item, int strips) const {
    unsigned has = 0;
    while (has < static_cast<unsigned>(strips)) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(has) : "l"(read + item) : "memory");
    }
  }
};

/// Survivors close up in order. A block has 128 of them and one of keys, values and metadata: it reads, says so, waits for
/// those that read where it will write, and writes. These stand before it in the row in which blocks take turns, so that they
/// run or have run: at most two, as slots of one block are sources of at most as many survivors in a row.
template <int Threads, class Unit>
__global__ void __launch_bounds__(Threads, 4)
    close_up_slots(const eviction_call call, const index_lists lists, const moving_order order) {
  using own = compacting;
  constexpr int units = own::units, each = own::rows * units / Threads, strip_bytes = units * int{sizeof(Unit)};
  __shared__ Unit staged[each][Threads];
  __shared__ int turn, sources[own::rows];
  start_in_chain();
  const int thread = threadIdx.x;
  if (thread == 0) turn = order.take_turn();
  __syncthreads();
  const int item = turn, part = item % own::parts, head = item / own::parts % call.heads;
  const int piece = item / own::parts / call.heads, begin = piece * own::rows;
  const kept_slots kept(call, lists, head);
  const int end = min(begin + own::rows, kept.count);
  if (begin >= end || kept.list[end - 1] == end - 1 || (part == 1 && call.values_in_keys)) return;  // nothing moves

  if (thread < own::rows) sources[thread] = kept.list[min(begin + thread, end - 1)];
  int before = begin;  // the first survivor that comes from the slots of this block
  if (thread < 64) before = kept.below(begin);
  const int awaited = thread < 32 ? before / own::rows : (before + own::rows - 1) / own::rows;
  const auto await_readers = [&](int strips) {
    if (thread % 32 == 0 && before < begin && awaited < piece) {
      order.await((awaited * call.heads + head) * own::parts + part, strips);
    }
    __syncthreads();
  };
  __syncthreads();
  if (part == 2) {
    const bool moves = begin + thread < end;
    const token_metadata moved(call, head, sources[thread % own::rows]);
    __syncthreads_or(moved.mixed() == 0);  // waits for all of it
    order.tell(item, 1);
    await_readers(1);
    if (moves) moved.put(call, head, begin + thread);
    return;
  }
  const stored_rows& of = part == 0 ? call.kv.k : call.kv.v;
  char* const data = part == 0 ? call.k_data : call.v_data;
  const int bytes = of.dim * of.element_bytes, strips = (bytes + strip_bytes - 1) / strip_bytes;
  const row_addresses addresses(call.kv, of, head, 0);
  for (int strip = 0; strip < strips; ++strip) {
    const int at = strip * strip_bytes + thread % units * int{sizeof(Unit)};
    if (at < bytes) {
#pragma unroll 4
      for (int i = 0; i < each; ++i) {
        const char* const from = addresses.row(sources[thread / units + i * (Threads / units)]) + at;
        if constexpr (sizeof(Unit) == 16) {
          copy_16(shared_address(&staged[i][thread]), from, true);
        } else {
          staged[i][thread] = *reinterpret_cast<const Unit*>(from);
        }
      }
    }
    end_copies();
    await_copies<0>();
    order.tell(item, strip + 1);
    await_readers(strip + 1);
    if (at >= bytes) continue;
#pragma unroll 4
    for (int i = 0; i < each; ++i) {
      const int target = begin + thread / units + i * (Threads / units);
      if (target >= end) break;
      *reinterpret_cast<Unit*>(data + (addresses.row(target) - of.data) + at) = staged[i][thread];
    }
  }
}

/// Whether rows are whole pieces of 16 bytes, wherever they lie.
inline bool moves_by_16(const stored_rows& rows) {
  return rows_of_16(rows) && rows.dim * rows.element_bytes % 16 == 0;
}

/// Lets the cache follow the lists. `order`: zeros, where rows move in order.
template <class Leaving>
void compact_cache(const eviction_call& call, const index_lists& lists, const Leaving& leaving,
                   const moving_order& order, launcher& launch) {
  using own = compacting;
  if (call.kv.tokens == 0) return;
  const std::int64_t leaving_at_most = call.budgets ? call.kv.tokens : greater(call.kv.tokens - call.keep.count, 1);
  const std::int64_t blocks = smaller(own::refill_blocks, pieces(leaving_at_most, own::warps));
  if (call.refill) {
    return launch(&refill_slots<own::threads, Leaving>, blocks, call.heads, own::threads, 0, call, lists, leaving);
  }
  if constexpr (!std::is_same_v<Leaving, no_farewell>) {
    launch(&take_leave<own::threads, Leaving>, blocks, call.heads, own::threads, 0, call, lists, leaving);
  }
  const std::int64_t items = pieces(call.kv.tokens, own::rows) * call.heads * own::parts;
  launch.clear(order.turn, static_cast<std::size_t>(items + 1) * sizeof(std::uint32_t));
  const auto close_up = [&](auto unit) {
    launch(&close_up_slots<own::threads, decltype(unit)>, items, 1, own::threads, 0, call, lists, order);
  };
  if (moves_by_16(call.kv.k) && moves_by_16(call.kv.v)) {
    close_up(uint4{});
  } else {
    close_up(std::uint16_t{});
  }
}

}}}}  // namespace skim::v0_2::cuda::detail
