// SPDX-License-Identifier: Apache-2.0
/// \file What must hold for any bytes given to the safetensors reader; used by the mutation test and the fuzzer.
#pragma once

#include "support/reader_error.hpp"

#include <skim/interop/safetensors.hpp>

#include <cstring>

namespace skim_test {

/// An empty string, or what does not hold. Reads every byte of every tensor, so that AddressSanitizer sees strays.
inline std::string broken_invariant(const void* bytes, std::size_t size) {
  const skim::safetensors::file file = skim::safetensors::file::view(bytes, size);
  if (!file.ok()) {
    if (!file.tensors().empty()) return "a refused file has tensors";
    return broken_error(file.error());
  }
  const char* const begin = static_cast<const char*>(bytes);
  std::size_t covered = 0;
  unsigned sum = 0;
  for (const skim::safetensors::tensor& each : file.tensors()) {
    const char* const data = static_cast<const char*>(each.data);
    if (data < begin + 8 || each.bytes > size || data > begin + size - each.bytes) return "a tensor lies outside";
    for (std::size_t i = 0; i < each.bytes; ++i) sum += static_cast<unsigned char>(data[i]);
    std::uint64_t elements = 1;
    for (const std::int64_t extent : each.shape) elements *= static_cast<std::uint64_t>(extent);
    if (each.dtype.bytes > 0 && elements * static_cast<std::uint64_t>(each.dtype.bytes) != each.bytes)
      return "a tensor's size is not its shape's";
    if (!*each.dtype.name && each.dtype.bytes > 0) return "a known type has no name";
    const skim::safetensors::tensor* const found = file.find(each.name);
    if (!found || found->name != each.name) return "a tensor is not found by its name";
    if (each.view<2>() && each.shape.size() != 2) return "a view has another rank than its tensor";
    covered += each.bytes;
  }
  volatile unsigned read = sum;  // the reads must happen
  static_cast<void>(read);
  return covered > size ? "the tensors overlap" : "";
}

}  // namespace skim_test
