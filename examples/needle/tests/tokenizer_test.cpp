// SPDX-License-Identifier: Apache-2.0
#include "../tokenizer.hpp"

#include "../error.hpp"
#include "support/gguf_builder.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
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

/// A SentencePiece vocabulary in which a special token's name can be put together, and two blanks are one token.
tokenizer by_hand(bool space_before) {
  skim_test::gguf_builder file;
  file.head(0, 5).text("tokenizer.ggml.model").add(std::uint32_t{8}).text("llama");
  file.texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "<", "s", ">", "<s", "a", "\xe2\x96\x81", "  "});
  file.numbers("tokenizer.ggml.scores", {0, 0, -1, -2, -3, -4, -5, -6, -7});
  file.numbers("tokenizer.ggml.token_type", {2, 3, 1, 1, 1, 1, 1, 1, 4});
  file.text("tokenizer.ggml.add_space_prefix").add(std::uint32_t{7}).add(static_cast<char>(space_before));
  return tokenizer(file.view());
}

TEST(tokenizer, names_of_special_tokens_are_text) {
  const tokenizer words = by_hand(false);
  EXPECT_EQ(words.encode("a<s>a"), (tokens{6, 5, 4, 6}));
  EXPECT_EQ(words.decode({6, 5, 4, 6}), "a<s>a");
}

TEST(tokenizer, whole_tokens_come_first) {
  EXPECT_EQ(by_hand(false).encode("a   a"), (tokens{6, 8, 7, 6}));
}

TEST(tokenizer, a_space_may_stand_before_a_text) {
  const tokenizer words = by_hand(true);
  EXPECT_EQ(words.encode("a"), (tokens{7, 6}));
  EXPECT_EQ(words.decode({7, 6}), "a");
  EXPECT_TRUE(words.encode("").empty());
}

std::filesystem::path directory_of(const std::string& name) {
  return std::filesystem::path(NEEDLE_GOLDENS) / "vocabularies" / name;
}

nlohmann::json golden_json(const std::string& name) {
  std::ifstream stream(directory_of(name));
  return nlohmann::json::parse(stream);
}

class directory : public testing::TestWithParam<const char*> {};

TEST_P(directory, gives_the_tokens_of_another_program) {
  const std::string name = GetParam();
  const tokenizer words = tokenizer::read(directory_of(name));
  const nlohmann::json texts = golden_json("texts.json"), golden = golden_json(name + "/golden.json");
  ASSERT_EQ(texts.size(), golden["ids"].size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const tokens found = words.encode(texts[i].get<std::string>());
    EXPECT_EQ(found, golden["ids"][i].get<tokens>()) << texts[i];
    const nlohmann::json& decoded = golden["decoded"][i];
    if (decoded.is_null()) continue;
    EXPECT_EQ(words.decode(found), decoded.get<std::string>());
  }
  EXPECT_EQ(words.begin(), golden["begin"]);
  EXPECT_EQ(words.end(), golden["end"]);
}

TEST_P(directory, long_words_take_no_square_of_their_length) {
  const tokenizer words = tokenizer::read(directory_of(GetParam()));
  for (const char c : {'a', ' ', '\n'}) {
    const std::string text = "x" + std::string(60'000, c) + "x";
    EXPECT_EQ(words.decode(words.encode(text)), text);
  }
}

INSTANTIATE_TEST_SUITE_P(shapes, directory,
                         testing::Values("gpt-2", "smollm2", "llama-3", "qwen2", "llama-2", "gemma", "metaspace-first",
                                         "metaspace-always"));

}  // namespace
