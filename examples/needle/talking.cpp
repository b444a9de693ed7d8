// SPDX-License-Identifier: Apache-2.0
#include "talking.hpp"

#include "answer.hpp"
#include "error.hpp"

#include <chrono>
#include <istream>
#include <ostream>

namespace needle {
namespace {

using tokens = std::vector<std::int32_t>;

void append(tokens& to, const tokens& more) {
  to.insert(to.end(), more.begin(), more.end());
}

}  // namespace

void talk(const opened_model& with, const method& how, const talking_settings& settings, const executor& threads,
          std::istream& in, std::ostream& out, std::ostream& notes) {
  if (!with.words || !with.chat) throw error("the model has no form of conversations that is known here");
  const tokenizer& words = *with.words;
  const chat_form& form = *with.chat;
  const std::int64_t trained = with.weights.config.trained_positions;
  constexpr std::int64_t untold = 8192;
  const std::int64_t capacity = settings.tokens > 0 ? settings.tokens : trained > 0 ? trained : untold;
  session run(with.weights, how, {capacity, settings.chunk, settings.kv_type, 0}, threads);
  bool ended = true, warned = false;  // the last answer, with the token that ends one
  for (std::string line; std::getline(in, line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;  // nothing was said
    tokens turn;
    if (run.tokens() == 0) {
      if (words.begin() >= 0) turn.push_back(words.begin());
      append(turn, form.before);
      if (!settings.text.empty()) line = settings.text + "\n\n" + line;
    } else {
      if (!ended) turn.push_back(form.end);
      append(turn, form.between);
    }
    append(turn, words.encode(form.opening + line));
    append(turn, form.after);
    const std::int64_t room = capacity - run.tokens() - static_cast<std::int64_t>(turn.size());
    if (room < 1) {
      throw error("a conversation of " + std::to_string(capacity) + " tokens has no room for this turn's " +
                  std::to_string(turn.size()) + " behind " + std::to_string(run.tokens()) +
                  ": --context says how many there may be");
    }
    const auto start = std::chrono::steady_clock::now();
    run.feed(turn);
    double first_ms = 0;
    ended = false;
    answer reply(words, out, answer::lines::kept);
    for (std::int64_t i = 0; i < std::min(settings.answer, room) && !ended; ++i) {
      const std::int32_t token = run.generate(1).front();
      if (i == 0) {
        first_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      }
      ended = token == form.end;
      if (!ended) reply.add(token);
    }
    reply.flush();
    out << "\n\n" << std::flush;
    notes << "(" << run.tokens() << " tokens so far, " << run.counts().kv_tokens << " held; " << turn.size()
          << " read, first token after " << static_cast<std::int64_t>(first_ms) << " ms)\n";
    if (trained > 0 && run.tokens() > trained && !warned) {
      notes << "(beyond the " << trained << " positions that the model was trained on: expect nonsense)\n";
      warned = true;
    }
  }
}

}  // namespace needle
