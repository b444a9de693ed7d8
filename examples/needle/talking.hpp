// SPDX-License-Identifier: Apache-2.0
/// \file A conversation of several turns with a real model.
#pragma once

#include "engine.hpp"
#include "opened.hpp"

#include <iosfwd>

namespace needle {

struct talking_settings {
  std::string text;           ///< stands in front of the first turn
  std::int64_t tokens = 0;    ///< most tokens of all turns; 0 = as many positions as the model was trained on
  std::int64_t answer = 256;  ///< most tokens of an answer
  std::int64_t chunk = 128;
  skim::element kv_type = skim::element::bf16;
};

/// One turn for each line of `in`; answers go to `out`, what they took to `notes`. Goes on beyond the positions that the
/// model was trained on, and says so. Throws `error` where the model has no form of conversations or a turn no room.
void talk(const opened_model& with, const method& how, const talking_settings& settings, const executor& threads,
          std::istream& in, std::ostream& out, std::ostream& notes);

}  // namespace needle
