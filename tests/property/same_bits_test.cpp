// SPDX-License-Identifier: Apache-2.0
// The same bits for every executor, every number of workers, every workspace and every layout of the cache.
#include "calls.hpp"

namespace {

using namespace skim_test;

class executor_bits : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(kinds, executor_bits, testing::ValuesIn(every_executor));

TEST_P(executor_bits, of_attention_are_the_serial_ones) {
  for_sampled_calls(3, [&](const attention_case& c) {
    attention_inputs inputs(c), again(c);
    const result expected = attend(skim::cpu::attention<>{}, c, inputs);
    EXPECT_EQ(attend_on(GetParam(), skim::cpu::attention<>{}, c, again), expected);
  });
}

/// Few rows and many keys: the shapes that split keys over units and merge.
TEST_P(executor_bits, of_merged_key_pieces_are_the_serial_ones) {
  for (const std::int64_t Tq : {1, 5, 33}) {
    attention_case c;
    c.Tq = Tq;
    c.Tk = 5000;
    c.G = 3;
    c.Hk = 2;
    c.lse = c.sinks = true;
    attention_inputs inputs(c), again(c);
    const result expected = attend(skim::cpu::attention<>{}, c, inputs);
    EXPECT_EQ(attend_on(GetParam(), skim::cpu::attention<>{}, c, again), expected) << c;
  }
}

template <class Selector>
void expect_same_selection(const Selector& selector, executor_choice choice) {
  attention_case c;
  c.Tq = 40;
  c.Tk = 5000;
  c.G = 3;
  c.Hk = 2;
  c.lse = c.lengths = true;
  c.sequences = 3;
  const skim::cpu::attention op{selector};
  attention_inputs inputs(c), again(c);
  const result expected = attend(op, c, inputs);
  EXPECT_EQ(attend_on(choice, op, c, again), expected);
}

TEST_P(executor_bits, of_selections_are_the_serial_ones) {
  namespace queries = skim::queries;
  const skim::retention keep = skim::retention::budget(200, 4, 30);
  expect_same_selection(skim::quoka{queries::lowest_cosine(16), keep}, GetParam());
  expect_same_selection(skim::quoka{queries::farthest_point(5), keep, skim::similarity::dot}, GetParam());
  expect_same_selection(skim::quoka{queries::random(3, 9), keep}, GetParam());
  expect_same_selection(skim::quoka{queries::all(), keep, skim::similarity::cosine, skim::reduction::mean},
                        GetParam());
  expect_same_selection(skim::sink_window{skim::retention::budget(200, 4)}, GetParam());
}

TEST(WorkspaceBits, DoNotMatter) {
  for_sampled_calls(2, [](const attention_case& c) {
    attention_inputs inputs(c);
    const result expected = attend(c, inputs);
    for (const unsigned char fill : {0x00, 0x7f, 0x3f}) {
      attention_inputs again(c);
      EXPECT_EQ(attend(c, again, fill), expected) << "filled with " << int{fill};
    }
  });
}

TEST(WorkspaceBits, DoNotMatterToSelections) {
  attention_case c;
  c.Tq = 20;
  c.Tk = 2500;
  c.D = 40;
  c.Hk = 2;
  c.mask = skim::mask::window(2300);
  c.positions = positions_kind::shuffled;
  const skim::cpu::attention op{skim::quoka{skim::queries::farthest_point(7), skim::retention::budget(100, 3, 9)}};
  attention_inputs inputs(c);
  const result expected = attend(op, c, inputs);
  for (const unsigned char fill : {0x00, 0x7f, 0x3f}) {
    attention_inputs again(c);
    EXPECT_EQ(attend(op, c, again, fill), expected) << "filled with " << int{fill};
  }
}

/// Every layout, order, padding and alignment of the same values.
TEST(LayoutBits, AreTheContiguousOnes) {
  for_sampled_calls(4, [](const attention_case& c) {
    attention_case plain = c;
    plain.layout = skim::kv_layout::contiguous;
    plain.page_size = 1;
    plain.kv_order = memory_order::token_major;
    plain.padding = plain.shift = 0;
    attention_inputs inputs(plain);
    const result expected = attend(plain, inputs);
    for (const cache_form form : sampled_forms) {
      for (const memory_order order :
           {memory_order::token_major, memory_order::head_major, memory_order::interleaved}) {
        attention_case other = plain;
        other.layout = form.layout;
        other.page_size = form.page_size;
        other.kv_order = order;
        attention_inputs again(other);
        EXPECT_EQ(attend(other, again), expected) << other;
      }
    }
  });
}

TEST(LayoutBits, OfSelectionsAreTheContiguousOnes) {
  for (const bool norms : {false, true}) {
    attention_case c;
    c.Tq = 20;
    c.Tk = 2500;
    c.D = 40;
    c.Hk = 2;
    c.inverse_norms = norms;
    c.positions = positions_kind::holes;
    c.kv_type = skim::element::bf16;
    const skim::cpu::attention op{skim::quoka{skim::queries::lowest_cosine(7), skim::retention::budget(100, 3, 9)}};
    attention_inputs inputs(c);
    const result expected = attend(op, c, inputs);
    for (const cache_form form : sampled_forms) {
      attention_case other = c;
      other.layout = form.layout;
      other.page_size = form.page_size;
      attention_inputs again(other);
      EXPECT_EQ(attend(op, other, again), expected) << other;
    }
  }
}

/// Where the output and q lie does not matter either: compared element by element, as padding differs.
TEST(LayoutBits, OfQueriesAndOutputsDoNotMatter) {
  for_sampled_calls(4, [](const attention_case& c) {
    attention_case plain = c;
    plain.q_order = memory_order::token_major;
    plain.padding = plain.shift = 0;
    attention_inputs inputs(plain);
    attend(plain, inputs);
    attention_case other = c;
    other.q_order = memory_order::head_major;
    other.padding = 5;
    other.shift = 3;
    attention_inputs again(other);
    attend(other, again);
    const auto a = inputs.out().view(), b = again.out().view();
    for (std::int64_t t = 0; t < a.extents[0]; ++t) {
      for (std::int64_t h = 0; h < a.extents[1]; ++h) {
        const std::size_t size = static_cast<std::size_t>(a.extents[2] * skim::element_bytes(a.type));
        ASSERT_EQ(std::memcmp(a.at(t, h), b.at(t, h), size), 0) << "token " << t << ", head " << h;
      }
    }
  });
}

}  // namespace
