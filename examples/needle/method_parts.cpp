// SPDX-License-Identifier: Apache-2.0
#include "method_parts.hpp"

#include "error.hpp"

#include <algorithm>
#include <cstdlib>

namespace needle {

std::string joined(const names& list) {
  std::string text;
  for (const std::string& name : list) text += (text.empty() ? "" : ", ") + name;
  return text;
}

names split(const std::string& text, char separator) {
  names pieces;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(separator, begin);
    pieces.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return pieces;
    begin = end + 1;
  }
}

parameters::parameters(const std::string& part, const std::string* pairs, const names& valid) : part_(part) {
  if (!pairs) return;
  for (const std::string& pair : split(*pairs, ',')) {
    const std::size_t equals = pair.find('=');
    const std::string key = pair.substr(0, equals);
    if (equals == std::string::npos) complain("expected key=value, got '" + pair + "'");
    if (std::find(valid.begin(), valid.end(), key) == valid.end()) {
      complain("there is no '" + key +
               (valid.empty() ? "', it takes no parameters" : "', valid are: " + joined(valid)));
    }
    if (!values_.emplace(key, pair.substr(equals + 1)).second) complain(key + " is given twice");
  }
}

std::string parameters::choice(const std::string& key, const names& valid) const {
  const std::string text = get(key, valid.front());
  for (const std::string& name : valid) {
    if (text == name) return text;
  }
  complain(key + " is '" + text + "', valid are: " + joined(valid));
}

std::int64_t parameters::count(const std::string& key, std::int64_t least, std::int64_t otherwise) const {
  return number(key, get(key, std::to_string(otherwise)), least);
}

std::set<std::int64_t> parameters::counts(const std::string& key) const {
  std::set<std::int64_t> numbers;
  if (!has(key)) return numbers;
  for (const std::string& each : split(get(key, ""), '/')) numbers.insert(number(key, each, 0));
  return numbers;
}

std::int64_t parameters::number(const std::string& key, const std::string& text, std::int64_t least) const {
  constexpr std::int64_t most = 1'000'000'000;
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || text[0] < '0' || text[0] > '9' || value < least || value > most) {
    complain(key + " is '" + text + "', valid are whole numbers from " + std::to_string(least) + " to " +
             std::to_string(most));
  }
  return value;
}

std::int64_t parameters::odd_count(const std::string& key, std::int64_t otherwise) const {
  const std::int64_t value = count(key, 1, otherwise);
  if (value % 2 == 0) complain(key + " is '" + std::to_string(value) + "', valid are odd whole numbers");
  return value;
}

double parameters::fraction(const std::string& key, const char* otherwise) const {
  const std::string text = get(key, otherwise);
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const bool begins = text[0] == '.' || (text[0] >= '0' && text[0] <= '9');  // strtod skips blanks and line breaks
  if (!begins || *end != '\0' || !(number > 0 && number <= 1)) {
    complain(key + " is '" + text + "', valid are numbers above 0 and at most 1");
  }
  return number;
}

void parameters::refuse(const std::string& key, const std::string& reason) const {
  if (has(key)) complain(key + " " + reason);
}

void parameters::check(const skim::report& answer) const {
  char text[200];
  if (!answer) complain(skim::describe(answer, text, sizeof text));
}

void parameters::complain(const std::string& problem) const {
  throw error("method " + part_ + ": " + problem);
}

std::string parameters::get(const std::string& key, const std::string& otherwise) const {
  const auto at = values_.find(key);
  return at == values_.end() ? otherwise : at->second;
}

}  // namespace needle
