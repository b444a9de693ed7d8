// SPDX-License-Identifier: Apache-2.0
/// \file How well and how fast each method prefills needle prompts.
#pragma once

#include "engine.hpp"
#include "prompt.hpp"

#include <cmath>

namespace needle {

struct evaluation_settings {
  prompt_shape shape;
  std::int64_t prompts = 4;
  std::int64_t chunk = 128;
  std::uint64_t seed = 1;
  skim::element kv_type = skim::element::bf16;
  std::int64_t generate = 0;      ///< tokens to decode greedily after the prompt
  bool timed = true;              ///< false: times are NaN
  std::int64_t mass_prompts = 1;  ///< the first so many prompts are also attended to densely, off the clock
};

/// What one method made of one prompt.
struct prompt_result {
  std::int64_t answers = 0, right = 0;  ///< answer tokens, and those that are the likeliest, given all before them
  std::int64_t judged = 0;              ///< tokens of text whose loss counts
  double nll = 0;                       ///< their mean negative log-likelihood, in nats
  double ttft_ms = 0;                   ///< from the prompt's first token to the logits of its last position
  double decode_ms_per_token = 0;       ///< 0: none were generated
  double select_ms = 0, attention_ms = 0, ffn_ms = 0, evict_ms = 0;
  double kv_tokens_read = 0;       ///< past keys, mean per chunk, layer and KV head
  std::int64_t kv_bytes_held = 0;  ///< keys, values, positions, norms, evictor state, at the peak
  /// Share of a row's softmax over what is in the cache that the keys it read received: of all rows of sparse chunks, in
  /// all layers and heads; the mean, and what the worst twentieth does not exceed. NaN: no chunk was sparse, or none measured.
  double mass = std::nan(""), mass_of_worst = std::nan("");
  std::vector<double> mass_of_layer;  ///< its mean in each layer; empty as that is NaN
};

/// What one method made of all prompts.
struct evaluation_result {
  std::string method;
  std::vector<prompt_result> prompts;

  double accuracy() const;                             ///< share of all answer tokens
  double nll() const;                                  ///< over all tokens of text that count
  double mean_of(double prompt_result::*field) const;  ///< over the prompts where it is known, NaN where it nowhere is
  double median_of(double prompt_result::*field) const;  ///< as `mean_of`
  std::int64_t kv_bytes_held() const;                    ///< the most
  std::vector<double> mass_of_layer() const;             ///< means over the prompts where it is known
};

/// Of a mean over prompts, and its standard error; NaN for one prompt.
struct estimate {
  double mean = std::nan(""), error = std::nan("");
};
/// Share of another method's right answers, over the prompts that both have.
double answers_of(const evaluation_result& base, const evaluation_result& result);
/// nll, prompt by prompt, above another method's. NaN where they have no prompt in common.
estimate nll_above(const evaluation_result& base, const evaluation_result& result);

/// Called before each run: how many of how many are done, and which comes.
using progress = std::function<void(std::int64_t done, std::int64_t all, const std::string& next)>;

/// After a chunk: compares each prediction of it with the prompt's next token, where that counts. `to.nll` is a sum here.
void judge(const session& fed, const prompt& text, std::int64_t first, std::int64_t count, prompt_result& to);

using prompt_maker = std::function<prompt()>;
using result_listener = std::function<void(const std::vector<evaluation_result>& so_far)>;

/// Feeds every prompt but its last token, with each method in turn, so that all share the machine's ups and downs; then
/// decodes `settings.generate` tokens. `known` has a result for each method, with the prompts that need no other run;
/// `after_each` may be empty.
std::vector<evaluation_result> evaluate(const model& weights, const std::vector<method>& methods,
                                        const prompt_maker& next, const evaluation_settings& settings,
                                        std::vector<evaluation_result> known, const executor& threads,
                                        const progress& report, const result_listener& after_each);

/// The first prompt, cut short, one of its questions, and each method's greedy answer to it: the two words asked for, or
/// `settings.generate` words if that is more.
struct shown_answer {
  std::string method;
  std::string words;
  bool right = false;
};
struct shown_question {
  std::string prompt, question, answer;
  std::vector<shown_answer> answers;
};
shown_question ask(const model& weights, const std::vector<method>& methods, const evaluation_settings& settings,
                   const executor& threads, const progress& report);

}  // namespace needle
