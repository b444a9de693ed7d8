// SPDX-License-Identifier: Apache-2.0
/// \file The only file that reads compiler macros.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

// Rounding by adding and taking away, NaN and infinity mean something here. Units with other rules could not share the
// functions that a linker merges either, so such units do not compile. Clang names -fassociative-math in no macro: see
// SKIM_PRECISE_BEGIN.
#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
static_assert(false,
              "skim: -ffast-math (or -Ofast, /fp:fast) breaks its arithmetic: compile the files that include skim "
              "with -fno-fast-math (/fp:precise)");
#elif defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0
static_assert(false,
              "skim: -ffinite-math-only breaks its arithmetic: compile the files that include skim with "
              "-fno-finite-math-only");
#elif defined(__ASSOCIATIVE_MATH__)
static_assert(false,
              "skim: -fassociative-math (or -funsafe-math-optimizations) breaks its arithmetic: compile the files "
              "that include skim with -fno-associative-math");
#endif

#if defined(__CUDACC__)
#define SKIM_HD __host__ __device__
#define SKIM_HD_AS_BODY _Pragma("nv_exec_check_disable")  // in front of what calls a function that it is given
#else
#define SKIM_HD
#define SKIM_HD_AS_BODY
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

// Around what must not be reordered where Clang is told -fassociative-math (or -funsafe-math-optimizations): xsimd, which
// rounds by adding and taking away, and the intrinsics below it, unless somebody included those before. That matters for
// tanh and erf without SSE4.1; later processors have instructions that round.
#if defined(__clang__) && (defined(__x86_64__) || defined(__i386__))
#define SKIM_PRECISE_BEGIN _Pragma("float_control(push)") _Pragma("float_control(precise, on)")
#define SKIM_PRECISE_END _Pragma("float_control(pop)")
#else
#define SKIM_PRECISE_BEGIN
#define SKIM_PRECISE_END
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
