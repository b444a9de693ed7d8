// SPDX-License-Identifier: Apache-2.0
/// \file A model as the command line names it, and what its files say of text.
#pragma once

#include "chat.hpp"
#include "model.hpp"
#include "prose.hpp"

#include <optional>

namespace needle {

struct opened_model {
  model weights;
  std::optional<tokenizer> words;  ///< none: the file has no vocabulary
  std::optional<chat_form> chat;   ///< none: the file has no form of conversations that the engine knows
};

/// `name`: qwen2 or llama, the models of this directory; a directory as Hugging Face has it; or a .gguf. Throws `error`.
opened_model open_model(const std::string& name);

/// Where `needle calibrate` writes what it has fitted, and where it is looked for.
std::filesystem::path fitted_path_of(const std::string& name);

/// `words` must outlive it.
prose prose_of(const tokenizer& words, const std::string& text);

/// A whole file. Throws `error`.
std::string text_in(const std::string& path);

}  // namespace needle
