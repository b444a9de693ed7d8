// SPDX-License-Identifier: Apache-2.0
#include "word_pattern.hpp"

#include "error.hpp"
#include "json_text.hpp"

#include <algorithm>
#include <unordered_set>

namespace needle {
namespace {

constexpr std::size_t longest_pattern = 10'000;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

/// What a backslash only makes a character of its own.
bool is_sign(char c) {
  return std::string_view("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ").find(c) != std::string_view::npos;
}

class pattern_reader {
 public:
  explicit pattern_reader(std::string_view given) : given_(given) {}

  std::string read() {
    if (given_.size() > longest_pattern) throw error("a pattern of words is longer than is read");
    while (at_ < given_.size()) {
      const char c = given_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        in_class();
      } else if (c == '[') {
        in_class_ = true;
        take(next(1) == '^' ? 2 : 1);
        if (next(0) == ']') refuse(1);
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        count();
      } else if (c == '.' || c == '^' || c == '$') {
        refuse(1);
      } else {
        take(1);
      }
    }
    return read_;
  }

 private:
  static constexpr const char* blanks = R"(\t-\r\x{85}\p{Z})";

  char next(std::size_t ahead) const { return at_ + ahead < given_.size() ? given_[at_ + ahead] : '\0'; }
  bool starts(std::string_view with) const { return given_.compare(at_, with.size(), with) == 0; }
  void take(std::size_t count) {
    read_ += given_.substr(at_, count);
    at_ += std::min(count, given_.size() - at_);
  }
  void replace(std::size_t count, const std::string& by) {
    read_ += by;
    at_ += count;
  }
  [[noreturn]] void refuse(std::size_t count) const {
    throw error(
        "pre_tokenizer's pattern has " + shown(std::string(given_.substr(at_, count))) +
        ", expected general categories such as \\p{L}, \\s, \\d, \\r, \\n and \\t, characters and classes of them, "
        "(?:, (?i:, (?>, (?=, (?!, (?<= and (?<!, and how often each comes");
  }

  void escape() {
    const char c = next(1);
    if (c == 's' || c == 'S') {
      if (in_class_ && c == 'S') refuse(2);
      replace(2, in_class_ ? blanks : std::string(c == 's' ? "[" : "[^") + blanks + "]");
    } else if (c == 'p' || c == 'P') {
      const std::size_t name = next(2) == '{' ? given_.find('}', at_) : given_.npos;
      // A script's name also finds what several scripts share in one of them only.
      const std::string_view wanted = name != given_.npos ? given_.substr(at_ + 3, name - at_ - 3) : "";
      static const std::unordered_set<std::string_view> known = {
          "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
          "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};
      if (known.count(wanted) == 0) refuse(12);
      take(wanted.size() + 4);
    } else if (std::string_view("dDrnt").find(c) != std::string_view::npos || is_sign(c)) {
      take(2);
    } else {
      refuse(2);
    }
  }

  void in_class() {
    if (next(0) == '[' || starts("&&")) refuse(2);
    in_class_ = next(0) != ']';
    take(1);
  }

  void group() {
    if (next(1) == '*') refuse(2);
    if (next(1) != '?') return take(1);
    for (const std::string_view known : {"(?:", "(?i:", "(?>", "(?=", "(?!", "(?<=", "(?<!"}) {
      if (starts(known)) return take(known.size());
    }
    refuse(4);
  }

  /// `{2}`, `{2,}` or `{2,3}`; what may stand behind them has several meanings.
  void count() {
    std::size_t end = 1;
    while (is_digit(next(end))) ++end;
    const bool counted = end > 1;
    if (next(end) == ',') ++end;
    while (is_digit(next(end))) ++end;
    if (!counted || next(end) != '}' || next(end + 1) == '+' || next(end + 1) == '?') refuse(end + 2);
    take(end + 1);
  }

  std::string_view given_;
  std::string read_;
  std::size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma) {
  return pattern_reader(oniguruma).read();
}

}  // namespace needle
