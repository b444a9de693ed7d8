// SPDX-License-Identifier: Apache-2.0
/// \file Sessions whose method has an evictor: what they keep, hold and answer.
#include "../error.hpp"
#include "tiny_engine.hpp"

#include <skim/math/random.hpp>

#include <algorithm>
#include <set>

namespace {

using namespace needle;
using namespace needle_test;

constexpr std::int64_t chunk = 16, budget = 24, sinks = 4;

/// Every evictor that a method can name, without its parameters.
const char* const evictors[] = {"standard",
                                "keydiff",
                                "h2o",
                                "tova",
                                "snapkv",
                                "caote(keydiff)",
                                "caote(h2o)",
                                "caote(tova)",
                                "caote(snapkv)",
                                "fast_caote(keydiff)",
                                "fast_caote(h2o)",
                                "fast_caote(tova)",
                                "fast_caote(snapkv)",
                                "evict(sink_window)",
                                "evict(random)"};

/// Which chunk a token belongs to, by its first token: `prefill` tokens come in chunks, the others one by one.
std::int64_t first_of_chunk(std::int64_t t, std::int64_t prefill) {
  return t < prefill ? t / chunk * chunk : t;
}

/// What `evict(sink_window)` leaves a query.
survivors sink_window_survivors(std::int64_t prefill) {
  return [prefill](std::uint64_t, std::uint64_t, std::int64_t t, std::int64_t key) {
    const std::int64_t first = first_of_chunk(t, prefill);
    return key >= first - (budget - sinks) || key < sinks;
  };
}

/// What `evict(random)` leaves a query: lots drawn as `skim::random_tokens` says, chunk after chunk.
class random_survivors {
 public:
  random_survivors(std::uint64_t seed, std::int64_t tokens, std::int64_t prefill) : prefill_(prefill) {
    for (std::uint64_t layer = 0; layer < 2; ++layer) {
      for (std::uint64_t head = 0; head < 2; ++head) {
        const std::uint64_t of_layer = skim::draw(0, skim::draw(seed, layer));
        draw_all(skim::draw(of_layer, head), tokens, left_[layer][head]);
      }
    }
  }

  bool operator()(std::uint64_t layer, std::uint64_t head, std::int64_t t, std::int64_t key) const {
    const std::int64_t first = first_of_chunk(t, prefill_);
    return key >= first || left_[layer][head].at(first).count(key) != 0;
  }

 private:
  using positions = std::set<std::int64_t>;

  /// left[first] = what is left when the chunk that begins at `first` comes.
  void draw_all(std::uint64_t of_head, std::int64_t tokens, std::map<std::int64_t, positions>& left) const {
    positions held;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const bool begins = first_of_chunk(t, prefill_) == t;
      if (begins && held.size() > budget) {
        const std::uint64_t stream = skim::draw(of_head, static_cast<std::uint64_t>(t - 1));
        std::vector<std::pair<std::uint64_t, std::int64_t>> lots;  // the highest stay; of equal ones the earlier
        for (const std::int64_t p : held) {
          lots.emplace_back(~(skim::draw(stream, static_cast<std::uint64_t>(p)) >> 40), p);
        }
        std::sort(lots.begin(), lots.end());
        held.clear();
        for (std::size_t i = 0; i < budget; ++i) held.insert(lots[i].second);
      }
      if (begins) left[t] = held;
      held.insert(t);
    }
  }

  std::int64_t prefill_;
  std::map<std::int64_t, positions> left_[2][2];
};

/// Both ways of compaction give what the definition, in double, gives for the survivors; prefill and decoding.
void expect_definition(const std::string& how, const survivors& finds, const survivors& others) {
  const model weights = tiny(true);
  constexpr std::int64_t count = 75, decoded = 20;
  const exact expected = reference_logits(weights, tokens(count), finds);
  const double tolerance = rounding_error(weights, tokens(count), finds, expected);
  const double difference = (reference_logits(weights, tokens(count), others) - expected).cwiseAbs().maxCoeff();
  EXPECT_GT(difference, 100 * tolerance);  // what the survivors are can be told from the logits
  for (const char* compaction : {"refill", "stable"}) {
    const matrix logits =
        logits_of(weights, how + ",compaction=" + compaction, {count, chunk, skim::element::f32, 3}, 2, count, decoded);
    EXPECT_LT((logits.cast<double>() - expected).cwiseAbs().maxCoeff(), tolerance) << how << ", " << compaction;
  }
}

TEST(bounded, sinks_and_newest_agree_with_the_definition) {
  expect_definition("evict(sink_window):budget=24", sink_window_survivors(55), everything);
}

TEST(bounded, heads_and_layers_of_their_own_agree_with_the_definition) {
  expect_definition("evict(random):budget=24", random_survivors(3, 75, 55), random_survivors(4, 75, 55));
}

TEST(bounded, a_budget_that_covers_everything_is_dense) {
  const model weights = tiny(false);
  const session_options options{100, chunk, skim::element::bf16, 0};
  const matrix dense = logits_of(weights, "dense", options, 2, 100, 10);
  for (const std::string evictor : evictors) {
    EXPECT_TRUE(dense == logits_of(weights, evictor + ":budget=100", options, 2, 100, 10)) << evictor;
    EXPECT_TRUE(dense == logits_of(weights, evictor + ":budget=1000000000", options, 2, 100, 10)) << evictor;
    EXPECT_FALSE(dense == logits_of(weights, evictor + ":budget=60", options, 2, 100, 10)) << evictor;
  }
}

TEST(bounded, every_evictor_chooses_otherwise) {
  const model weights = tiny(true);
  std::vector<matrix> seen;
  std::vector<std::string> methods(std::begin(evictors), std::end(evictors));
  for (std::string& text : methods) text += ":budget=40";
  for (const char* more :
       {"keydiff:budget=40,anchor=mean", "keydiff:budget=40,anchor=median", "keydiff:budget=40,recent=8",
        "keydiff:budget=40,sinks=4", "snapkv:budget=40,window=8", "snapkv:budget=40,pool=1",
        "caote(snapkv):budget=40,joint=on", "evict(random):budget=40,seed=1", "evict(sink_window):budget=40,sinks=9"}) {
    methods.push_back(more);
  }
  for (const std::string& how : methods) {
    const matrix logits = logits_of(weights, how, {200, chunk, skim::element::f32, 0}, 2, 200);
    for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_FALSE(logits == seen[i]) << how << " as " << methods[i];
    seen.push_back(logits);
  }
}

TEST(bounded, random_choices_differ_between_prompts_and_repeat_with_the_seed) {
  const model weights = tiny(false);
  const auto logits = [&](std::uint64_t seed) {
    return logits_of(weights, "evict(random):budget=30", {100, chunk, skim::element::f32, seed}, 1, 100);
  };
  EXPECT_TRUE(logits(1) == logits(1));
  EXPECT_FALSE(logits(1) == logits(2));
}

TEST(bounded, holds_the_same_whatever_is_fed) {
  const model weights = tiny(false);
  const std::int64_t capacity = 40 + chunk, slots = capacity * 2 * 2, kv = slots * 2 * 8 * 2;  // x layers x KV heads
  const std::int64_t positions = slots * 4, norms = slots * 4;
  const std::int64_t sums = 2 * (2 * 8 * 8), weights_of_tokens = slots * 4;  // [Hk, D] of 64 bits; [Hk, capacity] f32
  const std::pair<const char*, std::int64_t> examples[] = {
      {"evict(sink_window):budget=40", kv + positions},
      {"keydiff:budget=40", kv + positions + norms + sums},
      {"keydiff:budget=40,anchor=mean", kv + positions + norms},
      {"fast_caote(keydiff):budget=40", kv + positions + norms + sums},
      {"caote(h2o):budget=40", kv + positions + weights_of_tokens},
      {"snapkv:budget=40+quoka:budget=8,score=cosine", kv + positions + norms + weights_of_tokens},
  };
  for (const auto& [text, bytes] : examples) {
    const method how = parse_method(text);
    for (const std::int64_t prompt : {100, 200, 400}) {
      session run(weights, how, {prompt + 9, chunk, skim::element::bf16, 0}, executor());
      EXPECT_EQ(run.kv_bytes_held(), bytes) << text << ", before " << prompt;
      run.feed(tokens(static_cast<std::size_t>(prompt)));
      EXPECT_EQ(run.kv_bytes_held(), bytes) << text << ", after " << prompt;
      run.generate(9);
      EXPECT_EQ(run.kv_bytes_held(), bytes) << text << ", after " << prompt << " and 9";
      EXPECT_EQ(run.counts().kv_tokens, capacity) << text;
      EXPECT_EQ(run.tokens(), prompt + 9);
      EXPECT_GT(run.counts().evict_ms, 0) << text;
    }
  }
}

TEST(bounded, a_selector_reads_what_is_left) {
  const model weights = tiny(true);
  const session_options options{100, 32, skim::element::bf16, 0};
  const auto keys_read = [&](const char* text) {
    const method how = parse_method(text);
    session run(weights, how, options, executor());
    run.feed(tokens(100));
    return run.counts().keys_read;
  };
  EXPECT_EQ(keys_read("keydiff:budget=40"), (0 + 32 + 40 + 40) * 4.0);
  EXPECT_EQ(keys_read("keydiff:budget=40+quoka:budget=16,n=4"), (0 + 16 + 16 + 16) * 4.0);
  EXPECT_EQ(keys_read("keydiff:budget=40+quoka:fraction=0.5"), (0 + 16 + 20 + 20) * 4.0);

  const auto logits = [&](const char* text) { return logits_of(weights, text, options, 2, 100, 5); };
  EXPECT_TRUE(logits("keydiff:budget=40") == logits("keydiff:budget=40+quoka:budget=40"));
  EXPECT_TRUE(logits("keydiff:budget=40") == logits("dense+keydiff:budget=40"));
  EXPECT_TRUE(logits("h2o:budget=40") == logits("h2o:budget=40+sink_window:budget=40"));
  EXPECT_TRUE(logits("keydiff:budget=40+quoka:budget=16,n=4") == logits("quoka:budget=16,n=4+keydiff:budget=40"));
  EXPECT_FALSE(logits("keydiff:budget=40") == logits("keydiff:budget=40+quoka:budget=16,n=4"));
  EXPECT_FALSE(logits("h2o:budget=40+quoka:budget=16,n=4") == logits("tova:budget=40+quoka:budget=16,n=4"));
}

TEST(bounded, layers_can_keep_the_same_tokens) {
  const model weights = tiny(true);
  const session_options options{100, chunk, skim::element::bf16, 0};
  const auto logits = [&](const std::string& text, int threads) {
    return logits_of(weights, text, options, threads, 100, 5);
  };
  // Where all heads agree by themselves nothing changes.
  EXPECT_TRUE(logits("evict(sink_window):budget=40", 2) == logits("evict(sink_window):budget=40,share=layers", 2));
  EXPECT_FALSE(logits("evict(sink_window):budget=40", 2) == logits("evict(sink_window):budget=39,share=layers", 2));
  for (const std::string evictor : evictors) {
    const matrix shared = logits(evictor + ":budget=40,share=layers", 2);
    EXPECT_TRUE(shared == logits(evictor + ":budget=40,share=layers", 1)) << evictor;
    const bool agree = evictor == "evict(sink_window)";
    EXPECT_EQ(shared == logits(evictor + ":budget=40,share=off", 2), agree) << evictor;
  }
}

TEST(bounded, generates_what_feeding_predicts) {
  const model weights = tiny(true);
  for (const std::string evictor : evictors) {
    const method how =
        parse_method(evictor + ":budget=40" + (evictor.size() % 2 == 0 ? ",share=off" : ",share=layers"));
    session run(weights, how, {120, chunk, skim::element::bf16, 0}, executor());
    session fed(weights, how, {120, chunk, skim::element::bf16, 0}, executor());
    run.feed(tokens(90));
    fed.feed(tokens(90));
    for (const std::int32_t word : run.generate(30)) {
      Eigen::Index likeliest = 0;
      fed.logits(fed.tokens() - 1).maxCoeff(&likeliest);
      EXPECT_EQ(word, likeliest) << evictor;
      fed.feed({word});
    }
    EXPECT_TRUE(run.logits(119) == fed.logits(119)) << evictor;
  }
}

TEST(bounded, refuses_what_its_cache_cannot_do) {
  const model weights = tiny(false);
  const method how = parse_method("snapkv:budget=40,pool=100001");
  try {
    session(weights, how, {100, chunk, skim::element::bf16, 0}, executor());
    ADD_FAILURE() << "a pool wider than the cache";
  } catch (const error& problem) {
    EXPECT_NE(std::string(problem.what()).find("pool"), std::string::npos) << problem.what();
  }
}

}  // namespace
