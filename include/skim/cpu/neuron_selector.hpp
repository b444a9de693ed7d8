// SPDX-License-Identifier: Apache-2.0
/// \file What a neuron selector must answer on the CPU, and how a policy of one's own joins in.
///
/// A neuron selector has these members (functions const; `args` passed `check`):
///   `neuron_retention keep`: how many neurons are computed, and which blocks are dense;
///   `report check(const ffn_args& args)`: of its own parameters;
///   `template <class Executor> void predict(const ffn_args& args, tensor_view<float, 1> scores, memory state,
///    memory workspace, const Executor& executor)`: scores [f]; the highest are computed, for the whole block.
/// and may have
///   `neuron_compensator compensator`: what is added to a sparse block's output;
///   `std::size_t workspace_bytes(const ffn_args& args, unsigned workers)`: scratch of its steps (default: 0);
///   `cost_estimate cost(const ffn_args& args)`: of `predict` (default: zero);
/// and, if it keeps something between blocks,
///   `std::size_t state_bytes(const ffn_args& args)`: per layer;
///   `reset(args, state, executor)`: makes the state that of a prompt's beginning;
///   `observe(args, state, workspace, executor)`: takes in a block that runs dense.
/// Every write happens inside a body of `executor.parallel_for`.
/// The library's policies carry parameters only; `neuron_selector_kernel` specialisations supply their members.
#pragma once

#include <skim/cpu/policy.hpp>
#include <skim/executor.hpp>
#include <skim/ffn.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <utility>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

template <class P>
using neuron_keep_member = decltype(neuron_retention{std::declval<const P&>().keep});
template <class P>
using check_ffn_member = decltype(report{std::declval<const P&>().check(std::declval<const ffn_args&>())});
template <class P>
using predict_member =
    decltype(std::declval<const P&>().predict(std::declval<const ffn_args&>(), tensor_view<float, 1>{}, memory{},
                                              memory{}, std::declval<const serial_executor&>()));
template <class P>
using compensator_member = decltype(neuron_compensator{std::declval<const P&>().compensator});
template <class P>
using ffn_workspace_member = decltype(std::declval<const P&>().workspace_bytes(std::declval<const ffn_args&>(), 1u));
template <class P>
using ffn_state_member = decltype(std::declval<const P&>().state_bytes(std::declval<const ffn_args&>()));
template <class P>
using ffn_cost_member = decltype(std::declval<const P&>().cost(std::declval<const ffn_args&>()));

/// What most neuron selectors of the library answer.
template <class Policy>
struct plain_neuron_selector {
  static neuron_retention keep(const Policy& policy) { return policy.keep; }
  static neuron_compensator compensator(const Policy& policy) {
    if constexpr (has_member<compensator_member, Policy>::value) return policy.compensator;
    return {};
  }
  static report check(const Policy& policy, const ffn_args&) { return skim::check(policy.keep); }
  static std::size_t workspace_bytes(const Policy&, const ffn_args&, unsigned) { return 0; }
  static std::size_t state_bytes(const Policy&, const ffn_args&) { return 0; }
  static cost_estimate cost(const Policy&, const ffn_args&) { return {}; }
  template <class Executor>
  static void reset(const Policy&, const ffn_args&, memory, const Executor&) {}
  template <class Executor>
  static void observe(const Policy&, const ffn_args&, memory, memory, const Executor&) {}
};

}  // namespace detail

/// The members above for `Policy`: its own, unless a header of the library specialises this.
template <class Policy>
struct neuron_selector_kernel : detail::plain_neuron_selector<Policy> {
  static_assert(detail::has_member<detail::neuron_keep_member, Policy>::value,
                "a neuron selector needs a member: neuron_retention keep");
  static_assert(detail::has_member<detail::check_ffn_member, Policy>::value,
                "a neuron selector needs: report check(const ffn_args&) const");
  static_assert(detail::has_member<detail::predict_member, Policy>::value,
                "a neuron selector needs: template <class Executor> void predict(const ffn_args&, tensor_view<float, "
                "1> scores, memory state, memory workspace, const Executor&) const");

  static report check(const Policy& policy, const ffn_args& args) {
    if (report r = skim::check(policy.keep); !r) return r;
    return policy.check(args);
  }
  static std::size_t workspace_bytes(const Policy& policy, const ffn_args& args, unsigned workers) {
    if constexpr (detail::has_member<detail::ffn_workspace_member, Policy>::value)
      return policy.workspace_bytes(args, workers);
    return 0;
  }
  static std::size_t state_bytes(const Policy& policy, const ffn_args& args) {
    if constexpr (detail::has_member<detail::ffn_state_member, Policy>::value) return policy.state_bytes(args);
    return 0;
  }
  static cost_estimate cost(const Policy& policy, const ffn_args& args) {
    if constexpr (detail::has_member<detail::ffn_cost_member, Policy>::value) return policy.cost(args);
    return {};
  }
  template <class Executor>
  static void predict(const Policy& policy, const ffn_args& args, tensor_view<float, 1> scores, memory state,
                      memory workspace, const Executor& executor) {
    policy.predict(args, scores, state, workspace, executor);
  }
  template <class Executor>
  static void reset(const Policy& policy, const ffn_args& args, memory state, const Executor& executor) {
    if constexpr (detail::has_member<detail::ffn_state_member, Policy>::value) policy.reset(args, state, executor);
  }
  template <class Executor>
  static void observe(const Policy& policy, const ffn_args& args, memory state, memory workspace,
                      const Executor& executor) {
    if constexpr (detail::has_member<detail::ffn_state_member, Policy>::value)
      policy.observe(args, state, workspace, executor);
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
