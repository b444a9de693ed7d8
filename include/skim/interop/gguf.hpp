// SPDX-License-Identifier: Apache-2.0
/// \file A reader of GGUF, the format of ggml's models: what a file says of itself, checked, and its tensors in memory.
///
/// A file is "GGUF", a version (2 or 3), the numbers of tensors and of pairs, pairs of a name and a typed value, for each
/// tensor its name, extents (fastest first), type and offset, and, aligned to `general.alignment` bytes (32 where that is not
/// said), the tensors' data.
///
/// The bytes may come from anywhere. Every number is checked before it is used: nothing here reads outside the file,
/// and nothing throws but std::bad_alloc; what is wrong is told by `error()`, one line of printable ASCII. Tensor
/// elements themselves are not looked at. A tensor of a type that this header does not know is listed like any other, and
/// has no bytes. Names and texts lie in the file. Needs a little-endian host.
#pragma once

#include <skim/interop/gguf_parts.hpp>
#include <skim/interop/mapped_file.hpp>

#include <map>
#include <string>

namespace skim { inline namespace v0_2 { namespace gguf {

namespace detail {

/// Takes numbers and texts from the front of the file, never from behind its end.
class cursor {
 public:
  explicit cursor(std::string_view bytes) : bytes_(bytes) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }

  template <class Number>
  bool take(Number& number) {
    if (left() < sizeof number) return false;
    number = load<Number>(bytes_.data() + at_);
    at_ += sizeof number;
    return true;
  }
  bool take(std::string_view& text) {
    std::uint64_t length = 0;
    return take(length) && take(text, length);
  }
  bool take(std::string_view& bytes, std::uint64_t count) {
    if (count > left()) return false;
    bytes = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += static_cast<std::size_t>(count);
    return true;
  }

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
};

}  // namespace detail

/// A file's values and tensors, or what is wrong with it.
class file {
 public:
  /// Maps a file; the result holds the mapping.
  static file read(const std::filesystem::path& path) {
    file result;
    if (std::string problem = result.mapping_.open(path); !problem.empty()) {
      result.error_ = std::move(problem);
    } else {
      result.parse({static_cast<const char*>(result.mapping_.data()), result.mapping_.size()});
    }
    return result;
  }

  /// Reads from `size` bytes that the caller keeps alive.
  static file view(const void* bytes, std::size_t size) {
    file result;
    result.parse({static_cast<const char*>(bytes), size});
    return result;
  }

  bool ok() const { return error_.empty(); }
  /// One line, without the file's name; empty if all is well.
  const std::string& error() const { return error_; }

  /// By name, ascending; empty unless `ok`.
  const std::vector<tensor>& tensors() const { return tensors_; }
  /// Null if there is none of that name.
  const tensor* find(std::string_view name) const {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const tensor& each, std::string_view wanted) { return each.name < wanted; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

  /// All that the file says, by name.
  const std::map<std::string_view, value>& values() const { return values_; }
  /// Null if there is none of that name.
  const value* find_value(std::string_view name) const {
    const auto at = values_.find(name);
    return at != values_.end() ? &at->second : nullptr;
  }
  /// A whole number, of any of the format's types; empty where there is none of that name, or it is something else.
  std::optional<std::int64_t> integer(std::string_view name) const {
    const value* const found = find_value(name);
    return found ? integer_of(*found) : std::nullopt;
  }
  /// A number, whole or not.
  std::optional<double> number(std::string_view name) const {
    const value* const found = find_value(name);
    return found ? number_of(*found) : std::nullopt;
  }
  std::optional<bool> boolean(std::string_view name) const { return get<bool>(name); }
  std::optional<std::string_view> text(std::string_view name) const { return get<std::string_view>(name); }
  /// A list of texts.
  std::optional<std::vector<std::string_view>> texts(std::string_view name) const {
    const std::optional<array> list = get<array>(name);
    if (!list || list->type != text_type) return std::nullopt;
    std::vector<std::string_view> found(static_cast<std::size_t>(list->count));
    detail::cursor from(list->bytes);
    for (std::string_view& each : found) from.take(each);  // `parse` has been there
    return found;
  }
  /// A list of numbers or of truth values, which are 0 and 1.
  std::optional<std::vector<double>> numbers(std::string_view name) const {
    const std::optional<array> list = get<array>(name);
    if (!list || list->type == text_type) return std::nullopt;
    std::vector<double> found;
    const std::size_t bytes = detail::number_bytes[list->type];
    for (std::size_t i = 0; i < list->count; ++i) {
      const value each = detail::number_at(list->type, list->bytes.data() + i * bytes);
      const bool* const flag = std::get_if<bool>(&each);
      found.push_back(flag ? (*flag ? 1 : 0) : *number_of(each));
    }
    return found;
  }

 private:
  template <class Kind>
  std::optional<Kind> get(std::string_view name) const {
    const value* const found = find_value(name);
    const Kind* const kind = found ? std::get_if<Kind>(found) : nullptr;
    return kind ? std::optional<Kind>(*kind) : std::nullopt;
  }
  static std::optional<std::int64_t> integer_of(const value& of) {
    if (const auto* const number = std::get_if<std::int64_t>(&of)) return *number;
    const auto* const number = std::get_if<std::uint64_t>(&of);
    if (number && *number <= static_cast<std::uint64_t>(largest)) return static_cast<std::int64_t>(*number);
    return std::nullopt;
  }
  static std::optional<double> number_of(const value& of) {
    if (const auto* const number = std::get_if<double>(&of)) return *number;
    if (const auto* const number = std::get_if<std::int64_t>(&of)) return static_cast<double>(*number);
    if (const auto* const number = std::get_if<std::uint64_t>(&of)) return static_cast<double>(*number);
    return std::nullopt;
  }

  bool refuse(std::string text) {
    error_ = std::move(text);
    tensors_.clear();
    values_.clear();
    return false;
  }
  bool ends() { return refuse("the file ends in the middle of its header"); }

  bool parse(std::string_view bytes) {
    detail::cursor from(bytes);
    std::string_view magic;
    std::uint32_t version = 0;
    std::uint64_t tensors = 0, values = 0;
    if (!from.take(magic, 4) || magic != "GGUF") return refuse("not a GGUF file: it does not begin with 'GGUF'");
    if (!from.take(version)) return ends();
    if (version != 2 && version != 3) {
      return refuse("GGUF version " + std::to_string(version) + ", expected 2 or 3 in little-endian");
    }
    if (!from.take(tensors) || !from.take(values)) return ends();
    constexpr std::size_t least_value = 8 + 4 + 1, least_tensor = 8 + 4 + 8 + 4 + 8;
    if (tensors > from.left() / least_tensor || values > from.left() / least_value) {
      return refuse("the header claims " + std::to_string(tensors) + " tensors and " + std::to_string(values) +
                    " values, more than the file has room for");
    }
    for (std::uint64_t i = 0; i < values; ++i) {
      if (!take_value(from)) return false;
    }
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t i = 0; i < tensors; ++i) {
      if (!take_tensor(from, offsets)) return false;
    }
    return place_tensors(bytes, from.at(), offsets);
  }

  bool take_value(detail::cursor& from) {
    std::string_view name, bytes;
    std::uint32_t type = 0;
    if (!from.take(name) || !from.take(type)) return ends();
    value read;
    if (type == text_type) {
      if (!from.take(bytes)) return ends();
      read = bytes;
    } else if (type == array_type) {
      array list;
      if (!from.take(list.type) || !from.take(list.count)) return ends();
      if (list.type >= std::size(detail::number_bytes) || list.type == array_type) {
        return refuse("value " + printable_name(name) + " is a list of type " + std::to_string(list.type) +
                      ", expected one of numbers or texts");
      }
      if (!take_elements(from, list)) return ends();
      read = list;
    } else if (type < std::size(detail::number_bytes)) {
      if (!from.take(bytes, detail::number_bytes[type])) return ends();
      read = detail::number_at(type, bytes.data());
    } else {
      return refuse("value " + printable_name(name) + " has type " + std::to_string(type) + ", expected 0 to 12");
    }
    return values_.emplace(name, read).second || refuse("two values are named " + printable_name(name));
  }

  static bool take_elements(detail::cursor& from, array& list) {
    const std::size_t each = detail::number_bytes[list.type];
    if (each > 0) return list.count <= from.left() / each && from.take(list.bytes, list.count * each);
    detail::cursor ahead = from;
    std::string_view text;
    for (std::uint64_t i = 0; i < list.count; ++i) {
      if (!ahead.take(text)) return false;
    }
    return from.take(list.bytes, ahead.at() - from.at());
  }

  bool take_tensor(detail::cursor& from, std::vector<std::uint64_t>& offsets) {
    tensor read;
    std::uint32_t axes = 0;
    std::uint64_t offset = 0;
    if (!from.take(read.name) || !from.take(axes)) return ends();
    if (axes < 1 || axes > 4) {
      return refuse("tensor " + printable_name(read.name) + " has " + std::to_string(axes) +
                    " extents, expected 1 to 4");
    }
    std::int64_t values = 1;
    for (std::uint32_t axis = 0; axis < axes; ++axis) {
      std::uint64_t extent = 0;
      if (!from.take(extent)) return ends();
      if (extent > static_cast<std::uint64_t>(largest) ||
          (extent > 0 && values > largest / static_cast<std::int64_t>(extent))) {
        return refuse("tensor " + printable_name(read.name) + " is larger than memory");
      }
      read.shape.push_back(static_cast<std::int64_t>(extent));
      values *= read.shape.back();
    }
    std::reverse(read.shape.begin(), read.shape.end());
    if (!from.take(read.type) || !from.take(offset)) return ends();
    for (const gguf::format& known : formats) {
      if (known.id == read.type) read.format = &known;
    }
    if (read.format) {
      const gguf::format& of = *read.format;
      if (read.shape.back() % of.block_values != 0) {
        return refuse("tensor " + printable_name(read.name) + " has rows of " + std::to_string(read.shape.back()) +
                      " values, expected a multiple of " + std::to_string(of.block_values));
      }
      if (values / of.block_values > largest / of.block_bytes) {
        return refuse("tensor " + printable_name(read.name) + " is larger than memory");
      }
      read.bytes = static_cast<std::size_t>(values / of.block_values * of.block_bytes);
    }
    offsets.push_back(offset);
    tensors_.push_back(std::move(read));
    return true;
  }

  bool place_tensors(std::string_view bytes, std::size_t header, const std::vector<std::uint64_t>& offsets) {
    std::uint64_t alignment = 32;
    if (const value* const given = find_value("general.alignment")) {
      const std::optional<std::int64_t> number = integer_of(*given);
      if (!number || *number < 1 || *number > 1 << 20 || (*number & (*number - 1)) != 0) {
        return refuse("general.alignment is no power of two up to 2^20");
      }
      alignment = static_cast<std::uint64_t>(*number);
    }
    const std::uint64_t data = (header + alignment - 1) / alignment * alignment;
    const std::uint64_t room = bytes.size() > data ? bytes.size() - data : 0;
    std::vector<std::pair<std::uint64_t, std::size_t>> order;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      tensor& each = tensors_[i];
      if (offsets[i] % alignment != 0) {
        return refuse("tensor " + printable_name(each.name) + " is not aligned to " + std::to_string(alignment) +
                      " bytes");
      }
      if (offsets[i] > room || each.bytes > room - offsets[i]) {
        return refuse("tensor " + printable_name(each.name) + " lies outside the file");
      }
      each.data = bytes.data() + (each.bytes > 0 ? data + offsets[i] : 0);
      order.emplace_back(offsets[i], i);
    }
    std::sort(order.begin(), order.end());
    std::uint64_t end = 0;
    for (const auto& [offset, i] : order) {
      if (tensors_[i].bytes == 0) continue;
      if (offset < end) return refuse("tensor " + printable_name(tensors_[i].name) + " overlaps another");
      end = offset + tensors_[i].bytes;
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const tensor& a, const tensor& b) { return a.name < b.name; });
    for (std::size_t i = 1; i < tensors_.size(); ++i) {
      if (tensors_[i].name == tensors_[i - 1].name) {
        return refuse("two tensors are named " + printable_name(tensors_[i].name));
      }
    }
    return true;
  }

  static constexpr std::int64_t largest = (std::int64_t{1} << 62);

  mapped_file mapping_;
  std::string error_;
  std::vector<tensor> tensors_;
  std::map<std::string_view, value> values_;
};

}}}  // namespace skim::v0_2::gguf
