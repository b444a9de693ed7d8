// SPDX-License-Identifier: Apache-2.0
/// \file The evictors that a method can name.
#include "method_parts.hpp"

#include <skim/cpu/eviction.hpp>
#include <skim/cpu/evictor/caote.hpp>
#include <skim/cpu/evictor/h2o.hpp>
#include <skim/cpu/evictor/keydiff.hpp>
#include <skim/cpu/evictor/random_tokens.hpp>
#include <skim/cpu/evictor/snapkv.hpp>
#include <skim/cpu/evictor/tova.hpp>
#include <skim/evictor/standard.hpp>
#include <skim/selector/sink_window.hpp>

namespace needle {
namespace {

template <class Evictor>
class evictor_of final : public operation_of<layer_evictor, skim::cpu::eviction<Evictor>> {
 public:
  using operation_of<layer_evictor, skim::cpu::eviction<Evictor>>::operation_of;

  skim::policy_needs needs() const override { return this->op_.needs(); }
  skim::report run(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                   skim::memory workspace, skim::executor_ref threads) const override {
    return this->op_.run(args, lists, state, workspace, threads);
  }
  skim::report observe(const skim::eviction_args& args, skim::memory state, skim::memory workspace,
                       skim::executor_ref threads) const override {
    return this->op_.observe(args, state, workspace, threads);
  }
  skim::report score(const skim::eviction_args& args, const skim::tensor_view<float, 2>& scores, skim::memory state,
                     skim::memory workspace, skim::executor_ref threads) const override {
    return this->op_.score(args, scores, state, workspace, threads);
  }
  skim::report choose(const skim::eviction_args& args, const skim::tensor_view<const float, 2>& scores,
                      const skim::index_lists& lists, skim::memory workspace,
                      skim::executor_ref threads) const override {
    return this->op_.choose(args, scores, lists, workspace, threads);
  }
  skim::report compact(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                       skim::memory workspace, skim::executor_ref threads) const override {
    return this->op_.compact(args, lists, state, workspace, threads);
  }
};

template <class Evictor>
evictor_maker maker(const Evictor& evictor) {
  return
      [evictor](std::uint64_t) { return std::make_unique<evictor_of<Evictor>>(skim::cpu::eviction<Evictor>{evictor}); };
}

/// What every evictor may have.
const names common_keys = {"budget", "compaction", "share"};

void parse_common(const parameters& given, method& result, bool shared = false) {
  result.budget = given.count("budget", 1, 1024);
  const bool stable = given.choice("compaction", {"refill", "stable"}) == "stable";
  result.compaction = stable ? skim::compaction::stable : skim::compaction::refill;
  const names choices = shared ? names{"layers", "off"} : names{"off", "layers"};
  result.shared = given.choice("share", choices) == "layers";
}

/// The common settings, and which tokens are protected.
skim::retention parse_kept(const parameters& given, method& result, std::int64_t sinks = 0) {
  parse_common(given, result);
  const auto keep = skim::retention::budget(result.budget, given.count("sinks", 0, sinks), given.count("recent", 0, 0));
  given.check(skim::check(keep));
  return keep;
}

skim::snapkv parse_snapkv(const parameters& given, const skim::retention& keep) {
  const skim::snapkv evictor{keep, given.count("window", 1, 32), given.odd_count("pool", 5)};
  if (evictor.window > keep.count - keep.sinks) {
    given.complain("window is '" + std::to_string(evictor.window) + "', a budget of " + std::to_string(keep.count) +
                   (keep.sinks > 0 ? " beside its sinks" : "") + " has room for " +
                   std::to_string(keep.count - keep.sinks));
  }
  return evictor;
}

/// Calls `then` with the evictor `name`, one of those that have scores and so a CAOTE form.
template <class Then>
evictor_maker with_scored(const std::string& name, const parameters& given, method& result, const Then& then) {
  const skim::retention keep = parse_kept(given, result);
  if (name == "h2o") return then(skim::h2o{keep});
  if (name == "tova") return then(skim::tova{keep});
  if (name == "snapkv") return then(parse_snapkv(given, keep));
  const std::string anchor = given.choice("anchor", {"unit_mean", "mean", "median", "pairwise"});
  if (anchor == "mean") return then(skim::keydiff{keep, skim::anchor::mean{}});
  if (anchor == "median") return then(skim::keydiff{keep, skim::anchor::median{}});
  if (anchor == "pairwise") return then(skim::keydiff{keep, skim::anchor::pairwise{}});
  return then(skim::keydiff{keep});
}

/// `form(base)` of each evictor that has scores; `wrap(given)` says what its evictor becomes.
template <class Wrap>
void add_scored(std::vector<part_kind>& parts, const std::string& form, const names& more, const Wrap& wrap) {
  for (const char* base : {"keydiff", "h2o", "tova", "snapkv"}) {
    const std::string name = base;
    names keys = {"sinks", "recent"};
    keys.insert(keys.begin(), common_keys.begin(), common_keys.end());
    if (name == "keydiff") keys.push_back("anchor");
    if (name == "snapkv") keys.insert(keys.end(), {"window", "pool"});
    keys.insert(keys.end(), more.begin(), more.end());
    parts.push_back(
        {form.empty() ? name : form + "(" + name + ")", keys, [name, wrap](const parameters& given, method& result) {
           result.make_evictor = with_scored(name, given, result, wrap(given));
         }});
  }
}

/// The evictor to begin with, as the library has it; and, as it advises, one set of tokens for all layers.
void parse_standard(const parameters& given, method& result) {
  parse_common(given, result, true);
  result.make_evictor = maker(skim::evictors::standard(result.budget));
}

void parse_sink_window(const parameters& given, method& result) {
  result.make_evictor = maker(skim::sink_window{parse_kept(given, result, 4)});
}

void parse_random(const parameters& given, method& result) {
  const skim::random_tokens evictor{parse_kept(given, result), static_cast<std::uint64_t>(given.count("seed", 0, 0))};
  result.make_evictor = [evictor](std::uint64_t stream) {
    return maker(skim::random_tokens{evictor.keep, skim::draw(evictor.seed, stream)})(stream);
  };
}

}  // namespace

std::vector<part_kind> evictor_parts() {
  std::vector<part_kind> parts;
  parts.push_back({"standard", common_keys, parse_standard});
  add_scored(parts, "", {}, [](const parameters&) { return [](const auto& evictor) { return maker(evictor); }; });
  add_scored(parts, "caote", {"joint", "smooth"}, [](const parameters& given) {
    const bool joint = given.choice("joint", {"off", "on"}) == "on";
    const std::int64_t smooth = given.odd_count("smooth", 1);
    if (joint && smooth != 1) given.complain("joint takes no smooth");
    return [joint, smooth](const auto& evictor) { return maker(skim::caote{evictor, joint, smooth}); };
  });
  add_scored(parts, "fast_caote", {"smooth"}, [](const parameters& given) {
    const std::int64_t smooth = given.odd_count("smooth", 1);
    return [smooth](const auto& evictor) { return maker(skim::fast_caote{evictor, smooth}); };
  });
  parts.push_back({"evict(sink_window)", {"budget", "compaction", "share", "sinks"}, parse_sink_window});
  parts.push_back({"evict(random)", {"budget", "compaction", "share", "seed"}, parse_random});
  return parts;
}

}  // namespace needle
