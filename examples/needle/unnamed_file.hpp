// SPDX-License-Identifier: Apache-2.0
/// \file Files that nobody finds half written: one without a name, and one that gets its name when it is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace needle {

/// Memory on a disk. It is gone when the program ends, however that happens. Throws `error`.
class unnamed_file {
 public:
  explicit unnamed_file(std::filesystem::path directory);
  unnamed_file(const unnamed_file&) = delete;
  ~unnamed_file();

  /// Returns where the bytes begin.
  std::int64_t append(const void* data, std::size_t bytes);
  void read(std::int64_t from, void* data, std::size_t bytes) const;

 private:
  std::filesystem::path directory_;
  int file_ = -1;
  std::int64_t end_ = 0;
};

/// `write(path)` writes a file and returns what went wrong, or nothing. The file then takes the place of `path` at once: a
/// process that is killed leaves what was there, or the new file whole. Throws `error`.
void replace_file(const std::filesystem::path& path,
                  const std::function<std::string(const std::filesystem::path& to)>& write);

}  // namespace needle
