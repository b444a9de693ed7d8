// SPDX-License-Identifier: Apache-2.0
/// \file One eviction to test: a cache whose chunk has been attended, and everything that an eviction may write.
#pragma once

#include "attention_case.hpp"

#include <skim/skim.hpp>

#include <gtest/gtest.h>

namespace skim_test {

struct eviction_case {
  attention_case call;
  skim::compaction how = skim::compaction::refill;
  bool share_heads = false;
  bool budgets = false;  // by head, below the policy's
};

inline std::ostream& operator<<(std::ostream& to, const eviction_case& c) {
  const char* const hows[] = {"refill", "stable", "pages"};
  to << c.call << ", compaction " << hows[static_cast<int>(c.how)];
  if (c.share_heads) to << ", shared by heads";
  if (c.budgets) to << ", budgets by head";
  return to;
}

/// The bytes that a cache consists of, with its metadata; norms as bits, for NaN.
struct cache_snapshot {
  std::vector<unsigned char> k, v;
  std::vector<std::int32_t> positions, table;
  std::vector<std::uint32_t> norms;

  cache_snapshot(const cache_storage& cache, const skim::kv_view& kv) : k(cache.k_bytes()), v(cache.v_bytes()) {
    const std::int64_t rows = kv.heads * kv.capacity;
    if (kv.positions) positions.assign(kv.positions, kv.positions + (kv.positions_stride ? rows : kv.capacity));
    if (kv.block_table) table.assign(kv.block_table, kv.block_table + kv.capacity / kv.page_size);
    if (!kv.inverse_norms) return;
    norms.resize(static_cast<std::size_t>(rows));
    std::memcpy(norms.data(), kv.inverse_norms, norms.size() * sizeof(float));
  }
};

inline bool operator==(const cache_snapshot& a, const cache_snapshot& b) {
  return a.k == b.k && a.v == b.v && a.positions == b.positions && a.table == b.table && a.norms == b.norms;
}

/// The memory of one eviction. The attention that it looks back on has run, over the case's lists.
class eviction_inputs {
 public:
  explicit eviction_inputs(const eviction_case& c, unsigned seed = 1) : case_(c), call_(with_lse(c.call), seed) {
    const skim::attention_args args = call_.args();
    const skim::cpu::attention<> op;
    aligned_memory workspace(op.workspace_bytes(args, 1));
    const skim::serial_executor executor;
    const skim::report report = call_.lists() ? op.attend(args, *call_.lists(), workspace.get(), executor)
                                              : op.run(args, {}, workspace.get(), executor);
    EXPECT_TRUE(report.ok());
  }

  skim::eviction_args args() {
    skim::eviction_args args;
    args.attended = call_.args();
    args.read = call_.lists();
    args.how = case_.how;
    args.share_heads = case_.share_heads;
    if (!budgets_.empty()) args.budgets = budgets_.data();
    if (case_.how == skim::compaction::pages) {  // the storage's own table is not const
      args.block_table = const_cast<std::int32_t*>(args.attended.kv.block_table);
    }
    return args;
  }

  /// Budgets of the heads: `keep.count` and less, with room for what is protected.
  void set_budgets(const skim::retention& keep) {
    for (std::int64_t h = 0; h < case_.call.Hk; ++h) {
      const std::int64_t least = std::max<std::int64_t>(keep.sinks + keep.recent, 1);
      budgets_.push_back(static_cast<std::int32_t>(std::max(least, keep.count - 3 * h - 1)));
    }
  }

  attention_inputs& call() { return call_; }
  cache_snapshot snapshot() { return {call_.cache(0), call_.view(0)}; }

 private:
  static attention_case with_lse(attention_case c) {
    c.lse = true;
    return c;
  }

  eviction_case case_;
  attention_inputs call_;
  std::vector<std::int32_t> budgets_;
};

/// Index lists with room for `capacity` slots a row, and one entry behind the last.
struct lists_memory {
  std::vector<std::int32_t> indices, counts;
  skim::index_lists lists;

  static constexpr std::int32_t untouched = -7;
  lists_memory(std::int64_t rows, std::int64_t capacity)
      : indices(static_cast<std::size_t>(rows * capacity + 1), untouched),
        counts(static_cast<std::size_t>(rows + 1), untouched) {
    lists = {indices.data(), counts.data(), rows, capacity};
  }
  std::vector<std::int64_t> row(std::int64_t r) const {
    return {lists.row(r), lists.row(r) + counts[static_cast<std::size_t>(r)]};
  }
  bool guards_intact() const { return indices.back() == untouched && counts.back() == untouched; }
};

/// Scores [heads, n] with columns behind them that nothing may write; NaN at first.
struct scores_memory {
  std::int64_t heads, tokens, stride;
  std::vector<float> values;

  scores_memory(std::int64_t rows, std::int64_t n)
      : heads(rows),
        tokens(n),
        stride(n + 3),
        values(static_cast<std::size_t>(rows * stride), std::numeric_limits<float>::quiet_NaN()) {}
  skim::tensor_view<float, 2> view() { return {values.data(), {heads, tokens}, {stride, 1}}; }
  std::vector<double> row(std::int64_t head, std::int64_t length) const {
    return {values.begin() + head * stride, values.begin() + head * stride + length};
  }
  bool untouched_behind(std::int64_t head, std::int64_t length) const {
    const auto behind = values.begin() + head * stride + length;
    return std::all_of(behind, values.begin() + (head + 1) * stride, [](float x) { return std::isnan(x); });
  }
};

/// One layer's eviction and its memory, step by step on the calling thread.
template <class Policy>
struct eviction_run {
  skim::cpu::eviction<Policy> op;
  skim::eviction_args args;
  aligned_memory state, workspace;

  eviction_run(const Policy& policy, const skim::eviction_args& arguments)
      : op{policy}, args(arguments), state(op.state_bytes(args)), workspace(op.workspace_bytes(args, 1)) {
    EXPECT_TRUE(op.reset(args, state.get(), serial).ok());
  }

  void observe() { EXPECT_TRUE(op.observe(args, state.get(), workspace.get(), serial).ok()); }
  void score(scores_memory& scores) {
    EXPECT_TRUE(op.score(args, scores.view(), state.get(), workspace.get(), serial).ok());
  }
  void keep(skim::tensor_view<const float, 2> scores, lists_memory& kept) {
    EXPECT_TRUE(op.keep(args, scores, kept.lists, workspace.get(), serial).ok());
  }
  void compact(lists_memory& kept) {
    EXPECT_TRUE(op.compact(args, kept.lists, state.get(), workspace.get(), serial).ok());
  }
  skim::report run(lists_memory& kept) { return op.run(args, kept.lists, state.get(), workspace.get(), serial); }

  std::vector<unsigned char> state_bytes() {
    const auto* const first = static_cast<const unsigned char*>(state.data());
    return {first, first + op.state_bytes(args)};
  }
  void set_state(const std::vector<unsigned char>& saved) {
    if (!saved.empty()) std::memcpy(state.data(), saved.data(), saved.size());
  }
  bool guards_intact() const { return state.guards_intact() && workspace.guards_intact(); }

 private:
  skim::serial_executor serial;
};

}  // namespace skim_test
