#include "engine/device/turns.h"

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

// Two that ask again at once after each turn alternate; a plain mutex would let one go on for as
// long as it likes.
TEST(TurnsTest, WhoAsksAgainWaitsBehindWhoWaits) {
  Turns turns;
  std::vector<int> order;
  std::atomic<int> ready{0};
  const auto take = [&](int who) {
    ++ready;
    while (ready.load() < 2) std::this_thread::yield();
    for (int i = 0; i < 200; ++i) {
      const Turns::Hold hold(turns);
      order.push_back(who);
      // Time for the other to get in line.
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  };
  std::thread other(take, 1);
  take(0);
  other.join();
  ASSERT_EQ(order.size(), 400u);
  int repeated = 0;
  for (size_t i = 1; i < order.size(); ++i) repeated += order[i] == order[i - 1];
  // Beginning and end, and a thread that was late to the line now and then.
  EXPECT_LT(repeated, 40);
}

TEST(TurnsTest, OneHoldsATurnAtATime) {
  Turns turns;
  int64_t count = 0;  // unguarded but for the turn
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 2000; ++j) {
        const Turns::Hold hold(turns);
        ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 8000);
}

}  // namespace
}  // namespace mneme::engine
