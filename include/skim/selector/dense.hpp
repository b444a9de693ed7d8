// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/attention.hpp>

namespace skim {
inline namespace v0 {

/// Selector that leaves nothing out: every chunk reads all past keys.
struct dense {};

}  // namespace v0
}  // namespace skim
