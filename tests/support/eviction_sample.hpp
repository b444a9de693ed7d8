// SPDX-License-Identifier: Apache-2.0
/// \file Evictions to test: pairs of policies, budgets, shapes, types, layouts.
#pragma once

#include "attention_sample.hpp"
#include "eviction_case.hpp"

namespace skim_test {

struct policy_case {
  int policy = 0;
  skim::retention keep;
  std::int64_t window = 32, pool = 5;
  eviction_case eviction;
};

inline constexpr int policies = 14;
inline constexpr int pairwise_policy = 6, joint_policy = 9;

inline skim::snapkv snapkv_of(const policy_case& c) {
  return {c.keep, std::min(c.window, c.keep.count - c.keep.sinks), c.pool};
}

inline std::ostream& operator<<(std::ostream& to, const policy_case& c) {
  return to << "policy " << c.policy << ", keep " << c.keep.count << " " << c.keep.sinks << " " << c.keep.recent
            << ", window " << c.window << ", pool " << c.pool << "; " << c.eviction;
}

inline const std::vector<skim::retention> sampled_retentions{
    skim::retention::budget(1),        skim::retention::budget(40),        skim::retention::budget(40, 4),
    skim::retention::budget(40, 0, 9), skim::retention::budget(20, 4, 15), skim::retention::budget(300, 4, 64),
    skim::retention::budget(130, 1),   skim::retention::budget(5000)};

/// The reference needs a second for some 10^9 products: calls that would take long have fewer tokens and heads.
inline void bound_size(policy_case& c) {
  attention_case& call = c.eviction.call;
  const auto products = [&call] { return call.Hq() * call.Tq * (call.Tk + call.Tq) * call.D; };
  if (products() > 3000000) call.Hk = std::min<std::int64_t>(call.Hk, 2);
  if (products() > 3000000) call.Tk = std::min<std::int64_t>(call.Tk, 150);
  if (products() > 3000000) call.Tq = std::min<std::int64_t>(call.Tq, 17);
  const bool squared = c.policy == pairwise_policy || c.policy == joint_policy;
  if (squared) call.Tk = std::min<std::int64_t>(call.Tk, call.D > 128 ? 50 : 150);
}

/// All budgets but the largest evict something, where something may go.
inline void bound_budget(policy_case& c) {
  const std::int64_t n = c.eviction.call.Tk + c.eviction.call.Tq, least = c.keep.sinks + c.keep.recent;
  if (c.keep.count >= n && c.keep.count < 5000) c.keep.count = std::max({n / 2, least, std::int64_t{1}});
}

/// Pages: whole budgets of them, with room for those that must stay.
inline void fit_pages(policy_case& c) {
  const std::int64_t size = c.eviction.call.page_size, window = c.policy == 2 || c.policy == 10 ? c.window : 0;
  const std::int64_t recent = std::max(c.keep.recent, window);
  const std::int64_t least = (c.keep.sinks + size - 1) / size + (recent + size - 1) / size + 1;
  c.keep.count = std::max((c.keep.count + size - 1) / size, least) * size;
}

inline std::vector<policy_case> eviction_sample(int types = types_on_cpu) {
  const std::vector<head_dims> dims = sampled_dims();
  const std::vector<std::int64_t> Tq{1, 2, 7, 33, 64, 130}, Tk{0, 17, 45, 113, 700}, windows{1, 3, 32}, pools{1, 5, 9};
  const auto count = [](const auto& values) { return static_cast<int>(values.size()); };
  const int retentions = count(sampled_retentions), groups = count(sampled_groups);
  const int forms = count(sampled_forms), masks = count(sampled_masks), D = count(dims), rows = count(Tq),
            past = count(Tk);
  const pairwise_sample sample({policies, retentions, D, rows, past, groups, 3, types, 3, 3, 3, 2, 3, forms, masks,
                                2,        2,          2, 2,    2,    3,      4, 3,     3, 2, 3, 3, 3, 2});
  std::vector<policy_case> cases;
  for (const auto& row : sample.rows()) {
    const int* next = row.data();
    const auto take = [&next] { return static_cast<std::size_t>(*next++); };
    policy_case c;
    attention_case& call = c.eviction.call;
    c.policy = static_cast<int>(take());
    c.keep = sampled_retentions[take()];
    const head_dims size = dims[take()];
    call.D = size.D;
    call.Dv = size.Dv;
    call.Tq = Tq[take()];
    call.Tk = Tk[take()];
    call.G = sampled_groups[take()];
    call.Hk = static_cast<std::int64_t>(take()) + 1;
    call.kv_type = cache_types[take()];
    call.q_type = element_types[take()];
    call.kv_order = static_cast<memory_order>(take());
    call.q_order = static_cast<memory_order>(take());
    call.padding = take() ? 3 : 0;
    call.shift = static_cast<std::int64_t>(take());
    const cache_form form = sampled_forms[take()];
    call.layout = form.layout;
    call.page_size = form.page_size;
    call.mask = sampled_masks[take()];
    call.soft_cap = take() ? 5.0f : 0.0f;
    call.scale = take() ? 0.3f : 0.0f;
    call.sinks = take();
    call.inverse_norms = take();
    call.lengths = take();
    const positions_kind kinds[] = {positions_kind::holes, positions_kind::shuffled, positions_kind::shared_holes};
    call.positions = kinds[take()];
    call.lists = static_cast<lists_kind>(take());
    c.eviction.how = static_cast<skim::compaction>(take());
    c.eviction.share_heads = take() == 0;
    c.eviction.budgets = take();
    c.window = windows[take()];
    c.pool = pools[take()];
    const std::size_t values = take();  // of K's type, inside keys, of another type
    call.values_in_keys = values == 1 && call.Dv <= call.D;
    if (values == 2 && call.kv_order != memory_order::interleaved) {
      call.v_type = cache_types[static_cast<int>(call.kv_type) % types];
    }
    fit_stored_types(call);
    call.block_rows = take() ? 20 : 0;
    // What excludes what.
    if (c.eviction.how == skim::compaction::pages && call.layout != skim::kv_layout::paged)
      c.eviction.how = skim::compaction::stable;
    if (c.policy == joint_policy) c.eviction.share_heads = false;
    if (c.eviction.how == skim::compaction::pages) c.eviction.share_heads = c.policy != joint_policy;
    if (!c.eviction.share_heads && c.eviction.how == skim::compaction::pages) c.eviction.how = skim::compaction::refill;
    if (call.positions == positions_kind::shared_holes && !c.eviction.share_heads)
      call.positions = positions_kind::holes;
    if (c.eviction.share_heads) call.lengths = c.eviction.budgets = false;
    bound_size(c);
    bound_budget(c);
    if (c.eviction.how == skim::compaction::pages) fit_pages(c);
    cases.push_back(c);
  }
  return cases;
}

}  // namespace skim_test
