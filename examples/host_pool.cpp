// SPDX-License-Identifier: Apache-2.0
// A host's own threads: skim starts none, it hands its loops to the pool through one function.
#include <skim/skim.hpp>

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

/// The host's pool, as small as it gets: threads take one index after another while the caller sleeps.
class thread_pool {
 public:
  explicit thread_pool(unsigned workers) {
    for (unsigned w = 0; w < workers; ++w) threads_.emplace_back([this, w] { serve(w); });
  }
  ~thread_pool() {
    dispatch(this, -1, nullptr, nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  /// The one function: runs task(context, index, worker) for every index in [0, n).
  static void dispatch(void* pool, std::int64_t n, skim::host_executor::task task, void* context) {
    thread_pool& self = *static_cast<thread_pool*>(pool);
    std::unique_lock<std::mutex> lock(self.mutex_);
    self.task_ = task, self.context_ = context, self.next_ = 0, self.n_ = self.left_ = n;
    self.changed_.notify_all();
    self.changed_.wait(lock, [&] { return self.left_ <= 0; });
  }

 private:
  void serve(unsigned worker) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return n_ < 0 || next_ < n_; });
      if (n_ < 0) return;
      const std::int64_t index = next_++;
      lock.unlock();
      task_(context_, index, worker);
      lock.lock();
      if (--left_ == 0) changed_.notify_all();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  skim::host_executor::task task_ = nullptr;
  void* context_ = nullptr;
  std::int64_t next_ = 0, n_ = 0, left_ = 0;  // of the loop that runs; n_ = -1 ends the pool
};

int main() {
  constexpr std::int64_t Tk = 4000, Tq = 64, Hq = 8, Hk = 2, D = 64;
  std::vector<float> q(Tq * Hq * D), keys((Tk + Tq) * Hk * D), values(keys.size()), out(q.size()), serial(q.size());
  std::mt19937 generator(1);
  for (auto* tensor : {&q, &keys, &values}) {
    for (float& x : *tensor) x = std::normal_distribution<float>()(generator);
  }
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {Tq, Hq, D});
  args.kv = skim::contiguous_kv(skim::tensor_view<float, 3>(keys.data(), {Tk + Tq, Hk, D}),
                                skim::tensor_view<float, 3>(values.data(), {Tk + Tq, Hk, D}), Tk + Tq);
  const skim::cpu::attention op{skim::quoka{}};
  const auto run = [&](std::vector<float>& result, skim::executor_ref executor) {  // any executor converts
    args.out = skim::tensor_view<float, 3>(result.data(), {Tq, Hq, D});
    const skim::buffer workspace(op.workspace_bytes(args, executor.concurrency()));
    return op.run(args, {}, workspace, executor).ok();
  };
  thread_pool pool(4);
  const skim::host_executor executor(&pool, 4, thread_pool::dispatch);
  const bool same = run(serial, skim::serial_executor{}) && run(out, executor) && out == serial;
  std::printf("four threads of the host and one give %s\n", same ? "the same bits" : "different results");
  return same ? 0 : 1;
}
