// SPDX-License-Identifier: Apache-2.0
#include "../chat.hpp"

#include "support/gguf_builder.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>

namespace {

using needle::chat_form;
using needle::chat_form_of;
using needle::tokenizer;

using tokens = std::vector<std::int32_t>;

/// A vocabulary of ASCII's characters behind these special tokens.
struct vocabulary {
  skim_test::gguf_builder file;

  vocabulary(const std::vector<std::string>& special, const std::string& chat_template) {
    std::vector<std::string> pieces = special;
    std::vector<float> types(special.size(), 3);
    for (char c = 0; c < 127; ++c) pieces.push_back(c == ' ' ? "\xe2\x96\x81" : std::string(1, c));
    types.resize(pieces.size(), 1);
    file.head(0, 6).text("tokenizer.ggml.model").add(std::uint32_t{8}).text("llama");
    file.texts("tokenizer.ggml.tokens", pieces);
    file.numbers("tokenizer.ggml.scores", std::vector<float>(pieces.size(), 0));
    file.numbers("tokenizer.ggml.token_type", types);
    file.text("tokenizer.ggml.add_space_prefix").add(std::uint32_t{7}).add('\0');
    file.text("tokenizer.chat_template").add(std::uint32_t{8}).text(chat_template);
  }
};

/// Special tokens as their numbers, the rest as text.
std::string shown(const tokenizer& words, const tokens& all, std::int32_t special) {
  std::string text;
  for (const std::int32_t token : all) {
    text += token < special ? "[" + std::to_string(token) + "]" : words.decode({token});
  }
  return text;
}

struct known_form {
  const char *name, *given, *before, *opening, *after;
  std::vector<std::string> special;
  std::int32_t end;
};

class form : public testing::TestWithParam<known_form> {};

TEST_P(form, is_what_the_template_writes) {
  const known_form& expected = GetParam();
  vocabulary made(expected.special, expected.given);
  const skim::gguf::file file = made.file.view();
  const tokenizer words(file);
  const std::optional<chat_form> found = chat_form_of(file, words);
  ASSERT_TRUE(found);
  const auto special = static_cast<std::int32_t>(expected.special.size());
  EXPECT_EQ(shown(words, found->before, special), expected.before);
  EXPECT_EQ(found->opening, expected.opening);
  EXPECT_EQ(shown(words, found->after, special), expected.after);
  EXPECT_EQ(found->end, expected.end);
}

const std::vector<std::string> chatml = {"<|im_start|>", "<|im_end|>"};
INSTANTIATE_TEST_SUITE_P(
    each, form,
    testing::Values(
        known_form{
            "smollm2",
            "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' "
            "}}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
            "[0]system\nBe kind.[1]\n[0]", "user\n", "[1]\n[0]assistant\n", chatml, 1},
        known_form{
            "qwen2",
            "{{- '<|im_start|>system\\n' + messages[0].content }} {{- '<|im_start|>system\\nBe wise.<|im_end|>\\n' }}",
            "[0]system\nBe wise.[1]\n[0]", "user\n", "[1]\n[0]assistant\n", chatml, 1},
        known_form{"qwen3", "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}", "[0]", "user\n",
                   "[1]\n[0]assistant\n", chatml, 1},
        known_form{"gemma3",
                   "{{ '<start_of_turn>' + role }}",
                   "[1]",
                   "user\n",
                   "[0]\n[1]model\n",
                   {"<end_of_turn>", "<start_of_turn>"},
                   0},
        known_form{"llama3",
                   "{{ '<|start_header_id|>' + role }}",
                   "[0]user[1]",
                   "\n\n",
                   "[2][0]assistant[1]\n\n",
                   {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
                   2}),
    [](const auto& test) { return test.param.name; });

TEST(no_form, where_it_is_not_known_or_the_vocabulary_lacks_its_tokens) {
  for (const auto& [special, text] : {std::pair(chatml, "{{ message }}"), std::pair(chatml, ""),
                                      std::pair(std::vector<std::string>{"<|im_start|>"}, "{{ '<|im_start|>' }}")}) {
    vocabulary made(special, text);
    const skim::gguf::file file = made.file.view();
    EXPECT_FALSE(chat_form_of(file, tokenizer(file))) << text;
  }
}

TEST(chat_form, feeds_what_another_program_puts_together) {
  const std::filesystem::path goldens = NEEDLE_GOLDENS;
  std::ifstream stream(goldens / "chat.json");
  const nlohmann::json given = nlohmann::json::parse(stream);
  EXPECT_EQ(given["forms"].size(), 6u);
  for (const auto& [name, golden] : given["forms"].items()) {
    const tokenizer words = tokenizer::read(goldens / "vocabularies" / golden["vocabulary"].get<std::string>());
    const std::optional<chat_form> form = chat_form_of(golden["template"].get<std::string>(), words);
    ASSERT_TRUE(form) << name;
    tokens fed = form->before;
    if (words.begin() >= 0) fed.insert(fed.begin(), words.begin());
    for (const tokens& part : {words.encode(form->opening + given["user"].get<std::string>()), form->after})
      fed.insert(fed.end(), part.begin(), part.end());
    EXPECT_EQ(fed, golden["ids"].get<tokens>()) << name;
    EXPECT_EQ(form->end, words.named(golden["end"].get<std::string>())) << name;
  }
}

}  // namespace
