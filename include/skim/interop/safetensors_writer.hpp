// SPDX-License-Identifier: Apache-2.0
/// \file A writer of the safetensors format: the same tensors in the same order give the same bytes. Needs nlohmann-json
/// and a little-endian host.
#pragma once

#include <skim/interop/safetensors.hpp>

namespace skim { inline namespace v0_2 { namespace safetensors {

/// Collects tensors, then makes the file.
class writer {
 public:
  /// Entries of the file's string map.
  std::map<std::string, std::string> metadata;

  /// Adds a tensor; f32 `values`, contiguous, are rounded to `type`. Names must differ.
  void add(std::string name, std::vector<std::int64_t> shape, const std::vector<float>& values, element type) {
    entry added{std::move(name), std::move(shape), type, {}};
    added.data.resize(static_cast<std::size_t>(bytes_of(type, static_cast<std::int64_t>(values.size()))));
    for (std::size_t i = 0; i < values.size(); ++i) {
      store_element(added.data.data(), type, static_cast<std::int64_t>(i), values[i]);
    }
    entries_.push_back(std::move(added));
  }

  /// The whole file. All tensors are aligned: the header is padded to a multiple of 8 bytes, wider elements come first.
  std::string bytes() const {
    nlohmann::json header = nlohmann::json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::string data;
    for (const std::int64_t width : {4, 2}) {
      for (const entry& each : entries_) {
        if (bytes_of(each.type, 1) != width) continue;
        const std::size_t begin = data.size();
        data.append(each.data.begin(), each.data.end());
        header[each.name] = {
            {"dtype", name_of(each.type)}, {"shape", each.shape}, {"data_offsets", {begin, data.size()}}};
      }
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::string file;
    for (int i = 0; i < 8; ++i) file += static_cast<char>(text.size() >> (8 * i) & 0xff);
    return file + text + data;
  }

  /// Writes the file; what is wrong in one line, without the file's name, or nothing.
  std::string write(const std::filesystem::path& path) const {
    std::ofstream stream(path, std::ios::binary);
    const std::string file = bytes();
    stream.write(file.data(), static_cast<std::streamsize>(file.size()));
    stream.close();
    return stream ? "" : "cannot be written";
  }

 private:
  static const char* name_of(element type) {
    for (const safetensors::dtype& each : dtypes) {
      if (each.type == type) return each.name;
    }
    return "";
  }

  struct entry {
    std::string name;
    std::vector<std::int64_t> shape;
    element type;
    std::vector<char> data;
  };

  std::vector<entry> entries_;
};

}}}  // namespace skim::v0_2::safetensors
