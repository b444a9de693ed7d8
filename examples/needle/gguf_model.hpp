// SPDX-License-Identifier: Apache-2.0
/// \file A decoder model as a GGUF file holds it.
#pragma once

#include "model.hpp"

#include <skim/interop/gguf.hpp>

namespace needle {

/// Weights widened to f32. Throws `error` on anything that the engine would compute wrongly.
model read_model(const skim::gguf::file& file);

}  // namespace needle
