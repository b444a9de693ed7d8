// SPDX-License-Identifier: Apache-2.0
#include "../method.hpp"

#include "../error.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace {

using namespace needle;

/// A cache of `Tk + 128` keys, and a chunk of 128 on it; operations check that there is memory, and touch none.
skim::kv_cache cache_of(std::int64_t Tk) {
  static std::int32_t nothing;
  static std::vector<float> keys_and_values;  // never read, but caches that overlap are refused
  const std::int64_t tokens = Tk + 128, each = tokens * 2 * 64;
  keys_and_values.resize(std::max(keys_and_values.size(), static_cast<std::size_t>(2 * each)));
  float* const keys = keys_and_values.data();
  skim::kv_cache kv = skim::contiguous_cache({keys, {tokens, 2, 64}, skim::element::f32},
                                             {keys + each, {tokens, 2, 64}, skim::element::f32}, tokens);
  kv.positions = &nothing;
  kv.positions_stride = Tk + 128;
  return kv;
}
skim::attention_args arguments(std::int64_t Tk) {
  static float anything = 0;
  skim::attention_args args;
  args.q = {&anything, {128, 8, 64}, skim::element::f32};
  args.out = {&anything, {128, 8, 64}, skim::element::f32};
  args.lse = {&anything, {128, 8}};
  args.kv = cache_of(Tk);
  return args;
}

std::string complaint_about(const std::string& text) {
  try {
    parse_methods({text});
  } catch (const error& problem) {
    return problem.what();
  }
  return "nothing";
}

TEST(method, every_spelling_makes_a_selector_of_its_budget) {
  struct example {
    const char* text;
    std::int64_t keys;  // read of 8000
    bool norms;
  };
  const example examples[] = {
      {"dense", 8000, false},
      {"quoka", 512, false},
      {"quoka:budget=1024", 1024, false},
      {"quoka:fraction=0.25", 2000, false},
      {"quoka:n=32,budget=1,every=0,smooth=5", 1, false},
      {"quoka:n=3,score=cosine,budget=200,sinks=4,recent=128", 200, true},
      {"quoka:queries=lowest_cosine", 1024, true},
      {"quoka:queries=lowest_cosine,fraction=0.25", 2000, true},
      {"quoka:queries=all,rows=own,score=standardised,smooth=3", 1024, false},
      {"quoka:queries=all,budget=512,score=dot", 512, false},
      {"quoka:queries=newest,n=4,reduce=mean", 1024, true},
      {"quoka:queries=random,seed=5,score=dot,reduce=mean", 1024, false},
      {"quoka:queries=group_lowest_cosine,n=16,budget=512,recent=128,sinks=4", 512, true},
      {"quoka:sinks=4,recent=128,budget=132,queries=farthest_point,n=32,reduce=max,score=cosine", 132, true},
      {"sink_window", 1024, false},
      {"sink_window:budget=512,sinks=0", 512, false},
      {"sink_window:fraction=0.5", 4000, false},
  };
  for (const example& each : examples) {
    const method how = parse_method(each.text);
    EXPECT_EQ(how.text, each.text);
    const auto selector = how.make_selector(0);
    EXPECT_EQ(selector->needs().inverse_norms, each.norms) << each.text;
    char text[200];
    EXPECT_TRUE(selector->check(arguments(8000)).ok())
        << each.text << ": " << skim::describe(selector->check(arguments(8000)), text, sizeof text);
    EXPECT_EQ(selector->keys_read(8000), each.keys) << each.text;
  }
}

TEST(method, every_spelling_makes_an_evictor_of_its_budget) {
  struct example {
    const char* text;
    std::int64_t budget;
    bool norms, attention;
  };
  const example examples[] = {
      {"standard", 1024, true, false},
      {"standard:budget=77,compaction=stable", 77, true, false},
      {"standard:budget=77,share=off", 77, true, false},
      {"tova:budget=77,share=layers", 77, false, true},
      {"keydiff", 1024, true, false},
      {"keydiff:budget=77,anchor=mean,recent=9,sinks=2,compaction=stable", 77, true, false},
      {"keydiff:anchor=unit_mean", 1024, true, false},
      {"keydiff:anchor=median", 1024, true, false},
      {"keydiff:anchor=pairwise", 1024, true, false},
      {"h2o:budget=77,recent=9", 77, false, true},
      {"tova:budget=77,sinks=2", 77, false, true},
      {"snapkv:budget=77,window=16,pool=7", 77, false, true},
      {"fast_caote(keydiff):budget=77,sinks=4,recent=20,smooth=9", 77, true, false},
      {"caote(keydiff):budget=77,smooth=63", 77, true, false},
      {"caote(keydiff):budget=77,anchor=mean,joint=on", 77, true, false},
      {"caote(h2o):budget=77,joint=off", 77, false, true},
      {"caote(tova)", 1024, false, true},
      {"caote(snapkv):budget=77,window=16,pool=7", 77, false, true},
      {"fast_caote(keydiff):budget=77", 77, true, false},
      {"fast_caote(h2o):budget=77", 77, false, true},
      {"fast_caote(tova):budget=77", 77, false, true},
      {"fast_caote(snapkv):budget=77,window=77", 77, false, true},
      {"evict(sink_window):budget=77,sinks=0", 77, false, false},
      {"evict(random):budget=77,seed=5", 77, false, false},
      {"keydiff:budget=2048+quoka:budget=512", 2048, true, false},
      {"quoka:budget=512,score=dot+h2o:budget=2048", 2048, false, true},
      {"tova:budget=77+quoka", 77, false, true},
  };
  for (const example& each : examples) {
    const method how = parse_method(each.text);
    EXPECT_EQ(how.budget, each.budget) << each.text;
    ASSERT_TRUE(how.make_evictor) << each.text;
    const auto evictor = how.make_evictor(0);
    EXPECT_EQ(evictor->needs().inverse_norms || how.make_selector(0)->needs().inverse_norms, each.norms) << each.text;
    EXPECT_EQ(evictor->needs().lse, each.attention) << each.text;
    skim::eviction_args args;
    args.kv = cache_of(8000);
    args.new_tokens = 128;
    args.attended = arguments(8000);
    char text[200];
    EXPECT_TRUE(evictor->check(args).ok())
        << each.text << ": " << skim::describe(evictor->check(args), text, sizeof text);
  }
  EXPECT_FALSE(parse_method("quoka").make_evictor);
  EXPECT_EQ(parse_method("h2o").compaction, skim::compaction::refill);
  EXPECT_EQ(parse_method("h2o:compaction=stable").compaction, skim::compaction::stable);
  EXPECT_EQ(parse_method("quoka:budget=512+keydiff").make_selector(0)->keys_read(8000), 512);
  EXPECT_EQ(parse_method("keydiff").make_selector(0)->keys_read(8000), 8000);
}

TEST(method, tables_are_all_their_rows) {
  const auto texts = [](const std::vector<std::string>& given) {
    std::vector<std::string> result;
    for (const method& how : parse_methods(given)) result.push_back(how.text);
    return result;
  };
  const std::vector<std::string> select = texts({"table:select"}), evict = texts({"table:evict"}),
                                 ffn = texts({"table:ffn"});
  ASSERT_EQ(select.size(), 15u);
  EXPECT_EQ(select[0], "dense");
  EXPECT_EQ(select[1], "quoka:budget=512");
  EXPECT_EQ(select[2], "quoka:n=64,every=128,budget=512");
  EXPECT_EQ(select[13], "quoka:queries=farthest_point,n=32,budget=512,recent=128,sinks=4");
  ASSERT_EQ(evict.size(), 12u);
  EXPECT_EQ(evict[0], "dense");
  EXPECT_EQ(evict[1], "standard:budget=1024");
  EXPECT_EQ(evict[3], "fast_caote(keydiff):budget=1024");
  EXPECT_EQ(evict[11], "evict(random):budget=1024");
  ASSERT_EQ(ffn.size(), 19u);
  EXPECT_EQ(ffn[0], "dense");
  EXPECT_EQ(ffn[1], "fastforward:keep=0.5");
  for (const char* const own : {"table:budgets", "table:bounded", "table:neurons"}) {
    EXPECT_EQ(texts({own})[0], "dense");
    const std::vector<std::string> twice = texts({"table:budgets", own});
    EXPECT_EQ(std::count(twice.begin(), twice.end(), "dense"), std::string(own) == "table:budgets" ? 2 : 1);
  }
  std::vector<std::string> both = select;
  both.insert(both.end(), evict.begin() + 1, evict.end());
  both.insert(both.end(), ffn.begin() + 1, ffn.end());
  EXPECT_EQ(texts({"table"}), both);
  const std::string more = "sink_window:budget=7";  // not moved from: GCC 12 warns falsely in C++20
  both.push_back(more);
  EXPECT_EQ(texts({"table", more}), both);
}

TEST(method, complaints_list_what_is_valid) {
  const std::pair<const char*, const char*> examples[] = {
      {"",
       "there is no method '', valid are: dense, quoka, sink_window, standard, keydiff, h2o, tova, snapkv, "
       "caote(keydiff), "},
      {"quok",
       "fast_caote(snapkv), evict(sink_window), evict(random), fastforward, oracle, "
       "static_set, calibrated_set, ffn(random), table, table:select, table:evict, table:ffn, table:budgets, "
       "table:bounded, table:neurons"},
      {"quoka+", "there is no method '', valid are"},
      {"table+dense", "there is no method 'table', valid are"},
      {"dense+quoka", "says twice which keys a chunk reads"},
      {"dense:budget=5", "method dense: there is no 'budget', it takes no parameters"},
      {"quoka:", "expected key=value, got ''"},
      {"quoka:n", "expected key=value, got 'n'"},
      {"quoka:n=4,n=5", "n is given twice"},
      {"quoka:size=5",
       "there is no 'size', valid are: queries, rows, n, seed, budget, fraction, sinks, recent, every, score, reduce, "
       "smooth, dense_layers"},
      {"quoka:dense_layers=", "dense_layers is '', valid are whole numbers from 0 to"},
      {"quoka:dense_layers=0/-1", "dense_layers is '-1', valid are whole numbers"},
      {"quoka:queries=best",
       "queries is 'best', valid are: needed, lowest_cosine, group_lowest_cosine, farthest_point, random, "
       "newest, all"},
      {"quoka:score=cos", "score is 'cos', valid are: standardised, cosine, dot"},
      {"quoka:reduce=min", "reduce is 'min', valid are: max, mean"},
      {"quoka:budget=0", "budget is '0', valid are whole numbers from 1 to"},
      {"quoka:budget=-5", "budget is '-5', valid are whole numbers"},
      {"quoka:budget=5x", "budget is '5x', valid are whole numbers"},
      {"quoka:budget=", "budget is '', valid are whole numbers"},
      {"quoka:budget=99999999999999999999", "valid are whole numbers"},
      {"quoka:n=0", "n is '0', valid are whole numbers from 1"},
      {"quoka:fraction=0", "fraction is '0', valid are numbers above 0"},
      {"quoka:fraction=1.5", "fraction is '1.5', valid are numbers"},
      {"quoka:fraction=nan", "fraction is 'nan', valid are numbers"},
      {"quoka:fraction=0.5,budget=4", "fraction and budget exclude each other"},
      {"quoka:seed=4", "seed has a meaning with queries=random only"},
      {"quoka:queries=all,n=4", "n has no meaning with queries=all"},
      {"quoka:budget=100,recent=128", "keep.recent"},
      {"sink_window:budget=3", "keep.sinks"},
      {"sink_window:recent=3", "there is no 'recent', valid are: budget, fraction, sinks"},
      {"table:both", "there is no method 'table', valid are"},
      {"random",
       "there is no method 'random' (write evict(random) for an evictor, ffn(random) for neurons), valid are: dense"},
      {"random:budget=5", "write evict(random) for an evictor, ffn(random) for neurons"},
      {"caote", "there is no method 'caote', valid are"},
      {"caote(sink_window)", "there is no method 'caote(sink_window)', valid are"},
      {"caote(caote(h2o))", "there is no method"},
      {"caote(h2o", "there is no method"},
      {"evict(h2o)", "there is no method 'evict(h2o)', valid are"},
      {"keydiff+h2o", "says twice which tokens the cache keeps"},
      {"keydiff+dense+h2o", "says twice which tokens the cache keeps"},
      {"keydiff:budget=0", "method keydiff: budget is '0', valid are whole numbers from 1"},
      {"keydiff:fraction=0.5", "there is no 'fraction', valid are: budget, compaction, share, sinks, recent, anchor"},
      {"keydiff:anchor=first", "anchor is 'first', valid are: unit_mean, mean, median, pairwise"},
      {"keydiff:compaction=pages", "compaction is 'pages', valid are: refill, stable"},
      {"standard:share=heads", "share is 'heads', valid are: layers, off"},
      {"keydiff:budget=10,recent=11", "keep.recent"},
      {"h2o:budget=10,sinks=11", "keep.sinks"},
      {"tova:window=5", "there is no 'window', valid are: budget, compaction, share, sinks, recent"},
      {"snapkv:joint=on", "there is no 'joint', valid are: budget, compaction, share, sinks, recent, window, pool"},
      {"snapkv:budget=31", "window is '32', a budget of 31 has room for 31"},
      {"snapkv:budget=33,sinks=2", "window is '32', a budget of 33 beside its sinks has room for 31"},
      {"snapkv:window=0", "window is '0', valid are whole numbers from 1"},
      {"snapkv:pool=4", "pool is '4', valid are odd whole numbers"},
      {"fast_caote(keydiff):smooth=4", "smooth is '4', valid are odd whole numbers"},
      {"caote(tova):joint=on,smooth=3", "joint takes no smooth"},
      {"keydiff:smooth=3", "there is no 'smooth'"},
      {"caote(snapkv):budget=31", "method caote(snapkv): window is '32'"},
      {"caote(h2o):joint=yes", "joint is 'yes', valid are: off, on"},
      {"fast_caote(h2o):joint=on", "there is no 'joint', valid are: budget, compaction, share, sinks, recent"},
      {"evict(sink_window):budget=3", "keep.sinks"},
      {"evict(sink_window):recent=3", "there is no 'recent', valid are: budget, compaction, share, sinks"},
      {"evict(random):sinks=3", "there is no 'sinks', valid are: budget, compaction, share, seed"},
      {"oracle+static_set", "says twice which neurons a chunk computes"},
      {"oracle:keep=0", "method oracle: keep is '0', valid are numbers above 0"},
      {"oracle:keep=\n0.5", "keep is '\n0.5', valid are numbers above 0"},
      {"oracle:compensate=on", "there is no 'compensate', valid are: keep, schedule, decode"},
      {"fastforward:schedule=best", "schedule is 'best', valid are: uniform, attention"},
      {"calibrated_set:compensate=yes", "compensate is 'yes', valid are: on, off"},
      {"ffn(random):n=3", "there is no 'n', valid are: keep, schedule, decode, seed"},
      {"ffn(oracle)", "there is no method 'ffn(oracle)', valid are"},
  };
  for (const auto& [text, expected] : examples) {
    const std::string complaint = complaint_about(text);
    EXPECT_NE(complaint.find(expected), std::string::npos) << text << " -> " << complaint;
  }
}

}  // namespace
