#include "server/core/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace mneme::server {
namespace {

TEST(WorkerPoolTest, TasksThatBlockNeverHoldUpOthersBelowTheLimit) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> started = 0;
  WorkerPool pool(8, 0);
  for (int i = 0; i < 7; ++i) {
    ASSERT_TRUE(pool.Submit([&, released] {
      ++started;
      released.wait();
    }));
  }
  std::promise<void> ran;
  ASSERT_TRUE(pool.Submit([&] { ran.set_value(); }));
  EXPECT_EQ(ran.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  release.set_value();
}

TEST(WorkerPoolTest, AFullPoolRefuses) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> ran = 0;
  {
    WorkerPool pool(2, 1);
    int accepted = 0;
    for (int i = 0; i < 10; ++i) {
      accepted += pool.Submit([&, released] {
        released.wait();
        ++ran;
      });
    }
    EXPECT_EQ(accepted, 3);  // two run, one waits
    release.set_value();
  }
  EXPECT_EQ(ran, 3);  // the destructor runs what was accepted
}

TEST(WorkerPoolTest, RunsEverythingOnce) {
  std::atomic<int> ran = 0;
  {
    WorkerPool pool(4, 10000);
    for (int i = 0; i < 5000; ++i) ASSERT_TRUE(pool.Submit([&] { ++ran; }));
  }
  EXPECT_EQ(ran, 5000);
}

}  // namespace
}  // namespace mneme::server
