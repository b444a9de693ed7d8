// SPDX-License-Identifier: Apache-2.0
#include "json_text.hpp"

#include "error.hpp"

#include <fstream>
#include <sstream>

namespace needle {

using nlohmann::json;

std::string read_text(const std::filesystem::path& path, std::uintmax_t longest) {
  std::error_code code;
  std::ifstream stream(path, std::ios::binary);
  if (!std::filesystem::is_regular_file(path, code) || !stream) throw error(path.string() + ": cannot be opened");
  if (std::filesystem::file_size(path, code) > longest)
    throw error(path.string() + ": has more than the " + std::to_string(longest) + " bytes that are read");
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream.good()) throw error(path.string() + ": cannot be read");
  return text.str();
}

json parse_object(const std::string& text, const std::string& name) {
  constexpr int deepest = 16;  // real files have six levels
  const auto shallow = [&](int depth, json::parse_event_t, const json&) {
    if (depth > deepest) throw error(name + ": nests deeper than " + std::to_string(deepest) + " levels");
    return true;
  };
  json parsed = json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!parsed.is_object()) throw error(name + ": not a JSON object");
  return parsed;
}

std::string shown(const json& value) {
  constexpr std::size_t longest = 60;
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

const json& field(const json& object, const char* name) {
  static const json none;
  const auto at = object.find(name);
  return object.is_object() && at != object.end() ? *at : none;
}

}  // namespace needle
