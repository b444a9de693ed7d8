// SPDX-License-Identifier: Apache-2.0
/// \file The selectors that a method can name.
#include "method_parts.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/cpu/selector/sink_window.hpp>

namespace needle {
namespace {

template <class Selector>
class selector_of final : public layer_selector {
 public:
  explicit selector_of(const Selector& selector) : op_{selector} {}

  skim::report check(const skim::attention_args& args) const override { return op_.check(args); }
  std::int64_t list_capacity(const skim::attention_args& args) const override { return op_.list_capacity(args); }
  std::size_t workspace_bytes(const skim::attention_args& args, unsigned workers) const override {
    return op_.workspace_bytes(args, workers);
  }
  skim::report select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory workspace,
                      const executor& threads) const override {
    return op_.select(args, lists, {}, workspace, threads);
  }

 private:
  skim::cpu::attention<Selector> op_;
};

template <class Selector>
selector_maker maker(const Selector& selector) {
  return [selector](std::uint64_t) { return std::make_unique<selector_of<Selector>>(selector); };
}

template <class Similarity, class Reduce>
selector_maker maker(const skim::quoka<skim::queries::random, Similarity, Reduce>& selector) {
  return [selector](std::uint64_t stream) {
    auto own = selector;
    own.queries.seed = skim::draw(selector.queries.seed, stream);
    return std::make_unique<selector_of<decltype(own)>>(own);
  };
}

skim::retention parse_retention(const parameters& given, std::int64_t sinks, std::int64_t recent) {
  if (given.has("budget")) given.refuse("fraction", "and budget exclude each other");
  skim::retention keep;
  if (given.has("fraction")) {
    keep.fraction = given.fraction("fraction");
  }
  if (keep.fraction == 0) keep.count = given.count("budget", 1, 1024);
  keep.sinks = sinks;
  keep.recent = recent;
  given.check(keep);
  return keep;
}

/// Calls `then` with the query rule that the parameters name.
template <class Then>
selector_maker with_queries(const parameters& given, const Then& then) {
  const std::string rule =
      given.choice("queries", {"lowest_cosine", "group_lowest_cosine", "farthest_point", "random", "newest", "all"});
  if (rule != "random") given.refuse("seed", "has a meaning with queries=random only");
  if (rule == "all") {
    given.refuse("n", "has no meaning with queries=all");
    return then(skim::queries::all());
  }
  const std::int64_t n = given.count("n", 1, 16);
  if (rule == "random") {
    return then(skim::queries::random(n, static_cast<std::uint64_t>(given.count("seed", 0, 0))));
  }
  if (rule == "group_lowest_cosine") return then(skim::queries::group_lowest_cosine(n));
  if (rule == "farthest_point") return then(skim::queries::farthest_point(n));
  if (rule == "newest") return then(skim::queries::newest(n));
  return then(skim::queries::lowest_cosine(n));
}

template <class Queries>
selector_maker make_quoka(const Queries& queries, const skim::retention& keep, bool cosine, bool max) {
  using namespace skim;
  if (cosine && max) return maker(quoka{queries, keep});
  if (cosine) return maker(quoka{queries, keep, similarity::cosine, reduction::mean});
  if (max) return maker(quoka{queries, keep, similarity::dot, reduction::max});
  return maker(quoka{queries, keep, similarity::dot, reduction::mean});
}

void parse_quoka(const parameters& given, method& result) {
  const bool cosine = given.choice("score", {"cosine", "dot"}) == "cosine";
  const bool max = given.choice("reduce", {"max", "mean"}) == "max";
  const std::int64_t sinks = given.count("sinks", 0, 0), recent = given.count("recent", 0, 0);
  const skim::retention keep = parse_retention(given, sinks, recent);
  result.reads_norms |= cosine;
  result.make_selector =
      with_queries(given, [&](const auto& queries) { return make_quoka(queries, keep, cosine, max); });
}

}  // namespace

selector_maker make_dense() {
  return maker(skim::dense{});
}

std::vector<part_kind> selector_parts() {
  return {
      {"dense", {}, [](const parameters&, method& result) { result.make_selector = make_dense(); }},
      {"quoka", {"queries", "n", "seed", "budget", "fraction", "sinks", "recent", "score", "reduce"}, parse_quoka},
      {"sink_window",
       {"budget", "fraction", "sinks"},
       [](const parameters& given, method& result) {
         result.make_selector = maker(skim::sink_window{parse_retention(given, given.count("sinks", 0, 4), 0)});
       }},
  };
}

}  // namespace needle
