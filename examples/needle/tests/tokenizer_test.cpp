// SPDX-License-Identifier: Apache-2.0
#include "../tokenizer.hpp"

#include "../error.hpp"

#include <gtest/gtest.h>

#include <random>

namespace {

using needle::tokenizer;
using skim::gguf::file;
using tokens = std::vector<std::int32_t>;

file golden(const std::string& name) {
  file read = file::read(std::string(NEEDLE_GOLDENS) + "/" + name + ".gguf");
  EXPECT_TRUE(read.ok()) << read.error();
  return read;
}

class vocabulary : public testing::TestWithParam<const char*> {};

TEST_P(vocabulary, gives_the_tokens_of_another_program) {
  const file given = golden(GetParam());
  const tokenizer words(given);
  const auto ids = given.numbers("test.ids");
  const auto text = given.text("test.text");
  ASSERT_TRUE(ids && text);
  ASSERT_GT(ids->size(), 1000u);
  const tokens found = words.encode(*text);
  EXPECT_EQ(found, tokens(ids->begin(), ids->end()));
  EXPECT_EQ(words.decode(found), *text);
}

TEST_P(vocabulary, any_bytes_come_back) {
  const file given = golden(GetParam());
  const tokenizer words(given);
  std::mt19937 draw(7);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (unsigned count = draw() % 60; count > 0; --count)
      text += static_cast<char>(draw() % 4 ? draw() % 128 : draw());
    const tokens found = words.encode(text);
    EXPECT_EQ(words.decode(found), text);
    for (const std::int32_t token : found) ASSERT_TRUE(token >= 0 && token < words.size());
  }
  EXPECT_TRUE(words.encode("").empty());
  EXPECT_EQ(words.decode({}), "");
}

TEST_P(vocabulary, long_words_take_no_square_of_their_length) {
  const file given = golden(GetParam());
  const tokenizer words(given);
  const std::string text(300'000, 'a');
  EXPECT_EQ(words.decode(words.encode(text)), text);
}

TEST_P(vocabulary, special_tokens_are_no_text) {
  const file given = golden(GetParam());
  const tokenizer words(given);
  ASSERT_GE(words.end(), 0);
  EXPECT_EQ(words.decode({words.end(), -1, static_cast<std::int32_t>(words.size())}), "");
  for (const char* const name : {"<end>", "</s>"}) {
    const tokens found = words.encode(name);
    EXPECT_EQ(std::count(found.begin(), found.end(), words.end()), 0);
    EXPECT_EQ(words.decode(found), name);
  }
}

INSTANTIATE_TEST_SUITE_P(kinds, vocabulary, testing::Values("gpt-2", "smollm", "llama-bpe", "qwen2", "sentence"));

TEST(tokenizer, begins_a_text_where_the_file_says_so) {
  EXPECT_EQ(tokenizer(golden("smollm")).begin(), -1);
  EXPECT_EQ(tokenizer(golden("sentence")).begin(), 1);
}

TEST(tokenizer, refuses_what_it_does_not_know) {
  const std::string empty("GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
  EXPECT_THROW(tokenizer(file::view(empty.data(), empty.size())), needle::error);
}

}  // namespace
