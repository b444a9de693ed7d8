// SPDX-License-Identifier: Apache-2.0
/// \file libFuzzer target for the index of safetensors shards, built on request with Clang:
///   cmake --build BUILD --target safetensors_shards_fuzz && BUILD/tests/unit/safetensors_shards_fuzz -max_total_time=60
/// It works in the folder skim_shards_fuzz below the system's for temporary files, and leaves it there: one at a time.
#include "support/safetensors_shards_invariants.hpp"

#include <skim/interop/safetensors_writer.hpp>

#include <cstdio>
#include <cstdlib>

namespace {

/// With two shards, "a" and "b", which hold tensors "x", "y" and "z".
const std::filesystem::path& folder() {
  static const std::filesystem::path made = [] {
    const std::filesystem::path path = std::filesystem::temp_directory_path() / "skim_shards_fuzz";
    std::filesystem::create_directory(path);
    skim::safetensors::writer a, b;
    a.add("x", {2}, {1.0f, 2.0f}, skim::element::f32);
    b.add("y", {1}, {3.0f}, skim::element::f32);
    b.add("z", {1}, {4.0f}, skim::element::f32);
    if (!a.write(path / "a").empty() || !b.write(path / "b").empty()) std::abort();
    return path;
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string broken = skim_test::broken_index_invariant(folder(), bytes, size);
  if (broken.empty()) return 0;
  std::fprintf(stderr, "%s\n", broken.c_str());
  std::abort();
}
