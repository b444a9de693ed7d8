// SPDX-License-Identifier: Apache-2.0
/// \file What an operation answers where it launches nothing, in words.
#pragma once

#include <skim/cuda/launch.cuh>

#include <string>

namespace skim_test {

inline std::string refusal_of(const skim::cuda::launch_report& report) {
  char text[200];
  return report.ok() ? "ok" : describe(report, text, sizeof text);
}

/// What is said of a workspace that is one byte short of `needed`.
inline std::string short_workspace(std::size_t needed) {
  return "workspace too small or not 64-byte aligned: workspace.bytes is " + std::to_string(needed - 1) +
         ", expected 64-byte aligned and at least " + std::to_string(needed);
}

}  // namespace skim_test
