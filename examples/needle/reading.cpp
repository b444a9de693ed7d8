// SPDX-License-Identifier: Apache-2.0
#include "reading.hpp"

#include "answer.hpp"
#include "error.hpp"
#include "evaluation.hpp"
#include "opened.hpp"
#include "output.hpp"

#include <algorithm>
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

/// The text's first tokens, as many as fit before the question; their last quarter is judged.
prompt asked_about(const tokenizer& words, const reading_settings& settings) {
  prompt made;
  tokens& all = made.tokens;
  if (words.begin() >= 0) all.push_back(words.begin());
  chat_form form;
  if (settings.chat) form = *settings.chat;
  all.insert(all.end(), form.before.begin(), form.before.end());
  const tokens text = words.encode(form.opening + settings.text);
  tokens question = words.encode(settings.question);
  question.insert(question.end(), form.after.begin(), form.after.end());
  const std::int64_t room = settings.tokens - static_cast<std::int64_t>(all.size() + question.size());
  if (room < 2)
    throw error("--context " + std::to_string(settings.tokens) + " leaves no room for text beside the question");
  all.insert(all.end(), text.begin(), text.begin() + std::min(room, static_cast<std::int64_t>(text.size())));
  if (all.size() + question.size() < 2) throw error("there is no text");
  made.roles.assign(all.size(), role::unjudged);
  std::fill(made.roles.end() - static_cast<std::ptrdiff_t>(all.size() / 4), made.roles.end(), role::text);
  all.insert(all.end(), question.begin(), question.end());
  made.roles.resize(all.size(), role::unjudged);
  return made;
}

/// Text with a fact in it that is asked for; `answer`: what it says.
prompt with_a_fact(const tokenizer& words, const reading_settings& settings, std::string& answer) {
  const prose from = prose_of(words, settings.text);
  const std::int64_t most = std::min(settings.tokens, static_cast<std::int64_t>(from.text.size()));
  prompt made = make_prompt(from, {most, 1, 1}, 0.75, settings.seed);
  const auto first = std::find(made.roles.begin(), made.roles.end(), role::answer) - made.roles.begin();
  answer = words.decode({made.tokens.begin() + first, made.tokens.end()});
  made.tokens.resize(static_cast<std::size_t>(first));
  made.roles.resize(made.tokens.size());
  return made;
}

}  // namespace

std::vector<reading_result> read_and_answer(const model& weights, const tokenizer& words,
                                            const std::vector<method>& methods, const reading_settings& settings,
                                            const executor& threads, std::ostream& out) {
  std::string hidden;
  const prompt text = settings.hide_fact ? with_a_fact(words, settings, hidden) : asked_about(words, settings);
  const std::int64_t length = static_cast<std::int64_t>(text.tokens.size());
  const session_options options{length + settings.generate, settings.chunk, settings.kv_type, 0};
  for (const method& how : methods)
    session(weights, how, options, threads);  // what cannot run is refused before anything runs
  if (settings.hide_fact) {
    const tokens question(text.tokens.begin() + text.questions.front(), text.tokens.end());
    out << "hidden in " << length << " tokens of text, and asked for:" << one_line(hidden) << '\n'
        << one_line(words.decode(question)) << " ...\n\n";
  }
  // The first look at the weights, which may lie on a disk, is nobody's time.
  session(weights, methods[0], options, threads)
      .feed({text.tokens.begin(), text.tokens.begin() + std::min(settings.chunk, length)});
  std::vector<reading_result> results;
  for (const method& how : methods) {
    reading_result result;
    result.method = how.text;
    out << how.text << ": " << std::flush;
    session run(weights, how, options, threads);
    double judging_ms = 0;
    const auto start = std::chrono::steady_clock::now();
    prompt_result judged;
    run.feed(text.tokens, [&](std::int64_t first, std::int64_t count) {
      const auto paused = std::chrono::steady_clock::now();  // what judges is not what a prompt costs
      judge(run, text, first, count, judged);
      judging_ms += milliseconds_since(paused);
    });
    result.judged = judged.judged;
    result.nll = judged.nll;
    if (run.counts().reads > 0) result.keys_read = run.counts().keys_read / run.counts().reads;
    answer reply(words, out, settings.hide_fact ? answer::lines::first_only : answer::lines::as_blanks);
    for (std::int64_t i = 0; i < settings.generate; ++i) {
      const std::int32_t token = run.generate(1).front();
      if (i == 0) result.first_token_ms = milliseconds_since(start) - judging_ms;
      ++result.answer_tokens;
      if (token == words.end() || (settings.chat && token == settings.chat->end) || !reply.add(token)) break;
    }
    reply.flush();
    if (result.answer_tokens > 1) {
      result.ms_per_token = (milliseconds_since(start) - judging_ms - result.first_token_ms) /
                            static_cast<double>(result.answer_tokens - 1);
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
      << std::setw(10) << "keys read" << std::setw(9) << "share" << '\n';
  for (const reading_result& each : results) {
    const reading_result& first = results.front();
    out << std::left << std::setw(32) << one_line(each.method) << std::right;
    cell(11, each.judged > 0, "%.3f", std::exp(each.nll));
    cell(10, each.judged > 0, "%+.2f %%", 100 * std::expm1(each.nll - first.nll));
    cell(13, true, "%.0f ms", each.first_token_ms);
    cell(9, true, "%.2fx", first.first_token_ms / each.first_token_ms);
    cell(10, each.answer_tokens > 1, "%.1f", each.ms_per_token);
    cell(10, true, "%.0f", each.keys_read);
    cell(9, first.keys_read > 0, "%.0f %%", 100 * each.keys_read / first.keys_read);
    out << '\n';
  }
}

}  // namespace needle
