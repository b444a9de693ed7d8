// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include "error.hpp"

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/selector/queries.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

namespace needle {
namespace {

/// Adds the time of its own life to a sum.
class stopwatch {
 public:
  explicit stopwatch(double& milliseconds) : sum_(milliseconds) {}
  stopwatch(const stopwatch&) = delete;
  ~stopwatch() { sum_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The engine checks its inputs where they come in, so a bad report is a shape that the kernels do not take.
void demand(const skim::report& answer) {
  if (answer.ok()) return;
  char text[256];
  throw error(skim::describe(answer, text, sizeof text));
}

/// Calls `body(first, count)` for pieces of [0, features). A linear layer is cut by output features, not by tokens: each
/// piece then reads its own weights only, and a chunk of one token still feeds all threads. The cut depends on shape
/// alone, so results do not depend on the number of threads.
template <class Body>
void over_features(std::int64_t features, const executor& threads, const Body& body) {
  const std::int64_t piece = std::clamp<std::int64_t>((features / 4 + 15) / 16 * 16, 64, 256);
  threads.parallel_for((features + piece - 1) / piece, [&](std::int64_t index, unsigned) {
    body(index * piece, std::min(piece, features - index * piece));
  });
}

/// Calls `body(first, count)` for pieces of [0, rows).
template <class Body>
void over_rows(std::int64_t rows, const executor& threads, const Body& body) {
  constexpr std::int64_t piece = 16;
  threads.parallel_for((rows + piece - 1) / piece, [&](std::int64_t index, unsigned) {
    body(index * piece, std::min(piece, rows - index * piece));
  });
}

}  // namespace

session::session(const model& weights, const method& how, const session_options& options, const executor& threads)
    : model_(weights),
      options_{options.capacity, std::min(options.chunk, options.capacity), options.kv_type, options.seed},
      threads_(threads),
      caches_(weights.layers.size()) {
  const model_config& c = model_.config;
  const std::int64_t cache_bytes = options.capacity * c.kv_heads * c.D * skim::element_bytes(options.kv_type);
  for (layer_cache& cache : caches_) {
    cache.k.resize(static_cast<std::size_t>(cache_bytes));
    cache.v.resize(static_cast<std::size_t>(cache_bytes));
    if (how.reads_norms) cache.inverse_norms.resize(static_cast<std::size_t>(options.capacity * c.kv_heads));
  }
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    selectors_.push_back(how.make_selector(skim::queries::draw(options.seed, static_cast<std::uint64_t>(layer))));
  }

  x_.resize(options_.chunk, c.d);
  normed_.resize(options_.chunk, c.d);
  qkv_.resize(options.chunk, (c.query_heads + 2 * c.kv_heads) * c.D);
  attended_.resize(options_.chunk, c.query_heads * c.D);
  gate_.resize(options_.chunk, c.f);
  up_.resize(options_.chunk, c.f);
  hidden_.resize(options.capacity, c.d);
  cosines_.resize(options.capacity, c.D / 2);
  sines_.resize(options.capacity, c.D / 2);
  for (std::int64_t i = 0; i < c.D / 2; ++i) {
    // In f32 like the frameworks that trained the models; at large positions the rounding shows.
    const float frequency =
        static_cast<float>(std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.D)));
    for (std::int64_t position = 0; position < options.capacity; ++position) {
      const float angle = static_cast<float>(position) * frequency;
      cosines_(position, i) = std::cos(angle);
      sines_(position, i) = std::sin(angle);
    }
  }

  // The longest calls, so that a bad method is refused before any work and the clock sees no allocation.
  const skim::attention_args longest = arguments(0, options_.chunk, options_.capacity);
  demand(selectors_[0]->check(longest));
  const std::int64_t most = selectors_[0]->list_capacity(arguments(0, 1, options.capacity));
  slots_.resize(static_cast<std::size_t>(most * c.kv_heads));
  counts_of_head_.resize(static_cast<std::size_t>(c.kv_heads));
  workspace(std::max(selectors_[0]->workspace_bytes(longest, threads_.concurrency()),
                     skim::cpu::attention<>{}.workspace_bytes(longest, threads_.concurrency())));
}

void session::feed(const std::vector<std::int32_t>& tokens) {
  const std::int64_t count = static_cast<std::int64_t>(tokens.size());
  if (count > options_.capacity - tokens_) throw error("the session has no room for the prompt");
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= model_.config.vocabulary) throw error("the prompt has a token outside the vocabulary");
  }
  for (std::int64_t first = 0; first < count; first += options_.chunk) {
    forward(tokens.data() + first, std::min(options_.chunk, count - first));
  }
}

row session::logits(std::int64_t position) const {
  row result(model_.config.vocabulary);
  over_features(model_.config.vocabulary, threads_, [&](std::int64_t first, std::int64_t count) {
    result.segment(first, count).noalias() =
        hidden_.row(position) * model_.output().middleRows(first, count).transpose();
  });
  return result;
}

matrix session::logits(std::int64_t first, std::int64_t count) const {
  matrix result(count, model_.config.vocabulary);
  over_features(model_.config.vocabulary, threads_, [&](std::int64_t token, std::int64_t tokens) {
    result.middleCols(token, tokens).noalias() =
        hidden_.middleRows(first, count) * model_.output().middleRows(token, tokens).transpose();
  });
  return result;
}

std::vector<std::int32_t> session::generate(std::int64_t count) {
  std::vector<std::int32_t> answer;
  while (static_cast<std::int64_t>(answer.size()) < count) {
    Eigen::Index likeliest = 0;
    logits(tokens_ - 1).maxCoeff(&likeliest);
    answer.push_back(static_cast<std::int32_t>(likeliest));
    feed({answer.back()});
  }
  return answer;
}

void session::forward(const std::int32_t* tokens, std::int64_t Tq) {
  for (std::int64_t t = 0; t < Tq; ++t) x_.row(t) = model_.embedding.row(tokens[t]);
  for (std::int64_t layer = 0; layer < model_.config.layers; ++layer) {
    attention_block(layer, Tq);
    ffn_block(layer, Tq);
  }
  normalize(model_.norm, Tq);
  hidden_.middleRows(tokens_, Tq) = normed_.topRows(Tq);
  tokens_ += Tq;
  counts_.kv_tokens = std::max(counts_.kv_tokens, tokens_);
}

void session::attention_block(std::int64_t layer, std::int64_t Tq) {
  const layer_weights& w = model_.layers[static_cast<std::size_t>(layer)];
  normalize(w.attention_norm, Tq);
  over_features(w.qkv.rows(), threads_, [&](std::int64_t first, std::int64_t count) {
    auto piece = qkv_.block(0, first, Tq, count);
    piece.noalias() = normed_.topRows(Tq) * w.qkv.middleRows(first, count).transpose();
    if (w.qkv_bias.size() > 0) piece.rowwise() += w.qkv_bias.segment(first, count);
  });
  rotate(Tq);
  attend(layer, Tq);
  over_features(w.out.rows(), threads_, [&](std::int64_t first, std::int64_t count) {
    x_.block(0, first, Tq, count).noalias() += attended_.topRows(Tq) * w.out.middleRows(first, count).transpose();
  });
}

/// Appends the chunk to the layer's cache, chooses what it reads and reads it: skim's part.
void session::attend(std::int64_t layer, std::int64_t Tq) {
  const model_config& c = model_.config;
  const skim::attention_args args = arguments(layer, Tq, tokens_ + Tq);
  const float* const k = qkv_.data() + c.query_heads * c.D;
  skim::append_args appended;
  appended.k = {k, {Tq, c.kv_heads, c.D}, {qkv_.cols(), c.D, 1}, skim::element::f32};
  appended.v = {k + c.kv_heads * c.D, {Tq, c.kv_heads, c.D}, {qkv_.cols(), c.D, 1}, skim::element::f32};
  appended.kv = args.kv;
  appended.position = tokens_;
  demand(skim::cpu::append(appended, threads_));

  const skim::cpu::attention<> reader;
  const layer_selector& selector = *selectors_[static_cast<std::size_t>(layer)];
  const std::int64_t most = selector.list_capacity(args);
  counts_.reads += static_cast<double>(c.kv_heads);
  if (most >= tokens_) {
    const stopwatch timed(counts_.attention_ms);
    demand(reader.run(args, {}, workspace(reader.workspace_bytes(args, threads_.concurrency())), threads_));
    counts_.keys_read += static_cast<double>(c.kv_heads * tokens_);
    return;
  }
  skim::index_lists lists;
  lists.indices = slots_.data();
  lists.counts = counts_of_head_.data();
  lists.rows = c.kv_heads;
  lists.capacity = most;
  {
    const stopwatch timed(counts_.select_ms);
    const skim::memory scratch = workspace(selector.workspace_bytes(args, threads_.concurrency()));
    demand(selector.select(args, lists, scratch, threads_));
  }
  const stopwatch timed(counts_.attention_ms);
  const skim::memory scratch = workspace(reader.workspace_bytes(args, threads_.concurrency()));
  demand(reader.attend(args, lists, scratch, threads_));
  for (const std::int32_t read : counts_of_head_) counts_.keys_read += read;
}

void session::ffn_block(std::int64_t layer, std::int64_t Tq) {
  const stopwatch timed(counts_.ffn_ms);
  const layer_weights& w = model_.layers[static_cast<std::size_t>(layer)];
  normalize(w.ffn_norm, Tq);
  over_features(w.gate.rows(), threads_, [&](std::int64_t first, std::int64_t count) {
    auto gate = gate_.block(0, first, Tq, count), up = up_.block(0, first, Tq, count);
    gate.noalias() = normed_.topRows(Tq) * w.gate.middleRows(first, count).transpose();
    up.noalias() = normed_.topRows(Tq) * w.up.middleRows(first, count).transpose();
    gate.array() = gate.array() / (1 + (-gate.array()).exp()) * up.array();
  });
  over_features(w.down.rows(), threads_, [&](std::int64_t first, std::int64_t count) {
    x_.block(0, first, Tq, count).noalias() += gate_.topRows(Tq) * w.down.middleRows(first, count).transpose();
  });
}

/// normed = x / rms(x) * weight, token by token.
void session::normalize(const row& weight, std::int64_t Tq) {
  over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t t = first; t < first + count; ++t) {
      const float mean = x_.row(t).squaredNorm() / static_cast<float>(x_.cols());
      normed_.row(t) = (x_.row(t) / std::sqrt(mean + model_.config.norm_epsilon)).cwiseProduct(weight);
    }
  });
}

/// RoPE of the chunk's queries and keys; element i of a head turns with element i + D / 2.
void session::rotate(std::int64_t Tq) {
  const model_config& c = model_.config;
  const std::int64_t half = c.D / 2;
  over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
    row turned(half);
    for (std::int64_t t = first; t < first + count; ++t) {
      const auto cosine = cosines_.row(tokens_ + t), sine = sines_.row(tokens_ + t);
      for (std::int64_t head = 0; head < c.query_heads + c.kv_heads; ++head) {
        auto a = qkv_.block(t, head * c.D, 1, half), b = qkv_.block(t, head * c.D + half, 1, half);
        turned = a.cwiseProduct(cosine) - b.cwiseProduct(sine);
        b = b.cwiseProduct(cosine) + a.cwiseProduct(sine);
        a = turned;
      }
    }
  });
}

skim::kv_view session::view_of(layer_cache& cache, std::int64_t tokens) const {
  const model_config& c = model_.config;
  const std::int64_t extents[] = {options_.capacity, c.kv_heads, c.D};
  skim::kv_view view = skim::contiguous_kv({cache.k.data(), extents, options_.kv_type},
                                           {cache.v.data(), extents, options_.kv_type}, tokens);
  if (!cache.inverse_norms.empty()) {
    view.inverse_norms = cache.inverse_norms.data();
    view.inverse_norms_stride = options_.capacity;
  }
  return view;
}

/// The attention call of a chunk of `Tq` tokens that are the last of `tokens`.
skim::attention_args session::arguments(std::int64_t layer, std::int64_t Tq, std::int64_t tokens) {
  const model_config& c = model_.config;
  skim::attention_args args;
  args.q = {qkv_.data(), {Tq, c.query_heads, c.D}, {qkv_.cols(), c.D, 1}, skim::element::f32};
  args.out = {attended_.data(), {Tq, c.query_heads, c.D}, skim::element::f32};
  args.kv = view_of(caches_[static_cast<std::size_t>(layer)], tokens);
  args.dense_below = 0;  // the method decides, so that its accuracy and its speed are its own
  return args;
}

/// Scratch of at least `bytes`; grows only where a shorter call needs more than the longest did.
skim::memory session::workspace(std::size_t bytes) {
  const std::size_t needed = bytes + skim::memory_alignment;
  if (scratch_.size() < needed) scratch_.resize(needed);
  void* begin = scratch_.data();
  std::size_t left = scratch_.size();
  std::align(skim::memory_alignment, bytes, begin, left);
  return {begin, left};
}

std::int64_t session::kv_bytes_held() const {
  const model_config& c = model_.config;
  const std::int64_t norm = caches_[0].inverse_norms.empty() ? 0 : static_cast<std::int64_t>(sizeof(float));
  return c.layers * counts_.kv_tokens * c.kv_heads * (2 * c.D * skim::element_bytes(options_.kv_type) + norm);
}

}  // namespace needle
