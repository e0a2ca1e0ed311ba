#include "server/core/call_context.h"

#include <optional>

#include "gtest/gtest.h"

namespace mneme::server {
namespace {

using Cancel = CallContext::Cancel;

TEST(CallContextTest, EverybodyWhoAskedHearsOfTheCancellation) {
  CallContext context;
  int first = 0, second = 0, gone = 0;
  std::stop_callback on_first(context.stop_token(), [&] { ++first; });
  std::stop_callback on_second(context.stop_token(), [&] { ++second; });
  {
    std::stop_callback on_gone(context.stop_token(), [&] { ++gone; });
  }
  context.RequestCancel(Cancel::kClient);
  context.RequestCancel(Cancel::kShutdown);
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 1);
  EXPECT_EQ(gone, 0);
  std::stop_callback on_late(context.stop_token(), [&] { ++first; });
  EXPECT_EQ(first, 2) << "who asks afterwards hears at once";
}

TEST(CallContextTest, WhoHearsOfItSeesWhyAndWhen) {
  CallContext context;
  std::optional<Cancel> cause;
  std::stop_callback on_cancel(context.stop_token(), [&] {
    cause = context.cancelled();
    EXPECT_LE(context.cancelled_at(), CallContext::Clock::now());
  });
  EXPECT_EQ(context.cancelled(), Cancel::kNone);
  context.RequestCancel(Cancel::kRequested);
  EXPECT_EQ(cause, Cancel::kRequested);
}

TEST(CallContextTest, TheFirstCauseWins) {
  CallContext context;
  context.RequestCancel(Cancel::kSlowConsumer);
  const auto at = context.cancelled_at();
  context.RequestCancel(Cancel::kClient);
  EXPECT_EQ(context.cancelled(), Cancel::kSlowConsumer);
  EXPECT_EQ(context.cancelled_at(), at);
}

TEST(CallContextTest, ADeadlineThatPassesIsACause) {
  CallContext context;
  context.deadline = CallContext::Clock::now();
  EXPECT_EQ(context.cancelled(), Cancel::kDeadline);
  EXPECT_FALSE(context.stop_token().stop_requested());
}

}  // namespace
}  // namespace mneme::server
