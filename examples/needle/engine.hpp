// SPDX-License-Identifier: Apache-2.0
/// \file Prefill and decoding of one sequence, written on skim.
#pragma once

#include "method.hpp"
#include "model.hpp"

#include <skim/cache.hpp>

#include <vector>

namespace needle {

struct session_options {
  std::int64_t capacity = 0;  ///< most tokens that will be fed
  std::int64_t chunk = 128;   ///< tokens per step of the prefill
  skim::element kv_type = skim::element::bf16;
  std::uint64_t seed = 0;  ///< for rules that draw at random; another one for each prompt
};

/// What a session has spent and read so far.
struct session_counts {
  double select_ms = 0, attention_ms = 0, ffn_ms = 0;
  double keys_read = 0;        ///< past keys, summed over chunks, layers and KV heads
  double reads = 0;            ///< chunks x layers x KV heads
  std::int64_t kv_tokens = 0;  ///< the most that a layer's cache has held
};

/// The keys and values of one layer.
struct layer_cache {
  std::vector<char> k, v;            // [capacity, Hk, D]
  std::vector<float> inverse_norms;  // [Hk, capacity], or empty
};

/// One sequence. Equal inputs give the same bits for any number of threads.
class session {
 public:
  /// `weights` must outlive the session.
  session(const model& weights, const method& how, const session_options& options, const executor& threads);

  /// Appends tokens, chunk by chunk; throws `error` if they do not fit.
  void feed(const std::vector<std::int32_t>& tokens);

  /// Logits of the token that follows position `position`, which has been fed: [vocabulary].
  row logits(std::int64_t position) const;
  /// The same for positions first .. first + count - 1: [count, vocabulary].
  matrix logits(std::int64_t first, std::int64_t count) const;

  /// Appends `count` tokens, each the likeliest, and returns them. Something must have been fed.
  std::vector<std::int32_t> generate(std::int64_t count);

  std::int64_t tokens() const { return tokens_; }
  const session_counts& counts() const { return counts_; }
  std::int64_t kv_bytes_held() const;

 private:
  void forward(const std::int32_t* tokens, std::int64_t Tq);
  void attention_block(std::int64_t layer, std::int64_t Tq);
  void attend(std::int64_t layer, std::int64_t Tq);
  void ffn_block(std::int64_t layer, std::int64_t Tq);
  void normalize(const row& weight, std::int64_t Tq);
  void rotate(std::int64_t Tq);
  skim::kv_view view_of(layer_cache& cache, std::int64_t tokens) const;
  skim::attention_args arguments(std::int64_t layer, std::int64_t Tq, std::int64_t tokens);
  skim::memory workspace(std::size_t bytes);

  const model& model_;
  const session_options options_;  // the chunk at most the capacity
  const executor threads_;
  std::vector<std::unique_ptr<layer_selector>> selectors_;
  std::vector<layer_cache> caches_;
  std::int64_t tokens_ = 0;
  session_counts counts_;

  matrix cosines_, sines_;                            // [capacity, D / 2]
  matrix x_, normed_, qkv_, attended_;                // [chunk, ...]: the residual stream and what is made from it
  matrix gate_, up_;                                  // [chunk, f]
  matrix hidden_;                                     // [capacity, d]: what the output head reads
  std::vector<std::int32_t> slots_, counts_of_head_;  // index lists of one layer
  std::vector<char> scratch_;
};

}  // namespace needle
