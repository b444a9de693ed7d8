// SPDX-License-Identifier: Apache-2.0
/// \file What must hold for any bytes given to the GGUF reader; used by the mutation test and the fuzzer.
#pragma once

#include "support/reader_error.hpp"

#include <skim/interop/gguf_blocks.hpp>

#include <string>
#include <vector>

namespace skim_test {

/// An empty string, or what does not hold. Reads every byte of every tensor, so that AddressSanitizer sees strays.
inline std::string broken_gguf_invariant(const void* bytes, std::size_t size) {
  namespace gguf = skim::gguf;
  const gguf::file file = gguf::file::view(bytes, size);
  if (!file.ok()) {
    if (!file.tensors().empty() || !file.values().empty()) return "a refused file has something in it";
    return broken_error(file.error());
  }
  const char* const begin = static_cast<const char*>(bytes);
  std::size_t covered = 0;
  unsigned sum = 0;
  float number = 0;
  for (const gguf::tensor& each : file.tensors()) {
    const char* const data = static_cast<const char*>(each.data);
    if (data < begin || each.bytes > size || data > begin + size - each.bytes) return "a tensor lies outside";
    for (std::size_t i = 0; i < each.bytes; ++i) sum += static_cast<unsigned char>(data[i]);
    std::int64_t values = 1;  // extents from the last on, as in the file: behind one of 0 others may be of any size
    for (auto extent = each.shape.rbegin(); extent != each.shape.rend(); ++extent) values *= *extent;
    if (each.format &&
        static_cast<std::size_t>(values / each.format->block_values * each.format->block_bytes) != each.bytes)
      return "a tensor's size is not its shape's";
    if (!each.format && each.bytes > 0) return "a type that is not known has bytes";
    const gguf::tensor* const found = file.find(each.name);
    if (!found || found->name != each.name) return "a tensor is not found by its name";
    if (each.view<2>() && each.shape.size() != 2) return "a view has another rank than its tensor";
    covered += each.bytes;
    if (values == 0 || !gguf::can_widen(each)) continue;
    const std::int64_t columns = each.shape.back();
    std::vector<float> row(static_cast<std::size_t>(columns));
    for (std::int64_t r = 0; r < values / columns; ++r) {
      gguf::widen_rows(each, r, 1, row.data());
      for (const float x : row) number += x;
    }
  }
  for (const auto& [name, held] : file.values()) {
    sum += static_cast<unsigned>(name.size());
    if (const auto texts = file.texts(name)) {
      for (const std::string_view text : *texts) {
        for (const char c : text) sum += static_cast<unsigned char>(c);
      }
    }
    if (const auto numbers = file.numbers(name)) sum += static_cast<unsigned>(numbers->size());
    if (const auto text = file.text(name)) sum += static_cast<unsigned>(text->size());
    if (file.integer(name) && !file.number(name)) return "a whole number is no number";
    if (held.index() > 5) return "a value of no kind";
  }
  volatile unsigned read = sum;  // the reads must happen
  volatile float widened = number;
  static_cast<void>(read), static_cast<void>(widened);
  return covered > size ? "the tensors overlap" : "";
}

}  // namespace skim_test
