// SPDX-License-Identifier: Apache-2.0
/// \file Memory that ends where a view's reach ends: an address sanitizer sees whatever is read or written outside, and
/// guards tell of writes without one.
#pragma once

#include <skim/kv_view.hpp>
#include <skim/workspace.hpp>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace skim_test {

class exact_memory {
 public:
  explicit exact_memory(std::size_t most_bytes) : left_(most_bytes) {}

  /// Whether all that was asked for was given; else pointers stayed null.
  bool given() const { return given_; }

  /// `bytes` at an address that is a multiple of 64, with guards around.
  char* block(std::uint64_t bytes) {
    if (bytes > left_) {
      given_ = false;
      return nullptr;
    }
    left_ -= static_cast<std::size_t>(bytes);
    pieces_.push_back({std::make_unique<char[]>(static_cast<std::size_t>(bytes) + 2 * guard_bytes + 63), 0,
                       static_cast<std::size_t>(bytes)});
    piece& last = pieces_.back();
    const auto address = reinterpret_cast<std::uintptr_t>(last.storage.get()) + guard_bytes;
    last.begin = guard_bytes + (64 - address % 64) % 64;
    char* const data = last.storage.get() + last.begin;
    std::memset(last.storage.get(), guard, last.begin + last.bytes + guard_bytes);
    std::memset(data, 0, last.bytes);
    poison(data - guard_bytes, guard_bytes, true);
    poison(data + last.bytes, guard_bytes, true);
    return data;
  }

  template <class T>
  T* array(std::int64_t count) {
    return reinterpret_cast<T*>(block(static_cast<std::uint64_t>(std::max<std::int64_t>(count, 0)) * sizeof(T)));
  }

  /// An axis of a view: `extent` steps of `stride` elements.
  struct axis {
    std::int64_t extent, stride;
  };

  /// What a view over `axes` reaches, filled with numbers; its first element. Null where it has no elements.
  void* reach(skim::element type, const std::vector<axis>& axes) {
    double lowest = 0, highest = 0;  // doubles: products of absurd numbers must not overflow here
    for (const axis& a : axes) {
      if (a.extent <= 0) return nullptr;
      const double far = static_cast<double>(a.extent - 1) * static_cast<double>(a.stride);
      (far < 0 ? lowest : highest) += far;
    }
    if (highest - lowest > 1e9) {
      given_ = false;
      return nullptr;
    }
    const std::int64_t before = static_cast<std::int64_t>(-lowest),
                       count = before + static_cast<std::int64_t>(highest) + 1;
    char* const data = block(static_cast<std::uint64_t>(skim::bytes_of(type, count)));
    if (!data) return nullptr;
    for (std::int64_t i = 0; i < count; ++i) {
      skim::store_element(data, type, i, static_cast<float>(static_cast<int>(random_() % 2001) - 1000) * 1e-3f);
    }
    return data + skim::bytes_of(type, before);
  }

  template <class T, int Rank>
  void give(skim::tensor_view<T, Rank>& view) {
    std::vector<axis> axes;
    for (int a = 0; a < Rank; ++a) axes.push_back({view.extents[a], view.strides[a]});
    view.data = static_cast<T*>(reach(view.type, axes));
  }

  /// True if nothing was written around any block.
  bool guards_intact() const {
    for (const piece& p : pieces_) {
      char* const data = p.storage.get() + p.begin;
      poison(data - guard_bytes, guard_bytes, false);
      poison(data + p.bytes, guard_bytes, false);
      const auto is_guard = [](char byte) { return byte == guard; };
      if (!std::all_of(p.storage.get(), data, is_guard)) return false;
      if (!std::all_of(data + p.bytes, data + p.bytes + guard_bytes, is_guard)) return false;
    }
    return true;
  }

  ~exact_memory() {
    for (const piece& p : pieces_) {
      poison(p.storage.get(), p.begin, false);
      poison(p.storage.get() + p.begin + p.bytes, guard_bytes, false);
    }
  }
  exact_memory(const exact_memory&) = delete;
  exact_memory& operator=(const exact_memory&) = delete;

 private:
  static constexpr std::size_t guard_bytes = 128;
  static constexpr char guard = 0x5a;
  struct piece {
    std::unique_ptr<char[]> storage;
    std::size_t begin, bytes;
  };

  /// Tells the address sanitizer, if there is one, whether guards may be touched.
  static void poison(const void* data, std::size_t bytes, bool on);

  std::size_t left_;
  bool given_ = true;
  std::vector<piece> pieces_;
  std::mt19937 random_{1};
};

}  // namespace skim_test

#if defined(__SANITIZE_ADDRESS__)
#define SKIM_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SKIM_TEST_ASAN 1
#endif
#endif
#if defined(SKIM_TEST_ASAN)
#include <sanitizer/asan_interface.h>
inline void skim_test::exact_memory::poison(const void* data, std::size_t bytes, bool on) {
  if (on) {
    __asan_poison_memory_region(data, bytes);
  } else {
    __asan_unpoison_memory_region(data, bytes);
  }
}
#else
inline void skim_test::exact_memory::poison(const void*, std::size_t, bool) {}
#endif
