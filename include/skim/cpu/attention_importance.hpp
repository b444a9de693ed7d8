// SPDX-License-Identifier: Apache-2.0
/// \file The attention mass outside a prompt's beginning, on the CPU: `cpu::attention_importance`.
#pragma once

#include <skim/attention.hpp>
#include <skim/attention_importance.hpp>
#include <skim/cpu/kernel/attend_rows.hpp>
#include <skim/cpu/kernel/attend_tile.hpp>
#include <skim/cpu/kernel/attention_weights.hpp>
#include <skim/cpu/kernel/scratch.hpp>
#include <skim/cpu/simd/compat.hpp>
#include <skim/executor.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

namespace detail {

/// Tokens at a block's start that see nothing but the prompt's beginning: their mass outside is 0.
SKIM_INLINE std::int64_t tokens_inside(const attention_importance_args& args, const attention_sequence& block,
                                       std::int64_t head) {
  std::int64_t t = 0;
  while (t < block.Tq && block.kv.position(head, block.past(head) + t) + args.attended.mask.right < args.first) ++t;
  return t;
}

/// Strips of up to 512 rows, of each KV head.
SKIM_INLINE std::int64_t importance_strips(const attention_args& call, const attention_sequence& block) {
  return (block.Tq * group_size(call) + weight_rows - 1) / weight_rows;
}

SKIM_INLINE std::int64_t rows_apart(const attention_importance_args& args) {
  return args.read ? args.read->block_rows : 0;
}

/// Work unit = (block of rows, KV head, 512 rows), without the rows at the block's start that need no look; perhaps none are
/// left.
inline attend_job importance_job(const attention_importance_args& args, std::int64_t unit) {
  const attention_args& call = args.attended;
  const attention_sequence sequence = sequence_at(call, 0);
  // All blocks but the last have the rows of the first.
  const std::int64_t of_first = call.kv.heads * importance_strips(call, block_of(sequence, 0, rows_apart(args)));
  const std::int64_t b = unit / of_first;
  unit -= b * of_first;
  const attention_sequence block = block_of(sequence, b, rows_apart(args));
  const std::int64_t strips = importance_strips(call, block), begin = unit % strips * weight_rows;
  attend_job job{};
  job.args = &call;
  job.lists = args.read;
  job.sequence = block;
  job.list_row = b * call.kv.heads;
  job.head = unit / strips;
  job.G = group_size(call);
  job.key_end = job.listed() + block.Tq;
  if (!block.kv.positions && !job.lists) {  // slots ascend with positions: none behind the beginning needs a look
    job.key_end = smaller(job.key_end, greater(args.first - block.kv.first_position, 0));
  }
  job.row = greater(begin, tokens_inside(args, block, job.head) * job.G);
  job.rows = smaller(begin + weight_rows, block.Tq * job.G) - job.row;
  job.stride = round_up(job.rows, simd::lanes);
  return job;
}

/// What the job's rows give to keys together: 1 each, less what a sink logit takes, and 0 for a row that saw nothing.
SKIM_INLINE double mass_of_keys(const attend_job& job) {
  const attention_args& call = *job.args;
  double sum = 0;
  for (std::int64_t r = 0; r < job.rows; ++r) {
    const double lse = static_cast<double>(*call.lse.at(job.sequence.first_row + job.token(r), job.query_head(r)));
    if (lse == static_cast<double>(minus_infinity)) continue;
    sum += 1;
    if (call.sink_logits) sum -= std::exp(static_cast<double>(call.sink_logits[job.query_head(r)]) - lse);
  }
  return sum;
}

/// The mass of the job's rows on keys at positions from `args.first` on: what is left of the rows without the others.
inline double job_mass_outside(const attention_importance_args& args, const attend_job& job,
                               const weight_scratch& scratch) {
  const kv_view& kv = job.sequence.kv;
  const logit_rule rule = logit_rule::of(args.attended);
  load_weight_rows(job, rule, scratch);
  double outside = mass_of_keys(job);
  sum_job_weights(job, rule, {0, args.first}, scratch, [&](std::int64_t slot, float weight) SKIM_LAMBDA_INLINE {
    if (kv.position(job.head, slot) < args.first) outside -= static_cast<double>(weight);
  });
  return outside < 0 ? 0 : outside;  // by rounding only
}

}  // namespace detail

/// Adds to a layer's importance, chunk after chunk; see `attention_importance_args`. Only the first keys are read and no
/// [Tq, Tk] matrix is formed: the mass outside is what the rows do not give to them.
///
/// Logits and weights are f32, sums over keys and chunks double. A row's part, between 0 and 1, is exact to some
/// 2^-24 (64 + 4 |lse| + 4 (D + 8) A), where A is the row's largest `scale * sum_d |q_d k_d|`; that of a token which sees
/// nothing else is exactly 0.
/// Nothing here allocates, throws or starts a thread. With equal arguments every executor and every number of workers
/// gives the same bits.
struct attention_importance {
  /// O(1), follows no pointer.
  report check(const attention_importance_args& args) const { return skim::check(args); }

  report check_shape(const attention_importance_args& args) const { return skim::check_shape(args); }

  /// A call with fewer rows, tokens or workers needs no more. 0 for what `check_shape` refuses.
  std::size_t workspace_bytes(const attention_importance_args& args, unsigned workers) const {
    if (!check_shape(args)) return 0;
    return sum_bytes(args) + detail::weight_scratch_bytes(args.attended, 0) * workers;
  }

  cost_estimate cost(const attention_importance_args& args) const {
    const attention_args& call = args.attended;
    const double keys = static_cast<double>(detail::smaller(args.first, call.kv.tokens));
    const double D = static_cast<double>(call.kv.k.dim),
                 rows = static_cast<double>(call.q.extents[0] * call.q.extents[1]);
    return {2 * rows * keys * D,
            D * (static_cast<double>(call.kv.heads) * keys * static_cast<double>(bytes_of(call.kv.k.type, 1)) +
                 rows * static_cast<double>(bytes_of(call.q.type, 1)))};
  }

  /// Statuses: those of `check`, short_workspace.
  report run(const attention_importance_args& args, memory workspace, executor_ref executor) const {
    if (report r = check(args); !r) return r;
    if (report r = detail::check_workspace(workspace, workspace_bytes(args, executor.concurrency())); !r) return r;
    const attention_args& call = args.attended;
    const std::int64_t units = unit_count(args);
    double* const sums = static_cast<double*>(workspace.data);  // [units]
    char* const scratches = static_cast<char*>(workspace.data) + sum_bytes(args);
    const std::size_t bytes = detail::weight_scratch_bytes(call, 0);
    executor.parallel_for(units, [&](std::int64_t unit, unsigned worker) {
      const detail::attend_job job = detail::importance_job(args, unit);
      detail::arena arena(detail::worker_piece(scratches, bytes, worker));
      const detail::weight_scratch scratch(arena, call.q.extents[2], detail::weight_stride(call, 0));
      sums[unit] = job.rows > 0 ? detail::job_mass_outside(args, job, scratch) : 0;
    });
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      for (std::int64_t unit = 0; unit < units; ++unit) *args.sum += sums[unit];
    });
    return {};
  }

 private:
  static std::int64_t unit_count(const attention_importance_args& args) {
    std::int64_t units = 0;
    for_each_block(args.attended, detail::rows_apart(args), [&](const attention_sequence& block, std::int64_t) {
      units += args.attended.kv.heads * detail::importance_strips(args.attended, block);
    });
    return units;
  }
  static std::size_t sum_bytes(const attention_importance_args& args) {
    return skim::detail::round_up_bytes(static_cast<std::size_t>(unit_count(args)) * sizeof(double));
  }
};

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
