// SPDX-License-Identifier: Apache-2.0
#include "reading.hpp"

#include "error.hpp"
#include "output.hpp"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <ostream>

namespace needle {
namespace {

using tokens = std::vector<std::int32_t>;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

/// Nats of each row's next token.
double loss(const matrix& logits, const std::int32_t* next) {
  double sum = 0;
  for (std::int64_t i = 0; i < logits.rows(); ++i) {
    const float largest = logits.row(i).maxCoeff();
    const double mass = static_cast<double>((logits.row(i).array() - largest).exp().sum());
    sum += std::log(mass) - static_cast<double>(logits(i, next[i]) - largest);
  }
  return sum;
}

/// Bytes of the text without a last character that is not all there.
std::size_t whole_characters(const std::string& text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const unsigned char byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) break;
    if (byte >= 0xc0) return (byte < 0xe0 ? 2u : byte < 0xf0 ? 3u : 4u) > back ? text.size() - back : text.size();
  }
  return text.size();
}

/// The text's first tokens, as many as fit before the question; `text_tokens`: how many, with what stands before them.
tokens prompt_of(const tokenizer& words, const reading_settings& settings, std::int64_t& text_tokens) {
  tokens prompt;
  if (words.begin() >= 0) prompt.push_back(words.begin());
  chat_form form;
  if (settings.chat) form = *settings.chat;
  prompt.insert(prompt.end(), form.before.begin(), form.before.end());
  const tokens text = words.encode(form.opening + settings.text);
  tokens question = words.encode(settings.question);
  question.insert(question.end(), form.after.begin(), form.after.end());
  const std::int64_t room = settings.tokens - static_cast<std::int64_t>(prompt.size() + question.size());
  if (room < 2)
    throw error("--context " + std::to_string(settings.tokens) + " leaves no room for text beside the question");
  const std::int64_t taken = std::min(room, static_cast<std::int64_t>(text.size()));
  prompt.insert(prompt.end(), text.begin(), text.begin() + taken);
  text_tokens = static_cast<std::int64_t>(prompt.size());
  if (text_tokens + static_cast<std::int64_t>(question.size()) < 2) throw error("there is no text");
  prompt.insert(prompt.end(), question.begin(), question.end());
  return prompt;
}

}  // namespace

std::vector<reading_result> read_and_answer(const model& weights, const tokenizer& words,
                                            const std::vector<method>& methods, const reading_settings& settings,
                                            const executor& threads, std::ostream& out) {
  std::int64_t text_tokens = 0;
  const tokens prompt = prompt_of(words, settings, text_tokens);
  const std::int64_t judged_from = text_tokens - text_tokens / 4;
  const std::int64_t length = static_cast<std::int64_t>(prompt.size());
  const session_options options{length + settings.generate, settings.chunk, settings.kv_type, 0};
  for (const method& how : methods)
    session(weights, how, options, threads);  // what cannot run is refused before anything runs
  std::vector<reading_result> results;
  for (const method& how : methods) {
    reading_result result;
    result.method = how.text;
    out << how.text << ": " << std::flush;
    session run(weights, how, options, threads);
    double judging_ms = 0;
    const auto start = std::chrono::steady_clock::now();
    run.feed(prompt, [&](std::int64_t first, std::int64_t count) {
      const auto paused = std::chrono::steady_clock::now();  // what judges is not what a prompt costs
      const std::int64_t from = std::max(first, judged_from - 1), to = std::min(first + count, text_tokens - 1);
      if (from < to) {
        result.nll += loss(run.logits(from, to - from), prompt.data() + from + 1);
        result.judged += to - from;
      }
      judging_ms += milliseconds_since(paused);
    });
    if (run.counts().reads > 0) result.keys_read = run.counts().keys_read / run.counts().reads;
    std::size_t shown = 0;
    for (std::int64_t i = 0; i < settings.generate; ++i) {
      result.answer_tokens.push_back(run.generate(1).front());
      if (i == 0) result.first_token_ms = milliseconds_since(start) - judging_ms;
      const std::int32_t token = result.answer_tokens.back();
      if (token == words.end() || (settings.chat && token == settings.chat->end)) break;
      result.answer = words.decode(result.answer_tokens);
      const std::size_t whole = std::max(whole_characters(result.answer), shown);
      out << one_line(result.answer.substr(shown, whole - shown)) << std::flush;
      shown = whole;
    }
    out << one_line(result.answer.substr(shown));
    if (result.answer_tokens.size() > 1) {
      result.ms_per_token = (milliseconds_since(start) - judging_ms - result.first_token_ms) /
                            static_cast<double>(result.answer_tokens.size() - 1);
    }
    if (result.judged > 0) result.nll /= static_cast<double>(result.judged);
    out << "\n\n";
    results.push_back(result);
  }
  return results;
}

void print_readings(std::ostream& out, const std::vector<reading_result>& results) {
  const auto cell = [&](int width, bool known, const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, known ? format : "-", value);
    out << std::setw(width) << text;
  };
  out << std::left << std::setw(32) << "method" << std::right << std::setw(11) << "perplexity" << std::setw(10)
      << "change" << std::setw(13) << "first token" << std::setw(9) << "speedup" << std::setw(10) << "ms/token"
      << std::setw(10) << "keys read" << '\n';
  for (const reading_result& each : results) {
    const reading_result& first = results.front();
    out << std::left << std::setw(32) << one_line(each.method) << std::right;
    cell(11, each.judged > 0, "%.3f", std::exp(each.nll));
    cell(10, each.judged > 0, "%+.2f %%", 100 * std::expm1(each.nll - first.nll));
    cell(13, true, "%.0f ms", each.first_token_ms);
    cell(9, true, "%.2fx", first.first_token_ms / each.first_token_ms);
    cell(10, each.answer_tokens.size() > 1, "%.1f", each.ms_per_token);
    cell(10, true, "%.0f", each.keys_read);
    out << '\n';
  }
}

}  // namespace needle
