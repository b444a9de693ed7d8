// SPDX-License-Identifier: Apache-2.0
#include "../error.hpp"
#include "../tokenizer.hpp"
#include "../word_pattern.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>

namespace {

using needle::parse_vocabulary;
using needle::pcre2_pattern;
using needle::tokenizer;
using nlohmann::json;

using tokens = std::vector<std::int32_t>;

/// Byte-level, of four pieces and two tokens beside them.
json small() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<end>", "special": true}, {"id": 5, "content": "<a>", "normalized": false}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"]}})");
}

/// SentencePiece-style: `small` with its own space, and a token for each byte.
json small_sentence() {
  json made = small();
  made["pre_tokenizer"] = {{"type", "Metaspace"}};
  made["added_tokens"] = json::array();
  made["model"]["byte_fallback"] = true;
  json& vocab = made["model"]["vocab"];
  vocab = {{"a", 0}, {"b", 1}, {"ab", 2}, {"\xe2\x96\x81", 3}};
  for (int byte = 0; byte < 256; ++byte) vocab[needle::name_of_byte(static_cast<unsigned char>(byte))] = 4 + byte;
  return made;
}

struct change {
  const char *where, *value;  // a JSON pointer
};

json changed(json given, const std::vector<change>& changes) {
  for (const change& each : changes) given[json::json_pointer(each.where)] = json::parse(each.value);
  return given;
}

tokenizer made(const json& given, const std::string& config = "", const std::string& generation = "",
               const std::string& model = "") {
  return tokenizer(parse_vocabulary({given.dump(), config, generation, model}));
}

std::string problem_of(const json& given, const std::string& config = "") {
  try {
    made(given, config);
    return "none";
  } catch (const needle::error& problem) {
    return problem.what();
  }
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

TEST(vocabulary, of_a_small_file) {
  const tokenizer words = made(small(), R"({"eos_token": "<end>"})");
  EXPECT_EQ(words.size(), 6);
  EXPECT_EQ(words.encode("ab <a>ba<end>"), (tokens{2, 3, 5, 1, 0}));  // other bytes have no token
  EXPECT_EQ(words.decode({2, 3, 5, 4}), "ab <a>");
  EXPECT_EQ(words.begin(), -1);
  EXPECT_EQ(words.end(), 4);
}

TEST(vocabulary, bytes_without_a_token_are_left_out_before_pieces_are_joined) {
  EXPECT_EQ(made(small()).encode("acb"), tokens{2});
}

TEST(vocabulary, nothing_is_joined_to_a_special_token) {
  const json given = changed(small(), {{"/added_tokens", R"([{"id": 2, "content": "ab", "special": true}])"}});
  EXPECT_EQ(made(given).encode("ab"), (tokens{0, 1}));
}

TEST(vocabulary, at_each_place_the_longest_whole_token_is_found) {
  EXPECT_EQ(made(changed(small(), {{"/added_tokens", R"([{"id": 4, "content": "<a", "normalized": false},
      {"id": 5, "content": "<ab", "normalized": false}, {"id": 6, "content": "b>b>b", "normalized": false}])"}}))
                .encode("<ab>b>b<ab"),
            (tokens{5, 1, 1, 5}));
  EXPECT_EQ(made(changed(small(), {{"/added_tokens", R"([{"id": 4, "content": "a<"}, {"id": 5, "content": "<b",
      "normalized": false}])"}}))
                .encode("a<b"),
            (tokens{0, 5}));
}

TEST(vocabulary, where_a_text_begins_and_ends) {
  const char* const before =
      R"({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<end>"}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<end>": {"id": "<end>", "ids": [4]}}}]})";
  const json given = changed(small(), {{"/post_processor", before}});
  EXPECT_EQ(made(given).begin(), 4);
  EXPECT_EQ(made(given, R"({"add_bos_token": false})").begin(), -1);
  EXPECT_EQ(made(given, R"({"add_bos_token": true, "bos_token": {"content": "a"}})").begin(), 0);
  EXPECT_EQ(made(small(), R"({"bos_token": "a"})").begin(), -1);
  EXPECT_EQ(made(small(), R"({"eos_token": null})", R"({"eos_token_id": [3, 4]})", R"({"eos_token_id": 2})").end(), 3);
  EXPECT_EQ(made(small(), "", "", R"({"eos_token_id": 2})").end(), 2);
  EXPECT_EQ(made(small(), "", "", R"({"eos_token_id": 6})").end(), -1);
}

TEST(vocabulary, refuses_what_it_would_encode_in_another_way) {
  const struct {
    std::vector<change> changes;
    const char* problem;
  } cases[] = {
      {{{"/model/type", R"("Unigram")"}}, "model's type \"Unigram\" is not supported (only \"BPE\" is)"},
      {{{"/model/dropout", "0.1"}}, "model's dropout 0.1 is not supported"},
      {{{"/model/continuing_subword_prefix", R"("##")"}}, "continuing_subword_prefix"},
      {{{"/model/end_of_word_suffix", R"("</w>")"}}, "end_of_word_suffix"},
      {{{"/model/unk_token", "[]"}}, "model's unk_token [] is not supported"},
      {{{"/model/unk_token", R"("a")"}}, "no token of text for the byte <0x00>"},
      {{{"/model/vocab", "[]"}}, "model's vocab is []"},
      {{{"/model/vocab", "{}"}}, "model's vocab is {}"},
      {{{"/model/vocab/a", "1"}}, "the token \"b\" is number 1, as another"},
      {{{"/model/vocab/a", "9"}}, "the token \"a\" is number 9, expected one of 0 to 5"},
      {{{"/model/vocab/a", "-1"}}, "is number -1"},
      {{{"/model/vocab/a", "18446744073709551615"}}, "is number 18446744073709551615"},
      {{{"/model/vocab/a", "0.5"}}, "is number 0.5"},
      {{{"/model/vocab/a", R"("0")"}}, "is number \"0\""},
      {{{"/model/merges", "{}"}}, "model's merges is {}, expected a list"},
      {{{"/model/merges/0", R"("ab")"}}, "expected two pieces without spaces"},
      {{{"/model/merges/0", R"("a b b")"}}, "expected two pieces without spaces"},
      {{{"/model/merges/0", R"(["a", "b", "b"])"}}, "expected two pieces without spaces"},
      {{{"/model/merges/0", R"(["a", 1])"}}, "expected two pieces without spaces"},
      {{{"/model/merges/0", "7"}}, "expected two pieces without spaces"},
      {{{"/model/merges/0", R"(["b", "a"])"}}, "of which \"ba\" is not in vocab"},
      {{{"/model/merges/1", R"(["a", "b"])"}}, "twice"},
      {{{"/added_tokens", "7"}}, "added_tokens is 7"},
      {{{"/added_tokens/0", "7"}}, "added_tokens has 7"},
      {{{"/added_tokens/0/content", R"("")"}}, "expected an object with content"},
      {{{"/added_tokens/0/content", R"("<a>")"}}, "added_tokens has \"<a>\" twice"},
      {{{"/added_tokens/0/content", R"("a")"}}, "the added token \"a\" is number 4, in vocab 0"},
      {{{"/added_tokens/0/id", "5"}}, "is number 5, as another"},
      {{{"/added_tokens/0/special", "1"}}, "the added token \"<end>\"'s special 1 is not supported"},
      {{{"/added_tokens/1/lstrip", "true"}}, "lstrip"},
      {{{"/added_tokens/1/rstrip", "true"}}, "rstrip"},
      {{{"/added_tokens/1/single_word", "true"}}, "single_word"},
      {{{"/normalizer", R"({"type": "Lowercase"})"}},
       "normalizer {\"type\":\"Lowercase\"} is not supported (only NFC, Prepend"},
      {{{"/normalizer", R"({"type": "Sequence", "normalizers": 1})"}}, "normalizer's normalizers is 1"},
      {{{"/normalizer", R"({"type": "Prepend", "prepend": "x"})"}}, "normalizer"},
      {{{"/normalizer", R"({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})"}},
       "do not go together"},
      {{{"/pre_tokenizer", "null"}}, "do not go together"},
      {{{"/pre_tokenizer/type", R"("Whitespace")"}},
       "(only Split, Digits, ByteLevel, Metaspace and a Sequence of them are)"},
      {{{"/pre_tokenizer", R"({"type": "Digits"})"}}, "do not go together"},
      {{{"/pre_tokenizer/add_prefix_space", "true"}}, "pre_tokenizer ByteLevel's add_prefix_space true"},
      {{{"/pre_tokenizer/use_regex", "2"}}, "use_regex 2"},
      {{{"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": false},
          {"type": "Digits"}]})"}},
       "behind its last part"},
      {{{"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "x"}, "behavior": "Isolated"})"}}, "a Regex is"},
      {{{"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Removed"})"}},
       "behavior \"Removed\""},
      {{{"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": true})"}},
       "invert true"},
      {{{"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "\\w"}, "behavior": "Isolated"})"}},
       "pattern has \"\\\\w\""},
      {{{"/post_processor", R"({"type": "BertProcessing"})"}}, "post_processor"},
      {{{"/post_processor", R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}},
          {"SpecialToken": {"id": "<end>"}}]})"}},
       "none behind it"},
      {{{"/post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}},
          {"Sequence": {"id": "A"}}]})"}},
       "post_processor's token \"x\" is no token"},
      {{{"/post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<end>"}},
          {"Sequence": {"id": "A"}}], "special_tokens": {"<end>": {"ids": [0]}}})"}},
       "post_processor's ids [0]"},
  };
  EXPECT_EQ(problem_of(small()), "none");
  for (const auto& each : cases) {
    const std::string problem = problem_of(changed(small(), each.changes));
    EXPECT_TRUE(says(problem, each.problem)) << problem << "\nexpected: " << each.problem;
  }
}

TEST(vocabulary, refuses_sentences_that_it_would_encode_in_another_way) {
  const struct {
    std::vector<change> changes;
    const char* problem;
  } cases[] = {
      {{{"/model/byte_fallback", "false"}}, "byte_fallback false is not supported (only true is)"},
      {{{"/model/ignore_merges", "true"}}, "ignore_merges"},
      {{{"/model/vocab/<0x41>", "null"}}, "is number null"},
      {{{"/added_tokens/0", R"({"id": 4, "content": "<0x00>", "special": true})"}},
       "no token of text for the byte <0x00>"},
      {{{"/pre_tokenizer/replacement", R"("_")"}}, R"(replacement "_" is not supported (only "\u2581" is))"},
      {{{"/pre_tokenizer/prepend_scheme", R"("last")"}}, "prepend_scheme \"last\""},
      {{{"/pre_tokenizer/prepend_scheme", R"("first")"}, {"/pre_tokenizer/add_prefix_space", "false"}},
       "without add_prefix"},
      {{{"/normalizer", R"({"type": "Prepend", "prepend": "\u2581"})"}}, "one of the two is"},
      {{{"/pre_tokenizer", "null"}, {"/normalizer", R"({"type": "Prepend", "prepend": "\u2581"})"}},
       "do not go together"},
      {{{"/pre_tokenizer", "null"},
        {"/normalizer", R"({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})"},
        {"/added_tokens/0", R"({"id": 260, "content": "x y"})"}},
       "normalized behind this normalizer"},
  };
  EXPECT_EQ(problem_of(small_sentence()), "none");
  for (const auto& each : cases) {
    const std::string problem = problem_of(changed(small_sentence(), each.changes));
    EXPECT_TRUE(says(problem, each.problem)) << problem << "\nexpected: " << each.problem;
  }
  EXPECT_TRUE(says(problem_of(small_sentence(), R"({"add_prefix_space": false})"), "add_prefix_space false"));
}

TEST(vocabulary, refuses_what_the_files_beside_it_say) {
  for (const auto& [config, problem] : {std::pair(R"({"add_eos_token": true})", "add_eos_token"),
                                        std::pair(R"({"add_bos_token": true})", "there is no bos_token"),
                                        std::pair(R"({"add_bos_token": 1})", "add_bos_token 1"),
                                        std::pair(R"({"add_prefix_space": true})", "add_prefix_space true"),
                                        std::pair(R"({"eos_token": "x"})", "eos_token \"x\" is no token"),
                                        std::pair(R"({"eos_token": [1]})", "eos_token \"\" is no token"),
                                        std::pair("[]", "tokenizer_config.json: not a JSON object"),
                                        std::pair("{", "tokenizer_config.json: not a JSON object")}) {
    EXPECT_TRUE(says(problem_of(small(), config), problem)) << problem_of(small(), config);
  }
}

TEST(vocabulary, refuses_what_is_no_object) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("[1]"), std::string("{\"a\":\"\xff\"}"),
                                  std::string(100'000, '['), std::string("{}"), std::string("{\"model\":3}")}) {
    EXPECT_THROW(parse_vocabulary({text, "", "", ""}), needle::error) << text.substr(0, 20);
  }
  EXPECT_THROW(tokenizer::read("/nowhere"), needle::error);
}

TEST(word_pattern, is_taken_where_both_notations_mean_the_same) {
  for (const char* const same :
       {R"(\p{L}+|\P{N}{1,3})", R"((?i:'s)|(?:a|b)(?=c)(?!d)(?<=e)(?<!f)(?>g))", R"([^\r\n\p{L}-]?+)",
        R"(\.\/\-\d{2}\D{3,}x*+)", "[\xe4\xb8\x80-\xe9\xbe\xa5]+", "[.^$({]"})
    EXPECT_EQ(pcre2_pattern(same), same);
  EXPECT_EQ(pcre2_pattern(R"(\s\S[\s])"), R"([\t-\r\x{85}\p{Z}][^\t-\r\x{85}\p{Z}][\t-\r\x{85}\p{Z}])");
  for (const char* const other :
       {"\\w",         "\\h",    "\\x41", "\\u0041", "\\1",     "\\",    "\\p{Han}", "\\p{^L}", "\\pL",
        "\\p{L",       ".",      "^a",    "a$",      "(?<n>a)", "(?i)a", "(?m:a)",   "(*UTF)",  "(?",
        "[[:alpha:]]", "[a&&b]", "[]a]",  "[\\S]",   "a{,2}",   "a{2}+", "a{2,3}?",  "a{b}",    "a{2"})
    EXPECT_THROW(pcre2_pattern(other), needle::error) << other;
  EXPECT_THROW(pcre2_pattern(std::string(10'001, 'a')), needle::error);
}

TEST(word_pattern, must_match_something_and_find_an_end) {
  const auto with = [](const char* pattern) {
    return changed(small(), {{"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern":
        {"Regex": ""}, "behavior": "Isolated"}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})"},
                             {"/pre_tokenizer/pretokenizers/0/pattern/Regex", json(pattern).dump().c_str()}});
  };
  EXPECT_TRUE(says(problem_of(with("a*")), "matches where there is nothing"));
  EXPECT_TRUE(says(problem_of(with("(a")), "cannot be compiled"));
  EXPECT_THROW(made(with("(?:a|a|aa)+b")).encode(std::string(200, 'a') + "cb"), needle::error);
}

TEST(chat_template, of_a_directory) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "needle_chat_template";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  EXPECT_EQ(needle::read_chat_template(folder), "");
  const auto write = [&](const char* name, const char* text) { std::ofstream(folder / name) << text; };
  write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(needle::read_chat_template(folder), "one");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "tools", "template": "two"}, 3,
                                    {"name": "default", "template": "three"}]})");
  EXPECT_EQ(needle::read_chat_template(folder), "three");
  write("tokenizer_config.json", R"({"chat_template": 7})");
  EXPECT_EQ(needle::read_chat_template(folder), "");
  write("chat_template.jinja", "four");
  EXPECT_EQ(needle::read_chat_template(folder), "four");
  write("chat_template.jinja", "");
  write("tokenizer_config.json", "[");
  EXPECT_THROW(needle::read_chat_template(folder), needle::error);
  std::filesystem::remove_all(folder);
}

}  // namespace
