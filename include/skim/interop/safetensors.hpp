// SPDX-License-Identifier: Apache-2.0
/// \file A reader of the safetensors format: the file's header, checked, and views of its tensors in host memory.
///
/// A file is an 8-byte little-endian length N, N bytes of JSON, and the data section. The JSON maps each tensor's name to
/// `{"dtype": "BF16", "shape": [m, n], "data_offsets": [begin, end]}` with offsets into the data section, and may hold a
/// string-to-string map `"__metadata__"`.
///
/// The bytes may come from anywhere. Every number is checked before it is used: nothing here reads outside the file,
/// and nothing throws but std::bad_alloc; what is wrong is told by `error()`, one line of printable ASCII. Tensor
/// elements themselves are not looked at. A tensor of a type that this header does not know is listed like any other, with
/// the type's name; it has no `view`. Needs nlohmann-json and a little-endian host.
#pragma once

#include <skim/interop/mapped_file.hpp>
#include <skim/view.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace skim { inline namespace v0_2 { namespace safetensors {

/// An element type, with the format's name for it and the bytes of an element.
struct dtype {
  const char* name = "";         ///< of a type not known here: as the file has it, in memory of the `file`
  std::int64_t bytes = 0;        ///< 0: not known, or no whole number
  element type = element::none;  ///< what skim can compute with
};

/// The types of whole bytes. The format has narrower ones, and gains new ones.
inline constexpr dtype dtypes[] = {{"F32", 4, element::f32},
                                   {"F16", 2, element::f16},
                                   {"BF16", 2, element::bf16},
                                   {"F64", 8},
                                   {"F8_E4M3", 1},
                                   {"F8_E5M2", 1},
                                   {"F8_E8M0", 1},
                                   {"C64", 8},
                                   {"I64", 8},
                                   {"I32", 4},
                                   {"I16", 2},
                                   {"I8", 1},
                                   {"U64", 8},
                                   {"U32", 4},
                                   {"U16", 2},
                                   {"U8", 1},
                                   {"BOOL", 1}};

/// One tensor: contiguous, last extent fastest.
struct tensor {
  std::string name;
  safetensors::dtype dtype;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
  std::size_t bytes = 0;

  /// The tensor as a view; empty unless it has this rank, elements that skim can compute with, and aligned data (which
  /// writers of the format see to, though it does not ask for it).
  template <int Rank>
  std::optional<tensor_view<const void, Rank>> view() const {
    if (shape.size() != static_cast<std::size_t>(Rank) || dtype.type == element::none) return std::nullopt;
    if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(dtype.bytes) != 0) return std::nullopt;
    std::int64_t extents[tensor_view<const void, Rank>::axes];
    std::copy(shape.begin(), shape.end(), extents);
    return tensor_view<const void, Rank>(data, extents, dtype.type);
  }
};

/// The longest header that is read: the format's own limit.
inline constexpr std::uint64_t longest_header = 100'000'000;

namespace detail {

struct entry {
  std::string name;
  safetensors::dtype dtype;
  std::vector<std::uint64_t> shape, offsets;
};

/// Takes the JSON's events one by one, so that a hostile header can neither nest deeply nor hide a repeated field.
/// Every member returns false to stop.
class header_events : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<entry> entries;
  std::map<std::string, std::string, std::less<>> metadata;
  std::set<std::string> unknown_types;
  std::string error;

  bool key(std::string& text) override {
    if (in_ == place::top) {
      name_ = text;
      return true;
    }
    if (in_ == place::metadata) {
      key_ = text;
      return metadata.count(text) == 0 || fail("two entries of '__metadata__' are named " + printable_name(text));
    }
    for (std::size_t i = 0; i < std::size(fields); ++i) {
      if (text != fields[i].name) continue;
      if (seen_[i]) return fail("tensor " + printable_name(name_) + " has two fields " + printable_name(text));
      seen_[i] = true;
      expected_ = fields[i].value;
      return true;
    }
    return fail("tensor " + printable_name(name_) + " has the unknown field " + printable_name(text));
  }

  bool start_object(std::size_t) override {
    if (in_ == place::nowhere) {
      in_ = place::top;
      return true;
    }
    if (in_ != place::top) return unexpected();
    in_ = name_ == "__metadata__" ? place::metadata : place::tensor;
    if (in_ == place::metadata) {
      if (has_metadata_) return fail("two entries are named '__metadata__'");
      has_metadata_ = true;
      return true;
    }
    entries.emplace_back();
    entries.back().name = name_;
    std::fill(std::begin(seen_), std::end(seen_), false);
    return true;
  }

  bool end_object() override {
    if (in_ == place::tensor) {
      for (std::size_t i = 0; i < std::size(fields); ++i) {
        if (!seen_[i]) return fail("tensor " + printable_name(name_) + " has no field '" + fields[i].name + "'");
      }
    }
    in_ = place::top;  // after the outermost object nothing more can come
    return true;
  }

  bool string(std::string& text) override {
    if (in_ == place::metadata) return metadata.emplace(key_, text).second;
    if (in_ != place::tensor || expected_ != place::dtype) return unexpected();
    expected_ = place::nowhere;
    for (const safetensors::dtype& known : dtypes) {
      if (text != known.name) continue;
      entries.back().dtype = known;
      return true;
    }
    entries.back().dtype.name = unknown_types.insert(text).first->c_str();
    return true;
  }

  bool start_array(std::size_t) override {
    if (in_ != place::tensor || (expected_ != place::shape && expected_ != place::offsets)) return unexpected();
    in_ = std::exchange(expected_, place::nowhere);
    return true;
  }

  bool number_unsigned(std::uint64_t number) override {
    if (in_ == place::shape) {
      entries.back().shape.push_back(number);
    } else if (in_ == place::offsets) {
      entries.back().offsets.push_back(number);
    } else {
      return unexpected();
    }
    return true;
  }

  bool end_array() override {
    if (in_ == place::offsets && entries.back().offsets.size() != 2) {
      return fail("tensor " + printable_name(name_) + " needs two data_offsets");
    }
    in_ = place::tensor;
    return true;
  }

  bool null() override { return unexpected(); }
  bool boolean(bool) override { return unexpected(); }
  bool number_integer(std::int64_t) override { return unexpected(); }
  bool number_float(double, const std::string&) override { return unexpected(); }
  bool binary(nlohmann::json::binary_t&) override { return unexpected(); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    return fail("the header is not valid JSON at its byte " + std::to_string(at));
  }

 private:
  enum class place { nowhere, top, metadata, tensor, dtype, shape, offsets };
  struct field {
    const char* name;
    place value;
  };
  static constexpr field fields[] = {
      {"dtype", place::dtype}, {"shape", place::shape}, {"data_offsets", place::offsets}};

  bool fail(std::string text) {
    error = std::move(text);
    return false;
  }
  bool unexpected() {
    if (in_ == place::nowhere) return fail("the header is not a JSON object");
    return fail("the header's entry " + printable_name(name_) + " does not describe a tensor");
  }

  place in_ = place::nowhere, expected_ = place::nowhere;
  std::string name_, key_;
  bool has_metadata_ = false;
  bool seen_[std::size(fields)] = {};
};

}  // namespace detail

/// A file's tensors, or what is wrong with it.
class file {
 public:
  /// Maps a file; the result holds the mapping, and a copy of the data where that is not aligned in the file.
  static file read(const std::filesystem::path& path) {
    file result;
    if (std::string problem = result.mapping_.open(path); !problem.empty()) return result.fail(std::move(problem));
    const std::string_view data = result.parse(result.mapping_.data(), result.mapping_.size());
    if (reinterpret_cast<std::uintptr_t>(data.data()) % sizeof(double) == 0 || !result.ok()) return result;
    result.storage_ = std::unique_ptr<double[]>(new double[data.size() / sizeof(double) + 1]);
    std::memcpy(result.storage_.get(), data.data(), data.size());
    for (tensor& each : result.tensors_) {
      each.data =
          reinterpret_cast<const char*>(result.storage_.get()) + (static_cast<const char*>(each.data) - data.data());
    }
    return result;
  }

  /// Reads from `size` bytes that the caller keeps alive.
  static file view(const void* bytes, std::size_t size) {
    file result;
    result.parse(bytes, size);
    return result;
  }

  bool ok() const { return error_.empty(); }
  /// One line, without the file's name; empty if all is well.
  const std::string& error() const { return error_; }

  /// By name, ascending; empty unless `ok`.
  const std::vector<tensor>& tensors() const { return tensors_; }

  /// An entry of the file's string map; null if there is none of that name.
  const std::string* metadata(std::string_view name) const {
    const auto at = metadata_.find(name);
    return at != metadata_.end() ? &at->second : nullptr;
  }

  /// Null if there is none of that name.
  const tensor* find(std::string_view name) const {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const tensor& each, std::string_view wanted) { return each.name < wanted; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

 private:
  static std::uint64_t number(const unsigned char* bytes) {
    std::uint64_t value = 0;
    for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
    return value;
  }

  file fail(std::string text) {
    error_ = std::move(text);
    return std::move(*this);
  }

  bool refuse(std::string text) {
    error_ = std::move(text);
    tensors_.clear();
    return false;
  }

  /// Lists the tensors, or says what is wrong; the data section.
  std::string_view parse(const void* bytes, std::size_t size) {
    const std::string_view all(static_cast<const char*>(bytes), size);
    if (size < 8) return refuse("too short for a safetensors file"), all;
    const std::uint64_t header_bytes = number(static_cast<const unsigned char*>(bytes));
    if (!check_lengths(header_bytes, size)) return all;
    const std::string_view header = all.substr(8, static_cast<std::size_t>(header_bytes));
    const std::string_view data = all.substr(8 + header.size());
    if (check_header(header, data.size())) place_tensors(data.data());
    return data;
  }

  bool check_lengths(std::uint64_t header_bytes, std::uint64_t size) {
    if (header_bytes > size - 8) {
      return refuse("the header claims " + std::to_string(header_bytes) + " bytes, the file has " +
                    std::to_string(size - 8) + " behind its first 8");
    }
    if (header_bytes > longest_header) return refuse("the header is longer than the format allows");
    return true;
  }

  /// Fills `tensors_`, with offsets in place of pointers.
  bool check_header(std::string_view header, std::uint64_t data_bytes) {
    // What the parser lets pass: it skips a byte order mark and blanks, and takes a zero byte for the end.
    if (header.empty() || header[0] != '{')
      return refuse("the header is not a JSON object: it does not begin with '{'");
    if (const std::size_t zero = header.find('\0'); zero != header.npos) {
      return refuse("the header is not valid JSON at its byte " + std::to_string(zero + 1) + ", which is zero");
    }
    detail::header_events events;
    if (!nlohmann::json::sax_parse(header.begin(), header.end(), &events)) return refuse(std::move(events.error));
    std::vector<detail::entry>& entries = events.entries;
    if (!check_cover(entries, data_bytes)) return false;
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    for (detail::entry& each : entries) {
      if (!tensors_.empty() && each.name == tensors_.back().name) {
        return refuse("two tensors are named " + printable_name(each.name));
      }
      if (!check_size(each)) return false;
      tensors_.push_back({std::move(each.name), each.dtype, {each.shape.begin(), each.shape.end()}});
      tensors_.back().bytes = static_cast<std::size_t>(each.offsets[1] - each.offsets[0]);
      offsets_.push_back(each.offsets[0]);
    }
    metadata_ = std::move(events.metadata);
    unknown_types_ = std::move(events.unknown_types);
    return true;
  }

  /// Every byte of the data section belongs to exactly one tensor, as the format demands.
  bool check_cover(std::vector<detail::entry>& entries, std::uint64_t data_bytes) {
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.offsets < b.offsets; });
    std::uint64_t end = 0;
    for (const detail::entry& each : entries) {
      const std::uint64_t from = each.offsets[0], to = each.offsets[1];
      if (from > to) return refuse("tensor " + printable_name(each.name) + " ends before it begins");
      if (to > data_bytes) return refuse("tensor " + printable_name(each.name) + " lies outside the file");
      if (from < end) return refuse("tensor " + printable_name(each.name) + " overlaps another");
      if (from > end) return refuse("there is a hole before tensor " + printable_name(each.name));
      end = to;
    }
    if (end != data_bytes) {
      return refuse("the tensors cover " + std::to_string(end) + " bytes of data, the file has " +
                    std::to_string(data_bytes));
    }
    return true;
  }

  bool check_size(const detail::entry& each) {
    std::uint64_t bytes = static_cast<std::uint64_t>(each.dtype.bytes);
    bool fits = true, empty = false;
    for (const std::uint64_t extent : each.shape) {
      if (extent > static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)())) fits = false;
      if (extent == 0) empty = true;
      if (extent > 0 && bytes > (std::numeric_limits<std::uint64_t>::max)() / extent) fits = false;
      bytes *= extent > 0 ? extent : 1;
    }
    if (empty) bytes = 0;
    const bool known = each.dtype.bytes > 0;  // else it has as many bytes as the file says
    if (fits && (!known || bytes == each.offsets[1] - each.offsets[0])) return true;
    return refuse("tensor " + printable_name(each.name) + " has another size than its shape");
  }

  void place_tensors(const void* data) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      tensors_[i].data = static_cast<const char*>(data) + offsets_[i];
    }
    offsets_.clear();
  }

  std::string error_;
  std::vector<tensor> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
  std::set<std::string> unknown_types_;  // whose names the tensors point at: nodes stay where they are
  std::vector<std::uint64_t> offsets_;   // of the tensors, until the data's place is known
  mapped_file mapping_;
  std::unique_ptr<double[]>
      storage_;  // the data where the mapping has it at odd addresses; doubles for their alignment
};

}}}  // namespace skim::v0_2::safetensors
