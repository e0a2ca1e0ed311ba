#include "server/core/generation_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/errors.h"
#include "tests/support/wait_for.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using test::WaitFor;
using Cancel = CallContext::Cancel;

class Collect final : public TurnSink {
 public:
  bool Send(v1::GenerateResponse event) override {
    text += event.delta().text();
    events.push_back(event.SerializeAsString());
    ++count;
    return !on_event || on_event(event);
  }
  std::function<bool(const v1::GenerateResponse&)> on_event;
  std::string text;
  std::vector<std::string> events;
  std::atomic<int> count = 0;
};

class GenerationLogTest : public testing::Test {
 protected:
  // on_disconnect CONTINUE, or CANCEL.
  static GenerationLog::Options Continue() {
    return {.max_unsent_tokens = 4, .resume_window = std::chrono::hours(1)};
  }
  static GenerationLog::Options WithReader() { return {.max_unsent_tokens = 4}; }

  static v1::ResumeGenerationRequest After(int64_t sequence) {
    v1::ResumeGenerationRequest request;
    request.set_after_sequence(sequence);
    return request;
  }

  static void Start(GenerationLog& log) {
    v1::GenerateResponse event;
    event.mutable_started()->set_generation("g");
    log.Append(std::move(event));
  }
  static void Say(GenerationLog& log, int32_t token) {
    v1::GenerateResponse::Delta delta;
    delta.add_token_ids(token);
    delta.set_text(absl::StrCat(token, " "));
    log.AppendOutput(std::move(delta));
  }

  CallContext turn_;
};

TEST_F(GenerationLogTest, EveryReaderGetsTheSameBytes) {
  GenerationLog log(turn_, Continue());
  Start(log);
  Collect first;
  std::thread turn([&] {
    for (int i = 0; i < 50; ++i) Say(log, i);
    v1::GenerateResponse last;
    last.mutable_final()->set_finish_reason(v1::EOS);
    log.Append(std::move(last));
    log.End(absl::OkStatus());
  });
  CallContext call;
  EXPECT_TRUE(log.Read(call, After(0), first).ok());
  turn.join();
  std::string all;
  for (int i = 0; i < 50; ++i) all += absl::StrCat(i, " ");
  EXPECT_EQ(first.text, all);
  ASSERT_EQ(log.last_sequence(), static_cast<int64_t>(first.events.size()));
  EXPECT_EQ(log.final()->finish_reason(), v1::EOS);
  for (size_t after = 0; after <= first.events.size(); ++after) {
    Collect again;
    CallContext other;
    EXPECT_TRUE(log.Read(other, After(static_cast<int64_t>(after)), again).ok());
    EXPECT_EQ(again.events,
              std::vector<std::string>(first.events.begin() + after, first.events.end()));
  }
}

TEST_F(GenerationLogTest, OutputGathersWhileNobodyReadsAndStaysBounded) {
  GenerationLog log(turn_, Continue());
  Start(log);
  for (int i = 0; i < 10; ++i) Say(log, i);
  log.End(absl::OkStatus());
  Collect sink;
  CallContext call;
  EXPECT_TRUE(log.Read(call, After(0), sink).ok());
  EXPECT_EQ(sink.text, "0 1 2 3 4 5 6 7 8 9 ");
  EXPECT_EQ(sink.events.size(), 4u);  // Started, and 4 + 4 + 2 tokens
}

TEST_F(GenerationLogTest, AnotherReaderTakesOver) {
  GenerationLog log(turn_, Continue());
  Start(log);
  Say(log, 1);
  CallContext old_call, new_call;
  Collect old_sink, new_sink;
  absl::Status old_status;
  std::thread old_reader([&] { old_status = log.Read(old_call, After(0), old_sink); });
  ASSERT_TRUE(WaitFor([&] { return old_sink.count == 2; }));
  std::thread new_reader([&] { EXPECT_TRUE(log.Read(new_call, After(1), new_sink).ok()); });
  old_reader.join();
  EXPECT_EQ(old_status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(old_status), reason::kStreamTakenOver);
  EXPECT_EQ(turn_.cancelled(), Cancel::kNone);
  EXPECT_TRUE(log.attended());
  Say(log, 2);
  log.End(absl::OkStatus());
  new_reader.join();
  EXPECT_EQ(old_sink.text, "1 ");
  EXPECT_EQ(new_sink.text, "1 2 ");
}

TEST_F(GenerationLogTest, AReaderThatIsStuckInItsSinkIsTakenOverToo) {
  GenerationLog log(turn_, WithReader());
  Start(log);
  CallContext old_call, new_call;
  Collect old_sink, new_sink;
  old_sink.on_event = [&](const v1::GenerateResponse&) {  // as OutputQueue, until its call ends
    return WaitFor([&] { return old_call.cancelled() != Cancel::kNone; }) && false;
  };
  std::thread old_reader([&] {
    EXPECT_EQ(ReasonOf(log.Read(old_call, After(0), old_sink)), reason::kStreamTakenOver);
  });
  ASSERT_TRUE(WaitFor([&] { return old_sink.count == 1; }));
  std::thread new_reader([&] { EXPECT_TRUE(log.Read(new_call, After(0), new_sink).ok()); });
  old_reader.join();
  EXPECT_EQ(turn_.cancelled(), Cancel::kNone);
  log.End(absl::OkStatus());
  new_reader.join();
  EXPECT_EQ(new_sink.count, 1);
}

TEST_F(GenerationLogTest, TheLastReaderTakesTheTurnAlong) {
  for (const auto& [cause, code] :
       {std::pair{Cancel::kClient, absl::StatusCode::kCancelled},
        std::pair{Cancel::kDeadline, absl::StatusCode::kDeadlineExceeded},
        std::pair{Cancel::kSlowConsumer, absl::StatusCode::kResourceExhausted}}) {
    CallContext turn_context, call;
    GenerationLog log(turn_context, WithReader());
    Start(log);
    Collect sink;
    std::atomic<bool> left = false;
    std::thread reader([&] {
      EXPECT_EQ(log.Read(call, After(0), sink).code(), code);
      left = true;
    });
    ASSERT_TRUE(WaitFor([&] { return sink.count == 1; }));
    call.RequestCancel(cause);
    ASSERT_TRUE(WaitFor([&] { return turn_context.cancelled() != Cancel::kNone; }));
    EXPECT_EQ(turn_context.cancelled(), cause);
    std::this_thread::sleep_for(milliseconds(20));
    EXPECT_FALSE(left);  // only when the turn has ended
    log.End(absl::OkStatus());
    reader.join();
  }
}

TEST_F(GenerationLogTest, ADeadlineEndsAReaderThatWaits) {
  GenerationLog log(turn_, Continue());
  Start(log);
  CallContext call;
  call.deadline = CallContext::Clock::now() + milliseconds(30);
  Collect sink;
  EXPECT_EQ(log.Read(call, After(0), sink).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(turn_.cancelled(), Cancel::kNone);
}

TEST_F(GenerationLogTest, ATurnMayOutliveItsReader) {
  std::vector<bool> told;
  auto options = Continue();
  options.on_unattended = [&](bool unattended) { told.push_back(unattended); };
  GenerationLog log(turn_, options);
  Start(log);
  const auto leave = [&] {
    CallContext call;
    Collect sink;
    sink.on_event = [&](const v1::GenerateResponse&) {
      call.RequestCancel(Cancel::kClient);
      return true;
    };
    EXPECT_EQ(log.Read(call, After(0), sink).code(), absl::StatusCode::kCancelled);
  };
  const auto now = CallContext::Clock::now();
  leave();
  EXPECT_EQ(turn_.cancelled(), Cancel::kNone);
  EXPECT_TRUE(turn_.unattended);
  EXPECT_FALSE(log.attended());
  EXPECT_GE(log.unattended_until(), now + std::chrono::hours(1));
  leave();
  log.End(absl::OkStatus());
  EXPECT_EQ(told, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(log.unattended_until(), CallContext::Clock::time_point::max());
}

TEST_F(GenerationLogTest, ATurnThatNobodyHasHeardOfDoesNot) {
  GenerationLog log(turn_, Continue());
  CallContext call;
  call.RequestCancel(Cancel::kClient);
  std::thread turn([&] {
    ASSERT_TRUE(WaitFor([&] { return turn_.cancelled() == Cancel::kClient; }));
    log.End(absl::CancelledError("before it had begun"));
  });
  Collect sink;
  EXPECT_EQ(log.Read(call, After(0), sink).code(), absl::StatusCode::kCancelled);
  turn.join();
}

TEST_F(GenerationLogTest, IsFullWhileAReaderIsBehind) {
  GenerationLog log(turn_, Continue());
  std::atomic<int> woken = 0;
  log.OnRoom([&] { ++woken; });
  Start(log);
  for (int i = 0; i < 10; ++i) Say(log, i);
  EXPECT_TRUE(log.Full()) << "the first reader is on its way";
  CallContext call;
  Collect sink;
  std::atomic<bool> go = false;
  sink.on_event = [&](const v1::GenerateResponse&) { return WaitFor([&] { return go.load(); }); };
  std::thread reader([&] { EXPECT_TRUE(log.Read(call, After(0), sink).ok()); });
  ASSERT_TRUE(WaitFor([&] { return sink.count == 1; }));
  EXPECT_TRUE(log.Full());
  const int before = woken;
  go = true;
  EXPECT_TRUE(WaitFor([&] { return woken > before; }));
  EXPECT_TRUE(WaitFor([&] { return !log.Full(); }));
  log.End(absl::OkStatus());
  reader.join();
  EXPECT_EQ(sink.text, "0 1 2 3 4 5 6 7 8 9 ");
}

TEST_F(GenerationLogTest, AReaderThatLeavesMakesRoom) {
  GenerationLog log(turn_, Continue());
  std::atomic<int> woken = 0;
  log.OnRoom([&] { ++woken; });
  Start(log);
  CallContext call;
  Collect sink;
  sink.on_event = [&](const v1::GenerateResponse&) {
    for (int i = 0; i < 10; ++i) Say(log, i);
    EXPECT_TRUE(log.Full());
    EXPECT_EQ(woken, 0);
    return false;
  };
  EXPECT_EQ(log.Read(call, After(0), sink).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(woken, 1);
  EXPECT_FALSE(log.Full());
}

TEST_F(GenerationLogTest, ThereIsNoEventYetToBeginBehind) {
  GenerationLog log(turn_, Continue());
  Start(log);
  for (const int64_t after : {-1, 2}) {
    CallContext call;
    Collect sink;
    const absl::Status status = log.Read(call, After(after), sink);
    EXPECT_EQ(ReasonOf(status), reason::kFieldOutOfRange) << after;
    EXPECT_EQ(sink.count, 0);
  }
}

TEST_F(GenerationLogTest, AFailureIsToldToEveryReader) {
  GenerationLog log(turn_, WithReader());
  Start(log);
  log.End(Error(absl::StatusCode::kInternal, reason::kStateNotFinite, "not finite"));
  for (int i = 0; i < 2; ++i) {
    CallContext call;
    Collect sink;
    EXPECT_EQ(ReasonOf(log.Read(call, After(0), sink)), reason::kStateNotFinite);
    EXPECT_EQ(sink.count, 1);
  }
  EXPECT_FALSE(log.final().has_value());
}

}  // namespace
}  // namespace mneme::server
