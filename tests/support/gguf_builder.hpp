// SPDX-License-Identifier: Apache-2.0
/// \file GGUF files for tests.
#pragma once

#include <skim/interop/gguf.hpp>

#include <string>
#include <vector>

namespace skim_test {

/// A file put together by hand.
struct gguf_builder {
  std::string bytes;

  template <class Number>
  gguf_builder& add(Number number) {
    bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
    return *this;
  }
  gguf_builder& text(const std::string& text) {
    add(std::uint64_t{text.size()});
    bytes += text;
    return *this;
  }
  gguf_builder& head(std::uint64_t tensors, std::uint64_t values, std::uint32_t version = 3) {
    bytes += "GGUF";
    return add(version).add(tensors).add(values);
  }
  gguf_builder& texts(const std::string& name, const std::vector<std::string>& list) {
    text(name).add(std::uint32_t{9}).add(std::uint32_t{8}).add(std::uint64_t{list.size()});
    for (const std::string& each : list) text(each);
    return *this;
  }
  gguf_builder& numbers(const std::string& name, const std::vector<float>& list) {
    text(name).add(std::uint32_t{9}).add(std::uint32_t{6}).add(std::uint64_t{list.size()});
    for (const float each : list) add(each);
    return *this;
  }
  gguf_builder& number(const std::string& name, std::uint32_t value) {
    return text(name).add(std::uint32_t{4}).add(value);
  }
  gguf_builder& tensor(const std::string& name, const std::vector<std::uint64_t>& extents, std::uint32_t type,
                       std::uint64_t offset) {
    text(name).add(static_cast<std::uint32_t>(extents.size()));
    for (const std::uint64_t extent : extents) add(extent);
    return add(type).add(offset);
  }
  gguf_builder& data(std::size_t count, std::size_t alignment = 32) {
    while (bytes.size() % alignment != 0) bytes += '\0';
    for (std::size_t i = 0; i < count; ++i) bytes += static_cast<char>(i);
    return *this;
  }
  skim::gguf::file view() const { return skim::gguf::file::view(bytes.data(), bytes.size()); }
};

}  // namespace skim_test
