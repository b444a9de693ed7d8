// SPDX-License-Identifier: Apache-2.0
/// \file A text that streams through one layer's bounded cache: append, attend, evict.
#pragma once

#include "eviction_case.hpp"

namespace skim_test {

/// Queries, keys and values of `total` tokens.
struct bounded_text {
  std::int64_t Hk, G, D, total;
  skim::element type;  // of the cache
  std::vector<float> q, k, v;

  bounded_text(std::int64_t heads, std::int64_t group, std::int64_t dims, std::int64_t tokens,
               skim::element stored = skim::element::f32)
      : Hk(heads),
        G(group),
        D(dims),
        total(tokens),
        type(stored),
        q(normal_values(tokens * heads * group * dims, 21)),
        k(normal_values(tokens * heads * dims, 22)),
        v(normal_values(tokens * heads * dims, 23)) {}

  /// No logit is larger: the product of the longest query and the longest key, scaled.
  double largest_logit() const { return longest(q) * longest(k) / std::sqrt(static_cast<double>(D)); }

 private:
  double longest(const std::vector<float>& rows) const {
    double most = 0, squares = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      squares += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
      if ((i + 1) % static_cast<std::size_t>(D) != 0) continue;
      most = std::max(most, squares);
      squares = 0;
    }
    return std::sqrt(most);
  }
};

template <class Policy>
class bounded_layer {
 public:
  skim::cpu::bounded_cache<Policy> cache;
  skim::attention_args attended;
  std::vector<float> out, lse;

  bounded_layer(const bounded_text& text, const Policy& policy, std::int64_t capacity, skim::compaction how)
      : text_(text), storage_(shape(text, capacity)), kept_(text.Hk, capacity) {
    cache.op.evictor = policy;
    cache.kv() = storage_.view(0);
    cache.settings.how = how;
    cache.kept = kept_.lists;
    state_ = std::make_unique<aligned_memory>(cache.op.state_bytes(plain()));
    cache.state = state_->get();
    reset();
  }

  void append(std::int64_t Tq) {
    const std::int64_t row = text_.Hk * text_.D, first = cache.position;
    const skim::tensor_view<const float, 3> k(text_.k.data() + first * row, {Tq, text_.Hk, text_.D});
    const skim::tensor_view<const float, 3> v(text_.v.data() + first * row, {Tq, text_.Hk, text_.D});
    ASSERT_TRUE(cache.append(k, v, serial_).ok());
    const std::int64_t heads = text_.Hk * text_.G;
    out.assign(static_cast<std::size_t>(Tq * heads * text_.D), 0.0f);
    lse.assign(static_cast<std::size_t>(Tq * heads), 0.0f);
    attended = {};
    attended.q = skim::tensor_view<const float, 3>(text_.q.data() + first * heads * text_.D, {Tq, heads, text_.D});
    attended.out = skim::tensor_view<float, 3>(out.data(), {Tq, heads, text_.D});
    attended.lse = skim::tensor_view<float, 2>(lse.data(), {Tq, heads});
    attended.kv = cache.kv();
  }

  void attend() {
    const skim::cpu::attention<> op;
    aligned_memory workspace(op.workspace_bytes(attended, 1));
    ASSERT_TRUE(op.run(attended, {}, workspace.get(), serial_).ok());
  }

  void evict() {
    aligned_memory workspace(cache.op.workspace_bytes(now(), 1));
    ASSERT_TRUE(cache.evict(attended, nullptr, workspace.get(), serial_).ok());
    EXPECT_TRUE(workspace.guards_intact() && state_->guards_intact() && kept_.guards_intact());
  }

  /// One chunk; `attends`: for policies that look at attention.
  void step(std::int64_t Tq, bool attends) {
    append(Tq);
    if (attends) attend();
    evict();
  }

  void score(scores_memory& scores) {
    aligned_memory workspace(cache.op.workspace_bytes(plain(), 1));
    EXPECT_TRUE(cache.op.score(plain(), scores.view(), cache.state, workspace.get(), serial_).ok());
  }

  /// By slot.
  std::vector<std::int64_t> positions(std::int64_t head) const {
    std::vector<std::int64_t> by_slot;
    const skim::kv_cache& kv = cache.kv();
    for (std::int64_t slot = 0; slot < kv.length(head); ++slot) by_slot.push_back(kv.position(head, slot));
    return by_slot;
  }
  std::vector<std::int64_t> sorted_positions(std::int64_t head) const {
    std::vector<std::int64_t> ascending = positions(head);
    std::sort(ascending.begin(), ascending.end());
    return ascending;
  }

 private:
  static cache_shape shape(const bounded_text& text, std::int64_t capacity) {
    cache_shape shape;
    shape.heads = text.Hk;
    shape.D = shape.Dv = text.D;
    shape.capacity = capacity;
    shape.type = text.type;
    shape.positions = shape.inverse_norms = true;
    return shape;
  }

  void reset() { EXPECT_TRUE(cache.op.reset(plain(), cache.state, serial_).ok()); }

  /// Enough of a call for `reset`.
  skim::eviction_args plain() {
    skim::attention_args none;
    none.q = skim::tensor_view<const float, 3>(text_.q.data(), {0, text_.Hk * text_.G, text_.D});
    return cache.args(none, nullptr);
  }

  skim::eviction_args now() const { return cache.args(attended, nullptr); }

  const bounded_text& text_;
  cache_storage storage_;
  lists_memory kept_;
  std::unique_ptr<aligned_memory> state_;
  skim::serial_executor serial_;
};

}  // namespace skim_test
