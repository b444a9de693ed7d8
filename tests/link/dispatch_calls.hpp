// SPDX-License-Identifier: Apache-2.0
/// \file Calls of every operation that cpu/dispatch.hpp knows, on small tensors, and the hash of all that they wrote.
/// `Operations` says what runs them: `direct`, units of one processor, or `dispatched`.
#pragma once

#include <skim/buffer.hpp>
#include <skim/cpu/dispatch.hpp>

#include <cmath>
#include <stdexcept>
#include <vector>

namespace dispatch_calls {

using namespace skim;

inline void expect_good(report r, const char* what) {
  char text[200];
  if (!r) throw std::runtime_error(std::string(what) + ": " + describe(r, text, sizeof text));
}

template <class Operations>
class calls {
 public:
  std::uint64_t hash() {
    for (const element stored : {element::f32, element::bf16, element::f16}) {
      fill_cache(stored);
      attend(dense{});
      attend(quoka{queries::needed(16), retention::budget(64, 4, 16)});
      attend(quoka::paper(queries::lowest_cosine(16), retention::budget(64)));
      attend(sink_window{retention::budget(64, 4)});
      evict(evictors::standard(100), stored);
      evict(keydiff<>{retention::budget(100)}, stored);
      evict(tova{retention::budget(100)}, stored);
      evict(snapkv{retention::budget(100)}, stored);
      evict(fast_caote<tova>{tova{retention::budget(100)}}, stored);
      evict(fast_caote<snapkv>{snapkv{retention::budget(100)}}, stored);
      evict(h2o{retention::budget(100)}, stored);
      evict(random_tokens{retention::budget(100)}, stored);
    }
    compute_ffn();
    return hash_;
  }

 private:
  static constexpr std::int64_t Tq = 40, tokens = 340, Hq = 6, Hk = 2, D = 40, d = 48, f = 100;

  static std::vector<float> waves(std::int64_t count, float step) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i) {  // no libm in it, whose versions differ
      const std::int64_t turned = (i * static_cast<std::int64_t>(step * 1000)) % 2003;
      values.push_back(static_cast<float>(turned) / 1001.0f - 1.0f);
    }
    return values;
  }

  void add(const void* data, std::size_t bytes) {
    const unsigned char* const all = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ all[i]) * 1099511628211u;
  }

  void fill_cache(element stored) {
    kv_ = contiguous_cache({k_.data(), {tokens, Hk, D}, stored}, {v_.data(), {tokens, Hk, D}, stored}, tokens);
    kv_.positions = positions_.as<std::int32_t>();
    kv_.positions_stride = tokens;
    append_args append;
    append.k = tensor_view<const float, 3>(keys_.data(), {tokens, Hk, D});
    append.v = tensor_view<const float, 3>(values_.data(), {tokens, Hk, D});
    append.kv = kv_;
    expect_good(Operations::append(append, serial_executor{}), "append");
    add(k_.data(), static_cast<std::size_t>(tokens * Hk * bytes_of(stored, D)));
    chunk_.q = tensor_view<const float, 3>(queries_.data(), {Tq, Hq, D});
    chunk_.out = tensor_view<float, 3>(out_.data(), {Tq, Hq, D});
    chunk_.lse = {lse_.data(), {Tq, Hq}};
    chunk_.kv = kv_;
  }

  template <class Policy>
  void attend(const Policy& policy) {
    attend_with(policy, accumulate::widen_fma{});
    attend_with(policy, accumulate::dot_pairs{});
  }
  template <class Policy, class Accumulate>
  void attend_with(const Policy& policy, Accumulate accumulate) {
    const auto op = Operations::attention(policy, accumulate);
    workspace_.reserve(op.workspace_bytes(chunk_, 1));
    expect_good(op.check(chunk_), "check");
    expect_good(op.reset(chunk_, {}, serial_executor{}), "reset");
    expect_good(op.run(chunk_, {}, workspace_, serial_executor{}), "attention");
    add(out_.data(), out_.size() * sizeof(float));
    add(lse_.data(), lse_.size() * sizeof(float));
    index_lists lists;
    lists.block_rows = op.block_rows();
    lists.rows = list_rows(chunk_, lists.block_rows);
    lists.capacity = op.list_capacity(chunk_);
    std::vector<std::int32_t> slots(static_cast<std::size_t>(lists.rows * lists.capacity)),
        counts(static_cast<std::size_t>(lists.rows));
    lists.indices = slots.data();
    lists.counts = counts.data();
    expect_good(op.select(chunk_, lists, {}, workspace_, serial_executor{}), "select");
    const auto reader = Operations::attend(accumulate);
    workspace_.reserve(reader.workspace_bytes(chunk_, lists.block_rows, 1));
    expect_good(reader.run(chunk_, lists, workspace_, serial_executor{}), "attend");
    add(out_.data(), out_.size() * sizeof(float));
  }

  template <class Policy>
  void evict(const Policy& policy, element stored) {
    fill_cache(stored);
    const auto op = Operations::eviction(policy);
    eviction_args args;
    args.kv = kv_;
    args.new_tokens = Tq;
    args.attended = chunk_;
    state_.reserve(op.state_bytes(args));
    workspace_.reserve(op.workspace_bytes(args, 1));
    std::vector<std::int32_t> slots(Hk * 100), counts(Hk);
    const index_lists kept{slots.data(), counts.data(), Hk, 100};
    expect_good(op.reset(args, state_, serial_executor{}), "reset");
    expect_good(op.run(args, kept, state_, workspace_, serial_executor{}), "eviction");
    add(slots.data(), slots.size() * sizeof(std::int32_t));
    add(v_.data(), static_cast<std::size_t>(100 * Hk * bytes_of(stored, D)));
  }

  void compute_ffn() {
    const std::vector<float> x = waves(Tq * d, 0.291f), weights = waves(8 * f * d, 0.433f);
    std::vector<float> out(Tq * d), linear(Tq * f);
    const auto part = [&](std::int64_t first, std::int64_t rows, std::int64_t columns) {
      return tensor_view<const float, 2>(weights.data() + first * f * d, {rows, columns});
    };
    ffn_args args;
    args.x = tensor_view<const float, 2>(x.data(), {Tq, d});
    args.gate = part(0, f, d);
    args.up = part(1, f, d);
    args.down = part(2, f, d);
    args.out = tensor_view<float, 2>(out.data(), {Tq, d});
    args.first_block = 1;
    fastforward learned;
    learned.keep = neuron_retention::budget(40);
    learned.predictor.query = tensor_view<const float, 1>(weights.data() + 3 * f * d, {d});
    learned.predictor.w1 = part(4, d, 4);
    learned.predictor.w2 = part(5, 4, f);
    calibrated_set calibrated;
    calibrated.keep = learned.keep;
    calibrated.statistic = {weights.data(), {f}};
    const auto run = [&](const auto& policy) {
      const auto op = Operations::ffn(policy, accumulate::dot_pairs{});
      state_.reserve(op.state_bytes(args));
      workspace_.reserve(op.workspace_bytes(args, 1));
      ffn_args first = args;  // what policies with a state observe
      first.first_block = 0;
      expect_good(op.reset(args, state_, serial_executor{}), "reset");
      expect_good(op.run(first, state_, workspace_, serial_executor{}), "ffn");
      expect_good(op.run(args, state_, workspace_, serial_executor{}), "ffn");
      add(out.data(), out.size() * sizeof(float));

      std::vector<float> scores(f);  // step by step
      std::vector<std::int32_t> chosen(static_cast<std::size_t>(op.list_capacity(args)));
      std::int32_t count = 0;
      expect_good(op.score(args, {scores.data(), {1, f}}, state_, workspace_, serial_executor{}), "score");
      const index_lists lists{chosen.data(), &count, 1, op.list_capacity(args)};
      expect_good(
          op.choose(args, tensor_view<const float, 2>(scores.data(), {1, f}), lists, workspace_, serial_executor{}),
          "choose");
      add(scores.data(), scores.size() * sizeof(float));
      add(chosen.data(), static_cast<std::size_t>(count) * sizeof(std::int32_t));
    };
    run(all_neurons{});
    run(learned);
    run(calibrated);
    run(oracle{learned.keep});
    run(static_set{learned.keep});
    run(random_neurons{learned.keep});

    linear_args product;
    product.x = args.x;
    product.weight = args.up;
    product.out = tensor_view<float, 2>(linear.data(), {Tq, f});
    const auto op = Operations::linear(accumulate::widen_fma{});
    workspace_.reserve(op.workspace_bytes(product, 1));
    expect_good(op.run(product, workspace_, serial_executor{}), "linear");
    add(linear.data(), linear.size() * sizeof(float));
  }

  const std::vector<float> keys_ = waves(tokens * Hk * D, 0.371f), values_ = waves(tokens * Hk * D, 0.613f),
                           queries_ = waves(Tq * Hq * D, 0.237f);
  std::vector<float> out_ = std::vector<float>(Tq * Hq * D), lse_ = std::vector<float>(Tq * Hq);
  const buffer k_{tokens * Hk * D * 4}, v_{tokens * Hk * D * 4}, positions_{Hk * tokens * 4};
  buffer workspace_, state_;
  kv_cache kv_;
  attention_args chunk_;
  std::uint64_t hash_ = 14695981039346656037u;
};

}  // namespace dispatch_calls
