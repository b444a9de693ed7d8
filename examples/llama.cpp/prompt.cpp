// SPDX-License-Identifier: Apache-2.0
#include "prompt.hpp"

#include "../needle/prose.hpp"

#include <stdexcept>

namespace prefill {

tokens tokenised(const llama_vocab* vocab, const std::string& text, bool begins) {
  tokens found(text.size() + 2);
  const int n = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), found.data(),
                               static_cast<int>(found.size()), begins, false);
  if (n < 0) throw std::invalid_argument("the text cannot be tokenised");
  found.resize(static_cast<std::size_t>(n));
  return found;
}

prompt make_prompt(const llama_vocab* vocab, const tokens& text, int length, int index) {
  const needle::prose from{text, tokenised(vocab, "", true),
                           [vocab](const std::string& more) { return tokenised(vocab, more, false); },
                           [vocab](llama_token token) {
                             char piece[64];
                             const int n = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
                             return std::string(piece, static_cast<std::size_t>(n > 0 ? n : 0));
                           }};
  needle::prompt made = needle::make_prompt(from, {length, facts, facts}, 0.5, index);
  prompt asked;
  for (std::size_t i = 0; i < made.tokens.size(); ++i) {
    if (made.roles[i] == needle::role::text) asked.prose.push_back(static_cast<int>(i));
    if (made.roles[i] == needle::role::answer) asked.answers.push_back(static_cast<int>(i));
  }
  asked.text = std::move(made.tokens);
  return asked;
}

}  // namespace prefill
