// SPDX-License-Identifier: Apache-2.0
/// \file Running sampled calls and comparing their results bit by bit.
#pragma once

#include "support/attention_sample.hpp"
#include "support/executors.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>

#include <gtest/gtest.h>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace skim_test {

using result_bytes = std::vector<unsigned char>;

/// The bits that a call leaves.
struct result {
  result_bytes out, lse;
};

inline bool operator==(const result& a, const result& b) {
  return a.out == b.out && a.lse == b.lse;
}

inline std::ostream& operator<<(std::ostream& to, const result& r) {
  return to << "out of " << r.out.size() << " bytes, lse of " << r.lse.size();
}

inline result result_of(attention_inputs& inputs) {
  return {inputs.out().bytes(), inputs.lse().bytes()};
}

/// Attends with `op`, over the case's lists if it has some, and checks guards.
template <class Selector, class Accumulate>
result attend_on(executor_choice choice, const skim::cpu::attention<Selector, Accumulate>& op, const attention_case& c,
                 attention_inputs& inputs, unsigned char fill = 0xff) {
  const skim::attention_args args = inputs.args();
  const skim::index_lists* const lists = c.lists == lists_kind::none ? nullptr : inputs.lists();
  const skim::cpu::attend<Accumulate> listed{op.accumulate};
  aligned_memory workspace(lists ? listed.workspace_bytes(args, lists->block_rows, choice.workers)
                                 : op.workspace_bytes(args, choice.workers),
                           fill);
  run_on(choice, [&](skim::executor_ref executor) {
    const skim::report report =
        lists ? listed.run(args, *lists, workspace.get(), executor) : op.run(args, {}, workspace.get(), executor);
    EXPECT_TRUE(report.ok());
  });
  EXPECT_TRUE(workspace.guards_intact()) << "written outside the workspace";
  EXPECT_TRUE(inputs.out().outside_intact()) << "written outside the output";
  EXPECT_TRUE(inputs.lse().outside_intact()) << "written outside the log-sum-exps";
  return result_of(inputs);
}

/// On the calling thread.
template <class Operation>
result attend(const Operation& op, const attention_case& c, attention_inputs& inputs, unsigned char fill = 0xff) {
  return attend_on({}, op, c, inputs, fill);
}

/// On the calling thread, with the case's own arithmetic.
inline result attend(const attention_case& c, attention_inputs& inputs, unsigned char fill = 0xff) {
  if (c.dot_pairs) return attend(skim::cpu::attention<skim::dense, skim::accumulate::dot_pairs>{}, c, inputs, fill);
  return attend(skim::cpu::attention<>{}, c, inputs, fill);
}

/// A sequence of a call, or a block of its rows, as a call of its own.
inline skim::attention_args part_of(skim::attention_args args, const skim::attention_sequence& part) {
  args.sequences = nullptr;
  args.offsets = nullptr;
  args.sequence_count = 1;
  args.batch = {};
  args.kv = part.kv;
  args.q = skim::rows(args.q, part.first_row, part.Tq);
  args.out = skim::rows(args.out, part.first_row, part.Tq);
  if (args.lse.data) args.lse = skim::rows(args.lse, part.first_row, part.Tq);
  if (skim::has_bias(args)) {
    args.bias.data = args.bias.at(0, part.first_row);
    args.bias.extents[1] = part.Tq;
  }
  return args;
}

/// A call of every `step`-th sampled case. The largest are left to the unit tests: properties run each several times.
template <class Body>
void for_sampled_calls(std::size_t step, const Body& body) {
  const std::vector<attention_case> cases = attention_sample();
  for (std::size_t i = 0; i < cases.size(); i += step * SKIM_TEST_STRIDE) {
    const attention_case& c = cases[i];
    if (c.Hq() * c.Tq * (c.Tk + c.Tq) * (c.D + c.Dv) > 1000000000) continue;
    SCOPED_TRACE(testing::Message() << c);
    body(c);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace skim_test
