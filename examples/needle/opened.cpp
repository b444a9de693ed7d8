// SPDX-License-Identifier: Apache-2.0
#include "opened.hpp"

#include "error.hpp"
#include "gguf_model.hpp"
#include "vocabulary.hpp"

#include <fstream>
#include <iterator>

namespace needle {
namespace {

/// The model's directory; empty where `name` is a file.
std::filesystem::path directory_of(const std::string& name) {
  if (name == "qwen2" || name == "llama") return std::filesystem::path(NEEDLE_MODELS) / name;
  std::error_code code;
  if (std::filesystem::is_directory(name, code)) return name;
  if (std::filesystem::is_regular_file(name, code)) return {};
  throw error("model '" + name + "' is not qwen2, llama, a directory or a .gguf that is there");
}

opened_model open_gguf(const std::string& name) {
  const auto file = std::make_shared<const skim::gguf::file>(skim::gguf::file::read(name));
  if (!file->ok()) throw error(name + ": " + file->error());
  try {
    tokenizer words(*file);
    std::optional<chat_form> chat = chat_form_of(*file, words);
    return {read_model(file), std::move(words), std::move(chat)};
  } catch (const error& problem) {
    throw error(name + ": " + problem.what());
  }
}

}  // namespace

opened_model open_model(const std::string& name) {
  const std::filesystem::path directory = directory_of(name);
  if (directory.empty()) {
    opened_model opened = open_gguf(name);
    read_fitted(fitted_path_of(name), opened.weights);
    return opened;
  }
  opened_model opened{read_model(directory), std::nullopt, std::nullopt};
  std::error_code code;
  if (std::filesystem::exists(directory / "tokenizer.json", code)) {
    opened.words.emplace(tokenizer::read(directory));
    opened.chat = chat_form_of(read_chat_template(directory), *opened.words);
  }
  return opened;
}

std::filesystem::path fitted_path_of(const std::string& name) {
  const std::filesystem::path directory = directory_of(name);
  if (!directory.empty()) return directory / fitted_file;
  return std::filesystem::path(name).replace_extension(fitted_file);
}

prose prose_of(const tokenizer& words, const std::string& text) {
  prose from{words.encode(text),
             {},
             [&words](const std::string& more) { return words.encode(more); },
             [&words](std::int32_t token) { return words.decode({token}); }};
  if (words.begin() >= 0) from.begin.push_back(words.begin());
  return from;
}

std::string text_in(const std::string& path) {
  std::error_code code;
  std::ifstream stream(path, std::ios::binary);
  if (!stream || std::filesystem::is_directory(path, code))
    throw error(path + ": cannot be read, expected a file with text");
  std::string text((std::istreambuf_iterator<char>(stream)), {});
  if (text.empty()) throw error(path + ": is empty, expected a file with text");
  return text;
}

}  // namespace needle
