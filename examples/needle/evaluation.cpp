// SPDX-License-Identifier: Apache-2.0
#include "evaluation.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace needle {
namespace {

/// What the runs of one method add up to.
struct tally {
  std::vector<double> ttft_ms, select_ms, attention_ms, ffn_ms;
  std::int64_t answers = 0, right = 0, others = 0;
  double nll = 0, keys_read = 0, reads = 0;
  std::int64_t kv_bytes_held = 0;
};

double median(std::vector<double> values) {
  const std::size_t middle = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Position i's logits speak about token i + 1.
void judge(const session& run, const prompt& text, const executor& threads, tally& sum) {
  constexpr std::int64_t piece = 128;
  std::vector<double> nll(static_cast<std::size_t>(piece));
  std::vector<char> hit(static_cast<std::size_t>(piece));
  for (std::int64_t first = 0; first < run.tokens(); first += piece) {
    const std::int64_t count = std::min(piece, run.tokens() - first);
    const matrix logits = run.logits(first, count);
    threads.parallel_for(count, [&](std::int64_t i, unsigned) {
      const std::int32_t target = text.tokens[static_cast<std::size_t>(first + i + 1)];
      Eigen::Index likeliest = 0;
      const float largest = logits.row(i).maxCoeff(&likeliest);
      const double mass = static_cast<double>((logits.row(i).array() - largest).exp().sum());
      nll[static_cast<std::size_t>(i)] = std::log(mass) - static_cast<double>(logits(i, target) - largest);
      hit[static_cast<std::size_t>(i)] = likeliest == target;
    });
    for (std::int64_t i = 0; i < count; ++i) {
      const std::size_t target = static_cast<std::size_t>(first + i + 1);
      if (text.is_answer[target]) {
        ++sum.answers;
        sum.right += hit[static_cast<std::size_t>(i)];
      } else if (text.tokens[target] != vocabulary::pad) {
        ++sum.others;
        sum.nll += nll[static_cast<std::size_t>(i)];
      }
    }
  }
}

void run_once(const model& weights, const method& how, const evaluation_settings& settings, const prompt& text,
              const executor& threads, tally& sum) {
  const std::vector<std::int32_t> fed(text.tokens.begin(), text.tokens.end() - 1);
  const std::int64_t capacity = static_cast<std::int64_t>(fed.size());
  session run(weights, how, {capacity, settings.chunk, settings.kv_type}, threads);
  const auto start = std::chrono::steady_clock::now();
  run.feed(fed);
  const row last = run.logits(capacity - 1);
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  sum.ttft_ms.push_back(elapsed.count());
  sum.select_ms.push_back(run.counts().select_ms);
  sum.attention_ms.push_back(run.counts().attention_ms);
  sum.ffn_ms.push_back(run.counts().ffn_ms);
  sum.keys_read += run.counts().keys_read;
  sum.reads += run.counts().reads;
  sum.kv_bytes_held = std::max(sum.kv_bytes_held, run.kv_bytes_held());
  judge(run, text, threads, sum);
}

evaluation_result result_of(const std::string& name, const tally& sum) {
  evaluation_result result;
  result.method = name;
  result.accuracy = static_cast<double>(sum.right) / static_cast<double>(sum.answers);
  result.nll = sum.nll / static_cast<double>(sum.others);
  result.ttft_ms = median(sum.ttft_ms);
  result.select_ms = median(sum.select_ms);
  result.attention_ms = median(sum.attention_ms);
  result.ffn_ms = median(sum.ffn_ms);
  result.kv_tokens_read = sum.keys_read / sum.reads;
  result.kv_bytes_held = sum.kv_bytes_held;
  return result;
}

/// The first words, the asked needle among its neighbours, and dots between.
std::string shortened(const prompt& text, std::int64_t question) {
  constexpr std::int64_t opening = 24, around = 12;
  const std::size_t key = static_cast<std::size_t>(question) + 4;
  const auto fact = std::find(text.tokens.begin(), text.tokens.end(), text.tokens[key]);
  const std::int64_t at = fact - text.tokens.begin() - 4;  // where its sentence begins
  const std::int64_t first = std::max<std::int64_t>(at - around, 1);
  const std::int64_t last = std::min(at + statement_tokens + around, text.questions.front());
  std::string words = spelling(text.tokens, 1, std::min(opening, first));
  if (first > opening)
    words += (words.empty() ? "" : " ") + ("... (" + std::to_string(first - opening)) + " words) ...";
  words += (words.empty() ? "" : " ") + spelling(text.tokens, first, last);
  if (last < question) words += " ... (" + std::to_string(question - last) + " words) ...";
  return words;
}

}  // namespace

std::vector<evaluation_result> evaluate(const model& weights, const std::vector<method>& methods,
                                        const evaluation_settings& settings, const executor& threads,
                                        const progress& report) {
  std::vector<tally> tallies(methods.size());
  prompt_source source(settings.seed);
  const std::int64_t all = settings.prompts * static_cast<std::int64_t>(methods.size());
  std::int64_t done = 0;
  for (std::int64_t number = 0; number < settings.prompts; ++number) {
    const prompt text = source.next(settings.shape);
    for (std::size_t i = 0; i < methods.size(); ++i) {
      report(done++, all, methods[i].text);
      run_once(weights, methods[i], settings, text, threads, tallies[i]);
    }
  }
  report(all, all, "");
  std::vector<evaluation_result> results;
  for (std::size_t i = 0; i < methods.size(); ++i) results.push_back(result_of(methods[i].text, tallies[i]));
  return results;
}

shown_question ask(const model& weights, const std::vector<method>& methods, const evaluation_settings& settings,
                   const executor& threads) {
  prompt_source source(settings.seed);
  const prompt text = source.next(settings.shape);
  const std::int64_t question = text.questions.front(), answer = question + 5;
  const std::vector<std::int32_t> fed(text.tokens.begin(), text.tokens.begin() + answer);
  shown_question result;
  result.prompt = shortened(text, question);
  result.question = spelling(text.tokens, question, answer);
  result.answer = spelling(text.tokens, answer, answer + 2);
  for (const method& how : methods) {
    session run(weights, how, {answer + 2, settings.chunk, settings.kv_type}, threads);
    run.feed(fed);
    const std::vector<std::int32_t> words = run.generate(2);
    result.answers.push_back({how.text, spelling(words, 0, 2), false});
    result.answers.back().right = std::equal(words.begin(), words.end(), text.tokens.begin() + answer);
  }
  return result;
}

}  // namespace needle
