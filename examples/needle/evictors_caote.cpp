// SPDX-License-Identifier: Apache-2.0
/// \file `caote(...)` of every evictor that has scores.
#include "evictors.hpp"

#include <skim/cpu/evictor/caote.hpp>

namespace needle {
namespace {

part_kind caote_part(const std::string& base) {
  names keys = keys_of_scored(base);
  keys.push_back("joint");
  return {"caote(" + base + ")", keys, [base](const parameters& given, method& result) {
            const bool joint = given.choice("joint", {"off", "on"}) == "on";
            result.make_evictor = with_scored(base, given, result, [joint](const auto& evictor) {
              return evictor_maker_of(skim::caote{evictor, joint});
            });
          }};
}

}  // namespace

std::vector<part_kind> caote_parts() {
  std::vector<part_kind> parts;
  for (const std::string& base : scored_evictors) parts.push_back(caote_part(base));
  return parts;
}

}  // namespace needle
