// SPDX-License-Identifier: Apache-2.0
#include "prompt.hpp"

#include "error.hpp"

#include <algorithm>
#include <numeric>

namespace needle {
namespace {

using sentence = std::vector<std::int32_t>;

void append(sentence& text, const sentence& more) {
  text.insert(text.end(), more.begin(), more.end());
}

}  // namespace

void check(const prompt_shape& shape) {
  if (shape.needles < 1 || shape.needles > vocabulary::keys.count) {
    throw error("needles is " + std::to_string(shape.needles) + ", expected 1 to " +
                std::to_string(vocabulary::keys.count) + ": keys are unique in a prompt");
  }
  if (shape.questions < 1 || shape.questions > shape.needles) {
    throw error("questions is " + std::to_string(shape.questions) + ", expected 1 to the number of needles, " +
                std::to_string(shape.needles));
  }
  const std::int64_t least = 1 + statement_tokens * (shape.needles + shape.questions);
  if (shape.tokens < least) {
    throw error("context is " + std::to_string(shape.tokens) + ", expected at least " + std::to_string(least) +
                ": room for the needles and the questions");
  }
}

prompt prompt_source::next(const prompt_shape& shape) {
  using namespace vocabulary;
  check(shape);
  std::vector<std::int64_t> key_order(static_cast<std::size_t>(keys.count));
  std::iota(key_order.begin(), key_order.end(), 0);
  shuffle(key_order);
  std::vector<sentence> facts;  // KEY VALUE VALUE
  for (std::int64_t i = 0; i < shape.needles; ++i) {
    facts.push_back({keys.first + static_cast<std::int32_t>(key_order[static_cast<std::size_t>(i)]),
                     values.first + static_cast<std::int32_t>(below(values.count)),
                     values.first + static_cast<std::int32_t>(below(values.count))});
  }

  const std::vector<sentence> sentences =
      filler(shape.tokens - 1 - statement_tokens * (shape.needles + shape.questions));
  const std::int64_t gaps = static_cast<std::int64_t>(sentences.size()) + 1;
  std::vector<std::int64_t> needle_gaps;
  for (std::int64_t i = 0; i < shape.needles; ++i) needle_gaps.push_back(below(gaps));
  std::sort(needle_gaps.begin(), needle_gaps.end());

  prompt result;
  result.tokens = {start};
  std::size_t needle = 0;
  for (std::int64_t gap = 0; gap < gaps; ++gap) {
    for (; needle < needle_gaps.size() && needle_gaps[needle] == gap; ++needle) {
      append(result.tokens, {note, the, code, of});
      append(result.tokens, facts[needle]);
      append(result.tokens, {stop});
    }
    if (gap + 1 < gaps) append(result.tokens, sentences[static_cast<std::size_t>(gap)]);
  }

  std::vector<std::int64_t> asked(facts.size());
  std::iota(asked.begin(), asked.end(), 0);
  shuffle(asked);
  const std::size_t length = static_cast<std::size_t>(shape.tokens);
  result.roles.assign(length, role::text);
  for (std::int64_t i = 0; i < shape.questions; ++i) {
    result.questions.push_back(static_cast<std::int64_t>(result.tokens.size()));
    append(result.tokens, {question, the, code, of});
    append(result.tokens, facts[static_cast<std::size_t>(asked[static_cast<std::size_t>(i)])]);
    std::fill_n(result.roles.begin() + static_cast<std::ptrdiff_t>(result.tokens.size()) - 2, 2, role::answer);
    append(result.tokens, {stop});
  }
  std::fill(result.roles.begin() + static_cast<std::ptrdiff_t>(result.tokens.size()), result.roles.end(),
            role::unjudged);
  result.tokens.resize(length, pad);
  return result;
}

/// Sentences of whole paragraphs, until the next would pass `most_tokens`.
std::vector<sentence> prompt_source::filler(std::int64_t most_tokens) {
  std::vector<sentence> sentences;
  std::int64_t tokens = 0;
  for (;;) {
    for (sentence& each : paragraph()) {
      tokens += static_cast<std::int64_t>(each.size());
      if (tokens > most_tokens) return sentences;
      sentences.push_back(std::move(each));
    }
  }
}

/// `the ADJ NOUN VERB the ADJ NOUN [near the PLACE] .`, three to eight times, about a cast of four.
std::vector<sentence> prompt_source::paragraph() {
  using namespace vocabulary;
  constexpr std::int64_t cast = 4, scenes = 2, verbs_of_a_noun = 4;
  const auto word = [&](word_class all) { return all.first + static_cast<std::int32_t>(below(all.count)); };
  std::int32_t noun[cast], adjective[cast], place[scenes];
  for (std::int32_t& each : noun) each = word(nouns);
  for (std::int32_t& each : adjective) each = word(adjectives);
  for (std::int32_t& each : place) each = word(places);

  std::vector<sentence> sentences(static_cast<std::size_t>(3 + below(6)));
  for (sentence& each : sentences) {
    const std::int64_t subject = below(cast), object = below(cast);
    const std::int64_t verb = (7 * (noun[subject] - nouns.first) + below(verbs_of_a_noun)) % verbs.count;
    each = {the, adjective[subject], noun[subject], verbs.first + static_cast<std::int32_t>(verb),
            the, adjective[object],  noun[object]};
    if (below(2) == 0) append(each, {near, the, place[below(scenes)]});
    append(each, {stop});
  }
  return sentences;
}

/// Uniform in [0, count). The standard's distributions differ between libraries, its engines do not.
std::int64_t prompt_source::below(std::int64_t count) {
  const std::uint64_t n = static_cast<std::uint64_t>(count);
  const std::uint64_t unfair = (0 - n) % n;  // 2^64 mod n: the numbers to redraw, so that every remainder is as likely
  std::uint64_t number = random_();
  while (number < unfair) number = random_();
  return static_cast<std::int64_t>(number % n);
}

void prompt_source::shuffle(std::vector<std::int64_t>& order) {
  for (std::size_t last = order.size(); last > 1; --last) {
    std::swap(order[last - 1], order[static_cast<std::size_t>(below(static_cast<std::int64_t>(last)))]);
  }
}

std::string spelling(std::int32_t token) {
  using namespace vocabulary;
  switch (token) {
    case pad:
      return "(pad)";
    case start:
      return "(start)";
    case stop:
      return ".";
    case note:
      return "note";
    case code:
      return "code";
    case of:
      return "of";
    case question:
      return "question";
    case the:
      return "the";
    case near:
      return "near";
    default:
      break;
  }
  constexpr const char* first[] = {"ba", "de", "fi", "go", "ku", "la", "me", "ni",
                                   "po", "ru", "sa", "te", "vi", "zo", "ja", "he"};
  constexpr const char* second[] = {"lo",  "mi",  "ra",  "nu",  "ke",  "to",  "sha", "vin",
                                    "dor", "bel", "gam", "pex", "rok", "sul", "tan", "wey"};
  struct style {
    word_class words;
    const char* ending;
  };
  constexpr style styles[] = {{adjectives, "ish"}, {nouns, ""},      {verbs, "s"},
                              {places, "ville"},   {keys, "-stone"}, {values, "-light"}};
  for (const style& each : styles) {
    if (!each.words.holds(token)) continue;
    const std::int32_t index = (token - each.words.first) * 77 % 256;  // 77 is odd: neighbours differ, no two agree
    return std::string(first[index / 16]) + second[index % 16] + each.ending;
  }
  return "(" + std::to_string(token) + ")";
}

std::string spelling(const std::vector<std::int32_t>& tokens, std::int64_t first, std::int64_t last) {
  std::string text;
  for (std::int64_t i = first; i < last; ++i) {
    text += (text.empty() ? "" : " ") + spelling(tokens[static_cast<std::size_t>(i)]);
  }
  return text;
}

}  // namespace needle
