// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.hpp"

#include "error.hpp"
#include "normal_form.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <deque>
#include <queue>

namespace needle {
namespace {

/// Bytes of the character at `at`; of what is no UTF-8 as many as could be one.
std::size_t length_of_character(std::string_view text, std::size_t at) {
  const unsigned char first = static_cast<unsigned char>(text[at]);
  const std::size_t most = first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  std::size_t length = 1;
  while (length < most && at + length < text.size() && (text[at + length] & 0xc0) == 0x80) ++length;
  return length;
}

}  // namespace

struct tokenizer::patterns {
  std::vector<std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)>> compiled;

  explicit patterns(const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      int code = 0;
      PCRE2_SIZE at = 0;
      compiled.emplace_back(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                          PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &code, &at, nullptr),
                            pcre2_code_free);
      if (!compiled.back()) throw error("a pattern of words cannot be compiled");
      std::uint32_t nothing = 0;
      pcre2_pattern_info(compiled.back().get(), PCRE2_INFO_MATCHEMPTY, &nothing);
      if (nothing) throw error("a pattern of words matches where there is nothing");
      pcre2_jit_compile(compiled.back().get(), PCRE2_JIT_COMPLETE);  // where it can
    }
  }

  std::vector<std::string_view> split(std::string_view text) const {
    std::vector<std::string_view> words = {text};
    for (const auto& pattern : compiled) {
      std::vector<std::string_view> finer;
      for (const std::string_view word : words) split(word, *pattern, finer);
      words = std::move(finer);
    }
    return words;
  }

 private:
  static void split(std::string_view text, const pcre2_code& pattern, std::vector<std::string_view>& out) {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> found(
        pcre2_match_data_create_from_pattern(&pattern, nullptr), pcre2_match_data_free);
    std::size_t at = 0;
    while (at < text.size()) {
      const int matched =
          pcre2_match(&pattern, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, 0, found.get(), nullptr);
      if (matched < PCRE2_ERROR_NOMATCH) throw error("a pattern of words finds no end in this text");
      const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(found.get());
      if (matched < 0 || range[1] <= at) break;
      if (range[0] > at) out.push_back(text.substr(at, range[0] - at));
      out.push_back(text.substr(range[0], range[1] - range[0]));
      at = range[1];
    }
    if (at < text.size()) out.push_back(text.substr(at));
  }
};

tokenizer::tokenizer(token_table given) : given_(std::move(given)), words_(new patterns(given_.words)) {
  for (std::size_t i = 0; i < given_.pieces.size(); ++i) {
    if (given_.kinds[i] == piece_kind::text) tokens_.emplace(given_.pieces[i], static_cast<std::int32_t>(i));
  }
  for (std::size_t i = 0; i < given_.merges.size(); ++i)
    merges_.emplace(std::move(given_.merges[i]), static_cast<std::int32_t>(i));
  given_.merges.clear();
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto code = static_cast<unsigned char>(byte);
    const auto at = tokens_.find(given_.byte_level ? character_of_byte(code) : name_of_byte(code));
    bytes_[byte] = at != tokens_.end() ? at->second : -1;
  }
  whole_ = make_finder(given_.whole);
  whole_later_ = make_finder(given_.whole_later);
}

tokenizer tokenizer::read(const std::filesystem::path& directory) {
  const vocabulary_files files = read_vocabulary_files(directory);
  try {
    return tokenizer(parse_vocabulary(files));
  } catch (const error& problem) {
    throw error(directory.string() + ": " + problem.what());
  }
}

tokenizer::tokenizer(tokenizer&&) noexcept = default;
tokenizer::~tokenizer() = default;

std::int32_t tokenizer::named(std::string_view piece) const {
  const auto at = std::find(given_.pieces.begin(), given_.pieces.end(), piece);
  return at == given_.pieces.end() ? -1 : static_cast<std::int32_t>(at - given_.pieces.begin());
}

tokenizer::finder tokenizer::make_finder(const std::vector<std::int32_t>& tokens) const {
  finder made;
  for (const std::int32_t token : tokens) made[static_cast<unsigned char>(piece(token)[0])].push_back(token);
  for (std::vector<std::int32_t>& each : made) {
    std::stable_sort(each.begin(), each.end(),
                     [&](std::int32_t a, std::int32_t b) { return piece(a).size() > piece(b).size(); });
  }
  return made;
}

/// From left to right, at each place the longest.
std::vector<tokenizer::part> tokenizer::find_whole(const std::vector<part>& parts, const finder& tokens) const {
  std::vector<part> finer;
  for (const part& each : parts) {
    std::size_t from = 0;
    const auto rest = [&](std::size_t to) {
      if (to > from) finer.push_back({each.text.substr(from, to - from), -1, each.first && from == 0});
    };
    for (std::size_t at = 0; each.token < 0 && at < each.text.size();) {
      const std::vector<std::int32_t>& likely = tokens[static_cast<unsigned char>(each.text[at])];
      const auto found = std::find_if(likely.begin(), likely.end(), [&](std::int32_t token) {
        return each.text.compare(at, piece(token).size(), piece(token)) == 0;
      });
      if (found == likely.end()) {
        ++at;
        continue;
      }
      rest(at);
      finer.push_back({each.text.substr(at, piece(*found).size()), *found, false});
      from = at += piece(*found).size();
    }
    if (each.token >= 0) {
      finer.push_back(each);
    } else {
      rest(each.text.size());
    }
  }
  return finer;
}

std::vector<std::int32_t> tokenizer::encode(std::string_view text) const {
  std::vector<part> parts = find_whole({{text, -1, true}}, whole_);
  std::deque<std::string> normal;  // what the parts are of from here on
  for (part& each : parts) {
    if (given_.normal_form && each.token < 0) each.text = normal.emplace_back(normal_form(each.text));
  }
  std::vector<std::int32_t> out;
  for (const part& each : find_whole(parts, whole_later_)) {
    if (each.token >= 0) {
      out.push_back(each.token);
    } else if (given_.byte_level) {
      encode_words(each.text, out);
    } else {
      encode_sentence(each, out);
    }
  }
  return out;
}

double tokenizer::merge_rank(const std::string& left, const std::string& right) const {
  const auto at = merges_.find(left + " " + right);
  return at != merges_.end() ? at->second : -1.0;
}

void tokenizer::encode_words(std::string_view text, std::vector<std::int32_t>& out) const {
  const pair_rank early = [this](const auto& left, const auto& right) { return merge_rank(left, right); };
  for (const std::string_view word : words_->split(text)) {
    std::string known;
    bool all = true;
    for (const char c : word) {
      const std::int32_t token = bytes_[static_cast<unsigned char>(c)];
      all = all && token >= 0;
      if (token >= 0) known += piece(token);
    }
    const auto whole = tokens_.find(known);
    if (given_.whole_words && all && whole != tokens_.end()) {
      out.push_back(whole->second);
    } else {
      join(known, early, out);
    }
  }
}

void tokenizer::encode_sentence(const part& given, std::vector<std::int32_t>& out) const {
  const pair_rank early = [this](const auto& left, const auto& right) { return merge_rank(left, right); };
  const pair_rank likely = [this](const std::string& left, const std::string& right) -> double {
    const auto at = tokens_.find(left + right);
    constexpr double above_all = 1e9;  // scores are logarithms, or ranks with a minus
    return at != tokens_.end() ? above_all - static_cast<double>(given_.scores[static_cast<std::size_t>(at->second)])
                               : -1.0;
  };
  const pair_rank& rank = given_.scores.empty() ? early : likely;
  std::string shown;
  for (const char c : given.text) {
    if (c == ' ') {
      shown += metaspace;
    } else {
      shown += c;
    }
  }
  const bool missing = shown.compare(0, metaspace.size(), metaspace) != 0;
  if (given_.space == space_rule::always || (given_.space == space_rule::missing && missing) ||
      (given_.space == space_rule::first_missing && missing && given.first))
    shown.insert(0, metaspace);
  for (std::size_t from = 0; from < shown.size();) {
    const std::size_t to = given_.split_at_spaces ? shown.find(metaspace, from + 1) : shown.npos;
    join(std::string_view(shown).substr(from, to - from), rank, out);
    from = std::min(to, shown.size());
  }
}

/// Characters, joined two by two: of all neighbours the pair that ranks lowest, of equal ones the first, until none ranks.
void tokenizer::join(std::string_view word, const pair_rank& rank, std::vector<std::int32_t>& out) const {
  struct symbol {
    std::string text;
    std::int64_t before, behind;
  };
  struct pair {
    double rank;
    std::int64_t left, right;
    std::size_t bytes;  // of both: else one has been joined since
    bool operator>(const pair& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::vector<symbol> symbols;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t bytes = length_of_character(word, at);
    const std::int64_t index = static_cast<std::int64_t>(symbols.size());
    symbols.push_back({std::string(word.substr(at, bytes)), index - 1, index + 1});
    at += bytes;
  }
  if (symbols.empty()) return;
  symbols.back().behind = -1;
  const auto at = [&](std::int64_t i) -> symbol& { return symbols[static_cast<std::size_t>(i)]; };
  std::priority_queue<pair, std::vector<pair>, std::greater<>> pairs;
  const auto offer = [&](std::int64_t left, std::int64_t right) {
    if (left < 0 || right < 0) return;
    const double found = rank(at(left).text, at(right).text);
    if (found >= 0) pairs.push({found, left, right, at(left).text.size() + at(right).text.size()});
  };
  for (std::int64_t i = 0; i + 1 < static_cast<std::int64_t>(symbols.size()); ++i) offer(i, i + 1);
  while (!pairs.empty()) {
    const pair next = pairs.top();
    pairs.pop();
    symbol &left = at(next.left), &right = at(next.right);
    if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != next.bytes) continue;
    left.text += right.text;
    right.text.clear();
    left.behind = right.behind;
    if (right.behind >= 0) at(right.behind).before = next.left;
    offer(left.before, next.left);
    offer(next.left, left.behind);
  }
  for (std::int64_t i = 0; i >= 0; i = at(i).behind) append_piece(at(i).text, out);
}

void tokenizer::append_piece(const std::string& piece, std::vector<std::int32_t>& out) const {
  if (const auto known = tokens_.find(piece); known != tokens_.end()) {
    out.push_back(known->second);
    return;
  }
  if (given_.byte_level) {  // merges of what is no token
    for (std::size_t at = 0; at < piece.size(); at += length_of_character(piece, at)) {
      const auto known = tokens_.find(piece.substr(at, length_of_character(piece, at)));
      if (known != tokens_.end()) out.push_back(known->second);
    }
    return;
  }
  for (const char c : piece) {
    const std::int32_t token = bytes_[static_cast<unsigned char>(c)];
    if (token >= 0) out.push_back(token);
  }
}

std::string tokenizer::decode(const std::vector<std::int32_t>& tokens) const {
  static const std::unordered_map<std::string, char> bytes = [] {
    std::unordered_map<std::string, char> made;
    for (int byte = 0; byte < 256; ++byte)
      made.emplace(character_of_byte(static_cast<unsigned char>(byte)), static_cast<char>(byte));
    return made;
  }();
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= size() || kind(token) == piece_kind::special) continue;
    const std::string& shown = piece(token);
    if (!given_.byte_level) {
      const auto byte = std::find(bytes_.begin(), bytes_.end(), token);
      if (byte != bytes_.end()) {
        text += static_cast<char>(byte - bytes_.begin());
        continue;
      }
      for (std::size_t at = 0; at < shown.size(); ++at) {
        if (shown.compare(at, metaspace.size(), metaspace) == 0) {
          text += ' ';
          at += metaspace.size() - 1;
        } else {
          text += shown[at];
        }
      }
      continue;
    }
    for (std::size_t at = 0; at < shown.size();) {
      const std::string character = shown.substr(at, length_of_character(shown, at));
      const auto byte = bytes.find(character);
      if (byte != bytes.end() && kind(token) == piece_kind::text) {
        text += byte->second;
      } else {
        text += character;
      }
      at += character.size();
    }
  }
  if (given_.space != space_rule::never && !text.empty() && text[0] == ' ') text.erase(0, 1);
  return text;
}

}  // namespace needle
