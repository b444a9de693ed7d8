// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff on a GPU: the sum of unit keys is kept, so that scoring is one read of K.
#pragma once

#include <skim/cuda/evictor/keydiff_score.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/evictor/keydiff.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

struct unit_keys {
  static constexpr int threads = 256, rows = 8;    // one for each warp
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
      float values[unit_keys::rows];
#pragma unroll
      for (int r = 0; r < unit_keys::rows; ++r) {
        const int slot = slots[min(r, count - 1)];
        values[r] = load(kv.row(kv.k, head, slot), kv.k.type, d) * kv.scale(kv.k, head, slot);
      }
      long long sum = 0;
#pragma unroll
      for (int r = 0; r < unit_keys::rows; ++r) sum += r < count ? Sign * fixed_point(units[r](values[r])) : 0;
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
  for (int d = threadIdx.x; d < D; d += Threads) {
    const float own_part = static_cast<float>(mean(d) * inverse);
    anchor[d] = own_part;
    const element type = own.call.kv.k.type;
    float rest = own_part;
    for (int part = 0; own.parts && part < anchor_parts; ++part, rest *= part_step(type)) {
      const std::int64_t at = (static_cast<std::int64_t>(head) * anchor_parts + part) * D + d;
      store(own.parts, type, at, rest);
      rest -= load(own.parts, type, at);
    }
  }
}

}  // namespace detail

/// As on the CPU, bounds too; of anchors `anchor::unit_mean` alone. Tensor cores multiply 16-bit keys by the anchor in three
/// parts of 16 bits, which leave 2^-24 of it.
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
    static_cast<void>(call_of(detail::call_of(args, {}), {}, arena));
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
           0, call_of(call, state), index_lists{});
  }
  static void score(const policy_type&, const eviction_args& args, const detail::eviction_call& call,
                    const tensor_view<float, 2>& scores, memory state, memory workspace, detail::launcher& launch) {
    skim::detail::arena arena(workspace.data);
    detail::keydiff_call own = call_of(call, state, arena);
    own.scores = scores.data;
    own.score_stride = scores.strides[0];
    const auto find_anchors = [&] { launch(&detail::find_anchors<256>, 1, args.kv.heads, 256, 0, own); };
    const auto with_norms = [&](const auto& body) {
      if (call.inverse_norms) return body(detail::keydiff_scores<true>{own});
      body(detail::keydiff_scores<false>{own});
    };
    if (detail::keydiff_by_tensor_cores(args.kv, [&](auto type, auto dim) {
          find_anchors();
          with_norms([&](const auto& scoring) { detail::score_together<decltype(type), dim.value>(scoring, launch); });
        })) {
      return;
    }
    own.parts = nullptr;
    find_anchors();
    with_norms([&](const auto& scoring) { detail::stream(scoring, launch); });
  }
  static void compact(const policy_type&, const eviction_args& args, const detail::eviction_call& call,
                      const index_lists& lists, memory state, memory, detail::launcher& launch) {
    using own = detail::unit_keys;
    launch(&detail::add_unit_keys<own::threads, -1>,
           detail::smaller(detail::pieces(args.kv.tokens, own::rows), own::most_blocks), args.kv.heads, own::threads, 0,
           call_of(call, state), lists);
  }

 private:
  static detail::keydiff_call call_of(const detail::eviction_call& call, memory state, skim::detail::arena& arena) {
    detail::keydiff_call own = call_of(call, state);
    const std::int64_t D = call.kv.k.dim;
    own.anchors = arena.take<float>(call.heads * detail::padded(D));
    own.parts = arena.take<char>(call.heads * detail::anchor_parts * D * 2);
    return own;
  }
  static detail::keydiff_call call_of(const detail::eviction_call& call, memory state) {
    detail::keydiff_call own{};
    own.call = call;
    own.unit_sums = static_cast<std::int64_t*>(state.data);
    return own;
  }
};

}}}  // namespace skim::v0_2::cuda
