// SPDX-License-Identifier: Apache-2.0
/// \file What a selector must answer on the CPU, and how a policy of one's own joins in.
///
/// A selector policy has these members (all const; `args` passed `check`):
///   `report check(const attention_args& args)`: of its own parameters;
///   `std::int64_t list_capacity(const attention_args& args)`: the longest list it may write;
///   `std::size_t workspace_bytes(const attention_args& args, unsigned workers)`: scratch of `select`;
///   `template <class Executor> void select(const attention_args& args, const index_lists& lists, memory state,
///    memory workspace, const Executor& executor)`: for every sequence and KV head, the past slots to read, ascending,
///    and their count. Every write happens inside a body of `executor.parallel_for`.
/// and may have
///   `bool runs_dense(const attention_args& args, std::int64_t Tk)`: nothing to leave out for any head of a sequence
///    (default: never);
///   `std::size_t state_bytes(const attention_args& args)`: memory it keeps between calls, per layer (default: 0);
///   `cost_estimate cost(const attention_args& args)`: of `select` (default: zero).
/// The library's policies carry parameters only; `selector_kernel` specialisations supply their members.
#pragma once

#include <skim/attention.hpp>
#include <skim/cpu/policy.hpp>
#include <skim/executor.hpp>
#include <skim/index_lists.hpp>
#include <skim/workspace.hpp>

#include <utility>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

template <class P>
using check_member = decltype(report{std::declval<const P&>().check(std::declval<const attention_args&>())});
template <class P>
using list_capacity_member = decltype(std::int64_t{
    std::declval<const P&>().list_capacity(std::declval<const attention_args&>())});
template <class P>
using workspace_member = decltype(std::size_t{
    std::declval<const P&>().workspace_bytes(std::declval<const attention_args&>(), 1u)});
template <class P>
using select_member =
    decltype(std::declval<const P&>().select(std::declval<const attention_args&>(), std::declval<const index_lists&>(),
                                             memory{}, memory{}, std::declval<const serial_executor&>()));
template <class P>
using runs_dense_member =
    decltype(std::declval<const P&>().runs_dense(std::declval<const attention_args&>(), std::int64_t{}));
template <class P>
using state_member = decltype(std::declval<const P&>().state_bytes(std::declval<const attention_args&>()));
template <class P>
using cost_member = decltype(std::declval<const P&>().cost(std::declval<const attention_args&>()));

}  // namespace detail

/// The members above for `Policy`: its own, unless a header of the library specialises this.
template <class Policy>
struct selector_kernel {
  static_assert(detail::has_member<detail::check_member, Policy>::value,
                "a selector policy needs: report check(const attention_args&) const");
  static_assert(detail::has_member<detail::list_capacity_member, Policy>::value,
                "a selector policy needs: std::int64_t list_capacity(const attention_args&) const");
  static_assert(detail::has_member<detail::workspace_member, Policy>::value,
                "a selector policy needs: std::size_t workspace_bytes(const attention_args&, unsigned workers) const");
  static_assert(detail::has_member<detail::select_member, Policy>::value,
                "a selector policy needs: template <class Executor> void select(const attention_args&, const "
                "index_lists&, memory state, memory workspace, const Executor&) const");

  static report check(const Policy& policy, const attention_args& args) { return policy.check(args); }
  static std::int64_t list_capacity(const Policy& policy, const attention_args& args) {
    return policy.list_capacity(args);
  }
  static std::size_t workspace_bytes(const Policy& policy, const attention_args& args, unsigned workers) {
    return policy.workspace_bytes(args, workers);
  }
  static std::size_t state_bytes(const Policy& policy, const attention_args& args) {
    if constexpr (detail::has_member<detail::state_member, Policy>::value) return policy.state_bytes(args);
    return 0;
  }
  static bool runs_dense(const Policy& policy, const attention_args& args, std::int64_t Tk) {
    if constexpr (detail::has_member<detail::runs_dense_member, Policy>::value) return policy.runs_dense(args, Tk);
    return false;
  }
  static cost_estimate cost(const Policy& policy, const attention_args& args) {
    if constexpr (detail::has_member<detail::cost_member, Policy>::value) return policy.cost(args);
    return {};
  }
  template <class Executor>
  static void select(const Policy& policy, const attention_args& args, const index_lists& lists, memory state,
                     memory workspace, const Executor& executor) {
    policy.select(args, lists, state, workspace, executor);
  }
};

}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
