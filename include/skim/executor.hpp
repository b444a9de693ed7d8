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

#include <type_traits>
#include <utility>

namespace skim { inline namespace v0_2 {

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
      : pool_(pool), workers_(workers > 0 ? workers : 1), dispatch_(function) {}

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

namespace detail {

using loop_body = void (*)(const void* context, std::int64_t index, unsigned worker);

/// Static, that is a copy for each unit: units compiled for different processors may be linked together, and a shared copy
/// could have the instructions of the wrong one.
template <class E>
static void loop_on(const void* executor, std::int64_t n, loop_body run, const void* context) {
  static_cast<const E*>(executor)->parallel_for(
      n, [run, context](std::int64_t index, unsigned worker) SKIM_LAMBDA_INLINE { run(context, index, worker); });
}

}  // namespace detail

/// Any executor, as operations and policies take it: two pointers and a count, so that they are compiled once for all. It
/// refers to the executor it was made from, which must live as long.
class executor_ref {
 public:
  template <class E, class = std::enable_if_t<!std::is_same_v<E, executor_ref>>>
  SKIM_INLINE executor_ref(const E& executor)  // NOLINT: every executor converts
      : executor_(&executor), loop_(&detail::loop_on<E>), workers_(executor.concurrency()) {
    static_assert(is_executor_v<E>,
                  "an executor needs: unsigned concurrency() const, and a parallel_for(n, body) const");
  }

  SKIM_INLINE unsigned concurrency() const { return workers_; }

  template <class Body>
  SKIM_INLINE void parallel_for(std::int64_t n, const Body& body) const {
    const detail::loop_body run = [](const void* context, std::int64_t index, unsigned worker) {
      (*static_cast<const Body*>(context))(index, worker);
    };
    loop_(executor_, n, run, &body);
  }

 private:
  const void* executor_;
  void (*loop_)(const void* executor, std::int64_t n, detail::loop_body run, const void* context);
  unsigned workers_;
};

static_assert(std::is_trivially_copyable_v<executor_ref>, "a reference is two pointers and a count");

}}  // namespace skim::v0_2
