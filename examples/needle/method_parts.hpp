// SPDX-License-Identifier: Apache-2.0
/// \file The parts that a method is written in: their names, and the parameters that they take.
///
/// Selectors, evictors and FFNs have a translation unit each, because each instantiates kernels by the dozen.
#pragma once

#include "method.hpp"

#include <skim/neuron_selector/fastforward.hpp>

#include <map>
#include <set>

namespace needle {

using names = std::vector<std::string>;

std::string joined(const names& list);
names split(const std::string& text, char separator);

/// The `key=value` pairs of one part.
class parameters {
 public:
  /// `pairs` is what follows the part's name and colon; null if there is no colon.
  parameters(const std::string& part, const std::string* pairs, const names& valid);

  bool has(const std::string& key) const { return values_.count(key) != 0; }

  /// One of `valid`, of which the first is the default.
  std::string choice(const std::string& key, const names& valid) const;
  std::int64_t count(const std::string& key, std::int64_t least, std::int64_t otherwise) const;
  /// Whole numbers with `/` between them, such as 0/7/8; none if it is not given.
  std::set<std::int64_t> counts(const std::string& key) const;
  std::int64_t odd_count(const std::string& key, std::int64_t otherwise) const;
  double fraction(const std::string& key, const char* otherwise = "1") const;

  void refuse(const std::string& key, const std::string& reason) const;
  void check(const skim::report& answer) const;
  [[noreturn]] void complain(const std::string& problem) const;

 private:
  std::int64_t number(const std::string& key, const std::string& text, std::int64_t least) const;
  std::string get(const std::string& key, const std::string& otherwise) const;

  std::string part_;
  std::map<std::string, std::string> values_;
};

struct part_kind {
  std::string name;
  names keys;
  std::function<void(const parameters& given, method& result)> parse;
};

/// `Base` for the operation `Op`: what all three kinds have in common.
template <class Base, class Op>
class operation_of : public Base {
 public:
  using arguments = typename Base::arguments;

  explicit operation_of(const Op& op) : op_(op) {}

  skim::report check(const arguments& args) const override { return op_.check(args); }
  std::size_t state_bytes(const arguments& args) const override { return op_.state_bytes(args); }
  std::size_t workspace_bytes(const arguments& args, unsigned workers) const override {
    return op_.workspace_bytes(args, workers);
  }
  skim::report reset(const arguments& args, skim::memory state, skim::executor_ref threads) const override {
    return op_.reset(args, state, threads);
  }

 protected:
  Op op_;
};

selector_maker make_dense();
std::vector<part_kind> selector_parts();
std::vector<part_kind> evictor_parts();
ffn_maker make_dense_ffns();
/// Dense, but for one layer.
ffn_maker make_dense_ffns_but(std::int64_t layer, const skim::fastforward& sparse);
std::vector<part_kind> neuron_parts();

}  // namespace needle
