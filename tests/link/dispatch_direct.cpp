// SPDX-License-Identifier: Apache-2.0
/// \file Prints the hash of the calls by a program that is compiled for one level altogether.
#include "dispatch_calls.hpp"

#include <skim/skim.hpp>

#include <cstdio>

namespace {

struct direct {
  template <class Policy, class Accumulate>
  static auto attention(const Policy& policy, Accumulate accumulate) {
    return skim::cpu::attention<Policy, Accumulate>{policy, accumulate};
  }
  template <class Accumulate>
  static auto attend(Accumulate accumulate) {
    return skim::cpu::attend<Accumulate>{accumulate};
  }
  template <class Policy>
  static auto eviction(const Policy& policy) {
    return skim::cpu::eviction<Policy>{policy};
  }
  template <class Policy, class Accumulate>
  static auto ffn(const Policy& policy, Accumulate accumulate) {
    return skim::cpu::ffn<Policy, Accumulate>{policy, accumulate};
  }
  template <class Accumulate>
  static auto linear(Accumulate accumulate) {
    return skim::cpu::linear<Accumulate>{accumulate};
  }
  static skim::report append(const skim::append_args& args, skim::executor_ref on) {
    return skim::cpu::append(args, on);
  }
};

}  // namespace

int main() {
  std::printf("%016llx\n", static_cast<unsigned long long>(dispatch_calls::calls<direct>().hash()));
}
