#include "client/generate_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "client/client.h"
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

TEST_F(GenerateStreamTest, TurnOfASessionIsRepeatedOnlyUnderAVersion) {
  server_.generation.on_Generate = [this](auto&, const auto&, auto& writer) {
    if (++calls_ == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
    WriteTurn(writer, {"ok"});
    return grpc::Status::OK;
  };
  v1::GenerateRequest request;
  request.set_session("s");
  absl::Status status = client_->Generate(request)->Finish().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(ErrorOf(status).outcome_unknown);
  EXPECT_EQ(calls_, 1);
  calls_ = 0;
  request.set_expected_version(3);
  EXPECT_TRUE(client_->Generate(request)->Finish().ok());
  EXPECT_EQ(calls_, 2);
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
