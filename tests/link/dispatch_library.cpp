// SPDX-License-Identifier: Apache-2.0
/// \file A library for any processor, as an engine would ship it: compiled without -march, levels by `skim_add_dispatch`.
#include "dispatch_calls.hpp"

namespace {

struct dispatched {
  static auto attention(const skim::cpu::any_selector& policy, skim::cpu::any_accumulate accumulate) {
    return skim::cpu::any_attention{policy, accumulate};
  }
  static auto attend(skim::cpu::any_accumulate accumulate) { return skim::cpu::any_attend{accumulate}; }
  static auto eviction(const skim::cpu::any_evictor& policy) { return skim::cpu::any_eviction{policy}; }
  static auto ffn(const skim::cpu::any_neuron_selector& policy, skim::cpu::any_accumulate accumulate) {
    return skim::cpu::any_ffn{policy, accumulate};
  }
  static auto linear(skim::cpu::any_accumulate accumulate) { return skim::cpu::any_linear{accumulate}; }
  static skim::report append(const skim::append_args& args, skim::executor_ref on) {
    return skim::cpu::any_append(args, on);
  }
};

}  // namespace

const char* level_used(const char* wanted) {
  if (wanted && !skim::cpu::use_level(wanted)) return nullptr;
  return skim::cpu::level_name();
}

unsigned long long hash_of_calls() {
  return dispatch_calls::calls<dispatched>().hash();
}
