// SPDX-License-Identifier: Apache-2.0
/// \file JSON from files that nobody vouches for.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <string>

namespace needle {

/// The bytes of a file; throws `error`, also where there are more than `longest`.
std::string read_text(const std::filesystem::path& path, std::uintmax_t longest);

/// Throws `error`, which begins with `name`, where the text is no JSON object or nests deeply.
nlohmann::json parse_object(const std::string& text, const std::string& name);

/// A value as part of a one-line message.
std::string shown(const nlohmann::json& value);

/// An object's field; null where it is missing or there is no object.
const nlohmann::json& field(const nlohmann::json& object, const char* name);

}  // namespace needle
