// SPDX-License-Identifier: Apache-2.0
/// \file Every kind of executor, so that one test body runs on all of them.
#pragma once

#include <skim/executor.hpp>
#include <skim/team_executor.hpp>

// ThreadSanitizer misjudges oneTBB's synchronisation.
#if defined(SKIM_HAS_TBB) && SKIM_HAS_TBB && !defined(__SANITIZE_THREAD__)
#define SKIM_TEST_TBB 1
#include <skim/interop/tbb.hpp>

#include <oneapi/tbb/global_control.h>
#else
#define SKIM_TEST_TBB 0
#endif

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <ostream>
#include <thread>
#include <vector>

namespace skim_test {

/// A host's own thread pool, as small as one can be: the caller is worker 0, the others wait for loops.
class thread_pool {
 public:
  explicit thread_pool(unsigned workers) : workers_(workers) {
    for (unsigned worker = 1; worker < workers; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() {
    {
      const std::lock_guard<std::mutex> hold(mutex_);
      stop_ = true;
    }
    start_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  skim::host_executor executor() { return {this, workers_, &thread_pool::dispatch}; }

 private:
  static void dispatch(void* pool, std::int64_t n, skim::host_executor::task run, void* context) {
    static_cast<thread_pool*>(pool)->loop(n, run, context);
  }

  void loop(std::int64_t n, skim::host_executor::task run, void* context) {
    {
      const std::lock_guard<std::mutex> hold(mutex_);
      run_ = run;
      context_ = context;
      n_ = n;
      next_.store(0);
      busy_ = workers_ - 1;
      ++loops_;
    }
    start_.notify_all();
    take(0);
    std::unique_lock<std::mutex> hold(mutex_);
    done_.wait(hold, [this] { return busy_ == 0; });
  }

  void take(unsigned worker) {
    for (std::int64_t index = next_.fetch_add(1); index < n_; index = next_.fetch_add(1)) run_(context_, index, worker);
  }

  void serve(unsigned worker) {
    for (std::uint64_t seen = 0;;) {
      {
        std::unique_lock<std::mutex> hold(mutex_);
        start_.wait(hold, [&] { return stop_ || loops_ != seen; });
        if (stop_) return;
        seen = loops_;
      }
      take(worker);
      const std::lock_guard<std::mutex> hold(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  unsigned workers_, busy_ = 0;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  skim::host_executor::task run_ = nullptr;
  void* context_ = nullptr;
  std::int64_t n_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::uint64_t loops_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

enum class executor_kind { serial, host_pool, team, tbb };

struct executor_choice {
  executor_kind kind = executor_kind::serial;
  unsigned workers = 1;
};

inline std::ostream& operator<<(std::ostream& to, executor_choice choice) {
  const char* const names[] = {"serial", "host pool", "team", "oneTBB"};
  return to << names[static_cast<int>(choice.kind)] << " of " << choice.workers;
}

inline constexpr executor_choice every_executor[] = {
    {executor_kind::serial, 1},    {executor_kind::host_pool, 1}, {executor_kind::host_pool, 2},
    {executor_kind::host_pool, 7}, {executor_kind::team, 1},      {executor_kind::team, 2},
    {executor_kind::team, 7},
#if SKIM_TEST_TBB
    {executor_kind::tbb, 1},       {executor_kind::tbb, 2},       {executor_kind::tbb, 7},
#endif
};

/// Calls `operation(executor)` with the executor's own type: once, or for a team once on each of its threads.
template <class Operation>
void run_on_own(executor_choice choice, const Operation& operation) {
  if (choice.kind == executor_kind::serial) return operation(skim::serial_executor{});
  if (choice.kind == executor_kind::host_pool) {
    thread_pool pool(choice.workers);
    return operation(pool.executor());
  }
#if SKIM_TEST_TBB
  if (choice.kind == executor_kind::tbb) {
    const tbb::global_control more(tbb::global_control::max_allowed_parallelism, 7);  // than this computer may have
    tbb::task_arena arena(static_cast<int>(choice.workers));
    return operation(skim::tbb_executor(arena));
  }
#endif
  skim::team_barrier barrier;
  std::vector<std::thread> members;
  for (unsigned ith = 0; ith < choice.workers; ++ith) {
    members.emplace_back([&, ith] { operation(skim::team_executor(ith, choice.workers, barrier)); });
  }
  for (std::thread& member : members) member.join();
}

/// As `run_on_own`, with one type for all executors.
template <class Operation>
void run_on(executor_choice choice, const Operation& operation) {
  run_on_own(choice, [&](const auto& executor) { operation(skim::executor_ref(executor)); });
}

}  // namespace skim_test
