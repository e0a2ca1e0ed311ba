// Streams over a real channel: order, backpressure, cancellation, ingest, drain.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/server/rpc/rpc_test_base.h"
#include "tests/support/wait_for.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::WaitFor;

class StreamsTest : public RpcTest {
 protected:
  // For the parts of a test that run inside the server.
  static void WaitUntilCancelled(CallContext& context) {
    while (context.cancelled() == CallContext::Cancel::kNone) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
};

TEST_F(StreamsTest, EventsArriveInOrderAndComplete) {
  core_.generate = [](CallContext&, const v1::GenerateRequest&, TurnSink& sink) {
    return FakeServerCore::SendTurn(sink, 5000, 100);
  };
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  int64_t sequence = 0;
  size_t text = 0;
  while (stream->Read(&event)) {
    EXPECT_EQ(event.sequence(), ++sequence);
    text += event.delta().text().size();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(sequence, 5002);
  EXPECT_EQ(text, 500000u);
  EXPECT_EQ(event.final().usage().output_tokens(), 5000);
  EXPECT_NE(Trailer(context, "x-request-id"), "(absent)");
}

TEST_F(StreamsTest, CompleteGathersTheStream) {
  StartServer();
  grpc::ClientContext context;
  v1::CompleteResponse response;
  ASSERT_TRUE(generation_->Complete(&context, {}, &response).ok());
  EXPECT_EQ(response.text(), "aaaaaaaabbbbbbbbcccccccc");
  EXPECT_THAT(response.token_ids(), testing::ElementsAre(0, 1, 2));
  EXPECT_EQ(response.started().generation(), "tenants/default/generations/g");
  EXPECT_EQ(response.final().finish_reason(), v1::MAX_TOKENS);
}

TEST_F(StreamsTest, WhatWasSentBeforeAnErrorArrives) {
  core_.generate = [](CallContext&, const v1::GenerateRequest&, TurnSink& sink) {
    v1::GenerateResponse event;
    event.mutable_delta()->set_text("half");
    sink.Send(event);
    return Error(absl::StatusCode::kInternal, reason::kStateNotFinite, "not finite");
  };
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.delta().text(), "half");
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_EQ(ReasonIn(stream->Finish()), "STATE_NOT_FINITE");
}

TEST_F(StreamsTest, AReaderThatNeverReadsEndsAsSlowConsumerWithBoundedMemory) {
  config_.limits.slow_client_timeout_ms = 300;
  std::atomic<int64_t> accepted_bytes = 0;
  std::promise<CallContext::Cancel> ended;
  core_.generate = [&](CallContext& context, const v1::GenerateRequest&, TurnSink& sink) {
    v1::GenerateResponse event;
    event.mutable_delta()->set_text(std::string(8 << 10, 'x'));
    while (sink.Send(event)) accepted_bytes += 8 << 10;
    ended.set_value(context.cancelled());
    return absl::CancelledError("cancelled");
  };
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(seconds(60)), std::future_status::ready);
  EXPECT_EQ(future.get(), CallContext::Cancel::kSlowConsumer);
  // What sockets and HTTP/2 windows hold: they grow by themselves to some MiB on a fast link.
  // Without a bound this turn sends gigabytes in its 300 ms.
  EXPECT_LT(accepted_bytes, 32 << 20);
  EXPECT_GT(accepted_bytes, 0);
  RecordProperty("figure", absl::StrCat(accepted_bytes >> 10, " KiB under way, no more"));
  v1::GenerateResponse event;
  while (stream->Read(&event)) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message() + status.error_details(), testing::HasSubstr("SLOW_CONSUMER"));
  // Others are served meanwhile and afterwards.
  core_.generate = [](CallContext&, const v1::GenerateRequest&, TurnSink& sink) {
    return FakeServerCore::SendTurn(sink, 3, 8);
  };
  grpc::ClientContext other;
  v1::CompleteResponse response;
  EXPECT_TRUE(generation_->Complete(&other, {}, &response).ok());
}

TEST_F(StreamsTest, AnExportThatNobodyReadsAndAnImportThatNobodySends) {
  config_.limits.slow_client_timeout_ms = 300;
  std::promise<CallContext::Cancel> ended;
  auto future = ended.get_future();
  core_.export_session = [&](CallContext& context, const v1::ExportSessionRequest&,
                             ExportSink& sink) {
    v1::ExportSessionResponse piece;
    piece.set_data(std::string(1 << 20, 'x'));
    int sent = 0;
    while (sink.Send(piece)) ++sent;
    EXPECT_LT(sent, 16);  // what connection and queue hold
    ended.set_value(context.cancelled());
    return absl::CancelledError("gone");
  };
  struct Half final : Import {
    explicit Half(std::promise<void>& destroyed) : destroyed(destroyed) {}
    ~Half() override { destroyed.set_value(); }
    absl::Status Write(std::string_view) override { return absl::OkStatus(); }
    absl::StatusOr<v1::ImportSessionResponse> Finish() override {
      return absl::InternalError("the client never ended its file");
    }
    std::promise<void>& destroyed;
  };
  std::promise<void> destroyed;
  core_.start_import = [&](CallContext&, const v1::ImportSessionRequest::Start&)
      -> absl::StatusOr<std::unique_ptr<Import>> { return std::make_unique<Half>(destroyed); };
  StartServer();
  grpc::ClientContext context;
  auto exported = sessions_->ExportSession(&context, {});
  EXPECT_EQ(future.get(), CallContext::Cancel::kSlowConsumer);
  v1::ExportSessionResponse piece;
  while (exported->Read(&piece)) {
  }
  EXPECT_EQ(ReasonIn(exported->Finish()), "SLOW_CONSUMER");

  grpc::ClientContext import_context;
  v1::ImportSessionResponse response;
  auto imported = sessions_->ImportSession(&import_context, &response);
  v1::ImportSessionRequest frame;
  frame.mutable_start();
  imported->Write(frame);
  frame.set_data("MNEM");
  imported->Write(frame);
  destroyed.get_future().wait();
  EXPECT_EQ(ReasonIn(imported->Finish()), "SLOW_CONSUMER");
}

TEST_F(StreamsTest, ASlowReaderThatWakesUpInTimeGetsTheDetails) {
  config_.limits.slow_client_timeout_ms = 2000;
  std::promise<void> ended;
  core_.generate = [&](CallContext&, const v1::GenerateRequest&, TurnSink& sink) {
    v1::GenerateResponse event;
    event.mutable_delta()->set_text(std::string(8 << 10, 'x'));
    while (sink.Send(event)) {
    }
    ended.set_value();
    return absl::CancelledError("cancelled");
  };
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  ASSERT_EQ(ended.get_future().wait_for(seconds(60)), std::future_status::ready);
  v1::GenerateResponse event;
  while (stream->Read(&event)) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonIn(status), "SLOW_CONSUMER");
  EXPECT_NE(Trailer(context, "x-request-id"), "(absent)");
}

TEST_F(StreamsTest, ATurnThatWaitsForItsReaderHearsOfItsCancellation) {
  config_.limits.slow_client_timeout_ms = 60000;
  for (const auto cause : {CallContext::Cancel::kRequested, CallContext::Cancel::kDeadline}) {
    std::atomic<CallContext*> call = nullptr;
    std::atomic<int64_t> sent = 0;
    std::promise<CallContext::Cancel> ended;
    core_.generate = [&](CallContext& context, const v1::GenerateRequest&, TurnSink& sink) {
      call = &context;
      v1::GenerateResponse event;
      event.mutable_delta()->set_text(std::string(64 << 10, 'x'));
      while (context.cancelled() == CallContext::Cancel::kNone && sink.Send(event)) ++sent;
      ended.set_value(context.cancelled());
      return absl::CancelledError("cancelled");
    };
    StartServer();
    grpc::ClientContext context;
    auto stream = generation_->Generate(&context, {});
    for (int64_t before = -1; before != sent || sent == 0;) {  // until it is blocked
      before = sent;
      std::this_thread::sleep_for(milliseconds(200));
    }
    call.load()->RequestCancel(cause);
    auto future = ended.get_future();
    ASSERT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
    EXPECT_EQ(future.get(), cause);
    context.TryCancel();
    stream->Finish();
    server_.reset();  // the turn, which counts here, may still be ending
  }
}

TEST_F(StreamsTest, ACancelledStreamStopsItsTurn) {
  std::promise<CallContext::Cancel> ended;
  core_.generate = [&](CallContext& context, const v1::GenerateRequest&, TurnSink& sink) {
    v1::GenerateResponse event;
    event.mutable_started();
    sink.Send(event);
    WaitUntilCancelled(context);
    ended.set_value(context.cancelled());
    return absl::CancelledError("cancelled");
  };
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Read(&event));
  context.TryCancel();
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
  EXPECT_EQ(future.get(), CallContext::Cancel::kClient);
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(StreamsTest, AStreamThatCancelsWhileItsTurnIsBlockedStopsIt) {
  std::promise<CallContext::Cancel> ended;
  core_.generate = [&](CallContext& context, const v1::GenerateRequest&, TurnSink& sink) {
    v1::GenerateResponse event;
    event.mutable_delta()->set_text(std::string(64 << 10, 'x'));
    while (sink.Send(event)) {
    }
    ended.set_value(context.cancelled());
    return absl::CancelledError("cancelled");
  };
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Read(&event));
  std::this_thread::sleep_for(milliseconds(50));
  context.TryCancel();
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
  // What Push noticed first may be the failed write; the context follows at once.
  stream->Finish();
}

// Echoes what a real ingest reports, counting bytes only.
class FakeIngest final : public Ingest {
 public:
  v1::IngestProgress progress() const override { return progress_; }
  absl::Status Write(const v1::IngestRequest::Data& data) override {
    if (data.offset_bytes() != progress_.received_bytes()) {
      return Error(absl::StatusCode::kOutOfRange, reason::kIngestGap, "gap");
    }
    progress_.set_received_bytes(progress_.received_bytes() + data.data().size());
    if (data.last()) {
      progress_.set_durable_bytes(progress_.received_bytes());
      progress_.set_done(true);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<bool> CommitIfDue() override {
    const bool news = progress_.durable_bytes() < progress_.received_bytes();
    progress_.set_durable_bytes(progress_.received_bytes());
    return news;
  }
  CallContext::Clock::time_point commit_due() const override {
    return CallContext::Clock::now() + milliseconds(50);
  }

 private:
  v1::IngestProgress progress_;
};

class IngestTest : public StreamsTest {
 protected:
  IngestTest() {
    core_.start_ingest =
        [this](CallContext& context,
               const v1::IngestRequest::Start&) -> absl::StatusOr<std::unique_ptr<Ingest>> {
      context_ = &context;
      return std::make_unique<FakeIngest>();
    };
  }
  static v1::IngestRequest StartFrame() {
    v1::IngestRequest frame;
    frame.mutable_start()->set_session("tenants/default/sessions/s");
    return frame;
  }
  static v1::IngestRequest DataFrame(int64_t offset, size_t size, bool last) {
    v1::IngestRequest frame;
    frame.mutable_data()->set_offset_bytes(offset);
    frame.mutable_data()->set_data(std::string(size, 'x'));
    frame.mutable_data()->set_last(last);
    return frame;
  }

  std::atomic<CallContext*> context_ = nullptr;
};

TEST_F(IngestTest, ManyFramesWithoutReadingProgressDoNotBlock) {
  config_.limits.slow_client_timeout_ms = 20000;
  StartServer();
  grpc::ClientContext context;
  auto stream = sessions_->IngestSession(&context);
  ASSERT_TRUE(stream->Write(StartFrame()));
  const int kFrames = 5000;
  for (int i = 0; i < kFrames; ++i) {
    ASSERT_TRUE(stream->Write(DataFrame(i * 100, 100, i + 1 == kFrames)));
  }
  stream->WritesDone();
  v1::IngestProgress progress;
  int64_t received = -1;
  while (stream->Read(&progress)) {
    EXPECT_GE(progress.received_bytes(), received);
    received = progress.received_bytes();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(progress.done());
  EXPECT_EQ(progress.durable_bytes(), kFrames * 100);
}

TEST_F(IngestTest, TheFirstProgressComesBeforeAnyData) {
  StartServer();
  grpc::ClientContext context;
  auto stream = sessions_->IngestSession(&context);
  ASSERT_TRUE(stream->Write(StartFrame()));
  v1::IngestProgress progress;
  ASSERT_TRUE(stream->Read(&progress));
  EXPECT_EQ(progress.durable_bytes(), 0);
  EXPECT_FALSE(progress.done());
  ASSERT_TRUE(stream->Write(DataFrame(50, 10, true)));
  EXPECT_FALSE(stream->Read(&progress));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(ReasonIn(status), "INGEST_GAP");
}

TEST_F(IngestTest, FramesOutOfOrderNameTheirField) {
  StartServer();
  auto run = [&](std::vector<v1::IngestRequest> frames) {
    grpc::ClientContext context;
    auto stream = sessions_->IngestSession(&context);
    for (const auto& frame : frames) stream->Write(frame);
    stream->WritesDone();
    v1::IngestProgress progress;
    while (stream->Read(&progress)) {
    }
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return DetailOf<google::rpc::BadRequest>(status).field_violations(0).field();
  };
  EXPECT_EQ(run({}), "start");
  EXPECT_EQ(run({DataFrame(0, 1, true)}), "start");
  EXPECT_EQ(run({StartFrame(), StartFrame()}), "data");
  EXPECT_EQ(run({StartFrame(), v1::IngestRequest()}), "data");
  EXPECT_EQ(run({StartFrame(), DataFrame(0, 10, false)}), "data.last");
}

TEST_F(IngestTest, AShutdownReachesAnIngestThatWaitsForItsClient) {
  StartServer();
  grpc::ClientContext context;
  auto stream = sessions_->IngestSession(&context);
  ASSERT_TRUE(stream->Write(StartFrame()));
  v1::IngestProgress progress;
  ASSERT_TRUE(stream->Read(&progress));
  context_.load()->RequestCancel(CallContext::Cancel::kShutdown);
  EXPECT_FALSE(stream->Read(&progress));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

class DrainTest : public StreamsTest {
 protected:
  // A turn that runs until told to stop, as the core's do.
  void GenerateUntilStopped() {
    core_.generate = [this](CallContext& context, const v1::GenerateRequest&, TurnSink& sink) {
      v1::GenerateResponse event;
      event.mutable_started();
      sink.Send(event);
      while (!stop_ && context.cancelled() == CallContext::Cancel::kNone) {
        std::this_thread::sleep_for(milliseconds(1));
      }
      event.mutable_final()->set_finish_reason(preempted_ ? v1::PREEMPTED : v1::EOS);
      sink.Send(event);
      return absl::OkStatus();
    };
    core_.preempt_all = [this] { preempted_ = stop_ = true; };
  }
  v1::FinishReason FinishReasonOf(grpc::ClientReader<v1::GenerateResponse>& stream) {
    v1::GenerateResponse event;
    while (stream.Read(&event)) {
    }
    EXPECT_TRUE(stream.Finish().ok());
    return event.final().finish_reason();
  }

  std::atomic<bool> stop_ = false;
  std::atomic<bool> preempted_ = false;
};

TEST_F(DrainTest, RunningTurnsEndByThemselvesAndNewOnesAreRefused) {
  GenerateUntilStopped();
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Read(&event));
  std::thread drain([&] { server_->Drain(RpcServer::DrainStart::kPreStop); });
  ASSERT_TRUE(WaitFor([&] { return core_.draining.load(); }));
  grpc::ClientContext late;
  v1::CompleteResponse response;
  const grpc::Status refused = generation_->Complete(&late, {}, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonIn(refused), "DRAINING");
  stop_ = true;
  EXPECT_EQ(FinishReasonOf(*stream), v1::EOS);
  drain.join();
  EXPECT_FALSE(preempted_);
}

TEST_F(DrainTest, TurnsThatOutlastTheTimeoutAreEnded) {
  config_.drain.timeout_ms = 100;
  GenerateUntilStopped();
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Read(&event));
  std::thread drain([&] { server_->Drain(RpcServer::DrainStart::kRefuseWork); });
  EXPECT_EQ(FinishReasonOf(*stream), v1::PREEMPTED);
  drain.join();
}

TEST_F(DrainTest, ASecondSignalEndsTurnsAtOnce) {
  config_.drain = {.pre_stop_delay_ms = 3600'000, .timeout_ms = 3600'000};
  GenerateUntilStopped();
  StartServer();
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, {});
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Read(&event));
  std::thread drain([&] { server_->Drain(RpcServer::DrainStart::kPreStop); });
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_FALSE(core_.draining);  // the pre-stop delay still serves
  server_->HurryDrain();
  EXPECT_EQ(FinishReasonOf(*stream), v1::PREEMPTED);
  drain.join();
}

TEST_F(DrainTest, AnEmptyServerLeavesAtOnce) {
  config_.drain.timeout_ms = 3600'000;
  StartServer();
  const auto start = std::chrono::steady_clock::now();
  server_->Drain(RpcServer::DrainStart::kRefuseWork);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(20));
}

}  // namespace
}  // namespace mneme::server
