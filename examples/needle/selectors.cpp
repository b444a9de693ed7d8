// SPDX-License-Identifier: Apache-2.0
/// \file The selectors that a method can name.
#include "method_parts.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/selector/sink_window.hpp>

#include <algorithm>

namespace needle {
namespace {

template <class Selector>
class selector_of final : public operation_of<layer_selector, skim::cpu::attention<Selector>> {
 public:
  using operation_of<layer_selector, skim::cpu::attention<Selector>>::operation_of;

  skim::policy_needs needs() const override { return this->op_.needs(); }
  std::int64_t list_capacity(const skim::attention_args& args) const override { return this->op_.list_capacity(args); }
  std::int64_t block_rows() const override { return this->op_.block_rows(); }
  std::int64_t keys_read(std::int64_t past) const override {
    return std::min(past, skim::kept_by(this->op_.selector, past).keys(past));
  }
  skim::report select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory workspace,
                      skim::executor_ref threads) const override {
    return this->op_.select(args, lists, {}, workspace, threads);
  }
};

template <class Selector>
std::unique_ptr<layer_selector> make(const Selector& selector) {
  return std::make_unique<selector_of<Selector>>(skim::cpu::attention<Selector>{selector});
}

void parse_amount(const parameters& given, skim::retention& keep, std::int64_t budget) {
  if (given.has("budget")) given.refuse("fraction", "and budget exclude each other");
  if (given.has("fraction")) keep.fraction = given.fraction("fraction");
  keep.count = keep.fraction == 0 ? given.count("budget", 1, budget) : 0;
  keep.dense_below = 0;  // the method decides, so that its accuracy and its speed are its own
}

skim::query_rule parse_queries(const parameters& given) {
  using choice = skim::query_choice;
  const std::pair<const char*, choice> rules[] = {{"needed", choice::needed},
                                                  {"lowest_cosine", choice::lowest_cosine},
                                                  {"group_lowest_cosine", choice::group_lowest_cosine},
                                                  {"farthest_point", choice::farthest_point},
                                                  {"random", choice::random},
                                                  {"newest", choice::newest},
                                                  {"all", choice::all}};
  names valid;
  for (const auto& [name, rule] : rules) valid.push_back(name);
  const std::string chosen = given.choice("queries", valid);
  skim::query_rule queries;
  for (const auto& [name, rule] : rules) {
    if (chosen == name) queries.choice = rule;
  }
  const bool needed = queries.choice == choice::needed;
  const char* const rows = needed ? "own" : "group_means";
  queries.rows = given.choice("rows", {rows, needed ? "group_means" : "own"}) == "own" ? skim::query_rows::own
                                                                                       : skim::query_rows::group_means;
  if (queries.choice == choice::all) given.refuse("n", "has no meaning with queries=all");
  if (queries.choice != choice::random) given.refuse("seed", "has a meaning with queries=random only");
  queries.n = given.count("n", 1, needed ? skim::queries::needed().n : 16);
  queries.seed = static_cast<std::uint64_t>(given.count("seed", 0, 0));
  return queries;
}

/// Our rule's settings with its queries, the paper's with all others.
void parse_quoka(const parameters& given, method& result) {
  const skim::query_rule queries = parse_queries(given);
  const bool ours = queries.choice == skim::query_choice::needed;
  skim::quoka selector = ours ? skim::quoka{} : skim::quoka::paper();
  selector.queries = queries;
  const std::string score =
      given.choice("score", ours ? names{"standardised", "cosine", "dot"} : names{"cosine", "dot", "standardised"});
  selector.similarity = score == "dot"      ? skim::similarity::dot
                        : score == "cosine" ? skim::similarity::cosine
                                            : skim::similarity::standardised;
  selector.reduce = given.choice("reduce", {"max", "mean"}) == "mean" ? skim::reduction::mean : skim::reduction::max;
  selector.smooth = given.count("smooth", 1, selector.smooth);
  skim::retention& keep = selector.keep;
  parse_amount(given, keep, keep.count);
  keep.shrinks = ours && !given.has("sinks") && !given.has("recent");
  keep.sinks = given.count("sinks", 0, keep.sinks);
  keep.recent = given.count("recent", 0, keep.recent);
  keep.every = given.count("every", 0, keep.every);
  result.dense_layers = given.counts("dense_layers");
  given.check(skim::check(skim::kept_by(selector, 0)));
  given.check(selector.check({}));
  result.make_selector = [selector](std::uint64_t stream) {
    skim::quoka own = selector;
    own.queries.seed = skim::draw(selector.queries.seed, stream);
    return make(own);
  };
}

void parse_sink_window(const parameters& given, method& result) {
  skim::sink_window selector{};
  parse_amount(given, selector.keep, 1024);
  selector.keep.sinks = given.count("sinks", 0, 4);
  given.check(skim::check(selector.keep));
  result.make_selector = [selector](std::uint64_t) { return make(selector); };
}

}  // namespace

selector_maker make_dense() {
  return [](std::uint64_t) { return make(skim::dense{}); };
}

std::vector<part_kind> selector_parts() {
  return {
      {"dense", {}, [](const parameters&, method& result) { result.make_selector = make_dense(); }},
      {"quoka",
       {"queries", "rows", "n", "seed", "budget", "fraction", "sinks", "recent", "every", "score", "reduce", "smooth",
        "dense_layers"},
       parse_quoka},
      {"sink_window", {"budget", "fraction", "sinks"}, parse_sink_window},
  };
}

}  // namespace needle
