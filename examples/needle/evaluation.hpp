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
  std::int64_t mass_prompts = 1;  ///< the first so many prompts are also attended to densely, off the clock
};

/// Times are medians over the prompts.
struct evaluation_result {
  std::string method;
  double accuracy = 0;             ///< share of answer tokens that are the likeliest, given all before them
  double nll = 0;                  ///< mean negative log-likelihood of all other tokens but PAD, in nats
  double ttft_ms = 0;              ///< from the prompt's first token to the logits of its last position
  double decode_ms_per_token = 0;  ///< 0: none were generated
  double select_ms = 0, attention_ms = 0, ffn_ms = 0, evict_ms = 0;
  double kv_tokens_read = 0;       ///< past keys, mean per chunk, layer and KV head
  std::int64_t kv_bytes_held = 0;  ///< keys, values, positions, norms, evictor state, at the peak
  /// Share of a row's softmax over what is in the cache that the keys it read received: of all rows of sparse chunks, in
  /// all layers and heads; the mean, and what the worst twentieth does not exceed. NaN: no chunk was sparse, or none measured.
  double mass = std::nan(""), mass_of_worst = std::nan("");
};

/// Called before each run: how many of how many are done, and which comes.
using progress = std::function<void(std::int64_t done, std::int64_t all, const std::string& next)>;

/// Feeds every prompt but its last token, with each method in turn, so that all share the machine's ups and downs; then
/// decodes `settings.generate` tokens.
std::vector<evaluation_result> evaluate(const model& weights, const std::vector<method>& methods,
                                        const evaluation_settings& settings, const executor& threads,
                                        const progress& report);

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
