// SPDX-License-Identifier: Apache-2.0
#include "../error.hpp"
#include "tiny_engine.hpp"

#include <oneapi/tbb/global_control.h>

namespace {

using namespace needle;
using namespace needle_test;

TEST(engine, agrees_with_the_definition) {
  for (const bool biased : {false, true}) {
    const model weights = tiny(biased);
    const exact expected = reference_logits(weights, tokens(75));
    const double tolerance = rounding_error(weights, tokens(75), everything, expected);
    EXPECT_LT(tolerance, 1e-4 * expected.cwiseAbs().maxCoeff());  // else it would prove nothing
    for (const std::int64_t chunk : {1, 16, 75, 100}) {
      const matrix logits = logits_of(weights, "dense", {80, chunk, skim::element::f32, 0}, 2, 75);
      EXPECT_LT((logits.cast<double>() - expected).cwiseAbs().maxCoeff(), tolerance) << "chunk " << chunk;
    }
  }
}

TEST(engine, threads_change_no_bit) {
  const tbb::global_control lift(tbb::global_control::max_allowed_parallelism, 7);  // also where there are fewer cores
  const model weights = tiny(true);
  for (const char* how :
       {"dense", "quoka:budget=20,queries=farthest_point,n=4", "sink_window:budget=20",
        "keydiff:budget=70+quoka:budget=20,n=4", "fast_caote(keydiff):budget=40", "caote(snapkv):budget=40,joint=on",
        "h2o:budget=40+sink_window:budget=20", "evict(random):budget=40", "oracle:keep=0.5",
        "static_set:keep=0.5+keydiff:budget=40+quoka:budget=20,n=4", "ffn(random):keep=0.3"}) {
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
  EXPECT_TRUE(dense == logits_of(weights, "oracle:keep=1", options, 2, 100));
  EXPECT_FALSE(dense == logits_of(weights, "oracle:keep=0.5", options, 2, 100));
}

TEST(engine, the_first_and_the_last_chunk_compute_all_neurons) {
  const model weights = tiny(false);
  const session_options options{100, 16, skim::element::f32, 0};
  const auto differs = [&](const char* how, std::int64_t count) {
    return !(logits_of(weights, how, options, 1, count) == logits_of(weights, "dense", options, 1, count));
  };
  EXPECT_FALSE(differs("ffn(random):keep=0.1", 16));
  EXPECT_FALSE(differs("ffn(random):keep=0.1", 31));
  EXPECT_TRUE(differs("ffn(random):keep=0.1", 33));
}

TEST(engine, decoding_computes_all_neurons_unless_asked) {
  const model weights = tiny(false);
  const auto last_logits = [&](const char* how) {
    const method chosen = parse_method(how);
    session run(weights, chosen, {100, 50, skim::element::f32, 0}, executor());
    run.feed(tokens(90));  // two chunks: both dense
    run.generate(4);
    return run.logits(run.tokens() - 1);
  };
  EXPECT_TRUE(last_logits("ffn(random):keep=0.1") == last_logits("dense"));
  EXPECT_FALSE(last_logits("ffn(random):keep=0.1,decode=sparse") == last_logits("dense"));
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
  EXPECT_EQ(counts_of("quoka:budget=40"), std::tuple((0 + 32 + 40 + 40) * 4.0, reads, kv));
  EXPECT_EQ(counts_of("quoka:budget=40,score=cosine"), std::tuple((0 + 32 + 40 + 40) * 4.0, reads, kv + norms));
  EXPECT_EQ(counts_of("quoka:budget=40,score=dot"), std::tuple((0 + 32 + 40 + 40) * 4.0, reads, kv));
  EXPECT_EQ(counts_of("quoka:fraction=0.5"), std::tuple((0 + 16 + 32 + 48) * 4.0, reads, kv));
  for (const char* how : {"quoka:budget=40,dense_layers=0", "quoka:budget=40,dense_layers=1/1"}) {
    EXPECT_EQ(counts_of(how), std::tuple((0 + 32 + 40 + 40) * 2.0 + (0 + 32 + 64 + 96) * 2.0, reads, kv)) << how;
  }
}

TEST(engine, refuses_dense_layers_that_leave_no_choice) {
  const model weights = tiny(false);
  const auto complaint_of = [&](const char* how) -> std::string {
    try {
      session run(weights, parse_method(how), {100, 32, skim::element::bf16, 0}, executor());
    } catch (const error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(complaint_of("quoka:dense_layers=1"), "");
  EXPECT_EQ(complaint_of("quoka:dense_layers=1/2"), "dense_layers names layer 2, the model has layers 0 to 1");
  EXPECT_EQ(complaint_of("quoka:dense_layers=0/1"),
            "every layer of the model has a window or is a dense one: there is nothing to choose");
}

TEST(engine, generates_what_feeding_predicts) {
  const model weights = tiny(true);
  const method how = parse_method("quoka:budget=16,n=4");
  session run(weights, how, {64, 16, skim::element::f32, 0}, executor());
  session fed(weights, how, {64, 16, skim::element::f32, 0}, executor());
  run.feed(tokens(50));
  fed.feed(tokens(50));
  const std::vector<std::int32_t> words = run.generate(5);
  ASSERT_EQ(words.size(), 5u);
  for (const std::int32_t word : words) {
    Eigen::Index likeliest = 0;
    fed.logits(fed.tokens() - 1).maxCoeff(&likeliest);
    EXPECT_EQ(word, likeliest);
    fed.feed({word});
  }
  EXPECT_EQ(run.tokens(), 55);
  EXPECT_TRUE(run.logits(54) == fed.logits(54));
}

TEST(engine, tells_of_each_chunk_and_remembers_the_last) {
  const model weights = tiny(false);
  const method how = parse_method("dense");
  session run(weights, how, {40, 16, skim::element::f32, 0}, executor());
  std::vector<std::pair<std::int64_t, std::int64_t>> chunks;
  run.feed(tokens(37), [&](std::int64_t first, std::int64_t count) { chunks.emplace_back(first, count); });
  EXPECT_EQ(chunks, (std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 16}, {16, 16}, {32, 5}}));
  EXPECT_EQ(run.logits(32, 5).rows(), 5);
  EXPECT_THROW(run.logits(31), error);
  EXPECT_THROW(run.logits(37), error);
  EXPECT_THROW(run.logits(32, 6), error);
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
