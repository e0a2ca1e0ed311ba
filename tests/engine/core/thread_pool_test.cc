#include "engine/core/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t tasks : {0, 1, 2, 3, 7, 1000}) {
      std::vector<int> runs(tasks, 0);  // plain: a task belongs to one thread
      pool.Run(tasks, [&](int64_t task, int worker) {
        ASSERT_GE(worker, 0);
        ASSERT_LT(worker, threads);
        ++runs[task];
      });
      for (const int count : runs) ASSERT_EQ(count, 1);
    }
  }
}

// What tasks write is visible after Run, and a worker number belongs to one task at a time.
TEST(ThreadPoolTest, WorkersHaveScratchOfTheirOwn) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(pool.num_threads(), 0);
  int64_t expected = 0;
  for (int round = 0; round < 2000; ++round) {
    const int64_t tasks = 1 + round % 9;
    pool.Run(tasks, [&](int64_t task, int worker) { sums[worker] += round + task; });
    for (int64_t task = 0; task < tasks; ++task) expected += round + task;
    int64_t sum = 0;
    for (const int64_t s : sums) sum += s;
    ASSERT_EQ(sum, expected) << "round " << round;
  }
}

// Workers asleep, workers spinning, and anything between.
TEST(ThreadPoolTest, WakesWorkersAfterPauses) {
  ThreadPool pool(3);
  for (int round = 0; round < 60; ++round) {
    std::atomic<int> runs{0};
    pool.Run(20, [&](int64_t, int) { runs.fetch_add(1); });
    ASSERT_EQ(runs.load(), 20);
    std::this_thread::sleep_for(std::chrono::microseconds(7 * round));
  }
}

TEST(ThreadPoolTest, UsesSeveralThreads) {
  ThreadPool pool(2);
  // Each of two tasks waits for the other: it takes two threads to finish.
  std::atomic<int> arrived{0};
  pool.Run(2, [&](int64_t, int) {
    arrived.fetch_add(1);
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPoolTest, OneThreadRunsInOrderOnTheCaller) {
  ThreadPool pool(1);
  const std::thread::id caller = std::this_thread::get_id();
  int64_t next = 0;
  pool.Run(50, [&](int64_t task, int worker) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(worker, 0);
    EXPECT_EQ(task, next++);
  });
}

TEST(ThreadPoolTest, ManyPoolsOnFewProcessors) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&total] {
      ThreadPool pool(4);
      for (int round = 0; round < 200; ++round) {
        pool.Run(5, [&](int64_t task, int) { total.fetch_add(task); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 4 * 200 * (0 + 1 + 2 + 3 + 4));
}

TEST(ThreadPoolTest, StartsAndStopsWithoutWork) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(3);
}

}  // namespace
}  // namespace mneme::engine
