// Prefixes: the longest is found, of its owner alone, and memory stays within the budget.
#include "server/core/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "server/core/metrics.h"

namespace mneme::server {
namespace {

using Tokens = std::vector<engine::TokenId>;

constexpr int64_t kStateBytes = 400;
const PrefixCache::Owner kOwner = {"a", "models/a"};

// A state that says how many tokens it has read.
engine::State StateOf(const Tokens& tokens) {
  engine::State state;
  state.position = static_cast<int64_t>(tokens.size());
  return state;
}

class PrefixCacheTest : public testing::Test {
 protected:
  void Keep(const Tokens& tokens, const PrefixCache::Owner& owner = kOwner) {
    cache_->Keep(owner, tokens, kStateBytes, [&] { return StateOf(tokens); });
  }
  // How many of `tokens` the state has read; 0: there is none.
  int64_t Find(const Tokens& tokens, const PrefixCache::Owner& owner = kOwner) {
    const auto found = cache_->Find(owner, tokens);
    return found == nullptr ? 0 : found->position;
  }
  // Room for `states` states of `num_tokens` tokens.
  void Open(int states, int64_t num_tokens) {
    cache_ = std::make_unique<PrefixCache>(states * BytesOf(num_tokens), tier_.prefix_state_bytes);
  }
  static int64_t BytesOf(int64_t num_tokens) {
    return kStateBytes + num_tokens * static_cast<int64_t>(sizeof(engine::TokenId));
  }

  Metrics metrics_;
  TierMetrics tier_ = metrics_.Tier("host");
  std::unique_ptr<PrefixCache> cache_;
};

TEST_F(PrefixCacheTest, FindsTheLongest) {
  Open(100, 8);
  EXPECT_EQ(Find({1, 2, 3}), 0);
  Keep({1, 2});
  Keep({1, 2, 3, 4});
  Keep({1, 3});
  Keep({2});
  EXPECT_EQ(Find({1}), 0);
  EXPECT_EQ(Find({1, 2}), 2);
  EXPECT_EQ(Find({1, 2, 3}), 2);
  EXPECT_EQ(Find({1, 2, 3, 4}), 4);
  EXPECT_EQ(Find({1, 2, 3, 4, 5}), 4);
  EXPECT_EQ(Find({1, 2, 9}), 2);
  EXPECT_EQ(Find({1, 9}), 0);
  EXPECT_EQ(Find({1, 3, 0}), 2);
  EXPECT_EQ(Find({2, 0}), 1);
  EXPECT_EQ(Find({}), 0);
}

TEST_F(PrefixCacheTest, FindsWhatTryingAllFinds) {
  Open(10000, 8);
  std::mt19937 random(7);
  const auto any = [&](int64_t most) {
    Tokens tokens(1 + random() % most);
    for (auto& token : tokens) token = static_cast<engine::TokenId>(random() % 3);
    return tokens;
  };
  std::set<Tokens> kept;
  for (int i = 0; i < 200; ++i) {
    const Tokens tokens = any(8);
    kept.insert(tokens);
    Keep(tokens);
  }
  for (int i = 0; i < 3000; ++i) {
    const Tokens tokens = any(10);
    int64_t longest = 0;
    for (const Tokens& prefix : kept) {
      if (prefix.size() > tokens.size()) continue;
      if (!std::equal(prefix.begin(), prefix.end(), tokens.begin())) continue;
      longest = std::max(longest, static_cast<int64_t>(prefix.size()));
    }
    ASSERT_EQ(Find(tokens), longest);
  }
}

TEST_F(PrefixCacheTest, IsOfOneTenantAndOneModel) {
  Open(100, 8);
  Keep({1, 2});
  EXPECT_EQ(Find({1, 2}, {"b", "models/a"}), 0);
  EXPECT_EQ(Find({1, 2}, {"a", "models/b"}), 0);
  Keep({1}, {"b", "models/a"});
  EXPECT_EQ(Find({1, 2}, {"b", "models/a"}), 1);
  cache_->Drop("a");
  EXPECT_EQ(Find({1, 2}), 0);
  EXPECT_EQ(Find({1, 2}, {"b", "models/a"}), 1);
  EXPECT_EQ(cache_->used_bytes(), BytesOf(1));
}

TEST_F(PrefixCacheTest, TheLeastRecentlyUsedGoesFirst) {
  Open(3, 1);
  Keep({1});
  Keep({2});
  Keep({3});
  EXPECT_EQ(Find({1}), 1);
  Keep({2});  // again: used, not made
  Keep({4});
  EXPECT_EQ(Find({3}), 0);
  EXPECT_EQ(Find({1}), 1);
  EXPECT_EQ(Find({2}), 1);
  EXPECT_EQ(Find({4}), 1);
  EXPECT_EQ(cache_->used_bytes(), 3 * BytesOf(1));
  EXPECT_EQ(tier_.prefix_state_bytes.Value(), cache_->used_bytes());
}

TEST_F(PrefixCacheTest, WhatIsBeingCopiedStays) {
  Open(1, 1);
  Keep({1});
  {
    const auto held = cache_->Find(kOwner, Tokens{1});
    ASSERT_NE(held, nullptr);
    Keep({2});
    EXPECT_EQ(Find({2}), 0);
  }
  Keep({2});
  EXPECT_EQ(Find({1}), 0);
  EXPECT_EQ(Find({2}), 1);
}

TEST_F(PrefixCacheTest, WithoutRoomOrMemoryNothingIsKept) {
  Open(1, 1);
  Keep({1, 2});
  EXPECT_EQ(cache_->used_bytes(), 0);
  cache_->Keep(kOwner, Tokens{1}, kStateBytes, []() -> engine::State { throw std::bad_alloc(); });
  EXPECT_EQ(cache_->used_bytes(), 0);
  Keep({1});
  EXPECT_EQ(Find({1}), 1);

  cache_ = std::make_unique<PrefixCache>(0, tier_.prefix_state_bytes);
  bool made = false;
  cache_->Keep(kOwner, Tokens{1}, kStateBytes, [&] {
    made = true;
    return engine::State();
  });
  EXPECT_FALSE(made);
}

TEST_F(PrefixCacheTest, WhatNobodyUsesGoes) {
  Open(9, 1);
  Keep({1});
  Keep({2});
  const auto then = PrefixCache::Clock::now();
  while (PrefixCache::Clock::now() == then) {
  }
  EXPECT_EQ(Find({1}), 1);
  cache_->DropUnusedSince(then);
  EXPECT_EQ(Find({1}), 1);
  EXPECT_EQ(Find({2}), 0);
}

TEST_F(PrefixCacheTest, ManyThreads) {
  Open(20, 4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 2000; ++i) {
        Tokens tokens(1 + random() % 4);
        for (auto& token : tokens) token = static_cast<engine::TokenId>(random() % 4);
        Keep(tokens);
        const int64_t found = Find(tokens);
        EXPECT_LE(found, static_cast<int64_t>(tokens.size()));
        if (i % 500 == 0) cache_->Drop("a");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(cache_->used_bytes(), cache_->budget_bytes());
  cache_->Drop("a");
  EXPECT_EQ(cache_->used_bytes(), 0);
}

}  // namespace
}  // namespace mneme::server
