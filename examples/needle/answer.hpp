// SPDX-License-Identifier: Apache-2.0
/// \file An answer that is shown while it comes.
#pragma once

#include "tokenizer.hpp"

#include <iosfwd>

namespace needle {

/// Tokens as text, written as soon as a character is whole; what would steer a terminal stands as '?'.
class answer {
 public:
  enum class lines { kept, as_blanks, first_only };

  answer(const tokenizer& words, std::ostream& out, lines how) : words_(words), out_(out), how_(how) {}

  /// False where nothing more is wanted: the first line is over.
  bool add(std::int32_t token);
  /// Writes what there is of a last character.
  void flush();

  const std::vector<std::int32_t>& tokens() const { return tokens_; }
  const std::string& text() const { return text_; }

 private:
  void write(std::size_t to);

  const tokenizer& words_;
  std::ostream& out_;
  lines how_;
  std::vector<std::int32_t> tokens_;
  std::string text_;
  std::size_t shown_ = 0;
};

}  // namespace needle
