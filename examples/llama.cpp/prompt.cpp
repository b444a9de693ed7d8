// SPDX-License-Identifier: Apache-2.0
#include "prompt.hpp"

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

namespace prefill {
namespace {

const char* const places[] = {"harbour",   "library", "bakery",   "lighthouse", "orchard", "theatre",
                              "monastery", "quarry",  "stable",   "vineyard",   "brewery", "windmill",
                              "chapel",    "tannery", "fortress", "ferry"};

bool ends_sentence(const llama_vocab* vocab, llama_token token) {
  char piece[64];
  const int n = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
  return n > 0 && (piece[n - 1] == '.' || piece[n - 1] == '!' || piece[n - 1] == '?');
}

void append(tokens& to, const tokens& more) {
  to.insert(to.end(), more.begin(), more.end());
}

}  // namespace

tokens tokenised(const llama_vocab* vocab, const std::string& text, bool begins) {
  tokens found(text.size() + 2);
  const int n = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), found.data(),
                               static_cast<int>(found.size()), begins, false);
  if (n < 0) throw std::invalid_argument("the text cannot be tokenised");
  found.resize(static_cast<std::size_t>(n));
  return found;
}

prompt make_prompt(const llama_vocab* vocab, const tokens& text, int length, int index) {
  std::mt19937 draw(static_cast<unsigned>(index) +
                    1);  // its numbers are the same everywhere, those of distributions not
  std::vector<std::size_t> order(std::size(places));
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto shuffle = [&](auto first, auto last) {
    for (auto i = last - first - 1; i > 0; --i)
      std::swap(first[i], first[static_cast<int>(draw() % (static_cast<unsigned>(i) + 1))]);
  };
  shuffle(order.begin(), order.end());
  std::vector<tokens> sentences, questions, answers;
  std::size_t extra = 0;
  for (int i = 0; i < facts; ++i) {
    const std::string place = places[order[static_cast<std::size_t>(i)]], number = std::to_string(1000 + draw() % 9000);
    sentences.push_back(tokenised(vocab, " The secret number of the " + place + " is " + number + ".", false));
    questions.push_back(tokenised(vocab,
                                  "\nQuestion: What is the secret number of the " + place +
                                      "?\nAnswer: The secret number of the " + place + " is",
                                  false));
    answers.push_back(tokenised(vocab, " " + number, false));
    extra += sentences.back().size() + questions.back().size() + answers.back().size();
  }
  const tokens begin = tokenised(vocab, "", true);
  const long prose = static_cast<long>(length) - static_cast<long>(extra + begin.size());
  if (prose < 64)
    throw std::invalid_argument("a prompt of " + std::to_string(length) + " tokens leaves no room for text");
  if (prose > static_cast<long>(text.size())) {
    throw std::invalid_argument("the text has " + std::to_string(text.size()) + " tokens, a prompt needs " +
                                std::to_string(prose));
  }
  const std::size_t first = draw() % (text.size() - static_cast<std::size_t>(prose) + 1);

  // Behind which tokens of the prose the facts go: ends of sentences, one in each eighth of it.
  std::vector<long> gaps;
  for (int i = 0; i < facts; ++i) {
    std::vector<long> ends;
    for (long t = i * prose / facts; t < (i + 1) * prose / facts; ++t) {
      if (ends_sentence(vocab, text[first + static_cast<std::size_t>(t)])) ends.push_back(t);
    }
    gaps.push_back(ends.empty() ? (i + 1) * prose / facts - 1 : ends[draw() % ends.size()]);
  }

  prompt made;
  made.text = begin;
  int next = 0;
  for (long t = 0; t < prose; ++t) {
    const bool follows_fact = next > 0 && gaps[static_cast<std::size_t>(next) - 1] == t - 1;
    if (made.text.size() >= static_cast<std::size_t>(length) / 2 && !follows_fact)
      made.prose.push_back(static_cast<int>(made.text.size()));
    made.text.push_back(text[first + static_cast<std::size_t>(t)]);
    if (next < facts && gaps[static_cast<std::size_t>(next)] == t)
      append(made.text, sentences[static_cast<std::size_t>(next++)]);
  }
  std::vector<std::size_t> asked(facts);
  std::iota(asked.begin(), asked.end(), std::size_t{0});
  shuffle(asked.begin(), asked.end());
  for (const std::size_t i : asked) {
    append(made.text, questions[i]);
    for (const llama_token token : answers[i]) {
      made.answers.push_back(static_cast<int>(made.text.size()));
      made.text.push_back(token);
    }
  }
  return made;
}

}  // namespace prefill
