// SPDX-License-Identifier: Apache-2.0
/// \file Compiled once per processor level, with SKIM_UNIT naming the function. As in a host's unit of this kind there
/// is nothing in it but the library; no standard container, no Eigen, no oneTBB.
#include "unit.hpp"

#include <skim/skim.hpp>

namespace {

template <class Op, class Executor>
skim::report run(const Op& op, const unit_call& call, const Executor& executor, float& sum) {
  const skim::attention_args& args = call.attention;
  if (skim::report r = op.check(args); !r) return r;
  if (op.workspace_bytes(args, executor.concurrency()) > call.workspace.bytes || op.state_bytes(args) > 0) {
    return skim::detail::fault(skim::status::short_workspace, "call.workspace", 0, 0);
  }
  if (op.list_capacity(args) > call.lists.capacity || !(op.cost(args).flops > 0)) {
    return skim::detail::fault(skim::status::bad_extent, "call.lists", 0, 0);
  }
  if (skim::report r = op.run(args, {}, call.workspace, executor); !r) return r;
  if (skim::report r = op.select(args, call.lists, {}, call.workspace, executor); !r) return r;
  if (skim::report r = op.attend(args, call.lists, call.workspace, executor); !r) return r;
  sum = 0;
  for (std::int64_t t = 0; t < args.out.extents[0]; ++t) {
    for (std::int64_t h = 0; h < args.out.extents[1]; ++h) {
      const float* const row = static_cast<const float*>(args.out.at(t, h));
      for (std::int64_t d = 0; d < args.out.extents[2]; ++d) sum += row[d] < 0 ? -row[d] : row[d];
    }
  }
  return {};
}

template <class Op>
skim::report run_ffn(const Op& op, const unit_call& call, float& sum) {
  const skim::ffn_args& args = call.ffn;
  if (op.workspace_bytes(args, call.pool.concurrency()) > call.workspace.bytes || op.state_bytes(args) > 0) {
    return skim::detail::fault(skim::status::short_workspace, "call.workspace", 0, 0);
  }
  if (!(op.cost(args).flops > 0)) return skim::detail::fault(skim::status::bad_extent, "call.ffn", 0, 0);
  if (skim::report r = op.run(args, {}, call.workspace, call.pool); !r) return r;
  sum = 0;
  for (std::int64_t t = 0; t < args.out.extents[0]; ++t) {
    const float* const row = static_cast<const float*>(args.out.at(t));
    for (std::int64_t i = 0; i < args.out.extents[1]; ++i) sum += row[i] < 0 ? -row[i] : row[i];
  }
  return {};
}

}  // namespace

skim::report SKIM_UNIT(const unit_call& call) {
  namespace queries = skim::queries;
  const skim::retention keep = skim::retention::budget(64, 4, 16);
  const skim::serial_executor serial;
  skim::team_barrier barrier;
  const skim::team_executor team(0, 1, barrier);

  if (skim::report r = skim::cpu::append(call.append, call.pool); !r) return r;
  const skim::cpu::attention<> dense;
  const skim::cpu::attention pairs{skim::dense{}, skim::accumulate::dot_pairs{}};
  const skim::cpu::attention lowest{skim::quoka{queries::lowest_cosine(16), keep}};
  const skim::cpu::attention farthest{skim::quoka{queries::farthest_point(16), keep}};
  const skim::cpu::attention drawn{
      skim::quoka{queries::random(16), skim::retention::share(0.25), skim::similarity::dot, skim::reduction::mean}};
  const skim::cpu::attention all{skim::quoka{queries::all(), keep}};
  const skim::cpu::attention window{skim::sink_window{skim::retention::budget(64, 4)}};

  float* sum = call.sums;
  if (skim::report r = run(dense, call, call.pool, *sum++); !r) return r;
  if (skim::report r = run(pairs, call, serial, *sum++); !r) return r;
  if (skim::report r = run(lowest, call, call.pool, *sum++); !r) return r;
  if (skim::report r = run(farthest, call, serial, *sum++); !r) return r;
  if (skim::report r = run(drawn, call, call.pool, *sum++); !r) return r;
  if (skim::report r = run(all, call, team, *sum++); !r) return r;
  if (skim::report r = run(window, call, team, *sum++); !r) return r;
  if (skim::report r = run_ffn(skim::cpu::ffn<>{}, call, *sum++); !r) return r;
  if (skim::report r = run_ffn(skim::cpu::ffn{call.fastforward}, call, *sum++); !r) return r;
  if (skim::report r = run_ffn(skim::cpu::ffn{call.fastforward, skim::accumulate::amx{}}, call, *sum++); !r) return r;
  return run_ffn(skim::cpu::ffn{skim::oracle{skim::neuron_retention::budget(40)}}, call, *sum++);
}
