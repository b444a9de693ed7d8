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
  for (const std::int64_t Tq : {1, 5, 33, 200}) {
    for (const std::int64_t Hk : {1, 2, 7}) {
      attention_case c;
      c.Tq = Tq;
      c.Tk = Tq == 200 ? 1500 : 5000;
      c.G = 3;
      c.Hk = Hk;
      c.D = c.Dv = 24;
      c.lse = c.sinks = true;
      attention_inputs inputs(c), again(c);
      const result expected = attend(skim::cpu::attention<>{}, c, inputs);
      EXPECT_EQ(attend_on(GetParam(), skim::cpu::attention<>{}, c, again), expected) << c;
    }
  }
}

/// As many workers as it is told to have, one after another: how a call is shared among them needs no threads to be seen.
struct many_workers {
  unsigned workers;

  unsigned concurrency() const { return workers; }
  template <class Body>
  void parallel_for(std::int64_t n, const Body& body) const {
    for (std::int64_t index = n; index-- > 0;) body(index, static_cast<unsigned>(index) % workers);
  }
};

/// From one strip, which many workers share, to more strips than workers; calls of unequal sequences among them.
TEST(WorkerBits, AreThoseOfOne) {
  for (const std::int64_t sequences : {1, 3}) {
    for (const std::int64_t Tq : {1, 40, 300}) {
      for (const std::int64_t Tk : {0, 700, 2600, 9000}) {
        attention_case c;
        c.sequences = sequences;
        c.Tq = Tq;
        c.Tk = Tk;
        c.Hk = Tq == 300 ? 2 : 1;
        c.G = 3;
        c.D = c.Dv = 8;
        c.lse = c.lengths = true;
        if (Tq * Tk > 1000000) continue;
        SCOPED_TRACE(testing::Message() << c);
        attention_inputs inputs(c);
        const skim::cpu::attention<> op;
        const result expected = attend(op, c, inputs);
        for (const unsigned workers : {2u, 3u, 5u, 8u, 16u, 31u, 64u, 128u, 1000u}) {
          attention_inputs again(c);
          const skim::attention_args args = again.args();
          aligned_memory workspace(op.workspace_bytes(args, workers));
          ASSERT_TRUE(op.run(args, {}, workspace.get(), many_workers{workers}).ok());
          EXPECT_TRUE(workspace.guards_intact());
          ASSERT_EQ(result_of(again), expected) << workers << " workers";
        }
      }
    }
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
  expect_same_selection(skim::quoka::paper(queries::lowest_cosine(16), keep.dense_under(2000).for_every(16)),
                        GetParam());
  expect_same_selection(skim::quoka::paper(queries::lowest_cosine(16), keep), GetParam());
  expect_same_selection(skim::quoka::paper(queries::farthest_point(5), keep, skim::similarity::dot), GetParam());
  expect_same_selection(skim::quoka::paper(queries::random(3, 9), keep), GetParam());
  expect_same_selection(skim::quoka::paper(queries::all(), keep, skim::similarity::cosine, skim::reduction::mean),
                        GetParam());
  expect_same_selection(skim::quoka{queries::needed(40), keep}, GetParam());
  expect_same_selection(skim::quoka{queries::needed(12), skim::retention::preset(200).for_every(16)}, GetParam());
  expect_same_selection(skim::quoka{queries::all(skim::query_rows::own), keep}, GetParam());
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
  const skim::retention keep = skim::retention::budget(100, 3, 9).dense_under(0);
  for (const skim::quoka& policy :
       {skim::quoka::paper(skim::queries::farthest_point(7), keep), skim::quoka{skim::queries::needed(7), keep}}) {
    const skim::cpu::attention op{policy};
    attention_inputs inputs(c);
    const result expected = attend(op, c, inputs);
    for (const unsigned char fill : {0x00, 0x7f, 0x3f}) {
      attention_inputs again(c);
      EXPECT_EQ(attend(op, c, again, fill), expected) << "filled with " << int{fill};
    }
  }
}

/// Every layout, order, padding and alignment of the same values.
TEST(LayoutBits, AreTheContiguousOnes) {
  for_sampled_calls(4, [](const attention_case& c) {
    attention_case plain = c;
    plain.batch = false;
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
        if (order == memory_order::interleaved && c.type_of_v() != c.kv_type) continue;
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
    const skim::retention keep = skim::retention::budget(100, 3, 9).dense_under(0);
    for (const skim::quoka& policy :
         {skim::quoka::paper(skim::queries::lowest_cosine(7), keep), skim::quoka{skim::queries::needed(7), keep}}) {
      const skim::cpu::attention op{policy};
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
}

// A sequence alone, in a call of several, in a batch; a block of rows alone, in a longer call.

/// The parts of a call, each attended by itself, are what the whole call gives. `alone` chooses for all rows at once.
template <class Selector>
void expect_parts(const Selector& selector, Selector alone, const attention_case& c) {
  const skim::cpu::attention op{selector};
  alone.keep.every = 0;
  const skim::cpu::attention own{alone};
  attention_inputs inputs(c), again(c);
  const result expected = attend(op, c, inputs);
  const skim::attention_args args = again.args();
  skim::for_each_block(args, op.block_rows(), [&](const skim::attention_sequence& block, std::int64_t index) {
    const skim::attention_args part = part_of(args, block);
    aligned_memory workspace(own.workspace_bytes(part, 1));
    EXPECT_TRUE(own.run(part, {}, workspace.get(), skim::serial_executor{}).ok()) << "block " << index;
  });
  EXPECT_EQ(result_of(again), expected);
}
template <class Selector>
void expect_parts(const Selector& selector, const attention_case& c) {
  expect_parts(selector, selector, c);
}

/// The same over given lists, whose rows go with the blocks.
void expect_listed_parts(const attention_case& c) {
  const skim::cpu::attend<> op;
  attention_inputs inputs(c), again(c);
  const result expected = attend(skim::cpu::attention<>{}, c, inputs);
  const skim::attention_args args = again.args();
  const skim::index_lists& all = *again.lists();
  skim::for_each_block(args, all.block_rows, [&](const skim::attention_sequence& block, std::int64_t index) {
    const skim::attention_args part = part_of(args, block);
    skim::index_lists lists = all;
    lists.indices = all.row(index * c.Hk);
    lists.counts = all.counts + index * c.Hk;
    lists.rows = c.Hk;
    lists.block_rows = 0;
    aligned_memory workspace(op.workspace_bytes(part, 0, 1));
    EXPECT_TRUE(op.run(part, lists, workspace.get(), skim::serial_executor{}).ok()) << "block " << index;
  });
  EXPECT_EQ(result_of(again), expected);
}

const skim::quoka thins =
    skim::quoka::paper(skim::queries::farthest_point(5), skim::retention::budget(60, 2, 9).dense_under(0));
const skim::quoka ours{skim::queries::needed(9), skim::retention::budget(60, 2, 9).dense_under(0)};
const skim::quoka keeps_all =
    skim::quoka::paper(skim::queries::all(), skim::retention::share(1));  // dense, in blocks of its own

TEST(PartBits, AreThoseOfTheWholeCall) {
  for_sampled_calls(3, [](const attention_case& sampled) {
    attention_case c = sampled;
    if (c.lists != lists_kind::none) return expect_listed_parts(c);
    for (const std::int64_t every : {std::int64_t{0}, std::int64_t{7}, std::int64_t{64}}) {
      skim::quoka selector = keeps_all;
      selector.keep.every = every;
      expect_parts(selector, c);
      selector = thins;
      selector.keep.every = every;
      selector.keep.dense_below = 100;  // some blocks run dense beside others that do not
      expect_parts(selector, c);
      selector = ours;
      selector.keep.every = every;
      expect_parts(selector, c);
    }
  });
}

/// Rows [first, first + 128) of a call of 512, as a host would have made the call: put together by hand.
skim::attention_args chunk_of_128(const skim::attention_args& whole, std::int64_t first,
                                  std::vector<std::int32_t>& lengths) {
  skim::attention_args args = whole;
  args.q.data = whole.q.at(first);
  args.out.data = whole.out.at(first);
  args.lse.data = whole.lse.at(first);
  args.q.extents[0] = args.out.extents[0] = args.lse.extents[0] = 128;
  const std::int64_t later = 512 - first - 128;
  args.kv.tokens -= later;
  lengths.clear();
  for (std::int64_t h = 0; h < whole.kv.heads; ++h) {
    lengths.push_back(static_cast<std::int32_t>(whole.kv.length(h) - later));
  }
  if (whole.kv.lengths) args.kv.lengths = lengths.data();
  return args;
}

template <class Selector>
void expect_chunks(Selector selector, const attention_case& c) {
  selector.keep.every = 128;
  const skim::cpu::attention op{selector};
  selector.keep.every = 0;
  const skim::cpu::attention own{selector};
  attention_inputs inputs(c), again(c);
  const result expected = attend(op, c, inputs);
  const skim::attention_args args = again.args();
  std::vector<std::int32_t> lengths;
  for (std::int64_t first = 0; first < 512; first += 128) {
    const skim::attention_args chunk = chunk_of_128(args, first, lengths);
    aligned_memory workspace(own.workspace_bytes(chunk, 1));
    ASSERT_TRUE(own.run(chunk, {}, workspace.get(), skim::serial_executor{}).ok());
  }
  EXPECT_EQ(result_of(again), expected);
}

/// 512 rows, chosen anew for every 128, are four calls of 128: their past includes the call's earlier rows.
TEST(PartBits, OfFourBlocksAreThoseOfFourCalls) {
  for (const cache_form form : sampled_forms) {
    for (const skim::mask see : {skim::mask::causal(), skim::mask::window(300), skim::mask::full()}) {
      for (const bool lengths : {false, true}) {
        attention_case c;
        c.layout = form.layout;
        c.page_size = form.page_size;
        c.mask = see;
        c.lengths = lengths;
        c.Tq = 512;
        c.Tk = 700;
        c.G = 2;
        c.Hk = 2;
        c.D = c.Dv = 16;
        c.lse = true;
        c.kv_type = skim::element::bf16;
        SCOPED_TRACE(testing::Message() << c);
        skim::quoka selector = thins;
        expect_chunks(selector, c);
        expect_chunks(ours, c);
        selector.queries = skim::queries::random(8, 3);
        expect_chunks(selector, c);
        expect_chunks(keeps_all, c);
        expect_chunks(skim::sink_window{skim::retention::budget(150, 4).dense_under(0)}, c);
        c.lists = lists_kind::third;
        c.block_rows = 128;
        expect_listed_parts(c);
      }
    }
  }
}

/// A long sequence beside short ones is cut as if it were alone, on any number of workers.
TEST_P(executor_bits, of_a_long_sequence_do_not_depend_on_its_neighbours) {
  attention_case c;
  c.sequences = 3;
  c.Tq = 6;
  c.Tk = 6000;
  c.Hk = 2;
  c.D = c.Dv = 24;
  c.lse = true;
  for (const bool batch : {false, true}) {
    c.batch = batch;
    c.layout = batch ? skim::kv_layout::paged : skim::kv_layout::contiguous;
    c.page_size = 16;
    attention_inputs inputs(c), again(c);
    const result expected = attend_on(GetParam(), skim::cpu::attention<>{}, c, inputs);
    const skim::attention_args args = again.args();
    for (std::int64_t s = 0; s < c.sequences; ++s) {
      const skim::attention_args part = part_of(args, skim::sequence_at(args, s));
      const skim::cpu::attention<> op;
      aligned_memory workspace(op.workspace_bytes(part, 1));
      ASSERT_TRUE(op.run(part, {}, workspace.get(), skim::serial_executor{}).ok());
    }
    EXPECT_EQ(result_of(again), expected);
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
    fit_stored_types(other);
    attention_inputs again(other);
    attend(other, again);
    const auto a = inputs.out().view(), b = again.out().view();
    for (std::int64_t t = 0; t < a.extents[0]; ++t) {
      for (std::int64_t h = 0; h < a.extents[1]; ++h) {
        const std::size_t size = static_cast<std::size_t>(skim::bytes_of(a.type, a.extents[2]));
        ASSERT_EQ(std::memcmp(a.at(t, h), b.at(t, h), size), 0) << "token " << t << ", head " << h;
      }
    }
  });
}

}  // namespace
