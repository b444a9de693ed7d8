// SPDX-License-Identifier: Apache-2.0
/// \file One level of `cpu/dispatch.hpp`: for the unit that `skim_add_dispatch` compiles for it, and for
/// nothing else.
#pragma once

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/dispatch.hpp>
#include <skim/cpu/eviction.hpp>
#include <skim/cpu/evictor/caote.hpp>
#include <skim/cpu/evictor/h2o.hpp>
#include <skim/cpu/evictor/keydiff.hpp>
#include <skim/cpu/evictor/random_tokens.hpp>
#include <skim/cpu/evictor/snapkv.hpp>
#include <skim/cpu/evictor/tova.hpp>
#include <skim/cpu/features.hpp>
#include <skim/cpu/ffn.hpp>
#include <skim/cpu/linear.hpp>
#include <skim/cpu/neuron_selector/all_neurons.hpp>
#include <skim/cpu/neuron_selector/calibrated_set.hpp>
#include <skim/cpu/neuron_selector/fastforward.hpp>
#include <skim/cpu/neuron_selector/oracle.hpp>
#include <skim/cpu/neuron_selector/random_neurons.hpp>
#include <skim/cpu/neuron_selector/static_set.hpp>
#include <skim/cpu/selector/quoka.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { namespace level_detail {

// Nothing here may be shared with the units of other levels: hence the namespace without a name, in a header.
namespace {

/// What the compiler was told it may use.
constexpr unsigned compiled_for = 0u
#if defined(__SSE4_2__)
                                  | sse4_2
#endif
#if defined(__AVX2__)
                                  | avx2
#endif
#if defined(__AVX512BW__)
                                  | avx512
#endif
#if defined(__AVX512BF16__)
                                  | avx512_bf16
#endif
#if defined(__AVX512VNNI__)
                                  | avx512_vnni
#endif
    ;

/// Whether `runs_here` asks for all of that: for a level it does not know, it would say yes to processors that lack it.
constexpr bool is_known_level =
#if (defined(__AVX__) && !defined(__AVX2__)) || defined(__AVX512VBMI__) || defined(__AVX512FP16__) || \
    defined(__AVX512IFMA__) || defined(__AVXVNNI__) || defined(__AMX_TILE__) || defined(__GFNI__) || defined(__VAES__)
    false;
#elif defined(__AVX512F__) && \
    !(defined(__AVX512BW__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && defined(__AVX512VL__))
    false;
#else
    true;
#endif

template <class Policy>
const Policy& held(const void* policy) {
  return *static_cast<const Policy*>(policy);
}

/// What every operation has, of `Operation` with `Policy`.
template <class Operation, class Policy, class Args>
constexpr policy_functions<Args> functions_of() {
  return {[](const void* p, const Args& args, pointers given) {
            const Operation made{held<Policy>(p)};
            return given == pointers::required ? made.check(args) : made.check_shape(args);
          },
          [](const void* p, const Args& args) { return Operation{held<Policy>(p)}.list_capacity(args); },
          [](const void* p, const Args& args) { return Operation{held<Policy>(p)}.state_bytes(args); },
          [](const void* p, const Args& args, unsigned workers) {
            return Operation{held<Policy>(p)}.workspace_bytes(args, workers);
          },
          [](const void* p, const Args& args) { return Operation{held<Policy>(p)}.cost(args); },
          [](const void* p, const Args& args, memory state, executor_ref on) {
            return Operation{held<Policy>(p)}.reset(args, state, on);
          }};
}

template <class Policy, class Accumulate>
constexpr attention_functions functions_of_attention() {
  using op = cpu::attention<Policy, Accumulate>;
  return {functions_of<op, Policy, attention_args>(),
          [](const void* p, const attention_args& args, memory state, memory workspace, executor_ref on) {
            return op{held<Policy>(p)}.run(args, state, workspace, on);
          },
          [](const void* p, const attention_args& args, const index_lists& lists, memory state, memory workspace,
             executor_ref on) { return op{held<Policy>(p)}.select(args, lists, state, workspace, on); }};
}

template <class Accumulate>
constexpr attend_functions functions_of_attend() {
  using op = cpu::attend<Accumulate>;
  return {[](const attention_args& args, pointers given) {
            return given == pointers::required ? op{}.check(args) : op{}.check_shape(args);
          },
          [](const attention_args& args, std::int64_t block_rows, unsigned workers) {
            return op{}.workspace_bytes(args, block_rows, workers);
          },
          [](const attention_args& args, const index_lists& lists, memory workspace, executor_ref on) {
            return op{}.run(args, lists, workspace, on);
          }};
}

template <class Policy>
constexpr eviction_functions functions_of_eviction() {
  using op = cpu::eviction<Policy>;
  return {
      functions_of<op, Policy, eviction_args>(),
      [](const void* p, const eviction_args& args, memory state, memory workspace, executor_ref on) {
        return op{held<Policy>(p)}.observe(args, state, workspace, on);
      },
      [](const void* p, const eviction_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
         executor_ref on) { return op{held<Policy>(p)}.score(args, scores, state, workspace, on); },
      [](const void* p, const eviction_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
         memory workspace, executor_ref on) { return op{held<Policy>(p)}.choose(args, scores, lists, workspace, on); },
      [](const void* p, const eviction_args& args, const index_lists& lists, memory state, memory workspace,
         executor_ref on) { return op{held<Policy>(p)}.compact(args, lists, state, workspace, on); },
      [](const void* p, const eviction_args& args, const index_lists& lists, memory state, memory workspace,
         executor_ref on) { return op{held<Policy>(p)}.run(args, lists, state, workspace, on); }};
}

template <class Policy, class Accumulate>
constexpr ffn_functions functions_of_ffn() {
  using op = cpu::ffn<Policy, Accumulate>;
  return {
      functions_of<op, Policy, ffn_args>(),
      [](const void* p, const ffn_args& args, tensor_view<float, 2> scores, memory state, memory workspace,
         executor_ref on) { return op{held<Policy>(p)}.score(args, scores, state, workspace, on); },
      [](const void* p, const ffn_args& args, tensor_view<const float, 2> scores, const index_lists& lists,
         memory workspace, executor_ref on) { return op{held<Policy>(p)}.choose(args, scores, lists, workspace, on); },
      [](const void* p, const ffn_args& args, memory state, memory workspace, executor_ref on) {
        return op{held<Policy>(p)}.run(args, state, workspace, on);
      }};
}

template <class Accumulate>
constexpr linear_functions functions_of_linear() {
  using op = cpu::linear<Accumulate>;
  return {[](const linear_args& args, unsigned workers) { return op{}.workspace_bytes(args, workers); },
          [](const linear_args& args, memory workspace, executor_ref on) { return op{}.run(args, workspace, on); }};
}

/// The tables of all alternatives of a variant.
template <class Variant>
struct tables;
template <class... Policies>
struct tables<std::variant<Policies...>> {
  static constexpr void fill(level_functions& all) {
    std::size_t i = 0;
    if constexpr (std::is_same_v<std::variant<Policies...>, any_selector>) {
      ((all.attention[i][0] = functions_of_attention<Policies, accumulate::widen_fma>(),
        all.attention[i++][1] = functions_of_attention<Policies, accumulate::dot_pairs>()),
       ...);
    } else if constexpr (std::is_same_v<std::variant<Policies...>, any_evictor>) {
      ((all.eviction[i++] = functions_of_eviction<Policies>()), ...);
    } else if constexpr (std::is_same_v<std::variant<Policies...>, any_neuron_selector>) {
      ((all.ffn[i][0] = functions_of_ffn<Policies, accumulate::widen_fma>(),
        all.ffn[i++][1] = functions_of_ffn<Policies, accumulate::dot_pairs>()),
       ...);
    } else {
      ((all.attend[i] = functions_of_attend<Policies>(), all.linear[i++] = functions_of_linear<Policies>()), ...);
    }
  }
};

constexpr level_functions all_functions(const char* name) {
  level_functions all{};
  all.name = name;
  all.feature_set = feature_set;
  all.needs = compiled_for;
  tables<any_selector>::fill(all);
  tables<any_evictor>::fill(all);
  tables<any_neuron_selector>::fill(all);
  tables<any_accumulate>::fill(all);
  all.append = [](const append_args& args, executor_ref on) { return cpu::append(args, on); };
  all.rank_scores_bytes = [](std::int64_t n, unsigned workers) { return cpu::rank_scores_bytes(n, workers); };
  all.rank_scores = [](tensor_view<float, 2> scores, memory workspace, executor_ref on) {
    return cpu::rank_scores(scores, workspace, on);
  };
  all.pool_scores = [](tensor_view<const float, 2> scores, tensor_view<float, 2> pooled, executor_ref on) {
    return cpu::pool_scores(scores, pooled, on);
  };
  return all;
}

}  // namespace

}}}}  // namespace skim::v0_2::cpu::level_detail
