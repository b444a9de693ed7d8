// SPDX-License-Identifier: Apache-2.0
#include "normal_form.hpp"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <new>

namespace needle {
namespace {

const utf8proc_uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

/// Bytes from the front that are UTF-8.
std::size_t characters_in(std::string_view text) {
  std::size_t at = 0;
  for (utf8proc_int32_t character = 0; at < text.size();) {
    const utf8proc_ssize_t bytes =
        utf8proc_iterate(bytes_of(text.substr(at)), static_cast<utf8proc_ssize_t>(text.size() - at), &character);
    if (bytes < 1 || character < 0) break;
    at += static_cast<std::size_t>(bytes);
  }
  return at;
}

void append(std::string& to, std::string_view characters) {
  utf8proc_uint8_t* made = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const utf8proc_ssize_t bytes =
      utf8proc_map(bytes_of(characters), static_cast<utf8proc_ssize_t>(characters.size()), &made, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(made, std::free);
  if (bytes < 0) throw std::bad_alloc();  // all of them are UTF-8: nothing else can fail
  to.append(reinterpret_cast<const char*>(made), static_cast<std::size_t>(bytes));
}

}  // namespace

std::string normal_form(std::string_view text) {
  std::string made;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t characters = characters_in(rest);
    if (characters > 0) append(made, rest.substr(0, characters));
    rest.remove_prefix(characters);
    if (rest.empty()) break;
    made += rest.front();
    rest.remove_prefix(1);
  }
  return made;
}

}  // namespace needle
