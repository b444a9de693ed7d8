// SPDX-License-Identifier: Apache-2.0
#include "prose.hpp"

#include "error.hpp"

#include <algorithm>
#include <numeric>
#include <random>

namespace needle {
namespace {

using tokens = std::vector<std::int32_t>;

const char* const places[] = {"harbour",   "library", "bakery",   "lighthouse", "orchard", "theatre",
                              "monastery", "quarry",  "stable",   "vineyard",   "brewery", "windmill",
                              "chapel",    "tannery", "fortress", "ferry"};
static_assert(std::size(places) == most_facts);

struct fact {
  tokens sentence, question, answer;
};

void append(prompt& to, const tokens& more, role each) {
  to.tokens.insert(to.tokens.end(), more.begin(), more.end());
  to.roles.resize(to.tokens.size(), each);
}

bool ends_sentence(const std::string& piece) {
  return !piece.empty() && (piece.back() == '.' || piece.back() == '!' || piece.back() == '?');
}

/// Numbers that are the same with every standard library, unlike those of its distributions.
class dice {
 public:
  explicit dice(std::int64_t number) : bits_(static_cast<std::uint32_t>(number) + 1) {}

  std::size_t below(std::size_t count) { return bits_() % count; }

  std::vector<std::size_t> order(std::size_t count) {
    std::vector<std::size_t> all(count);
    std::iota(all.begin(), all.end(), std::size_t{0});
    for (std::size_t last = count; last > 1; --last) std::swap(all[last - 1], all[below(last)]);
    return all;
  }

 private:
  std::mt19937 bits_;
};

/// The token of the text behind which each fact goes: the end of a sentence, one in each equal part.
std::vector<std::int64_t> gaps_of(const prose& from, std::size_t first, std::int64_t length, std::int64_t facts,
                                  dice& draw) {
  std::vector<std::int64_t> gaps;
  for (std::int64_t i = 0; i < facts; ++i) {
    const std::int64_t end = (i + 1) * length / facts;
    std::vector<std::int64_t> ends;
    for (std::int64_t t = i * length / facts; t < end; ++t) {
      if (ends_sentence(from.spell(from.text[first + static_cast<std::size_t>(t)]))) ends.push_back(t);
    }
    gaps.push_back(ends.empty() ? end - 1 : ends[draw.below(ends.size())]);
  }
  return gaps;
}

}  // namespace

void check_prose(const prompt_shape& shape) {
  if (shape.needles < 1 || shape.needles > most_facts || shape.questions < 1 || shape.questions > shape.needles) {
    throw error("a prompt of text has 1 to " + std::to_string(most_facts) +
                " needles and 1 to as many questions, there are " + std::to_string(shape.needles) + " and " +
                std::to_string(shape.questions));
  }
}

prompt make_prompt(const prose& from, const prompt_shape& shape, double judged_from, std::int64_t number) {
  check_prose(shape);
  dice draw(number);
  const std::vector<std::size_t> chosen = draw.order(most_facts);
  std::vector<fact> facts;
  for (std::size_t i = 0; i < static_cast<std::size_t>(shape.needles); ++i) {
    const std::string place = places[chosen[i]], secret = std::to_string(1000 + draw.below(9000));
    facts.push_back({from.encode(" The secret number of the " + place + " is " + secret + "."),
                     from.encode("\nQuestion: What is the secret number of the " + place +
                                 "?\nAnswer: The secret number of the " + place + " is"),
                     from.encode(" " + secret)});
  }
  std::vector<std::size_t> asked = dice(number + most_facts).order(facts.size());
  asked.resize(static_cast<std::size_t>(shape.questions));
  std::size_t extra = from.begin.size();
  for (const fact& each : facts) extra += each.sentence.size();
  for (const std::size_t i : asked) extra += facts[i].question.size() + facts[i].answer.size();
  const std::int64_t length = shape.tokens - static_cast<std::int64_t>(extra);
  if (length < 64) throw error("a prompt of " + std::to_string(shape.tokens) + " tokens leaves no room for text");
  if (length > static_cast<std::int64_t>(from.text.size())) {
    throw error("the text has " + std::to_string(from.text.size()) + " tokens, a prompt needs " +
                std::to_string(length));
  }
  const std::size_t first = draw.below(from.text.size() - static_cast<std::size_t>(length) + 1);
  const std::vector<std::int64_t> gaps = gaps_of(from, first, length, shape.needles, draw);

  prompt made;
  append(made, from.begin, role::unjudged);
  const double judged = judged_from * static_cast<double>(shape.tokens);
  std::size_t next = 0;
  for (std::int64_t t = 0; t < length; ++t) {
    const bool follows_fact = next > 0 && gaps[next - 1] == t - 1;
    const bool counts = static_cast<double>(made.tokens.size()) >= judged && !follows_fact;
    append(made, {from.text[first + static_cast<std::size_t>(t)]}, counts ? role::text : role::unjudged);
    if (next < facts.size() && gaps[next] == t) append(made, facts[next++].sentence, role::unjudged);
  }
  for (const std::size_t i : draw.order(facts.size())) {
    if (std::find(asked.begin(), asked.end(), i) == asked.end()) continue;
    made.questions.push_back(static_cast<std::int64_t>(made.tokens.size()));
    append(made, facts[i].question, role::unjudged);
    append(made, facts[i].answer, role::answer);
  }
  return made;
}

}  // namespace needle
