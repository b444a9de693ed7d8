// SPDX-License-Identifier: Apache-2.0
/// \file `fast_caote(...)` of every evictor that has scores.
#include "evictors.hpp"

#include <skim/cpu/evictor/caote.hpp>

namespace needle {
namespace {

part_kind fast_caote_part(const std::string& base) {
  return {"fast_caote(" + base + ")", keys_of_scored(base), [base](const parameters& given, method& result) {
            result.make_evictor = with_scored(
                base, given, result, [](const auto& evictor) { return evictor_maker_of(skim::fast_caote{evictor}); });
          }};
}

}  // namespace

std::vector<part_kind> fast_caote_parts() {
  std::vector<part_kind> parts;
  for (const std::string& base : scored_evictors) parts.push_back(fast_caote_part(base));
  return parts;
}

}  // namespace needle
