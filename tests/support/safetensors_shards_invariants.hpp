// SPDX-License-Identifier: Apache-2.0
/// \file What must hold for any bytes given as the index of a checkpoint's shards; used by the fuzzer.
#pragma once

#include "support/reader_error.hpp"

#include <skim/interop/safetensors_shards.hpp>

namespace skim_test {

/// An empty string, or what does not hold. `folder` is one to write the index into, beside what shards it has.
inline std::string broken_index_invariant(const std::filesystem::path& folder, const void* bytes, std::size_t size) {
  const std::filesystem::path path = folder / "model.safetensors.index.json";
  std::ofstream(path, std::ios::binary).write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
  const skim::safetensors::checkpoint read = skim::safetensors::checkpoint::read(path);
  if (!read.ok()) {
    if (!read.tensors().empty()) return "a refused checkpoint has tensors";
    const std::string begin = folder.string();
    if (read.error().compare(0, begin.size(), begin) != 0) return "the error does not name a file beside the index";
    return broken_error(read.error(), begin.size() + 500);  // a file's name has at most 255 bytes
  }
  unsigned sum = 0;
  for (const auto& [name, tensor] : read.tensors()) {
    if (name != tensor->name || read.find(name) != tensor) return "a tensor is not found by its name";
    for (std::size_t i = 0; i < tensor->bytes; ++i) sum += static_cast<const unsigned char*>(tensor->data)[i];
  }
  volatile unsigned seen = sum;  // the reads must happen
  static_cast<void>(seen);
  return "";
}

}  // namespace skim_test
