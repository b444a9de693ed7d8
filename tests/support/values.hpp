// SPDX-License-Identifier: Apache-2.0
/// \file Random inputs, aligned memory and the unit of error bounds.
#pragma once

#include <skim/types.hpp>
#include <skim/workspace.hpp>

#include <algorithm>
#include <new>
#include <random>
#include <vector>

namespace skim_test {

inline constexpr double f32_roundoff = 0x1p-24;  // u: the relative error of one rounding to f32

/// Standard normal values; the same ones for the same seed.
inline std::vector<float> normal_values(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = draw(generator);
  return values;
}

/// Memory on a 64-byte boundary, filled with bytes that read as NaN in every element type, between guards.
class aligned_memory {
 public:
  explicit aligned_memory(std::size_t bytes, unsigned char fill = 0xff) : bytes_(bytes) {
    if (bytes > most_bytes) throw std::bad_alloc();  // a size beyond all memory may be the largest number
    storage_.assign(bytes + 3 * skim::memory_alignment, guard);
    std::fill_n(static_cast<unsigned char*>(data()), bytes, fill);
  }
  aligned_memory(const aligned_memory&) = delete;
  aligned_memory& operator=(const aligned_memory&) = delete;

  void* data() { return storage_.data() + begin(); }
  skim::memory get() { return {data(), bytes_}; }

  /// False if something wrote before or behind the memory.
  bool guards_intact() const {
    const auto is_guard = [](unsigned char byte) { return byte == guard; };
    const auto first = storage_.begin() + static_cast<std::ptrdiff_t>(begin());
    return std::all_of(storage_.begin(), first, is_guard) &&
           std::all_of(first + static_cast<std::ptrdiff_t>(bytes_), storage_.end(), is_guard);
  }

 private:
  static constexpr unsigned char guard = 0xa5;
  static constexpr std::size_t most_bytes = std::size_t{1} << 40;

  std::size_t begin() const {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data()) + skim::memory_alignment;
    return skim::memory_alignment +
           (skim::memory_alignment - address % skim::memory_alignment) % skim::memory_alignment;
  }

  std::vector<unsigned char> storage_;
  std::size_t bytes_;
};

}  // namespace skim_test
