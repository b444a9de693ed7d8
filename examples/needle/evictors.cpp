// SPDX-License-Identifier: Apache-2.0
/// \file The evictors that a method can name, but for CAOTE.
#include "evictors.hpp"

#include <skim/cpu/evictor/random_tokens.hpp>
#include <skim/cpu/evictor/sink_window.hpp>

namespace needle {
namespace {

evictor_maker make_random(const skim::random_tokens& evictor) {
  return [evictor](std::uint64_t stream) {
    skim::random_tokens own = evictor;
    own.seed = skim::draw(evictor.seed, stream);
    return std::make_unique<evictor_of<skim::random_tokens>>(own);
  };
}

part_kind scored_part(const std::string& name) {
  return {name, keys_of_scored(name), [name](const parameters& given, method& result) {
            result.make_evictor =
                with_scored(name, given, result, [](const auto& evictor) { return evictor_maker_of(evictor); });
          }};
}

}  // namespace

names keys_of_scored(const std::string& name) {
  names keys = {"budget", "sinks", "recent", "compaction"};
  if (name == "keydiff") keys.push_back("anchor");
  if (name == "snapkv") keys.insert(keys.end(), {"window", "pool"});
  return keys;
}

skim::retention parse_kept(const parameters& given, method& result) {
  result.budget = given.count("budget", 1, 1024);
  const bool stable = given.choice("compaction", {"refill", "stable"}) == "stable";
  result.compaction = stable ? skim::compaction::stable : skim::compaction::refill;
  const auto keep = skim::retention::budget(result.budget, given.count("sinks", 0, 0), given.count("recent", 0, 0));
  given.check(keep);
  return keep;
}

skim::snapkv parse_snapkv(const parameters& given, const skim::retention& keep) {
  const skim::snapkv evictor{keep, given.count("window", 1, 32), given.count("pool", 1, 5)};
  if (evictor.window > keep.count - keep.sinks) {
    given.complain("window is '" + std::to_string(evictor.window) + "', a budget of " + std::to_string(keep.count) +
                   (keep.sinks > 0 ? " beside its sinks" : "") + " has room for " +
                   std::to_string(keep.count - keep.sinks));
  }
  if (evictor.pool % 2 == 0) {
    given.complain("pool is '" + std::to_string(evictor.pool) + "', valid are odd whole numbers");
  }
  return evictor;
}

std::vector<part_kind> evictor_parts() {
  std::vector<part_kind> parts;
  for (const std::string& name : scored_evictors) parts.push_back(scored_part(name));
  for (const part_kind& part : caote_parts()) parts.push_back(part);
  for (const part_kind& part : fast_caote_parts()) parts.push_back(part);
  parts.push_back(
      {"evict(sink_window)", {"budget", "sinks", "compaction"}, [](const parameters& given, method& result) {
         skim::sink_window evictor{parse_kept(given, result)};
         evictor.keep.sinks = given.count("sinks", 0, 4);
         given.check(evictor.keep);
         result.make_evictor = evictor_maker_of(evictor);
       }});
  parts.push_back({"evict(random)", {"budget", "seed", "compaction"}, [](const parameters& given, method& result) {
                     const skim::retention keep = parse_kept(given, result);
                     const std::uint64_t seed = static_cast<std::uint64_t>(given.count("seed", 0, 0));
                     result.make_evictor = make_random({keep, seed});
                   }});
  return parts;
}

}  // namespace needle
