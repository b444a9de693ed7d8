// SPDX-License-Identifier: Apache-2.0
/// \file What readers of files share. A file's bytes in memory, read when they are looked at; where the system has no `mmap`
/// they are read at once. A name from a file, for messages.
#pragma once

#include <skim/version.hpp>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#if __has_include(<sys/mman.h>)
#define SKIM_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace skim { inline namespace v0_2 {

/// Read only; gone with the last of those that it was moved to. Aligned to 64 bytes and more (a page) where mapped, else to
/// that of a double. A file that shrinks while it is mapped ends the program where its missing bytes are read.
class mapped_file {
 public:
  mapped_file() = default;
  mapped_file(mapped_file&& other) noexcept { swap(other); }
  mapped_file& operator=(mapped_file&& other) noexcept {
    mapped_file taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~mapped_file() {
#ifdef SKIM_HAS_MMAP
    if (data_ && !storage_) munmap(const_cast<void*>(data_), size_);
#endif
  }

  /// Empty where all is well, else what is wrong, without the file's name.
  std::string open(const std::filesystem::path& path) {
    *this = {};
    std::error_code code;
    if (!std::filesystem::is_regular_file(path, code)) return "no such file";
    const std::uintmax_t size = std::filesystem::file_size(path, code);
    if (code || size > static_cast<std::size_t>(-1) / 2) return "cannot be opened";
    size_ = static_cast<std::size_t>(size);
    if (size_ == 0) return "";
#ifdef SKIM_HAS_MMAP
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return fail("cannot be opened");
    void* const mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    ::close(descriptor);
    if (mapped == MAP_FAILED) return fail("cannot be mapped");
    data_ = mapped;
#else
    std::ifstream stream(path, std::ios::binary);
    storage_ = std::unique_ptr<double[]>(new double[size_ / sizeof(double) + 1]);
    stream.read(reinterpret_cast<char*>(storage_.get()), static_cast<std::streamsize>(size_));
    if (!stream.good()) return fail("cannot be read to its end");
    data_ = storage_.get();
#endif
    return "";
  }

  const void* data() const {
    return data_;
  }
  std::size_t size() const {
    return size_;
  }

 private:
  void swap(mapped_file& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(storage_, other.storage_);
  }
  std::string fail(const char* text) {
    storage_.reset();
    size_ = 0;
    return text;
  }

  const void* data_ = nullptr;
  std::size_t size_ = 0;
  std::unique_ptr<double[]> storage_;  // where it is not mapped; doubles for their alignment
};

/// As part of a message of one line: quoted, printable, of bounded length.
inline std::string printable_name(std::string_view name) {
  constexpr std::size_t longest = 60;
  std::string text = "'";
  for (const char c : name.substr(0, longest)) text += c >= ' ' && c <= '~' ? c : '?';
  return text + (name.size() > longest ? "...'" : "'");
}

}}  // namespace skim::v0_2
