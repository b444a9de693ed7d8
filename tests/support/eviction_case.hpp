// SPDX-License-Identifier: Apache-2.0
/// \file One eviction to test: a cache whose chunk has been attended, and everything that an eviction may write.
#pragma once

#include "attention_case.hpp"

#include <skim/reference/eviction.hpp>
#include <skim/skim.hpp>

#include <gtest/gtest.h>

#include <cstring>

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

/// Numbers as bits, for NaN.
inline std::vector<std::uint32_t> bits_of(const float* values, std::size_t count) {
  std::vector<std::uint32_t> bits(count);
  if (count > 0) std::memcpy(bits.data(), values, count * sizeof(float));
  return bits;
}

/// The bytes that a cache consists of, with its scales and metadata.
struct cache_snapshot {
  std::vector<unsigned char> k, v;
  std::vector<std::int32_t> positions, table;
  std::vector<std::uint32_t> norms, k_scales, v_scales;

  cache_snapshot(const cache_storage& cache, const skim::kv_view& kv)
      : k(cache.k_bytes()),
        v(cache.v_bytes()),
        k_scales(bits_of(cache.k_scales().data(), cache.k_scales().size())),
        v_scales(bits_of(cache.v_scales().data(), cache.v_scales().size())) {
    const std::int64_t rows = kv.heads * kv.capacity;
    if (kv.positions) positions.assign(kv.positions, kv.positions + (kv.positions_stride ? rows : kv.capacity));
    if (kv.block_table) table.assign(kv.block_table, kv.block_table + kv.capacity / kv.page_size);
    if (kv.inverse_norms) norms = bits_of(kv.inverse_norms, static_cast<std::size_t>(rows));
  }
};

inline bool operator==(const cache_snapshot& a, const cache_snapshot& b) {
  return a.k == b.k && a.v == b.v && a.positions == b.positions && a.table == b.table && a.norms == b.norms &&
         a.k_scales == b.k_scales && a.v_scales == b.v_scales;
}

/// The memory of one eviction. The attention that it looks back on has run, over the case's lists.
class eviction_inputs {
 public:
  explicit eviction_inputs(const eviction_case& c, unsigned seed = 1) : case_(c), call_(with_lse(c.call), seed) {
    attend(call_.args(), call_.lists());
  }

  /// Attends, so that the log-sum-exp is that of the cache as it is. `read` null: all keys.
  static void attend(const skim::attention_args& args, const skim::index_lists* read) {
    const skim::serial_executor executor;
    if (read) {
      const skim::cpu::attend<> op;
      aligned_memory workspace(op.workspace_bytes(args, read->block_rows, 1));
      EXPECT_TRUE(op.run(args, *read, workspace.get(), executor).ok());
    } else {
      const skim::cpu::attention<> op;
      aligned_memory workspace(op.workspace_bytes(args, 1));
      EXPECT_TRUE(op.run(args, {}, workspace.get(), executor).ok());
    }
  }

  skim::eviction_args args() {
    skim::eviction_args args;
    args.kv = call_.writable(0);
    args.new_tokens = case_.call.Tq;
    args.attended = call_.args();
    args.read = call_.lists();
    args.how = case_.how;
    args.share_heads = case_.share_heads;
    if (!budgets_.empty()) args.budgets = budgets_.data();
    if (case_.how == skim::compaction::pages) {  // the storage's own table is not const
      args.block_table = const_cast<std::int32_t*>(args.kv.block_table);
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
    lists.indices = indices.data();
    lists.counts = counts.data();
    lists.rows = rows;
    lists.capacity = capacity;
  }
  std::vector<std::int64_t> row(std::int64_t r) const {
    return {lists.row(r), lists.row(r) + counts[static_cast<std::size_t>(r)]};
  }
  bool guards_intact() const { return indices.back() == untouched && counts.back() == untouched; }
};

/// The cache as it should be after compaction, in words that know nothing of how: what moved has moved, with its scales and
/// metadata, and nothing else was touched.
inline cache_snapshot compacted(const cache_snapshot& before, const cache_storage& storage,
                                const skim::eviction_args& args, const lists_memory& kept) {
  const skim::kv_cache& kv = args.kv;
  const bool together = kv.v.data != kv.k.data && storage.v_bytes().empty();
  cache_snapshot after = before;
  const auto move = [](auto& now, const auto& old, std::ptrdiff_t target, std::ptrdiff_t source, std::int64_t count) {
    std::copy_n(old.begin() + source, count, now.begin() + target);
  };
  const auto byte_of = [&](const skim::kv_cache_tensor& tensor, const std::vector<unsigned char>& bytes, std::int64_t h,
                           std::int64_t slot) {
    return static_cast<const unsigned char*>(kv.row_address(tensor, h, slot)) - bytes.data();
  };
  for (std::int64_t h = 0; h < kv.heads; ++h) {
    const auto sources = skim::reference::slots_after(args.how, kept.row(args.share_heads ? 0 : h));
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const std::int64_t slot = static_cast<std::int64_t>(i), source = sources[i];
      const std::int64_t new_row = kv.metadata_row(slot), old_row = kv.metadata_row(source);
      const std::int64_t positions = h * kv.positions_stride, norms = h * kv.inverse_norms_stride;
      move(after.positions, before.positions, positions + new_row, positions + old_row, 1);
      if (kv.inverse_norms) move(after.norms, before.norms, norms + new_row, norms + old_row, 1);
      if (args.how == skim::compaction::pages) continue;
      const std::vector<unsigned char>&k = storage.k_bytes(), &v = together ? k : storage.v_bytes();
      move(after.k, before.k, byte_of(kv.k, k, h, slot), byte_of(kv.k, k, h, source),
           skim::bytes_of(kv.k.type, kv.k.dim));
      if (kv.k.scales) {
        const float* const first = storage.k_scales().data();
        move(after.k_scales, before.k_scales, &kv.scale(kv.k, h, slot) - first, &kv.scale(kv.k, h, source) - first, 1);
      }
      if (kv.values_in_keys) continue;
      move(together ? after.k : after.v, together ? before.k : before.v, byte_of(kv.v, v, h, slot),
           byte_of(kv.v, v, h, source), skim::bytes_of(kv.v.type, kv.v.dim));
      if (kv.v.scales) {
        const float* const first = storage.v_scales().data();
        move(after.v_scales, before.v_scales, &kv.scale(kv.v, h, slot) - first, &kv.scale(kv.v, h, source) - first, 1);
      }
    }
  }
  if (args.how != skim::compaction::pages) return after;
  std::vector<bool> stays(before.table.size(), false);
  for (const std::int64_t slot : kept.row(0)) stays[static_cast<std::size_t>(slot / kv.page_size)] = true;
  std::size_t next = 0;
  for (const bool wanted : {true, false}) {
    for (std::size_t page = 0; page < stays.size(); ++page) {
      if (stays[page] == wanted) after.table[next++] = before.table[page];
    }
  }
  return after;
}

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

#if !defined(SKIM_TEST_EVICTION)  // a back-end's operation, which waits for its steps
#define SKIM_TEST_EVICTION skim::cpu::eviction
#endif

/// One layer's eviction and its memory, step by step on the calling thread.
template <class Policy>
struct eviction_run {
  SKIM_TEST_EVICTION<Policy> op;
  skim::eviction_args args;
  aligned_memory state, workspace;
  std::vector<std::int32_t> lengths;
  std::vector<std::vector<int>> observed;  ///< [Hk][slot]: how often a token was observed

  eviction_run(const Policy& policy, const skim::eviction_args& arguments)
      : op{policy}, args(arguments), state(op.state_bytes(args)), workspace(op.workspace_bytes(args, 1)) {
    for (std::int64_t h = 0; h < args.kv.heads; ++h) observed.emplace_back(static_cast<std::size_t>(args.kv.tokens), 0);
    EXPECT_TRUE(op.reset(args, state.get(), serial).ok());
  }

  void observe() {
    EXPECT_TRUE(op.observe(args, state.get(), workspace.get(), serial).ok());
    for (std::int64_t h = 0; h < args.kv.heads; ++h) {
      const std::int64_t n = args.kv.length(h);
      for (std::int64_t slot = n - args.new_tokens; slot < n; ++slot) {
        ++observed[static_cast<std::size_t>(h)][static_cast<std::size_t>(slot)];
      }
    }
  }
  void score(scores_memory& scores) {
    EXPECT_TRUE(op.score(args, scores.view(), state.get(), workspace.get(), serial).ok());
  }
  void choose(skim::tensor_view<const float, 2> scores, lists_memory& kept) {
    EXPECT_TRUE(op.choose(args, scores, kept.lists, workspace.get(), serial).ok());
  }
  void compact(lists_memory& kept) {
    EXPECT_TRUE(op.compact(args, kept.lists, state.get(), workspace.get(), serial).ok());
  }
  /// From now on the cache is what `kept` left of it, without a chunk of its own.
  void shrink(const lists_memory& kept) {
    lengths.clear();
    for (std::int64_t h = 0; h < args.kv.heads; ++h) {
      lengths.push_back(kept.counts[static_cast<std::size_t>(args.share_heads ? 0 : h)]);
    }
    args.kv.lengths = lengths.data();
    args.kv.tokens = *std::max_element(lengths.begin(), lengths.end());
    args.new_tokens = args.attended.q.extents[0] = args.attended.lse.extents[0] = 0;
    args.read = nullptr;
  }
  skim::report run(lists_memory& kept) { return op.run(args, kept.lists, state.get(), workspace.get(), serial); }

  /// The scores of one head.
  std::vector<double> scores_of(std::int64_t head) {
    scores_memory scores(args.kv.heads, args.kv.tokens);
    score(scores);
    return scores.row(head, args.kv.length(head));
  }

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
