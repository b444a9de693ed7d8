// SPDX-License-Identifier: Apache-2.0
#include "chat.hpp"

namespace needle {
namespace {

/// A form in pieces: names of special tokens, and text between them.
struct outline {
  const char* mark;                  ///< by which its template is known
  std::vector<const char*> preface;  ///< of a conversation, where the template has one of its own
  std::vector<const char*> turn;     ///< the user's
  const char* opening;
  std::vector<const char*> after;
  const char* end;
  const char* behind;  ///< text between the end of an answer and the next turn
};
const outline outlines[] = {
    {"<|im_start|>",
     {},
     {"<|im_start|>"},
     "user\n",
     {"<|im_end|>", "\n", "<|im_start|>", "assistant\n"},
     "<|im_end|>",
     "\n"},
    {"<start_of_turn>",
     {},
     {"<start_of_turn>"},
     "user\n",
     {"<end_of_turn>", "\n", "<start_of_turn>", "model\n"},
     "<end_of_turn>",
     "\n"},
    {"Cutting Knowledge Date: December 2023",  // Llama 3.1's, which goes on with the day on which it was published
     {"<|start_header_id|>", "system", "<|end_header_id|>",
      "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "<|eot_id|>"},
     {"<|start_header_id|>", "user", "<|end_header_id|>"},
     "\n\n",
     {"<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"},
     "<|eot_id|>",
     ""},
    {"<|start_header_id|>",
     {},
     {"<|start_header_id|>", "user", "<|end_header_id|>"},
     "\n\n",
     {"<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"},
     "<|eot_id|>",
     ""}};

bool is_special(const std::string& piece) {
  return piece.size() > 2 && piece.front() == '<' && piece.back() == '>';
}

/// Appends the pieces; false where the vocabulary lacks one.
bool append(const tokenizer& words, const std::vector<const char*>& pieces, std::vector<std::int32_t>& out) {
  for (const char* const piece : pieces) {
    if (!is_special(piece)) {
      const std::vector<std::int32_t> text = words.encode(piece);
      out.insert(out.end(), text.begin(), text.end());
    } else if (const std::int32_t token = words.named(piece); token >= 0) {
      out.push_back(token);
    } else {
      return false;
    }
  }
  return true;
}

/// What ChatML's template says first: the words between "<|im_start|>system", a line's end and "<|im_end|>", if they are
/// written out.
std::string first_words(std::string_view text) {
  const std::string_view head = "<|im_start|>system", tail = "<|im_end|>";
  for (std::size_t at = 0; (at = text.find(head, at)) != std::string_view::npos;) {
    at += head.size();
    std::string_view rest = text.substr(at);
    if (rest.substr(0, 1) == "\n") {
      rest.remove_prefix(1);
    } else if (rest.substr(0, 2) == "\\n") {
      rest.remove_prefix(2);
    } else {
      continue;
    }
    const std::string_view found = rest.substr(0, rest.find(tail));
    if (found.size() < rest.size() && found.find_first_of("'\"{}<") == std::string_view::npos)
      return std::string(found);
  }
  return "";
}

}  // namespace

std::optional<chat_form> chat_form_of(const skim::gguf::file& file, const tokenizer& words) {
  return chat_form_of(file.text("tokenizer.chat_template").value_or(""), words);
}

std::optional<chat_form> chat_form_of(std::string_view given, const tokenizer& words) {
  for (const outline& each : outlines) {
    if (given.find(each.mark) == std::string_view::npos) continue;
    chat_form form;
    const std::string system = first_words(given), spoken = "system\n" + system;
    const std::vector<const char*> first = {"<|im_start|>", spoken.c_str(), "<|im_end|>", "\n"};
    if (!system.empty() && !append(words, first, form.before)) return std::nullopt;
    const bool known = append(words, each.preface, form.before) && append(words, each.turn, form.before) &&
                       append(words, each.after, form.after) && append(words, {each.behind}, form.between) &&
                       append(words, each.turn, form.between);
    if (!known) return std::nullopt;
    form.opening = each.opening;
    form.end = words.named(each.end);
    return form;
  }
  return std::nullopt;
}

}  // namespace needle
