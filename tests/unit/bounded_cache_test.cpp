// SPDX-License-Identifier: Apache-2.0
// Random appends and evictions on a bounded cache against a plain vector of positions: what is stored, where, and what
// KeyDiff's sums hold. A token's key and value follow from its position and head, so the model need not hold them.
#include "support/eviction_case.hpp"
#include "support/own_evictor.hpp"

#include <skim/reference/append.hpp>
#include <skim/reference/eviction.hpp>
#include <skim/reference/keydiff.hpp>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
namespace reference = skim::reference;
using skim::compaction;
using skim::kv_layout;
using skim::retention;

/// One cache to work on; `budgets`: by head, with lengths that differ; `share`: one list for all heads; `inside`: values
/// inside keys.
struct cache_kind {
  skim::element type, v_type;
  kv_layout layout;
  memory_order order;
  compaction how;
  bool share, budgets, inside;
};

constexpr skim::element f32 = skim::element::f32, f16 = skim::element::f16, bf16 = skim::element::bf16;
const std::vector<cache_kind> kinds{
    {f32, f32, kv_layout::contiguous, memory_order::token_major, compaction::refill, false, false, false},
    {f16, bf16, kv_layout::contiguous, memory_order::head_major, compaction::refill, false, true, false},
    {bf16, bf16, kv_layout::paged, memory_order::token_major, compaction::refill, false, false, false},
    {f32, f32, kv_layout::ring, memory_order::interleaved, compaction::refill, true, false, false},
    {bf16, bf16, kv_layout::contiguous, memory_order::interleaved, compaction::stable, false, true, false},
    {f32, f16, kv_layout::paged, memory_order::head_major, compaction::stable, false, false, false},
    {f16, f16, kv_layout::ring, memory_order::token_major, compaction::stable, false, false, false},
    {bf16, f32, kv_layout::ring, memory_order::head_major, compaction::stable, true, false, false},
    {f32, bf16, kv_layout::paged, memory_order::token_major, compaction::pages, true, false, false},
    {bf16, bf16, kv_layout::paged, memory_order::interleaved, compaction::pages, true, false, false},
    {bf16, bf16, kv_layout::ring, memory_order::token_major, compaction::refill, false, true, true},
    {f32, f32, kv_layout::contiguous, memory_order::head_major, compaction::stable, false, false, true},
    {f16, f16, kv_layout::paged, memory_order::token_major, compaction::pages, true, false, true},
};

std::ostream& operator<<(std::ostream& to, const cache_kind& kind) {
  return to << to_string(kind.type) << ", v " << to_string(kind.v_type) << ", layout " << static_cast<int>(kind.layout)
            << ", order " << static_cast<int>(kind.order) << ", compaction " << static_cast<int>(kind.how) << ", share "
            << kind.share << ", budgets " << kind.budgets << ", values in keys " << kind.inside;
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
    if (kind.how == compaction::pages) cache_.settings.block_table = storage_.block_table();
    cache_.kept = kept_.lists;
    skim::eviction_args largest = cache_.settings;
    largest.kv.tokens = largest.new_tokens = capacity;
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
    if (!appends) return evict();
    append(1 + static_cast<std::int64_t>(random_() % static_cast<unsigned>(room)));
    switch (random_() % 4) {
      case 0:  // only observed, as in decoding between evictions
        EXPECT_TRUE(cache_.observe({}, nullptr, workspace_->get(), serial_).ok());
        return;
      case 1:  // not even that: the next append comes first
        return;
      default:
        return evict();
    }
  }

  /// Everything is as the model says.
  void expect_consistent() {
    const skim::kv_cache& kv = cache_.kv();
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
    shape.v_type = kind.v_type;
    shape.values_in_keys = kind.inside;
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

  void evict() {
    std::vector<std::vector<std::int64_t>> expected;
    for (std::int64_t r = 0; r < kept_.lists.rows; ++r) expected.push_back(expected_list(r));
    const skim::report report = cache_.evict({}, nullptr, workspace_->get(), serial_);
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
    const skim::kv_cache& kv = cache_.kv();
    if (kind_.how == compaction::pages) return reference::keep_pages(kv, keep, scores, reference::ties::earlier);
    return reference::keep_tokens(kv, row, kept_of_head(keep, cache_.settings, row), scores, reference::ties::earlier);
  }

  void expect_token(std::int64_t head, std::int64_t slot, std::int64_t position) {
    const skim::kv_cache& kv = cache_.kv();
    float key[D], value[Dv];
    token_row(position, head, 0, D, key);
    token_row(position, head, 1, Dv, value);
    double squares = 0;
    for (std::int64_t d = 0; d < D; ++d) {
      ASSERT_EQ(skim::load_element(kv.row_address(kv.k, head, slot), kv.k.type, d), key[d])
          << "key of position " << position << ", head " << head << ", slot " << slot;
      squares += static_cast<double>(key[d]) * static_cast<double>(key[d]);
    }
    const float* const expected = kv.values_in_keys ? key : value;
    for (std::int64_t d = 0; d < Dv; ++d) {
      ASSERT_EQ(skim::load_element(kv.row_address(kv.v, head, slot), kv.v.type, d), expected[d])
          << "value of position " << position << ", head " << head << ", slot " << slot;
    }
    ASSERT_EQ(kv.position(head, slot), position) << "head " << head << ", slot " << slot;
    // Squares and their sum are exact here: a root and a division round.
    const float norm = kv.inverse_norms[head * kv.inverse_norms_stride + kv.metadata_row(slot)];
    ASSERT_NEAR(static_cast<double>(norm) * std::sqrt(squares), 1, 2.01 * 0x1p-24) << "position " << position;
  }

  /// KeyDiff's sums are integers: after any number of operations the state is exactly that of a cache that was filled just
  /// now. What was appended and not yet observed is not in it.
  void expect_state() {
    if constexpr (std::is_same_v<Policy, skim::keydiff<>>) {
      const skim::kv_cache& kv = cache_.kv();
      if (cache_.settings.new_tokens > 0) return;
      std::int64_t shortest = kv.tokens;
      for (std::int64_t h = 0; h < Hk; ++h) shortest = std::min(shortest, kv.length(h));
      if (shortest == kv.tokens) {  // else no chunk is the whole cache of both heads
        skim::eviction_args args = cache_.settings;
        args.new_tokens = kv.tokens;
        ASSERT_TRUE(cache_.op.reset(args, fresh_->get(), serial_).ok());
        ASSERT_TRUE(cache_.op.observe(args, fresh_->get(), workspace_->get(), serial_).ok());
        ASSERT_EQ(std::memcmp(state_->data(), fresh_->data(), cache_.op.state_bytes(args)), 0) << "the sums drifted";
      }
      expect_scores();
    }
  }

  /// And the scores near those of the exact unit keys: half a unit of rounding, and u (5 + D / 8) of each component, beside
  /// the documented u (D / 4 + 16).
  void expect_scores() {
    const skim::kv_view kv = cache_.kv();
    scores_memory scores(Hk, kv.tokens);
    ASSERT_TRUE(cache_.op.score(cache_.settings, scores.view(), cache_.state, workspace_->get(), serial_).ok());
    for (std::int64_t h = 0; h < Hk; ++h) {
      const reference::vector_list keys = reference::rows_of(kv, kv.k, h);
      if (keys.empty()) continue;
      const double mean = reference::length(reference::find_anchor(skim::anchor::unit_mean{}, keys));
      const double each = 0x1p-31 * std::sqrt(double{D}) + f32_roundoff * (5 + double{D} / 8);
      const double bound = f32_roundoff * (double{D} / 4 + 16) + 2 * each / mean;
      const std::vector<double> got = scores.row(h, kv.length(h)), exact = reference::score(skim::keydiff<>{}, keys);
      for (std::size_t slot = 0; slot < got.size(); ++slot) {
        ASSERT_NEAR(got[slot], exact[slot], bound) << "head " << h << ", slot " << slot;
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
