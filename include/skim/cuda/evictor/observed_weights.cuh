// SPDX-License-Identifier: Apache-2.0
/// \file Evictors that watch attention on a GPU: the softmax weights of some queries, kept as state. H2O, TOVA and SnapKV
/// differ in the queries.
///
/// With u = 2^-22 the weight that a query gives to a key lies within a factor of exp(u ((D + 8) A + 4 |lse| + 2)) of exact
/// arithmetic on the stored values and the given log-sum-exp, A being the largest `scale * sum_d |q_d k_d|` of the row; it is
/// never above 1. Summing r rows adds at most 2^-24 (r / 16 + c + 16) of the sum, where c counts the chunks that were
/// observed. Weights below 2^-126 count as 0.
///
/// Tensor cores multiply where q and K are of one 16-bit type, their rows begin at multiples of 16 bytes and the head dimension
/// is 64, 80, 96, 128, 192 or 256; all else goes through f32, at its own pace.
#pragma once

#include <skim/cuda/evictor/weigh_keys.cuh>
#include <skim/cuda/kernel/compact.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/eviction.hpp>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// Whose weights, and what becomes of them: those of queries [first, Tq), times `factor`, are added to the state, in which
/// tokens start at zero when they arrive (`accumulates`) or each time.
struct weight_rule {
  std::int64_t first;
  float factor;
  bool accumulates;
};

/// Scores are the weights that the call names.
template <int Threads>
__global__ void __launch_bounds__(Threads) copy_weights(const eviction_call call, float* scores, std::int64_t stride) {
  start_in_chain();
  const int head = blockIdx.y, slot = blockIdx.x * Threads + threadIdx.x;
  if (slot < call.kv.length(head)) scores[head * stride + slot] = *call.weight(head, slot);
}

/// What of an attention call the kernels know.
inline report check_attended(const eviction_args& args) {
  const attention_args& call = args.attended;
  if (has_bias(call)) return fault(status::unsupported, "attended.bias (on a GPU)", 1, 0);
  if (call.alibi_slopes) return fault(status::unsupported, "attended.alibi_slopes (on a GPU)", 1, 0);
  if (report r = check_loadable(call.q.type, "attended.q"); !r) return r;
  const std::int64_t D = args.kv.k.dim, rows = call.q.extents[0] * call.q.extents[1];
  if (D > plain_weights::largest_dim) {
    return fault(status::unsupported, "kv.k.dim", D, plain_weights::largest_dim, "at most");
  }
  const std::int64_t most = std::int64_t{1} << 28;  // rows and tiles of them are 32-bit numbers here
  return rows > most ? fault(status::unsupported, "q.extents[0] * q.extents[1]", rows, most, "at most") : report{};
}

/// Brings the state [Hk, capacity] up to date with the chunk's attention.
inline void observe_weights(const eviction_args& args, const weight_rule& rule, memory state, launcher& launch) {
  if (args.new_tokens == 0) return;
  const attention_args call = attended_call(args);
  weight_call own{};
  own.kv = rows_of(call.kv);
  own.weights = static_cast<float*>(state.data);
  own.capacity = call.kv.capacity;
  own.q = static_cast<const char*>(call.q.data);
  own.q_type = call.q.type;
  own.q_row = call.q.strides[0];
  own.q_head = call.q.strides[1];
  own.lse = call.lse.data;
  own.lse_row = call.lse.strides[0];
  own.lse_head = call.lse.strides[1];
  own.left = call.mask.left;
  own.right = call.mask.right;
  std::int64_t block_rows = args.new_tokens;
  if (args.read) {
    own.indices = args.read->indices;
    own.counts = args.read->counts;
    own.list_capacity = args.read->capacity;
    if (args.read->block_rows > 0) block_rows = smaller(block_rows, args.read->block_rows);
  }
  own.scale = logit_scale(call) * log2_e;
  own.soft_cap = call.soft_cap;
  own.factor = rule.factor;
  own.accumulates = rule.accumulates;
  own.Tq = static_cast<int>(args.new_tokens);
  own.heads = static_cast<int>(call.kv.heads);
  own.group = static_cast<int>(group_size(call));
  own.block_rows = static_cast<int>(block_rows);
  own.first = static_cast<int>(rule.first);
  const std::int64_t blocks = (args.new_tokens - 1) / block_rows - rule.first / block_rows + 1;
  const std::int64_t rows = smaller(block_rows, args.new_tokens - rule.first) * own.group;
  own.tiles_of_block = static_cast<int>(pieces(rows, weight_rows::count));
  own.tiles = static_cast<int>(blocks) * own.tiles_of_block;
  weigh_keys(call.kv, own, launch);
}

/// Evictors whose score is, or is made from, attention weights that they keep as state.
template <class Policy>
struct weight_evictor {
  static report check(const Policy&, const eviction_args& args) { return check_attended(args); }
  static std::size_t state_bytes(const Policy&, const eviction_args& args) {
    skim::detail::arena arena;
    arena.take<float>(args.kv.heads * args.kv.capacity);
    return arena.used();
  }
  static std::size_t workspace_bytes(const Policy&, const eviction_args&) { return 0; }

  static void reset(const Policy& policy, const eviction_args& args, memory state, launcher& launch) {
    launch.clear(state.data, state_bytes(policy, args));
  }
  static void score(const Policy&, const eviction_args& args, eviction_call call, const tensor_view<float, 2>& scores,
                    memory state, memory, launcher& launch) {
    name_weights(call, args, state);
    launch(&copy_weights<256>, pieces(args.kv.tokens, 256), args.kv.heads, 256, 0, call, scores.data,
           scores.strides[0]);
  }
  static no_farewell leaving(const Policy&, const eviction_args& args, eviction_call& call, memory state) {
    name_weights(call, args, state);
    return {};
  }

 private:
  static void name_weights(eviction_call& call, const eviction_args& args, memory state) {
    call.weights = static_cast<float*>(state.data);
    call.weights_stride = args.kv.capacity;
  }
};

}}}}  // namespace skim::v0_2::cuda::detail
