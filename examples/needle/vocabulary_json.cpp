// SPDX-License-Identifier: Apache-2.0
#include "error.hpp"
#include "json_text.hpp"
#include "vocabulary.hpp"
#include "word_pattern.hpp"

#include <algorithm>
#include <initializer_list>
#include <unordered_map>
#include <unordered_set>

namespace needle {
namespace {

using nlohmann::json;

constexpr std::uintmax_t longest_vocabulary = 100'000'000;  // Gemma's has a third of that
constexpr std::uintmax_t longest_config = 1 << 24;          // tokenizer_config.json repeats the special tokens
constexpr std::size_t most_patterns = 16;

[[noreturn]] void refuse(const std::string& where, const json& found, const std::string& understood) {
  throw error(where + " " + shown(found) + " is not supported (only " + understood + ")");
}

/// Refuses a field that is there and has none of these values.
void require(const std::string& where, const json& object, const char* name, std::initializer_list<json> supported) {
  const json& value = field(object, name);
  if (value.is_null() || std::find(supported.begin(), supported.end(), value) != supported.end()) return;
  std::string all;
  for (const json& each : supported) all += (all.empty() ? "" : " or ") + shown(each);
  refuse(where + "'s " + name, value, all + " is");
}

bool flag(const std::string& where, const json& object, const char* name, bool otherwise) {
  require(where, object, name, {true, false});
  const json& value = field(object, name);
  return value.is_null() ? otherwise : value.get<bool>();
}

const json& list(const std::string& where, const json& object, const char* name) {
  const json& value = field(object, name);
  if (!value.is_array()) throw error(where + "'s " + name + " is " + shown(value) + ", expected a list");
  return value;
}

std::string text(const json& value) {
  return value.is_string() ? value.get<std::string>() : "";
}

/// Reads part by part; what one part leaves for another stands below.
class reader {
 public:
  token_table read(const vocabulary_files& files) {
    const json tokenizer = parse_object(files.tokenizer, "tokenizer.json");
    const auto beside = [](const std::string& given, const char* name) {
      return given.empty() ? json::object() : parse_object(given, name);
    };
    // Truncation and padding are for batches, and the decoder for what decode() finds by itself.
    read_normalizer(field(tokenizer, "normalizer"));
    read_words(field(tokenizer, "pre_tokenizer"));
    check_spaces();
    const json& model = field(tokenizer, "model");
    read_rules(model);
    read_tokens(field(model, "vocab"), field(tokenizer, "added_tokens"));
    read_merges(list("model", model, "merges"));
    check_bytes(text(field(model, "unk_token")));
    read_template(field(tokenizer, "post_processor"));
    read_config(beside(files.tokenizer_config, "tokenizer_config.json"),
                beside(files.generation_config, "generation_config.json"), beside(files.config, "config.json"));
    return std::move(read_);
  }

 private:
  void read_normalizer(const json& given) {
    const std::string kind = text(field(given, "type"));
    if (kind == "Sequence") {
      for (const json& each : list("normalizer", given, "normalizers")) read_normalizer(each);
    } else if (kind == "NFC") {
      read_.normal_form = true;
    } else if (kind == "Prepend" && field(given, "prepend") == metaspace && read_.space == space_rule::never) {
      read_.space = space_rule::always;
    } else if (kind == "Replace" && field(field(given, "pattern"), "String") == " " &&
               field(given, "content") == metaspace) {
      spaces_replaced_ = true;
    } else if (!given.is_null()) {
      refuse("normalizer", given, "NFC, Prepend of U+2581, Replace of a space by U+2581 and a Sequence of them are");
    }
  }

  void read_words(const json& given) {
    const std::string kind = text(field(given, "type"));
    const std::string where = "pre_tokenizer " + kind;
    if (given.is_null()) return;
    if (read_.byte_level || spaces_shown_) refuse("pre_tokenizer, behind its last part,", given, "nothing is");
    if (kind == "Sequence") {
      for (const json& each : list(where, given, "pretokenizers")) read_words(each);
    } else if (kind == "Split") {
      const json& pattern = field(given, "pattern");
      if (spaces_replaced_ && field(pattern, "String") == " ") return;  // Gemma's; there are none
      if (!field(pattern, "Regex").is_string()) refuse(where + "'s pattern", pattern, "a Regex is");
      if (field(given, "behavior") != "Isolated")
        refuse(where + "'s behavior", field(given, "behavior"), "\"Isolated\" is");
      require(where, given, "invert", {false});
      add_pattern(pcre2_pattern(field(pattern, "Regex").get<std::string>()));
    } else if (kind == "Digits") {
      add_pattern(flag(where, given, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    } else if (kind == "ByteLevel") {
      if (flag(where, given, "add_prefix_space", true)) refuse(where + "'s add_prefix_space", true, "false is");
      if (flag(where, given, "use_regex", true)) add_pattern(pcre2_pattern(gpt2_words));
      read_.byte_level = true;
    } else if (kind == "Metaspace") {
      require(where, given, "replacement", {metaspace});
      require(where, given, "prepend_scheme", {"always", "first", "never"});
      const bool before = flag(where, given, "add_prefix_space", true);  // as older files say it
      const std::string scheme = text(field(given, "prepend_scheme"));
      if (!before && !scheme.empty() && scheme != "never")
        refuse(where + "'s prepend_scheme without add_prefix_space", scheme, "\"never\" is");
      if (read_.space != space_rule::never) refuse(where + " behind Prepend", given, "one of the two is");
      if (before && scheme != "never")
        read_.space = scheme == "first" ? space_rule::first_missing : space_rule::missing;
      read_.split_at_spaces = flag(where, given, "split", true);
      spaces_shown_ = true;
    } else {
      refuse("pre_tokenizer", given, "Split, Digits, ByteLevel, Metaspace and a Sequence of them are");
    }
  }

  void add_pattern(const std::string& pattern) {
    read_.words.push_back(pattern);
    if (read_.words.size() > most_patterns)
      throw error("pre_tokenizer has more patterns than the " + std::to_string(most_patterns) + " that are read");
  }

  /// Of byte-level vocabularies spaces are bytes like any others; of the rest they become U+2581, which is done once.
  void check_spaces() const {
    if (read_.byte_level && !spaces_replaced_ && read_.space == space_rule::never) return;
    if (!read_.byte_level && spaces_replaced_ != spaces_shown_ && read_.words.empty()) return;
    throw error(
        "normalizer and pre_tokenizer do not go together, expected ByteLevel, or spaces that become U+2581, by Replace "
        "or by "
        "Metaspace");
  }

  void read_rules(const json& model) {
    require("model", model, "type", {"BPE"});  // of which GPT-2's file says nothing
    require("model", model, "dropout", {0.0});
    require("model", model, "continuing_subword_prefix", {""});
    require("model", model, "end_of_word_suffix", {""});
    flag("model", model, "fuse_unk", false);
    const bool fallback = flag("model", model, "byte_fallback", false);
    if (!read_.byte_level && !fallback) refuse("model without ByteLevel and with byte_fallback", fallback, "true is");
    read_.whole_words = flag("model", model, "ignore_merges", false);
    if (read_.whole_words && !read_.byte_level) refuse("model's ignore_merges without ByteLevel", true, "false is");
    if (!field(model, "unk_token").is_null() && !field(model, "unk_token").is_string())
      refuse("model's unk_token", field(model, "unk_token"), "a text is");
  }

  /// Tokens have the numbers from 0 on, each once: with others, tokens that are added get other numbers than their own.
  void read_tokens(const json& model, const json& added) {
    if (!model.is_object() || model.empty()) throw error("model's vocab is " + shown(model) + ", expected an object");
    if (!added.is_null() && !added.is_array()) throw error("added_tokens is " + shown(added) + ", expected a list");
    std::unordered_set<std::string> seen;
    std::size_t count = model.size();
    for (const json& each : added) {
      if (!field(each, "content").is_string() || field(each, "content") == "")
        throw error("added_tokens has " + shown(each) + ", expected an object with content");
      const std::string name = text(field(each, "content"));
      if (!seen.insert(name).second) throw error("added_tokens has " + shown(name) + " twice");
      if (!model.contains(name)) ++count;
    }
    read_.pieces.resize(count);
    read_.kinds.resize(count);
    for (const auto& [name, id] : model.items()) add_token(name, id);
    for (const json& each : added) add_whole(each);
  }

  std::int32_t add_token(const std::string& name, const json& id) {
    const std::size_t count = read_.pieces.size();
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= count)
      throw error("the token " + shown(name) + " is number " + shown(id) + ", expected one of 0 to " +
                  std::to_string(count - 1) + ": there are " + std::to_string(count));
    const auto token = id.get<std::int32_t>();
    if (!numbers_.insert(token).second)
      throw error("the token " + shown(name) + " is number " + shown(id) + ", as another");
    read_.pieces[static_cast<std::size_t>(token)] = name;
    ids_.emplace(name, token);
    return token;
  }

  /// A token that is found in a text as it stands; special ones are not, whose names are text.
  void add_whole(const json& given) {
    const std::string name = text(field(given, "content")), where = "the added token " + shown(name);
    const auto known = ids_.find(name);
    const std::int32_t token = known != ids_.end() ? known->second : add_token(name, field(given, "id"));
    if (field(given, "id") != token)
      throw error(where + " is number " + shown(field(given, "id")) + ", in vocab " + std::to_string(token));
    piece_kind& kind = read_.kinds[static_cast<std::size_t>(token)];
    if (flag(where, given, "special", false)) {
      kind = piece_kind::special;
      return;
    }
    for (const char* const name_of_rule : {"single_word", "lstrip", "rstrip"})
      require(where, given, name_of_rule, {false});
    if (known == ids_.end()) kind = piece_kind::added;
    if (!flag(where, given, "normalized", true)) {
      read_.whole.push_back(token);
      return;
    }
    // It is looked for in the text that the normalizer gives, which is not at hand where that changes spaces.
    const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x80 && c != ' '; });
    if (read_.space == space_rule::always || ((spaces_replaced_ || read_.normal_form) && !plain))
      refuse(where + "'s normalized behind this normalizer", true, "false is");
    read_.whole_later.push_back(token);
  }

  void read_merges(const json& merges) {
    std::unordered_set<std::string> seen;
    const auto token = [&](const std::string& name, const json& merge) {
      const auto at = ids_.find(name);
      if (at == ids_.end() || read_.kinds[static_cast<std::size_t>(at->second)] == piece_kind::added)
        throw error("model's merges have " + shown(merge) + ", of which " + shown(name) + " is not in vocab");
      return at->second;
    };
    for (const json& each : merges) {
      std::string merge = text(each);
      if (each.is_array() && each.size() == 2) merge = text(each[0]) + " " + text(each[1]);
      const std::size_t space = merge.find(' ');
      if (space == merge.npos || space == 0 || space + 1 == merge.size() || merge.find(' ', space + 1) != merge.npos)
        throw error("model's merges have " + shown(each) + ", expected two pieces without spaces");
      token(merge.substr(0, space), each);
      token(merge.substr(space + 1), each);
      const std::int32_t joined = token(merge.substr(0, space) + merge.substr(space + 1), each);
      if (!seen.insert(merge).second) throw error("model's merges have " + shown(each) + " twice");
      // The names of special tokens are text: nothing is joined to one.
      if (read_.kinds[static_cast<std::size_t>(joined)] != piece_kind::special)
        read_.merges.push_back(std::move(merge));
    }
  }

  /// Where a byte of UTF-8 has no token, the other program leaves it out, or puts in the token for what is not known.
  void check_bytes(const std::string& unknown) {
    if (const auto at = ids_.find(unknown); !read_.byte_level && at != ids_.end())
      read_.kinds[static_cast<std::size_t>(at->second)] = piece_kind::special;
    for (int code = 0; code < 256; ++code) {
      if (code == 0xc0 || code == 0xc1 || code > 0xf4) continue;  // in no UTF-8
      const auto byte = static_cast<unsigned char>(code);
      const auto at = ids_.find(read_.byte_level ? character_of_byte(byte) : name_of_byte(byte));
      if (at == ids_.end() && read_.byte_level && unknown.empty()) continue;
      if (at != ids_.end() && read_.kinds[static_cast<std::size_t>(at->second)] == piece_kind::text) continue;
      throw error("model's vocab has no token of text for the byte " + name_of_byte(byte));
    }
  }

  std::int32_t named(const std::string& name, const std::string& where) const {
    const auto at = ids_.find(name);
    if (at == ids_.end()) throw error(where + " " + shown(name) + " is no token");
    return at->second;
  }

  /// What stands before a text. Of what would stand behind one nothing is understood: the model is to go on there.
  void read_template(const json& given) {
    const std::string kind = text(field(given, "type"));
    if (kind == "Sequence") {
      for (const json& each : list("post_processor", given, "processors")) read_template(each);
    } else if (kind == "TemplateProcessing") {
      const json& parts = list("post_processor", given, "single");
      const bool begins = parts.size() == 2;
      if ((!begins && parts.size() != 1) || field(field(parts.back(), "Sequence"), "id") != "A" || read_.begin >= 0)
        refuse("post_processor", given, "one token before a text, and none behind it, are");
      if (!begins) return;
      const std::string name = text(field(field(parts[0], "SpecialToken"), "id"));
      read_.begin = named(name, "post_processor's token");
      const json& ids = field(field(field(given, "special_tokens"), name.c_str()), "ids");
      if (ids != json::array({read_.begin}))
        refuse("post_processor's ids", ids, "[" + std::to_string(read_.begin) + "] are");
    } else if (!given.is_null() && kind != "ByteLevel") {
      refuse("post_processor", given,
             "TemplateProcessing, ByteLevel, which changes no tokens, and a Sequence of them are");
    }
  }

  /// Which tokens begin and end a text: by name, else by number.
  void read_config(const json& tokenizer, const json& generation, const json& config) {
    const std::string where = "tokenizer_config.json";
    const bool spaces = read_.space != space_rule::never;
    if (flag(where, tokenizer, "add_prefix_space", spaces) != spaces)
      refuse(where + "'s add_prefix_space", !spaces,
             std::string(spaces ? "true" : "false") + ", as in tokenizer.json, is");
    if (flag(where, tokenizer, "add_eos_token", false)) refuse(where + "'s add_eos_token", true, "false is");
    const auto token = [&](const std::string& name) {
      const json& given = field(tokenizer, (name + "_token").c_str());
      const json& content = given.is_object() ? field(given, "content") : given;
      if (!content.is_null()) return named(text(content), where + "'s " + name + "_token");
      for (const json* const numbers : {&generation, &config}) {
        const json& id = field(*numbers, (name + "_token_id").c_str());
        const json& first = id.is_array() && !id.empty() ? id[0] : id;
        if (first.is_number_unsigned() && first.get<std::uint64_t>() < read_.pieces.size())
          return first.get<std::int32_t>();
      }
      return -1;
    };
    read_.end = token("eos");
    if (field(tokenizer, "add_bos_token").is_null()) return;
    read_.begin = flag(where, tokenizer, "add_bos_token", false) ? token("bos") : -1;
    if (read_.begin < 0 && field(tokenizer, "add_bos_token") == true)
      throw error(where + " has add_bos_token, and there is no bos_token");
  }

  token_table read_;
  bool spaces_replaced_ = false;  // by the normalizer
  bool spaces_shown_ = false;     // by Metaspace
  std::unordered_map<std::string, std::int32_t> ids_;
  std::unordered_set<std::int32_t> numbers_;
};

std::string read_if_there(const std::filesystem::path& path) {
  std::error_code code;
  return std::filesystem::exists(path, code) ? read_text(path, longest_config) : "";
}

}  // namespace

token_table parse_vocabulary(const vocabulary_files& files) {
  return reader().read(files);
}

vocabulary_files read_vocabulary_files(const std::filesystem::path& directory) {
  return {read_text(directory / "tokenizer.json", longest_vocabulary),
          read_if_there(directory / "tokenizer_config.json"), read_if_there(directory / "generation_config.json"),
          read_if_there(directory / "config.json")};
}

std::string read_chat_template(const std::filesystem::path& directory) {
  if (std::string found = read_if_there(directory / "chat_template.jinja"); !found.empty()) return found;
  const std::string given = read_if_there(directory / "tokenizer_config.json");
  if (given.empty()) return "";
  const json config = parse_object(given, (directory / "tokenizer_config.json").string());
  const json& found = field(config, "chat_template");
  for (const json& each : found.is_array() ? found : json::array()) {
    if (field(each, "name") == "default") return text(field(each, "template"));
  }
  return text(found);
}

}  // namespace needle
