// SPDX-License-Identifier: Apache-2.0
/// \file What must hold for the error of a reader that refused a file.
#pragma once

#include <string>

namespace skim_test {

/// An empty string, or what does not hold.
inline std::string broken_error(const std::string& error, std::size_t longest = 200) {
  for (const char c : error) {
    if (c < ' ' || c > '~') return "the error is not a line of printable ASCII";
  }
  return error.empty() ? "there is no error" : error.size() > longest ? "the error is very long" : "";
}

}  // namespace skim_test
