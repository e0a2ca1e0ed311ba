// Generations that outlive their reader: what is kept, for how long, and who may read it.
#include <thread>

#include "server/core/generation_table.h"
#include "tests/server/core/core_test_base.h"
#include "tests/support/wait_for.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using test::WaitFor;
using Cancel = CallContext::Cancel;

class ResumeTest : public CoreTest {
 protected:
  static v1::GenerateRequest Continue(v1::GenerateRequest request) {
    request.set_on_disconnect(v1::GenerateRequest::CONTINUE);
    return request;
  }
  // Reads `events` events, then goes away.
  CollectingSink ReadSome(const v1::GenerateRequest& request, int events) {
    CallContext context;
    CollectingSink sink;
    sink.on_event = [&](const v1::GenerateResponse&) {
      if (sink.count >= events) context.RequestCancel(Cancel::kClient);
      return true;
    };
    EXPECT_EQ(core->Generate(context, request, sink).code(), absl::StatusCode::kCancelled);
    return sink;
  }
  absl::Status Resume(const v1::ResumeGenerationRequest& request, CollectingSink& sink) {
    CallContext context;
    return core->ResumeGeneration(context, request, sink);
  }
  // What follows what `sink` has, into it.
  absl::Status Resume(CollectingSink& sink) {
    v1::ResumeGenerationRequest request;
    request.set_resume_token(sink.started.resume_token());
    request.set_after_sequence(sink.count);
    sink.on_event = nullptr;
    return Resume(request, sink);
  }
  absl::StatusOr<v1::GenerationInfo> Info(const std::string& name) {
    CallContext context;
    v1::GetGenerationRequest request;
    request.set_name(name);
    return core->GetGeneration(context, request);
  }
  v1::GenerationInfo EndOf(const CollectingSink& sink) {
    v1::GenerationInfo info;
    EXPECT_TRUE(WaitFor([&] {
      const auto now = Info(sink.started.generation());
      if (!now.ok()) return false;
      info = *now;
      return !info.running();
    }));
    return info;
  }
};

TEST_F(ResumeTest, CutAnywhereAndResumedNothingIsMissingOrTwice) {
  config.limits.max_unsent_tokens = 1;  // one token is one event
  Start();
  Create("whole");
  const auto uncut = MustGenerate(Request("whole", "Once upon a time", 40));
  ASSERT_GT(uncut.count, 20);
  for (int events = 1; events <= uncut.count; ++events) {
    const std::string id = absl::StrCat("s", events);
    Create(id);
    // The sink checks that no sequence is left out and none comes twice.
    CollectingSink sink = ReadSome(Continue(Request(id, "Once upon a time", 40)), events);
    const absl::Status status = Resume(sink);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(sink.tokens, uncut.tokens) << events;
    EXPECT_EQ(sink.text, uncut.text) << events;
    EXPECT_TRUE(sink.has_final);
    EXPECT_TRUE(sink.final.committed());
    EXPECT_EQ(sink.final.finish_reason(), v1::MAX_TOKENS);
    EXPECT_EQ(Get(id).position_tokens(), Get("whole").position_tokens());
  }
  EXPECT_EQ(Gauge("mneme_generations_unattended"), 0);
  EXPECT_EQ(Gauge("mneme_orphan_sequences"), 0);
}

TEST_F(ResumeTest, WithoutContinueTheRestIsHowItWasCancelled) {
  Start();
  Create("s");
  CollectingSink sink = ReadSome(Request("s", "abc", 60000), 5);
  EXPECT_EQ(Get("s").version(), 1);
  ASSERT_TRUE(Resume(sink).ok());
  EXPECT_EQ(sink.final.finish_reason(), v1::CANCELLED);
  EXPECT_TRUE(sink.final.committed());
  EXPECT_EQ(sink.final.version(), 1);
  EXPECT_EQ(sink.final.usage().output_tokens(), static_cast<int64_t>(sink.tokens.size()));
}

TEST_F(ResumeTest, ATurnThatNobodyComesBackToEndsByItsCommitRule) {
  Start();
  for (const auto policy : {v1::GenerateRequest::COMMIT_PARTIAL, v1::GenerateRequest::DISCARD}) {
    const std::string id = policy == v1::GenerateRequest::DISCARD ? "discard" : "keep";
    Create(id);
    auto request = Continue(Request(id, "abc", 60000));
    request.set_commit_policy(policy);
    request.mutable_resume_window()->set_nanos(100'000'000);
    const CollectingSink sink = ReadSome(request, 3);
    EXPECT_EQ(Gauge("mneme_generations_unattended"), 1);
    EXPECT_TRUE(Info(sink.started.generation())->running());
    const v1::GenerationInfo info = EndOf(sink);
    EXPECT_EQ(info.final().finish_reason(), v1::CANCELLED);
    EXPECT_EQ(Get(id).version(), policy == v1::GenerateRequest::DISCARD ? 0 : 1);
    EXPECT_EQ(Gauge("mneme_generations_unattended"), 0);
  }
}

TEST_F(ResumeTest, AReaderWhoComesBackInTimeStopsTheClock) {
  Start();
  auto request = Continue(Request("", "abc", 60000));
  request.mutable_resume_window()->set_nanos(300'000'000);
  CollectingSink sink = ReadSome(request, 3);
  std::thread reader([&] { EXPECT_TRUE(Resume(sink).ok()); });
  std::this_thread::sleep_for(milliseconds(700));
  const auto info = Info(sink.started.generation());
  ASSERT_TRUE(info.ok());
  EXPECT_TRUE(info->running());
  EXPECT_TRUE(info->attended());
  CallContext context;
  v1::CancelGenerationRequest cancel;
  cancel.set_name(info->name());
  EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
  reader.join();
  EXPECT_EQ(sink.final.finish_reason(), v1::CANCELLED);
}

TEST_F(ResumeTest, WithoutAReaderATurnGoesOnToItsEnd) {
  config.limits.max_unsent_tokens = 4;
  Start();
  Create("s");
  CollectingSink sink = ReadSome(Continue(Request("s", "abc", 300)), 2);
  const v1::GenerationInfo info = EndOf(sink);
  EXPECT_EQ(info.session(), Name("s"));
  EXPECT_EQ(info.final().finish_reason(), v1::MAX_TOKENS);
  EXPECT_TRUE(info.final().committed());
  EXPECT_FALSE(info.attended());
  EXPECT_TRUE(info.has_end_time());
  EXPECT_EQ(info.expire_time().seconds() - info.end_time().seconds(), 600);
  EXPECT_EQ(Get("s").version(), 1);
  ASSERT_TRUE(Resume(sink).ok());
  EXPECT_EQ(sink.count, info.last_sequence());
  EXPECT_EQ(sink.tokens.size(), 300u);
}

TEST_F(ResumeTest, ANewTurnDoesNotWaitForOneThatNobodyReads) {
  Start();
  Create("s");
  CollectingSink left = ReadSome(Continue(Request("s", "abc", 60000)), 4);
  const auto next = Say("s", " and then", 3);
  EXPECT_EQ(next.final.version(), 2);
  ASSERT_TRUE(Resume(left).ok());
  EXPECT_EQ(left.final.finish_reason(), v1::CANCELLED);
  EXPECT_EQ(left.final.version(), 1);
}

TEST_F(ResumeTest, ATurnThatWaitsNeedNotWaitForOneThatNobodyReads) {
  Start();
  Create("s");
  CallContext context;
  CollectingSink left;
  std::thread reader([&] {
    EXPECT_EQ(core->Generate(context, Continue(Request("s", "abc", 60000)), left).code(),
              absl::StatusCode::kCancelled);
  });
  ASSERT_TRUE(WaitFor([&] { return core->RunningCalls() == 1; }));
  std::thread waiter([&] {
    auto request = Request("s", " and then", 3);
    request.set_conflict_policy(v1::GenerateRequest::QUEUE);
    EXPECT_EQ(MustGenerate(request).final.version(), 2);
  });
  ASSERT_TRUE(WaitFor([&] { return core->RunningCalls() == 2; }));
  std::this_thread::sleep_for(milliseconds(50));  // until it waits
  context.RequestCancel(Cancel::kClient);
  reader.join();
  waiter.join();
}

TEST_F(ResumeTest, ATurnThatIsReadIsNotDisturbed) {
  config.limits.max_unsent_tokens = 1;  // it waits for its reader
  Start();
  Create("s");
  CallContext context;
  CollectingSink reading;
  std::atomic<bool> begun = false, go = false;
  reading.on_event = [&](const v1::GenerateResponse&) {
    begun = true;
    return WaitFor([&] { return go.load(); });
  };
  std::thread reader([&] {
    EXPECT_TRUE(core->Generate(context, Continue(Request("s", "abc", 30)), reading).ok());
  });
  ASSERT_TRUE(WaitFor([&] { return begun.load(); }));
  CollectingSink refused;
  EXPECT_EQ(ReasonOf(Generate(Request("s", "x", 1), refused)), reason::kSessionBusy);
  go = true;
  reader.join();
  EXPECT_EQ(reading.tokens.size(), 30u);
}

TEST_F(ResumeTest, OutputIsKeptForATime) {
  config.generations.keep_ms = 200;
  Start();
  CollectingSink sink = Say("", "abc", 4);
  sink.count = 1;
  EXPECT_TRUE(Info(sink.started.generation()).ok());
  EXPECT_GT(Gauge("mneme_generations_kept_bytes"), 0);
  EXPECT_TRUE(WaitFor([&] { return !Info(sink.started.generation()).ok(); }));
  EXPECT_EQ(ReasonOf(Info(sink.started.generation()).status()), reason::kGenerationNotFound);
  EXPECT_EQ(ReasonOf(Resume(sink)), reason::kResumeExpired);
  EXPECT_EQ(Gauge("mneme_generations_kept_bytes"), 0);
}

TEST_F(ResumeTest, OutputIsKeptUpToABudgetTheOldestGoesFirst) {
  config.generations.keep_bytes = 8 << 10;
  Start();
  std::vector<std::string> names;
  for (int i = 0; i < 12; ++i) names.push_back(Say("", "abc", 4).started.generation());
  EXPECT_FALSE(Info(names.front()).ok());
  EXPECT_TRUE(Info(names.back()).ok());
  bool kept = false;
  for (const std::string& name : names) {
    const bool now = Info(name).ok();
    EXPECT_TRUE(now || !kept) << name << " is older than one that is kept";
    kept = kept || now;
  }
  const double bytes = Gauge("mneme_generations_kept_bytes");
  EXPECT_GT(bytes, 4 << 10);
  EXPECT_LE(bytes, 8 << 10);
}

TEST_F(ResumeTest, ACallThatFailsBeforeItsTurnLeavesNothing) {
  Start();
  CollectingSink sink;
  EXPECT_EQ(ReasonOf(Generate(Request("absent", "abc", 4), sink)), reason::kSessionNotFound);
  EXPECT_EQ(Gauge("mneme_generations_kept_bytes"), 0);
}

TEST_F(ResumeTest, WhatIsAskedForIsChecked) {
  Start();
  const CollectingSink sink = Say("", "abc", 4);
  const std::string token = sink.started.resume_token();
  CollectingSink none;
  v1::ResumeGenerationRequest request;
  EXPECT_EQ(ReasonOf(Resume(request, none)), reason::kFieldRequired);
  for (const std::string& bad : {std::string("no token"), token.substr(1), token + "AAAA",
                                 std::string(2000, 'A'), std::string("g")}) {
    request.set_resume_token(bad);
    const absl::Status status = Resume(request, none);
    EXPECT_EQ(ReasonOf(status), reason::kResumeTokenInvalid) << bad;
    EXPECT_EQ(BadFields(status), std::vector<std::string>{"resume_token"});
  }
  request.set_resume_token(MakeResumeToken("tenants/other/generations/g"));
  EXPECT_EQ(Resume(request, none).code(), absl::StatusCode::kPermissionDenied);
  request.set_generation("tenants/other/generations/g");
  EXPECT_EQ(Resume(request, none).code(), absl::StatusCode::kPermissionDenied);
  request.set_generation("Not A Name");
  EXPECT_EQ(BadFields(Resume(request, none)), std::vector<std::string>{"generation"});
  request.set_resume_token(MakeResumeToken("tenants/default/generations/g-never"));
  EXPECT_EQ(ReasonOf(Resume(request, none)), reason::kResumeExpired);
  for (const int64_t after : {int64_t{-1}, int64_t{sink.count + 1}}) {
    request.set_resume_token(token);
    request.set_after_sequence(after);
    EXPECT_EQ(BadFields(Resume(request, none)), std::vector<std::string>{"after_sequence"});
  }
  EXPECT_EQ(none.count, 0);
  // By its name as well, which may be short.
  CollectingSink again;
  request.set_after_sequence(0);
  request.set_generation(
      sink.started.generation().substr(sink.started.generation().rfind('/') + 1));
  EXPECT_TRUE(Resume(request, again).ok());
  EXPECT_EQ(again.tokens, sink.tokens);
  EXPECT_EQ(again.final.usage().DebugString(), sink.final.usage().DebugString());
  EXPECT_EQ(Counter("mneme_streams_resumed_total"), 3);  // two of them asked for events beyond
}

TEST_F(ResumeTest, ResumeWindowAndOnDisconnectAreChecked) {
  Start();
  CollectingSink sink;
  auto request = Request("", "abc", 4);
  request.set_on_disconnect(static_cast<v1::GenerateRequest::OnDisconnect>(7));
  request.mutable_resume_window()->set_seconds(601);
  EXPECT_EQ(BadFields(Generate(request, sink)),
            (std::vector<std::string>{"on_disconnect", "resume_window"}));
  request.clear_on_disconnect();
  request.mutable_resume_window()->set_seconds(0);
  EXPECT_EQ(BadFields(Generate(request, sink)), std::vector<std::string>{"resume_window"});
}

TEST_F(ResumeTest, AServerThatEndsDoesNotWaitForTurnsThatNobodyReads) {
  Start();
  Create("s");
  ReadSome(Continue(Request("s", "abc", 60000)), 3);
  const auto begin = CallContext::Clock::now();
  core.reset();
  EXPECT_LT(CallContext::Clock::now() - begin, std::chrono::seconds(10));
  Start();
  EXPECT_EQ(Get("s").version(), 1);  // by its commit policy
}

}  // namespace
}  // namespace mneme::server
