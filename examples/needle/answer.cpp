// SPDX-License-Identifier: Apache-2.0
#include "answer.hpp"

#include "output.hpp"

#include <algorithm>
#include <ostream>

namespace needle {
namespace {

/// Bytes of the text without a last character that is not all there.
std::size_t whole_characters(const std::string& text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const unsigned char byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) break;
    if (byte >= 0xc0) return (byte < 0xe0 ? 2u : byte < 0xf0 ? 3u : 4u) > back ? text.size() - back : text.size();
  }
  return text.size();
}

}  // namespace

bool answer::add(std::int32_t token) {
  tokens_.push_back(token);
  text_ = words_.decode(tokens_);
  const std::size_t line = how_ == lines::first_only ? text_.find('\n') : std::string::npos;
  if (line != std::string::npos) text_.resize(line);
  write(whole_characters(text_));
  return line == std::string::npos;
}

void answer::flush() {
  write(text_.size());
}

void answer::write(std::size_t to) {
  if (to <= shown_) return;
  const std::string more = text_.substr(shown_, to - shown_);
  shown_ = to;
  if (how_ != lines::kept) {
    out_ << one_line(more) << std::flush;
    return;
  }
  for (std::size_t from = 0;;) {
    const std::size_t end = more.find('\n', from);
    out_ << one_line(more.substr(from, end - from));
    if (end == std::string::npos) break;
    out_ << '\n';
    from = end + 1;
  }
  out_ << std::flush;
}

}  // namespace needle
