// SPDX-License-Identifier: Apache-2.0
#include "unnamed_file.hpp"

#include "error.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>

namespace needle {
namespace {

std::string last_problem() {
  return std::error_code(errno, std::generic_category()).message();
}

/// Opens a file without a name; where the file system has none, one whose name is taken away at once. -1: neither.
int open_unnamed(const std::filesystem::path& directory) {
  const int file = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0) return file;
  std::string name = (directory / ("needle." + std::string(6, 'X'))).string();  // mkstemp fills them in
  const int named = ::mkstemp(name.data());
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

}  // namespace

unnamed_file::unnamed_file(std::filesystem::path directory)
    : directory_(std::move(directory)), file_(open_unnamed(directory_)) {
  if (file_ < 0) throw error(directory_.string() + ": no file can be made there: " + last_problem());
}

unnamed_file::~unnamed_file() {
  ::close(file_);
}

std::int64_t unnamed_file::append(const void* data, std::size_t bytes) {
  const std::int64_t begin = end_;
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(file_, from, bytes, end_);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw error(directory_.string() + ": a file there cannot be written to: " + last_problem());
    from += written;
    end_ += written;
    bytes -= static_cast<std::size_t>(written);
  }
  return begin;
}

void unnamed_file::read(std::int64_t from, void* data, std::size_t bytes) const {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::pread(file_, to, bytes, from);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw error(directory_.string() + ": a file there cannot be read: " + last_problem());
    to += got;
    from += got;
    bytes -= static_cast<std::size_t>(got);
  }
}

void replace_file(const std::filesystem::path& path,
                  const std::function<std::string(const std::filesystem::path& to)>& write) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const std::filesystem::path whole = path.string() + ".new";
  std::error_code code;
  std::filesystem::remove(whole, code);  // of a process that was killed between its last two steps
  const int file = ::open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
  std::string problem;
  if (file < 0) {  // the file has its second name from the start
    problem = write(whole);
  } else {
    const std::string unnamed = "/proc/self/fd/" + std::to_string(file);
    problem = write(unnamed);
    if (problem.empty() && ::fsync(file) != 0) problem = last_problem();
    if (problem.empty() && ::linkat(AT_FDCWD, unnamed.c_str(), AT_FDCWD, whole.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      problem = last_problem();
    }
    ::close(file);
  }
  if (problem.empty()) {
    std::filesystem::rename(whole, path, code);
    if (code) problem = code.message();
  }
  if (problem.empty()) return;
  std::filesystem::remove(whole, code);
  throw error(path.string() + ": " + problem);
}

}  // namespace needle
