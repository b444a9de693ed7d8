// SPDX-License-Identifier: Apache-2.0
/// \file KeyDiff on a GPU: the sum of unit keys is kept, so that scoring is one read of K.
#pragma once

#include <skim/cuda/evictor/keydiff_score.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/evictor/keydiff.hpp>

namespace skim { inline namespace v0_2 { namespace cuda {
namespace detail {

struct unit_keys {
  static constexpr int threads = 256, rows = threads / 32;  // one for each warp
  static constexpr std::int64_t most_blocks = 64;           // of a head
  static constexpr int dims = 128;                          // of a row at a time

  long long parts[rows][dims];
};

/// A component of a unit key as a multiple of 2^-30, to nearest even; what is no component of one counts as 0.
SKIM_DEVICE long long fixed_point(float component) {
  return fabsf(component) <= 2 ? __double2ll_rn(static_cast<double>(component) * 0x1p30) : 0;
}

/// Adds unit keys to a head's sums, or with `Sign` -1 takes them out: a block those of its warps' slots that `exists` says.
/// Integers: any order will do.
template <int Sign>
SKIM_DEVICE void add_unit_keys_of(const keydiff_call& own, int head, int slot, bool exists, unit_keys& shared) {
  const cache_rows& kv = own.call.kv;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, D = kv.k.dim;
  const char* const row = kv.row(kv.k, head, slot);
  const float scale = kv.scale(kv.k, head, slot);
  const unit_factors unit = own.unit_of(head, slot);
  for (int begin = 0; begin < D; begin += unit_keys::dims) {
#pragma unroll
    for (int i = 0; i < unit_keys::dims; i += 32) {
      const int d = begin + i + lane;
      const long long part = exists && d < D ? fixed_point(unit(load(row, kv.k.type, d) * scale)) : 0;
      shared.parts[warp][i + lane] = part;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < unit_keys::dims && begin + d < D; d += unit_keys::threads) {
      long long sum = 0;
#pragma unroll
      for (int r = 0; r < unit_keys::rows; ++r) sum += shared.parts[r][d];
      atomicAdd(reinterpret_cast<unsigned long long*>(own.unit_sums) + static_cast<std::int64_t>(head) * D + begin + d,
                static_cast<unsigned long long>(Sign * sum));
    }
    __syncthreads();
  }
}

/// Adds the chunk's.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) add_unit_keys(const keydiff_call own) {
  static_assert(Threads == unit_keys::threads, "a row for each warp");
  __shared__ unit_keys shared;
  start_in_chain();
  const int head = blockIdx.y, n = own.call.kv.length(head), count = min(own.call.new_tokens, n);
  for (int first = blockIdx.x * unit_keys::rows; first < count; first += gridDim.x * unit_keys::rows) {
    const int i = first + static_cast<int>(threadIdx.x) / 32;
    add_unit_keys_of<1>(own, head, n - count + min(i, count - 1), i < count, shared);
  }
}

/// Takes out those of tokens that leave.
struct without_keys {
  using memory = unit_keys;
  keydiff_call own;

  SKIM_DEVICE void operator()(int head, int slot, bool leaves, unit_keys& shared) const {
    add_unit_keys_of<-1>(own, head, slot, leaves, shared);
  }
};

/// The anchors of keys that tensor cores do not take. A block for each head.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_anchors(const keydiff_call own) {
  __shared__ double of_warps[Threads / 32];
  start_in_chain();
  find_anchor(own, blockIdx.y, own.anchor(blockIdx.y), threadIdx.x, Threads,
              [&](double sum) { return sum_of_block<Threads>(sum, of_warps); });
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
    launch(&detail::add_unit_keys<own::threads>,
           detail::smaller(detail::pieces(args.new_tokens, own::rows), own::most_blocks), args.kv.heads, own::threads,
           0, call_of(call, state));
  }
  static void score(const policy_type&, const eviction_args& args, const detail::eviction_call& call,
                    const tensor_view<float, 2>& scores, memory state, memory workspace, detail::launcher& launch) {
    skim::detail::arena arena(workspace.data);
    detail::keydiff_call own = call_of(call, state, arena);
    own.scores = scores.data;
    own.score_stride = scores.strides[0];
    const auto with_norms = [&](const auto& body) {
      if (call.inverse_norms) return body(detail::keydiff_scores<true>{own});
      body(detail::keydiff_scores<false>{own});
    };
    if (detail::keydiff_by_tensor_cores(args.kv, [&](auto type, auto dim) {
          with_norms([&](const auto& scoring) { detail::score_together<decltype(type), dim.value>(scoring, launch); });
        })) {
      return;
    }
    launch(&detail::find_anchors<256>, 1, args.kv.heads, 256, 0, own);
    with_norms([&](const auto& scoring) { detail::stream(scoring, launch); });
  }
  static detail::without_keys leaving(const policy_type&, const eviction_args&, const detail::eviction_call& call,
                                      memory state) {
    return {call_of(call, state)};
  }

 private:
  static detail::keydiff_call call_of(const detail::eviction_call& call, memory state, skim::detail::arena& arena) {
    detail::keydiff_call own = call_of(call, state);
    own.anchors = arena.take<float>(call.heads * detail::padded(call.kv.k.dim));
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
