// SPDX-License-Identifier: Apache-2.0
/// \file The example engine's prompts of real text with facts hidden in it, in llama.cpp's tokens.
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

/// `length` tokens of needle/prose.hpp's prompts: `index` chooses the place in the text. Throws `needle::error`.
prompt make_prompt(const llama_vocab* vocab, const tokens& text, int length, int index);

}  // namespace prefill
