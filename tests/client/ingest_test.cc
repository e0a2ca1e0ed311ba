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
  // How the server is to behave.
  struct Plan {
    int breaks = 0;
    bool stall = false;  // takes nothing more once some bytes are durable
    std::function<grpc::Status(int attempt)> refuse;
  };
  struct Kept {
    std::string durable;
    bool complete = false;
    std::vector<v1::IngestRequest::Start> starts;
    std::string affinity;
    size_t largest_frame = 0;
  };

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
    const std::string affinity = MetadataOf(context, "x-session-affinity");
    const Plan plan = plan_.Get();
    Kept begin = kept_.Update([&](Kept& kept) {
      kept.starts.push_back(request.start());
      kept.affinity = affinity;
      return kept;
    });
    if (plan.refuse) {
      if (auto status = plan.refuse(attempt); !status.ok()) return status;
    }
    std::string received = begin.durable;
    auto say = [&](bool done, size_t durable_bytes) {
      v1::IngestProgress progress;
      progress.set_received_bytes(static_cast<int64_t>(received.size()));
      progress.set_durable_bytes(static_cast<int64_t>(durable_bytes));
      progress.set_read_tokens(static_cast<int64_t>(durable_bytes / 4));
      progress.set_done(done);
      stream.Write(progress);
    };
    say(begin.complete, received.size());
    if (begin.complete) return grpc::Status::OK;
    int64_t frames = 0;
    while (stream.Read(&request)) {
      const auto& data = request.data();
      kept_.Update([&](Kept& kept) {
        kept.largest_frame = std::max(kept.largest_frame, data.data().size());
      });
      if (data.offset_bytes() != static_cast<int64_t>(received.size())) {
        return FakeError(grpc::StatusCode::OUT_OF_RANGE, "INGEST_GAP", "a hole");
      }
      received += data.data();
      if (data.last() || ++frames % 3 == 0) {
        kept_.Update([&](Kept& kept) {
          kept.durable = received;
          kept.complete = data.last();
        });
        say(data.last(), received.size());
        if (data.last()) return grpc::Status::OK;
        while (plan.stall && !context.IsCancelled()) std::this_thread::yield();
      }
      if (attempt <= plan.breaks && frames == 4 + attempt) {
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
  test::Guarded<Plan> plan_;
  test::Guarded<Kept> kept_;
  std::atomic<int> attempts_{0};
};

TEST_F(IngestTest, SendsEverythingInFrames) {
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->done());
  EXPECT_EQ(kept_.Get().durable, text_);
  EXPECT_EQ(kept_.Get().largest_frame, 10'000u);
  EXPECT_EQ(kept_.Get().affinity, "tenants/default/sessions/s");
}

TEST_F(IngestTest, ResumesAfterBreaksWithTheSameIdFromWhatIsDurable) {
  plan_.Set({.breaks = 3});
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
  EXPECT_EQ(kept_.Get().durable, text_);
  EXPECT_EQ(retries, 3);
  const auto starts = kept_.Get().starts;
  ASSERT_EQ(starts.size(), 4u);
  for (const auto& start : starts) EXPECT_EQ(start.ingest_id(), "book");
  // The first attempt made bytes durable, and so moved the version itself.
  EXPECT_EQ(starts[0].expected_version(), 9);
  EXPECT_EQ(starts[1].expected_version(), 0);
}

TEST_F(IngestTest, SurvivesARestartOfTheServer) {
  plan_.Set({.stall = true});  // else it may have everything before it is stopped
  IngestOptions options = Options();
  bool stopped = false;
  options.on_progress = [&](const v1::IngestProgress& p) {
    if (stopped || p.durable_bytes() == 0) return;
    stopped = true;
    plan_.Set({});
    server_.Stop();
    server_.Start();
  };
  std::istringstream in(text_);
  auto done = client_->Ingest(in, options);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(stopped);
  EXPECT_EQ(kept_.Get().durable, text_);
  EXPECT_GE(kept_.Get().starts.size(), 2u);
}

TEST_F(IngestTest, AnotherProcessContinues) {
  kept_.Set({.durable = text_.substr(0, 123'456)});
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(kept_.Get().durable, text_);
}

TEST_F(IngestTest, CompleteIngestSendsNothing) {
  kept_.Set({.durable = text_, .complete = true});
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->done());
}

TEST_F(IngestTest, EmptyAndOneByteTexts) {
  for (const char* text : {"", "x"}) {
    kept_.Set({});
    std::istringstream in(text);
    auto done = client_->Ingest(in, Options());
    ASSERT_TRUE(done.ok()) << done.status();
    EXPECT_EQ(kept_.Get().durable, text);
  }
}

TEST_F(IngestTest, TextOfWholeFramesEndsWithALastFrame) {
  std::istringstream in(text_.substr(0, 30'000));
  auto done = client_->Ingest(in, Options());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(kept_.Get().durable.size(), 30'000u);
}

TEST_F(IngestTest, ShorterTextUnderTheSameIdIsNoticed) {
  kept_.Set({.durable = text_.substr(0, 50'000)});
  std::istringstream in(text_.substr(0, 20'000));
  EXPECT_EQ(client_->Ingest(in, Options()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(IngestTest, RefusalIsNotRetried) {
  plan_.Set({.refuse = [](int) {
    return FakeError(grpc::StatusCode::ABORTED, "VERSION_MISMATCH", "another turn came between");
  }});
  std::istringstream in(text_);
  auto done = client_->Ingest(in, Options());
  EXPECT_EQ(ErrorOf(done.status()).reason, "VERSION_MISMATCH");
  EXPECT_EQ(attempts_, 1);
}

TEST_F(IngestTest, BusyIsWaitedForOnlyAfterABreak) {
  plan_.Set({.refuse = [](int attempt) {
    if (attempt == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "connection reset");
    if (attempt == 2) return FakeError(grpc::StatusCode::ABORTED, "SESSION_BUSY", "busy");
    return grpc::Status::OK;
  }});
  std::istringstream in(text_);
  EXPECT_TRUE(client_->Ingest(in, Options()).ok());
  EXPECT_EQ(attempts_, 3);
  plan_.Set(
      {.refuse = [](int) { return FakeError(grpc::StatusCode::ABORTED, "SESSION_BUSY", "busy"); }});
  attempts_ = 0;
  std::istringstream again(text_);
  EXPECT_EQ(ErrorOf(client_->Ingest(again, Options()).status()).reason, "SESSION_BUSY");
  EXPECT_EQ(attempts_, 1);
}

TEST_F(IngestTest, GivesUpAfterMaxOutage) {
  plan_.Set({.refuse = [](int) { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "down"); }});
  IngestOptions options = Options();
  options.max_outage = absl::Milliseconds(400);
  std::istringstream in(text_);
  EXPECT_EQ(client_->Ingest(in, options).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_GT(attempts_, 1);
}

TEST_F(IngestTest, StopEndsIt) {
  plan_.Set({.stall = true});
  std::stop_source stop;
  IngestOptions options = Options();
  options.stop = stop.get_token();
  options.on_progress = [&](const v1::IngestProgress& p) {
    if (p.durable_bytes() > 0) stop.request_stop();
  };
  std::istringstream in(text_);
  EXPECT_EQ(client_->Ingest(in, options).status().code(), absl::StatusCode::kCancelled);
  server_.Stop();
  EXPECT_LT(kept_.Get().durable.size(), text_.size());
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
  EXPECT_EQ(kept_.Get().durable, "hello");
}

}  // namespace
}  // namespace mneme::client
