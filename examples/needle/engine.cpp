// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include "error.hpp"

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/eviction.hpp>
#include <skim/cpu/linear.hpp>
#include <skim/math/random.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <tuple>

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

/// Calls `body(first, count)` for pieces of [0, rows).
template <class Body>
void over_rows(std::int64_t rows, const executor& threads, const Body& body) {
  constexpr std::int64_t piece = 16;
  threads.parallel_for((rows + piece - 1) / piece, [&](std::int64_t index, unsigned) {
    body(index * piece, std::min(piece, rows - index * piece));
  });
}

/// The first `rows` rows, or some of the columns of those.
skim::tensor_view<float, 2> top(matrix& m, std::int64_t rows, std::int64_t first_column, std::int64_t columns) {
  return {m.data() + first_column, {rows, columns}, {m.cols(), 1}};
}
skim::tensor_view<float, 2> top(matrix& m, std::int64_t rows) {
  return top(m, rows, 0, m.cols());
}

}  // namespace

session::session(const model& weights, const method& how, const session_options& options, const executor& threads)
    : model_(weights),
      options_{options.capacity, std::min(options.chunk, options.capacity), options.kv_type, options.seed},
      budget_(how.make_evictor ? std::min(how.budget, options.capacity) : options.capacity),
      compaction_(how.compaction),
      shared_(how.shared && how.make_evictor),
      threads_(threads),
      caches_(weights.layers.size()),
      ffns_(how.make_ffns(weights, options.seed)) {
  const model_config& c = model_.config;
  const auto reads_all = [&](std::int64_t layer) { return c.has_window(layer) || how.dense_layers.count(layer) != 0; };
  while (chosen_layer_ < c.layers && reads_all(chosen_layer_)) ++chosen_layer_;
  if (chosen_layer_ == c.layers) {
    throw error("every layer of the model has a window or is a dense one: there is nothing to choose");
  }
  if (!how.dense_layers.empty() && *how.dense_layers.rbegin() >= c.layers) {
    throw error("dense_layers names layer " + std::to_string(*how.dense_layers.rbegin()) +
                ", the model has layers 0 to " + std::to_string(c.layers - 1));
  }
  const selector_maker make_dense = parse_method("dense").make_selector;
  const std::size_t row_bytes = static_cast<std::size_t>(skim::bytes_of(options.kv_type, c.D));
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    layer_cache& cache = caches_[static_cast<std::size_t>(layer)];
    const std::uint64_t stream = skim::draw(options.seed, static_cast<std::uint64_t>(layer));
    const bool evicts = !c.has_window(layer) && how.make_evictor;  // what has a window reads little as it is
    cache.capacity = evicts ? std::min(budget_ + options_.chunk, options.capacity) : options.capacity;
    const std::size_t rows = static_cast<std::size_t>(cache.capacity * c.kv_heads);
    cache.k = skim::buffer(rows * row_bytes);
    cache.v = skim::buffer(rows * row_bytes);
    cache.selector = reads_all(layer) ? make_dense(stream) : how.make_selector(stream);
    if (evicts) cache.evictor = how.make_evictor(stream);
    const auto needs = [&](bool skim::policy_needs::*what) {
      return cache.selector->needs().*what || (cache.evictor && cache.evictor->needs().*what);
    };
    if (needs(&skim::policy_needs::inverse_norms)) cache.inverse_norms.resize(rows);
    if (cache.evictor) cache.positions.resize(rows);  // slots no longer say them
    if (needs(&skim::policy_needs::lse)) lse_.resize(options_.chunk, c.query_heads);
  }

  x_.resize(options_.chunk, c.d);
  normed_.resize(options_.chunk, c.d);
  qkv_.resize(options_.chunk, (c.query_heads + 2 * c.kv_heads) * c.D);
  attended_.resize(options_.chunk, c.query_heads * c.D);
  added_.resize(options_.chunk, c.d);
  for (turning* const each : {&turning_, &window_turning_}) {
    const double theta = each == &turning_ ? c.rope_theta : c.window_theta;
    each->cosines.resize(options_.chunk, c.D / 2);
    each->sines.resize(options_.chunk, c.D / 2);
    each->frequencies.resize(c.D / 2);
    for (std::int64_t i = 0; i < c.D / 2; ++i) {
      const double scale = each == &turning_ && !c.rope_scale.empty() ? c.rope_scale[static_cast<std::size_t>(i)] : 1;
      each->frequencies(i) =
          static_cast<float>(scale * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.D)));
    }
    if (c.windowed.empty()) break;
  }
  reserve_longest();
}

/// Does for the longest calls what must not wait: a bad method is refused before any work, and what they need serves all
/// shorter ones, so that nothing is allocated later.
void session::reserve_longest() {
  layer_cache& cache = caches_[static_cast<std::size_t>(chosen_layer_)];
  const std::size_t heads = static_cast<std::size_t>(model_.config.kv_heads);
  const unsigned workers = threads_.concurrency();
  const skim::attention_args longest = attention_of(chosen_layer_, options_.chunk, cache.capacity);
  demand(cache.selector->check(longest));
  const std::size_t rows = static_cast<std::size_t>(list_rows(longest, cache.selector->block_rows()));
  slots_.resize(rows * static_cast<std::size_t>(cache.selector->list_capacity(longest)));
  counts_of_head_.resize(rows);
  scratch_.reserve(cache.selector->workspace_bytes(longest, workers));
  for (std::int64_t layer = 0; layer < model_.config.layers; ++layer) {
    const skim::attention_args all =
        attention_of(layer, options_.chunk, caches_[static_cast<std::size_t>(layer)].capacity);
    scratch_.reserve(skim::cpu::attention<>{}.workspace_bytes(all, workers));
  }
  const layer_weights& w = model_.layers[0];
  for (const stored_matrix* const weight : {&w.q, &w.k, &w.v, &w.out, &model_.output()}) {
    skim::linear_args product;
    product.x = {nullptr, {options_.chunk, weight->view.extents[1]}, skim::element::f32};
    product.weight = weight->view;
    product.out = {nullptr, {options_.chunk, weight->rows()}, skim::element::f32};
    scratch_.reserve(skim::cpu::linear<>{}.workspace_bytes(product, workers));
  }
  for (std::size_t layer = 0; layer < ffns_.size(); ++layer) {
    const skim::ffn_args ffn = ffn_of(static_cast<std::int64_t>(layer), options_.chunk, feeding::prompt);
    demand(ffns_[layer]->check(ffn));
    scratch_.reserve(ffns_[layer]->workspace_bytes(ffn, workers));
    caches_[layer].ffn_state = skim::buffer(ffns_[layer]->state_bytes(ffn));
    demand(ffns_[layer]->reset(ffn, caches_[layer].ffn_state, threads_));
  }
  if (!cache.evictor) return;
  const skim::eviction_args eviction = eviction_of(cache, longest);
  demand(cache.evictor->check(eviction));
  kept_.resize(heads * static_cast<std::size_t>(budget_));
  kept_of_head_.resize(heads);
  scratch_.reserve(cache.evictor->workspace_bytes(eviction, workers));
  if (shared_) {
    scores_.resize(caches_.size() * heads * static_cast<std::size_t>(cache.capacity));
    pooled_.resize(static_cast<std::size_t>(cache.capacity));
    scratch_.reserve(skim::cpu::rank_scores_bytes(cache.capacity, workers));
  }
  for (layer_cache& each : caches_) {
    if (!each.evictor) continue;
    each.evictor_state = skim::buffer(each.evictor->state_bytes(eviction));
    demand(each.evictor->reset(eviction, each.evictor_state, threads_));
  }
}

void session::feed(const std::vector<std::int32_t>& tokens, const chunk_listener& after_chunk) {
  const std::int64_t count = static_cast<std::int64_t>(tokens.size());
  if (count > options_.capacity - tokens_) throw error("the session has no room for the prompt");
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= model_.config.vocabulary) throw error("the prompt has a token outside the vocabulary");
  }
  for (std::int64_t first = 0; first < count; first += options_.chunk) {
    const std::int64_t Tq = std::min(options_.chunk, count - first);
    forward(tokens.data() + first, Tq, first + Tq == count ? feeding::prompt_end : feeding::prompt);
    if (after_chunk) after_chunk(tokens_ - last_chunk_, last_chunk_);
  }
}

row session::logits(std::int64_t position) const {
  return logits(position, 1);
}

matrix session::logits(std::int64_t first, std::int64_t count) const {
  const std::int64_t begin = first - (tokens_ - last_chunk_);  // in the chunk
  if (begin < 0 || count < 0 || count > last_chunk_ - begin) throw error("only the last chunk's logits are there");
  matrix result(count, model_.config.vocabulary);
  const skim::tensor_view<const float, 2> x(normed_.data() + begin * normed_.cols(), {count, normed_.cols()});
  multiply(x, model_.output(), {}, top(result, count));
  return result;
}

std::vector<std::int32_t> session::generate(std::int64_t count) {
  std::vector<std::int32_t> answer;
  while (static_cast<std::int64_t>(answer.size()) < count) {
    Eigen::Index likeliest = 0;
    logits(tokens_ - 1).maxCoeff(&likeliest);
    answer.push_back(static_cast<std::int32_t>(likeliest));
    if (tokens_ == options_.capacity) throw error("the session has no room for the answer");
    forward(&answer.back(), 1, feeding::generated);
  }
  return answer;
}

void session::listen(ffn_listener to_ffn, attention_listener to_attention) {
  ffn_listener_ = std::move(to_ffn);
  attention_listener_ = std::move(to_attention);
  if (attention_listener_) lse_.resize(options_.chunk, model_.config.query_heads);
}

void session::forward(const std::int32_t* tokens, std::int64_t Tq, feeding how) {
  for (std::int64_t t = 0; t < Tq; ++t) {
    model_.embedding.widen(tokens[t], x_.row(t).data());
    x_.row(t) *= model_.config.embedding_scale;
  }
  turn_to(tokens_, Tq);
  for (std::int64_t layer = 0; layer < model_.config.layers; ++layer) {
    attention_block(layer, Tq);
    ffn_block(layer, Tq, how);
  }
  if (shared_) evict_together(Tq);
  normalize(model_.norm, x_, normed_, Tq);  // stays for `logits`
  tokens_ += Tq;
  ++chunks_;
  last_chunk_ = Tq;
}

void session::attention_block(std::int64_t layer, std::int64_t Tq) {
  const layer_weights& w = model_.layers[static_cast<std::size_t>(layer)];
  normalize(w.attention_norm, x_, normed_, Tq);
  std::int64_t column = 0;
  for (const auto& [weight, bias] : {std::tie(w.q, w.q_bias), std::tie(w.k, w.k_bias), std::tie(w.v, w.v_bias)}) {
    multiply(top(normed_, Tq), weight, bias, top(qkv_, Tq, column, weight.rows()));
    column += weight.rows();
  }
  if (model_.config.qk_norm) normalize_heads(w, Tq);
  rotate(layer, Tq);
  attend(layer, Tq);
  multiply(top(attended_, Tq), w.out, {}, top(added_, Tq));
  add(w.attention_post_norm, added_, Tq);
}

/// Appends the chunk to the layer's cache, chooses what it reads, reads it, and evicts: skim's part.
void session::attend(std::int64_t layer, std::int64_t Tq) {
  const model_config& c = model_.config;
  layer_cache& cache = caches_[static_cast<std::size_t>(layer)];
  const std::int64_t past = cache.tokens;
  cache.tokens += Tq;
  counts_.kv_tokens = std::max(counts_.kv_tokens, cache.tokens);
  const skim::attention_args args = attention_of(layer, Tq, cache.tokens);
  const float* const k = qkv_.data() + c.query_heads * c.D;
  skim::append_args appended;
  appended.k = {k, {Tq, c.kv_heads, c.D}, {qkv_.cols(), c.D, 1}, skim::element::f32};
  appended.v = {k + c.kv_heads * c.D, {Tq, c.kv_heads, c.D}, {qkv_.cols(), c.D, 1}, skim::element::f32};
  appended.kv = view_of(cache, cache.tokens);
  appended.position = tokens_;
  demand(skim::cpu::append(appended, threads_));

  skim::index_lists lists;
  lists.indices = slots_.data();
  lists.counts = counts_of_head_.data();
  lists.block_rows = cache.selector->block_rows();
  lists.rows = list_rows(args, lists.block_rows);
  lists.capacity = static_cast<std::int64_t>(slots_.size() / counts_of_head_.size());
  const std::int64_t longest = longest_past(args, lists.block_rows);  // with the call's earlier blocks
  const bool sparse = cache.selector->keys_read(longest) < longest;
  if (sparse) {
    const stopwatch timed(counts_.select_ms);
    demand(cache.selector->select(args, lists, scratch_, threads_));
  }
  {
    const stopwatch timed(counts_.attention_ms);
    const skim::cpu::attend<> listed;
    const skim::cpu::attention<> dense;
    demand(sparse ? listed.run(args, lists, scratch_, threads_) : dense.run(args, {}, scratch_, threads_));
  }
  if (attention_listener_) attention_listener_(layer, args, sparse);
  const std::int64_t reads = sparse ? lists.rows : c.kv_heads;
  counts_.reads += static_cast<double>(reads);
  const std::int64_t all = c.has_window(layer) ? std::min(past, c.window - 1) : past;
  for (std::int64_t r = 0; r < reads; ++r) counts_.keys_read += static_cast<double>(sparse ? lists.counts[r] : all);
  if (cache.evictor) evict(cache, args, sparse ? &lists : nullptr);
}

/// Brings the cache back to its budget. `read`: what the chunk attended to; null: everything.
void session::evict(layer_cache& cache, const skim::attention_args& attended, const skim::index_lists* read) {
  const stopwatch timed(counts_.evict_ms);
  skim::eviction_args args = eviction_of(cache, attended);
  args.read = read;
  if (shared_) {
    demand(cache.evictor->observe(args, cache.evictor_state, scratch_, threads_));
    return;
  }
  demand(cache.evictor->run(args, kept_lists(), cache.evictor_state, scratch_, threads_));
  cache.tokens = kept_of_head_[0];  // all heads keep equally many
}

/// Behind the last layer: one choice by the scores of all heads of all layers.
void session::evict_together(std::int64_t Tq) {
  const std::int64_t n = caches_[static_cast<std::size_t>(chosen_layer_)].tokens, heads = model_.config.kv_heads;
  if (n <= budget_) return;
  const stopwatch timed(counts_.evict_ms);
  const auto each_layer = [&](const auto& visit) {
    for (std::size_t layer = 0; layer < caches_.size(); ++layer) {
      if (!caches_[layer].evictor) continue;
      visit(caches_[layer], eviction_of(caches_[layer], attention_of(static_cast<std::int64_t>(layer), Tq, n)));
    }
  };
  std::int64_t rows = 0;
  each_layer([&](layer_cache& cache, const skim::eviction_args& args) {
    const skim::tensor_view<float, 2> of_layer(scores_.data() + rows * n, {heads, n});
    demand(cache.evictor->score(args, of_layer, cache.evictor_state, scratch_, threads_));
    rows += heads;
  });
  const skim::tensor_view<float, 2> all(scores_.data(), {rows, n}), pooled(pooled_.data(), {1, n});
  demand(skim::cpu::rank_scores(all, scratch_, threads_));
  demand(skim::cpu::pool_scores(all, pooled, threads_));
  bool chosen = false;
  each_layer([&](layer_cache& cache, const skim::eviction_args& args) {
    if (!chosen) demand(cache.evictor->choose(args, pooled, kept_lists(), scratch_, threads_));
    chosen = true;
    demand(cache.evictor->compact(args, kept_lists(), cache.evictor_state, scratch_, threads_));
    cache.tokens = kept_of_head_[0];
  });
}

skim::index_lists session::kept_lists() {
  skim::index_lists kept;
  kept.indices = kept_.data();
  kept.counts = kept_of_head_.data();
  kept.rows = shared_ ? 1 : model_.config.kv_heads;
  kept.capacity = budget_;
  return kept;
}

void session::ffn_block(std::int64_t layer, std::int64_t Tq, feeding how) {
  const stopwatch timed(counts_.ffn_ms);
  const layer_weights& w = model_.layers[static_cast<std::size_t>(layer)];
  normalize(w.ffn_norm, x_, normed_, Tq);
  const layer_ffn& ffn = *ffns_[static_cast<std::size_t>(layer)];
  const skim::ffn_args args = ffn_of(layer, Tq, how);
  if (ffn_listener_) ffn_listener_(layer, args.x, args.first_block == 0 || args.last || args.decode);
  demand(ffn.run(args, caches_[static_cast<std::size_t>(layer)].ffn_state, scratch_, threads_));
  add(w.ffn_post_norm, added_, Tq);
}

/// out = x weight^T + bias, which may be empty.
void session::multiply(const skim::tensor_view<const float, 2>& x, const stored_matrix& weight, const row& bias,
                       const skim::tensor_view<float, 2>& out) const {
  const skim::cpu::linear<> op;
  skim::linear_args args;
  args.x = x;
  args.weight = weight.view;
  if (bias.size() > 0) args.bias = skim::tensor_view<const float, 1>(bias.data(), {bias.size()});
  args.out = out;
  demand(op.run(args, scratch_, threads_));
}

/// to = from / rms(from) * weight, token by token.
void session::normalize(const row& weight, const matrix& from, matrix& to, std::int64_t Tq) const {
  over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t t = first; t < first + count; ++t) {
      const float mean = from.row(t).squaredNorm() / static_cast<float>(from.cols());
      to.row(t) = (from.row(t) / std::sqrt(mean + model_.config.norm_epsilon)).cwiseProduct(weight);
    }
  });
}

/// The same of each head of the chunk's queries and keys.
void session::normalize_heads(const layer_weights& w, std::int64_t Tq) {
  const model_config& c = model_.config;
  over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t t = first; t < first + count; ++t) {
      for (std::int64_t head = 0; head < c.query_heads + c.kv_heads; ++head) {
        auto values = qkv_.block(t, head * c.D, 1, c.D);
        const float mean = values.squaredNorm() / static_cast<float>(c.D);
        const row& weight = head < c.query_heads ? w.query_norm : w.key_norm;
        values = (values / std::sqrt(mean + c.norm_epsilon)).cwiseProduct(weight).eval();
      }
    }
  });
}

/// Adds what attention or the FFN gives to the residual stream, normalised where the model does that.
void session::add(const row& post_norm, matrix& given, std::int64_t Tq) {
  if (post_norm.size() > 0) normalize(post_norm, given, given, Tq);
  over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
    x_.middleRows(first, count) += given.middleRows(first, count);
  });
}

/// The angles of RoPE for the chunk at `position`. In f32 like the frameworks that trained the models; at large positions
/// the rounding shows.
void session::turn_to(std::int64_t position, std::int64_t Tq) {
  for (turning* const each : {&turning_, &window_turning_}) {
    over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t t = first; t < first + count; ++t) {
        for (std::int64_t i = 0; i < each->frequencies.size(); ++i) {
          const float angle = static_cast<float>(position + t) * each->frequencies(i);
          each->cosines(t, i) = std::cos(angle);
          each->sines(t, i) = std::sin(angle);
        }
      }
    });
  }
}

/// RoPE of the chunk's queries and keys; element i of a head turns with element i + D / 2.
void session::rotate(std::int64_t layer, std::int64_t Tq) {
  const model_config& c = model_.config;
  const turning& by = c.has_window(layer) ? window_turning_ : turning_;
  const std::int64_t half = c.D / 2;
  over_rows(Tq, threads_, [&](std::int64_t first, std::int64_t count) {
    row turned(half);
    for (std::int64_t t = first; t < first + count; ++t) {
      const auto cosine = by.cosines.row(t), sine = by.sines.row(t);
      for (std::int64_t head = 0; head < c.query_heads + c.kv_heads; ++head) {
        auto a = qkv_.block(t, head * c.D, 1, half), b = qkv_.block(t, head * c.D + half, 1, half);
        turned = a.cwiseProduct(cosine) - b.cwiseProduct(sine);
        b = b.cwiseProduct(cosine) + a.cwiseProduct(sine);
        a = turned;
      }
    }
  });
}

skim::kv_cache session::view_of(layer_cache& cache, std::int64_t tokens) const {
  const model_config& c = model_.config;
  const std::int64_t extents[] = {cache.capacity, c.kv_heads, c.D};
  skim::kv_cache view = skim::contiguous_cache({cache.k.data(), extents, options_.kv_type},
                                               {cache.v.data(), extents, options_.kv_type}, tokens);
  if (!cache.inverse_norms.empty()) {
    view.inverse_norms = cache.inverse_norms.data();
    view.inverse_norms_stride = cache.capacity;
  }
  if (!cache.positions.empty()) {
    view.positions = cache.positions.data();
    view.positions_stride = cache.capacity;
  }
  return view;
}

skim::attention_args session::attention_of(std::int64_t layer, std::int64_t Tq, std::int64_t tokens) {
  const model_config& c = model_.config;
  layer_cache& cache = caches_[static_cast<std::size_t>(layer)];
  skim::attention_args args;
  args.q = {qkv_.data(), {Tq, c.query_heads, c.D}, {qkv_.cols(), c.D, 1}, skim::element::f32};
  args.out = {attended_.data(), {Tq, c.query_heads, c.D}, skim::element::f32};
  if (lse_.size() > 0) args.lse = {lse_.data(), {Tq, c.query_heads}};
  args.kv = view_of(cache, tokens);
  args.scale = c.attention_scale;
  if (c.has_window(layer)) args.mask.left = c.window - 1;
  return args;
}

skim::eviction_args session::eviction_of(layer_cache& cache, const skim::attention_args& attended) const {
  skim::eviction_args args;
  args.kv = view_of(cache, attended.kv.tokens);
  args.new_tokens = attended.q.extents[0];
  args.attended = attended;
  args.how = compaction_;
  args.share_heads = shared_;
  return args;
}

skim::ffn_args session::ffn_of(std::int64_t layer, std::int64_t Tq, feeding how) {
  const layer_weights& w = model_.layers[static_cast<std::size_t>(layer)];
  skim::ffn_args args;
  args.x = skim::tensor_view<const float, 2>(normed_.data(), {Tq, normed_.cols()});
  args.gate = w.gate.view;
  args.up = w.up.view;
  args.down = w.down.view;
  args.out = skim::tensor_view<float, 2>(added_.data(), {Tq, added_.cols()});
  args.act = model_.config.activation;
  args.first_block = chunks_;
  args.last = how == feeding::prompt_end;
  args.decode = how == feeding::generated;
  return args;
}

std::int64_t session::kv_bytes_held() const {
  const model_config& c = model_.config;
  std::int64_t held = 0;
  for (const layer_cache& cache : caches_) {
    std::int64_t token = 2 * skim::bytes_of(options_.kv_type, c.D);
    if (!cache.inverse_norms.empty()) token += static_cast<std::int64_t>(sizeof(float));
    if (!cache.positions.empty()) token += static_cast<std::int64_t>(sizeof(std::int32_t));
    const std::int64_t tokens = cache.evictor ? cache.capacity : counts_.kv_tokens;
    held += tokens * c.kv_heads * token + static_cast<std::int64_t>(cache.evictor_state.bytes());
  }
  return held;
}

}  // namespace needle
