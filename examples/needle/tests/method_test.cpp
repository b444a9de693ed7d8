// SPDX-License-Identifier: Apache-2.0
#include "../method.hpp"

#include "../error.hpp"

#include <gtest/gtest.h>

namespace {

using namespace needle;

/// Arguments of a chunk of 128 behind `Tk` keys; no memory, only shapes are asked about.
skim::attention_args arguments(std::int64_t Tk) {
  static float anything = 0;
  skim::attention_args args;
  args.q = {&anything, {128, 8, 64}, skim::element::f32};
  args.out = {&anything, {128, 8, 64}, skim::element::f32};
  args.kv = skim::contiguous_kv({&anything, {Tk + 128, 2, 64}, skim::element::f32},
                                {&anything, {Tk + 128, 2, 64}, skim::element::f32}, Tk + 128);
  args.dense_below = 0;
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
      {"quoka", 1024, true},
      {"quoka:budget=512", 512, true},
      {"quoka:fraction=0.25", 2000, true},
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
    EXPECT_EQ(how.reads_norms, each.norms) << each.text;
    const auto selector = how.make_selector(0);
    EXPECT_TRUE(selector->check(arguments(8000)).ok()) << each.text;
    EXPECT_EQ(selector->list_capacity(arguments(8000)), each.keys) << each.text;
  }
}

TEST(method, table_is_every_row) {
  const std::vector<method> methods = parse_methods({"table", "sink_window:budget=7"});
  ASSERT_EQ(methods.size(), 13u);
  EXPECT_EQ(methods[0].text, "dense");
  EXPECT_EQ(methods[10].text, "quoka:queries=farthest_point,n=32,budget=512,recent=128,sinks=4");
  EXPECT_EQ(methods[12].text, "sink_window:budget=7");
}

TEST(method, complaints_list_what_is_valid) {
  const std::pair<const char*, const char*> examples[] = {
      {"", "there is no method '', valid are: dense, quoka, sink_window, table"},
      {"quok", "there is no method 'quok', valid are: dense, quoka, sink_window, table"},
      {"quoka+", "there is no method '', valid are"},
      {"table+dense", "there is no method 'table', valid are"},
      {"dense+quoka", "says twice which keys a chunk reads"},
      {"dense:budget=5", "method dense: there is no 'budget', it takes no parameters"},
      {"quoka:", "expected key=value, got ''"},
      {"quoka:n", "expected key=value, got 'n'"},
      {"quoka:n=4,n=5", "n is given twice"},
      {"quoka:size=5",
       "there is no 'size', valid are: queries, n, seed, budget, fraction, sinks, recent, score, reduce"},
      {"quoka:queries=best",
       "queries is 'best', valid are: lowest_cosine, group_lowest_cosine, farthest_point, random, "
       "newest, all"},
      {"quoka:score=cos", "score is 'cos', valid are: cosine, dot"},
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
  };
  for (const auto& [text, expected] : examples) {
    const std::string complaint = complaint_about(text);
    EXPECT_NE(complaint.find(expected), std::string::npos) << text << " -> " << complaint;
  }
}

}  // namespace
