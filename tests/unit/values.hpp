// SPDX-License-Identifier: Apache-2.0
/// \file Random inputs and aligned memory.
#pragma once

#include <skim/types.hpp>
#include <skim/workspace.hpp>

#include <cstring>
#include <random>
#include <vector>

namespace skim_test {

/// Standard normal values; the same ones for the same seed.
inline std::vector<float> normal_values(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = draw(generator);
  return values;
}

/// Memory on a 64-byte boundary, filled with bytes that read as NaN in every element type.
class aligned_memory {
 public:
  explicit aligned_memory(std::size_t bytes) : storage_(bytes + skim::memory_alignment), bytes_(bytes) {
    std::memset(storage_.data(), 0xff, storage_.size());
  }

  void* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
    return storage_.data() + (skim::memory_alignment - address % skim::memory_alignment) % skim::memory_alignment;
  }
  skim::memory get() { return {data(), bytes_}; }

 private:
  std::vector<unsigned char> storage_;
  std::size_t bytes_;
};

}  // namespace skim_test
