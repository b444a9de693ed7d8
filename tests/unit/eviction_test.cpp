// SPDX-License-Identifier: Apache-2.0
// Eviction on the CPU against the reference: observe, score, choose, compact, and all of them in one run.
#include "support/attention_sample.hpp"
#include "support/expect_eviction.hpp"

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
using skim::compaction;
using skim::retention;
namespace anchor = skim::anchor;

struct policy_case {
  int policy = 0;
  retention keep;
  std::int64_t window = 32, pool = 5;
  eviction_case eviction;
};

constexpr int policies = 14;
constexpr int pairwise_policy = 6, joint_policy = 9;

skim::snapkv snapkv_of(const policy_case& c) {
  return {c.keep, std::min(c.window, c.keep.count - c.keep.sinks), c.pool};
}

void expect_policy(const policy_case& c) {
  using skim::caote;
  using skim::fast_caote;
  using skim::keydiff;
  const eviction_case& e = c.eviction;
  switch (c.policy) {
    case 0:
      return expect_eviction(skim::h2o{c.keep}, e);
    case 1:
      return expect_eviction(skim::tova{c.keep}, e);
    case 2:
      return expect_eviction(snapkv_of(c), e);
    case 3:
      return expect_eviction(keydiff<>{c.keep}, e);
    case 4:
      return expect_eviction(keydiff<anchor::mean>{c.keep}, e);
    case 5:
      return expect_eviction(keydiff<anchor::median>{c.keep}, e);
    case pairwise_policy:
      return expect_eviction(keydiff<anchor::pairwise>{c.keep}, e);
    case 7:
      return expect_eviction(caote{skim::h2o{c.keep}}, e);
    case 8:
      return expect_eviction(caote{keydiff<>{c.keep}}, e);
    case joint_policy:
      return expect_eviction(caote{skim::tova{c.keep}, true}, e);
    case 10:
      return expect_eviction(caote{snapkv_of(c)}, e);
    case 11:
      return expect_eviction(fast_caote{keydiff<>{c.keep}}, e);
    case 12:
      return expect_eviction(fast_caote{skim::tova{c.keep}}, e);
    default:
      return expect_eviction(skim::sink_window{{c.keep.count, 0, c.keep.sinks, 0}}, e);
  }
}

std::ostream& operator<<(std::ostream& to, const policy_case& c) {
  return to << "policy " << c.policy << ", keep " << c.keep.count << " " << c.keep.sinks << " " << c.keep.recent
            << ", window " << c.window << ", pool " << c.pool << "; " << c.eviction;
}

const std::vector<retention> sampled_retentions{
    retention::budget(1),         retention::budget(40),         retention::budget(40, 4),  retention::budget(40, 0, 9),
    retention::budget(20, 4, 15), retention::budget(300, 4, 64), retention::budget(130, 1), retention::budget(5000)};

/// The reference needs a second for some 10^9 products: calls that would take long have fewer tokens and heads.
void bound_size(policy_case& c) {
  attention_case& call = c.eviction.call;
  const auto products = [&call] { return call.Hq() * call.Tq * (call.Tk + call.Tq) * call.D; };
  if (products() > 3000000) call.Hk = std::min<std::int64_t>(call.Hk, 2);
  if (products() > 3000000) call.Tk = std::min<std::int64_t>(call.Tk, 150);
  if (products() > 3000000) call.Tq = std::min<std::int64_t>(call.Tq, 17);
  const bool squared = c.policy == pairwise_policy || c.policy == joint_policy;
  if (squared) call.Tk = std::min<std::int64_t>(call.Tk, call.D > 128 ? 50 : 150);
}

/// All budgets but the largest evict something, where something may go.
void bound_budget(policy_case& c) {
  const std::int64_t n = c.eviction.call.Tk + c.eviction.call.Tq, least = c.keep.sinks + c.keep.recent;
  if (c.keep.count >= n && c.keep.count < 5000) c.keep.count = std::max({n / 2, least, std::int64_t{1}});
}

/// Pages: whole budgets of them, with room for those that must stay.
void fit_pages(policy_case& c) {
  const std::int64_t size = c.eviction.call.page_size, window = c.policy == 2 || c.policy == 10 ? c.window : 0;
  const std::int64_t recent = std::max(c.keep.recent, window);
  const std::int64_t least = (c.keep.sinks + size - 1) / size + (recent + size - 1) / size + 1;
  c.keep.count = std::max((c.keep.count + size - 1) / size, least) * size;
}

std::vector<policy_case> eviction_sample() {
  const std::vector<head_dims> dims = sampled_dims();
  const std::vector<std::int64_t> Tq{1, 2, 7, 33, 64, 130}, Tk{0, 17, 45, 113, 700}, windows{1, 3, 32}, pools{1, 5, 9};
  const auto count = [](const auto& values) { return static_cast<int>(values.size()); };
  const int retentions = count(sampled_retentions), groups = count(sampled_groups);
  const int forms = count(sampled_forms), masks = count(sampled_masks), D = count(dims), rows = count(Tq),
            past = count(Tk);
  const pairwise_sample sample({policies, retentions, D, rows, past, groups, 3, 3, 3, 3, 3, 2, 3, forms, masks,
                                2,        2,          2, 2,    2,    3,      4, 3, 3, 2, 3, 3, 3, 2});
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
    call.kv_type = element_types[take()];
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
    c.eviction.how = static_cast<compaction>(take());
    c.eviction.share_heads = take() == 0;
    c.eviction.budgets = take();
    c.window = windows[take()];
    c.pool = pools[take()];
    const std::size_t values = take();  // of K's type, inside keys, of another type
    call.values_in_keys = values == 1 && call.Dv <= call.D;
    if (values == 2 && call.kv_order != memory_order::interleaved) {
      call.v_type = element_types[(static_cast<std::size_t>(call.kv_type) + 1) % 3];
    }
    call.block_rows = take() ? 20 : 0;
    // What excludes what.
    if (c.eviction.how == compaction::pages && call.layout != skim::kv_layout::paged)
      c.eviction.how = compaction::stable;
    if (c.policy == joint_policy) c.eviction.share_heads = false;
    if (c.eviction.how == compaction::pages) c.eviction.share_heads = c.policy != joint_policy;
    if (!c.eviction.share_heads && c.eviction.how == compaction::pages) c.eviction.how = compaction::refill;
    if (call.positions == positions_kind::shared_holes && !c.eviction.share_heads)
      call.positions = positions_kind::holes;
    if (c.eviction.share_heads) call.lengths = c.eviction.budgets = false;
    bound_size(c);
    bound_budget(c);
    if (c.eviction.how == compaction::pages) fit_pages(c);
    cases.push_back(c);
  }
  return cases;
}

/// Values inside keys move once, in every way and layout; so do keys and values of two types.
TEST(EvictionStorage, MovesWhatIsStored) {
  const retention keep = retention::budget(48, 3, 9);
  for (const cache_form form : sampled_forms) {
    for (const compaction how : {compaction::refill, compaction::stable, compaction::pages}) {
      if (how == compaction::pages && (form.layout != skim::kv_layout::paged || form.page_size > 16)) continue;
      for (const skim::element type : element_types) {
        for (const skim::element v_type : element_types) {
          eviction_case c;
          c.call.kv_type = type;
          c.call.v_type = v_type;
          c.call.values_in_keys = type == v_type;
          c.call.layout = form.layout;
          c.call.page_size = form.page_size;
          c.call.Tq = 13;
          c.call.Tk = 70;
          c.call.Hk = 2;
          c.call.D = 24;
          c.call.Dv = type == v_type ? 17 : 30;
          c.call.positions = positions_kind::holes;
          c.how = how;
          c.share_heads = how == compaction::pages;
          SCOPED_TRACE(testing::Message() << c);
          expect_eviction(skim::fast_caote{skim::keydiff<>{keep}}, c);
          expect_eviction(skim::keydiff<>{keep}, c);
          if (HasFailure()) return;
        }
      }
    }
  }
}

constexpr int shards = 4;
class eviction : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, eviction, testing::Range(0, shards));

TEST_P(eviction, equals_the_reference_stage_by_stage) {
  const std::vector<policy_case> cases = eviction_sample();
  for (std::size_t i = static_cast<std::size_t>(GetParam()) * SKIM_TEST_STRIDE; i < cases.size();
       i += shards * SKIM_TEST_STRIDE) {
    SCOPED_TRACE(testing::Message() << cases[i]);
    expect_policy(cases[i]);
    if (HasFailure()) return;
  }
}

}  // namespace
