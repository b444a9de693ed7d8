// SPDX-License-Identifier: Apache-2.0
/// \file libFuzzer target for the GGUF reader, built on request with Clang:
///   cmake --build BUILD --target gguf_fuzz && BUILD/tests/unit/gguf_fuzz -max_total_time=60
#include "support/gguf_invariants.hpp"

#include <cstdio>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string broken = skim_test::broken_gguf_invariant(bytes, size);
  if (broken.empty()) return 0;
  std::fprintf(stderr, "%s\n", broken.c_str());
  std::abort();
}
