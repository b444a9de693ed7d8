// SPDX-License-Identifier: Apache-2.0
/// \file What an evictor must answer on the CPU, and how a policy of one's own joins in.
///
/// An evictor policy has these members (all const; `args` passed `check`):
///   `retention keep`: how many tokens stay per KV head, and which of them whatever their score;
///   `report check(const eviction_args& args)`: of its own parameters;
///   `template <class Executor> void score(const eviction_args& args, tensor_view<float, 2> scores, memory state,
///    memory workspace, const Executor& executor)`: scores [Hk, n], by slot; the highest stay.
/// and may have
///   `static constexpr bool reads_attention`: it needs q and the log-sum-exp of the chunk's attention (default: false);
///   `static constexpr bool prefers_later`: of equal scores the later position stays (default: the earlier);
///   `std::size_t workspace_bytes(const eviction_args& args, unsigned workers)`: scratch of its steps (default: 0);
///   `float weight(float score)`: turns a score into CAOTE's h >= 0 (default: it cannot be CAOTE's base);
///   `cost_estimate cost(const eviction_args& args)`: of `observe` and `score` (default: zero);
/// and, if it keeps something about tokens between calls,
///   `std::size_t state_bytes(const eviction_args& args)`: per layer;
///   `reset(args, state, executor)`: makes the state that of an empty cache;
///   `observe(args, state, workspace, executor)`: takes in a chunk that was appended and attended;
///   `compact(args, lists, state, workspace, executor)`: lets the state follow `lists`, before keys and values move.
/// Every write happens inside a body of `executor.parallel_for`.
/// The library's policies carry parameters only; `evictor_kernel` specialisations supply their members.
#pragma once

#include <skim/cpu/policy.hpp>
#include <skim/eviction.hpp>
#include <skim/executor.hpp>
#include <skim/index_lists.hpp>
#include <skim/selector/retention.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <type_traits>
#include <utility>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {

namespace detail {

template <class P>
using keep_member = decltype(retention{std::declval<const P&>().keep});
template <class P>
using check_eviction_member = decltype(report{std::declval<const P&>().check(std::declval<const eviction_args&>())});
template <class P>
using score_member =
    decltype(std::declval<const P&>().score(std::declval<const eviction_args&>(), tensor_view<float, 2>{}, memory{},
                                            memory{}, std::declval<const serial_executor&>()));
template <class P>
using reads_attention_member = std::enable_if_t<P::reads_attention>;
template <class P>
using prefers_later_member = std::enable_if_t<P::prefers_later>;
template <class P>
using eviction_workspace_member = decltype(std::size_t{
    std::declval<const P&>().workspace_bytes(std::declval<const eviction_args&>(), 1u)});
template <class P>
using weight_member = decltype(float{std::declval<const P&>().weight(0.0f)});
template <class P>
using eviction_cost_member = decltype(std::declval<const P&>().cost(std::declval<const eviction_args&>()));
template <class P>
using eviction_state_member = decltype(std::size_t{
    std::declval<const P&>().state_bytes(std::declval<const eviction_args&>())});

}  // namespace detail

/// The members above for `Policy`: its own, unless a header of the library specialises this.
template <class Policy>
struct evictor_kernel {
  static_assert(detail::has_member<detail::keep_member, Policy>::value, "an evictor policy needs: retention keep");
  static_assert(detail::has_member<detail::check_eviction_member, Policy>::value,
                "an evictor policy needs: report check(const eviction_args&) const");
  static_assert(detail::has_member<detail::score_member, Policy>::value,
                "an evictor policy needs: template <class Executor> void score(const eviction_args&, "
                "tensor_view<float, 2> scores, memory state, memory workspace, const Executor&) const");

  static constexpr bool reads_attention = detail::has_member<detail::reads_attention_member, Policy>::value;
  static constexpr bool prefers_later = detail::has_member<detail::prefers_later_member, Policy>::value;
  static constexpr bool has_weights = detail::has_member<detail::weight_member, Policy>::value;
  static constexpr bool has_state = detail::has_member<detail::eviction_state_member, Policy>::value;

  static retention keep(const Policy& policy) { return policy.keep; }
  static report check(const Policy& policy, const eviction_args& args) { return policy.check(args); }
  static std::size_t state_bytes(const Policy& policy, const eviction_args& args) {
    if constexpr (has_state) return policy.state_bytes(args);
    return 0;
  }
  static std::size_t workspace_bytes(const Policy& policy, const eviction_args& args, unsigned workers) {
    if constexpr (detail::has_member<detail::eviction_workspace_member, Policy>::value) {
      return policy.workspace_bytes(args, workers);
    }
    return 0;
  }
  static cost_estimate cost(const Policy& policy, const eviction_args& args) {
    if constexpr (detail::has_member<detail::eviction_cost_member, Policy>::value) return policy.cost(args);
    return {};
  }
  static float weight(const Policy& policy, float score) { return policy.weight(score); }

  template <class Executor>
  static void reset(const Policy& policy, const eviction_args& args, memory state, const Executor& executor) {
    if constexpr (has_state) policy.reset(args, state, executor);
  }
  template <class Executor>
  static void observe(const Policy& policy, const eviction_args& args, memory state, memory workspace,
                      const Executor& executor) {
    if constexpr (has_state) policy.observe(args, state, workspace, executor);
  }
  template <class Executor>
  static void score(const Policy& policy, const eviction_args& args, tensor_view<float, 2> scores, memory state,
                    memory workspace, const Executor& executor) {
    policy.score(args, scores, state, workspace, executor);
  }
  template <class Executor>
  static void compact(const Policy& policy, const eviction_args& args, const index_lists& lists, memory state,
                      memory workspace, const Executor& executor) {
    if constexpr (has_state) policy.compact(args, lists, state, workspace, executor);
  }
};

namespace detail {

/// What the specialisations for the library's policies have in common: no state, no scratch, no cost, earlier first.
/// They hide what differs.
template <class Policy>
struct plain_evictor {
  static constexpr bool reads_attention = false;
  static constexpr bool prefers_later = false;
  static constexpr bool has_weights = false;

  static retention keep(const Policy& policy) { return policy.keep; }
  static report check(const Policy&, const eviction_args&) { return {}; }
  static std::size_t state_bytes(const Policy&, const eviction_args&) { return 0; }
  static std::size_t workspace_bytes(const Policy&, const eviction_args&, unsigned) { return 0; }
  static cost_estimate cost(const Policy&, const eviction_args&) { return {}; }
  template <class Executor>
  static void reset(const Policy&, const eviction_args&, memory, const Executor&) {}
  template <class Executor>
  static void observe(const Policy&, const eviction_args&, memory, memory, const Executor&) {}
  template <class Executor>
  static void compact(const Policy&, const eviction_args&, const index_lists&, memory, memory, const Executor&) {}
};

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
