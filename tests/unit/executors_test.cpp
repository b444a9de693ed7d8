// SPDX-License-Identifier: Apache-2.0
// The promises of every executor, and the tests' own thread pool.
#include "support/executors.hpp"

#include <skim/workspace.hpp>

#include <gtest/gtest.h>

#include <limits>

namespace {

using namespace skim_test;

class executors : public testing::TestWithParam<executor_choice> {};
INSTANTIATE_TEST_SUITE_P(kinds, executors, testing::ValuesIn(every_executor));

TEST_P(executors, run_every_index_once_and_never_two_on_one_worker) {
  for (const std::int64_t n : {0, 1, 2, 6, 7, 8, 1000}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n)), busy(GetParam().workers);
    std::atomic<int> faults{0};
    run_on_own(GetParam(), [&](const auto& executor) {
      executor.parallel_for(n, [&](std::int64_t index, unsigned worker) {
        if (worker >= executor.concurrency() || busy[worker].fetch_add(1) != 0) ++faults;
        ++calls[static_cast<std::size_t>(index)];
        --busy[worker];
      });
    });
    EXPECT_EQ(faults, 0) << "n " << n;
    for (std::size_t i = 0; i < calls.size(); ++i) ASSERT_EQ(calls[i], 1) << "index " << i << " of " << n;
  }
}

TEST_P(executors, a_loop_sees_what_the_loop_before_wrote) {
  constexpr std::int64_t n = 64;
  std::vector<std::int64_t> values(n, 1), next(n);
  run_on_own(GetParam(), [&](const auto& executor) {
    for (int round = 0; round < 20; ++round) {
      executor.parallel_for(n, [&](std::int64_t i, unsigned) {
        next[static_cast<std::size_t>(i)] = values[static_cast<std::size_t>((i + 1) % n)] + 1;
      });
      executor.parallel_for(n, [&](std::int64_t i, unsigned) {
        values[static_cast<std::size_t>(i)] = next[static_cast<std::size_t>(n - 1 - i)];
      });
    }
  });
  EXPECT_EQ(values, std::vector<std::int64_t>(n, 21));
}

TEST_P(executors, state_their_concurrency) {
  run_on_own(GetParam(), [&](const auto& executor) { EXPECT_EQ(executor.concurrency(), GetParam().workers); });
}

/// One type for all: what operations take.
TEST_P(executors, convert_to_a_reference_that_does_the_same) {
  for (const std::int64_t n : {0, 1, 100}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
    std::atomic<int> faults{0};
    run_on_own(GetParam(), [&](const auto& executor) {
      const auto loop = [&](skim::executor_ref on) {
        on.parallel_for(n, [&](std::int64_t index, unsigned worker) {
          if (worker >= on.concurrency()) ++faults;
          ++calls[static_cast<std::size_t>(index)];
        });
        return on.concurrency();
      };
      if (loop(executor) != executor.concurrency()) ++faults;
      const skim::executor_ref reference = executor, copy = reference;
      if (loop(copy) != executor.concurrency()) ++faults;
    });
    EXPECT_EQ(faults, 0);
    for (const auto& count : calls) ASSERT_EQ(count, 2) << "n " << n;
  }
}

TEST(Executors, AreRecognised) {
  static_assert(skim::is_executor_v<skim::serial_executor>);
  static_assert(skim::is_executor_v<skim::host_executor>);
  static_assert(skim::is_executor_v<skim::team_executor>);
  static_assert(skim::is_executor_v<skim::executor_ref>);
  static_assert(!skim::is_executor_v<int>);
}

#if SKIM_TEST_TBB
TEST(TbbExecutor, TakesTheArenaItIsMadeIn) {
  tbb::task_arena arena(3);
  arena.execute([] {
    const skim::tbb_executor executor;
    EXPECT_EQ(executor.concurrency(), 3u);
    std::atomic<int> calls{0};
    executor.parallel_for(100, [&](std::int64_t, unsigned worker) { calls += worker < 3 ? 1 : 1000; });
    EXPECT_EQ(calls, 100);
  });
}
#endif

TEST(TeamExecutor, OneBarrierServesManyRuns) {
  constexpr unsigned nth = 3;
  skim::team_barrier barrier;
  std::vector<std::atomic<int>> calls(10);
  std::vector<std::thread> members;
  for (unsigned ith = 0; ith < nth; ++ith) {
    members.emplace_back([&, ith] {
      for (int run = 0; run < 50; ++run) {
        const skim::team_executor executor(ith, nth, barrier);
        executor.parallel_for(run % 2 == 0 ? 10 : 0, [&](std::int64_t i, unsigned) { ++calls[std::size_t(i)]; });
      }
    });
  }
  for (std::thread& member : members) member.join();
  for (const auto& count : calls) EXPECT_EQ(count, 25);
}

/// What a host does around a call: one member lays something out, then all use it.
TEST(TeamExecutor, SingleIsDoneByOneWhileTheOthersWait) {
  constexpr unsigned nth = 4;
  skim::team_barrier barrier;
  std::int64_t shared = 0;
  std::atomic<int> calls{0}, faults{0};
  std::vector<std::thread> members;
  for (unsigned ith = 0; ith < nth; ++ith) {
    members.emplace_back([&, ith] {
      const skim::team_executor executor(ith, nth, barrier);
      for (int round = 1; round <= 100; ++round) {
        executor.single([&] {
          ++calls;
          shared = round;  // not atomic: nobody else is here
        });
        if (shared != round) ++faults;
        executor.wait();  // or a fast member would write while a slow one reads
      }
    });
  }
  for (std::thread& member : members) member.join();
  EXPECT_EQ(calls, 100);
  EXPECT_EQ(faults, 0);
}

TEST(TeamExecutor, WaitIsABarrier) {
  constexpr unsigned nth = 3;
  skim::team_barrier barrier;
  std::atomic<int> arrived{0}, faults{0};
  std::vector<std::thread> members;
  for (unsigned ith = 0; ith < nth; ++ith) {
    members.emplace_back([&, ith] {
      const skim::team_executor executor(ith, nth, barrier);
      for (int round = 1; round <= 100; ++round) {
        ++arrived;
        executor.wait();
        if (arrived < round * static_cast<int>(nth)) ++faults;
        executor.wait();
      }
    });
  }
  for (std::thread& member : members) member.join();
  EXPECT_EQ(faults, 0);
}

TEST(Arena, LaysOutTwiceTheSame) {
  const auto lay_out = [](skim::detail::arena& arena) {
    char* const a = arena.take<char>(1);
    double* const b = arena.take<double>(9);
    char* const c = arena.take<char>(0);
    return std::make_tuple(a, b, c);
  };
  skim::detail::arena dry;
  EXPECT_EQ(std::get<0>(lay_out(dry)), nullptr);
  EXPECT_EQ(dry.used(), 64u + 128u);
  alignas(skim::memory_alignment) char block[192];
  skim::detail::arena real(block);
  const auto [a, b, c] = lay_out(real);
  EXPECT_EQ(real.used(), dry.used());
  EXPECT_EQ(a, block);
  EXPECT_EQ(reinterpret_cast<char*>(b), block + 64);
  EXPECT_EQ(c, block + 192);
}

TEST(Arena, OfASizeBeyondAllMemoryNeedsTheLargestNumber) {
  skim::detail::arena arena;
  arena.take<float>(10);
  arena.take<float>(std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(arena.used(), ~std::size_t{0});
  arena.take<float>(10);
  EXPECT_EQ(arena.used(), ~std::size_t{0});
}

TEST(Memory, HoldsWhatIsLargeEnoughAndAligned) {
  alignas(skim::memory_alignment) char block[128];
  EXPECT_TRUE(skim::detail::holds({block, 128}, 128));
  EXPECT_FALSE(skim::detail::holds({block, 127}, 128));
  EXPECT_FALSE(skim::detail::holds({block + 4, 124}, 100));
  EXPECT_FALSE(skim::detail::holds({nullptr, 128}, 1));
  EXPECT_TRUE(skim::detail::holds({nullptr, 0}, 0));
}

}  // namespace
