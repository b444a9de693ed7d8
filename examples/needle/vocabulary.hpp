// SPDX-License-Identifier: Apache-2.0
/// \file What a model's files say of its vocabulary: a GGUF file, or Hugging Face's `tokenizer.json` and the files beside it.
#pragma once

#include <skim/interop/gguf.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

enum class piece_kind : char {
  text,     ///< what pieces are joined to
  special,  ///< no text
  added     ///< found in a text as it stands, never joined
};

/// Where a SentencePiece vocabulary puts a space before a text that is not empty.
enum class space_rule : char {
  never,
  always,
  missing,       ///< where the text does not begin with one
  first_missing  ///< so, but not behind a token that was found whole
};

/// Byte-level BPE, or SentencePiece-style BPE.
struct token_table {
  std::vector<std::string> pieces;  ///< of each token
  std::vector<piece_kind> kinds;    ///< of each token
  /// Tokens that are found before anything else: the first ones in the text as it is, the others in what is left.
  std::vector<std::int32_t> whole, whole_later;
  bool normal_form = false;  ///< a text is brought into Unicode's form NFC
  bool byte_level = false;
  /// Byte-level: how text falls into words. Each pattern splits what the ones before it left whole; what lies between its
  /// matches is a word too. In PCRE2's notation.
  std::vector<std::string> words;
  bool whole_words = false;         ///< byte-level: a word that is a token is that token
  std::vector<std::string> merges;  ///< "left right", the earliest first
  std::vector<float> scores;        ///< SentencePiece without merges: of each token
  space_rule space = space_rule::never;
  bool split_at_spaces = false;  ///< SentencePiece: words are joined one by one, each with the space before it
  std::int32_t begin = -1, end = -1;
};

inline constexpr std::string_view metaspace = "\xe2\x96\x81";  ///< SentencePiece's space

/// GPT-2's words, by which those are split that name no others.
inline constexpr const char* gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";

/// The character that stands for a byte in byte-level vocabularies: itself where it can be seen, else one from 256 on.
std::string character_of_byte(unsigned char byte);
/// The name of a byte's token in SentencePiece vocabularies.
std::string name_of_byte(unsigned char byte);

/// Throws `error` where the file has no vocabulary, or one of another kind.
token_table read_vocabulary(const skim::gguf::file& file);

/// The texts of a model directory's files; empty: there is none.
struct vocabulary_files {
  std::string tokenizer, tokenizer_config, generation_config, config;
};

/// Reads `tokenizer.json`, and the others where they are there; throws `error`.
vocabulary_files read_vocabulary_files(const std::filesystem::path& directory);

/// Of the type BPE, byte-level or with a token for each byte. Throws `error` on everything of which the tokens would be others
/// than those of the program that the files are made for.
token_table parse_vocabulary(const vocabulary_files& files);

/// The template for conversations that a model's directory holds; empty: none.
std::string read_chat_template(const std::filesystem::path& directory);

}  // namespace needle
