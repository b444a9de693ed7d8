// SPDX-License-Identifier: Apache-2.0
/// \file Memory for a call, for hosts that have no allocator of their own. The one header of this tier that allocates.
#pragma once

#include <skim/workspace.hpp>

#include <cstring>
#include <new>

namespace skim { inline namespace v0_2 {

/// An owning block of bytes, aligned as states and workspaces need it, zeros at first. Converts to `memory`.
///
///     skim::buffer workspace(op.workspace_bytes(args, workers));
///     op.run(args, {}, workspace, executor);
class buffer {
 public:
  buffer() = default;
  /// Throws std::bad_alloc where memory is short.
  explicit buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = ::operator new (bytes, std::align_val_t{memory_alignment});
    std::memset(data_, 0, bytes);
  }
  buffer(buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  buffer& operator=(buffer&& other) noexcept {
    void* const data = data_;
    const std::size_t bytes = bytes_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = data;
    other.bytes_ = bytes;
    return *this;
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() {
    if (data_) ::operator delete (data_, std::align_val_t{memory_alignment});
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  operator memory() const { return {data_, bytes_}; }  // NOLINT: what calls take

  /// Makes it hold at least `bytes`; what it held is lost where it grows.
  void reserve(std::size_t bytes) {
    if (bytes > bytes_) *this = buffer(bytes);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}}  // namespace skim::v0_2
