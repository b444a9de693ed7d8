// SPDX-License-Identifier: Apache-2.0
#include "../engine.hpp"

#include "../error.hpp"
#include "tiny_model.hpp"

#include <oneapi/tbb/global_control.h>

namespace {

using namespace needle;
using needle_test::temporary_folder;
using needle_test::tiny_model;

model tiny(bool biased) {
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
  return read_model(folder.path());
}

std::vector<std::int32_t> tokens(std::size_t count) {
  std::mt19937 random(5);
  std::vector<std::int32_t> result(count);
  for (std::int32_t& token : result) token = static_cast<std::int32_t>(random() % 1100);
  return result;
}

using exact = Eigen::MatrixXd;

exact normalized(const exact& x, const row& weight, double epsilon) {
  exact result = x;
  for (Eigen::Index t = 0; t < x.rows(); ++t) {
    const double mean = x.row(t).squaredNorm() / static_cast<double>(x.cols());
    result.row(t) = (x.row(t) / std::sqrt(mean + epsilon)).cwiseProduct(weight.cast<double>());
  }
  return result;
}

/// The whole model in double, token by token and head by head, written from its definition.
exact reference_logits(const model& weights, const std::vector<std::int32_t>& input) {
  const model_config& c = weights.config;
  const Eigen::Index T = static_cast<Eigen::Index>(input.size()), D = c.D;
  exact x(T, c.d);
  for (Eigen::Index t = 0; t < T; ++t)
    x.row(t) = weights.embedding.row(input[static_cast<std::size_t>(t)]).cast<double>();
  for (const layer_weights& w : weights.layers) {
    exact qkv = normalized(x, w.attention_norm, c.norm_epsilon) * w.qkv.cast<double>().transpose();
    if (w.qkv_bias.size() > 0) qkv.rowwise() += w.qkv_bias.cast<double>();
    for (Eigen::Index t = 0; t < T; ++t) {
      for (Eigen::Index head = 0; head < c.query_heads + c.kv_heads; ++head) {
        for (Eigen::Index i = 0; i < D / 2; ++i) {
          const double angle =
              static_cast<double>(t) * std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(D));
          const double a = qkv(t, head * D + i), b = qkv(t, head * D + i + D / 2);
          qkv(t, head * D + i) = a * std::cos(angle) - b * std::sin(angle);
          qkv(t, head * D + i + D / 2) = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
    exact heads(T, c.query_heads * D);
    for (Eigen::Index head = 0; head < c.query_heads; ++head) {
      const Eigen::Index kv = head / (c.query_heads / c.kv_heads);
      const exact q = qkv.middleCols(head * D, D), k = qkv.middleCols((c.query_heads + kv) * D, D),
                  v = qkv.middleCols((c.query_heads + c.kv_heads + kv) * D, D);
      for (Eigen::Index t = 0; t < T; ++t) {
        Eigen::RowVectorXd p = q.row(t) * k.topRows(t + 1).transpose() / std::sqrt(static_cast<double>(D));
        p = (p.array() - p.maxCoeff()).exp();
        heads.block(t, head * D, 1, D) = p / p.sum() * v.topRows(t + 1);
      }
    }
    x += heads * w.out.cast<double>().transpose();
    const exact h = normalized(x, w.ffn_norm, c.norm_epsilon);
    const exact gate = h * w.gate.cast<double>().transpose(), up = h * w.up.cast<double>().transpose();
    const exact active = (gate.array() / (1 + (-gate.array()).exp()) * up.array()).matrix();
    x += active * w.down.cast<double>().transpose();
  }
  return normalized(x, weights.norm, c.norm_epsilon) * weights.output().cast<double>().transpose();
}

matrix logits_of(const model& weights, const std::string& how, const session_options& options, int threads,
                 std::size_t count) {
  tbb::task_arena arena(threads);
  const method chosen = parse_method(how);
  session run(weights, chosen, options, executor(arena));
  run.feed(tokens(count));
  return run.logits(0, run.tokens());
}

TEST(engine, agrees_with_the_definition) {
  for (const bool biased : {false, true}) {
    const model weights = tiny(biased);
    const exact expected = reference_logits(weights, tokens(75));
    for (const std::int64_t chunk : {1, 16, 75, 100}) {
      const matrix logits = logits_of(weights, "dense", {80, chunk, skim::element::f32, 0}, 2, 75);
      EXPECT_LT((logits.cast<double>() - expected).cwiseAbs().maxCoeff(), 1e-4 * expected.cwiseAbs().maxCoeff())
          << "chunk " << chunk;
    }
  }
}

TEST(engine, threads_change_no_bit) {
  const tbb::global_control lift(tbb::global_control::max_allowed_parallelism, 7);  // also where there are fewer cores
  const model weights = tiny(true);
  for (const char* how : {"dense", "quoka:budget=20,queries=farthest_point,n=4", "sink_window:budget=20"}) {
    const session_options options{200, 32, skim::element::bf16, 0};
    const matrix one = logits_of(weights, how, options, 1, 200);
    for (const int threads : {2, 3, 7}) {
      EXPECT_TRUE(one == logits_of(weights, how, options, threads, 200)) << how << ", " << threads << " threads";
    }
  }
}

TEST(engine, a_budget_that_covers_everything_is_dense) {
  const model weights = tiny(false);
  const session_options options{100, 16, skim::element::f16, 0};
  const matrix dense = logits_of(weights, "dense", options, 2, 100);
  EXPECT_TRUE(dense == logits_of(weights, "quoka:budget=100", options, 2, 100));
  EXPECT_TRUE(dense == logits_of(weights, "sink_window:fraction=1", options, 2, 100));
  EXPECT_FALSE(dense == logits_of(weights, "quoka:budget=50", options, 2, 100));
}

TEST(engine, random_choices_differ_between_prompts_and_repeat_with_the_seed) {
  const model weights = tiny(false);
  const auto logits = [&](std::uint64_t seed, const char* how) {
    return logits_of(weights, how, {100, 32, skim::element::f32, seed}, 1, 100);
  };
  const char* const how = "quoka:queries=random,n=2,budget=10";
  EXPECT_TRUE(logits(1, how) == logits(1, how));
  EXPECT_FALSE(logits(1, how) == logits(2, how));
  EXPECT_FALSE(logits(1, how) == logits(1, "quoka:queries=random,n=2,budget=10,seed=1"));
}

TEST(engine, counts_what_it_reads_and_holds) {
  const model weights = tiny(false);
  const auto counts_of = [&](const char* how) {
    const method chosen = parse_method(how);
    session run(weights, chosen, {100, 32, skim::element::bf16, 0}, executor());
    run.feed(tokens(100));
    return std::tuple(run.counts().keys_read, run.counts().reads, run.kv_bytes_held());
  };
  const double reads = 4 * 2 * 2;  // chunks, layers, KV heads
  const std::int64_t kv = 100 * 2 * 2 * 2 * 8 * 2, norms = 100 * 2 * 2 * 4;
  EXPECT_EQ(counts_of("dense"), std::tuple((0 + 32 + 64 + 96) * 4.0, reads, kv));
  EXPECT_EQ(counts_of("quoka:budget=40"), std::tuple((0 + 32 + 40 + 40) * 4.0, reads, kv + norms));
  EXPECT_EQ(counts_of("quoka:budget=40,score=dot"), std::tuple((0 + 32 + 40 + 40) * 4.0, reads, kv));
  EXPECT_EQ(counts_of("quoka:fraction=0.5"), std::tuple((0 + 16 + 32 + 48) * 4.0, reads, kv + norms));
}

TEST(engine, generates_what_feeding_predicts) {
  const model weights = tiny(true);
  const method how = parse_method("quoka:budget=16,n=4");
  session run(weights, how, {64, 16, skim::element::f32, 0}, executor());
  run.feed(tokens(50));
  const std::vector<std::int32_t> words = run.generate(5);
  ASSERT_EQ(words.size(), 5u);
  for (std::size_t i = 0; i < words.size(); ++i) {
    Eigen::Index likeliest = 0;
    run.logits(49 + static_cast<std::int64_t>(i)).maxCoeff(&likeliest);
    EXPECT_EQ(words[i], likeliest);
  }
  EXPECT_EQ(run.tokens(), 55);
}

TEST(engine, refuses_tokens_it_has_no_room_or_row_for) {
  const model weights = tiny(false);
  const method how = parse_method("dense");
  session run(weights, how, {10, 4, skim::element::f32, 0}, executor());
  EXPECT_THROW(run.feed(tokens(11)), error);
  EXPECT_THROW(run.feed({1100}), error);
  EXPECT_THROW(run.feed({-1}), error);
  EXPECT_EQ(run.tokens(), 0);
}

}  // namespace
