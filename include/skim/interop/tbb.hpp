// SPDX-License-Identifier: Apache-2.0
/// \file Loops on oneTBB's threads. The only header that includes oneTBB, which allocates tasks of its own.
#pragma once

#include <skim/executor.hpp>

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <atomic>

namespace skim { inline namespace v0_2 {

/// Default-constructed it uses the arena it is called in, so that a host which already stands inside
/// `arena.execute(...)` needs nothing else; or it holds an arena of the host, which must outlive it. It never makes one.
///
/// A worker is one task that takes index after index, not a thread: `worker < concurrency()` then also holds where an
/// arena gains a slot later (`enqueue` into an arena of one) or the caller has moved to a larger arena. While the caller
/// waits for the loop's end it takes up no other task of the host, which might use the same workspace.
class tbb_executor {
 public:
  tbb_executor() : workers_(at_least_one(tbb::this_task_arena::max_concurrency())) {}
  explicit tbb_executor(tbb::task_arena& arena) : arena_(&arena), workers_(at_least_one(arena.max_concurrency())) {}

  unsigned concurrency() const { return workers_; }

  template <class Body>
  void parallel_for(std::int64_t n, const Body& body) const {
    if (n <= 0) return;
    if (arena_) {
      arena_->execute([&] { spread(n, body); });
    } else {
      spread(n, body);
    }
  }

 private:
  static unsigned at_least_one(int concurrency) { return concurrency < 1 ? 1u : static_cast<unsigned>(concurrency); }

  template <class Body>
  void spread(std::int64_t n, const Body& body) const {
    const unsigned tasks = n < static_cast<std::int64_t>(workers_) ? static_cast<unsigned>(n) : workers_;
    if (tasks == 1) {
      for (std::int64_t index = 0; index < n; ++index) body(index, 0u);
      return;
    }
    std::atomic<std::int64_t> next{0};
    const auto work = [&](unsigned worker) {
      for (std::int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(index, worker);
    };
    // The static partitioner offers task w to thread w every time, whose cache still holds worker w's scratch.
    tbb::this_task_arena::isolate([&] { tbb::parallel_for(0u, tasks, work, tbb::static_partitioner{}); });
  }

  tbb::task_arena* arena_ = nullptr;
  unsigned workers_;
};

static_assert(is_executor_v<tbb_executor>, "tbb_executor fulfils the executor requirements");

}}  // namespace skim::v0_2
