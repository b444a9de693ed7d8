// SPDX-License-Identifier: Apache-2.0
/// \file Programs linked with allocation_counter.cpp count every `operator new` and, where the C library has a back door
/// and no sanitizer brings a malloc of its own, every malloc.
#pragma once

#include <atomic>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)  // GCC's way to tell
#define SKIM_TEST_COUNTS_MALLOC 0
#elif defined(__has_feature)  // Clang's
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SKIM_TEST_COUNTS_MALLOC 0
#endif
#endif
#ifndef SKIM_TEST_COUNTS_MALLOC
#ifdef __GLIBC__
#define SKIM_TEST_COUNTS_MALLOC 1
#else
#define SKIM_TEST_COUNTS_MALLOC 0
#endif
#endif

namespace skim_test {

extern std::atomic<bool> count_allocations;  ///< while it is set, by any thread
extern std::atomic<int> allocations_counted;

}  // namespace skim_test
