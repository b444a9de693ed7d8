// SPDX-License-Identifier: Apache-2.0
// Every allocation of a test comes from memory that the GPU can read and write at the same address, so that the CPU's test
// cases, whose memory is in vectors, go to the GPU as they are, guards and hidden NaN included.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

namespace {

/// Blocks of powers of two, from 64 bytes on; what is freed serves the next of its size.
class shared_heap {
 public:
  void* take(std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t size = smallest;
    int order = 0;
    for (; size < bytes; size *= 2) ++order;
    if (free_[order]) {
      void* const block = free_[order];
      free_[order] = *static_cast<void**>(block);
      return block;
    }
    if (!begin_ && cudaHostAlloc(&begin_, capacity, cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess) {
      begin_ = std::aligned_alloc(smallest, capacity);  // no GPU: tests that need one say so
    }
    if (capacity - used_ < size) throw std::bad_alloc();
    void* const block = static_cast<char*>(begin_) + used_;
    used_ += size;
    return block;
  }

  void give_back(void* block, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    int order = 0;
    for (std::size_t size = smallest; size < bytes; size *= 2) ++order;
    *static_cast<void**>(block) = free_[order];
    free_[order] = block;
  }

 private:
  static constexpr std::size_t smallest = 64, capacity = std::size_t{6} << 30;

  std::mutex mutex_;
  void* begin_ = nullptr;
  std::size_t used_ = 0;
  void* free_[48] = {};
};

shared_heap& heap() {
  alignas(shared_heap) static char place[sizeof(shared_heap)];
  static shared_heap* const only = new (place) shared_heap;
  return *only;
}

/// In front of each block, which stays 64-byte aligned: its size.
constexpr std::size_t header = 64;

void* take(std::size_t bytes) {
  char* const block = static_cast<char*>(heap().take(bytes + header));
  *reinterpret_cast<std::size_t*>(block) = bytes;
  return block + header;
}

void give_back(void* memory) {
  if (!memory) return;
  char* const block = static_cast<char*>(memory) - header;
  heap().give_back(block, *reinterpret_cast<std::size_t*>(block) + header);
}

}  // namespace

void* operator new(std::size_t bytes) {
  return take(bytes);
}
void* operator new[](std::size_t bytes) {
  return take(bytes);
}
void operator delete(void* memory) noexcept {
  give_back(memory);
}
void operator delete[](void* memory) noexcept {
  give_back(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  give_back(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  give_back(memory);
}
