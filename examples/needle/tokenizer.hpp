// SPDX-License-Identifier: Apache-2.0
/// \file Text as a model's tokens, and back: byte-level BPE and SentencePiece-style vocabularies, as a GGUF file holds them.
#pragma once

#include <skim/interop/gguf.hpp>

#include <cstdint>
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
  /// Throws `error` where the file has no vocabulary, or one of another kind.
  explicit tokenizer(const skim::gguf::file& file);
  tokenizer(tokenizer&&) noexcept;
  ~tokenizer();

  /// Without the token that begins a text.
  std::vector<std::int32_t> encode(std::string_view text) const;
  /// Bytes, which need not be UTF-8; special tokens are left out. A SentencePiece vocabulary has one sign for its own space
  /// and for U+2581.
  std::string decode(const std::vector<std::int32_t>& tokens) const;

  /// The token that begins a text, -1 where the model wants none.
  std::int32_t begin() const { return begin_; }
  /// The token that ends one, -1 where there is none.
  std::int32_t end() const { return end_; }
  /// The token of that name, a special one too; -1 where there is none.
  std::int32_t named(std::string_view piece) const;
  std::int64_t size() const { return static_cast<std::int64_t>(pieces_.size()); }

 private:
  struct patterns;
  /// How early two pieces that stand side by side are joined: the lowest first; negative: never.
  using pair_rank = std::function<double(const std::string& left, const std::string& right)>;
  void encode_words(std::string_view text, std::vector<std::int32_t>& out) const;
  void encode_sentence(std::string_view text, std::vector<std::int32_t>& out) const;
  void join(std::string_view word, const pair_rank& rank, std::vector<std::int32_t>& out) const;
  void append_piece(const std::string& piece, std::vector<std::int32_t>& out) const;

  std::vector<std::string> pieces_;  // of each token
  std::vector<char> special_;        // no text
  std::vector<std::int32_t> whole_;  // tokens that are found before anything else, the longest first
  std::unordered_map<std::string, std::int32_t> tokens_;
  std::unordered_map<std::string, std::int32_t> merges_;  // byte-level: "left right" -> how early
  std::vector<float> scores_;                             // SentencePiece: of each token
  std::vector<std::int32_t> bytes_;                       // of each byte: the token of that byte, or -1
  std::unique_ptr<patterns> words_;                       // byte-level: how text falls into words; null: SentencePiece
  bool whole_words_ = false;                              // byte-level: a word that is a token is that token
  bool space_before_ = false;                             // SentencePiece: a text begins with a space
  std::int32_t begin_ = -1, end_ = -1;
};

}  // namespace needle
