// SPDX-License-Identifier: Apache-2.0
#include "method.hpp"

#include "error.hpp"
#include "method_parts.hpp"

namespace needle {
namespace {

/// What a prompt's chunks read.
constexpr const char* select_rows[] = {
    "dense",
    "quoka:budget=512",
    "quoka:n=32,budget=512",
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
  return joined(valid) + ", table, table:select, table:evict, table:ffn";
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
  const auto append = [&rows](const auto& table) { rows.insert(rows.end(), std::begin(table), std::end(table)); };
  for (const std::string& text : texts) {
    const bool all = text == "table";
    const bool select = all || text == "table:select", evict = all || text == "table:evict";
    const bool ffn = all || text == "table:ffn";
    if (!select && !evict && !ffn) rows.push_back(text);
    if (select) append(select_rows);
    if (!select && (evict || ffn)) rows.push_back("dense");  // speedup and nll are read against it
    if (evict) append(evict_rows);
    if (ffn) append(ffn_rows);
  }
  std::vector<method> methods;
  for (const std::string& row : rows) methods.push_back(parse_method(row));
  return methods;
}

}  // namespace needle
