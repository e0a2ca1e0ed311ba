#include "engine/core/worker_thread.h"

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

TEST(WorkerThreadTest, RunsTasksInOrderOnAThreadOfItsOwn) {
  WorkerThread worker;
  std::vector<int> ran;
  std::thread::id thread;
  uint64_t last = 0;
  for (int i = 0; i < 100; ++i) {
    last = worker.Submit([&, i] {
      ran.push_back(i);
      thread = std::this_thread::get_id();
    });
  }
  worker.Wait(last);
  std::vector<int> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(ran, expected);
  EXPECT_NE(thread, std::this_thread::get_id());
}

TEST(WorkerThreadTest, WaitIsForItsOwnTaskOnly) {
  WorkerThread worker;
  std::atomic<bool> first_ran{false}, release{false};
  const uint64_t first = worker.Submit([&] { first_ran = true; });
  const uint64_t second = worker.Submit([&] {
    while (!release) std::this_thread::yield();
  });
  worker.Wait(first);
  EXPECT_TRUE(first_ran);
  release = true;
  worker.Wait(second);
  worker.Wait(first);  // done long ago
}

TEST(WorkerThreadTest, WhatWasSubmittedRunsBeforeItGoesAway) {
  int ran = 0;
  {
    WorkerThread worker;
    for (int i = 0; i < 10; ++i) worker.Submit([&] { ++ran; });
  }
  EXPECT_EQ(ran, 10);
}

}  // namespace
}  // namespace mneme::engine
