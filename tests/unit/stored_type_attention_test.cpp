// SPDX-License-Identifier: Apache-2.0
// Attention and QUOKA over a cache of a stored type with scales that the library does not know.
#include "support/scaled_i16.hpp"

#include "support/attention_sample.hpp"
#include "support/quoka_stages.hpp"

namespace {

using namespace skim_test;
using skim::element;
using skim::testing::satisfies;

/// K and V of one type with scales, of two types one of which has them, values inside keys; all layouts.
std::vector<attention_case> cases() {
  struct types {
    element k, v;
    bool inside;
  };
  std::vector<attention_case> all;
  for (const types type : {types{i16, i16, false}, types{i16, element::bf16, false}, types{element::f16, i16, false},
                           types{i16, i16, true}}) {
    for (const cache_form form : sampled_forms) {
      attention_case c;
      c.kv_type = type.k;
      c.v_type = type.v;
      c.values_in_keys = type.inside;
      c.scales = true;
      c.layout = form.layout;
      c.page_size = form.page_size;
      c.D = 41;
      c.Dv = 30;
      c.Tq = 19;
      c.Tk = 300;
      c.G = 3;
      c.Hk = 2;
      c.lse = true;
      c.lengths = form.page_size == 16;
      c.positions = form.layout == skim::kv_layout::ring ? positions_kind::shuffled : positions_kind::from_zero;
      c.batch = form.page_size == 32;
      c.sequences = c.batch ? 3 : 1;
      c.lists = form.page_size == 1 ? lists_kind::third : lists_kind::none;
      c.block_rows = 8;
      c.dot_pairs = type.v != i16;  // a wish that cannot be granted
      all.push_back(c);
    }
  }
  return all;
}

template <class Accumulate>
void expect_exact(const attention_case& c) {
  attention_inputs inputs(c);
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<skim::dense, Accumulate> op;
  const skim::cpu::attend<Accumulate> listed;
  aligned_memory workspace(op.workspace_bytes(args, 1)), scratch(listed.workspace_bytes(args, c.block_rows, 1));
  const skim::report report = inputs.lists() ? listed.run(args, *inputs.lists(), scratch.get(), skim::serial_executor{})
                                             : op.run(args, {}, workspace.get(), skim::serial_executor{});
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(workspace.guards_intact() && scratch.guards_intact());
  EXPECT_TRUE(satisfies(args.out, skim::testing::matches_attention(args, inputs.lists())));
  EXPECT_TRUE(satisfies(args.lse, skim::testing::matches_lse(args, inputs.lists())));
}

TEST(StoredType, IsAttendedTo) {
  for (const attention_case& c : cases()) {
    SCOPED_TRACE(testing::Message() << c);
    if (c.dot_pairs) {
      expect_exact<skim::accumulate::dot_pairs>(c);
    } else {
      expect_exact<skim::accumulate::widen_fma>(c);
    }
    if (HasFailure()) return;
  }
}

/// A row that could not be stored reads as NaN: it spoils the rows that see it and no others.
TEST(StoredType, RowsThatHeldNanSpoilThoseThatSeeThem) {
  attention_case c = cases().front();
  c.lists = lists_kind::none;
  c.mask = skim::mask::window(50);
  attention_inputs inputs(c);
  const skim::kv_cache& kv = inputs.writable(0);
  const std::vector<float> bad(static_cast<std::size_t>(c.Dv), std::numeric_limits<float>::quiet_NaN());
  write_row(kv, kv.v, 1, 260, bad.data());
  write_row(kv, kv.v, 0, 100, bad.data());  // which nobody sees
  const skim::attention_args args = inputs.args();
  const skim::cpu::attention<> op;
  aligned_memory workspace(op.workspace_bytes(args, 1));
  ASSERT_TRUE(op.run(args, {}, workspace.get(), skim::serial_executor{}).ok());
  for (std::int64_t t = 0; t < c.Tq; ++t) {
    for (std::int64_t h = 0; h < 6; ++h) {
      const bool sees = h >= 3 && 300 + t - 260 < 50;
      const float out = skim::load_element(args.out.at(t, h), args.out.type, 4);
      EXPECT_EQ(std::isnan(out), sees) << "token " << t << ", head " << h;
    }
  }
}

TEST(StoredType, IsSelectedFrom) {
  for (const attention_case& call : cases()) {
    for (const skim::similarity measure : {skim::similarity::cosine, skim::similarity::dot}) {
      for (const bool norms : {false, true}) {
        attention_case c = call;
        c.inverse_norms = norms;
        make_valid(c);
        SCOPED_TRACE(testing::Message() << c);
        attention_inputs inputs(c);
        skim::quoka policy = skim::quoka::paper(skim::queries::farthest_point(6),
                                                skim::retention::budget(40, 2, 5).dense_under(0), measure);
        policy.keep.every = 8;
        expect_selection(policy, inputs.args());
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
