// SPDX-License-Identifier: Apache-2.0
// The vocabulary (tier 0) carries policies of all three kinds: written on it alone, they run on every executor and
// agree with direct loops over plain arrays.
#include "cache_storage.hpp"
#include "executors.hpp"
#include "stub_evictor.hpp"
#include "stub_neuron_selector.hpp"
#include "stub_selector.hpp"

#include <skim/reference/append.hpp>
#include <skim/reference/attention.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;
using list_of_slots = std::vector<std::int64_t>;

class vocabulary : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(executors, vocabulary, testing::ValuesIn(every_executor));

struct lists_storage {
  std::vector<std::int32_t> indices, counts;
  skim::index_lists lists;

  lists_storage(std::int64_t rows, std::int64_t capacity)
      : indices(static_cast<std::size_t>(rows * capacity), -1), counts(static_cast<std::size_t>(rows), -1) {
    lists = {indices.data(), counts.data(), rows, capacity};
  }
  list_of_slots row(std::int64_t r) const { return {lists.row(r), lists.row(r) + lists.counts[r]}; }
};

/// The highest `count` of `scores`, ascending by index.
list_of_slots highest(const std::vector<double>& scores, std::int64_t count) {
  list_of_slots order(scores.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(count)));
  std::sort(order.begin(), order.end());
  return order;
}

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// A selector: two sequences of one call, one cache paged and one a ring, chosen keys then attended to.

constexpr std::int64_t Hk = 2, G = 3, Hq = Hk * G, D = 12, budget = 9;

/// Tokens of one sequence as plain arrays [tokens, heads, D].
struct plain_tokens {
  std::vector<float> k, v;
  plain_tokens(std::int64_t tokens, unsigned seed)
      : k(normal_values(tokens * Hk * D, seed)), v(normal_values(tokens * Hk * D, seed + 1)) {}
};

void append_tokens(const skim::kv_view& kv, plain_tokens& from, std::int64_t first, std::int64_t count) {
  skim::append_args args;
  args.k = skim::tensor_view<const float, 3>(from.k.data() + first * Hk * D, {count, Hk, D});
  args.v = skim::tensor_view<const float, 3>(from.v.data() + first * Hk * D, {count, Hk, D});
  args.kv = kv;
  args.position = first;
  ASSERT_TRUE(check(args).ok());
  skim::reference::append(args);
}

/// The chosen slots of one sequence and head, by double loops over the plain arrays.
list_of_slots choose_directly(const std::vector<float>& q, std::int64_t first, std::int64_t Tq,
                              const plain_tokens& tokens, std::int64_t Tk, std::int64_t head) {
  std::vector<float> qbar(D, 0.0f);
  for (std::int64_t t = first; t < first + Tq; ++t) {
    for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
      const float* row = q.data() + (t * Hq + h) * D;
      for (std::int64_t d = 0; d < D; ++d)
        qbar[static_cast<std::size_t>(d)] += row[d] / std::sqrt(float(dot(row, row, D)));
    }
  }
  std::vector<double> scores;
  for (std::int64_t slot = 0; slot < Tk; ++slot) {
    const float* row = tokens.k.data() + (slot * Hk + head) * D;
    scores.push_back(dot(qbar.data(), row, D) / std::sqrt(dot(row, row, D)));
  }
  return highest(scores, budget);
}

/// Attention of one query row over plain keys; the chunk's own follow the chosen ones.
std::vector<double> attend_directly(const float* q, const plain_tokens& tokens, std::int64_t head,
                                    const list_of_slots& keys) {
  std::vector<double> out(D, 0.0);
  double total = 0;
  for (const std::int64_t key : keys) {
    const std::int64_t row = (key * Hk + head) * D;
    const double weight = std::exp(dot(q, tokens.k.data() + row, D) / std::sqrt(static_cast<double>(D)));
    total += weight;
    for (std::int64_t d = 0; d < D; ++d) {
      out[static_cast<std::size_t>(d)] += weight * static_cast<double>(tokens.v[static_cast<std::size_t>(row + d)]);
    }
  }
  for (double& value : out) value /= total;
  return out;
}

void expect_near(const std::vector<double>& expected, const double* got, double tolerance) {
  for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance) << "at " << i;
}

TEST_P(vocabulary, carries_a_selector) {
  const std::int64_t Tk[] = {70, 5}, Tq[] = {4, 6};  // the second sequence is shorter than the budget
  plain_tokens tokens[] = {{Tk[0] + Tq[0], 10}, {Tk[1] + Tq[1], 20}};
  cache_shape paged{Hk, D, D, 80};
  paged.layout = skim::kv_layout::paged;
  paged.page_size = 16;
  cache_shape ring{Hk, D, D, 13};
  ring.layout = skim::kv_layout::ring;
  ring.ring_start = 6;
  ring.inverse_norms = ring.positions = true;
  cache_storage caches[] = {cache_storage(paged), cache_storage(ring)};
  skim::kv_view views[] = {caches[0].view(Tk[0] + Tq[0]), caches[1].view(Tk[1] + Tq[1])};
  for (int s = 0; s < 2; ++s) {
    skim::kv_view grown = views[s];
    for (grown.tokens = 0; grown.tokens < views[s].tokens;) {
      const std::int64_t count = std::min<std::int64_t>(7, views[s].tokens - grown.tokens);
      grown.tokens += count;
      append_tokens(grown, tokens[s], grown.tokens - count, count);
    }
  }
  const std::int64_t offsets[] = {0, Tq[0], Tq[0] + Tq[1]};
  std::vector<float> q = normal_values(offsets[2] * Hq * D, 30), ignored(q.size());
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {offsets[2], Hq, D});
  args.out = skim::tensor_view<float, 3>(ignored.data(), {offsets[2], Hq, D});
  args.sequences = views;
  args.offsets = offsets;
  args.sequence_count = 2;
  const mean_query_selector selector{budget};
  ASSERT_TRUE(check(args).ok());
  ASSERT_TRUE(selector.check(args).ok());
  EXPECT_EQ(mean_query_selector{0}.check(args).code, skim::status::bad_value);

  lists_storage chosen(2 * Hk, selector.list_capacity(args));
  aligned_memory workspace(selector.workspace_bytes(args, GetParam().workers));
  run_on(GetParam(), [&](const auto& executor) { selector.select(args, chosen.lists, {}, workspace.get(), executor); });

  ASSERT_TRUE(check_indices(args, &chosen.lists).ok());
  std::vector<double> out(q.size());
  skim::reference::attend(args, &chosen.lists, {out.data(), {offsets[2], Hq, D}});
  for (std::int64_t row = 0; row < 2 * Hk; ++row) {
    const std::int64_t s = row / Hk, head = row % Hk;
    EXPECT_EQ(chosen.row(row), choose_directly(q, offsets[s], Tq[s], tokens[s], Tk[s], head)) << "row " << row;
    for (std::int64_t i = 0; i < Tq[s] * G; ++i) {
      list_of_slots keys = chosen.row(row);
      for (std::int64_t own = 0; own <= i / G; ++own) keys.push_back(Tk[s] + own);
      const std::int64_t at = ((offsets[s] + i / G) * Hq + head * G + i % G) * D;
      expect_near(attend_directly(q.data() + at, tokens[s], head, keys), out.data() + at, 1e-6);
    }
  }
}

// An evictor: a bounded cache is refilled chunk by chunk, each head keeping tokens of its own.

class bounded_cache : public testing::TestWithParam<std::tuple<executor_choice, skim::kv_layout>> {};
INSTANTIATE_TEST_SUITE_P(executors_and_layouts, bounded_cache,
                         testing::Combine(testing::ValuesIn(every_executor),
                                          testing::Values(skim::kv_layout::contiguous, skim::kv_layout::paged,
                                                          skim::kv_layout::ring)));

/// What one head holds, by direct loops: tokens of the whole text and the attention each has received.
struct kept_tokens {
  list_of_slots tokens;
  std::vector<double> sums;

  /// The chunk [first, first + Tq) arrives, attends, and the cache shrinks to the budget. Returns attention output.
  std::vector<double> step(const std::vector<float>& q, const plain_tokens& text, std::int64_t first, std::int64_t Tq,
                           std::int64_t head) {
    for (std::int64_t t = first; t < first + Tq; ++t) tokens.push_back(t);
    sums.resize(tokens.size(), 0.0);
    std::vector<double> outputs;
    for (std::int64_t i = 0; i < Tq * G; ++i) {
      const float* row = q.data() + ((first + i / G) * Hq + head * G + i % G) * D;
      const auto seen = std::upper_bound(tokens.begin(), tokens.end(), first + i / G);
      std::vector<double> weights;
      for (auto token = tokens.begin(); token != seen; ++token) {
        const float* key = text.k.data() + (*token * Hk + head) * D;
        weights.push_back(std::exp(dot(row, key, D) / std::sqrt(static_cast<double>(D))));
      }
      const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (std::size_t j = 0; j < weights.size(); ++j) sums[j] += weights[j] / total;
      for (const double value : attend_directly(row, text, head, {tokens.begin(), seen})) outputs.push_back(value);
    }
    list_of_slots next_tokens;
    std::vector<double> next_sums;
    for (const std::int64_t slot : highest(sums, budget)) {
      next_tokens.push_back(tokens[static_cast<std::size_t>(slot)]);
      next_sums.push_back(sums[static_cast<std::size_t>(slot)]);
    }
    tokens = next_tokens;
    sums = next_sums;
    return outputs;
  }
};

TEST_P(bounded_cache, carries_an_evictor) {
  const auto [choice, layout] = GetParam();
  const std::int64_t Tq = 5, chunks = 8, capacity = 16;  // budget + Tq, rounded up to whole pages
  plain_tokens text(chunks * Tq, 40);
  std::vector<float> q = normal_values(chunks * Tq * Hq * D, 50);
  for (float& value : q) value *= 3;  // sharp attention: else the oldest tokens have the highest sums for ever
  cache_shape shape{Hk, D, D, capacity};
  shape.layout = layout;
  shape.page_size = 4;
  shape.ring_start = layout == skim::kv_layout::ring ? 11 : 0;
  shape.positions = shape.inverse_norms = true;
  cache_storage cache(shape);
  skim::kv_view kv = cache.view(0);
  std::vector<kept_tokens> expected(Hk);
  const attention_sum_evictor evictor{budget};

  skim::attention_args args;
  args.kv = kv;
  args.q = skim::tensor_view<const float, 3>(q.data(), {Tq, Hq, D});
  aligned_memory state(evictor.state_bytes(args));
  run_on(choice, [&](const auto& executor) { evictor.reset(args, state.get(), executor); });
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    kv.tokens += Tq;
    append_tokens(kv, text, chunk * Tq, Tq);
    std::vector<float> ignored(static_cast<std::size_t>(Tq * Hq * D));
    args.kv = kv;
    args.q = skim::tensor_view<const float, 3>(q.data() + chunk * Tq * Hq * D, {Tq, Hq, D});
    args.out = skim::tensor_view<float, 3>(ignored.data(), {Tq, Hq, D});
    ASSERT_TRUE(check_indices(args).ok());
    std::vector<double> out(ignored.size());
    skim::reference::attend(args, nullptr, {out.data(), {Tq, Hq, D}});

    std::vector<float> scores(static_cast<std::size_t>(Hk * kv.tokens));
    const skim::tensor_view<float, 2> scored(scores.data(), {Hk, kv.tokens});
    lists_storage kept(Hk, kv.tokens);
    aligned_memory workspace(evictor.workspace_bytes(args, choice.workers));
    run_on(choice, [&](const auto& executor) {
      evictor.observe(args, state.get(), workspace.get(), executor);
      evictor.score(args, state.get(), scored, executor);
      evictor.keep(args, scored, kept.lists, executor);
      evictor.compact(args, kept.lists, state.get(), executor);
    });
    kv.tokens = std::min(kv.tokens, budget);

    for (std::int64_t head = 0; head < Hk; ++head) {
      kept_tokens& held = expected[static_cast<std::size_t>(head)];
      const std::vector<double> rows = held.step(q, text, chunk * Tq, Tq, head);
      for (std::int64_t i = 0; i < Tq * G; ++i) {
        const double* got = out.data() + (i / G * Hq + head * G + i % G) * D;
        expect_near({rows.begin() + i * D, rows.begin() + (i + 1) * D}, got, 1e-6);
      }
      list_of_slots positions;
      for (std::int64_t slot = 0; slot < kv.tokens; ++slot) {
        positions.push_back(kv.position(head, slot));
        const float* sums = static_cast<const float*>(state.data()) + head * capacity;
        EXPECT_NEAR(sums[kv.metadata_row(slot)], held.sums[static_cast<std::size_t>(slot)], 1e-5);
        const float* key = static_cast<const float*>(kv.k.data) + kv.row_offset(kv.k, head, slot);
        const float norm = kv.inverse_norms[head * capacity + kv.metadata_row(slot)];
        EXPECT_NEAR(norm * norm * dot(key, key, D), 1, 1e-5);
      }
      EXPECT_EQ(positions, held.tokens) << "chunk " << chunk << ", head " << head;
    }
  }
  EXPECT_NE(expected[0].tokens, expected[1].tokens) << "heads that keep the same tokens prove less";
  EXPECT_LT(kv.position(0, budget - 1), chunks * Tq) << "positions follow the tokens";
  EXPECT_GT(kv.position(0, budget - 1), budget - 1) << "positions are no longer index plus offset";
}

// A neuron selector: predict, choose, FFN over the chosen neurons; bf16 weights.

TEST_P(vocabulary, carries_a_neuron_selector) {
  const std::int64_t M = 11, d = 10, f = 37, r = 4, kept = 15;
  const auto rounded = [](std::int64_t count, unsigned seed, std::vector<skim::bf16>& stored) {
    std::vector<float> values = normal_values(count, seed);
    for (float& value : values) {
      stored.push_back(skim::from_float<skim::bf16>(value));
      value = skim::to_float(stored.back());
    }
    return values;
  };
  std::vector<skim::bf16> gate_bits, up_bits, down_bits, query_bits, w1_bits, w2_bits;
  const std::vector<float> x = normal_values(M * d, 60);
  const std::vector<float> gate = rounded(f * d, 61, gate_bits), up = rounded(f * d, 62, up_bits);
  const std::vector<float> down = rounded(d * f, 63, down_bits), query = rounded(d, 64, query_bits);
  const std::vector<float> w1 = rounded(d * r, 65, w1_bits), w2 = rounded(r * f, 66, w2_bits);
  const auto view = [](const std::vector<skim::bf16>& bits, std::int64_t rows, std::int64_t columns) -> matrix {
    return skim::tensor_view<const skim::bf16, 2>(bits.data(), {rows, columns});
  };
  std::vector<float> out(static_cast<std::size_t>(M * d)), scores(static_cast<std::size_t>(f));
  block_args args;
  args.x = skim::tensor_view<const float, 2>(x.data(), {M, d});
  args.gate = view(gate_bits, f, d);
  args.up = view(up_bits, f, d);
  args.down = view(down_bits, d, f);
  args.out = skim::tensor_view<float, 2>(out.data(), {M, d});
  const block_mean_neurons neurons{kept, view(query_bits, 1, d), view(w1_bits, d, r), view(w2_bits, r, f)};
  const skim::tensor_view<float, 2> scored(scores.data(), {1, f});
  lists_storage chosen(1, f);
  const sparse_block ffn;
  aligned_memory workspace(
      std::max(neurons.workspace_bytes(args, GetParam().workers), ffn.workspace_bytes(args, chosen.lists)));
  run_on(GetParam(), [&](const auto& executor) {
    neurons.predict(args, scored, workspace.get(), executor);
    neurons.choose(scored, chosen.lists, executor);
    ffn.run(args, chosen.lists, workspace.get(), executor);
  });

  std::vector<double> mean(static_cast<std::size_t>(d), 0.0), logits(static_cast<std::size_t>(f), 0.0);
  double total = 0;
  for (std::int64_t t = 0; t < M; ++t) {
    const double weight = std::exp(dot(x.data() + t * d, query.data(), d) / std::sqrt(static_cast<double>(d)));
    total += weight;
    for (std::int64_t i = 0; i < d; ++i) mean[std::size_t(i)] += weight * double(x[std::size_t(t * d + i)]);
  }
  for (std::int64_t j = 0; j < r; ++j) {
    double hidden = 0;
    for (std::int64_t i = 0; i < d; ++i) hidden += mean[std::size_t(i)] / total * double(w1[std::size_t(i * r + j)]);
    for (std::int64_t n = 0; n < f; ++n)
      logits[std::size_t(n)] += std::max(hidden, 0.0) * double(w2[std::size_t(j * f + n)]);
  }
  const list_of_slots expected = highest(logits, kept);
  EXPECT_EQ(chosen.row(0), expected);
  for (std::int64_t t = 0; t < M; ++t) {
    for (std::int64_t c = 0; c < d; ++c) {
      double sum = 0;
      for (const std::int64_t j : expected) {
        const double g = dot(x.data() + t * d, gate.data() + j * d, d);
        sum +=
            g / (1 + std::exp(-g)) * dot(x.data() + t * d, up.data() + j * d, d) * double(down[std::size_t(c * f + j)]);
      }
      ASSERT_NEAR(out[std::size_t(t * d + c)], sum, 1e-3) << "row " << t << ", column " << c;
    }
  }
}

}  // namespace
