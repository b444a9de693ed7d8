// SPDX-License-Identifier: Apache-2.0
/// \file Sessions of the tiny model, and what their logits must be: the whole model in double, and how far f32 may stray.
#pragma once

#include "../engine.hpp"
#include "tiny_model.hpp"
#include "widened.hpp"

#include <cmath>
#include <limits>
#include <tuple>

namespace needle_test {

using needle::layer_weights;
using needle::matrix;
using needle::method;
using needle::model;
using needle::model_config;
using needle::row;
using needle::session;
using needle::session_options;

inline model tiny(bool biased) {
  const temporary_folder folder;
  tiny_model written;
  if (biased) {
    written.config["architectures"] = {"Qwen2ForCausalLM"};
    for (const char* layer : {"model.layers.0.self_attn.", "model.layers.1.self_attn."}) {
      written.add(layer + std::string("q_proj.bias"), "F32", {48});
      written.add(layer + std::string("k_proj.bias"), "F32", {16});
      written.add(layer + std::string("v_proj.bias"), "F32", {16});
    }
  }
  written.write(folder.path());
  return needle::read_model(folder.path());
}

inline std::vector<std::int32_t> tokens(std::size_t count) {
  std::mt19937 random(5);
  std::vector<std::int32_t> result(count);
  for (std::int32_t& token : result) token = static_cast<std::int32_t>(random() % 1100);
  return result;
}

using exact = Eigen::MatrixXd;

/// Whether the query at position t still finds the key at position `key` <= t.
using survivors = std::function<bool(std::uint64_t layer, std::uint64_t head, std::int64_t t, std::int64_t key)>;

inline bool everything(std::uint64_t, std::uint64_t, std::int64_t, std::int64_t) {
  return true;
}

/// What f32 may do to the stages of the model: moves each number by the whole bound of its rounding error, up or down at
/// random. Sums of n products stray by sqrt(n) roundings, not n, as roundings of random sign do (Higham and Mary, 2019).
class rounding {
 public:
  explicit rounding(unsigned seed) : random_(seed), share_(seed == 0 ? 0 : 0x1p-24) {}

  /// `bound`: in units of 2^-24.
  void operator()(Eigen::Ref<exact> value, const exact& bound) {
    for (Eigen::Index i = 0; i < value.size(); ++i) {
      value(i % value.rows(), i / value.rows()) +=
          (random_() % 2 == 0 ? share_ : -share_) * bound(i % value.rows(), i / value.rows());
    }
  }

 private:
  std::mt19937 random_;
  double share_;
};

/// x w^T, plus `onto` where there is one.
inline exact product(const exact& x, const matrix& w, rounding& round, const exact& onto = {}) {
  exact result = x * w.cast<double>().transpose();
  exact bound = x.cwiseAbs() * w.cast<double>().cwiseAbs().transpose() * (std::sqrt(static_cast<double>(x.cols())) + 1);
  if (onto.size() > 0) {
    result += onto;
    bound += onto.cwiseAbs();
  }
  round(result, bound);
  return result;
}

inline exact normalized(const exact& x, const row& weight, double epsilon, rounding& round) {
  exact result = x;
  for (Eigen::Index t = 0; t < x.rows(); ++t) {
    const double mean = x.row(t).squaredNorm() / static_cast<double>(x.cols());
    result.row(t) = (x.row(t) / std::sqrt(mean + epsilon)).cwiseProduct(weight.cast<double>());
  }
  round(result, result.cwiseAbs() * (std::sqrt(static_cast<double>(x.cols())) / 2 + 4));
  return result;
}

/// RoPE of one head, [T, D]. An angle is a rounded product of a rounded frequency, but for the first, which is 1.
inline void turn(Eigen::Ref<exact> head, double theta, rounding& round) {
  const Eigen::Index D = head.cols();
  for (Eigen::Index t = 0; t < head.rows(); ++t) {
    for (Eigen::Index i = 0; i < D / 2; ++i) {
      const double angle =
          static_cast<double>(t) * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(D));
      const double a = head(t, i), b = head(t, i + D / 2);
      exact turned(2, 1);
      turned << a * std::cos(angle) - b * std::sin(angle), b * std::cos(angle) + a * std::sin(angle);
      round(turned, exact::Constant(2, 1, (std::abs(a) + std::abs(b)) * ((i == 0 ? 0 : 2 * angle) + 4)));
      head(t, i) = turned(0);
      head(t, i + D / 2) = turned(1);
    }
  }
}

/// One query head over its KV head. A logit that is wrong by delta makes weights wrong by a factor exp(2 delta).
inline exact attention(const exact& q, const exact& k, const exact& v,
                       const std::function<bool(std::int64_t, std::int64_t)>& finds, rounding& round) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.cols())), ulp = 0x1p-24;
  exact out(q.rows(), v.cols()), bound(q.rows(), v.cols());
  for (Eigen::Index t = 0; t < q.rows(); ++t) {
    Eigen::RowVectorXd p = q.row(t) * k.topRows(t + 1).transpose() * scale;
    double largest = 0, keys = 0;
    for (Eigen::Index j = 0; j <= t; ++j) {
      if (!finds(t, j)) {
        p(j) = -std::numeric_limits<double>::infinity();
        continue;
      }
      largest = std::max(largest, scale * q.row(t).cwiseAbs().dot(k.row(j).cwiseAbs()));
      ++keys;
    }
    p = (p.array() - p.maxCoeff()).exp();
    p /= p.sum();
    out.row(t) = p * v.topRows(t + 1);
    const double delta = ulp * (std::sqrt(static_cast<double>(q.cols())) + 1) * largest;
    bound.row(t) = p * v.topRows(t + 1).cwiseAbs() * (std::expm1(2 * delta) / ulp + 8 + std::sqrt(keys));
  }
  round(out, bound);
  return out;
}

/// The whole model in double, token by token and head by head, written from its definition.
inline exact reference_logits(const model& weights, const std::vector<std::int32_t>& input,
                              const survivors& finds = everything, unsigned rounding_seed = 0) {
  const model_config& c = weights.config;
  const Eigen::Index T = static_cast<Eigen::Index>(input.size()), D = c.D;
  rounding round(rounding_seed);
  const matrix embedding = widened(weights.embedding);
  exact x(T, c.d);
  for (Eigen::Index t = 0; t < T; ++t) x.row(t) = embedding.row(input[static_cast<std::size_t>(t)]).cast<double>();
  std::uint64_t layer = 0;
  for (const layer_weights& w : weights.layers) {
    const exact normed = normalized(x, w.attention_norm, c.norm_epsilon, round);
    exact qkv(T, (c.query_heads + 2 * c.kv_heads) * D);
    Eigen::Index column = 0;
    for (const auto& [weight, bias] : {std::tie(w.q, w.q_bias), std::tie(w.k, w.k_bias), std::tie(w.v, w.v_bias)}) {
      const exact shift = bias.size() > 0 ? exact(bias.template cast<double>().replicate(T, 1)) : exact();
      qkv.middleCols(column, weight.rows()) = product(normed, widened(weight), round, shift);
      column += weight.rows();
    }
    for (Eigen::Index head = 0; head < c.query_heads + c.kv_heads; ++head) {
      turn(qkv.middleCols(head * D, D), c.rope_theta, round);
    }
    exact heads(T, c.query_heads * D);
    for (Eigen::Index head = 0; head < c.query_heads; ++head) {
      const Eigen::Index kv = head / (c.query_heads / c.kv_heads);
      const auto sees = [&](std::int64_t t, std::int64_t key) {
        return finds(layer, static_cast<std::uint64_t>(kv), t, key);
      };
      heads.middleCols(head * D, D) =
          attention(qkv.middleCols(head * D, D), qkv.middleCols((c.query_heads + kv) * D, D),
                    qkv.middleCols((c.query_heads + c.kv_heads + kv) * D, D), sees, round);
    }
    x = product(heads, widened(w.out), round, x);
    const exact h = normalized(x, w.ffn_norm, c.norm_epsilon, round);
    const exact gate = product(h, widened(w.gate), round), up = product(h, widened(w.up), round);
    exact active = (gate.array() / (1 + (-gate.array()).exp()) * up.array()).matrix();
    round(active, active.cwiseAbs() * 8);  // an exponential, a sum, a quotient, a product
    x = product(active, matrix(widened(w.down).transpose()), round, x);
    ++layer;
  }
  return product(normalized(x, weights.norm, c.norm_epsilon, round), widened(weights.output()), round);
}

/// How far f32 may bring the logits from `expected`.
inline double rounding_error(const model& weights, const std::vector<std::int32_t>& input, const survivors& finds,
                             const exact& expected) {
  double largest = 0;
  for (const unsigned seed : {1u, 2u, 3u}) {
    const exact rounded = reference_logits(weights, input, finds, seed);
    largest = std::max(largest, (rounded - expected).cwiseAbs().maxCoeff());
  }
  return largest;
}

/// Feeds the first `prefill` tokens in chunks and the others one by one; logits of all.
inline matrix logits_of(session& run, const std::vector<std::int32_t>& input, std::size_t prefill) {
  matrix all(static_cast<Eigen::Index>(input.size()), 1100);
  const auto collect = [&](std::int64_t first, std::int64_t count) {
    all.middleRows(first, count) = run.logits(first, count);
  };
  run.feed({input.begin(), input.begin() + static_cast<std::ptrdiff_t>(prefill)}, collect);
  for (std::size_t i = prefill; i < input.size(); ++i) run.feed({input[i]}, collect);
  return all;
}

inline matrix logits_of(const model& weights, const std::string& how, const session_options& options, int threads,
                        std::size_t count, std::size_t decoded = 0) {
  tbb::task_arena arena(threads);
  const method chosen = needle::parse_method(how);
  session run(weights, chosen, options, needle::executor(arena));
  return logits_of(run, tokens(count), count - decoded);
}

}  // namespace needle_test
