// SPDX-License-Identifier: Apache-2.0
#include "normal_form.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <unordered_map>
#include <utility>
#include <vector>

namespace needle {
namespace {

#include "normal_form_table.inc"

/// A lone byte is a number from here on, so that it comes out as it went in.
constexpr char32_t no_character = 0x110000;

std::vector<char32_t> characters_of(std::string_view text) {
  std::vector<char32_t> all;
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = [&](std::size_t ahead) -> char32_t {
      return at + ahead < text.size() ? static_cast<unsigned char>(text[at + ahead]) : 0u;
    };
    const char32_t first = byte(0);
    const std::size_t length = first < 0x80   ? 1
                               : first < 0xc2 ? 0
                               : first < 0xe0 ? 2
                               : first < 0xf0 ? 3
                               : first < 0xf5 ? 4
                                              : 0;
    char32_t code = length < 2 ? first : first & (0x7fu >> length);
    bool whole = length > 0;
    for (std::size_t i = 1; i < length; ++i) {
      whole = whole && (byte(i) & 0xc0) == 0x80;
      code = code << 6 | (byte(i) & 0x3f);
    }
    // No longer than need be, no half of a pair and none above the last.
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    whole = whole && code >= least[length] && (code < 0xd800 || code > 0xdfff) && code < no_character;
    all.push_back(whole ? code : no_character + first);
    at += whole ? length : 1;
  }
  return all;
}

std::string text_of(const std::vector<char32_t>& all) {
  std::string text;
  for (const char32_t code : all) {
    const auto add = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
    const auto rest = [&](int bits) { add(0x80 | (code >> bits & 0x3f)); };
    if (code < 0x80 || code >= no_character) {
      add(code & 0xff);
    } else if (code < 0x800) {
      add(0xc0 | code >> 6), rest(0);
    } else if (code < 0x10000) {
      add(0xe0 | code >> 12), rest(6), rest(0);
    } else {
      add(0xf0 | code >> 18), rest(12), rest(6), rest(0);
    }
  }
  return text;
}

/// Korean syllables are not in the table: they are counted through.
constexpr char32_t syllables = 0xac00, leads = 0x1100, vowels = 0x1161, tails = 0x11a7;
constexpr char32_t lead_count = 19, vowel_count = 21, tail_count = 28;

class table {
 public:
  table() {
    read(parts_of_characters, [this](const char32_t* numbers, std::size_t count) {
      const char32_t second = count > 2 ? numbers[2] : 0;
      apart_.emplace(numbers[0], std::pair(numbers[1], second));
      if (count == 3) joined_.emplace(pair_key(numbers[1], second), numbers[0]);
    });
    read(orders_of_marks, [this](const char32_t* numbers, std::size_t) {
      for (char32_t code = numbers[0]; code <= numbers[1]; ++code) orders_.emplace(code, static_cast<int>(numbers[2]));
    });
  }

  /// Appends what a character consists of.
  void take_apart(char32_t code, std::vector<char32_t>& out) const {
    if (code >= syllables && code < syllables + lead_count * vowel_count * tail_count) {
      const char32_t place = code - syllables, tail = place % tail_count;
      out.push_back(leads + place / tail_count / vowel_count);
      out.push_back(vowels + place / tail_count % vowel_count);
      if (tail > 0) out.push_back(tails + tail);
      return;
    }
    const auto at = apart_.find(code);
    if (at == apart_.end()) return out.push_back(code);
    take_apart(at->second.first, out);
    if (at->second.second != 0) out.push_back(at->second.second);  // which consists of nothing else
  }

  /// The one character that stands for the two, or 0.
  char32_t joined(char32_t left, char32_t right) const {
    if (left >= leads && left < leads + lead_count && right >= vowels && right < vowels + vowel_count)
      return syllables + ((left - leads) * vowel_count + (right - vowels)) * tail_count;
    if (left >= syllables && left < syllables + lead_count * vowel_count * tail_count &&
        (left - syllables) % tail_count == 0 && right > tails && right < tails + tail_count)
      return left + (right - tails);
    const auto at = joined_.find(pair_key(left, right));
    return at != joined_.end() ? at->second : 0;
  }

  /// The class by which marks behind a character are put in order; 0: none of these.
  int order(char32_t code) const {
    const auto at = orders_.find(code);
    return at != orders_.end() ? at->second : 0;
  }

 private:
  static std::uint64_t pair_key(char32_t left, char32_t right) { return std::uint64_t{left} << 32 | right; }

  /// Gives each row's numbers, four at most.
  template <class Row>
  static void read(const char* at, const Row& row) {
    char32_t numbers[4];
    for (std::size_t count = 0; *at != '\0';) {
      char* end = nullptr;
      numbers[count++] = static_cast<char32_t>(std::strtoul(at, &end, 16));
      at = end;
      if (*at != ',') continue;
      row(numbers, std::exchange(count, 0));
      at += 2;  // and a blank
    }
  }

  std::unordered_map<char32_t, std::pair<char32_t, char32_t>> apart_;
  std::unordered_map<std::uint64_t, char32_t> joined_;
  std::unordered_map<char32_t, int> orders_;
};

}  // namespace

std::string normal_form(std::string_view text) {
  // What lies below U+0300 is in this form.
  if (std::none_of(text.begin(), text.end(), [](unsigned char byte) { return byte >= 0xcc; })) return std::string(text);
  static const table known;
  std::vector<char32_t> apart;
  for (const char32_t code : characters_of(text)) known.take_apart(code, apart);
  const auto is_mark = [&](char32_t code) { return known.order(code) > 0; };
  for (auto at = apart.begin(); at != apart.end();) {
    const auto begin = std::find_if(at, apart.end(), is_mark);
    at = std::find_if_not(begin, apart.end(), is_mark);
    std::stable_sort(begin, at, [&](char32_t a, char32_t b) { return known.order(a) < known.order(b); });
  }
  std::vector<char32_t> joined;
  std::size_t base = 0;  // the last character that is no mark
  int before = 0;        // the order of the last one that was kept
  for (const char32_t code : apart) {
    const int order = known.order(code);
    const bool adjacent = base + 1 == joined.size();
    if (!joined.empty() && known.order(joined[base]) == 0 && (adjacent || before < order)) {
      if (const char32_t one = known.joined(joined[base], code); one != 0) {
        joined[base] = one;
        continue;
      }
    }
    if (order == 0) base = joined.size();
    before = order;
    joined.push_back(code);
  }
  return text_of(joined);
}

}  // namespace needle
