// SPDX-License-Identifier: Apache-2.0
// The attention mass outside a prompt's beginning: recomputed from q, the first keys and the log-sum-exp against the full
// attention matrix, for whole prompts in chunks and for single calls of every kind.
#include "support/attention_case.hpp"
#include "support/executors.hpp"
#include "support/faults.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/attention_importance.hpp>
#include <skim/reference/attention_importance.hpp>
#include <skim/testing/attention_truth.hpp>

namespace {

using namespace skim_test;
using skim::element;
using skim::status;

const skim::serial_executor serial;

/// Runs the call's attention, which leaves the log-sum-exp.
void attend(const skim::attention_args& args, const skim::index_lists* lists) {
  const skim::cpu::attention<> op;
  const skim::cpu::attend<> listed;
  aligned_memory workspace(lists ? listed.workspace_bytes(args, lists->block_rows, 1) : op.workspace_bytes(args, 1));
  const skim::report report =
      lists ? listed.run(args, *lists, workspace.get(), serial) : op.run(args, {}, workspace.get(), serial);
  ASSERT_TRUE(report.ok());
}

/// What a call adds to zero.
double added(skim::attention_importance_args args) {
  const skim::cpu::attention_importance op;
  double sum = 0;
  args.sum = &sum;
  aligned_memory workspace(op.workspace_bytes(args, 1));
  EXPECT_TRUE(check_indices(args).ok());
  EXPECT_TRUE(op.run(args, workspace.get(), serial).ok());
  EXPECT_TRUE(workspace.guards_intact());
  return sum;
}

/// The documented error of a call's rows.
double bound_of(const skim::attention_importance_args& args) {
  const auto truth = skim::testing::attend_exactly(args.attended, args.read);
  double bound = 0;
  for (const double lse_bound : truth.lse_bound) bound += 4 * lse_bound + 64 * 0x1p-24;
  return bound;
}

void expect_reference(const skim::attention_importance_args& args) {
  const double expected = skim::reference::attention_importance(args);
  const double rows = static_cast<double>(args.attended.q.extents[0] * args.attended.q.extents[1]);
  EXPECT_NEAR(added(args), expected, bound_of(args));
  EXPECT_LT(bound_of(args), 1e-3 * rows + 1e-30) << "a bound that tests nothing";
}

attention_case prompt_case(std::int64_t T) {
  attention_case c;
  c.Tq = T;
  c.Tk = 0;
  c.lse = true;
  c.D = c.Dv = 24;
  return c;
}

struct prompt_shape {
  std::int64_t T, chunk, G, Hk;
  element kv_type, q_type;
  std::int64_t first;
};

std::ostream& operator<<(std::ostream& to, const prompt_shape& p) {
  return to << "T " << p.T << ", chunk " << p.chunk << ", G " << p.G << ", Hk " << p.Hk << ", kv "
            << to_string(p.kv_type) << ", q " << to_string(p.q_type) << ", first " << p.first;
}

class prompts : public testing::TestWithParam<prompt_shape> {};
INSTANTIATE_TEST_SUITE_P(shapes, prompts,
                         testing::Values(prompt_shape{300, 128, 1, 1, element::f32, element::f32, 128},
                                         prompt_shape{300, 128, 3, 2, element::bf16, element::f32, 128},
                                         prompt_shape{257, 100, 4, 1, element::f16, element::f16, 128},
                                         prompt_shape{301, 301, 2, 2, element::f32, element::bf16, 128},
                                         prompt_shape{200, 1, 1, 2, element::bf16, element::bf16, 128},
                                         prompt_shape{190, 37, 6, 1, element::f16, element::f32, 37},
                                         prompt_shape{190, 64, 7, 1, element::f32, element::f32, 65},
                                         prompt_shape{140, 70, 2, 1, element::f32, element::f32, 0},
                                         prompt_shape{128, 50, 2, 2, element::f32, element::f32, 128},
                                         prompt_shape{129, 128, 2, 2, element::f32, element::f32, 128},
                                         prompt_shape{90, 128, 1, 3, element::bf16, element::f32, 128}));

/// Every chunk attends to what came before it and to itself; the whole prompt's matrix says what all of them must add.
TEST_P(prompts, InChunksAddWhatTheFullMatrixSays) {
  const prompt_shape& p = GetParam();
  attention_case c = prompt_case(p.T);
  c.G = p.G;
  c.Hk = p.Hk;
  c.kv_type = p.kv_type;
  c.q_type = p.q_type;
  attention_inputs inputs(c);
  const skim::attention_args whole = inputs.args();
  const skim::cpu::attention_importance op;
  double sum = 0, inside = 0;
  for (std::int64_t begin = 0; begin < p.T; begin += p.chunk) {
    const std::int64_t end = std::min(begin + p.chunk, p.T);
    skim::attention_importance_args args;
    args.attended = whole;
    args.attended.q = skim::rows(whole.q, begin, end - begin);
    args.attended.out = skim::rows(whole.out, begin, end - begin);
    args.attended.lse = skim::rows(whole.lse, begin, end - begin);
    args.attended.kv = skim::prefix(whole.kv, p.T - end);
    args.first = p.first;
    args.sum = &sum;
    attend(args.attended, nullptr);
    aligned_memory workspace(op.workspace_bytes(args, 1));
    ASSERT_TRUE(op.run(args, workspace.get(), serial).ok());
    if (end <= p.first) inside = sum;
  }
  EXPECT_EQ(inside, 0) << "tokens that see nothing else";
  skim::attention_importance_args args;
  args.attended = whole;
  args.first = p.first;
  EXPECT_NEAR(sum, skim::reference::attention_importance(args), bound_of(args));
  EXPECT_TRUE(p.T > p.first || sum == 0);
  EXPECT_TRUE(p.first > 0 || sum == static_cast<double>(p.T * c.Hq()));
}

TEST(AttentionImportance, OfEveryKindOfCall) {
  const auto expect = [](const char* name, auto change, std::int64_t first = 128) {
    SCOPED_TRACE(name);
    attention_case c = prompt_case(50);
    c.Tk = 230;
    c.G = 3;
    c.Hk = 2;
    c.D = 33;
    change(c);
    attention_inputs inputs(c);
    skim::attention_importance_args args;
    args.attended = inputs.args();
    args.read = inputs.lists();
    args.first = first;
    attend(args.attended, args.read);
    expect_reference(args);
  };
  expect("plain", [](auto&) {});
  expect("head major, padded", [](auto& c) {
    c.kv_order = c.q_order = memory_order::head_major;
    c.padding = 3;
    c.shift = 1;
  });
  expect("paged", [](auto& c) {
    c.layout = skim::kv_layout::paged;
    c.page_size = 16;
  });
  expect("ring", [](auto& c) { c.layout = skim::kv_layout::ring; });
  expect("window", [](auto& c) { c.mask = skim::mask::window(100); });
  expect("full", [](auto& c) { c.mask = skim::mask::full(); });
  expect(
      "nothing but the beginning", [](auto& c) { c.mask = skim::mask::full(); }, 1000);
  expect(
      "short cache", [](auto& c) { c.Tk = 40; }, 60);
  expect("one token", [](auto& c) { c.Tq = 1; });
  expect("empty chunk", [](auto& c) { c.Tq = 0; });
  expect("soft cap and scale", [](auto& c) {
    c.soft_cap = 5;
    c.scale = 0.3f;
  });
  expect("sinks", [](auto& c) { c.sinks = true; });
  expect("lengths", [](auto& c) { c.lengths = true; });
  expect(
      "positions from 1000", [](auto& c) { c.positions = positions_kind::from_first; }, 1100);
  expect("positions behind the beginning", [](auto& c) { c.positions = positions_kind::from_first; });
  expect("holes", [](auto& c) { c.positions = positions_kind::holes; });
  expect("shuffled", [](auto& c) { c.positions = positions_kind::shuffled; });
  expect("shuffled ring", [](auto& c) {
    c.positions = positions_kind::shuffled;
    c.layout = skim::kv_layout::ring;
    c.mask = skim::mask{60, 3};
  });
  expect("lists", [](auto& c) { c.lists = lists_kind::third; });
  expect("lists of blocks", [](auto& c) {
    c.lists = lists_kind::third;
    c.block_rows = 16;
    c.lengths = true;
  });
  expect("lists of blocks that see nothing but the beginning", [](auto& c) {
    c.lists = lists_kind::every;
    c.block_rows = 20;
    c.Tk = 100;
  });
  expect("a bias", [](auto& c) { c.bias = bias_kind::shared; });
  expect("a bias for each head, and slopes", [](auto& c) {
    c.bias = bias_kind::by_head;
    c.q_type = element::f16;
    c.slopes = true;
  });
  expect("slopes over holes", [](auto& c) {
    c.slopes = true;
    c.positions = positions_kind::holes;
    c.soft_cap = 5;
  });
  expect("another type of V", [](auto& c) { c.v_type = element::bf16; });
  expect("empty lists", [](auto& c) { c.lists = lists_kind::empty; });
  expect("more rows than are packed at a time", [](auto& c) {
    c.Tq = 230;
    c.Tk = 17;
    c.G = 5;
    c.kv_type = element::bf16;
  });
}

TEST(AttentionImportance, RowsThatSeeNothingAddNothing) {
  attention_case c = prompt_case(20);
  c.Tk = 200;
  c.lists = lists_kind::empty;
  c.mask = skim::mask{0, 0};  // its own key only
  attention_inputs inputs(c);
  skim::attention_importance_args args;
  args.attended = inputs.args();
  args.read = inputs.lists();
  attend(args.attended, args.read);
  EXPECT_EQ(added(args), 20);  // every row gives all to its own key, at 200 and later
  const auto lse = inputs.lse_view();
  for (std::int64_t t = 0; t < 20; t += 2) *lse.at(t, 0) = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(added(args), 10);
}

TEST(AttentionImportance, HasTheSameBitsOnEveryExecutorWhateverTheWorkspaceHolds) {
  attention_case c = prompt_case(130);
  c.Tk = 300;
  c.G = 5;
  c.Hk = 3;
  c.kv_type = element::bf16;
  attention_inputs inputs(c);
  double first = 0, sum = 0;
  skim::attention_importance_args args;
  args.attended = inputs.args();
  args.sum = &sum;
  attend(args.attended, nullptr);
  const skim::cpu::attention_importance op;
  for (const executor_choice choice : every_executor) {
    SCOPED_TRACE(choice);
    for (const unsigned char fill : {0x00, 0xff}) {
      aligned_memory workspace(op.workspace_bytes(args, choice.workers), fill);
      sum = 3;
      run_on(choice, [&](const auto& executor) { EXPECT_TRUE(op.run(args, workspace.get(), executor).ok()); });
      if (first == 0) first = sum;
      EXPECT_EQ(sum, first);
      EXPECT_TRUE(workspace.guards_intact());
    }
  }
  EXPECT_GT(first, 4);
}

TEST(AttentionImportance, FaultsAreNamedAndNothingIsWritten) {
  using importance_fault = fault<skim::attention_importance_args>;
  static skim::kv_view sequence;
  const std::vector<importance_fault> faults{
      {"q", [](auto& a) { a.attended.q.data = nullptr; }, {status::null_pointer, "q.data", ""}},
      {"group", [](auto& a) { a.attended.q.extents[1] = 5; }, {status::bad_group, "q.extents[1]", "5"}},
      {"keys", [](auto& a) { a.attended.kv.k.data = nullptr; }, {status::null_pointer, "kv.k.data", ""}},
      {"no lse", [](auto& a) { a.attended.lse = {}; }, {status::null_pointer, "attended.lse.data", ""}},
      {"lse", [](auto& a) { a.attended.lse.extents[0] = 8; }, {status::bad_extent, "lse.extents[0]", "8"}},
      {"sequences",
       [](auto& a) { a.attended.sequences = &sequence; },
       {status::unsupported, "attended.sequence_count", "1"}},
      {"a batch",
       [](auto& a) { a.attended.batch.sequences = 2; },
       {status::unsupported, "attended.batch.sequences", "2"}},
      {"blocks of lists",
       [](auto& a) {
         static const skim::index_lists lists{nullptr, nullptr, 2, 0, -5};
         a.read = &lists;
       },
       {status::bad_extent, "read.block_rows", "-5"}},
      {"first", [](auto& a) { a.first = -1; }, {status::bad_value, "first", "-1"}},
      {"sum", [](auto& a) { a.sum = nullptr; }, {status::null_pointer, "sum", ""}},
  };
  attention_case c = prompt_case(7);
  c.Tk = 40;
  c.G = 3;
  c.Hk = 2;
  attention_inputs inputs(c);
  double sum = 7;
  skim::attention_importance_args good;
  good.attended = inputs.args();
  good.attended.out = {};  // not looked at
  good.sum = &sum;
  const skim::cpu::attention_importance op;
  ASSERT_TRUE(op.check(good).ok());
  aligned_memory workspace(op.workspace_bytes(good, 1) + 64);
  for (const importance_fault& fault : faults) {
    SCOPED_TRACE(fault.name);
    skim::attention_importance_args args = good;
    fault.make(args);
    expect_report(check(args), fault.expected);
    expect_report(op.check(args), fault.expected);
    expect_report(check_indices(args), fault.expected);
    expect_report(op.run(args, workspace.get(), serial), fault.expected);
  }
  const std::size_t needed = op.workspace_bytes(good, 1);
  for (const skim::memory given : {skim::memory{}, skim::memory{workspace.data(), needed - 1},
                                   skim::memory{static_cast<char*>(workspace.data()) + 1, needed}}) {
    expect_report(op.run(good, given, serial), {status::short_workspace, "workspace.bytes", ""});
  }
  std::int32_t counts[] = {41, 0};
  const skim::index_lists lists{counts, counts, 2, 50};
  good.read = &lists;
  expect_report(check_indices(good), {status::bad_index, "lists.indices[r][i]", "41"});
  EXPECT_EQ(sum, 7);
}

TEST(AttentionImportance, CostsReadingTheBeginning) {
  attention_case c = prompt_case(10);
  c.Tk = 500;
  c.G = 3;
  c.Hk = 2;
  c.kv_type = element::bf16;
  attention_inputs inputs(c);
  skim::attention_importance_args args;
  args.attended = inputs.args();
  const skim::cost_estimate cost = skim::cpu::attention_importance{}.cost(args);
  EXPECT_EQ(cost.flops, 2 * 60 * 128 * 24);
  EXPECT_EQ(cost.bytes, 2 * 128 * 24 * 2 + 60 * 24 * 4);
}

}  // namespace
