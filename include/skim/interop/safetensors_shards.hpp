// SPDX-License-Identifier: Apache-2.0
/// \file A checkpoint of several safetensors files: `model.safetensors.index.json` says in which file each tensor is. A
/// checkpoint of one file reads the same way. Files are mapped, so that a model's weights take memory when they are looked at.
///
/// The index is JSON with a map `"weight_map"` of tensors' names to files' names, which lie beside it; what else it has is not
/// looked at. Nothing is trusted: names of files must be plain, every tensor must be in the file that the index names. Nothing
/// throws but std::bad_alloc; what is wrong is told by `error()`, one line of printable ASCII that names the file.
#pragma once

#include <skim/interop/safetensors.hpp>

#include <fstream>
#include <sstream>

namespace skim { inline namespace v0_2 { namespace safetensors {

/// The longest index that is read, and the most files that one may name.
inline constexpr std::uintmax_t longest_index = 100'000'000;
inline constexpr std::size_t most_shards = 4096;

namespace detail {

/// Takes the map out of an index, event by event.
class index_events : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::map<std::string, std::string, std::less<>> files;  // of tensors, by name
  std::string error;
  bool has_map = false;

  bool key(std::string& text) override {
    key_ = text;
    return depth_ != 2 || !in_map_ || files.count(text) == 0 || fail("two entries are named " + printable_name(text));
  }
  bool start_object(std::size_t) override {
    if (++depth_ > deepest) return fail("nests too deeply");
    if (depth_ == 2 && key_ == "weight_map") {
      if (has_map) return fail("there are two entries 'weight_map'");
      has_map = in_map_ = true;
    } else if (in_map_) {
      return unexpected();
    }
    return true;
  }
  bool end_object() override {
    if (depth_-- == 2) in_map_ = false;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ == 0) return fail("not a JSON object");
    return in_map_ ? unexpected() : ++depth_ <= deepest || fail("nests too deeply");
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool string(std::string& text) override {
    if (!in_map_) return other();
    const bool plain = !text.empty() && text.size() <= 255 && text != "." && text != ".." &&
                       text.find_first_of(std::string("/\\:\0", 4)) == std::string::npos;
    if (!plain)
      return fail(printable_name(key_) + " is in " + printable_name(text) + ", expected the plain name of a file");
    return files.emplace(key_, text).second;
  }
  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(std::int64_t) override { return other(); }
  bool number_unsigned(std::uint64_t) override { return other(); }
  bool number_float(double, const std::string&) override { return other(); }
  bool binary(nlohmann::json::binary_t&) override { return other(); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    return fail("not valid JSON at its byte " + std::to_string(at));
  }

 private:
  static constexpr int deepest = 16;

  bool fail(std::string text) {
    error = std::move(text);
    return false;
  }
  bool unexpected() { return fail(printable_name(key_) + " is not the name of a file"); }
  bool other() {
    if (depth_ == 0) return fail("not a JSON object");
    return !in_map_ || unexpected();
  }

  std::string key_;
  int depth_ = 0;
  bool in_map_ = false;
};

}  // namespace detail

/// A checkpoint's tensors, or what is wrong with it.
class checkpoint {
 public:
  /// `path`: a safetensors file, an index, or a directory with `model.safetensors` or `model.safetensors.index.json`.
  static checkpoint read(const std::filesystem::path& path) {
    checkpoint result;
    std::error_code code;
    std::filesystem::path& at = result.path_ = path;
    if (std::filesystem::is_directory(path, code)) {
      at = path / "model.safetensors";
      if (!std::filesystem::exists(at, code)) at = path / "model.safetensors.index.json";
      if (!std::filesystem::exists(at, code)) {
        result.refuse(path, "has neither model.safetensors nor model.safetensors.index.json");
        return result;
      }
    }
    if (at.extension() == ".json") {
      result.read_index(at);
    } else if (result.add(at)) {
      for (const tensor& each : result.files_.front().tensors()) result.tensors_.emplace(each.name, &each);
    }
    return result;
  }

  bool ok() const { return error_.empty(); }
  const std::string& error() const { return error_; }
  /// The file, or the index.
  const std::filesystem::path& path() const { return path_; }

  /// By name; empty unless `ok`. They live as long as the checkpoint, also where that is moved to.
  const std::map<std::string_view, const tensor*>& tensors() const { return tensors_; }
  /// Null if there is none of that name.
  const tensor* find(std::string_view name) const {
    const auto at = tensors_.find(name);
    return at != tensors_.end() ? at->second : nullptr;
  }

 private:
  bool refuse(const std::filesystem::path& path, const std::string& text) {
    std::string shown;
    for (const char c : path.string()) shown += c >= ' ' && c <= '~' ? c : '?';
    error_ = shown + ": " + text;
    tensors_.clear();
    files_.clear();
    return false;
  }

  bool add(const std::filesystem::path& path) {
    files_.push_back(file::read(path));
    return files_.back().ok() || refuse(path, std::string(files_.back().error()));
  }

  bool read_index(const std::filesystem::path& path) {
    std::error_code code;
    if (!std::filesystem::is_regular_file(path, code)) return refuse(path, "no such file");
    if (std::filesystem::file_size(path, code) > longest_index) return refuse(path, "the index is longer than is read");
    std::ifstream stream(path, std::ios::binary);
    std::ostringstream text;
    text << stream.rdbuf();
    if (!stream.good()) return refuse(path, "cannot be read");
    detail::index_events events;
    const std::string json = text.str();
    // What the parser lets pass: it skips a byte order mark and blanks, and takes a zero byte for the end.
    if (json.empty() || json[0] != '{') return refuse(path, "not a JSON object: it does not begin with '{'");
    if (json.find('\0') != std::string::npos) return refuse(path, "not valid JSON: it has a zero byte");
    if (!nlohmann::json::sax_parse(json.begin(), json.end(), &events)) return refuse(path, events.error);
    if (!events.has_map) return refuse(path, "there is no map 'weight_map'");
    std::map<std::string_view, std::size_t> places;
    for (const auto& [name, file_name] : events.files) {
      if (!places.emplace(file_name, places.size()).second) continue;
      if (places.size() > most_shards) return refuse(path, "names more files than " + std::to_string(most_shards));
    }
    std::vector<std::string_view> names(places.size());
    for (const auto& [file_name, place] : places) names[place] = file_name;
    for (const std::string_view each : names) {
      if (!add(path.parent_path() / each)) return false;
    }
    for (const auto& [name, file_name] : events.files) {
      const tensor* const found = files_[places[file_name]].find(name);
      if (!found)
        return refuse(path.parent_path() / file_name,
                      "there is no tensor " + printable_name(name) + ", which the index has there");
      tensors_.emplace(found->name, found);
    }
    return true;
  }

  std::filesystem::path path_;
  std::string error_;
  std::vector<file> files_;
  std::map<std::string_view, const tensor*> tensors_;
};

}}}  // namespace skim::v0_2::safetensors
