// SPDX-License-Identifier: Apache-2.0
/// \file Caller-owned memory: state (kept between calls, one per layer) and workspace (scratch, shared by all layers).
#pragma once

#include <skim/status.hpp>

#include <type_traits>

namespace skim { inline namespace v0_2 {

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

/// `used` and `count` elements of `size` bytes, aligned; a size beyond all memory is the largest number.
SKIM_HD SKIM_LOCAL std::size_t bytes_behind(std::size_t used, std::int64_t count, std::size_t size) {
  constexpr std::size_t most = ~std::size_t{0};
  if (static_cast<std::size_t>(count) > (most - memory_alignment) / size) return most;
  const std::size_t bytes = round_up_bytes(static_cast<std::size_t>(count) * size);
  return bytes > most - used ? most : used + bytes;
}

/// Hands out aligned pieces of one block. The function that lays out a kernel's scratch runs twice, over a null block
/// to learn the size and over the real one to get the pointers, so the two cannot disagree.
class arena {
 public:
  SKIM_HD SKIM_INLINE explicit arena(void* block = nullptr) : block_(static_cast<char*>(block)) {}

  template <class T>
  SKIM_HD SKIM_INLINE T* take(std::int64_t count) {
    static_assert(std::is_trivially_copyable_v<T>, "scratch holds plain values");
    T* piece = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ = bytes_behind(used_, count, sizeof(T));
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

SKIM_LOCAL report check_memory(status code, const char* name, memory given, std::size_t needed) {
  if (holds(given, needed)) return {};
  return fault(code, name, static_cast<std::int64_t>(given.data ? given.bytes : 0), static_cast<std::int64_t>(needed),
               "64-byte aligned and at least");
}
SKIM_LOCAL report check_workspace(memory given, std::size_t needed) {
  return check_memory(status::short_workspace, "workspace.bytes", given, needed);
}
SKIM_LOCAL report check_state(memory given, std::size_t needed) {
  return check_memory(status::short_state, "state.bytes", given, needed);
}

}  // namespace detail
}}  // namespace skim::v0_2
