// SPDX-License-Identifier: Apache-2.0
/// \file Text as a model's tokens, and back: byte-level BPE and SentencePiece-style vocabularies.
#pragma once

#include "vocabulary.hpp"

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace needle {

/// Names of special tokens in a text are text like any other. Bytes for which a vocabulary has no token are left out.
class tokenizer {
 public:
  /// Throws `error` where a pattern of words cannot be compiled, or could match nothing at all.
  explicit tokenizer(token_table given);
  /// Throws `error` where the file has no vocabulary, or one of another kind.
  explicit tokenizer(const skim::gguf::file& file) : tokenizer(read_vocabulary(file)) {}
  /// Of a model's directory with a `tokenizer.json`, as Hugging Face has it; an error names the directory.
  static tokenizer read(const std::filesystem::path& directory);
  tokenizer(tokenizer&&) noexcept;
  ~tokenizer();

  /// Without the token that begins a text. Throws `error` where a pattern finds no end.
  std::vector<std::int32_t> encode(std::string_view text) const;
  /// Bytes, which need not be UTF-8; special tokens are left out. A SentencePiece vocabulary has one sign for its own space
  /// and for U+2581.
  std::string decode(const std::vector<std::int32_t>& tokens) const;

  /// The token that begins a text, -1 where the model wants none.
  std::int32_t begin() const { return given_.begin; }
  /// The token that ends one, -1 where there is none.
  std::int32_t end() const { return given_.end; }
  /// The token of that name, a special one too; -1 where there is none.
  std::int32_t named(std::string_view piece) const;
  std::int64_t size() const { return static_cast<std::int64_t>(given_.pieces.size()); }

 private:
  struct patterns;
  /// Of a text: a token that was found whole, or -1 and what is to be joined.
  struct part {
    std::string_view text;
    std::int32_t token;
    bool first;
  };
  /// Tokens by their first byte, the longest first.
  using finder = std::array<std::vector<std::int32_t>, 256>;
  finder make_finder(const std::vector<std::int32_t>& tokens) const;
  std::vector<part> find_whole(const std::vector<part>& parts, const finder& tokens) const;

  /// How early two pieces that stand side by side are joined: the lowest first; negative: never.
  using pair_rank = std::function<double(const std::string& left, const std::string& right)>;
  double merge_rank(const std::string& left, const std::string& right) const;
  void encode_words(std::string_view text, std::vector<std::int32_t>& out) const;
  void encode_sentence(const part& given, std::vector<std::int32_t>& out) const;
  void join(std::string_view word, const pair_rank& rank, std::vector<std::int32_t>& out) const;
  void append_piece(const std::string& piece, std::vector<std::int32_t>& out) const;
  const std::string& piece(std::int32_t token) const { return given_.pieces[static_cast<std::size_t>(token)]; }
  piece_kind kind(std::int32_t token) const { return given_.kinds[static_cast<std::size_t>(token)]; }

  token_table given_;  // without its merges
  finder whole_, whole_later_;
  std::unordered_map<std::string, std::int32_t> tokens_;  // what pieces are joined to
  std::unordered_map<std::string, std::int32_t> merges_;  // "left right" -> how early
  std::array<std::int32_t, 256> bytes_;                   // the token of each byte, or -1
  std::unique_ptr<patterns> words_;
};

}  // namespace needle
