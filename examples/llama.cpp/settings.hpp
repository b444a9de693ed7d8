// SPDX-License-Identifier: Apache-2.0
/// \file What the backend is asked for, by the environment or by a host: text, and what it means.
#pragma once

#include <skim/selector/quoka.hpp>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace skim_llama {

struct settings {
  bool on = true;                    ///< off: everything stays with the host
  std::optional<skim::quoka> quoka;  ///< none: dense
  std::string line;                  ///< for people
};

inline constexpr const char* valid_settings =
    "SKIM_QUOKA is unset or 'dense' for dense attention, 'off' for the host's own, or settings of QUOKA's: "
    "budget=512,queries=32,every=64,sinks=4,recent=128 (what they are by default), after 'paper,' of the paper's rule "
    "(budget=1024,queries=16,every=128); SKIM_ROWS is the fewest rows that are taken at sight, by default 65 of "
    "attention and 96 of a product; SKIM_PRODUCTS=off leaves products to the host; SKIM_LEVEL is a level of the "
    "processor";

/// Throws std::invalid_argument.
inline std::int64_t whole_number(const std::string& what, const std::string& digits) {
  if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos) {
    throw std::invalid_argument("'" + what + "' has no whole number of at most nine digits. " + valid_settings);
  }
  return std::stoll(digits);
}

/// Throws std::invalid_argument, which says what is valid.
inline settings settings_of(const std::string& text) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what + ". " + valid_settings); };
  settings read;
  read.on = text != "off";
  read.line = read.on ? "dense attention" : "off";
  if (text.empty() || text == "dense" || text == "off") return read;

  std::istringstream parts(text);
  // Two thirds of the products of `quoka{}`, which chooses by 48 queries for every 64 rows.
  skim::quoka rule{skim::queries::needed(32), skim::retention::preset(512).for_every(64)};
  bool paper = false;
  bool first = true;
  for (std::string part; std::getline(parts, part, ','); first = false) {
    if (part == "paper" && first) {
      paper = true;
      rule = skim::quoka::paper();
      rule.keep.every = 128;  // its chunk; a ubatch is longer
      continue;
    }
    const std::size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    const std::pair<const char*, std::int64_t*> places[] = {{"budget", &rule.keep.count},
                                                            {"queries", &rule.queries.n},
                                                            {"every", &rule.keep.every},
                                                            {"sinks", &rule.keep.sinks},
                                                            {"recent", &rule.keep.recent}};
    std::int64_t* place = nullptr;
    for (const auto& [known, where] : places) {
      if (name == known) place = where;
    }
    if (!place || equals == std::string::npos) refuse("'" + part + "' is no setting");
    *place = whole_number(part, part.substr(equals + 1));
    if (name == "sinks" || name == "recent") rule.keep.shrinks = false;
  }
  // One row is generation, some more are too few to speak for: they read everything.
  rule.keep = rule.keep.dense_under(-1, 16);
  constexpr std::int64_t tokens = 1 << 20;  // of a cache: a budget is checked as it is kept of them
  skim::report answer = skim::check(skim::kept_by(rule, tokens));
  if (answer) answer = rule.check({});
  char why[200];
  if (!answer) refuse(skim::describe(answer, why, sizeof why));
  read.quoka = rule;
  read.line = std::string("QUOKA by ") + (paper ? "the paper's" : "our") + " rule, " + std::to_string(rule.keep.count) +
              " keys, " + std::to_string(rule.queries.n) + " queries";
  return read;
}

}  // namespace skim_llama
