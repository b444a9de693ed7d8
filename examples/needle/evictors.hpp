// SPDX-License-Identifier: Apache-2.0
/// \file What the units that instantiate evictors share.
#pragma once

#include "method_parts.hpp"

#include <skim/cpu/eviction.hpp>
#include <skim/cpu/evictor/h2o.hpp>
#include <skim/cpu/evictor/keydiff.hpp>
#include <skim/cpu/evictor/snapkv.hpp>
#include <skim/cpu/evictor/tova.hpp>

namespace needle {

template <class Evictor>
class evictor_of final : public layer_evictor {
 public:
  explicit evictor_of(const Evictor& evictor) : op_{evictor} {}

  bool reads_attention() const override { return decltype(op_)::kernel::reads_attention; }
  skim::report check(const skim::eviction_args& args) const override { return op_.check(args); }
  std::size_t state_bytes(const skim::eviction_args& args) const override { return op_.state_bytes(args); }
  std::size_t workspace_bytes(const skim::eviction_args& args, unsigned workers) const override {
    return op_.workspace_bytes(args, workers);
  }
  skim::report reset(const skim::eviction_args& args, skim::memory state, const executor& threads) const override {
    return op_.reset(args, state, threads);
  }
  skim::report run(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                   skim::memory workspace, const executor& threads) const override {
    return op_.run(args, lists, state, workspace, threads);
  }

 private:
  skim::cpu::eviction<Evictor> op_;
};

template <class Evictor>
evictor_maker evictor_maker_of(const Evictor& evictor) {
  return [evictor](std::uint64_t) { return std::make_unique<evictor_of<Evictor>>(evictor); };
}

/// The evictors that have scores, and so a CAOTE form.
inline const names scored_evictors = {"keydiff", "h2o", "tova", "snapkv"};

/// The parameters that `name`, one of them, takes.
names keys_of_scored(const std::string& name);

/// Reads the budget and what else every evictor may have.
skim::retention parse_kept(const parameters& given, method& result);

skim::snapkv parse_snapkv(const parameters& given, const skim::retention& keep);

/// Calls `then` with the scored evictor `name` and its parameters.
template <class Then>
evictor_maker with_scored(const std::string& name, const parameters& given, method& result, const Then& then) {
  const skim::retention keep = parse_kept(given, result);
  if (name == "h2o") return then(skim::h2o{keep});
  if (name == "tova") return then(skim::tova{keep});
  if (name == "snapkv") return then(parse_snapkv(given, keep));
  result.reads_norms = true;
  const std::string anchor = given.choice("anchor", {"unit_mean", "mean", "median", "pairwise"});
  if (anchor == "mean") return then(skim::keydiff{keep, skim::anchor::mean{}});
  if (anchor == "median") return then(skim::keydiff{keep, skim::anchor::median{}});
  if (anchor == "pairwise") return then(skim::keydiff{keep, skim::anchor::pairwise{}});
  return then(skim::keydiff{keep});
}

/// In units of their own: each compiles every scored evictor once more.
std::vector<part_kind> caote_parts();
std::vector<part_kind> fast_caote_parts();

}  // namespace needle
