// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace needle {

/// What is wrong with a file or with what the user asked for. `what()` is one line, made to be shown as it is.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace needle
