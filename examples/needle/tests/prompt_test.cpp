// SPDX-License-Identifier: Apache-2.0
#include "../prompt.hpp"

#include "../error.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>

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
