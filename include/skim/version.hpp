// SPDX-License-Identifier: Apache-2.0
/// \file The version, written here once; CMake and pkg-config read it from these lines.
#pragma once

#define SKIM_VERSION_MAJOR 0
#define SKIM_VERSION_MINOR 2
#define SKIM_VERSION_PATCH 0

namespace skim {
/// Every name lives in an inline namespace that changes with the binary interface, so that two versions in one
/// program do not collide.
inline namespace v0_2 {

struct version_number {
  int major_version, minor_version, patch_version;
};

inline constexpr version_number version{SKIM_VERSION_MAJOR, SKIM_VERSION_MINOR, SKIM_VERSION_PATCH};

}  // namespace v0_2
}  // namespace skim
