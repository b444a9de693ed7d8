// SPDX-License-Identifier: Apache-2.0
// Random appends and evictions on a bounded cache against a plain vector of positions: what is stored, where, and what
// KeyDiff's sums hold. A token's key and value follow from its position and head, so the model need not hold them.
#include "support/eviction_case.hpp"
#include "support/own_evictor.hpp"

#include <skim/reference/append.hpp>
#include <skim/reference/eviction.hpp>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
namespace reference = skim::reference;
using skim::compaction;
using skim::kv_layout;
using skim::retention;

/// One cache to work on; `budgets`: by head, with lengths that differ; `share`: one list for all heads.
struct cache_kind {
  skim::element type;
  kv_layout layout;
  memory_order order;
  compaction how;
  bool share, budgets;
};

constexpr skim::element f32 = skim::element::f32, f16 = skim::element::f16, bf16 = skim::element::bf16;
const std::vector<cache_kind> kinds{
    {f32, kv_layout::contiguous, memory_order::token_major, compaction::refill, false, false},
    {f16, kv_layout::contiguous, memory_order::head_major, compaction::refill, false, true},
    {bf16, kv_layout::paged, memory_order::token_major, compaction::refill, false, false},
    {f32, kv_layout::ring, memory_order::interleaved, compaction::refill, true, false},
    {bf16, kv_layout::contiguous, memory_order::interleaved, compaction::stable, false, true},
    {f32, kv_layout::paged, memory_order::head_major, compaction::stable, false, false},
    {f16, kv_layout::ring, memory_order::token_major, compaction::stable, false, false},
    {bf16, kv_layout::ring, memory_order::head_major, compaction::stable, true, false},
    {f32, kv_layout::paged, memory_order::token_major, compaction::pages, true, false},
    {bf16, kv_layout::paged, memory_order::interleaved, compaction::pages, true, false},
};

std::ostream& operator<<(std::ostream& to, const cache_kind& kind) {
  return to << to_string(kind.type) << ", layout " << static_cast<int>(kind.layout) << ", order "
            << static_cast<int>(kind.order) << ", compaction " << static_cast<int>(kind.how) << ", share " << kind.share
            << ", budgets " << kind.budgets;
}

constexpr std::int64_t Hk = 2, D = 3, Dv = 2, page = 4, budget = 16, capacity = 28;
constexpr std::int32_t head_budgets[] = {16, 9};
const retention keep = retention::budget(budget, 2, 3);

/// The row of a token: multiples of 1/2 up to 64, exact in every type; no element is 0.
void token_row(std::int64_t position, std::int64_t head, std::int64_t which, std::int64_t dim, float* row) {
  std::uint64_t bits = (static_cast<std::uint64_t>(position) * 2 + static_cast<std::uint64_t>(head)) * 2 +
                       static_cast<std::uint64_t>(which) + 1;
  bits *= 0x9e3779b97f4a7c15u;
  bits ^= bits >> 29;
  for (std::int64_t d = 0; d < dim; ++d) row[d] = static_cast<float>((bits >> (8 * d) & 127) + 1) - 64.5f;
}

/// The bounded cache, its model, and the memory of both.
template <class Policy>
class modelled_cache {
 public:
  modelled_cache(const Policy& policy, const cache_kind& kind, unsigned seed)
      : kind_(kind), random_(seed), storage_(shape(kind)), kept_(kind.share ? 1 : Hk, budget), model_(Hk) {
    cache_.op.evictor = policy;
    cache_.kv() = storage_.view(0);
    cache_.settings.how = kind.how;
    cache_.settings.share_heads = kind.share;
    if (kind.budgets) cache_.settings.budgets = head_budgets;
    if (kind.budgets) cache_.lengths = lengths_;
    if (kind.how == compaction::pages) {  // the storage's own table is not const
      cache_.settings.block_table = const_cast<std::int32_t*>(cache_.kv().block_table);
    }
    cache_.kept = kept_.lists;
    skim::kv_view full = cache_.kv();
    full.tokens = capacity;
    skim::eviction_args largest = cache_.settings;
    largest.attended.kv = full;
    state_ = std::make_unique<aligned_memory>(cache_.op.state_bytes(largest));
    fresh_ = std::make_unique<aligned_memory>(cache_.op.state_bytes(largest));
    workspace_ = std::make_unique<aligned_memory>(cache_.op.workspace_bytes(largest, 1));
    cache_.state = state_->get();
    EXPECT_TRUE(cache_.op.reset(cache_.settings, cache_.state, serial_).ok());
    keys_.resize(static_cast<std::size_t>(capacity * Hk * D));
    values_.resize(static_cast<std::size_t>(capacity * Hk * Dv));
  }

  /// One random operation.
  void step() {
    const std::int64_t room = capacity - cache_.kv().tokens;
    const bool appends = room > 0 && random_() % 3 != 0;
    if (!appends) return evict(0);
    const std::int64_t Tq = 1 + static_cast<std::int64_t>(random_() % static_cast<unsigned>(room));
    append(Tq);
    if (random_() % 2 == 0) return evict(Tq);
    skim::eviction_args args = now(Tq);  // observed only, as between the steps at which decoding evicts
    EXPECT_TRUE(cache_.op.observe(args, cache_.state, workspace_->get(), serial_).ok());
  }

  /// Everything is as the model says.
  void expect_consistent() {
    const skim::kv_view& kv = cache_.kv();
    std::size_t longest = 0;
    for (std::int64_t h = 0; h < Hk; ++h) {
      const std::vector<std::int64_t>& tokens = model_[static_cast<std::size_t>(h)];
      longest = std::max(longest, tokens.size());
      ASSERT_EQ(kv.length(h), static_cast<std::int64_t>(tokens.size())) << "head " << h;
      for (std::size_t i = 0; i < tokens.size(); ++i) expect_token(h, static_cast<std::int64_t>(i), tokens[i]);
    }
    ASSERT_EQ(kv.tokens, static_cast<std::int64_t>(longest));
    ASSERT_EQ(cache_.position, position_);
    expect_state();
    ASSERT_TRUE(state_->guards_intact() && workspace_->guards_intact() && kept_.guards_intact());
  }

  std::int64_t evicted() const { return evicted_; }

 private:
  static cache_shape shape(const cache_kind& kind) {
    cache_shape shape{Hk, D, Dv, capacity};
    shape.type = kind.type;
    shape.layout = kind.layout;
    shape.order = kind.order;
    shape.page_size = kind.layout == kv_layout::paged ? page : 1;
    shape.ring_start = kind.layout == kv_layout::ring ? 19 : 0;
    shape.padding = 1;
    shape.shift = 1;
    shape.positions = shape.inverse_norms = true;
    return shape;
  }

  void append(std::int64_t Tq) {
    for (std::int64_t t = 0; t < Tq; ++t) {
      for (std::int64_t h = 0; h < Hk; ++h) {
        token_row(position_ + t, h, 0, D, keys_.data() + (t * Hk + h) * D);
        token_row(position_ + t, h, 1, Dv, values_.data() + (t * Hk + h) * Dv);
        model_[static_cast<std::size_t>(h)].push_back(position_ + t);
      }
    }
    const skim::tensor_view<const float, 3> k(keys_.data(), {Tq, Hk, D}), v(values_.data(), {Tq, Hk, Dv});
    ASSERT_TRUE(cache_.append(k, v, serial_).ok());
    position_ += Tq;
  }

  skim::eviction_args now(std::int64_t Tq) {
    skim::eviction_args args = cache_.settings;
    args.attended.q.extents[0] = Tq;
    return args;
  }

  void evict(std::int64_t Tq) {
    std::vector<std::vector<std::int64_t>> expected;
    for (std::int64_t r = 0; r < kept_.lists.rows; ++r) expected.push_back(expected_list(r));
    skim::attention_args attended;
    attended.q.extents[0] = Tq;
    const skim::report report = cache_.evict(attended, nullptr, workspace_->get(), serial_);
    ASSERT_TRUE(report.ok());
    for (std::int64_t h = 0; h < Hk; ++h) {
      const std::int64_t row = kind_.share ? 0 : h;
      const std::vector<std::int64_t> kept = kept_.row(row);
      if (!expected[static_cast<std::size_t>(row)].empty()) {
        ASSERT_EQ(kept, expected[static_cast<std::size_t>(row)]);
      }
      std::vector<std::int64_t>& tokens = model_[static_cast<std::size_t>(h)];
      const bool over = static_cast<std::int64_t>(tokens.size()) > budget_of(h);
      ASSERT_LE(static_cast<std::int64_t>(kept.size()), budget_of(h));
      if (kind_.how != compaction::pages) {
        ASSERT_EQ(kept.size(), std::min(tokens.size(), static_cast<std::size_t>(budget_of(h))));
      }
      ASSERT_TRUE(!over || report.taken == skim::path::sparse);
      std::vector<std::int64_t> next;
      for (const std::int64_t slot : reference::slots_after(kind_.how, kept)) {
        next.push_back(tokens[static_cast<std::size_t>(slot)]);
      }
      evicted_ += static_cast<std::int64_t>(tokens.size() - next.size());
      tokens = next;
    }
  }

  std::int64_t budget_of(std::int64_t head) const { return kind_.budgets ? head_budgets[head] : budget; }

  /// The list that a policy of known scores must choose; empty for the others.
  std::vector<std::int64_t> expected_list(std::int64_t row) {
    if (!std::is_same_v<Policy, hashed_tokens<false>>) return {};
    const std::vector<std::int64_t>& tokens = model_[static_cast<std::size_t>(row)];
    std::vector<double> scores;
    for (const std::int64_t position : tokens) scores.push_back(static_cast<double>(hashed_score(position)));
    const skim::kv_view& kv = cache_.kv();
    if (kind_.how == compaction::pages) return reference::keep_pages(kv, keep, scores, reference::ties::earlier);
    return reference::keep_tokens(kv, row, kept_by(keep, now(0), row), scores, reference::ties::earlier);
  }

  void expect_token(std::int64_t head, std::int64_t slot, std::int64_t position) {
    const skim::kv_view& kv = cache_.kv();
    float key[D], value[Dv];
    token_row(position, head, 0, D, key);
    token_row(position, head, 1, Dv, value);
    double squares = 0;
    for (std::int64_t d = 0; d < D; ++d) {
      ASSERT_EQ(skim::load_element(kv.k.data, kv.k.type, kv.row_offset(kv.k, head, slot) + d), key[d])
          << "key of position " << position << ", head " << head << ", slot " << slot;
      squares += static_cast<double>(key[d]) * static_cast<double>(key[d]);
    }
    for (std::int64_t d = 0; d < Dv; ++d) {
      ASSERT_EQ(skim::load_element(kv.v.data, kv.v.type, kv.row_offset(kv.v, head, slot) + d), value[d])
          << "value of position " << position << ", head " << head << ", slot " << slot;
    }
    ASSERT_EQ(kv.position(head, slot), position) << "head " << head << ", slot " << slot;
    // Squares and their sum are exact here: a root and a division round.
    const float norm = kv.inverse_norms[head * kv.inverse_norms_stride + kv.metadata_row(slot)];
    ASSERT_NEAR(static_cast<double>(norm) * std::sqrt(squares), 1, 2.01 * 0x1p-24) << "position " << position;
  }

  /// KeyDiff's sums are integers: after any number of operations exactly those of a cache that was filled just now.
  void expect_state() {
    if constexpr (std::is_same_v<Policy, skim::keydiff<>>) {
      const skim::kv_view& kv = cache_.kv();
      std::int64_t shortest = kv.tokens;
      for (std::int64_t h = 0; h < Hk; ++h) shortest = std::min(shortest, kv.length(h));
      if (shortest != kv.tokens) return expect_sums();  // no chunk is the whole cache of both heads
      const skim::eviction_args args = now(kv.tokens);
      ASSERT_TRUE(cache_.op.reset(args, fresh_->get(), serial_).ok());
      ASSERT_TRUE(cache_.op.observe(args, fresh_->get(), workspace_->get(), serial_).ok());
      ASSERT_EQ(std::memcmp(state_->data(), fresh_->data(), Hk * D * sizeof(std::int64_t)), 0) << "the sums drifted";
      expect_sums();
    }
  }

  /// And near those of the exact unit keys: half a unit of rounding, and u (4 + D / 8) of each component.
  void expect_sums() {
    const std::int64_t* const sums = skim::cpu::detail::unit_key_sums::at(cache_.kv(), cache_.state).sums;
    for (std::int64_t h = 0; h < Hk; ++h) {
      double exact[D] = {}, bound = 0;
      for (const std::int64_t position : model_[static_cast<std::size_t>(h)]) {
        float key[D];
        token_row(position, h, 0, D, key);
        double squares = 0;
        for (const float x : key) squares += static_cast<double>(x) * static_cast<double>(x);
        for (std::int64_t d = 0; d < D; ++d) exact[d] += static_cast<double>(key[d]) / std::sqrt(squares) * 0x1p30;
        bound += 0.5 + 0x1p30 * 0x1p-24 * 5;
      }
      for (std::int64_t d = 0; d < D; ++d) {
        ASSERT_NEAR(static_cast<double>(sums[h * D + d]), exact[d], bound) << "head " << h << ", dimension " << d;
      }
    }
  }

  cache_kind kind_;
  std::mt19937 random_;
  cache_storage storage_;
  lists_memory kept_;
  std::vector<std::vector<std::int64_t>> model_;  // [Hk]: positions by slot
  skim::cpu::bounded_cache<Policy> cache_;
  std::unique_ptr<aligned_memory> state_, fresh_, workspace_;
  std::vector<float> keys_, values_;
  std::int32_t lengths_[Hk] = {};
  std::int64_t position_ = 0, evicted_ = 0;
  skim::serial_executor serial_;
};

/// A million operations in all; sanitizers take ten thousand.
constexpr std::int64_t operations = SKIM_TEST_STRIDE > 1 ? 10000 : 1000000;
constexpr std::int64_t checked_every = 32;  // comparing everything takes longer than an operation

class bounded_caches : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(kinds, bounded_caches, testing::Range(0, static_cast<int>(kinds.size())));

template <class Policy>
void expect_model(const Policy& policy, const cache_kind& kind, std::int64_t steps) {
  modelled_cache<Policy> cache(policy, kind, 7);
  for (std::int64_t i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
    cache.step();
    if (i % checked_every == 0 || i < 200 || i + 1 == steps) cache.expect_consistent();
  }
  EXPECT_GT(cache.evicted(), steps) << "a cache that evicts nothing proves nothing";
}

TEST_P(bounded_caches, follow_a_plain_vector) {
  const cache_kind& kind = kinds[static_cast<std::size_t>(GetParam())];
  SCOPED_TRACE(testing::Message() << kind);
  const std::int64_t steps = operations / static_cast<std::int64_t>(2 * kinds.size());
  expect_model(skim::keydiff<>{keep}, kind, steps);
  expect_model(hashed_tokens<false>{keep}, kind, steps);
}

}  // namespace
