// SPDX-License-Identifier: Apache-2.0
// In a unit of its own, or compilers see through `new` to malloc and warn that it meets `delete`.
#include "allocation_counter.hpp"

#include <cstdlib>
#include <new>

namespace skim_test {

std::atomic<bool> count_allocations{false};
std::atomic<int> allocations_counted{0};

}  // namespace skim_test

namespace {

void count() {
  if (skim_test::count_allocations.load(std::memory_order_relaxed)) ++skim_test::allocations_counted;
}

}  // namespace

void* operator new(std::size_t bytes) {
  count();
  void* const memory = std::malloc(bytes ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

#if SKIM_TEST_COUNTS_MALLOC
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  count();
  return __libc_malloc(bytes);
}
void* calloc(std::size_t n, std::size_t bytes) {
  count();
  return __libc_calloc(n, bytes);
}
void* realloc(void* memory, std::size_t bytes) {
  count();
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  count();
  return __libc_memalign(alignment, bytes);
}
}
#endif
