// SPDX-License-Identifier: Apache-2.0
/// \file Prefill and decoding of one sequence, written on skim.
#pragma once

#include "method.hpp"
#include "model.hpp"

#include <skim/buffer.hpp>
#include <skim/interop/tbb.hpp>

#include <vector>

namespace needle {

using executor = skim::tbb_executor;

struct session_options {
  std::int64_t capacity = 0;  ///< most tokens that will be fed
  std::int64_t chunk = 128;   ///< tokens per step of the prefill
  skim::element kv_type = skim::element::bf16;
  std::uint64_t seed = 0;  ///< for rules that draw at random; another one for each prompt
};

/// What a session has spent and read so far.
struct session_counts {
  double select_ms = 0, attention_ms = 0, ffn_ms = 0, evict_ms = 0;
  double keys_read = 0;        ///< past keys, summed over chunks, layers and KV heads
  double reads = 0;            ///< chunks x layers x KV heads
  std::int64_t kv_tokens = 0;  ///< the most that a layer's cache has held
};

/// What one layer holds.
struct layer_cache {
  skim::buffer k, v;                    // [capacity, Hk, D]
  std::vector<float> inverse_norms;     // [Hk, capacity], or empty
  std::vector<std::int32_t> positions;  // [Hk, capacity], or empty: slot i is position i
  std::int64_t tokens = 0;              // in use
  std::int64_t capacity = 0;            // tokens
  std::unique_ptr<layer_selector> selector;
  std::unique_ptr<layer_evictor> evictor;  // or null
  skim::buffer evictor_state, ffn_state;
};

/// The tokens at positions first .. first + count - 1 have been fed.
using chunk_listener = std::function<void(std::int64_t first, std::int64_t count)>;

/// A layer's FFN is about to run: x [M, d], and whether the chunk is one that methods compute densely.
using ffn_listener =
    std::function<void(std::int64_t layer, const skim::tensor_view<const void, 2>& x, bool always_dense)>;
/// A layer's attention has run, over chosen keys or all; the arguments hold its log-sum-exp.
using attention_listener = std::function<void(std::int64_t layer, const skim::attention_args& args, bool sparse)>;

/// One sequence. Equal inputs give the same bits for any number of threads. Where the method has an evictor, memory is
/// fixed from the start, however many tokens are fed.
class session {
 public:
  /// `weights` must outlive the session.
  session(const model& weights, const method& how, const session_options& options, const executor& threads);

  /// Appends tokens, chunk by chunk, and calls `after_chunk`, if any, after each. Throws `error` if they do not fit.
  void feed(const std::vector<std::int32_t>& tokens, const chunk_listener& after_chunk = {});

  /// For calibration and measurements: called in each layer of every chunk from now on; either may be empty.
  void listen(ffn_listener to_ffn, attention_listener to_attention);

  /// Logits of the token that follows position `position`, which lies in the chunk that was fed last: [vocabulary].
  row logits(std::int64_t position) const;
  /// The same for positions first .. first + count - 1: [count, vocabulary].
  matrix logits(std::int64_t first, std::int64_t count) const;

  /// Appends `count` tokens, each the likeliest, and returns them. Something must have been fed.
  std::vector<std::int32_t> generate(std::int64_t count);

  std::int64_t tokens() const { return tokens_; }
  const session_counts& counts() const { return counts_; }
  /// Bytes of keys, values, norms, positions and evictor state, at the peak.
  std::int64_t kv_bytes_held() const;

 private:
  /// How a chunk is fed: whether it is a prompt's last, or was generated.
  enum class feeding { prompt, prompt_end, generated };
  void forward(const std::int32_t* tokens, std::int64_t Tq, feeding how);
  void attention_block(std::int64_t layer, std::int64_t Tq);
  void attend(std::int64_t layer, std::int64_t Tq);
  void evict(layer_cache& cache, const skim::attention_args& attended, const skim::index_lists* read);
  void evict_together(std::int64_t Tq);
  skim::index_lists kept_lists();
  void ffn_block(std::int64_t layer, std::int64_t Tq, feeding how);
  void multiply(const skim::tensor_view<const float, 2>& x, const stored_matrix& weight, const row& bias,
                const skim::tensor_view<float, 2>& out) const;
  void normalize(const row& weight, const matrix& from, matrix& to, std::int64_t Tq) const;
  void normalize_heads(const layer_weights& w, std::int64_t Tq);
  void add(const row& post_norm, matrix& given, std::int64_t Tq);
  void turn_to(std::int64_t position, std::int64_t Tq);
  void rotate(std::int64_t layer, std::int64_t Tq);
  void reserve_longest();
  skim::kv_cache view_of(layer_cache& cache, std::int64_t tokens) const;
  skim::attention_args attention_of(std::int64_t layer, std::int64_t Tq, std::int64_t tokens);
  skim::eviction_args eviction_of(layer_cache& cache, const skim::attention_args& attended) const;
  skim::ffn_args ffn_of(std::int64_t layer, std::int64_t Tq, feeding how);

  const model& model_;
  const session_options options_;  // the chunk at most the capacity
  const std::int64_t budget_;      // tokens that a cache keeps from one chunk to the next
  std::int64_t chosen_layer_ = 0;  // the first that the method chooses in: it has no window
  const skim::compaction compaction_;
  const bool shared_;  // all layers keep the same tokens
  const executor threads_;
  std::vector<layer_cache> caches_;
  std::vector<std::unique_ptr<layer_ffn>> ffns_;
  ffn_listener ffn_listener_;
  attention_listener attention_listener_;
  std::int64_t tokens_ = 0, last_chunk_ = 0, chunks_ = 0;
  session_counts counts_;

  /// The angles of one kind of layer.
  struct turning {
    row frequencies;        // [D / 2]
    matrix cosines, sines;  // [chunk, D / 2]
  };
  turning turning_, window_turning_;
  matrix x_, normed_, qkv_, attended_;                // [chunk, ...]: the residual stream and what is made from it
  matrix added_;                                      // [chunk, d]: what attention or the FFN gives
  matrix lse_;                                        // [chunk, Hq], or empty: nothing reads it
  std::vector<std::int32_t> slots_, counts_of_head_;  // index lists of one layer: what a chunk reads
  std::vector<std::int32_t> kept_, kept_of_head_;     // and what stays
  std::vector<float> scores_, pooled_;                // of all layers' tokens, where all keep the same
  skim::buffer scratch_;
};

}  // namespace needle
