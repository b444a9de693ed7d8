// SPDX-License-Identifier: Apache-2.0
/// \file The executor of hosts whose threads call the operation together.
#pragma once

#include <skim/executor.hpp>

#include <atomic>
#include <thread>

namespace skim { inline namespace v0_2 {

/// The meeting point of a team, in memory of the host; one per team, default-constructed once, reused call after call.
struct team_barrier {
  std::atomic<std::int64_t> next{0};         ///< the loop's next index
  std::atomic<std::uint32_t> arrived{0};     ///< members waiting
  std::atomic<std::uint32_t> generation{0};  ///< loops finished
};

/// For hosts in which every thread calls the operation itself ("task ith of nth", as in ggml): each of `nth` threads
/// calls `run` with equal arguments and its own `ith`. Members take indices from a shared counter and spin at the end
/// of each loop. All members return the same report; each has returned when its own part and every loop are done.
///
/// Two verbs for what such a host does around a call: `single(body)` lets one member do something, such as laying out
/// arguments in shared memory, while the others wait for it; `wait()` is a barrier of its own.
class team_executor {
 public:
  team_executor(unsigned ith, unsigned nth, team_barrier& barrier) : ith_(ith), nth_(nth), barrier_(&barrier) {}

  SKIM_INLINE unsigned concurrency() const { return nth_; }

  template <class Body>
  SKIM_INLINE void parallel_for(std::int64_t n, const Body& body) const {
    for (;;) {
      const std::int64_t index = barrier_->next.fetch_add(1, std::memory_order_relaxed);
      if (index >= n) break;
      body(index, ith_);
    }
    wait();
  }

  /// Calls `body()` on one member; all return when it is done.
  template <class Body>
  SKIM_INLINE void single(const Body& body) const {
    parallel_for(1, [&body](std::int64_t, unsigned) { body(); });
  }

  /// Returns when every member has called it.
  SKIM_INLINE void wait() const {
    const std::uint32_t generation = barrier_->generation.load(std::memory_order_acquire);
    if (barrier_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == nth_) {
      barrier_->next.store(0, std::memory_order_relaxed);
      barrier_->arrived.store(0, std::memory_order_relaxed);
      barrier_->generation.store(generation + 1, std::memory_order_release);
      return;
    }
    // The host lends as many cores as members; where it lends fewer, yielding lets the others arrive.
    for (unsigned spins = 0; barrier_->generation.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins < 4096) {
        SKIM_PAUSE();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  unsigned ith_, nth_;
  team_barrier* barrier_;
};

}}  // namespace skim::v0_2
