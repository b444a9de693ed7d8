// SPDX-License-Identifier: Apache-2.0
#include "evaluation.hpp"

#include "error.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/testing/captured_mass.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

namespace needle {
namespace {

double median(std::vector<double> values) {
  const std::size_t middle = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Milliseconds between each `start` and the `stop` after it.
class stopwatch {
 public:
  void start() { start_ = std::chrono::steady_clock::now(); }
  void stop() { sum_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count(); }
  double milliseconds() const { return sum_; }

 private:
  double sum_ = 0;
  std::chrono::steady_clock::time_point start_;
};

/// What chosen keys capture of a row's softmax: dense attention on the same arguments says what there was.
class mass_meter {
 public:
  void measure(const skim::attention_args& chosen, const executor& threads) {
    const auto& [Tq, Hq, Dv] = chosen.out.extents;
    out_.reserve(static_cast<std::size_t>(Tq * Hq * Dv) * sizeof(float));
    lse_.reserve(static_cast<std::size_t>(Tq * Hq) * sizeof(float));
    skim::attention_args dense = chosen;
    dense.out = {out_.data(), {Tq, Hq, Dv}, skim::element::f32};
    dense.lse = {lse_.as<float>(), {Tq, Hq}};
    const skim::cpu::attention<> every_key;
    workspace_.reserve(every_key.workspace_bytes(dense, threads.concurrency()));
    demand(every_key.run(dense, {}, workspace_, threads));
    for (const auto& head : skim::testing::captured_mass(chosen.lse, dense.lse).heads) {
      all_.masses.insert(all_.masses.end(), head.masses.begin(), head.masses.end());
    }
  }

  /// Of all heads as one.
  skim::testing::head_mass result() const {
    skim::testing::head_mass sorted = all_;
    std::sort(sorted.masses.begin(), sorted.masses.end());
    const double rows = static_cast<double>(sorted.masses.size());
    if (rows > 0) sorted.mean = std::accumulate(sorted.masses.begin(), sorted.masses.end(), 0.0) / rows;
    return sorted;
  }

 private:
  skim::testing::head_mass all_;
  skim::buffer out_, lse_, workspace_;
};

/// What the runs of one method add up to.
class tally {
 public:
  /// Prefills the prompt but its last token and compares every prediction with what follows and, if asked for, every
  /// sparse chunk's mass with dense attention's, off the clock; then decodes `generate` tokens.
  void run(session& fresh, const prompt& text, std::int64_t generate, bool measure_mass, const executor& threads) {
    const std::vector<std::int32_t> fed(text.tokens.begin(), text.tokens.end() - 1);
    stopwatch prefill;
    if (measure_mass) {
      fresh.listen({}, [&](std::int64_t, const skim::attention_args& args, bool sparse) {
        if (!sparse) return;
        prefill.stop();
        mass_.measure(args, threads);
        prefill.start();
      });
    }
    prefill.start();
    fresh.feed(fed, [&](std::int64_t first, std::int64_t count) {
      prefill.stop();
      judge(fresh.logits(first, count), text, first);
      prefill.start();
    });
    const row last = fresh.logits(fresh.tokens() - 1);
    prefill.stop();
    fresh.listen({}, {});
    const session_counts& counts = fresh.counts();
    ttft_ms_.push_back(prefill.milliseconds());
    select_ms_.push_back(counts.select_ms);
    attention_ms_.push_back(counts.attention_ms);
    ffn_ms_.push_back(counts.ffn_ms);
    evict_ms_.push_back(counts.evict_ms);
    keys_read_ += counts.keys_read;
    reads_ += counts.reads;
    if (generate > 0) {
      stopwatch decode;
      decode.start();
      fresh.generate(generate);
      decode.stop();
      decode_ms_per_token_.push_back(decode.milliseconds() / static_cast<double>(generate));
    }
    kv_bytes_held_ = std::max(kv_bytes_held_, fresh.kv_bytes_held());
  }

  evaluation_result result(const std::string& name) const {
    evaluation_result result;
    result.method = name;
    result.accuracy = static_cast<double>(right_) / static_cast<double>(answers_);
    result.nll = nll_ / static_cast<double>(others_);
    result.ttft_ms = median(ttft_ms_);
    result.select_ms = median(select_ms_);
    result.attention_ms = median(attention_ms_);
    result.ffn_ms = median(ffn_ms_);
    result.evict_ms = median(evict_ms_);
    if (!decode_ms_per_token_.empty()) result.decode_ms_per_token = median(decode_ms_per_token_);
    result.kv_tokens_read = keys_read_ / reads_;
    result.kv_bytes_held = kv_bytes_held_;
    if (const skim::testing::head_mass mass = mass_.result(); !mass.masses.empty()) {
      result.mass = mass.mean;
      result.mass_of_worst = mass.quantile(0.05);
    }
    return result;
  }

 private:
  /// Row i of the logits speaks about token first + i + 1.
  void judge(const matrix& logits, const prompt& text, std::int64_t first) {
    for (std::int64_t i = 0; i < logits.rows(); ++i) {
      const std::size_t next = static_cast<std::size_t>(first + i + 1);
      judge(logits.row(i), text.tokens[next], text.is_answer[next] != 0);
    }
  }

  void judge(const row& logits, std::int32_t target, bool is_answer) {
    if (target == vocabulary::pad) return;
    Eigen::Index likeliest = 0;
    const float largest = logits.maxCoeff(&likeliest);
    if (is_answer) {
      ++answers_;
      right_ += likeliest == target;
      return;
    }
    ++others_;
    const double mass = static_cast<double>((logits.array() - largest).exp().sum());
    nll_ += std::log(mass) - static_cast<double>(logits(target) - largest);
  }

  std::vector<double> ttft_ms_, select_ms_, attention_ms_, ffn_ms_, evict_ms_, decode_ms_per_token_;
  std::int64_t answers_ = 0, right_ = 0, others_ = 0;
  double nll_ = 0, keys_read_ = 0, reads_ = 0;
  std::int64_t kv_bytes_held_ = 0;
  mass_meter mass_;
};

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
      const session_options options{settings.shape.tokens - 1 + settings.generate, settings.chunk, settings.kv_type,
                                    static_cast<std::uint64_t>(number)};
      session fresh(weights, methods[i], options, threads);
      tallies[i].run(fresh, text, settings.generate, number < settings.mass_prompts, threads);
    }
  }
  report(all, all, "");
  std::vector<evaluation_result> results;
  for (std::size_t i = 0; i < methods.size(); ++i) results.push_back(tallies[i].result(methods[i].text));
  return results;
}

shown_question ask(const model& weights, const std::vector<method>& methods, const evaluation_settings& settings,
                   const executor& threads, const progress& report) {
  prompt_source source(settings.seed);
  const prompt text = source.next(settings.shape);
  const std::int64_t question = text.questions.front(), answer = question + 5;
  const std::vector<std::int32_t> fed(text.tokens.begin(), text.tokens.begin() + answer);
  shown_question result;
  result.prompt = shortened(text, question);
  result.question = spelling(text.tokens, question, answer);
  result.answer = spelling(text.tokens, answer, answer + 2);
  const std::int64_t all = static_cast<std::int64_t>(methods.size());
  const std::int64_t count = std::max<std::int64_t>(settings.generate, 2);
  for (const method& how : methods) {
    report(static_cast<std::int64_t>(result.answers.size()), all, how.text);
    session run(weights, how, {answer + count, settings.chunk, settings.kv_type, 0}, threads);
    run.feed(fed);
    const std::vector<std::int32_t> words = run.generate(count);
    result.answers.push_back({how.text, spelling(words, 0, count), false});
    result.answers.back().right = std::equal(words.begin(), words.begin() + 2, text.tokens.begin() + answer);
  }
  report(all, all, "");
  return result;
}

}  // namespace needle
