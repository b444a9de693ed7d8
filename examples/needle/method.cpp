// SPDX-License-Identifier: Apache-2.0
#include "method.hpp"

#include "error.hpp"

#include <skim/skim.hpp>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

namespace needle {
namespace {

constexpr const char* table_rows[] = {
    "dense",
    "quoka:queries=all,budget=512",
    "quoka:queries=lowest_cosine,n=16,budget=512",
    "quoka:queries=group_lowest_cosine,n=16,budget=512",
    "quoka:queries=farthest_point,n=16,budget=512",
    "quoka:queries=random,n=16,budget=512",
    "quoka:queries=newest,n=16,budget=512",
    "quoka:queries=lowest_cosine,n=16,budget=512,recent=128,sinks=4",
    "quoka:queries=group_lowest_cosine,n=16,budget=512,recent=128,sinks=4",
    "quoka:queries=farthest_point,n=16,budget=512,recent=128,sinks=4",
    "quoka:queries=farthest_point,n=32,budget=512,recent=128,sinks=4",
    "sink_window:budget=512",
};

using names = std::vector<std::string>;

std::string joined(const names& list) {
  std::string text;
  for (const std::string& name : list) text += (text.empty() ? "" : ", ") + name;
  return text;
}

names split(const std::string& text, char separator) {
  names pieces;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(separator, begin);
    pieces.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return pieces;
    begin = end + 1;
  }
}

/// The `key=value` pairs of one part.
class parameters {
 public:
  /// `pairs` is what follows the part's name and colon; null if there is no colon.
  parameters(const std::string& part, const std::string* pairs, const names& valid) : part_(part) {
    if (!pairs) return;
    for (const std::string& pair : split(*pairs, ',')) {
      const std::size_t equals = pair.find('=');
      const std::string key = pair.substr(0, equals);
      if (equals == std::string::npos) complain("expected key=value, got '" + pair + "'");
      if (std::find(valid.begin(), valid.end(), key) == valid.end()) {
        complain("there is no '" + key +
                 (valid.empty() ? "', it takes no parameters" : "', valid are: " + joined(valid)));
      }
      if (!values_.emplace(key, pair.substr(equals + 1)).second) complain(key + " is given twice");
    }
  }

  bool has(const std::string& key) const { return values_.count(key) != 0; }

  /// One of `valid`, of which the first is the default.
  std::string choice(const std::string& key, const names& valid) const {
    const std::string text = get(key, valid.front());
    for (const std::string& name : valid) {
      if (text == name) return text;
    }
    complain(key + " is '" + text + "', valid are: " + joined(valid));
  }

  std::int64_t count(const std::string& key, std::int64_t least, std::int64_t otherwise) const {
    constexpr std::int64_t most = 1'000'000'000;
    const std::string text = get(key, std::to_string(otherwise));
    char* end = nullptr;
    const long long number = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || text[0] < '0' || text[0] > '9' || number < least || number > most) {
      complain(key + " is '" + text + "', valid are whole numbers from " + std::to_string(least) + " to " +
               std::to_string(most));
    }
    return number;
  }

  double fraction(const std::string& key) const {
    const std::string text = get(key, "1");
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(number > 0 && number <= 1)) {
      complain(key + " is '" + text + "', valid are numbers above 0 and at most 1");
    }
    return number;
  }

  void refuse(const std::string& key, const std::string& reason) const {
    if (has(key)) complain(key + " " + reason);
  }

  [[noreturn]] void complain(const std::string& problem) const { throw error("method " + part_ + ": " + problem); }

 private:
  std::string get(const std::string& key, const std::string& otherwise) const {
    const auto at = values_.find(key);
    return at == values_.end() ? otherwise : at->second;
  }

  std::string part_;
  std::map<std::string, std::string> values_;
};

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

using selector_maker = decltype(method::make_selector);

template <class Selector>
selector_maker maker(const Selector& selector) {
  return [selector](std::uint64_t) { return std::make_unique<selector_of<Selector>>(selector); };
}

template <class Similarity, class Reduce>
selector_maker maker(const skim::quoka<skim::queries::random, Similarity, Reduce>& selector) {
  return [selector](std::uint64_t stream) {
    auto own = selector;
    own.queries.seed = skim::queries::draw(selector.queries.seed, stream);
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
  if (const skim::report answer = skim::check(keep); !answer) {
    char text[200];
    given.complain(skim::describe(answer, text, sizeof text));
  }
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
    return then(skim::queries::all{});
  }
  const std::int64_t n = given.count("n", 1, 16);
  if (rule == "random") {
    return then(skim::queries::random{n, static_cast<std::uint64_t>(given.count("seed", 0, 0))});
  }
  if (rule == "group_lowest_cosine") return then(skim::queries::group_lowest_cosine{n});
  if (rule == "farthest_point") return then(skim::queries::farthest_point{n});
  if (rule == "newest") return then(skim::queries::newest{n});
  return then(skim::queries::lowest_cosine{n});
}

template <class Queries>
selector_maker make_quoka(const Queries& queries, const skim::retention& keep, bool cosine, bool max) {
  using namespace skim;
  if (cosine && max) return maker(quoka{queries, keep});
  if (cosine) return maker(quoka{queries, keep, similarity::cosine{}, reduce::mean{}});
  if (max) return maker(quoka{queries, keep, similarity::dot{}, reduce::max{}});
  return maker(quoka{queries, keep, similarity::dot{}, reduce::mean{}});
}

void parse_quoka(const parameters& given, method& result) {
  result.reads_norms = given.choice("score", {"cosine", "dot"}) == "cosine";
  const bool max = given.choice("reduce", {"max", "mean"}) == "max";
  const std::int64_t sinks = given.count("sinks", 0, 0), recent = given.count("recent", 0, 0);
  const skim::retention keep = parse_retention(given, sinks, recent);
  result.make_selector =
      with_queries(given, [&](const auto& queries) { return make_quoka(queries, keep, result.reads_norms, max); });
}

struct part_kind {
  const char* name;
  const char* question;
  names keys;
  void (*parse)(const parameters&, method&);
};

const std::vector<part_kind>& part_kinds() {
  static const char* const reads = "which keys a chunk reads";
  static const std::vector<part_kind> kinds = {
      {"dense", reads, {}, [](const parameters&, method& result) { result.make_selector = maker(skim::dense{}); }},
      {"quoka",
       reads,
       {"queries", "n", "seed", "budget", "fraction", "sinks", "recent", "score", "reduce"},
       parse_quoka},
      {"sink_window",
       reads,
       {"budget", "fraction", "sinks"},
       [](const parameters& given, method& result) {
         result.make_selector = maker(skim::sink_window{parse_retention(given, given.count("sinks", 0, 4), 0)});
       }},
  };
  return kinds;
}

void parse_part(const std::string& text, method& result, names& answered) {
  const std::size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  std::string known;
  for (const part_kind& kind : part_kinds()) {
    known += kind.name + std::string(", ");
    if (name != kind.name) continue;
    if (std::find(answered.begin(), answered.end(), kind.question) != answered.end()) {
      throw error("method '" + result.text + "' says twice " + kind.question);
    }
    answered.push_back(kind.question);
    const std::string pairs = colon == std::string::npos ? "" : text.substr(colon + 1);
    kind.parse(parameters(name, colon == std::string::npos ? nullptr : &pairs, kind.keys), result);
    return;
  }
  throw error("there is no method '" + name + "', valid are: " + known + "table");
}

}  // namespace

method parse_method(const std::string& text) {
  method result;
  result.text = text;
  result.make_selector = maker(skim::dense{});
  names answered;
  for (const std::string& part : split(text, '+')) parse_part(part, result, answered);
  return result;
}

std::vector<method> parse_methods(const std::vector<std::string>& texts) {
  std::vector<method> methods;
  for (const std::string& text : texts) {
    if (text != "table") {
      methods.push_back(parse_method(text));
      continue;
    }
    for (const char* row : table_rows) methods.push_back(parse_method(row));
  }
  return methods;
}

}  // namespace needle
