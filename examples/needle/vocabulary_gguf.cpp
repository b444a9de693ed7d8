// SPDX-License-Identifier: Apache-2.0
#include "error.hpp"
#include "vocabulary.hpp"

#include <algorithm>

namespace needle {
namespace {

/// How the models that are known split text into words, by their name in the file.
struct word_rule {
  const char* name;
  std::vector<std::string> patterns;
  bool whole_words;
};
const std::vector<word_rule>& word_rules() {
  // Both after contractions and letters; they differ in how many digits are a word.
  static const std::string letters =
      R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)";
  static const std::string rest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::vector<word_rule> rules = {{"gpt-2", {gpt2_words}, false},
                                               {"smollm", {R"(\p{N})", gpt2_words}, false},
                                               {"llama-bpe", {letters + R"(\p{N}{1,3})" + rest}, true},
                                               {"qwen2", {letters + R"(\p{N})" + rest}, false}};
  return rules;
}

void read_kinds(const skim::gguf::file& file, token_table& read) {
  read.kinds.assign(read.pieces.size(), piece_kind::text);
  const auto types = file.numbers("tokenizer.ggml.token_type");
  if (!types) return;
  if (types->size() != read.pieces.size())
    throw error("the vocabulary has another number of tokens than of their types");
  constexpr double unknown = 2, control = 3, whole = 4;
  for (std::size_t i = 0; i < read.pieces.size(); ++i) {
    if ((*types)[i] == unknown || (*types)[i] == control) read.kinds[i] = piece_kind::special;
    if ((*types)[i] == whole && !read.pieces[i].empty()) read.whole.push_back(static_cast<std::int32_t>(i));
  }
}

}  // namespace

token_table read_vocabulary(const skim::gguf::file& file) {
  const auto kind = file.text("tokenizer.ggml.model");
  const auto pieces = file.texts("tokenizer.ggml.tokens");
  if (!kind || !pieces) throw error("the model has no vocabulary");
  token_table read;
  read.pieces.assign(pieces->begin(), pieces->end());
  read_kinds(file, read);
  if (*kind == "gpt2") {
    const std::string_view name = file.text("tokenizer.ggml.pre").value_or("");
    const auto rule = std::find_if(word_rules().begin(), word_rules().end(),
                                   [&](const word_rule& each) { return name == each.name; });
    if (rule == word_rules().end())
      throw error("words '" + std::string(name) + "' are not known, expected gpt-2, smollm, llama-bpe or qwen2");
    const auto merges = file.texts("tokenizer.ggml.merges");
    if (!merges) throw error("the vocabulary has no merges");
    read.byte_level = true;
    read.merges.assign(merges->begin(), merges->end());
    read.words = rule->patterns;
    read.whole_words = rule->whole_words;
  } else if (*kind == "llama") {
    const auto scores = file.numbers("tokenizer.ggml.scores");
    if (!scores || scores->size() != read.pieces.size()) throw error("the vocabulary has no scores");
    read.scores.assign(scores->begin(), scores->end());
    if (file.boolean("tokenizer.ggml.add_space_prefix").value_or(true)) read.space = space_rule::always;
  } else {
    throw error("vocabularies of kind '" + std::string(*kind) + "' are not known, expected gpt2 or llama");
  }
  const auto token = [&](const char* name) {
    const std::int64_t id = file.integer(name).value_or(-1);
    return id >= 0 && id < static_cast<std::int64_t>(read.pieces.size()) ? static_cast<std::int32_t>(id) : -1;
  };
  if (file.boolean("tokenizer.ggml.add_bos_token").value_or(!read.byte_level || read.whole_words))
    read.begin = token("tokenizer.ggml.bos_token_id");
  read.end = token("tokenizer.ggml.eos_token_id");
  return read;
}

}  // namespace needle
