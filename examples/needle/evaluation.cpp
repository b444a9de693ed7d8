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
  if (values.empty()) return std::nan("");
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
  explicit mass_meter(std::int64_t layers) : layers_(static_cast<std::size_t>(layers)) {}

  void measure(std::int64_t layer, const skim::attention_args& chosen, const executor& threads) {
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
      masses_.insert(masses_.end(), head.masses.begin(), head.masses.end());
      mean& of_layer = layers_[static_cast<std::size_t>(layer)];
      of_layer.sum += std::accumulate(head.masses.begin(), head.masses.end(), 0.0);
      of_layer.count += static_cast<double>(head.masses.size());
    }
  }

  void report(prompt_result& to) {
    if (masses_.empty()) return;
    skim::testing::head_mass all;
    all.masses = std::move(masses_);
    std::sort(all.masses.begin(), all.masses.end());
    to.mass = std::accumulate(all.masses.begin(), all.masses.end(), 0.0) / static_cast<double>(all.masses.size());
    to.mass_of_worst = all.quantile(0.05);
    for (const mean& each : layers_) to.mass_of_layer.push_back(each.sum / each.count);  // none: NaN
  }

 private:
  struct mean {
    double sum = 0, count = 0;
  };
  std::vector<mean> layers_;
  std::vector<double> masses_;
  skim::buffer out_, lse_, workspace_;
};

/// Prefills the prompt but its last token and compares every prediction with what follows and, if asked for, every sparse
/// chunk's mass with dense attention's, off the clock; then decodes `generate` tokens.
prompt_result judged(session& fresh, const prompt& text, std::int64_t layers, std::int64_t generate, bool measure_mass,
                     const executor& threads) {
  prompt_result result;
  mass_meter masses(layers);
  stopwatch prefill;
  if (measure_mass) {
    fresh.listen({}, [&](std::int64_t layer, const skim::attention_args& args, bool sparse) {
      if (!sparse) return;
      prefill.stop();
      masses.measure(layer, args, threads);
      prefill.start();
    });
  }
  prefill.start();
  fresh.feed({text.tokens.begin(), text.tokens.end() - 1}, [&](std::int64_t first, std::int64_t count) {
    prefill.stop();
    judge(fresh, text, first, count, result);
    prefill.start();
  });
  const row last = fresh.logits(fresh.tokens() - 1);
  prefill.stop();
  fresh.listen({}, {});
  const session_counts& counts = fresh.counts();
  result.ttft_ms = prefill.milliseconds();
  result.select_ms = counts.select_ms;
  result.attention_ms = counts.attention_ms;
  result.ffn_ms = counts.ffn_ms;
  result.evict_ms = counts.evict_ms;
  result.kv_tokens_read = counts.keys_read / counts.reads;
  if (generate > 0) {
    stopwatch decode;
    decode.start();
    fresh.generate(generate);
    decode.stop();
    result.decode_ms_per_token = decode.milliseconds() / static_cast<double>(generate);
  }
  result.kv_bytes_held = fresh.kv_bytes_held();
  result.nll /= static_cast<double>(result.judged);
  masses.report(result);
  return result;
}

constexpr double prompt_result::*times[] = {&prompt_result::ttft_ms,   &prompt_result::decode_ms_per_token,
                                            &prompt_result::select_ms, &prompt_result::attention_ms,
                                            &prompt_result::ffn_ms,    &prompt_result::evict_ms};

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

void judge(const session& fed, const prompt& text, std::int64_t first, std::int64_t count, prompt_result& to) {
  // Token first + i is followed by token first + i + 1, whose role it is that counts.
  const auto begin = text.roles.begin() + first + 1;
  const auto end = first + count < static_cast<std::int64_t>(text.roles.size()) ? begin + count : text.roles.end();
  const auto counts = [](role each) { return each != role::unjudged; };
  const auto from = std::find_if(begin, end, counts);
  if (from == end) return;
  const auto last = std::find_if(std::make_reverse_iterator(end), std::make_reverse_iterator(from), counts).base();
  const matrix logits = fed.logits(first + (from - begin), last - from);
  for (std::int64_t i = 0; i < logits.rows(); ++i) {
    const std::ptrdiff_t next = from - text.roles.begin() + i;
    if (from[i] == role::unjudged) continue;
    const std::int32_t target = text.tokens[static_cast<std::size_t>(next)];
    Eigen::Index likeliest = 0;
    const float largest = logits.row(i).maxCoeff(&likeliest);
    if (from[i] == role::answer) {
      ++to.answers;
      to.right += likeliest == target;
      continue;
    }
    ++to.judged;
    const double mass = static_cast<double>((logits.row(i).array() - largest).exp().sum());
    to.nll += std::log(mass) - static_cast<double>(logits(i, target) - largest);
  }
}

double evaluation_result::accuracy() const {
  std::int64_t right = 0, answers = 0;
  for (const prompt_result& each : prompts) {
    right += each.right;
    answers += each.answers;
  }
  return static_cast<double>(right) / static_cast<double>(answers);
}

double evaluation_result::nll() const {
  double sum = 0, judged = 0;
  for (const prompt_result& each : prompts) {
    sum += each.nll * static_cast<double>(each.judged);
    judged += static_cast<double>(each.judged);
  }
  return sum / judged;
}

double evaluation_result::mean_of(double prompt_result::*field) const {
  double sum = 0, count = 0;
  for (const prompt_result& each : prompts) {
    if (std::isnan(each.*field)) continue;
    sum += each.*field;
    ++count;
  }
  return sum / count;
}

double evaluation_result::median_of(double prompt_result::*field) const {
  std::vector<double> values;
  for (const prompt_result& each : prompts) {
    if (!std::isnan(each.*field)) values.push_back(each.*field);
  }
  return median(values);
}

std::int64_t evaluation_result::kv_bytes_held() const {
  std::int64_t most = 0;
  for (const prompt_result& each : prompts) most = std::max(most, each.kv_bytes_held);
  return most;
}

std::vector<double> evaluation_result::mass_of_layer() const {
  std::vector<double> sums;
  double count = 0;
  for (const prompt_result& each : prompts) {
    if (each.mass_of_layer.empty()) continue;
    sums.resize(each.mass_of_layer.size());
    for (std::size_t layer = 0; layer < sums.size(); ++layer) sums[layer] += each.mass_of_layer[layer];
    ++count;
  }
  for (double& each : sums) each /= count;
  return sums;
}

double answers_of(const evaluation_result& base, const evaluation_result& result) {
  double of_base = 0, of_result = 0;
  for (std::size_t i = 0; i < std::min(base.prompts.size(), result.prompts.size()); ++i) {
    of_base += static_cast<double>(base.prompts[i].right);
    of_result += static_cast<double>(result.prompts[i].right);
  }
  return of_result / of_base;
}

estimate nll_above(const evaluation_result& base, const evaluation_result& result) {
  const std::size_t count = std::min(base.prompts.size(), result.prompts.size());
  const double n = static_cast<double>(count);
  std::vector<double> more;
  for (std::size_t i = 0; i < count; ++i) more.push_back(result.prompts[i].nll - base.prompts[i].nll);
  estimate found;
  found.mean = std::accumulate(more.begin(), more.end(), 0.0) / n;
  double squares = 0;
  for (const double each : more) squares += (each - found.mean) * (each - found.mean);
  found.error = std::sqrt(squares / (n - 1) / n);
  return found;
}

std::vector<evaluation_result> evaluate(const model& weights, const std::vector<method>& methods,
                                        const prompt_maker& next, const evaluation_settings& settings,
                                        std::vector<evaluation_result> known, const executor& threads,
                                        const progress& report, const result_listener& after_each) {
  const std::int64_t all = settings.prompts * static_cast<std::int64_t>(methods.size());
  std::int64_t done = 0;
  for (std::int64_t number = 0; number < settings.prompts; ++number) {
    const prompt text = next();
    for (std::size_t i = 0; i < methods.size(); ++i, ++done) {
      std::vector<prompt_result>& have = known[i].prompts;
      if (static_cast<std::int64_t>(have.size()) > number) continue;
      report(done, all, methods[i].text);
      const session_options options{static_cast<std::int64_t>(text.tokens.size()) - 1 + settings.generate,
                                    settings.chunk, settings.kv_type, static_cast<std::uint64_t>(number)};
      session fresh(weights, methods[i], options, threads);
      have.push_back(
          judged(fresh, text, weights.config.layers, settings.generate, number < settings.mass_prompts, threads));
      if (!settings.timed) {
        for (double prompt_result::*const time : times) have.back().*time = std::nan("");
      }
      if (after_each) after_each(known);
    }
  }
  report(all, all, "");
  return known;
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
