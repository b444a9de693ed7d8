// SPDX-License-Identifier: Apache-2.0
// Evictions of bad input: `check` names the argument, every step answers the same and writes nothing.
#include "support/eviction_small.hpp"
#include "support/faults.hpp"

namespace {

using namespace skim_test;
using skim::compaction;
using skim::retention;
using skim::status;

using eviction_fault = fault<skim::eviction_args>;

// Tq 7, Tk 40, Hq 6, Hk 2, D 8, Dv 4, pages of 4, positions and norms by head.
eviction_case good_eviction() {
  eviction_case c;
  c.call.Hk = 2;
  c.call.G = 3;
  c.call.D = 8;
  c.call.Dv = 4;
  c.call.layout = skim::kv_layout::paged;
  c.call.page_size = 4;
  c.call.positions = positions_kind::holes;
  c.call.inverse_norms = true;
  return c;
}

/// An eviction with all its memory, and what that memory looked like before.
template <class Policy>
struct guarded_eviction {
  eviction_inputs inputs;
  skim::cpu::eviction<Policy> op;
  skim::eviction_args args;
  aligned_memory state, workspace;
  scores_memory scores;
  lists_memory lists;
  skim::serial_executor serial;

  guarded_eviction(const Policy& policy, const eviction_case& c)
      : inputs(c),
        op{policy},
        args(inputs.args()),
        state(op.state_bytes(args) + 64),
        workspace(op.workspace_bytes(args, 1) + 64),
        scores(2, 47),
        lists(2, 47) {
    lists.lists.rows = skim::list_rows(args);
    EXPECT_TRUE(op.check(args).ok());
  }

  /// Every step refuses, and nothing has been written.
  void expect_refused(const expectation& expected) {
    const cache_snapshot before = inputs.snapshot();
    expect_report(op.check(args), expected);
    expect_report(op.reset(args, state.get(), serial), expected);
    expect_report(op.observe(args, state.get(), workspace.get(), serial), expected);
    expect_report(op.score(args, scores.view(), state.get(), workspace.get(), serial), expected);
    expect_report(op.choose(args, scores.view(), lists.lists, workspace.get(), serial), expected);
    expect_report(op.compact(args, lists.lists, state.get(), workspace.get(), serial), expected);
    expect_report(op.run(args, lists.lists, state.get(), workspace.get(), serial), expected);
    EXPECT_TRUE(inputs.snapshot() == before);
    expect_untouched();
  }

  void expect_untouched() {
    EXPECT_TRUE(all(state, 0xff)) << "the state was written";
    EXPECT_TRUE(all(workspace, 0xff)) << "the workspace was written";
    EXPECT_TRUE(scores.untouched_behind(0, 0) && scores.untouched_behind(1, 0));
    const auto untouched = [](std::int32_t x) { return x == lists_memory::untouched; };
    EXPECT_TRUE(std::all_of(lists.indices.begin(), lists.indices.end(), untouched));
    EXPECT_TRUE(std::all_of(lists.counts.begin(), lists.counts.end(), untouched));
    EXPECT_TRUE(state.guards_intact() && workspace.guards_intact());
  }

 private:
  static bool all(aligned_memory& memory, unsigned char value) {
    const auto* const bytes = static_cast<const unsigned char*>(memory.data());
    return std::all_of(bytes, bytes + memory.get().bytes, [value](unsigned char byte) { return byte == value; });
  }
};

const skim::h2o watching{retention::budget(24, 2, 5)};

/// The same cache in pages of `size` tokens, or not in pages: 48 tokens of room.
void set_pages(skim::kv_cache& kv, std::int64_t size) {
  kv.capacity = 48;
  kv.page_size = kv.k.rows = kv.v.rows = size;
}

const std::vector<eviction_fault> argument_faults{
    {"several sequences",
     [](auto& a) { a.attended.sequences = &a.attended.kv; },
     {status::unsupported, "attended.sequences", "set"}},
    {"a batch",
     [](auto& a) { a.attended.batch.sequences = 2; },
     {status::unsupported, "attended.batch.sequences", "2"}},
    {"negative chunk", [](auto& a) { a.new_tokens = -1; }, {status::bad_extent, "new_tokens", "-1"}},
    {"chunk beyond the cache", [](auto& a) { a.new_tokens = 48; }, {status::bad_extent, "kv.tokens", "47"}},
    {"no heads", [](auto& a) { a.kv.heads = 0; }, {status::bad_extent, "kv.heads", "0"}},
    {"capacity", [](auto& a) { a.kv.capacity = 46; }, {status::bad_extent, "kv.capacity", "46"}},
    {"k null", [](auto& a) { a.kv.k.data = nullptr; }, {status::null_pointer, "kv.k.data", ""}},
    {"v null", [](auto& a) { a.kv.v.data = nullptr; }, {status::null_pointer, "kv.v.data", ""}},
    {"k type", [](auto& a) { a.kv.k.type = skim::element::none; }, {status::bad_type, "kv.k.type", "none"}},
    {"k reach",
     [](auto& a) { a.kv.k.page_stride = huge; },
     {status::bad_stride, "kv.k.page_stride", "4611686018427387904"}},
    {"k and v in one place",
     [](auto& a) { a.kv.v.data = a.kv.k.data; },
     {status::bad_value, "kv.v.data (that of kv.k, without values_in_keys)", "1"}},
    {"v a head behind k",
     [](auto& a) { a.kv.v.data = static_cast<char*>(a.kv.k.data) + skim::bytes_of(a.kv.k.type, a.kv.k.head_stride); },
     {status::bad_value, "kv.v.data (among rows of kv.k; bytes behind it)", ""}},
    {"v a row behind k",
     [](auto& a) { a.kv.v.data = static_cast<char*>(a.kv.k.data) + skim::bytes_of(a.kv.k.type, a.kv.k.row_stride); },
     {status::bad_value, "kv.v.data (among rows of kv.k; bytes behind it)", ""}},
    {"table null", [](auto& a) { a.kv.block_table = nullptr; }, {status::null_pointer, "kv.block_table", ""}},
    {"no positions", [](auto& a) { a.kv.positions = nullptr; }, {status::null_pointer, "kv.positions", ""}},
    {"positions overlap",
     [](auto& a) { a.kv.positions_stride = a.kv.capacity - 1; },
     {status::bad_stride, "kv.positions_stride", "51"}},
    {"positions shared by heads that differ",
     [](auto& a) { a.kv.positions_stride = 0; },
     {status::bad_stride, "kv.positions_stride", "0"}},
    {"negative stride of positions",
     [](auto& a) { a.kv.positions_stride = -1000; },
     {status::bad_stride, "kv.positions_stride", "-1000"}},
    {"norms overlap",
     [](auto& a) { a.kv.inverse_norms_stride = 0; },
     {status::bad_stride, "kv.inverse_norms_stride", "0"}},
    {"an unknown compaction", [](auto& a) { a.how = compaction(3); }, {status::bad_value, "how", "3"}},
    {"pages of a contiguous cache",
     [](auto& a) {
       a.how = compaction::pages;
       a.share_heads = true;
       a.kv.layout = skim::kv_layout::contiguous;
       set_pages(a.kv, 48);
     },
     {status::unsupported, "kv.layout (compaction by pages)", "contiguous"}},
    {"pages of heads that differ",
     [](auto& a) { a.how = compaction::pages; },
     {status::bad_value, "share_heads (compaction by pages)", "0"}},
    {"a page and a half",
     [](auto& a) {
       a.how = compaction::pages;
       a.share_heads = true;
       set_pages(a.kv, 16);
     },
     {status::bad_value, "keep.count", "24"}},
    {"pages for protected tokens only",
     [](auto& a) {
       a.how = compaction::pages;
       a.share_heads = true;
       set_pages(a.kv, 12);
     },
     {status::bad_value, "keep.count (sinks, recent and a page that is not full)", "24"}},
    {"pages without a table to write",
     [](auto& a) {
       a.how = compaction::pages;
       a.share_heads = true;
       a.block_table = nullptr;
     },
     {status::null_pointer, "block_table", ""}},
    {"pages with another table",
     [](auto& a) {
       a.how = compaction::pages;
       a.share_heads = true;
       ++a.block_table;
     },
     {status::bad_value, "block_table (to be rewritten)", ""}},
};

const std::vector<std::int32_t> some_budgets{20, 10};

const std::vector<eviction_fault> faults_of_attention{
    {"q null", [](auto& a) { a.attended.q.data = nullptr; }, {status::null_pointer, "q.data", ""}},
    {"q type", [](auto& a) { a.attended.q.type = skim::element::none; }, {status::bad_type, "q.type", "none"}},
    {"q stride", [](auto& a) { a.attended.q.strides[2] = 2; }, {status::bad_stride, "q.strides[2]", "2"}},
    {"q of another chunk",
     [](auto& a) { a.attended.q.extents[0] = 6; },
     {status::bad_extent, "attended.q.extents[0]", "6"}},
    {"group", [](auto& a) { a.attended.q.extents[1] = 5; }, {status::bad_group, "q.extents[1]", "5"}},
    {"D", [](auto& a) { a.attended.q.extents[2] = 7; }, {status::bad_extent, "q.extents[2]", "7"}},
    {"scale", [](auto& a) { a.attended.scale = std::nanf(""); }, {status::bad_value, "scale", "nan"}},
    {"soft cap", [](auto& a) { a.attended.soft_cap = -1; }, {status::bad_value, "soft_cap", "-1"}},
    {"mask", [](auto& a) { a.attended.mask.left = -1; }, {status::bad_value, "mask.left", "-1"}},
    {"no log-sum-exp", [](auto& a) { a.attended.lse.data = nullptr; }, {status::null_pointer, "attended.lse.data", ""}},
    {"lse tokens", [](auto& a) { a.attended.lse.extents[0] = 8; }, {status::bad_extent, "lse.extents[0]", "8"}},
    {"lse heads", [](auto& a) { a.attended.lse.extents[1] = 2; }, {status::bad_extent, "lse.extents[1]", "2"}},
    {"lse stride", [](auto& a) { a.attended.lse.strides[1] = 2; }, {status::bad_stride, "lse.strides[1]", "2"}},
    {"budgets of one list",
     [](auto& a) {
       a.share_heads = true;
       a.budgets = some_budgets.data();
     },
     {status::bad_value, "budgets (with share_heads)", "set"}},
};

class eviction_faults : public testing::TestWithParam<eviction_fault> {};
INSTANTIATE_TEST_SUITE_P(arguments, eviction_faults, testing::ValuesIn(argument_faults));
INSTANTIATE_TEST_SUITE_P(attention, eviction_faults, testing::ValuesIn(faults_of_attention));

TEST_P(eviction_faults, are_named_and_nothing_is_written) {
  guarded_eviction<skim::h2o> eviction(watching, good_eviction());
  eviction.args.block_table = const_cast<std::int32_t*>(eviction.args.kv.block_table);
  GetParam().make(eviction.args);
  eviction.expect_refused(GetParam().expected);
  expect_report(check_indices(eviction.args, watching.keep, watching.needs()), GetParam().expected);
}

/// KeyDiff needs nothing of the attention.
TEST(EvictionCheck, PoliciesThatLookAtKeysNeedNoQueries) {
  guarded_eviction<skim::keydiff<>> eviction(skim::keydiff<>{retention::budget(24)}, good_eviction());
  for (const eviction_fault& fault : faults_of_attention) {
    if (std::string(fault.name) == "budgets of one list") continue;
    skim::eviction_args args = eviction.inputs.args();
    fault.make(args);
    EXPECT_TRUE(eviction.op.check(args).ok()) << fault.name;
  }
}

/// A policy that cannot be, and the report that names why.
template <class Policy>
void expect_policy_refused(const Policy& bad, const expectation& expected) {
  eviction_inputs inputs(good_eviction());
  const skim::cpu::eviction<Policy> op{bad};
  const skim::eviction_args args = inputs.args();
  expect_report(op.check(args), expected);
  aligned_memory state(1 << 16), workspace(1 << 20);
  lists_memory lists(2, 47);
  const cache_snapshot before = inputs.snapshot();
  expect_report(op.run(args, lists.lists, state.get(), workspace.get(), skim::serial_executor{}), expected);
  EXPECT_TRUE(inputs.snapshot() == before);
  EXPECT_EQ(lists.counts[0], lists_memory::untouched);
}

TEST(EvictionCheck, PoliciesAreNamed) {
  using skim::h2o;
  using skim::snapkv;
  const std::int64_t least = std::numeric_limits<std::int64_t>::min(), most = std::numeric_limits<std::int64_t>::max();
  expect_policy_refused(h2o{retention{}}, {status::bad_value, "keep.count", "0"});
  expect_policy_refused(h2o{retention::budget(-3)}, {status::bad_value, "keep.count", "-3"});
  expect_policy_refused(h2o{retention::share(0.5)},
                        {status::bad_value, "keep.fraction (an evictor keeps a count)", "0.5"});
  expect_policy_refused(h2o{retention{10, 0.5, 0, 0}}, {status::bad_value, "keep.count", "10"});
  expect_policy_refused(h2o{retention::budget(10, -1)}, {status::bad_value, "keep.sinks", "-1"});
  expect_policy_refused(h2o{retention::budget(10, 11)}, {status::bad_value, "keep.sinks", "11"});
  expect_policy_refused(h2o{retention::budget(10, 0, -1)}, {status::bad_value, "keep.recent", "-1"});
  expect_policy_refused(h2o{retention::budget(10, 5, 6)}, {status::bad_value, "keep.recent", "6"});
  expect_policy_refused(h2o{retention::budget(10, 1, most)}, {status::bad_value, "keep.recent", "9223372036854775807"});
  expect_policy_refused(skim::keydiff<>{retention::budget(10, 5, 6)}, {status::bad_value, "keep.recent", "6"});
  expect_policy_refused(skim::sink_window{retention::budget(10, 2, 3)},
                        {status::bad_value, "keep.recent (sink_window derives it)", "3"});
  expect_policy_refused(snapkv{retention::budget(20), 0, 5}, {status::bad_value, "window", "0"});
  expect_policy_refused(snapkv{retention::budget(20), 21, 5}, {status::bad_value, "window", "21"});
  expect_policy_refused(snapkv{retention::budget(20, 4), 17, 5}, {status::bad_value, "window", "17"});
  expect_policy_refused(snapkv{retention::budget(20, 4), huge, 5}, {status::bad_value, "window", ""});
  expect_policy_refused(snapkv{retention::budget(20), 4, 0}, {status::bad_value, "pool", "0"});
  expect_policy_refused(snapkv{retention::budget(20), 4, 4}, {status::bad_value, "pool", "4"});
  expect_policy_refused(snapkv{retention::budget(20), 4, 65}, {status::bad_value, "pool", "65"});
  expect_policy_refused(snapkv{retention::budget(20), 4, huge + 1}, {status::bad_value, "pool", ""});
  expect_policy_refused(snapkv{retention::budget(20, least), 4, 5},
                        {status::bad_value, "keep.sinks", "-9223372036854775808"});
  expect_policy_refused(snapkv{retention::budget(least, 3), 4, 5},
                        {status::bad_value, "keep.count", "-9223372036854775808"});
  expect_policy_refused(skim::caote{snapkv{retention::budget(20), 4, 4}}, {status::bad_value, "pool", "4"});
  expect_policy_refused(skim::fast_caote{h2o{retention::budget(10, 11)}}, {status::bad_value, "keep.sinks", "11"});
}

TEST(EvictionCheck, TheJointFormHasOneListAHead) {
  eviction_inputs inputs(good_eviction());
  skim::eviction_args args = inputs.args();
  args.share_heads = true;
  const skim::cpu::eviction<skim::caote<skim::tova>> joint{{skim::tova{retention::budget(20)}, true}};
  expect_report(joint.check(args), {status::unsupported, "share_heads (caote, joint)", "1"});
  EXPECT_TRUE((skim::cpu::eviction<skim::caote<skim::tova>>{{skim::tova{retention::budget(20)}}}.check(args).ok()));
}

// Memory.

TEST(EvictionMemory, ThatIsShortIsNamedWithItsSize) {
  guarded_eviction<skim::h2o> eviction(watching, good_eviction());
  const auto expect_short = [&](const skim::report& got, status code, const char* argument, std::size_t needed,
                                std::size_t given) {
    expect_report(got, {code, argument, std::to_string(given)});
    EXPECT_EQ(got.expected.whole, static_cast<std::int64_t>(needed));
  };
  const skim::eviction_args& args = eviction.args;
  const std::size_t state = eviction.op.state_bytes(args), scratch = eviction.op.workspace_bytes(args, 1);
  ASSERT_GT(state, 0u);
  ASSERT_GT(scratch, 0u);
  const skim::memory good_state = eviction.state.get(), good_scratch = eviction.workspace.get();
  const skim::serial_executor& serial = eviction.serial;
  const auto expect_every_step = [&](skim::memory given_state, skim::memory given_scratch, status code,
                                     const char* argument, std::size_t needed, std::size_t given) {
    const auto& lists = eviction.lists.lists;
    expect_short(eviction.op.observe(args, given_state, given_scratch, serial), code, argument, needed, given);
    expect_short(eviction.op.score(args, eviction.scores.view(), given_state, given_scratch, serial), code, argument,
                 needed, given);
    expect_short(eviction.op.compact(args, lists, given_state, given_scratch, serial), code, argument, needed, given);
    expect_short(eviction.op.run(args, lists, given_state, given_scratch, serial), code, argument, needed, given);
    if (code == status::short_state) {
      expect_short(eviction.op.reset(args, given_state, serial), code, argument, needed, given);
    } else {
      expect_short(eviction.op.choose(args, eviction.scores.view(), lists, given_scratch, serial), code, argument,
                   needed, given);
    }
  };
  const cache_snapshot before = eviction.inputs.snapshot();
  const auto misaligned = [](skim::memory whole, std::size_t bytes) {
    return skim::memory{static_cast<char*>(whole.data) + 4, bytes};
  };
  expect_every_step({good_state.data, state - 1}, good_scratch, status::short_state, "state.bytes", state, state - 1);
  expect_every_step({}, good_scratch, status::short_state, "state.bytes", state, 0);
  expect_every_step(misaligned(good_state, state), good_scratch, status::short_state, "state.bytes", state, state);
  expect_every_step(good_state, {good_scratch.data, scratch - 1}, status::short_workspace, "workspace.bytes", scratch,
                    scratch - 1);
  expect_every_step(good_state, {}, status::short_workspace, "workspace.bytes", scratch, 0);
  expect_every_step(good_state, misaligned(good_scratch, scratch), status::short_workspace, "workspace.bytes", scratch,
                    scratch);
  EXPECT_TRUE(eviction.inputs.snapshot() == before);
  eviction.expect_untouched();
  EXPECT_TRUE(eviction.op.reset(args, {good_state.data, state}, serial).ok());
  EXPECT_TRUE(
      eviction.op.run(args, eviction.lists.lists, {good_state.data, state}, {good_scratch.data, scratch}, serial).ok());
}

/// A call that nobody has memory for yet: shapes alone.
struct shape_call {
  std::int64_t heads = 1, group = 1, D = 1, Dv = 1, capacity = 0, tokens = 0, new_tokens = 0;

  skim::eviction_args args() const {
    skim::eviction_args args;
    args.kv = contiguous_cache(skim::tensor_view<skim::bf16, 3>(nullptr, {capacity, heads, D}),
                               skim::tensor_view<skim::bf16, 3>(nullptr, {capacity, heads, Dv}), tokens);
    args.new_tokens = new_tokens;
    args.attended.q = skim::tensor_view<float, 3>(nullptr, {new_tokens, heads * group, D});
    return args;
  }
};

/// Sizes are for the longest call: one with fewer tokens, new tokens or workers needs no more. They are defined up to the
/// largest shapes, and 0 for what is no call.
TEST(EvictionMemory, SmallerCallsNeedNoMore) {
  std::mt19937 random(1);
  const auto draw = [&random](std::int64_t most) {  // of any magnitude
    const std::int64_t bound = std::max<std::int64_t>(most >> random() % 32, 1);
    return std::min(most, static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bound)) + 1);
  };
  for (int i = 0; i < 300; ++i) {
    shape_call large;
    large.heads = draw(65536);
    large.group = draw(std::min<std::int64_t>(16, 65536 / large.heads));
    large.D = draw(4096);
    large.Dv = draw(4096);
    large.capacity = draw(2147483647);
    large.tokens = draw(large.capacity);
    large.new_tokens = draw(std::min(large.tokens, 2147483647 / (large.heads * large.group)));
    shape_call small = large;
    small.tokens = draw(large.tokens);
    small.new_tokens = draw(std::min(large.new_tokens, small.tokens));
    const unsigned workers = static_cast<unsigned>(draw(4294967295)), fewer = static_cast<unsigned>(draw(workers));
    for_every_policy(retention::budget(30, 2), [&](const auto& policy) {
      const skim::cpu::eviction<std::decay_t<decltype(policy)>> op{policy};
      ASSERT_TRUE(op.check_shape(large.args()).ok());
      EXPECT_GT(op.workspace_bytes(large.args(), 1), 0u);
      EXPECT_LE(op.workspace_bytes(small.args(), fewer), op.workspace_bytes(large.args(), workers));
      EXPECT_EQ(op.state_bytes(small.args()), op.state_bytes(large.args()));
    });
  }
  for (const std::int64_t wrong : {std::numeric_limits<std::int64_t>::min(), std::int64_t{-1}, huge}) {
    for (std::int64_t shape_call::*const member :
         {&shape_call::heads, &shape_call::D, &shape_call::Dv, &shape_call::tokens, &shape_call::new_tokens}) {
      shape_call call{2, 1, 8, 8, 100, 50, 10};
      call.*member = wrong;
      for_every_policy(retention::budget(30, 2), [&](const auto& policy) {
        const skim::cpu::eviction<std::decay_t<decltype(policy)>> op{policy};
        skim::eviction_args args = call.args();
        args.attended.q.extents[1] = 4;
        EXPECT_EQ(op.workspace_bytes(args, 8), 0u);
        EXPECT_EQ(op.state_bytes(args), 0u);
      });
    }
  }
}

/// Exactly the bytes that were asked for, for every policy: what lies around them stays (and sanitizers watch).
TEST(EvictionMemory, IsEnough) {
  const retention keep = retention::budget(24, 2, 5);
  const auto expect_enough = [](const auto& policy) {
    for (const compaction how : {compaction::refill, compaction::stable, compaction::pages}) {
      eviction_case c = good_eviction();
      c.how = how;
      c.share_heads = how == compaction::pages;
      eviction_inputs inputs(c);
      eviction_run<std::decay_t<decltype(policy)>> run(policy, inputs.args());
      lists_memory kept(skim::list_rows(run.args), run.op.list_capacity(run.args));
      EXPECT_EQ(run.run(kept).taken, skim::path::sparse);
      EXPECT_TRUE(run.guards_intact());
      EXPECT_TRUE(kept.guards_intact());
    }
  };
  expect_enough(watching);
  expect_enough(skim::tova{keep});
  expect_enough(skim::snapkv{keep, 6, 3});
  expect_enough(skim::keydiff<>{keep});
  expect_enough(skim::keydiff<skim::anchor::median>{keep});
  expect_enough(skim::keydiff<skim::anchor::pairwise>{keep});
  expect_enough(skim::caote{watching});
  expect_enough(skim::fast_caote{skim::keydiff<skim::anchor::mean>{keep}});
  expect_enough(skim::random_tokens{keep});
  expect_enough(skim::sink_window{retention::budget(24, 2)});
  expect_enough(hashed_tokens<true>{keep});
}

// Scores and lists.

TEST(EvictionLists, AreNamed) {
  guarded_eviction<skim::h2o> eviction(watching, good_eviction());
  const cache_snapshot before = eviction.inputs.snapshot();
  const auto expect_fault = [&](const std::function<void(skim::index_lists&)>& make, const expectation& expected) {
    skim::index_lists lists = eviction.lists.lists;
    make(lists);
    const skim::memory state = eviction.state.get(), scratch = eviction.workspace.get();
    expect_report(eviction.op.choose(eviction.args, eviction.scores.view(), lists, scratch, eviction.serial), expected);
    expect_report(eviction.op.compact(eviction.args, lists, state, scratch, eviction.serial), expected);
    expect_report(eviction.op.run(eviction.args, lists, state, scratch, eviction.serial), expected);
  };
  expect_fault([](auto& l) { l.rows = 1; }, {status::bad_extent, "lists.rows", "1"});
  expect_fault([](auto& l) { l.capacity = 23; }, {status::bad_extent, "lists.capacity", "23"});
  expect_fault([](auto& l) { l.counts = nullptr; }, {status::null_pointer, "lists.counts", ""});
  expect_fault([](auto& l) { l.indices = nullptr; }, {status::null_pointer, "lists.indices", ""});
  EXPECT_TRUE(eviction.inputs.snapshot() == before);
  eviction.expect_untouched();
}

TEST(EvictionScores, AreNamed) {
  guarded_eviction<skim::h2o> eviction(watching, good_eviction());
  using view = skim::tensor_view<float, 2>;
  const auto expect_fault = [&](const std::function<void(view&)>& make, const expectation& expected) {
    view scores = eviction.scores.view();
    make(scores);
    const skim::memory state = eviction.state.get(), scratch = eviction.workspace.get();
    expect_report(eviction.op.score(eviction.args, scores, state, scratch, eviction.serial), expected);
    expect_report(eviction.op.choose(eviction.args, scores, eviction.lists.lists, scratch, eviction.serial), expected);
  };
  expect_fault([](view& s) { s.extents[0] = 1; }, {status::bad_extent, "scores.extents[0]", "1"});
  expect_fault([](view& s) { s.extents[0] = 3; }, {status::bad_extent, "scores.extents[0]", "3"});
  expect_fault([](view& s) { s.extents[1] = 46; }, {status::bad_extent, "scores.extents[1]", "46"});
  expect_fault([](view& s) { s.extents[1] = -47; }, {status::bad_extent, "scores.extents[1]", "-47"});
  expect_fault([](view& s) { s.strides[1] = 2; }, {status::bad_stride, "scores.strides[1]", "2"});
  expect_fault([](view& s) { s.strides[0] = huge; }, {status::bad_stride, "scores.strides[0]", ""});
  expect_fault([](view& s) { s.data = nullptr; }, {status::null_pointer, "scores.data", ""});
  eviction.expect_untouched();
}

TEST(PoolScores, NamesItsArguments) {
  std::vector<float> values(12, 1.0f), pooled(6, -7.0f);
  using view = skim::tensor_view<float, 2>;
  const auto expect_fault = [&](const view& from, const view& to, const expectation& expected) {
    expect_report(skim::cpu::pool_scores(from, to, skim::serial_executor{}), expected);
    EXPECT_EQ(pooled, std::vector<float>(6, -7.0f));
  };
  const view good(values.data(), {2, 6}), to(pooled.data(), {1, 6});
  expect_fault(view(nullptr, {2, 6}), to, {status::null_pointer, "scores.data", ""});
  expect_fault(good, view(nullptr, {1, 6}), {status::null_pointer, "pooled.data", ""});
  expect_fault(good, view(pooled.data(), {1, 5}), {status::bad_extent, "pooled.extents[1]", "5"});
  expect_fault(good, view(pooled.data(), {2, 3}), {status::bad_extent, "pooled.extents[0]", "2"});
  expect_fault(view(values.data(), {0, 6}), to, {status::bad_extent, "scores.extents[0]", "0"});
  EXPECT_TRUE(skim::cpu::pool_scores(good, to, skim::serial_executor{}).ok());
  EXPECT_EQ(pooled, std::vector<float>(6, 1.0f));
}

// What `check` may not read.

TEST(EvictionCheck, FollowsNoPointer) {
  guarded_eviction<skim::h2o> eviction(watching, good_eviction());
  skim::eviction_args args = eviction.args;
  std::uintptr_t address = 0;  // K and V may not overlap
  const auto nowhere = [&](auto*& pointer) {
    pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(address += 1 << 24);
  };
  nowhere(args.attended.q.data);
  nowhere(args.attended.out.data);
  nowhere(args.attended.lse.data);
  nowhere(args.attended.sink_logits);
  nowhere(args.kv.k.data);
  nowhere(args.kv.v.data);
  nowhere(args.kv.block_table);
  nowhere(args.kv.lengths);
  nowhere(args.kv.positions);
  nowhere(args.kv.inverse_norms);
  nowhere(args.budgets);
  nowhere(args.read);
  EXPECT_TRUE(eviction.op.check(args).ok());
  EXPECT_GT(eviction.op.workspace_bytes(args, 2), 0u);
  EXPECT_GT(eviction.op.state_bytes(args), 0u);
  EXPECT_EQ(eviction.op.list_capacity(args), 24);
  EXPECT_GT(eviction.op.cost(args).flops, 0);
}

TEST(EvictionIndices, AreReadByCheckIndices) {
  guarded_eviction<skim::h2o> eviction(watching, good_eviction());
  const retention keep = watching.keep;
  const skim::policy_needs needs = watching.needs();
  skim::eviction_args args = eviction.args;
  ASSERT_TRUE(check_indices(args, keep, needs).ok());
  const std::int32_t long_lengths[] = {47, 48}, short_lengths[] = {47, 6}, uneven[] = {47, 40};
  args.kv.lengths = long_lengths;
  expect_report(check_indices(args, keep, needs), {status::bad_index, "kv.lengths[h]", "48"});
  args.kv.lengths = short_lengths;
  expect_report(check_indices(args, keep, needs), {status::bad_index, "kv.lengths[h]", "6"});
  args.kv.lengths = uneven;
  EXPECT_TRUE(check_indices(args, keep, needs).ok());
  args.share_heads = true;
  expect_report(check_indices(args, keep, needs), {status::bad_index, "kv.lengths[h] (with share_heads)", "40"});

  args = eviction.args;
  const std::int32_t low[] = {24, 6}, high[] = {25, 24}, right[] = {24, 7};
  args.budgets = low;  // two sinks and five recent tokens stay
  expect_report(check_indices(args, keep, needs), {status::bad_index, "budgets[h]", "6"});
  args.budgets = high;
  expect_report(check_indices(args, keep, needs), {status::bad_index, "budgets[h]", "25"});
  args.budgets = right;
  EXPECT_TRUE(check_indices(args, keep, needs).ok());
  const std::int32_t none[] = {1, 0};
  args.budgets = none;
  expect_report(check_indices(args, retention::budget(24), needs), {status::bad_index, "budgets[h]", "0"});

  args = eviction.args;
  std::vector<std::int32_t> table(args.kv.block_table, args.kv.block_table + args.kv.capacity / 4);
  table[3] = static_cast<std::int32_t>(args.kv.pages);
  args.kv.block_table = table.data();
  expect_report(check_indices(args, keep, needs),
                {status::bad_index, "kv.block_table[i]", std::to_string(args.kv.pages)});

  args = eviction.args;
  std::int32_t slots[] = {3, 3, 4, 0, 1, 2}, counts[] = {3, 3};
  const skim::index_lists read{slots, counts, 2, 3};
  args.read = &read;
  expect_report(check_indices(args, keep, needs), {status::bad_index, "lists.indices[r][i]", "3"});
  EXPECT_TRUE(check_indices(args, keep, {}).ok()) << "who looks at keys alone reads no list";
  slots[1] = 4;
  slots[2] = 40;  // the chunk's own
  expect_report(check_indices(args, keep, needs), {status::bad_index, "lists.indices[r][i]", "40"});
  slots[2] = 39;
  EXPECT_TRUE(check_indices(args, keep, needs).ok());
}

// The bounded cache.

TEST(BoundedCache, RefusesChunksWithoutRoom) {
  cache_shape shape{2, 8, 4, 20};
  shape.positions = true;
  cache_storage storage(shape);
  skim::cpu::bounded_cache<skim::keydiff<>> cache;
  cache.op.evictor.keep = retention::budget(12);
  cache.kv() = storage.view(0);
  const std::vector<float> rows = normal_values(21 * 2 * 8, 1);
  const auto chunk = [&](std::int64_t Tq, std::int64_t dim) {
    return skim::tensor_view<const float, 3>(rows.data(), {Tq, 2, dim});
  };
  const skim::serial_executor serial;
  ASSERT_TRUE(cache.append(chunk(9, 8), chunk(9, 4), serial).ok());
  const std::vector<unsigned char> k = storage.k_bytes();
  const auto expect_refused = [&](const skim::report& got, const expectation& expected) {
    expect_report(got, expected);
    EXPECT_EQ(cache.kv().tokens, 9);
    EXPECT_EQ(cache.position, 9);
    EXPECT_EQ(storage.k_bytes(), k);
  };
  const skim::report full = cache.append(chunk(12, 8), chunk(12, 4), serial);
  expect_refused(full, {status::bad_extent, "k.extents[0]", "12"});
  EXPECT_EQ(full.expected.whole, 11);
  expect_refused(cache.append(chunk(3, 7), chunk(3, 4), serial), {status::bad_extent, "k.extents[2]", "7"});
  expect_refused(cache.append(chunk(3, 8), chunk(2, 4), serial), {status::bad_extent, "v.extents[0]", "2"});
  const std::int32_t budgets[] = {12, 6};
  cache.settings.budgets = budgets;
  expect_refused(cache.append(chunk(3, 8), chunk(3, 4), serial), {status::null_pointer, "lengths", ""});
  cache.settings.budgets = nullptr;

  expect_refused(cache.evict({}, nullptr, {}, serial), {status::short_workspace, "workspace.bytes", "0"});
  expect_refused(cache.observe({}, nullptr, {}, serial), {status::short_workspace, "workspace.bytes", "0"});
  EXPECT_EQ(cache.settings.new_tokens, 9) << "the chunk waits for who observes it";
}

}  // namespace
