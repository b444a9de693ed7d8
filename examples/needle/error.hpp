// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/status.hpp>

#include <stdexcept>

namespace needle {

/// What is wrong with a file or with what the user asked for. `what()` is one line, made to be shown as it is.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The program checks its inputs where they come in, so a bad report is a shape that the kernels do not take.
inline void demand(const skim::report& answer) {
  if (answer.ok()) return;
  char text[256];
  throw error(skim::describe(answer, text, sizeof text));
}

}  // namespace needle
