// SPDX-License-Identifier: Apache-2.0
/// \file The only file that reads compiler macros.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define SKIM_HD __host__ __device__
#else
#define SKIM_HD
#endif

// Members of tier-0 types that kernels call are always inlined: two units compiled for different processors may be
// linked together, and neither may keep the other's copy of a shared function.
#if defined(_MSC_VER) && !defined(__clang__)
#define SKIM_INLINE __forceinline
#define SKIM_LAMBDA_INLINE
#define SKIM_RESTRICT __restrict
#define SKIM_NOINLINE __declspec(noinline)
#define SKIM_MAY_ALIAS
#else
#define SKIM_INLINE inline __attribute__((always_inline))
#define SKIM_LAMBDA_INLINE __attribute__((always_inline))
#define SKIM_RESTRICT __restrict__
#define SKIM_NOINLINE __attribute__((noinline))
#define SKIM_MAY_ALIAS __attribute__((may_alias))
#endif

// What is too large for that, such as checks of arguments, has a copy in each unit.
#define SKIM_LOCAL SKIM_NOINLINE static inline

// Around what calls intrinsics: GCC 12 warns of values that its own AVX-512 headers leave open. It looks for pragmas where
// the intrinsic is defined and where it is inlined. Other instruction sets go without, and see whether ours are all set.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define SKIM_INTRINSICS_BEGIN                                                          \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define SKIM_INTRINSICS_END _Pragma("GCC diagnostic pop")
#else
#define SKIM_INTRINSICS_BEGIN
#define SKIM_INTRINSICS_END
#endif

// Tells the processor that the thread spins.
#if defined(__x86_64__) || defined(__i386__)
#define SKIM_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define SKIM_PAUSE() __asm__ __volatile__("yield")
#else
#define SKIM_PAUSE() static_cast<void>(0)
#endif

/// Checks an internal invariant; user errors are reported by `check`, never asserted.
#ifndef SKIM_ASSERT
#define SKIM_ASSERT(condition) assert(condition)
#endif
