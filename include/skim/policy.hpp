// SPDX-License-Identifier: Apache-2.0
/// \file What the three kinds of policies answer, and how a policy of one's own joins in.
///
/// A policy scores, the operation chooses the highest scores, a dense kernel runs on what was chosen. `Args` is
/// `attention_args` for a selector, `eviction_args` for an evictor, `ffn_args` for a neuron selector. All members are const
/// or static; `args` passed the operation's `check`. Every policy says, on every back-end the same,
///   `retention keep` (a neuron selector: `neuron_retention keep`): how much stays, what stays whatever its score, and when
///    all does; or, where that depends on the number of tokens, `retention kept(std::int64_t tokens)`;
///   `report check(const Args& args)`: of its own parameters; a neuron selector with tensors of its own has
///    `check(const Args& args, pointers given = pointers::required)`, for when there is no memory yet;
/// and may say
///   `cost_estimate cost(const Args& args)`: of scoring, and of observing (default: zero);
///   `static constexpr bool scores_alike`: all score the same, `keep` alone decides, and there is no `score`;
///   `static constexpr bool prefers_later`: of equal scores the later position stays (default: the earlier);
///   `policy_needs needs()`: what of the call it reads or gains from (default: nothing);
///   `std::int64_t smooth`, an evictor: a token's score is then the mean of its own and its neighbours', so many in all, by
///    position among the tokens that are there; one that is not finite has no part and is NaN (default: 1, as scored);
///   `float caote_weight(float score)`, an evictor: turns a score into CAOTE's h >= 0 (default: it cannot be CAOTE's base);
///   `neuron_compensator compensator`, a neuron selector: what is added to a sparse block's output.
///
/// A back-end adds the work. `On` is where it runs: `executor_ref` on the CPU.
///   `void score(const Args& args, tensor_view<float, 2> scores, memory state, memory workspace, On on)`: the highest stay.
///    A selector is given `attention_blocks` here, and scores the past slots of block i and KV head h in row i * Hk + h,
///    scores [blocks * Hk, longest past]; an evictor scores the tokens of each KV head by slot, scores [Hk, tokens]; a
///    neuron selector the neurons for each block, scores [blocks, f]. Entries beyond a head's own length are never read;
///   `std::size_t workspace_bytes(const Args& args, unsigned workers)`: scratch of its steps (default: 0), which for smaller
///    arguments or fewer workers is no larger;
/// and, for what it keeps between calls,
///   `std::size_t state_bytes(const Args& args)`: per layer (default: 0);
///   `void reset(const Args& args, memory state, On on)`: makes the state that of an empty cache or a prompt's beginning;
///   `void observe(const Args& args, memory state, memory workspace, On on)`: takes in a chunk that was appended and
///    attended, or a block of the FFN that runs dense;
///   `void compact(const eviction_args& args, const index_lists& lists, memory state, memory workspace, On on)`: lets the
///    state follow the lists, before keys and values move.
/// A selector may, in place of `keep` and `score`, give the lists itself:
///   `std::int64_t list_capacity(const attention_args& args)`: the longest list it may write;
///   `void select(const attention_args& args, const index_lists& lists, memory state, memory workspace, On on)`: for every
///    block and KV head the past slots to read, ascending, and their count.
/// Every write happens inside a body of `on.parallel_for`. The library's policies have parameters and the first group of
/// members; the rest stands in `<back-end>/<folder>/<policy>.hpp`.
#pragma once

#include <skim/executor.hpp>
#include <skim/retention.hpp>
#include <skim/workspace.hpp>

#include <type_traits>
#include <utility>

namespace skim { inline namespace v0_2 {

/// What a policy needs of the call, so that a host knows what to compute and to keep.
struct policy_needs {
  bool lse = false;            ///< q and the log-sum-exp of the chunk's attention
  bool positions = false;      ///< positions stored with the cache
  bool inverse_norms = false;  ///< not needed, but it gains from norms stored with the cache
};

namespace detail {

/// True if `Member<P...>`, the type of an expression that uses the member, exists.
template <class Enable, template <class...> class Member, class... P>
struct has_member : std::false_type {};
template <template <class...> class Member, class... P>
struct has_member<std::void_t<Member<P...>>, Member, P...> : std::true_type {};
template <template <class...> class Member, class... P>
inline constexpr bool has = has_member<void, Member, P...>::value;

template <class P>
using keep_member = decltype(std::declval<const P&>().keep);
template <class P>
using kept_member = decltype(std::declval<const P&>().kept(std::int64_t{}));
/// Says what it keeps, in one of the two ways.
template <class P>
inline constexpr bool keeps = has<keep_member, P> || has<kept_member, P>;

template <class P, class Args>
using check_member = decltype(report{std::declval<const P&>().check(std::declval<const Args&>())});
template <class P, class Args>
using cost_member = decltype(cost_estimate{std::declval<const P&>().cost(std::declval<const Args&>())});
template <class P>
using later_member = std::enable_if_t<P::prefers_later>;
template <class P>
using alike_member = std::enable_if_t<P::scores_alike>;
template <class P>
using needs_member = decltype(policy_needs{std::declval<const P&>().needs()});
template <class P>
using smooth_member = decltype(std::int64_t{std::declval<const P&>().smooth});
template <class P>
using caote_weight_member = decltype(float{std::declval<const P&>().caote_weight(0.0f)});
template <class P>
using compensator_member = decltype(std::declval<const P&>().compensator);
template <class P, class Args>
using workspace_member = decltype(std::size_t{
    std::declval<const P&>().workspace_bytes(std::declval<const Args&>(), 1u)});
template <class P, class Args>
using state_member = decltype(std::size_t{std::declval<const P&>().state_bytes(std::declval<const Args&>())});
template <class P, class Args, class On>
using score_member = decltype(std::declval<const P&>().score(std::declval<const Args&>(), tensor_view<float, 2>{},
                                                             memory{}, memory{}, std::declval<On>()));
template <class P, class Args>
using capacity_member = decltype(std::int64_t{std::declval<const P&>().list_capacity(std::declval<const Args&>())});
template <class P, class Args, class On>
using select_member = decltype(std::declval<const P&>().select(
    std::declval<const Args&>(), std::declval<const index_lists&>(), memory{}, memory{}, std::declval<On>()));

}  // namespace detail

/// What `policy` keeps of `tokens` tokens.
template <class Policy>
SKIM_INLINE retention kept_by(const Policy& policy, std::int64_t tokens) {
  if constexpr (detail::has<detail::kept_member, Policy>) {
    return policy.kept(tokens);
  } else {
    return policy.keep.among(tokens);
  }
}

/// What `policy` needs of the call.
template <class Policy>
SKIM_INLINE constexpr policy_needs needs_of(const Policy& policy) {
  if constexpr (detail::has<detail::needs_member, Policy>) return policy.needs();
  static_cast<void>(policy);
  return {};
}

/// How many tokens' scores an evictor averages.
template <class Policy>
SKIM_INLINE constexpr std::int64_t smooth_of(const Policy& policy) {
  if constexpr (detail::has<detail::smooth_member, Policy>) return policy.smooth;
  static_cast<void>(policy);
  return 1;
}

/// The cost that `policy` says of itself.
template <class Policy, class Args>
SKIM_LOCAL cost_estimate cost_of(const Policy& policy, const Args& args) {
  if constexpr (detail::has<detail::cost_member, Policy, Args>) return policy.cost(args);
  static_cast<void>(policy);
  static_cast<void>(args);
  return {};
}

template <class Policy>
inline constexpr bool scores_alike = detail::has<detail::alike_member, Policy>;
template <class Policy>
inline constexpr bool prefers_later = detail::has<detail::later_member, Policy>;

/// True for a selector that gives lists itself.
template <class Policy, class Args, class On>
inline constexpr bool gives_lists = detail::has<detail::select_member, Policy, Args, On>;

/// A back-end's part of a policy: here what the policy has itself, or nothing. A back-end derives its kernels from this and
/// hides what its header for a policy of the library supplies.
template <class Policy, class On>
struct own_hooks {
  template <class Args>
  static std::size_t workspace_bytes(const Policy& policy, const Args& args, unsigned workers) {
    if constexpr (detail::has<detail::workspace_member, Policy, Args>) return policy.workspace_bytes(args, workers);
    return 0;
  }
  template <class Args>
  static std::size_t state_bytes(const Policy& policy, const Args& args) {
    if constexpr (detail::has<detail::state_member, Policy, Args>) return policy.state_bytes(args);
    return 0;
  }
  template <class Args>
  static void reset(const Policy& policy, const Args& args, memory state, On on) {
    if constexpr (detail::has<detail::state_member, Policy, Args>) policy.reset(args, state, on);
  }
  template <class Args>
  static void observe(const Policy& policy, const Args& args, memory state, memory workspace, On on) {
    if constexpr (detail::has<detail::state_member, Policy, Args>) policy.observe(args, state, workspace, on);
  }
  template <class Args>
  static void compact(const Policy& policy, const Args& args, const index_lists& lists, memory state, memory workspace,
                      On on) {
    if constexpr (detail::has<detail::state_member, Policy, Args>) policy.compact(args, lists, state, workspace, on);
  }
  template <class Args>
  static void score(const Policy& policy, const Args& args, tensor_view<float, 2> scores, memory state,
                    memory workspace, On on) {
    static_assert(detail::has<detail::score_member, Policy, Args, On>,
                  "a policy needs: void score(const Args&, tensor_view<float, 2> scores, memory state, memory "
                  "workspace, executor_ref) const; one of the library: its header in skim/cpu");
    policy.score(args, scores, state, workspace, on);
  }
};

}}  // namespace skim::v0_2
