// SPDX-License-Identifier: Apache-2.0
/// \file Which processor this unit was compiled for, and what a host asks the operating system for at its start-up.
#pragma once

#include <skim/cpu/simd/compat.hpp>
#include <skim/math/accumulate.hpp>

#if SKIM_CPU_AMX && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define SKIM_CPU_STRING_2(name) #name
#define SKIM_CPU_STRING(name) SKIM_CPU_STRING_2(name)

namespace skim { inline namespace v0_2 { namespace cpu { inline namespace SKIM_CPU_FEATURES {

/// The feature set, for reports and benchmark labels.
inline constexpr const char* feature_set = SKIM_CPU_STRING(SKIM_CPU_FEATURES);

/// Asks the operating system for tile registers on behalf of the process, which it grants once and for all threads. For
/// the host's start-up: kernels never ask. Where the answer says so, or this unit was compiled for a processor without
/// them, `accumulate::amx` runs as `dot_pairs`.
inline accumulate::amx request_amx() {
#if SKIM_CPU_AMX && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return {syscall(SYS_arch_prctl, request_permission, tile_data) == 0};
#else
  return {false};
#endif
}

}}}}  // namespace skim::v0_2::cpu::SKIM_CPU_FEATURES
