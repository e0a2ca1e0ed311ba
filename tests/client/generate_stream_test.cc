#include "client/generate_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "client/client.h"
#include "client/crc32c.h"
#include "tests/client/fake_server.h"

namespace mneme::client {
namespace {

class GenerateStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.Start();
    auto client = Client::Connect({.server = server_.address()});
    ASSERT_TRUE(client.ok()) << client.status();
    client_.emplace(*std::move(client));
  }
  // Writes deltas until the call is cancelled.
  void ScriptEndless() {
    server_.generation.on_Generate = [this](auto& context, const auto&, auto& writer) {
      v1::GenerateResponse event;
      for (int64_t i = 1; !context.IsCancelled(); ++i) {
        event.set_sequence(i);
        event.mutable_delta()->set_text("x");
        if (!writer.Write(event)) break;
        absl::SleepFor(absl::Milliseconds(1));
      }
      while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
      cancelled_ = true;
      return grpc::Status::CANCELLED;
    };
  }
  bool WaitForCancel() {
    for (int i = 0; i < 5000 && !cancelled_; ++i) absl::SleepFor(absl::Milliseconds(2));
    return cancelled_;
  }

  std::atomic<bool> cancelled_{false};
  std::atomic<int> calls_{0};
  FakeServer server_;
  std::optional<Client> client_;
};

TEST_F(GenerateStreamTest, RangeForGivesEveryEventInOrder) {
  server_.generation.on_Generate = [](auto&, const auto&, auto& writer) {
    WriteTurn(writer, {"Hel", "lo"});
    return grpc::Status::OK;
  };
  auto stream = client_->Generate({});
  ASSERT_TRUE(stream.ok());
  std::string text;
  int events = 0;
  for (const auto& event : *stream) {
    ++events;
    text += event.delta().text();
  }
  EXPECT_EQ(text, "Hello");
  EXPECT_EQ(events, 4);
  ASSERT_TRUE(stream->started());
  EXPECT_EQ(stream->started()->generation(), "tenants/default/generations/g-1");
  auto final = stream->Finish();
  ASSERT_TRUE(final.ok()) << final.status();
  EXPECT_EQ(final->version(), 7);
  EXPECT_TRUE(stream->Finish().ok());  // again: the same answer
}

TEST_F(GenerateStreamTest, DestructionCancels) {
  ScriptEndless();
  {
    auto stream = client_->Generate({});
    v1::GenerateResponse event;
    ASSERT_TRUE(stream->Next(&event));
    GenerateStream moved = *std::move(stream);
    ASSERT_TRUE(moved.Next(&event));
    EXPECT_EQ(event.sequence(), 2);
  }
  EXPECT_TRUE(WaitForCancel());
}

TEST_F(GenerateStreamTest, AssignmentCancelsTheOldStream) {
  ScriptEndless();
  server_.generation.on_Generate = [this, endless = server_.generation.on_Generate.Get()](
                                       auto& context, const auto& request, auto& writer) {
    if (++calls_ == 1) return endless(context, request, writer);
    WriteTurn(writer, {"b"});
    return grpc::Status::OK;
  };
  auto stream = client_->Generate({});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Next(&event));
  *stream = *client_->Generate({});
  EXPECT_TRUE(WaitForCancel());
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GenerateStreamTest, CancelFromAnotherThread) {
  ScriptEndless();
  auto stream = client_->Generate({});
  std::thread other([&] {
    absl::SleepFor(absl::Milliseconds(30));
    stream->Cancel();
  });
  EXPECT_EQ(stream->Finish().status().code(), absl::StatusCode::kCancelled);
  other.join();
  EXPECT_TRUE(WaitForCancel());
}

TEST_F(GenerateStreamTest, DeadlineEndsTheStream) {
  ScriptEndless();
  auto stream = client_->Generate({}, {.timeout = absl::Milliseconds(150)});
  EXPECT_EQ(stream->Finish().status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(GenerateStreamTest, GapInTheSequenceIsDataLoss) {
  server_.generation.on_Generate = [](auto&, const auto&, auto& writer) {
    v1::GenerateResponse event;
    for (int64_t sequence : {1, 2, 4}) {
      event.set_sequence(sequence);
      event.mutable_delta()->set_text("x");
      writer.Write(event);
    }
    return grpc::Status::OK;
  };
  auto stream = client_->Generate({});
  EXPECT_EQ(stream->Finish().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(GenerateStreamTest, OkWithoutFinalIsDataLoss) {
  server_.generation.on_Generate = [](auto&, const auto&, auto&) { return grpc::Status::OK; };
  EXPECT_EQ(client_->Generate({})->Finish().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(GenerateStreamTest, StatelessIsSentAgainBeforeTheFirstEvent) {
  server_.generation.on_Generate = [this](auto&, const auto&, auto& writer) {
    if (++calls_ < 3) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
    WriteTurn(writer, {"ok"});
    return grpc::Status::OK;
  };
  EXPECT_TRUE(client_->Generate({})->Finish().ok());
  EXPECT_EQ(calls_, 3);
}

TEST_F(GenerateStreamTest, NothingIsSentAgainAfterTheFirstEvent) {
  server_.generation.on_Generate = [this](auto&, const auto&, auto& writer) {
    ++calls_;
    v1::GenerateResponse event;
    event.set_sequence(1);
    event.mutable_started();
    writer.Write(event);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
  };
  EXPECT_EQ(client_->Generate({})->Finish().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(calls_, 1);
}

TEST_F(GenerateStreamTest, ATurnIsSentAgainAsTheSameRequest) {
  test::Guarded<std::set<std::string>> ids;
  server_.generation.on_Generate = [&](auto&, const v1::GenerateRequest& request, auto& writer) {
    ids.Update([&](auto& set) { return set.insert(request.request_id()).second; });
    if (++calls_ == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
    WriteTurn(writer, {"ok"});
    return grpc::Status::OK;
  };
  v1::GenerateRequest request;
  request.set_session("s");
  EXPECT_TRUE(client_->Generate(request)->Finish().ok());
  EXPECT_EQ(calls_, 2);
  ASSERT_EQ(ids.Get().size(), 1u);
  EXPECT_EQ(ids.Get().begin()->size(), 36u);
}

// A turn of six events, of which each stream carries two before it breaks.
class ResumedStreamTest : public GenerateStreamTest {
 protected:
  void SetUp() override {
    GenerateStreamTest::SetUp();
    server_.generation.on_Generate = [this](auto&, const v1::GenerateRequest& request,
                                            auto& writer) {
      asked_.Set(request);
      return WriteSome(writer, 1);
    };
    server_.generation.on_ResumeGeneration =
        [this](auto&, const v1::ResumeGenerationRequest& request, auto& writer) {
          ++resumes_;
          EXPECT_EQ(request.resume_token(), "token");
          if (request.has_received()) {
            EXPECT_EQ(request.received().text_bytes(), request.after_sequence() - 1);
            EXPECT_EQ(request.received().tokens(), request.after_sequence() - 1);
            EXPECT_EQ(request.received().token_ids_crc32c(), crc_);
          }
          return WriteSome(writer, request.after_sequence() + 1);
        };
    server_.generation.on_CancelGeneration = [this](auto&, const auto& request, auto&) {
      EXPECT_EQ(request.request_id(), asked_.Get().request_id());
      ++cancels_;
      return grpc::Status::OK;
    };
  }
  grpc::Status WriteSome(FakeGeneration::Writer& writer, int64_t from) {
    v1::GenerateResponse event;
    for (int64_t sequence = from; sequence < from + 2 && sequence <= 6; ++sequence) {
      event.Clear();
      event.set_sequence(sequence);
      if (sequence == 1) {
        event.mutable_started()->set_generation("tenants/default/generations/g");
        event.mutable_started()->set_resume_token("token");
      } else if (sequence < 6) {
        event.mutable_delta()->set_text(std::to_string(sequence));
        event.mutable_delta()->add_token_ids(static_cast<int32_t>(sequence));
        crc_ = ExtendCrc32c(crc_, static_cast<int32_t>(sequence));
      } else {
        event.mutable_final()->set_version(3);
      }
      writer.Write(event);
    }
    return event.has_final() ? grpc::Status::OK : broken_();
  }

  test::Guarded<v1::GenerateRequest> asked_;
  test::Replaceable<grpc::Status()> broken_ = [] {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  std::atomic<int> resumes_{0}, cancels_{0};
  std::atomic<uint32_t> crc_{0};  // of what was sent
};

TEST_F(ResumedStreamTest, ABrokenStreamGoesOnWhereItWas) {
  v1::GenerateRequest request;
  request.set_session("s");
  auto stream = client_->Generate(request);
  std::string text;
  for (const auto& event : *stream) text += event.delta().text();
  EXPECT_EQ(text, "2345");
  EXPECT_EQ(stream->Finish()->version(), 3);
  EXPECT_EQ(stream->resumed(), 2);
  EXPECT_EQ(asked_.Get().on_disconnect(), v1::GenerateRequest::CONTINUE);
  EXPECT_EQ(asked_.Get().resume_window().seconds(), 60);
  EXPECT_EQ(cancels_, 0);
}

TEST_F(ResumedStreamTest, WithoutAWindowABrokenStreamEnds) {
  auto client =
      Client::Connect({.server = server_.address(), .resume_window = absl::ZeroDuration()});
  ASSERT_TRUE(client.ok());
  auto stream = client->Generate({});
  EXPECT_EQ(asked_.Get().on_disconnect(), v1::GenerateRequest::CANCEL);
  v1::GenerateResponse event;
  while (stream->Next(&event)) {
  }
  EXPECT_EQ(asked_.Get().on_disconnect(), v1::GenerateRequest::CANCEL);
}

TEST_F(ResumedStreamTest, WhatTheServerSaysItselfIsFinal) {
  broken_ = [] { return FakeError(grpc::StatusCode::INTERNAL, "STATE_NOT_FINITE", "not finite"); };
  EXPECT_EQ(ErrorOf(client_->Generate({})->Finish().status()).reason, "STATE_NOT_FINITE");
  broken_ = [] {
    return FakeError(grpc::StatusCode::ABORTED, "STREAM_TAKEN_OVER", "somebody else reads");
  };
  EXPECT_EQ(ErrorOf(client_->Generate({})->Finish().status()).reason, "STREAM_TAKEN_OVER");
  EXPECT_EQ(resumes_, 0);
  EXPECT_EQ(cancels_, 0) << "another reader's turn";
}

TEST_F(ResumedStreamTest, ATurnThatIsForgottenEndsWithWhatBrokeItsStream) {
  server_.generation.on_ResumeGeneration = [this](auto&, const auto&, auto&) {
    ++resumes_;
    return FakeError(grpc::StatusCode::FAILED_PRECONDITION, "RESUME_EXPIRED", "not kept");
  };
  v1::GenerateRequest request;
  request.set_session("s");
  const absl::Status status = client_->Generate(request)->Finish().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(ErrorOf(status).outcome_unknown);
  EXPECT_EQ(resumes_, 1);
}

TEST_F(ResumedStreamTest, WhatAnotherServerMayStillHaveIsWaitedFor) {
  broken_ = [] { return FakeError(grpc::StatusCode::ABORTED, "LEASE_LOST", "no longer ours"); };
  server_.generation.on_ResumeGeneration = [this](auto&, const v1::ResumeGenerationRequest& request,
                                                  auto& writer) {
    if (++resumes_ <= 6) {  // longer than a server that breaks
      return resumes_ % 2 == 0 ? FakeError(grpc::StatusCode::ABORTED, "SESSION_BUSY", "elsewhere")
                               : FakeError(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "later");
    }
    return WriteSome(writer, request.after_sequence() + 1);
  };
  auto stream = client_->Generate({});
  std::string text;
  for (const auto& event : *stream) text += event.delta().text();
  EXPECT_EQ(text, "2345");
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(stream->resumed(), 2);
}

TEST_F(ResumedStreamTest, WhatWasNotReadIsNotSpokenOf) {
  v1::ResumeGenerationRequest request;
  request.set_resume_token("token");
  request.set_after_sequence(2);
  test::Guarded<v1::ResumeGenerationRequest> asked;
  server_.generation.on_ResumeGeneration = [&](auto&, const v1::ResumeGenerationRequest& got,
                                               auto& writer) {
    asked.Set(got);
    return WriteSome(writer, got.after_sequence() + 1);
  };
  EXPECT_TRUE(client_->ResumeGeneration(request)->Finish().ok());
  EXPECT_FALSE(asked.Get().has_received());
  request.mutable_received()->set_tokens(1);
  EXPECT_TRUE(client_->ResumeGeneration(request)->Finish().ok());
  EXPECT_EQ(asked.Get().received().tokens(), 3);  // two have come before the last break
  request.clear_received();
  request.set_after_sequence(0);
  EXPECT_TRUE(client_->ResumeGeneration(request)->Finish().ok());
  EXPECT_EQ(asked.Get().received().tokens(), 3);
}

TEST_F(ResumedStreamTest, AServerThatDoesNothingButBreakIsGivenUp) {
  server_.generation.on_ResumeGeneration = [this](auto&, const auto&, auto&) {
    ++resumes_;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  EXPECT_EQ(client_->Generate({})->Finish().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(resumes_, 3);
}

TEST_F(ResumedStreamTest, WhoCancelsDoesNotComeBack) {
  broken_ = [] {
    absl::SleepFor(absl::Milliseconds(100));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  {
    auto stream = client_->Generate({});
    v1::GenerateResponse event;
    ASSERT_TRUE(stream->Next(&event));
  }
  EXPECT_EQ(resumes_, 0);
  EXPECT_EQ(cancels_, 1);
}

TEST_F(ResumedStreamTest, AStreamOfAnotherProgramsTurnLeavesItAlone) {
  v1::ResumeGenerationRequest request;
  request.set_resume_token("token");
  request.set_after_sequence(2);
  auto whole = client_->ResumeGeneration(request);
  std::string text;
  for (const auto& event : *whole) text += event.delta().text();
  EXPECT_EQ(text, "345");
  EXPECT_TRUE(whole->Finish().ok());
  {
    auto left = client_->ResumeGeneration(request);
    v1::GenerateResponse event;
    ASSERT_TRUE(left->Next(&event));
  }
  EXPECT_EQ(cancels_, 0);
}

TEST_F(GenerateStreamTest, FinalBeforeAnErrorIsKept) {
  server_.generation.on_Generate = [](auto&, const auto&, auto& writer) {
    WriteTurn(writer, {"x"});
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  };
  auto stream = client_->Generate({});
  EXPECT_FALSE(stream->Finish().ok());
  ASSERT_TRUE(stream->final());
  EXPECT_EQ(stream->final()->version(), 7);
}

}  // namespace
}  // namespace mneme::client
