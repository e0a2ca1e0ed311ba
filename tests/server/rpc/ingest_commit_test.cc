// A client that stalls in the middle of an ingest: what it has sent becomes durable by the clock,
// and what follows goes on as if nothing had been.
#include "tests/server/rpc/served_core.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class IngestCommitTest : public ServedCoreTest {
 protected:
  IngestCommitTest() { config.sessions.ingest_commit_interval_ms = 100; }

  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::IngestRequest, v1::IngestProgress>> rpc;
    v1::IngestProgress progress;

    bool Send(int64_t offset, const std::string& text, bool last = false) {
      v1::IngestRequest request;
      request.mutable_data()->set_offset_bytes(offset);
      request.mutable_data()->set_data(text);
      request.mutable_data()->set_last(last);
      return rpc->Write(request);
    }
    // Reads until this much is durable.
    bool WaitForDurable(int64_t bytes) {
      while (progress.durable_bytes() < bytes) {
        if (!rpc->Read(&progress)) return false;
      }
      return true;
    }
  };
  std::unique_ptr<Stream> Open(const std::string& id) {
    auto stream = std::make_unique<Stream>();
    stream->context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    stream->rpc = sessions_->IngestSession(&stream->context);
    v1::IngestRequest request;
    request.mutable_start()->set_session(Name(id));
    request.mutable_start()->set_ingest_id("the-text");
    EXPECT_TRUE(stream->rpc->Write(request));
    EXPECT_TRUE(stream->rpc->Read(&stream->progress));
    return stream;
  }
};

TEST_F(IngestCommitTest, TheTailOfAStalledClientBecomesDurable) {
  Serve();
  const std::string text = "The keeper wrote a page about the light. Then";
  const std::string rest = " the visitor asked again.";
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto stream = Open("s");
  ASSERT_TRUE(stream->Send(0, text));
  // Far below commit_every_tokens; no further frame. Only the last word may still go on.
  ASSERT_TRUE(stream->WaitForDurable(static_cast<int64_t>(text.size()) - 5));
  EXPECT_EQ(stream->progress.version(), 1);
  EXPECT_FALSE(stream->progress.done());
  EXPECT_EQ(Get("s").version(), 1);
  EXPECT_EQ(Get("s").position_tokens(), stream->progress.position_tokens());
  EXPECT_GT(Get("s").position_tokens(), 0);

  // With nothing new, time alone makes no versions.
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_EQ(Get("s").version(), 1);

  // A server that dies now has it. (This one is asked by another client after the first is gone.)
  const int64_t durable = stream->progress.durable_bytes();
  stream->context.TryCancel();
  while (stream->rpc->Read(&stream->progress)) {
  }
  stream->rpc->Finish();
  Serve();
  EXPECT_EQ(Get("s").version(), 1);
  stream = Open("s");
  EXPECT_EQ(stream->progress.durable_bytes(), durable);

  // The rest, in two pieces with a pause between them, ends where an undisturbed ingest ends.
  ASSERT_TRUE(stream->Send(durable, text.substr(durable) + rest.substr(0, 12)));
  ASSERT_TRUE(stream->WaitForDurable(durable + 1));
  ASSERT_TRUE(stream->Send(static_cast<int64_t>(text.size()) + 12, rest.substr(12), true));
  while (stream->rpc->Read(&stream->progress)) {
  }
  EXPECT_TRUE(stream->rpc->Finish().ok());
  EXPECT_TRUE(stream->progress.done());

  ASSERT_TRUE(CreateOverRpc("whole").ok());
  auto whole = Open("whole");
  ASSERT_TRUE(whole->Send(0, text + rest, true));
  while (whole->rpc->Read(&whole->progress)) {
  }
  EXPECT_TRUE(whole->rpc->Finish().ok());
  EXPECT_EQ(Get("s").position_tokens(), Get("whole").position_tokens());
  EXPECT_EQ(Say("s", "", 12).tokens, Say("whole", "", 12).tokens);
}

TEST_F(IngestCommitTest, AFailingStoreEndsAStalledIngest) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto stream = Open("s");
  store->fault = [](const std::string& op) {
    return op == "commit" ? absl::UnavailableError("unplugged") : absl::OkStatus();
  };
  ASSERT_TRUE(stream->Send(0, "The keeper wrote a page about the light. "));
  while (stream->rpc->Read(&stream->progress)) {
  }
  EXPECT_EQ(stream->rpc->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  store->fault = nullptr;
  EXPECT_EQ(Get("s").version(), 0);
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
}

TEST_F(IngestCommitTest, ADrainDoesNotWaitForAStalledClient) {
  config.sessions.ingest_commit_interval_ms = 60'000;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto stream = Open("s");
  ASSERT_TRUE(stream->Send(0, "The keeper wrote. "));
  core->PreemptAll();
  while (stream->rpc->Read(&stream->progress)) {
  }
  EXPECT_EQ(stream->rpc->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace mneme::server
