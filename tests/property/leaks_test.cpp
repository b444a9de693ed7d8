// SPDX-License-Identifier: Apache-2.0
// NaN and infinity reach the rows that may read them, and no others. Padding, unused rows, unused pages and slots behind a
// head's length are NaN in every sampled call; here tokens of the call itself are spoilt.
#include "calls.hpp"

#include <skim/reference/attention.hpp>

#include <set>

namespace {

using namespace skim_test;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

enum class spoilt { k_nan, k_infinite, v_nan, v_infinite };
constexpr spoilt every_kind[] = {spoilt::k_nan, spoilt::k_infinite, spoilt::v_nan, spoilt::v_infinite};

/// A slot of one sequence and head, and the element of V that is spoilt.
struct spoilt_slot {
  std::int64_t s, head, slot, d;
};

/// A few slots of each sequence and head: among them the chunk's own, the last of all, the first, and one in the middle.
std::vector<spoilt_slot> slots_to_spoil(const skim::attention_args& args, std::mt19937& random) {
  std::vector<spoilt_slot> spoilt;
  for (std::int64_t s = 0; s < skim::sequence_count(args); ++s) {
    const skim::attention_sequence sequence = skim::sequence_at(args, s);
    for (std::int64_t head = 0; head < sequence.kv.heads; ++head) {
      const std::int64_t length = sequence.kv.length(head);
      std::set<std::int64_t> slots;
      for (int i = 0; i < 2 && length > 0; ++i) slots.insert(static_cast<std::int64_t>(random()) % length);
      if (sequence.Tq > 1) slots.insert(length - 1 - static_cast<std::int64_t>(random()) % (sequence.Tq - 1));
      for (const std::int64_t slot : slots) {
        spoilt.push_back({s, head, slot, static_cast<std::int64_t>(random()) % sequence.kv.v.dim});
      }
    }
  }
  return spoilt;
}

void spoil(const skim::kv_cache& kv, const spoilt_slot& at, spoilt kind) {
  const float value = kind == spoilt::k_nan || kind == spoilt::v_nan ? nan_value : infinity;
  if (kind == spoilt::v_nan || kind == spoilt::v_infinite) {
    void* const row = kv.row_address(kv.v, at.head, at.slot);
    if (kv.v.type == skim::element::int8) {
      kv.scale(kv.v, at.head, at.slot) = value;
    } else if (kv.v.type == skim::element::q8_0) {
      static_cast<skim::q8_0*>(row)[at.d / 32].scale = skim::from_float<skim::f16>(value);
    } else {
      skim::store_element(row, kv.v.type, at.d, value);
    }
  } else {
    write_row(kv, kv.k, at.head, at.slot, std::vector<float>(static_cast<std::size_t>(kv.k.dim), value).data());
  }
}

/// For each row [Tq * Hq], whether it reads a slot.
std::vector<bool> readers(const skim::attention_args& args, const skim::index_lists* lists, const spoilt_slot& at) {
  const std::int64_t Hq = args.q.extents[1], G = skim::group_size(args), rows = lists ? lists->block_rows : 0;
  std::vector<bool> reads(static_cast<std::size_t>(args.q.extents[0] * Hq), false);
  std::int64_t index = 0;
  for (std::int64_t s = 0; s < skim::sequence_count(args); ++s) {
    const skim::attention_sequence sequence = skim::sequence_at(args, s);
    for (std::int64_t b = 0; b < skim::block_count(sequence.Tq, rows); ++b, ++index) {
      const skim::attention_sequence block = skim::block_of(sequence, b, rows);
      const auto slots = skim::reference::slots_read(block, index, at.head, lists);
      if (s != at.s || std::find(slots.begin(), slots.end(), at.slot) == slots.end()) continue;
      for (std::int64_t i = 0; i < block.Tq * G; ++i) {
        const std::int64_t t = i / G, h = at.head * G + i % G;
        if (!skim::reference::sees(args, block, t, h, at.slot)) continue;
        reads[static_cast<std::size_t>((block.first_row + t) * Hq + h)] = true;
      }
    }
  }
  return reads;
}

bool same_bits(float a, float b) {
  return skim::detail::bits_from_float(a) == skim::detail::bits_from_float(b);
}

void expect_no_leak(const attention_case& c, spoilt kind, unsigned seed) {
  attention_inputs clean(c), spoiled(c);
  attend(c, clean);
  const skim::attention_args args = spoiled.args();
  std::mt19937 random(seed);
  const std::vector<spoilt_slot> slots = slots_to_spoil(args, random);
  std::vector<std::vector<bool>> readers_of;
  for (const spoilt_slot& at : slots) {
    spoil(spoiled.writable(at.s), at, kind);
    readers_of.push_back(readers(args, spoiled.lists(), at));
  }
  attend(c, spoiled);
  const auto before = clean.out().view(), after = spoiled.out().view();
  const bool k_is_bad = kind == spoilt::k_nan || kind == spoilt::k_infinite;
  for (std::int64_t i = 0; i < args.q.extents[0] * c.Hq(); ++i) {
    const std::int64_t row = i / c.Hq(), h = i % c.Hq();
    std::vector<bool> bad(static_cast<std::size_t>(c.Dv), false);
    bool bad_lse = false;
    for (std::size_t n = 0; n < slots.size(); ++n) {
      if (!readers_of[n][static_cast<std::size_t>(i)]) continue;
      // A value inside a key spoils the whole row.
      const bool key = k_is_bad || c.values_in_keys;
      if (key) bad.assign(bad.size(), true);
      // What has a scale in common is spoilt with it.
      const std::int64_t together = c.type_of_v() == skim::element::int8   ? c.Dv
                                    : c.type_of_v() == skim::element::q8_0 ? 32
                                                                           : 1;
      const auto first = bad.begin() + slots[n].d / together * together;
      std::fill(first, first + together, true);
      bad_lse = bad_lse || key;
    }
    if (!bad_lse && c.lse) {
      ASSERT_TRUE(same_bits(*clean.lse_view().at(row, h), *spoiled.lse_view().at(row, h)))
          << "log-sum-exp of row " << row << ", head " << h;
    }
    for (std::int64_t d = 0; d < c.Dv; ++d) {
      const float was = skim::load_element(before.data, before.type, before.offset(row, h, d));
      const float is = skim::load_element(after.data, after.type, after.offset(row, h, d));
      if (!bad[static_cast<std::size_t>(d)]) {
        ASSERT_TRUE(same_bits(was, is)) << "row " << row << ", head " << h << ", element " << d << ": " << was
                                        << " became " << is;
      } else if (kind != spoilt::k_infinite && !(kind == spoilt::v_infinite && c.values_in_keys)) {
        // An infinite logit may be -inf, which hides the key.
        ASSERT_FALSE(std::isfinite(is)) << "row " << row << ", head " << h << ", element " << d;
      }
    }
  }
}

class leaks : public testing::TestWithParam<spoilt> {};
INSTANTIATE_TEST_SUITE_P(kinds, leaks, testing::ValuesIn(every_kind));

TEST_P(leaks, no_row_feels_what_it_may_not_read) {
  unsigned seed = 1;
  for_sampled_calls(1, [&](const attention_case& c) { expect_no_leak(c, GetParam(), ++seed); });
}

/// Short chunks over all masks, storage types and both kinds of arithmetic: the causal diagonal, tile by tile.
TEST_P(leaks, of_the_chunk_s_own_tokens_stay_behind_the_diagonal) {
  for (const skim::element type : cache_types) {
    for (const skim::mask& see : sampled_masks) {
      for (const std::int64_t Tq : {2, 40, 65, 130}) {
        for (const bool pairs : {false, true}) {
          attention_case c;
          c.kv_type = type;
          c.mask = see;
          c.Tq = Tq;
          c.Tk = 3;
          c.G = 2;
          c.D = 24;
          c.Dv = 19;
          c.dot_pairs = pairs;
          fit_stored_types(c);
          SCOPED_TRACE(testing::Message() << c);
          for (unsigned seed = 0; seed < 4; ++seed) expect_no_leak(c, GetParam(), seed);
          if (HasFailure()) return;
        }
      }
    }
  }
}

/// What only the bias hides is as hidden as what the mask does: under a full mask, with and without a soft cap and slopes.
TEST_P(leaks, what_the_bias_alone_hides_stays_hidden) {
  for (const bias_kind bias : {bias_kind::shared, bias_kind::by_head}) {
    for (const bool pairs : {false, true}) {
      for (const float soft_cap : {0.0f, 5.0f}) {
        attention_case c;
        c.kv_type = skim::element::bf16;
        c.Tq = 30;
        c.Tk = 130;
        c.G = 3;
        c.D = 24;
        c.Dv = 19;
        c.mask = skim::mask::full();
        c.bias = bias;
        c.lse = c.slopes = true;
        c.soft_cap = soft_cap;
        c.dot_pairs = pairs;
        SCOPED_TRACE(testing::Message() << c);
        for (unsigned seed = 0; seed < 4; ++seed) expect_no_leak(c, GetParam(), seed);
        if (HasFailure()) return;
      }
    }
  }
}

/// A query that is NaN spoils its own row only.
TEST(Leaks, ANanQueryKeepsToItsRow) {
  for_sampled_calls(1, [](const attention_case& c) {
    if (c.Tq < 2) return;
    attention_inputs clean(c), spoiled(c);
    attend(c, clean);
    const auto q = spoiled.q().view();
    const std::int64_t bad_t = c.Tq / 2, bad_h = c.Hq() / 2;
    skim::store_element(q.data, q.type, q.offset(bad_t, bad_h, 0), nan_value);
    attend(c, spoiled);
    const auto before = clean.out().view(), after = spoiled.out().view();
    for (std::int64_t t = 0; t < before.extents[0]; ++t) {
      for (std::int64_t h = 0; h < c.Hq(); ++h) {
        if (t == bad_t && h == bad_h) continue;
        const std::size_t size = static_cast<std::size_t>(skim::bytes_of(c.out_type, c.Dv));
        ASSERT_EQ(std::memcmp(before.at(t, h), after.at(t, h), size), 0) << "token " << t << ", head " << h;
      }
    }
  });
}

/// Keys that no query of the chunk may see, and the chunk's own keys, have no say in a selection.
TEST(Leaks, HiddenKeysDoNotChangeASelection) {
  for (const positions_kind positions : {positions_kind::from_zero, positions_kind::holes, positions_kind::shuffled}) {
    for (const std::int64_t Tq : {1, 3, 30}) {
      attention_case c;
      c.Tq = Tq;
      c.Tk = 900;
      c.Hk = 2;
      c.G = 2;
      c.mask = skim::mask::window(150);
      c.positions = positions;
      attention_inputs clean(c), spoiled(c);
      const skim::attention_args args = spoiled.args();
      std::int64_t hidden = 0;
      for (std::int64_t head = 0; head < c.Hk; ++head) {
        for (std::int64_t slot = 0; slot < c.Tk + c.Tq; ++slot) {
          bool seen = false;
          for (std::int64_t t = 0; t < Tq && slot < c.Tk; ++t) {
            seen = seen || args.mask.visible(args.kv.position(head, c.Tk + t), args.kv.position(head, slot));
          }
          if (seen) continue;
          spoil(spoiled.writable(0), {0, head, slot, 0}, spoilt::k_nan);
          ++hidden;
        }
      }
      ASSERT_GT(hidden, c.Hk * Tq);
      const skim::cpu::attention op{
          skim::quoka::paper(skim::queries::farthest_point(8), skim::retention::budget(60, 2, 5).dense_under(0))};
      aligned_memory workspace(op.workspace_bytes(args, 1));
      std::vector<std::int32_t> indices[2], counts[2];
      for (int run = 0; run < 2; ++run) {
        indices[run].assign(120, -1);
        counts[run].assign(2, -1);
        const skim::index_lists lists{indices[run].data(), counts[run].data(), 2, 60};
        const skim::attention_args& of = run == 0 ? clean.args() : args;
        ASSERT_TRUE(op.select(of, lists, {}, workspace.get(), skim::serial_executor{}).ok());
      }
      EXPECT_EQ(indices[0], indices[1]) << c;
      EXPECT_EQ(counts[0], counts[1]) << c;
    }
  }
}

}  // namespace
