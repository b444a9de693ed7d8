// SPDX-License-Identifier: Apache-2.0
/// \file Needle-in-a-haystack prompts over the models' made-up language (models/README.md describes it).
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace needle {

/// Token ids. Words have no spelling of their own; `spelling` invents one.
namespace vocabulary {

enum : std::int32_t { pad = 0, start = 1, stop = 3, note = 4, code = 5, of = 6, question = 8, the = 11, near = 13 };

struct word_class {
  std::int32_t first, count;
  constexpr bool holds(std::int32_t token) const { return token >= first && token < first + count; }
};
inline constexpr word_class adjectives{32, 96}, nouns{128, 256}, verbs{384, 96}, places{480, 96}, keys{576, 256},
    values{832, 256};
inline constexpr std::int64_t size = 1088;  // of the ids in use

}  // namespace vocabulary

struct prompt_shape {
  std::int64_t tokens = 8192;  ///< T, padding included
  std::int64_t needles = 16;
  std::int64_t questions = 8;  ///< at most `needles`, each about another one
};

/// The made-up language: a statement is `note the code of KEY VALUE VALUE .`, a question `question the code of KEY`,
/// answered by `VALUE VALUE .`: eight tokens each.
inline constexpr std::int64_t statement_tokens = 8;

/// What a token tells about a model that predicts it.
enum class role : char { unjudged, text, answer };

struct prompt {
  std::vector<std::int32_t> tokens;     ///< [T]
  std::vector<role> roles;              ///< [T]
  std::vector<std::int64_t> questions;  ///< where each question begins
};

/// Throws `error` if the needles and questions do not fit.
void check(const prompt_shape& shape);

/// Prompts in a row. The same seed gives the same prompts with every compiler and standard library.
class prompt_source {
 public:
  explicit prompt_source(std::uint64_t seed) : random_(seed) {}
  prompt next(const prompt_shape& shape);

 private:
  std::int64_t below(std::int64_t count);
  void shuffle(std::vector<std::int64_t>& order);
  std::vector<std::vector<std::int32_t>> filler(std::int64_t most_tokens);
  std::vector<std::vector<std::int32_t>> paragraph();

  std::mt19937_64 random_;
};

std::string spelling(std::int32_t token);
/// Words from `first` to before `last`, with blanks between.
std::string spelling(const std::vector<std::int32_t>& tokens, std::int64_t first, std::int64_t last);

}  // namespace needle
