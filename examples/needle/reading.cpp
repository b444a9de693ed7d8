// SPDX-License-Identifier: Apache-2.0
#include "reading.hpp"

#include "error.hpp"
#include "output.hpp"

#include <chrono>
#include <cmath>
#include <cstdio>
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

/// The text's first tokens, as many as fit before the question; `text_tokens`: how many.
tokens prompt_of(const tokenizer& words, const reading_settings& settings, std::int64_t& text_tokens) {
  tokens prompt;
  if (words.begin() >= 0) prompt.push_back(words.begin());
  const tokens text = words.encode(settings.text), question = words.encode(settings.question);
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
  std::vector<reading_result> results;
  for (const method& how : methods) {
    reading_result result;
    result.method = how.text;
    out << how.text << ": " << std::flush;
    session run(weights, how, {length + settings.generate, settings.chunk, settings.kv_type, 0}, threads);
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
    for (std::int64_t i = 0; i < settings.generate; ++i) {
      result.answer_tokens.push_back(run.generate(1).front());
      if (i == 0) result.first_token_ms = milliseconds_since(start) - judging_ms;
      if (result.answer_tokens.back() == words.end()) break;
      const std::string so_far = words.decode(result.answer_tokens);
      out << one_line(so_far.substr(result.answer.size())) << std::flush;
      result.answer = so_far;
    }
    if (result.answer_tokens.size() > 1) {
      result.ms_per_token = (milliseconds_since(start) - judging_ms - result.first_token_ms) /
                            static_cast<double>(result.answer_tokens.size() - 1);
    }
    if (result.judged > 0) result.nll /= static_cast<double>(result.judged);
    if (run.counts().reads > 0) result.keys_read = run.counts().keys_read / run.counts().reads;
    out << "\n\n";
    results.push_back(result);
  }
  return results;
}

void print_readings(std::ostream& out, const std::vector<reading_result>& results) {
  char line[256];
  std::snprintf(line, sizeof line, "%-32s %10s %9s %11s %8s %9s %9s\n", "method", "perplexity", "change", "first token",
                "speedup", "ms/token", "keys read");
  out << line;
  for (const reading_result& each : results) {
    std::snprintf(line, sizeof line, "%-32s %10.3f %+7.2f %% %8.0f ms %7.2fx %9.1f %9.0f\n",
                  one_line(each.method).c_str(), std::exp(each.nll), 100 * std::expm1(each.nll - results.front().nll),
                  each.first_token_ms, results.front().first_token_ms / each.first_token_ms, each.ms_per_token,
                  each.keys_read);
    out << line;
  }
}

}  // namespace needle
