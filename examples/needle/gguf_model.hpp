// SPDX-License-Identifier: Apache-2.0
/// \file A decoder model as a GGUF file holds it.
#pragma once

#include "model.hpp"

#include <skim/interop/gguf.hpp>

namespace needle {

/// Weights in blocks become bf16. Throws `error` on anything that the engine would compute wrongly.
model read_model(const std::shared_ptr<const skim::gguf::file>& opened);

}  // namespace needle
