#include "server/core/state_cache.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr int64_t kStateBytes = 400;

class StateCacheTest : public testing::Test {
 protected:
  // A budget of `states` states.
  void Open(int states, int max_running, int max_waiting) {  // of each model
    const std::vector<std::string> models = {"models/a", "models/b"};
    cache_ = std::make_unique<StateCache>(states * kStateBytes, max_running, max_waiting, models,
                                          metrics_.Tier("host"), metrics_);
  }
  StateCache::Slot Take(const std::string& model, const StateCache::Identity* want = nullptr) {
    CallContext context;
    auto grant = cache_->Acquire(context, model, kStateBytes, want, 0);
    EXPECT_TRUE(grant.ok()) << grant.status();
    return std::move(grant->slot);
  }
  // A turn of a session of `model`, whose state then stays.
  void Turn(const std::string& model, const std::string& key) {
    LoadedState loaded;
    loaded.state.hidden.resize(kStateBytes / sizeof(float));
    cache_->Keep(Take(model), {key, "uid", 1}, std::move(loaded));
  }
  void WaitForWaiting(int64_t n) {
    while (cache_->waiting() != n) std::this_thread::yield();
  }

  Metrics metrics_;
  std::unique_ptr<StateCache> cache_;
};

TEST_F(StateCacheTest, LinesOfModelsTakeTurns) {
  Open(/*states=*/8, /*max_running=*/1, /*max_waiting=*/8);
  StateCache::Slot running = Take("models/a");
  std::string order;  // who holds the only slot appends
  std::vector<std::thread> calls;
  int64_t waiting = 0;
  for (const char* model : {"a", "a", "a", "b", "b"}) {
    calls.emplace_back([this, model, &order] {
      const auto slot = Take(absl::StrCat("models/", model));
      order += model;
    });
    WaitForWaiting(++waiting);
  }
  running.Release();
  for (auto& call : calls) call.join();
  EXPECT_EQ(order, "ababa");
  EXPECT_EQ(cache_->used_bytes(), 0);
}

TEST_F(StateCacheTest, WhoGivesUpHoldsNobodyUp) {
  Open(8, 1, 8);
  StateCache::Slot running = Take("models/a");
  CallContext impatient;
  std::thread gives_up(
      [&] { EXPECT_FALSE(cache_->Acquire(impatient, "models/a", kStateBytes, nullptr, 0).ok()); });
  WaitForWaiting(1);
  std::thread next([&] { Take("models/b"); });
  WaitForWaiting(2);
  impatient.RequestCancel(CallContext::Cancel::kClient);
  gives_up.join();
  running.Release();
  next.join();
  EXPECT_EQ(cache_->waiting(), 0);
}

TEST_F(StateCacheTest, ACrowdBeforeOneModelLeavesPlacesToTheOther) {
  Open(8, 1, /*max_waiting=*/1);
  StateCache::Slot running = Take("models/a");
  std::thread first([&] { Take("models/a"); });
  WaitForWaiting(1);
  CallContext context;
  const auto refused = cache_->Acquire(context, "models/a", kStateBytes, nullptr, 0);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(refused.status()), reason::kQueueFull);
  std::thread other([&] { Take("models/b"); });
  WaitForWaiting(2);
  running.Release();
  first.join();
  other.join();
}

TEST_F(StateCacheTest, IdleStatesGoFromTheModelThatHoldsTheMost) {
  Open(/*states=*/6, /*max_running=*/2, /*max_waiting=*/2);
  Turn("models/a", "a0");
  Turn("models/a", "a1");
  for (int i = 0; i < 20; ++i) Turn("models/b", absl::StrCat("b", i));
  // Its share would be three: a crowd of sessions elsewhere costs it nothing.
  EXPECT_TRUE(cache_->Contains("a0", 1));
  EXPECT_TRUE(cache_->Contains("a1", 1));
  // Within the model the least recently used ones went.
  EXPECT_FALSE(cache_->Contains("b15", 1));
  for (int i = 16; i < 20; ++i) EXPECT_TRUE(cache_->Contains(absl::StrCat("b", i), 1)) << i;
  EXPECT_EQ(cache_->used_bytes(), 6 * kStateBytes);
  EXPECT_EQ(metrics_.Tier("host").evictions.Value(), 16);
}

// Two devices: budgets and lines of their own, and gauges that add up.
TEST_F(StateCacheTest, ACacheForEachDevice) {
  const std::vector<std::string> first = {"models/a"}, second = {"models/b"};
  StateCaches caches;
  StateCache& x0 = *caches.Add(
      std::make_unique<StateCache>(kStateBytes, 1, 1, first, metrics_.Tier("x:0"), metrics_));
  StateCache& x1 = *caches.Add(
      std::make_unique<StateCache>(2 * kStateBytes, 1, 1, second, metrics_.Tier("x:1"), metrics_));
  CallContext context;
  auto a = x0.Acquire(context, "models/a", kStateBytes, nullptr, 0);
  auto b = x1.Acquire(context, "models/b", kStateBytes, nullptr, 0);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(caches.running(), 2);
  EXPECT_EQ(metrics_.requests_running.Value(), 2);
  EXPECT_EQ(metrics_.Tier("x:0").slots_used_ratio.Value(), 1.0);
  EXPECT_EQ(metrics_.Tier("x:1").slots_used_ratio.Value(), 0.5);
  // Who waits for one device waits in its line alone.
  std::thread waits([&] {
    CallContext other;
    EXPECT_TRUE(x0.Acquire(other, "models/a", kStateBytes, nullptr, 7).ok());
  });
  while (x0.waiting() != 1) std::this_thread::yield();
  EXPECT_EQ(metrics_.requests_waiting.Value(), 1);
  EXPECT_EQ(metrics_.queued_tokens.Value(), 7);
  LoadedState loaded;
  loaded.state.hidden.resize(kStateBytes / sizeof(float));
  caches.Keep(std::move(b->slot), {"s", "uid", 1}, std::move(loaded));
  EXPECT_TRUE(caches.Contains("s", 1));
  EXPECT_EQ(x0.waiting(), 1);
  a->slot.Release();
  waits.join();
  EXPECT_EQ(metrics_.requests_running.Value(), 0);
  EXPECT_EQ(metrics_.requests_waiting.Value(), 0);
  EXPECT_EQ(metrics_.queued_tokens.Value(), 0);
  // A session that was elsewhere in between leaves nothing behind.
  auto again = x0.Acquire(context, "models/a", kStateBytes, nullptr, 0);
  ASSERT_TRUE(again.ok());
  LoadedState next;
  next.state.hidden.resize(kStateBytes / sizeof(float));
  caches.Keep(std::move(again->slot), {"s", "uid", 2}, std::move(next));
  EXPECT_TRUE(x0.Contains("s", 2));
  EXPECT_FALSE(caches.Contains("s", 1));
  EXPECT_EQ(x1.used_bytes(), 0);
  caches.Drop("s");
  EXPECT_FALSE(caches.Contains("s", 2));
}

TEST_F(StateCacheTest, HandsOutOnlyTheVersionAskedFor) {
  Open(4, 2, 2);
  Turn("models/a", "s");
  CallContext context;
  const StateCache::Identity other{"s", "uid", 2};
  auto grant = cache_->Acquire(context, "models/a", kStateBytes, &other, 0);
  ASSERT_TRUE(grant.ok());
  EXPECT_FALSE(grant->resident.has_value());
  EXPECT_FALSE(cache_->Contains("s", 1));  // of no use to anybody

  Turn("models/a", "t");
  const StateCache::Identity same{"t", "uid", 1};
  grant = cache_->Acquire(context, "models/a", kStateBytes, &same, 0);
  ASSERT_TRUE(grant.ok());
  EXPECT_TRUE(grant->resident.has_value());
  EXPECT_EQ(cache_->used_bytes(), kStateBytes);
}

}  // namespace
}  // namespace mneme::server
