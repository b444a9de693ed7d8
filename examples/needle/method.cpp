// SPDX-License-Identifier: Apache-2.0
#include "method.hpp"

#include "error.hpp"
#include "method_parts.hpp"

#include <algorithm>

namespace needle {
namespace {

/// What a prompt's chunks read.
constexpr const char* select_rows[] = {
    "dense",
    "quoka:budget=512",
    "quoka:n=64,every=128,budget=512",
    "quoka:n=32,every=128,budget=512",
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

/// What the cache keeps.
constexpr const char* evict_rows[] = {
    "standard:budget=1024",
    "keydiff:budget=1024",
    "fast_caote(keydiff):budget=1024",
    "snapkv:budget=1024",
    "caote(snapkv):budget=1024",
    "tova:budget=1024",
    "caote(tova):budget=1024",
    "h2o:budget=1024",
    "caote(h2o):budget=1024",
    "evict(sink_window):budget=1024",
    "evict(random):budget=1024",
};

/// Which neurons a chunk computes.
constexpr const char* ffn_rows[] = {
    "fastforward:keep=0.5",
    "fastforward:keep=0.5,compensate=off",
    "oracle:keep=0.5",
    "static_set:keep=0.5",
    "calibrated_set:keep=0.5",
    "calibrated_set:keep=0.5,compensate=off",
    "ffn(random):keep=0.5",
    "fastforward:keep=0.3",
    "fastforward:keep=0.3,schedule=attention",
    "oracle:keep=0.3",
    "oracle:keep=0.3,schedule=attention",
    "static_set:keep=0.3",
    "calibrated_set:keep=0.3",
    "ffn(random):keep=0.3",
    "quoka:queries=farthest_point,n=16,budget=512,recent=128,sinks=4",
    "quoka:queries=farthest_point,n=32,budget=512,recent=128,sinks=4",
    "fastforward:keep=0.5+quoka:queries=farthest_point,n=16,budget=512,recent=128,sinks=4",
    "fastforward:keep=0.5+quoka:queries=farthest_point,n=32,budget=512,recent=128,sinks=4",
};

/// Keys read, by both rules: for a model of one's own.
constexpr const char* budget_rows[] = {
    "dense",
    "quoka:budget=256",
    "quoka:budget=512",
    "quoka:budget=1024",
    "quoka:budget=2048",
    "quoka:queries=lowest_cosine,n=16,budget=256",
    "quoka:queries=lowest_cosine,n=16,budget=512",
    "quoka:queries=lowest_cosine,n=16,budget=1024",
    "quoka:queries=lowest_cosine,n=16,budget=2048",
};

/// Tokens kept, bare and protected.
constexpr const char* bounded_rows[] = {
    "standard:budget=2048",
    "keydiff:budget=2048",
    "keydiff:budget=2048,sinks=4",
    "keydiff:budget=2048,sinks=4,recent=204",
    "keydiff:budget=2048,sinks=4,recent=512",
    "fast_caote(keydiff):budget=2048",
    "caote(keydiff):budget=2048",
    "snapkv:budget=2048",
    "snapkv:budget=2048,sinks=4,recent=204",
    "caote(snapkv):budget=2048",
    "tova:budget=2048",
    "caote(tova):budget=2048",
    "h2o:budget=2048",
    "caote(h2o):budget=2048",
    "standard:budget=1024",
    "keydiff:budget=1024",
    "keydiff:budget=1024,sinks=4,recent=256",
    "snapkv:budget=1024",
    "caote(snapkv):budget=1024",
};

/// Neurons computed, by each rule at each share.
constexpr const char* neuron_rows[] = {
    "oracle:keep=0.5",          "fastforward:keep=0.5", "calibrated_set:keep=0.5", "static_set:keep=0.5",
    "ffn(random):keep=0.5",     "oracle:keep=0.7",      "fastforward:keep=0.7",    "calibrated_set:keep=0.7",
    "static_set:keep=0.7",      "ffn(random):keep=0.7", "oracle:keep=0.85",        "fastforward:keep=0.85",
    "calibrated_set:keep=0.85", "static_set:keep=0.85", "ffn(random):keep=0.85",
};

struct table {
  const char* name;
  bool of_needle_models;  ///< part of `table`
  const char* const* rows;
  std::size_t count;
};
template <std::size_t N>
constexpr table table_of(const char* name, bool of_needle_models, const char* const (&rows)[N]) {
  return {name, of_needle_models, rows, N};
}
constexpr table tables[] = {
    table_of("table:select", true, select_rows),    table_of("table:evict", true, evict_rows),
    table_of("table:ffn", true, ffn_rows),          table_of("table:budgets", false, budget_rows),
    table_of("table:bounded", false, bounded_rows), table_of("table:neurons", false, neuron_rows)};

/// The parts that answer one question, of which a method has at most one.
struct question {
  const char* text;
  std::vector<part_kind> parts;
};

const std::vector<question>& questions() {
  static const std::vector<question> all = {{"which keys a chunk reads", selector_parts()},
                                            {"which tokens the cache keeps", evictor_parts()},
                                            {"which neurons a chunk computes", neuron_parts()}};
  return all;
}

std::string valid_methods() {
  names valid;
  for (const question& each : questions()) {
    for (const part_kind& kind : each.parts) valid.push_back(kind.name);
  }
  valid.push_back("table");
  for (const table& each : tables) valid.push_back(each.name);
  return joined(valid);
}

/// Parses one part and returns its question.
const question* parse_part(const std::string& text, method& result) {
  const std::size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  for (const question& each : questions()) {
    for (const part_kind& kind : each.parts) {
      if (name != kind.name) continue;
      const std::string pairs = colon == std::string::npos ? "" : text.substr(colon + 1);
      kind.parse(parameters(name, colon == std::string::npos ? nullptr : &pairs, kind.keys), result);
      return &each;
    }
  }
  const std::string meant = name == "random" ? " (write evict(random) for an evictor, ffn(random) for neurons)" : "";
  throw error("there is no method '" + name + "'" + meant + ", valid are: " + valid_methods());
}

}  // namespace

method parse_method(const std::string& text) {
  method result;
  result.text = text;
  result.make_selector = make_dense();
  result.make_ffns = make_dense_ffns();
  std::vector<const question*> answered;
  for (const std::string& part : split(text, '+')) {
    const question* const answers = parse_part(part, result);
    for (const question* before : answered) {
      if (before == answers) throw error("method '" + text + "' says twice " + answers->text);
    }
    answered.push_back(answers);
  }
  return result;
}

std::vector<method> parse_methods(const std::vector<std::string>& texts) {
  names rows;
  const auto append = [&rows](const char* const* first, std::size_t count) {
    if (rows.empty() && std::string(first[0]) != "dense")
      rows.push_back("dense");  // what speed and loss are read against
    rows.insert(rows.end(), first, first + count);
  };
  for (const std::string& text : texts) {
    bool found = false;
    for (const table& each : tables) {
      if (text != each.name && !(text == "table" && each.of_needle_models)) continue;
      append(each.rows, each.count);
      found = true;
    }
    if (!found) rows.push_back(text);
  }
  std::vector<method> methods;
  for (const std::string& row : rows) methods.push_back(parse_method(row));
  return methods;
}

}  // namespace needle
