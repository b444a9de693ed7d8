// SPDX-License-Identifier: Apache-2.0
/// \file One binary for any processor of a family: the operations behind tables of functions, of which there is one for each
/// level of the processor. Tier 0 alone, so that a host's units parse no SIMD code and need no `-march`.
///
///   skim_add_dispatch(host LEVELS x86-64 x86-64-v3 x86-64-v4)       # CMake: one small unit for each level, the best is used
///   skim::cpu::any_attention op{skim::quoka{}};                     // then as cpu::attention<skim::quoka>
///   op.run(args, {}, workspace, executor);
///
/// It knows the library's policies with their usual parameters; a policy of one's own, other anchors and AMX go through
/// `cpu::attention<Own>` and so on, in a unit that is compiled for one processor. Bits are those of such a unit. Each program
/// and each shared library has levels of its own, and a choice of its own.
#pragma once

#include <skim/append.hpp>
#include <skim/attention.hpp>
#include <skim/eviction.hpp>
#include <skim/evictor/h2o.hpp>
#include <skim/evictor/keydiff.hpp>
#include <skim/evictor/random_tokens.hpp>
#include <skim/evictor/snapkv.hpp>
#include <skim/evictor/standard.hpp>
#include <skim/evictor/tova.hpp>
#include <skim/ffn.hpp>
#include <skim/linear.hpp>
#include <skim/math/accumulate.hpp>
#include <skim/neuron_selector/all_neurons.hpp>
#include <skim/neuron_selector/calibrated_set.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/neuron_selector/oracle.hpp>
#include <skim/neuron_selector/random_neurons.hpp>
#include <skim/neuron_selector/static_set.hpp>
#include <skim/selector/dense.hpp>
#include <skim/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>

#include <atomic>
#include <cstring>
#include <variant>

namespace skim { inline namespace v0_2 { namespace cpu {

using any_selector = std::variant<dense, quoka, sink_window>;
using any_evictor = std::variant<standard_evictor, keydiff<>, fast_caote<tova>, fast_caote<snapkv>, tova, snapkv, h2o,
                                 sink_window, random_tokens>;
using any_neuron_selector = std::variant<all_neurons, fastforward, calibrated_set, static_set, oracle, random_neurons>;
using any_accumulate = std::variant<accumulate::widen_fma, accumulate::dot_pairs>;

// Not `detail`: in units that have kernels too, that name is their feature set's. Hidden, as all functions here are inlined:
// the libraries of a process do not share their levels.
#pragma GCC visibility push(hidden)
namespace level_detail {

/// What a level of x86-64 has that the one before it lacks; a unit says what its compiler was told it may use.
enum processor_needs : unsigned {
  sse4_2 = 1,
  avx2 = 2,    // with fma, f16c, bmi, bmi2: no processor has it without them
  avx512 = 4,  // bw, cd, dq, vl
  avx512_bf16 = 8,
  avx512_vnni = 16,
};

/// Functions of an operation with one policy, whose address comes first: what every operation has, and what one has beyond.
template <class Args>
struct policy_functions {
  report (*check)(const void*, const Args&, pointers);
  std::int64_t (*list_capacity)(const void*, const Args&);
  std::size_t (*state_bytes)(const void*, const Args&);
  std::size_t (*workspace_bytes)(const void*, const Args&, unsigned);
  cost_estimate (*cost)(const void*, const Args&);
  report (*reset)(const void*, const Args&, memory, executor_ref);
};
struct attention_functions : policy_functions<attention_args> {
  report (*run)(const void*, const attention_args&, memory, memory, executor_ref);
  report (*select)(const void*, const attention_args&, const index_lists&, memory, memory, executor_ref);
};
struct attend_functions {
  report (*check)(const attention_args&, pointers);
  std::size_t (*workspace_bytes)(const attention_args&, std::int64_t, unsigned);
  report (*run)(const attention_args&, const index_lists&, memory, executor_ref);
};
struct eviction_functions : policy_functions<eviction_args> {
  report (*observe)(const void*, const eviction_args&, memory, memory, executor_ref);
  report (*score)(const void*, const eviction_args&, tensor_view<float, 2>, memory, memory, executor_ref);
  report (*choose)(const void*, const eviction_args&, tensor_view<const float, 2>, const index_lists&, memory,
                   executor_ref);
  report (*compact)(const void*, const eviction_args&, const index_lists&, memory, memory, executor_ref);
  report (*run)(const void*, const eviction_args&, const index_lists&, memory, memory, executor_ref);
};
struct ffn_functions : policy_functions<ffn_args> {
  report (*score)(const void*, const ffn_args&, tensor_view<float, 2>, memory, memory, executor_ref);
  report (*choose)(const void*, const ffn_args&, tensor_view<const float, 2>, const index_lists&, memory, executor_ref);
  report (*run)(const void*, const ffn_args&, memory, memory, executor_ref);
};
struct linear_functions {
  std::size_t (*workspace_bytes)(const linear_args&, unsigned);
  report (*run)(const linear_args&, memory, executor_ref);
};

inline constexpr std::size_t accumulates = std::variant_size_v<any_accumulate>;

/// All of one level. Alternatives are counted as in the variants.
struct level_functions {
  const char* name;
  const char* feature_set;
  unsigned needs;
  attention_functions attention[std::variant_size_v<any_selector>][accumulates];
  attend_functions attend[accumulates];
  eviction_functions eviction[std::variant_size_v<any_evictor>];
  ffn_functions ffn[std::variant_size_v<any_neuron_selector>][accumulates];
  linear_functions linear[accumulates];
  report (*append)(const append_args&, executor_ref);
  std::size_t (*rank_scores_bytes)(std::int64_t, unsigned);
  report (*rank_scores)(tensor_view<float, 2>, memory, executor_ref);
  report (*pool_scores)(tensor_view<const float, 2>, tensor_view<float, 2>, executor_ref);
};

/// What `skim_add_dispatch` compiled, in its order, null behind the last.
extern const level_functions* const dispatch_levels[];

inline bool runs_here(const level_functions& level) {
#if defined(__x86_64__)
  const bool v2 = __builtin_cpu_supports("sse4.2"),
             v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool v4 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const unsigned has = (v2 ? sse4_2 : 0u) | (v3 ? avx2 : 0u) | (v4 ? avx512 : 0u) |
                       (__builtin_cpu_supports("avx512bf16") ? avx512_bf16 : 0u) |
                       (__builtin_cpu_supports("avx512vnni") ? avx512_vnni : 0u);
  return (level.needs & ~has) == 0;
#else
  return level.needs == 0;
#endif
}

/// Null where no level that was compiled runs here.
inline const level_functions* best_level() {
  const level_functions* best = nullptr;
  for (const level_functions* const* each = dispatch_levels; *each; ++each) {
    if (runs_here(**each)) best = *each;
  }
  return best;
}

inline std::atomic<const level_functions*>& chosen_level() {
  static std::atomic<const level_functions*> chosen{best_level()};
  return chosen;
}

inline const level_functions& level_now() {
  const level_functions* const chosen = chosen_level().load(std::memory_order_relaxed);
  SKIM_ASSERT(chosen && "no level runs on this processor: ask cpu::level_name() first");
  return *chosen;
}

}  // namespace level_detail
#pragma GCC visibility pop

namespace level_detail {

/// What every operation with a policy has. `Operation` says `policy()`, a variant, and `now()`, its functions.
template <class Operation, class Args>
struct operation {
  SKIM_INLINE report check(const Args& args) const { return now().check(address(), args, pointers::required); }
  SKIM_INLINE report check_shape(const Args& args) const { return now().check(address(), args, pointers::ignored); }
  SKIM_INLINE policy_needs needs() const {
    return std::visit([](const auto& held) { return needs_of(held); }, self().policy());
  }
  SKIM_INLINE std::int64_t list_capacity(const Args& args) const { return now().list_capacity(address(), args); }
  SKIM_INLINE std::size_t state_bytes(const Args& args) const { return now().state_bytes(address(), args); }
  SKIM_INLINE std::size_t workspace_bytes(const Args& args, unsigned workers) const {
    return now().workspace_bytes(address(), args, workers);
  }
  SKIM_INLINE cost_estimate cost(const Args& args) const { return now().cost(address(), args); }
  SKIM_INLINE report reset(const Args& args, memory state, executor_ref executor) const {
    return now().reset(address(), args, state, executor);
  }

 protected:
  SKIM_INLINE const void* address() const {
    return std::visit([](const auto& held) -> const void* { return &held; }, self().policy());
  }

 private:
  SKIM_INLINE const Operation& self() const { return static_cast<const Operation&>(*this); }
  SKIM_INLINE const auto& now() const { return self().now(); }
};

}  // namespace level_detail

/// The level that computes: the last of those given to `skim_add_dispatch` that this processor has. Null where it has none;
/// then nothing here may be called.
SKIM_INLINE const char* level_name() {
  const level_detail::level_functions* const chosen = level_detail::chosen_level().load(std::memory_order_relaxed);
  return chosen ? chosen->name : nullptr;
}

/// As `feature_set` in the units of that level.
SKIM_INLINE const char* level_feature_set() {
  return level_detail::level_now().feature_set;
}

/// Calls `action(name, whether it runs here)` for each level that was compiled.
template <class Action>
SKIM_INLINE void for_each_level(const Action& action) {
  for (const level_detail::level_functions* const* each = level_detail::dispatch_levels; *each; ++each) {
    action((*each)->name, level_detail::runs_here(**each));
  }
}

/// Computes at another level from now on; for a host's start-up and for tests, as workspaces differ. False, and nothing
/// changes, where there is no such level or this processor lacks it.
SKIM_INLINE bool use_level(const char* name) {
  for (const level_detail::level_functions* const* each = level_detail::dispatch_levels; *each; ++each) {
    if (std::strcmp((*each)->name, name) != 0 || !level_detail::runs_here(**each)) continue;
    level_detail::chosen_level().store(*each, std::memory_order_relaxed);
    return true;
  }
  return false;
}

/// See `cpu::attention`. `score` and `choose` are of a selector that scores: take `cpu::attention<quoka>` for them.
struct any_attention : level_detail::operation<any_attention, attention_args> {
  any_selector selector;
  any_accumulate accumulate;

  SKIM_INLINE any_attention(const any_selector& by = {}, const any_accumulate& in = {})
      : selector(by), accumulate(in) {}
  SKIM_INLINE std::int64_t block_rows() const {
    return std::visit([](const auto& held) { return kept_by(held, 0).every; }, selector);
  }
  SKIM_INLINE report run(const attention_args& args, memory state, memory workspace, executor_ref executor) const {
    return now().run(address(), args, state, workspace, executor);
  }
  SKIM_INLINE report select(const attention_args& args, const index_lists& lists, memory state, memory workspace,
                            executor_ref executor) const {
    return now().select(address(), args, lists, state, workspace, executor);
  }

 private:
  friend operation;
  SKIM_INLINE const any_selector& policy() const { return selector; }
  SKIM_INLINE const level_detail::attention_functions& now() const {
    return level_detail::level_now().attention[selector.index()][accumulate.index()];
  }
};

/// See `cpu::attend`.
struct any_attend {
  any_accumulate accumulate{};

  SKIM_INLINE report check(const attention_args& args) const { return now().check(args, pointers::required); }
  SKIM_INLINE report check_shape(const attention_args& args) const { return now().check(args, pointers::ignored); }
  SKIM_INLINE std::size_t workspace_bytes(const attention_args& args, std::int64_t block_rows, unsigned workers) const {
    return now().workspace_bytes(args, block_rows, workers);
  }
  SKIM_INLINE report run(const attention_args& args, const index_lists& lists, memory workspace,
                         executor_ref executor) const {
    return now().run(args, lists, workspace, executor);
  }

 private:
  SKIM_INLINE const level_detail::attend_functions& now() const {
    return level_detail::level_now().attend[accumulate.index()];
  }
};

/// See `cpu::eviction`.
struct any_eviction : level_detail::operation<any_eviction, eviction_args> {
  any_evictor evictor;

  SKIM_INLINE any_eviction(const any_evictor& by = {}) : evictor(by) {}
  SKIM_INLINE report observe(const eviction_args& args, memory state, memory workspace, executor_ref executor) const {
    return now().observe(address(), args, state, workspace, executor);
  }
  SKIM_INLINE report score(const eviction_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
                           executor_ref executor) const {
    return now().score(address(), args, scores, state, workspace, executor);
  }
  SKIM_INLINE report choose(const eviction_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                            memory workspace, executor_ref executor) const {
    return now().choose(address(), args, scores, lists, workspace, executor);
  }
  SKIM_INLINE report compact(const eviction_args& args, const index_lists& lists, memory state, memory workspace,
                             executor_ref executor) const {
    return now().compact(address(), args, lists, state, workspace, executor);
  }
  SKIM_INLINE report run(const eviction_args& args, const index_lists& lists, memory state, memory workspace,
                         executor_ref executor) const {
    return now().run(address(), args, lists, state, workspace, executor);
  }

 private:
  friend operation;
  SKIM_INLINE const any_evictor& policy() const { return evictor; }
  SKIM_INLINE const level_detail::eviction_functions& now() const {
    return level_detail::level_now().eviction[evictor.index()];
  }
};

/// See `cpu::ffn`.
struct any_ffn : level_detail::operation<any_ffn, ffn_args> {
  any_neuron_selector selector;
  any_accumulate accumulate;

  SKIM_INLINE any_ffn(const any_neuron_selector& by = {}, const any_accumulate& in = {})
      : selector(by), accumulate(in) {}
  SKIM_INLINE report score(const ffn_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
                           executor_ref executor) const {
    return now().score(address(), args, scores, state, workspace, executor);
  }
  SKIM_INLINE report choose(const ffn_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
                            memory workspace, executor_ref executor) const {
    return now().choose(address(), args, scores, lists, workspace, executor);
  }
  SKIM_INLINE report run(const ffn_args& args, memory state, memory workspace, executor_ref executor) const {
    return now().run(address(), args, state, workspace, executor);
  }

 private:
  friend operation;
  SKIM_INLINE const any_neuron_selector& policy() const { return selector; }
  SKIM_INLINE const level_detail::ffn_functions& now() const {
    return level_detail::level_now().ffn[selector.index()][accumulate.index()];
  }
};

/// See `cpu::linear`.
struct any_linear {
  any_accumulate accumulate{};

  SKIM_INLINE report check(const linear_args& args) const { return skim::check(args); }
  SKIM_INLINE report check_shape(const linear_args& args) const { return skim::check_shape(args); }
  SKIM_INLINE std::size_t workspace_bytes(const linear_args& args, unsigned workers) const {
    return now().workspace_bytes(args, workers);
  }
  SKIM_INLINE cost_estimate cost(const linear_args& args) const { return linear_cost(args); }
  SKIM_INLINE report run(const linear_args& args, memory workspace, executor_ref executor) const {
    return now().run(args, workspace, executor);
  }

 private:
  SKIM_INLINE const level_detail::linear_functions& now() const {
    return level_detail::level_now().linear[accumulate.index()];
  }
};

/// See `cpu::append`, `cpu::rank_scores` and `cpu::pool_scores`.
SKIM_INLINE report any_append(const append_args& args, executor_ref executor) {
  return level_detail::level_now().append(args, executor);
}
SKIM_INLINE std::size_t any_rank_scores_bytes(std::int64_t n, unsigned workers) {
  return level_detail::level_now().rank_scores_bytes(n, workers);
}
SKIM_INLINE report any_rank_scores(tensor_view<float, 2> scores, memory workspace, executor_ref executor) {
  return level_detail::level_now().rank_scores(scores, workspace, executor);
}
SKIM_INLINE report any_pool_scores(tensor_view<const float, 2> scores, tensor_view<float, 2> pooled,
                                   executor_ref executor) {
  return level_detail::level_now().pool_scores(scores, pooled, executor);
}

}}}  // namespace skim::v0_2::cpu
