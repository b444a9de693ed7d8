// SPDX-License-Identifier: Apache-2.0
/// \file A real model reads a text and goes on with it, by several methods.
#pragma once

#include "chat.hpp"
#include "engine.hpp"

#include <iosfwd>
#include <string>
#include <vector>

namespace needle {

struct reading_settings {
  std::string text;
  std::string question;           ///< comes behind the text
  bool hide_fact = false;         ///< and ask for it, instead of the question
  std::optional<chat_form> chat;  ///< of a question; none: the model goes on with the text itself
  std::int64_t seed = 0;          ///< of the fact: where in the text, and which
  std::int64_t tokens = 4096;     ///< of text and question
  std::int64_t chunk = 128;
  std::int64_t generate = 32;  ///< tokens of the answer
  skim::element kv_type = skim::element::bf16;
};

struct reading_result {
  std::string method;
  std::int64_t answer_tokens = 0;
  double nll = 0;           ///< mean negative log-likelihood of the text's last quarter, in nats
  std::int64_t judged = 0;  ///< its tokens
  double first_token_ms = 0, ms_per_token = 0;
  double keys_read = 0;  ///< past keys, mean per block of rows, layer and KV head
};

/// Each method in turn; the fact and answers are written to `out` as they come. Throws `error`.
std::vector<reading_result> read_and_answer(const model& weights, const tokenizer& words,
                                            const std::vector<method>& methods, const reading_settings& settings,
                                            const executor& threads, std::ostream& out);

/// Perplexity, times and keys read of each; the first is what others are compared with.
void print_readings(std::ostream& out, const std::vector<reading_result>& results);

}  // namespace needle
