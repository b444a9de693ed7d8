// SPDX-License-Identifier: Apache-2.0
/// \file Running sampled calls and comparing their results bit by bit.
#pragma once

#include "support/attention_sample.hpp"
#include "support/executors.hpp"

#include <skim/skim.hpp>

#include <gtest/gtest.h>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace skim_test {

using bytes = std::vector<unsigned char>;

/// The bits that a call leaves.
struct result {
  bytes out, lse;
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

/// Attends with `op` on a given executor, over the case's lists if it has some, and checks guards.
template <class Operation, class Run>
result attend_by(const Operation& op, const attention_case& c, attention_inputs& inputs, aligned_memory& workspace,
                 const Run& run) {
  const skim::attention_args args = inputs.args();
  run([&](const auto& executor) {
    const skim::report report = c.lists == lists_kind::none
                                    ? op.run(args, {}, workspace.get(), executor)
                                    : op.attend(args, *inputs.lists(), workspace.get(), executor);
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
  aligned_memory workspace(op.workspace_bytes(inputs.args(), 1), fill);
  return attend_by(op, c, inputs, workspace, [](const auto& operation) { operation(skim::serial_executor{}); });
}

/// On any executor.
template <class Operation>
result attend_on(executor_choice choice, const Operation& op, const attention_case& c, attention_inputs& inputs) {
  aligned_memory workspace(op.workspace_bytes(inputs.args(), choice.workers));
  return attend_by(op, c, inputs, workspace, [&](const auto& operation) { run_on(choice, operation); });
}

/// On the calling thread, with the case's own arithmetic.
inline result attend(const attention_case& c, attention_inputs& inputs, unsigned char fill = 0xff) {
  if (c.dot_pairs) return attend(skim::cpu::attention<skim::dense, skim::accumulate::dot_pairs>{}, c, inputs, fill);
  return attend(skim::cpu::attention<>{}, c, inputs, fill);
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
