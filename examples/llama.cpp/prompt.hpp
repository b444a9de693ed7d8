// SPDX-License-Identifier: Apache-2.0
/// \file Prompts of real text with facts hidden in it, which are asked for at the end.
#pragma once

#include <llama.h>

#include <string>
#include <vector>

namespace prefill {

using tokens = std::vector<llama_token>;

tokens tokenised(const llama_vocab* vocab, const std::string& text, bool begins);

struct prompt {
  tokens text;
  std::vector<int> prose;    ///< places in the second half whose token the text itself goes on with
  std::vector<int> answers;  ///< places whose token is part of an answer
};

inline constexpr int facts = 8;

/// `length` tokens: prose from a place that `index` chooses, eight sentences between its own that say a secret number, and
/// all eight asked for, in another order and with the answers given. Throws std::invalid_argument where the text is short.
prompt make_prompt(const llama_vocab* vocab, const tokens& text, int length, int index);

}  // namespace prefill
