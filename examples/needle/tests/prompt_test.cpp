// SPDX-License-Identifier: Apache-2.0
#include "../error.hpp"
#include "../prose.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

namespace {

using namespace needle;
using namespace needle::vocabulary;

/// What a prompt says, read word by word according to the grammar; fails the test where it does not parse.
class reading {
 public:
  std::map<std::int32_t, std::pair<std::int32_t, std::int32_t>> facts;
  std::int64_t sentences = 0, with_place = 0, asked = 0, padding = 0;
  std::vector<std::int64_t> needle_gaps;  ///< sentences before each needle

  explicit reading(const prompt& text) : text_(text) {
    take(start);
    while (!failed_ && at_ < size()) {
      const std::int32_t word = peek();
      if (word == note) {
        read_needle();
      } else if (word == question) {
        read_question();
      } else if (word == pad) {
        take(pad);
        ++padding;
      } else {
        EXPECT_TRUE(asked == 0 && padding == 0) << "filler behind the questions, at " << at_;
        read_filler();
      }
    }
  }

 private:
  std::int64_t size() const { return static_cast<std::int64_t>(text_.tokens.size()); }
  std::int32_t peek() const { return text_.tokens[static_cast<std::size_t>(at_)]; }

  void take(std::int32_t word) {
    if (failed_) return;
    failed_ = at_ >= size() || peek() != word;
    EXPECT_FALSE(failed_) << "expected " << spelling(word) << " at " << at_;
    ++at_;
  }
  std::int32_t take(word_class words) {
    if (failed_) return words.first;
    failed_ = at_ >= size() || !words.holds(peek());
    EXPECT_FALSE(failed_) << "expected a word from " << words.first << " on at " << at_;
    return failed_ ? words.first : text_.tokens[static_cast<std::size_t>(at_++)];
  }

  void read_filler() {
    take(the);
    take(adjectives);
    const std::int32_t subject = take(nouns), verb = take(verbs);
    const std::int32_t first = 7 * (subject - nouns.first) % verbs.count;
    EXPECT_LT((verb - verbs.first - first + verbs.count) % verbs.count, 4) << "a verb of another noun, at " << at_;
    take(the);
    take(adjectives);
    take(nouns);
    if (!failed_ && at_ < size() && peek() == near) {
      take(near);
      take(the);
      take(places);
      ++with_place;
    }
    take(stop);
    ++sentences;
  }

  void read_needle() {
    for (const std::int32_t word : {note, the, code, of}) take(word);
    const std::int32_t key = take(keys), first = take(values), second = take(values);
    EXPECT_TRUE(facts.emplace(key, std::pair(first, second)).second) << "a key comes twice";
    take(stop);
    needle_gaps.push_back(sentences);
  }

  void read_question() {
    EXPECT_EQ(at_, text_.questions[static_cast<std::size_t>(asked)]);
    for (const std::int32_t word : {question, the, code, of}) take(word);
    const std::int32_t key = take(keys);
    EXPECT_EQ(text_.roles[static_cast<std::size_t>(at_)], role::answer);
    EXPECT_EQ(text_.roles[static_cast<std::size_t>(at_) + 1], role::answer);
    const std::int32_t first = take(values), second = take(values);
    EXPECT_TRUE(facts.count(key) && facts[key] == std::pair(first, second)) << "a wrong answer at " << at_;
    asked_keys_.insert(key);
    take(stop);
    ++asked;
    EXPECT_EQ(static_cast<std::int64_t>(asked_keys_.size()), asked) << "a question comes twice";
  }

  const prompt& text_;
  std::int64_t at_ = 0;
  bool failed_ = false;
  std::set<std::int32_t> asked_keys_;
};

TEST(prompt, follows_the_grammar) {
  prompt_source source(3);
  for (const prompt_shape shape : {prompt_shape{8192, 16, 8}, prompt_shape{640, 8, 4}, prompt_shape{17, 1, 1},
                                   prompt_shape{24, 1, 1}, prompt_shape{4097, 256, 256}, prompt_shape{333, 5, 2}}) {
    const prompt text = source.next(shape);
    ASSERT_EQ(static_cast<std::int64_t>(text.tokens.size()), shape.tokens);
    ASSERT_EQ(text.roles.size(), text.tokens.size());
    const reading read(text);
    EXPECT_EQ(static_cast<std::int64_t>(read.facts.size()), shape.needles);
    EXPECT_EQ(read.asked, shape.questions);
    EXPECT_LE(read.padding, 10);
    EXPECT_EQ(std::count(text.roles.begin(), text.roles.end(), role::answer), 2 * shape.questions);
    EXPECT_EQ(std::count(text.roles.begin(), text.roles.end(), role::unjudged), read.padding);
    EXPECT_EQ(text.questions.back() + statement_tokens + read.padding, shape.tokens);
  }
}

TEST(prompt, draws_uniformly) {
  prompt_source source(4);
  double sentences = 0, with_place = 0, place = 0, needles = 0;
  std::map<std::int32_t, int> key_counts;
  for (int i = 0; i < 40; ++i) {
    const prompt text = source.next({8192, 16, 8});
    const reading read(text);
    sentences += static_cast<double>(read.sentences);
    with_place += static_cast<double>(read.with_place);
    for (const std::int64_t gap : read.needle_gaps) {
      place += static_cast<double>(gap) / static_cast<double>(read.sentences);
      ++needles;
    }
    for (const auto& fact : read.facts) ++key_counts[fact.first];
  }
  EXPECT_NEAR(with_place / sentences, 0.5, 0.01);  // 33,000 draws: four standard deviations
  EXPECT_NEAR(place / needles, 0.5, 0.05);         // 640 draws
  EXPECT_GT(key_counts.size(), 220u);              // 640 draws of 256
}

TEST(prompt, same_seed_same_text_everywhere) {
  prompt_source a(1), b(1), c(2);
  const prompt_shape shape;
  const prompt first = a.next(shape);
  EXPECT_EQ(first.tokens, b.next(shape).tokens);
  EXPECT_NE(first.tokens, c.next(shape).tokens);
  EXPECT_NE(first.tokens, a.next(shape).tokens) << "a source does not repeat itself";
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a: results of one machine are comparable with another's
  for (const std::int32_t token : first.tokens) hash = (hash ^ static_cast<std::uint64_t>(token)) * 1099511628211u;
  EXPECT_EQ(hash, 10296281174927033907u);
}

TEST(prompt, refuses_shapes_without_room) {
  prompt_source source(1);
  for (const prompt_shape shape :
       {prompt_shape{16, 1, 1}, prompt_shape{8192, 0, 0}, prompt_shape{8192, 257, 8}, prompt_shape{8192, 16, 17},
        prompt_shape{8192, 16, 0}, prompt_shape{0, 1, 1}, prompt_shape{8192, -1, -1}}) {
    EXPECT_THROW(source.next(shape), error);
  }
}

/// A vocabulary of characters, behind one token that begins a text.
prose characters(const std::string& text) {
  const auto encode = [](const std::string& of) { return std::vector<std::int32_t>(of.begin(), of.end()); };
  return {encode(text), {1}, encode, [](std::int32_t token) { return std::string(1, static_cast<char>(token)); }};
}

std::string story() {
  std::string text;
  for (int i = 0; i < 400; ++i) text += " Sentence " + std::to_string(i) + (i % 3 == 0 ? "!" : ".");
  return text;
}

TEST(prose, hides_facts_behind_sentences_and_asks_for_them) {
  const prose from = characters(story());
  std::set<std::string> prompts;
  for (const prompt_shape shape : {prompt_shape{4096, 8, 8}, prompt_shape{3001, 5, 2}, prompt_shape{4096, 16, 1}}) {
    for (const std::int64_t number : {0, 1, 7}) {
      const prompt made = make_prompt(from, shape, 0.75, number);
      ASSERT_EQ(static_cast<std::int64_t>(made.tokens.size()), shape.tokens);
      ASSERT_EQ(made.roles.size(), made.tokens.size());
      EXPECT_EQ(made.tokens[0], 1);
      const std::string text(made.tokens.begin() + 1, made.tokens.end());
      EXPECT_TRUE(prompts.insert(text).second);
      EXPECT_EQ(make_prompt(from, shape, 0.75, number).tokens, made.tokens);
      const std::string opening = " The secret number of the ";
      const std::size_t prose_end = static_cast<std::size_t>(made.questions.front()) - 1;
      std::map<std::string, std::string> facts;
      for (std::size_t at = text.find(opening); at < prose_end; at = text.find(opening, at + 1)) {
        EXPECT_NE(std::string(".!").find(text[at - 1]), std::string::npos) << text.substr(at - 9, 40);
        std::istringstream rest(text.substr(at + opening.size(), 40));
        std::string place, is, secret;
        rest >> place >> is >> secret;
        EXPECT_TRUE(facts.emplace(place, secret.substr(0, 4)).second);
        for (std::size_t i = at; text[i - 1] != '.' || i == at; ++i)
          EXPECT_EQ(made.roles[i + 1], role::unjudged) << "a fact is not text";
      }
      EXPECT_EQ(static_cast<std::int64_t>(facts.size()), shape.needles);
      EXPECT_EQ(static_cast<std::int64_t>(made.questions.size()), shape.questions);
      std::set<std::string> asked;
      for (const std::int64_t question : made.questions) {
        const std::string before = "\nQuestion: What is the secret number of the ";
        EXPECT_EQ(text.compare(static_cast<std::size_t>(question) - 1, before.size(), before), 0);
        std::istringstream words(text.substr(static_cast<std::size_t>(question) - 1 + before.size(), 30));
        std::string place;
        words >> place;
        place.pop_back();
        ASSERT_EQ(facts.count(place), 1u) << place;
        EXPECT_TRUE(asked.insert(place).second);
        const std::string answer = "Answer: The secret number of the " + place + " is " + facts[place];
        const std::size_t at = text.find(answer, static_cast<std::size_t>(question) - 1);
        ASSERT_NE(at, std::string::npos);
        for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(made.roles[at + answer.size() - 4 + i], role::answer);
      }
      EXPECT_EQ(std::count(made.roles.begin(), made.roles.end(), role::answer), 5 * shape.questions);
      const auto first = std::find(made.roles.begin(), made.roles.end(), role::text) - made.roles.begin();
      EXPECT_GE(first, shape.tokens * 3 / 4);
      EXPECT_LE(first, shape.tokens * 3 / 4 + 60) << "or a fact is there";
    }
  }
}

TEST(prose, refuses_what_has_no_room) {
  const prose from = characters(story());
  for (const prompt_shape shape :
       {prompt_shape{4096, 17, 8}, prompt_shape{4096, 0, 0}, prompt_shape{4096, 8, 9}, prompt_shape{4096, 8, 0},
        prompt_shape{1200, 8, 8}, prompt_shape{0, 1, 1}, prompt_shape{100000, 8, 8}}) {
    EXPECT_THROW(make_prompt(from, shape, 0.75, 0), error) << shape.tokens;
  }
  const std::string dull(3000, 'x');  // no sentence ends: facts go to the ends of their parts
  EXPECT_EQ(make_prompt(characters(dull), {2900, 8, 4}, 0.5, 0).questions.size(), 4u);
}

TEST(spelling, words_are_told_apart) {
  std::set<std::string> words;
  for (const word_class& each : {adjectives, nouns, verbs, places, keys, values}) {
    for (std::int32_t token = each.first; token < each.first + each.count; ++token) {
      EXPECT_TRUE(words.insert(spelling(token)).second) << spelling(token);
    }
  }
  EXPECT_EQ(spelling({note, the, code, of}, 0, 4), "note the code of");
  EXPECT_EQ(spelling(1099), "(1099)");
}

}  // namespace
