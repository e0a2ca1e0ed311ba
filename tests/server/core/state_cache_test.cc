#include "server/core/state_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

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
                                          metrics_.Tier("host"), metrics_, tenants_);
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

  // A call of `tenant` that waits for a slot, appends its name to `order` and reads `tokens`.
  void CallOf(const std::string& tenant, int64_t weight, int64_t tokens, std::string& order) {
    CallContext context;
    context.caller = std::make_shared<Caller>(
        Caller{.id = "k", .tenant = tenant, .limits = {.running = 0, .weight = weight}});
    auto share = tenants_.Begin(context);
    auto grant = cache_->Acquire(context, "models/a", kStateBytes, nullptr, 0);
    ASSERT_TRUE(share.ok() && grant.ok());
    order += tenant;  // by whoever has the only slot
    share->Charge(tokens);
    grant->slot.Release();
  }

  Metrics metrics_;
  TenantUse tenants_{metrics_};
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

TEST_F(StateCacheTest, ACrowdOfOneTenantDelaysAnotherByOneTurn) {
  Open(/*states=*/8, /*max_running=*/1, /*max_waiting=*/100);
  StateCache::Slot running = Take("models/a");
  std::string order;
  std::vector<std::thread> calls;
  for (int i = 0; i < 50; ++i) {
    calls.emplace_back([&] { CallOf("a", 1, 10, order); });
    WaitForWaiting(i + 1);
  }
  for (int i = 0; i < 2; ++i) {
    calls.emplace_back([&] { CallOf("b", 1, 10, order); });
    WaitForWaiting(51 + i);
  }
  running.Release();
  for (auto& call : calls) call.join();
  ASSERT_EQ(order.size(), 52u);
  EXPECT_EQ(order.substr(0, 4), "abab") << order;  // the first one has been called already
  EXPECT_EQ(cache_->waiting(), 0);
}

TEST_F(StateCacheTest, TenantsShareByWeight) {
  Open(8, 1, 200);
  StateCache::Slot running = Take("models/a");
  std::string order;
  std::vector<std::thread> calls;
  for (int i = 0; i < 40; ++i) {
    for (const auto& [tenant, weight, tokens] :
         {std::tuple("a", 1, 100), std::tuple("b", 3, 100), std::tuple("c", 1, 50)}) {
      calls.emplace_back([&, tenant = tenant, weight = weight, tokens = tokens] {
        CallOf(tenant, weight, tokens, order);
      });
      WaitForWaiting(static_cast<int64_t>(calls.size()));
    }
  }
  running.Release();
  for (auto& call : calls) call.join();
  const std::string first = order.substr(0, 48);  // nobody's calls have ended by then
  // By weight three times as many, and of calls half as long twice as many.
  EXPECT_NEAR(std::ranges::count(first, 'a'), 8, 1) << order;
  EXPECT_NEAR(std::ranges::count(first, 'b'), 24, 1) << order;
  EXPECT_NEAR(std::ranges::count(first, 'c'), 16, 1) << order;
}

// The tokens that a call is going to read count when it goes, not when it has read them.
TEST_F(StateCacheTest, SlotsThatComeFreeAtOnceAreShared) {
  Open(8, /*max_running=*/4, 100);
  std::vector<StateCache::Slot> running;
  for (int i = 0; i < 4; ++i) running.push_back(Take("models/a"));
  struct Call {
    CallContext context;
    TenantUse::Share share;
    StateCache::Slot slot;
  };
  std::vector<std::unique_ptr<Call>> held;
  std::vector<std::thread> threads;
  for (const char* tenant : {"a", "a", "a", "a", "b", "b"}) {
    Call& call = *held.emplace_back(std::make_unique<Call>());
    call.context.caller = std::make_shared<Caller>(Caller{.id = "k", .tenant = tenant});
    call.share = *tenants_.Begin(call.context);
    threads.emplace_back([this, &call] {
      auto grant = cache_->Acquire(call.context, "models/a", kStateBytes, nullptr, 100);
      if (grant.ok()) call.slot = std::move(grant->slot);
    });
    WaitForWaiting(static_cast<int64_t>(held.size()));
  }
  running.clear();
  WaitForWaiting(2);
  for (int i : {2, 3}) held[i]->context.RequestCancel(CallContext::Cancel::kClient);
  for (auto& thread : threads) thread.join();
  // Two of each, in the order in which they came.
  std::string got;
  for (const auto& call : held) got += call->slot ? call->context.caller->tenant : "-";
  EXPECT_EQ(got, "aa--bb");
  held.clear();
  EXPECT_EQ(cache_->running(), 0);
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
  StateCache& x0 = *caches.Add(std::make_unique<StateCache>(
      kStateBytes, 1, 1, first, metrics_.Tier("x:0"), metrics_, tenants_));
  StateCache& x1 = *caches.Add(std::make_unique<StateCache>(
      2 * kStateBytes, 1, 1, second, metrics_.Tier("x:1"), metrics_, tenants_));
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
