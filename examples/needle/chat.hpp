// SPDX-License-Identifier: Apache-2.0
/// \file How a model that was trained on conversations has them written down.
#pragma once

#include "tokenizer.hpp"

#include <optional>

namespace needle {

/// A conversation's first turn: `before`, `opening` and the user's words as one text, `after`; the model goes on from there
/// and ends with `end`. Later turns begin with `between` in place of `before`.
struct chat_form {
  std::vector<std::int32_t> before, between;
  std::string opening;
  std::vector<std::int32_t> after;
  std::int32_t end = -1;
};

/// By a model's template: ChatML (SmolLM2, Qwen), Gemma's or Llama 3's, with the words that the template puts in front where
/// nobody says other ones. Nothing where it is none of these.
std::optional<chat_form> chat_form_of(std::string_view given, const tokenizer& words);
/// By the template that the file holds; for a directory's, see `read_chat_template`.
std::optional<chat_form> chat_form_of(const skim::gguf::file& file, const tokenizer& words);

}  // namespace needle
