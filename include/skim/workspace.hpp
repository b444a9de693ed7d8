// SPDX-License-Identifier: Apache-2.0
/// \file Caller-owned memory: state (kept between calls, one per layer) and workspace (scratch, shared by all layers).
#pragma once

#include <skim/status.hpp>

#include <type_traits>

namespace skim {
inline namespace v0_2 {

/// Alignment that workspaces and states need, in bytes: one cache line, one AVX-512 register.
inline constexpr std::size_t memory_alignment = 64;

/// Raw memory that the caller owns.
struct memory {
  void* data = nullptr;
  std::size_t bytes = 0;
};

namespace detail {

SKIM_HD SKIM_INLINE constexpr std::size_t round_up_bytes(std::size_t bytes) {
  return (bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
}

/// Hands out aligned pieces of one block. The function that lays out a kernel's scratch runs twice, over a null block
/// to learn the size and over the real one to get the pointers, so the two cannot disagree.
class arena {
 public:
  SKIM_HD SKIM_INLINE explicit arena(void* block = nullptr) : block_(static_cast<char*>(block)) {}

  /// A size beyond all memory leaves `used` at the largest number, which no block has.
  template <class T>
  SKIM_HD SKIM_INLINE T* take(std::int64_t count) {
    static_assert(std::is_trivially_copyable_v<T>, "scratch holds plain values");
    constexpr std::size_t most = ~std::size_t{0};
    T* piece = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    if (static_cast<std::size_t>(count) > (most - memory_alignment) / sizeof(T)) {
      used_ = most;
      return piece;
    }
    const std::size_t bytes = round_up_bytes(static_cast<std::size_t>(count) * sizeof(T));
    used_ = bytes > most - used_ ? most : used_ + bytes;
    return piece;
  }

  SKIM_HD SKIM_INLINE std::size_t used() const { return used_; }

 private:
  char* block_;
  std::size_t used_ = 0;
};

SKIM_HD SKIM_INLINE bool holds(memory given, std::size_t bytes) {
  if (bytes == 0) return true;
  return given.data && given.bytes >= bytes && reinterpret_cast<std::uintptr_t>(given.data) % memory_alignment == 0;
}

SKIM_INLINE report check_memory(status code, const char* name, memory given, std::size_t needed) {
  if (holds(given, needed)) return {};
  return fault(code, name, static_cast<std::int64_t>(given.data ? given.bytes : 0), static_cast<std::int64_t>(needed),
               "64-byte aligned and at least");
}
SKIM_INLINE report check_workspace(memory given, std::size_t needed) {
  return check_memory(status::short_workspace, "workspace.bytes", given, needed);
}
SKIM_INLINE report check_state(memory given, std::size_t needed) {
  return check_memory(status::short_state, "state.bytes", given, needed);
}

}  // namespace detail
}  // namespace v0_2
}  // namespace skim
