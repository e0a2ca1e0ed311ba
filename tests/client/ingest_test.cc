// Ingest against a server that keeps bytes, breaks, and is asked again.
#include "client/ingest.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "client/client.h"
#include "tests/client/fake_server.h"

namespace mneme::client {
namespace {

// What the server has: all that came in order, durable in steps.
class IngestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.sessions.on_IngestSession = [this](auto& context, auto& stream) {
      return Serve(context, stream);
    };
    server_.Start();
    auto client = Client::Connect({.server = server_.address()});
    ASSERT_TRUE(client.ok()) << client.status();
    client_.emplace(*std::move(client));
    std::mt19937 random(20240607);  // fixed, so that a failure repeats
    for (int i = 0; i < 700'000; ++i) text_ += static_cast<char>('a' + random() % 26);
  }

  // A handler may still run when the client has given up: it must end before what it writes to.
  void TearDown() override { server_.Stop(); }

  grpc::Status Serve(grpc::ServerContext& context, FakeSessions::IngestStream& stream) {
    const int attempt = ++attempts_;
    v1::IngestRequest request;
    if (!stream.Read(&request) || !request.has_start()) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "no start"};
    }
    starts_.push_back(request.start());
    affinity_ = MetadataOf(context, "x-session-affinity");
    if (refuse_) {
      if (auto status = refuse_(attempt); !status.ok()) return status;
    }
    std::string received = durable_;
    v1::IngestProgress progress;
    auto say = [&](bool done) {
      progress.set_received_bytes(static_cast<int64_t>(received.size()));
      progress.set_durable_bytes(static_cast<int64_t>(durable_.size()));
      progress.set_read_tokens(static_cast<int64_t>(durable_.size() / 4));
      progress.set_done(done);
      stream.Write(progress);
    };
    say(complete_);
    if (complete_) return grpc::Status::OK;
    int64_t frames = 0;
    while (stream.Read(&request)) {
      const auto& data = request.data();
      largest_frame_ = std::max(largest_frame_, data.data().size());
      if (data.offset_bytes() != static_cast<int64_t>(received.size())) {
        return FakeError(grpc::StatusCode::OUT_OF_RANGE, "INGEST_GAP", "a hole");
      }
      received += data.data();
      if (data.last()) {
        durable_ = received;
        complete_ = true;
        say(true);
        return grpc::Status::OK;
      }
      if (++frames % 3 == 0) {
        durable_ = received;
        say(false);
        while (stall_ && !context.IsCancelled()) std::this_thread::yield();
      }
      if (attempt <= breaks_ && frames == 4 + attempt) {
        return {grpc::StatusCode::UNAVAILABLE, "connection reset"};
      }
    }
    return {grpc::StatusCode::UNAVAILABLE, "the client went away"};
  }

  IngestOptions Options() {
    IngestOptions options;
    options.session = "s";
    options.ingest_id = "book";
    options.frame_bytes = 10'000;
    return options;
  }

  FakeServer server_;
  std::optional<Client> client_;
  std::string text_;
  std::string durable_;
  bool complete_ = false;
  int breaks_ = 0;
  bool stall_ = false;  // takes nothing more once some bytes are durable
  std::function<grpc::Status(int attempt)> refuse_;
  std::vector<v1::IngestRequest::Start> starts_;
  std::string affinity_;
  size_t largest_frame_ = 0;
  std::atomic<int> attempts_{0};
};

TEST_F(IngestTest, SendsEverythingInFrames) {
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->done());
  EXPECT_EQ(durable_, text_);
  EXPECT_EQ(largest_frame_, 10'000u);
  EXPECT_EQ(affinity_, "tenants/default/sessions/s");
}

TEST_F(IngestTest, ResumesAfterBreaksWithTheSameIdFromWhatIsDurable) {
  breaks_ = 3;
  IngestOptions options = Options();
  options.expected_version = 9;
  int retries = 0;
  int64_t last = 0;
  options.on_retry = [&](const absl::Status&, absl::Duration) { ++retries; };
  options.on_progress = [&](const v1::IngestProgress& p) {
    EXPECT_GE(p.durable_bytes(), last);
    last = p.durable_bytes();
  };
  std::istringstream in(text_);
  auto done = client_->Ingest(in, options);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(durable_, text_);
  EXPECT_EQ(retries, 3);
  ASSERT_EQ(starts_.size(), 4u);
  for (const auto& start : starts_) EXPECT_EQ(start.ingest_id(), "book");
  // The first attempt made bytes durable, and so moved the version itself.
  EXPECT_EQ(starts_[0].expected_version(), 9);
  EXPECT_EQ(starts_[1].expected_version(), 0);
}

TEST_F(IngestTest, SurvivesARestartOfTheServer) {
  IngestOptions options = Options();
  bool stopped = false;
  options.on_progress = [&](const v1::IngestProgress& p) {
    if (stopped || p.durable_bytes() < 60'000) return;
    stopped = true;
    server_.Stop();
    server_.Start();
  };
  std::istringstream in(text_);
  auto done = client_->Ingest(in, options);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(stopped);
  EXPECT_EQ(durable_, text_);
  EXPECT_GE(starts_.size(), 2u);
}

TEST_F(IngestTest, AnotherProcessContinues) {
  durable_ = text_.substr(0, 123'456);
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(durable_, text_);
}

TEST_F(IngestTest, CompleteIngestSendsNothing) {
  durable_ = text_;
  complete_ = true;
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->done());
}

TEST_F(IngestTest, EmptyAndOneByteTexts) {
  for (const char* text : {"", "x"}) {
    durable_.clear();
    complete_ = false;
    std::istringstream in(text);
    auto done = client_->Ingest(in, Options());
    ASSERT_TRUE(done.ok()) << done.status();
    EXPECT_EQ(durable_, text);
  }
}

TEST_F(IngestTest, TextOfWholeFramesEndsWithALastFrame) {
  std::istringstream in(text_.substr(0, 30'000));
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(durable_.size(), 30'000u);
}

TEST_F(IngestTest, ShorterTextUnderTheSameIdIsNoticed) {
  durable_ = text_.substr(0, 50'000);
  std::istringstream in(text_.substr(0, 20'000));
  EXPECT_EQ(client_->Ingest(in, Options()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(IngestTest, RefusalIsNotRetried) {
  refuse_ = [](int) {
    return FakeError(grpc::StatusCode::ABORTED, "VERSION_MISMATCH", "another turn came between");
  };
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  EXPECT_EQ(ErrorOf(done.status()).reason, "VERSION_MISMATCH");
  EXPECT_EQ(attempts_, 1);
}

TEST_F(IngestTest, BusyIsWaitedForOnlyAfterABreak) {
  refuse_ = [](int attempt) {
    if (attempt == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "connection reset");
    if (attempt == 2) return FakeError(grpc::StatusCode::ABORTED, "SESSION_BUSY", "busy");
    return grpc::Status::OK;
  };
  std::istringstream in(text_);
  EXPECT_TRUE(client_->Ingest(in, Options()).ok());
  EXPECT_EQ(attempts_, 3);
  refuse_ = [](int) { return FakeError(grpc::StatusCode::ABORTED, "SESSION_BUSY", "busy"); };
  attempts_ = 0;
  std::istringstream again(text_);
  EXPECT_EQ(ErrorOf(client_->Ingest(again, Options()).status()).reason, "SESSION_BUSY");
  EXPECT_EQ(attempts_, 1);
}

TEST_F(IngestTest, GivesUpAfterMaxOutage) {
  refuse_ = [](int) { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "down"); };
  IngestOptions options = Options();
  options.max_outage = absl::Milliseconds(400);
  std::istringstream in(text_);
  EXPECT_EQ(client_->Ingest(in, options).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_GT(attempts_, 1);
}

TEST_F(IngestTest, StopEndsIt) {
  stall_ = true;
  std::stop_source stop;
  IngestOptions options = Options();
  options.stop = stop.get_token();
  options.on_progress = [&](const v1::IngestProgress& p) {
    if (p.durable_bytes() > 0) stop.request_stop();
  };
  std::istringstream in(text_);
  EXPECT_EQ(client_->Ingest(in, options).status().code(), absl::StatusCode::kCancelled);
  server_.Stop();
  EXPECT_LT(durable_.size(), text_.size());
}

TEST_F(IngestTest, WriterIsOneAttempt) {
  v1::IngestRequest::Start start;
  start.set_session("s");
  start.set_ingest_id("x");
  auto writer = client_->IngestSession(start);
  ASSERT_TRUE(writer.ok());
  v1::IngestProgress progress;
  ASSERT_TRUE(writer->Read(&progress));
  EXPECT_EQ(progress.durable_bytes(), 0);
  ASSERT_TRUE(writer->Write(0, "hello", true));
  ASSERT_TRUE(writer->Read(&progress));
  EXPECT_TRUE(progress.done());
  EXPECT_FALSE(writer->Read(&progress));
  EXPECT_TRUE(writer->Finish().ok());
  EXPECT_EQ(durable_, "hello");
}

}  // namespace
}  // namespace mneme::client
