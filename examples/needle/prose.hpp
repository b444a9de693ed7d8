// SPDX-License-Identifier: Apache-2.0
/// \file Prompts of real text with facts hidden in it, which are asked for at the end.
#pragma once

#include "prompt.hpp"

#include <functional>

namespace needle {

/// A text in a model's tokens, and what else a prompt needs of its vocabulary.
struct prose {
  std::vector<std::int32_t> text;
  std::vector<std::int32_t> begin;  ///< what stands before a text: one token or none
  std::function<std::vector<std::int32_t>(const std::string& text)> encode;
  std::function<std::string(std::int32_t token)> spell;
};

inline constexpr std::int64_t most_facts = 16;  ///< places that have a secret number

/// Text from a place that `number` chooses; between its sentences `shape.needles` others that say a secret number; at the
/// end questions, in another order and answered. Text is judged from the share `judged_from` of the prompt on, but not
/// where it follows a fact. The same number gives the same prompt everywhere. Throws `error` where the text is short.
prompt make_prompt(const prose& from, const prompt_shape& shape, double judged_from, std::int64_t number);

/// Throws `error` where no such prompt can be made of any text.
void check_prose(const prompt_shape& shape);

}  // namespace needle
