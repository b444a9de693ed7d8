// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.hpp"

#include "error.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <queue>

namespace needle {
namespace {

constexpr std::string_view metaspace = "\xe2\x96\x81";  // SentencePiece's space

/// Bytes of the character at `at`; of what is no UTF-8 as many as could be one.
std::size_t length_of_character(std::string_view text, std::size_t at) {
  const unsigned char first = static_cast<unsigned char>(text[at]);
  const std::size_t most = first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  std::size_t length = 1;
  while (length < most && at + length < text.size() && (text[at + length] & 0xc0) == 0x80) ++length;
  return length;
}

/// The character that stands for a byte in byte-level vocabularies: itself where it can be seen, else one from 256 on.
const std::array<std::string, 256>& characters_of_bytes() {
  static const std::array<std::string, 256> all = [] {
    std::array<std::string, 256> made;
    int hidden = 0;
    for (int byte = 0; byte < 256; ++byte) {
      const bool seen = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const int code = seen ? byte : 256 + hidden++;
      std::string& text = made[static_cast<std::size_t>(byte)];
      if (code < 0x80) {
        text += static_cast<char>(code);
      } else {
        text += static_cast<char>(0xc0 | code >> 6);
        text += static_cast<char>(0x80 | (code & 63));
      }
    }
    return made;
  }();
  return all;
}

/// How the models that are known split text into words, by their name in the file: each pattern splits what the ones before
/// it left whole; what lies between matches is a word too.
struct word_rule {
  const char* name;
  std::vector<std::string> patterns;
  bool whole_words;
};
const std::vector<word_rule>& word_rules() {
  static const char* const gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
  // Both after contractions and letters; they differ in how many digits are a word.
  static const std::string letters =
      R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)";
  static const std::string rest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::vector<word_rule> rules = {{"gpt-2", {gpt2}, false},
                                               {"smollm", {R"(\p{N})", gpt2}, false},
                                               {"llama-bpe", {letters + R"(\p{N}{1,3})" + rest}, true},
                                               {"qwen2", {letters + R"(\p{N})" + rest}, false}};
  return rules;
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
    while (at < text.size() && pcre2_match(&pattern, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, 0,
                                           found.get(), nullptr) > 0) {
      const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(found.get());
      if (range[1] <= at) break;
      if (range[0] > at) out.push_back(text.substr(at, range[0] - at));
      out.push_back(text.substr(range[0], range[1] - range[0]));
      at = range[1];
    }
    if (at < text.size()) out.push_back(text.substr(at));
  }
};

tokenizer::tokenizer(const skim::gguf::file& file) : bytes_(256, -1) {
  const auto kind = file.text("tokenizer.ggml.model");
  const auto pieces = file.texts("tokenizer.ggml.tokens");
  if (!kind || !pieces) throw error("the model has no vocabulary");
  pieces_.assign(pieces->begin(), pieces->end());
  special_.assign(pieces_.size(), 0);
  if (const auto types = file.numbers("tokenizer.ggml.token_type")) {
    if (types->size() != pieces_.size()) throw error("the vocabulary has another number of tokens than of their types");
    constexpr double unknown = 2, control = 3, whole = 4;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      special_[i] = (*types)[i] == unknown || (*types)[i] == control;
      if ((*types)[i] == whole && !pieces_[i].empty()) whole_.push_back(static_cast<std::int32_t>(i));
    }
    std::stable_sort(whole_.begin(), whole_.end(), [&](std::int32_t a, std::int32_t b) {
      return pieces_[static_cast<std::size_t>(a)].size() > pieces_[static_cast<std::size_t>(b)].size();
    });
  }
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (!special_[i]) tokens_.emplace(pieces_[i], static_cast<std::int32_t>(i));
  }
  if (*kind == "gpt2") {
    const std::string_view name = file.text("tokenizer.ggml.pre").value_or("");
    const auto rule = std::find_if(word_rules().begin(), word_rules().end(),
                                   [&](const word_rule& each) { return name == each.name; });
    if (rule == word_rules().end())
      throw error("words '" + std::string(name) + "' are not known, expected gpt-2, smollm, llama-bpe or qwen2");
    const auto merges = file.texts("tokenizer.ggml.merges");
    if (!merges) throw error("the vocabulary has no merges");
    for (std::size_t i = 0; i < merges->size(); ++i) merges_.emplace((*merges)[i], static_cast<std::int32_t>(i));
    words_ = std::make_unique<patterns>(rule->patterns);
    whole_words_ = rule->whole_words;
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const auto at = tokens_.find(characters_of_bytes()[byte]);
      if (at != tokens_.end()) bytes_[byte] = at->second;
    }
  } else if (*kind == "llama") {
    const auto scores = file.numbers("tokenizer.ggml.scores");
    if (!scores || scores->size() != pieces_.size()) throw error("the vocabulary has no scores");
    scores_.assign(scores->begin(), scores->end());
    space_before_ = file.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
    for (std::size_t byte = 0; byte < 256; ++byte) {
      constexpr char digits[] = "0123456789ABCDEF";
      const auto at = tokens_.find(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
      if (at != tokens_.end()) bytes_[byte] = at->second;
    }
  } else {
    throw error("vocabularies of kind '" + std::string(*kind) + "' are not known, expected gpt2 or llama");
  }
  const auto token = [&](const char* name) {
    const std::int64_t id = file.integer(name).value_or(-1);
    return id >= 0 && id < size() ? static_cast<std::int32_t>(id) : -1;
  };
  if (file.boolean("tokenizer.ggml.add_bos_token").value_or(!words_ || whole_words_))
    begin_ = token("tokenizer.ggml.bos_token_id");
  end_ = token("tokenizer.ggml.eos_token_id");
}

tokenizer::tokenizer(tokenizer&&) noexcept = default;
tokenizer::~tokenizer() = default;

std::int32_t tokenizer::named(std::string_view piece) const {
  const auto at = std::find(pieces_.begin(), pieces_.end(), piece);
  return at == pieces_.end() ? -1 : static_cast<std::int32_t>(at - pieces_.begin());
}

std::vector<std::int32_t> tokenizer::encode(std::string_view text) const {
  struct part {
    std::string_view text;
    std::int32_t token;  // or -1: text between them
  };
  std::vector<part> parts = {{text, -1}};
  for (const std::int32_t token : whole_) {
    const std::string& piece = pieces_[static_cast<std::size_t>(token)];
    if (text.find(piece) == std::string_view::npos) continue;
    std::vector<part> finer;
    for (const part& each : parts) {
      std::string_view rest = each.text;
      for (std::size_t at; each.token < 0 && (at = rest.find(piece)) != std::string_view::npos;) {
        if (at > 0) finer.push_back({rest.substr(0, at), -1});
        finer.push_back({rest.substr(at, piece.size()), token});
        rest.remove_prefix(at + piece.size());
      }
      if (!rest.empty()) finer.push_back({rest, each.token});
    }
    parts = std::move(finer);
  }
  std::vector<std::int32_t> out;
  for (const part& each : parts) {
    if (each.token >= 0) {
      out.push_back(each.token);
    } else if (words_) {
      encode_words(each.text, out);
    } else {
      encode_sentence(each.text, out);
    }
  }
  return out;
}

void tokenizer::encode_words(std::string_view text, std::vector<std::int32_t>& out) const {
  const pair_rank early = [this](const std::string& left, const std::string& right) -> double {
    const auto at = merges_.find(left + " " + right);
    return at != merges_.end() ? at->second : -1.0;
  };
  for (const std::string_view word : words_->split(text)) {
    std::string shown;
    for (const char c : word) shown += characters_of_bytes()[static_cast<unsigned char>(c)];
    const auto whole = tokens_.find(shown);
    if (whole_words_ && whole != tokens_.end()) {
      out.push_back(whole->second);
    } else {
      join(shown, early, out);
    }
  }
}

void tokenizer::encode_sentence(std::string_view text, std::vector<std::int32_t>& out) const {
  const pair_rank likely = [this](const std::string& left, const std::string& right) -> double {
    const auto at = tokens_.find(left + right);
    constexpr double above_all = 1e9;  // scores are logarithms, or ranks with a minus
    return at != tokens_.end() ? above_all - static_cast<double>(scores_[static_cast<std::size_t>(at->second)]) : -1.0;
  };
  std::string shown;
  if (space_before_ && !text.empty()) shown = metaspace;
  for (const char c : text) {
    if (c == ' ') {
      shown += metaspace;
    } else {
      shown += c;
    }
  }
  join(shown, likely, out);
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
  if (words_) {  // a byte's character; what has no token is left out
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
    for (std::size_t byte = 0; byte < 256; ++byte) made.emplace(characters_of_bytes()[byte], static_cast<char>(byte));
    return made;
  }();
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= size() || special_[static_cast<std::size_t>(token)]) continue;
    const std::string& piece = pieces_[static_cast<std::size_t>(token)];
    if (!words_) {
      const auto byte = std::find(bytes_.begin(), bytes_.end(), token);
      if (byte != bytes_.end()) {
        text += static_cast<char>(byte - bytes_.begin());
        continue;
      }
      for (std::size_t at = 0; at < piece.size(); ++at) {
        if (piece.compare(at, metaspace.size(), metaspace) == 0) {
          text += ' ';
          at += metaspace.size() - 1;
        } else {
          text += piece[at];
        }
      }
      continue;
    }
    for (std::size_t at = 0; at < piece.size();) {
      const std::string character = piece.substr(at, length_of_character(piece, at));
      const auto byte = bytes.find(character);
      if (byte != bytes.end()) {
        text += byte->second;
      } else {
        text += character;
      }
      at += character.size();
    }
  }
  if (!words_ && space_before_ && !text.empty() && text[0] == ' ') text.erase(0, 1);
  return text;
}

}  // namespace needle
