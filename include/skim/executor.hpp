// SPDX-License-Identifier: Apache-2.0
/// \file Who runs a kernel's loops. The library starts no threads; the host lends its own through one of these.
///
/// An executor has
///   `unsigned concurrency() const`: an upper bound of `worker`, constant for the object's life, at least 1;
///   `void parallel_for(std::int64_t n, const Body& body) const`: calls `body(index, worker)` once for every index in
///   [0, n) and returns when all are done; worker < concurrency(); two calls with one worker never overlap.
/// Bodies neither throw nor call `parallel_for`. Results never depend on which worker ran an index.
#pragma once

#include <skim/config.hpp>

#include <atomic>
#include <thread>
#include <type_traits>
#include <utility>

namespace skim {
inline namespace v0 {

namespace detail {

struct executor_probe_body {
  void operator()(std::int64_t, unsigned) const {}
};

template <class E, class = void>
struct is_executor : std::false_type {};
template <class E>
struct is_executor<E, std::void_t<decltype(static_cast<unsigned>(std::declval<const E&>().concurrency())),
                                  decltype(std::declval<const E&>().parallel_for(
                                      std::int64_t{}, std::declval<const executor_probe_body&>()))>> : std::true_type {
};

}  // namespace detail

template <class E>
inline constexpr bool is_executor_v = detail::is_executor<E>::value;

/// Runs everything on the calling thread, in order.
struct serial_executor {
  SKIM_INLINE unsigned concurrency() const { return 1; }

  template <class Body>
  SKIM_INLINE void parallel_for(std::int64_t n, const Body& body) const {
    for (std::int64_t index = 0; index < n; ++index) body(index, 0u);
  }
};

/// Hands loops to the host's own pool through one function pointer: no allocation, no `std::function`.
///
/// `dispatch(pool, n, task, context)` must call `task(context, index, worker)` once for every index in [0, n), with
/// worker < `workers`, never two calls with one worker at once, and return when all are done.
class host_executor {
 public:
  using task = void (*)(void* context, std::int64_t index, unsigned worker);
  using dispatch = void (*)(void* pool, std::int64_t n, task run, void* context);

  host_executor(void* pool, unsigned workers, dispatch function)
      : pool_(pool), workers_(workers), dispatch_(function) {}

  SKIM_INLINE unsigned concurrency() const { return workers_; }

  template <class Body>
  SKIM_INLINE void parallel_for(std::int64_t n, const Body& body) const {
    if (n <= 0) return;
    const task run = [](void* context, std::int64_t index, unsigned worker) {
      (*static_cast<const Body*>(context))(index, worker);
    };
    dispatch_(pool_, n, run, const_cast<Body*>(&body));  // const_cast: C has no const context; `run` restores it
  }

 private:
  void* pool_;
  unsigned workers_;
  dispatch dispatch_;
};

/// The meeting point of a team, in memory of the host; one per team, default-constructed once, reused call after call.
struct team_barrier {
  std::atomic<std::int64_t> next{0};         ///< the loop's next index
  std::atomic<std::uint32_t> arrived{0};     ///< members waiting
  std::atomic<std::uint32_t> generation{0};  ///< loops finished
};

/// For hosts in which every thread calls the operation itself ("task ith of nth", as in ggml): each of `nth` threads
/// calls `run` with equal arguments and its own `ith`. Members take indices from a shared counter and spin at the end
/// of each loop. All members return the same report; each has returned when its own part and every loop are done.
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

 private:
  void wait() const {
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

  unsigned ith_, nth_;
  team_barrier* barrier_;
};

}  // namespace v0
}  // namespace skim
