// What a tenant may use, with a clock of the test's.
#include "server/core/tenant_use.h"

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "server/core/errors.h"

namespace mneme::server {
namespace {

using std::chrono::seconds;

class TenantUseTest : public ::testing::Test {
 protected:
  absl::StatusOr<TenantUse::Share> Begin(const std::string& tenant, TenantLimits limits) {
    CallContext context;
    context.caller =
        std::make_shared<Caller>(Caller{.id = "k", .tenant = tenant, .limits = limits});
    return use_.Begin(context, now_);
  }

  Metrics metrics_;
  TenantUse use_{metrics_};
  TenantUse::Clock::time_point now_{};
};

TEST_F(TenantUseTest, CallsAtATime) {
  const TenantLimits two{.running = 2};
  auto first = Begin("acme", two), second = Begin("acme", two);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(ReasonOf(Begin("acme", two).status()), reason::kQuotaRequests);
  EXPECT_TRUE(Begin("other", two).ok());
  first->Release();
  first->Release();  // has nothing left to give back
  auto third = Begin("acme", two);
  EXPECT_TRUE(third.ok());
  EXPECT_FALSE(Begin("acme", two).ok());
  TenantUse::Share moved = *std::move(second);
  EXPECT_FALSE(Begin("acme", two).ok());
  moved = TenantUse::Share();
  EXPECT_TRUE(Begin("acme", two).ok());
  // As after a reload of the keys file.
  EXPECT_FALSE(Begin("acme", {.running = 1}).ok());
  EXPECT_TRUE(Begin("acme", {.running = 0}).ok());
}

TEST_F(TenantUseTest, TokensAMinute) {
  const TenantLimits limits{.tokens_per_minute = 600};  // 10 a second
  const auto charge = [&](int64_t tokens) {
    auto share = Begin("acme", limits);
    ASSERT_TRUE(share.ok()) << share.status();
    share->Charge(tokens);
  };
  charge(599);
  charge(201);  // one was left: it runs to its end
  EXPECT_EQ(ReasonOf(Begin("acme", limits).status()), reason::kQuotaTokens);
  EXPECT_TRUE(Begin("other", limits).ok());
  now_ += seconds(20);
  EXPECT_FALSE(Begin("acme", limits).ok());  // 1 short
  now_ += seconds(1);
  charge(0);
  now_ += seconds(3600);
  charge(600);  // an hour's rest fills a minute's bucket
  EXPECT_FALSE(Begin("acme", limits).ok());
  // Other limits begin with a full bucket; none count nothing.
  EXPECT_TRUE(Begin("acme", {.tokens_per_minute = 0}).ok());
  EXPECT_TRUE(Begin("acme", {.tokens_per_minute = 60}).ok());
}

TEST_F(TenantUseTest, WhoWasServedLeast) {
  {
    auto a = Begin("a", {.weight = 2});
    ASSERT_TRUE(a.ok());
    a->Charge(1000);
    EXPECT_EQ(use_.Served("a"), 500);
    // Who comes later begins where those are who are here...
    auto b = Begin("b", {});
    ASSERT_TRUE(b.ok());
    EXPECT_EQ(use_.Served("b"), 500);
    b->Charge(100);
    auto c = Begin("c", {});
    EXPECT_EQ(use_.Served("c"), 500);
    // Tokens that were served ahead are not served twice; what remains unread was not.
    use_.Serve("c", 50);
    EXPECT_EQ(use_.Served("c"), 550);
    c->Charge(20);
    EXPECT_EQ(use_.Served("c"), 550);
    c->Release();
    EXPECT_EQ(use_.Served("c"), 520);
    use_.Serve("b", 0);
    EXPECT_EQ(use_.Served("b"), 601);  // a call is not for nothing
  }
  // ...or where the last one was when it left: "b" went first, then "a".
  auto d = Begin("d", {});
  EXPECT_EQ(use_.Served("d"), 500);
  // Nobody loses what it was served beyond that, nor gains by having been away.
  auto b = Begin("b", {});
  EXPECT_EQ(use_.Served("b"), 601);
  EXPECT_EQ(use_.Served("nobody"), 0);
}

TEST_F(TenantUseTest, AServerThatKnowsNobodyHasNoTenants) {
  CallContext context;
  for (int call = 0; call < 100; ++call) {
    auto share = use_.Begin(context);
    ASSERT_TRUE(share.ok());
    share->Charge(1 << 30);
  }
}

}  // namespace
}  // namespace mneme::server
