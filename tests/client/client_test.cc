// The library against a scripted server: retries, typed errors, metadata, deadlines.
#include "client/client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "client/service_config.h"
#include "tests/client/fake_server.h"
#include "tests/support/guarded.h"

namespace mneme::client {
namespace {

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.Start();
    auto client = Client::Connect({.server = server_.address()});
    ASSERT_TRUE(client.ok()) << client.status();
    client_.emplace(*std::move(client));
  }
  // A script that answers `failures` times with `status` and then OK.
  template <typename Request, typename Response>
  Script<Request, Response> FailFirst(int failures, grpc::Status status) {
    return [this, failures, status](auto&, const Request&, Response&) {
      return ++calls_ <= failures ? status : grpc::Status::OK;
    };
  }

  std::atomic<int> calls_{0};
  FakeServer server_;
  std::optional<Client> client_;
};

const grpc::Status kGone{grpc::StatusCode::UNAVAILABLE, "connection reset"};

TEST_F(ClientTest, NamesAreExpandedAndMetadataIsSent) {
  struct Seen {
    std::string name, affinity, id;
  };
  test::Guarded<Seen> last;
  server_.sessions.on_GetSession = [&](auto& context, const auto& request, auto& response) {
    last.Set({request.name(), MetadataOf(context, "x-session-affinity"),
              MetadataOf(context, "x-request-id")});
    response.set_name(request.name());
    return grpc::Status::OK;
  };
  ASSERT_TRUE(client_->GetSession("diary").ok());
  const Seen first = last.Get();
  EXPECT_EQ(first.name, "tenants/default/sessions/diary");
  EXPECT_EQ(first.affinity, first.name);
  EXPECT_EQ(first.id.size(), 36u);
  ASSERT_TRUE(client_->GetSession("diary").ok());
  EXPECT_NE(last.Get().id, first.id);
  ASSERT_TRUE(client_->GetSession("diary", {.request_id = "mine"}).ok());
  EXPECT_EQ(last.Get().id, "mine");
}

TEST_F(ClientTest, ReadsAreRetriedFourTimesInAll) {
  server_.sessions.on_GetSession = FailFirst<v1::GetSessionRequest, v1::Session>(3, kGone);
  EXPECT_TRUE(client_->GetSession("s").ok());
  EXPECT_EQ(calls_, 4);
  calls_ = 0;
  server_.sessions.on_GetSession = FailFirst<v1::GetSessionRequest, v1::Session>(100, kGone);
  EXPECT_EQ(client_->GetSession("s").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(calls_, kMaxAttempts);
}

TEST_F(ClientTest, OtherErrorsOfReadsAreNotRetried) {
  server_.sessions.on_GetSession =
      FailFirst<v1::GetSessionRequest, v1::Session>(100, {grpc::StatusCode::INTERNAL, "x"});
  EXPECT_EQ(client_->GetSession("s").status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(calls_, 1);
}

TEST_F(ClientTest, AWriteIsSentAgainAsTheSameRequest) {
  test::Guarded<std::set<std::string>> seen;
  server_.sessions.on_RewindSession = [&](auto&, const v1::RewindSessionRequest& request, auto&) {
    seen.Update([&](auto& ids) { ids.insert(request.request_id()); });
    return ++calls_ < 3 ? kGone : grpc::Status::OK;
  };
  v1::RewindSessionRequest request;
  request.set_name("s");
  request.set_position_tokens(3);
  EXPECT_TRUE(client_->RewindSession(request).ok());
  EXPECT_EQ(calls_, 3);
  ASSERT_EQ(seen.Get().size(), 1u);
  const std::string id = *seen.Get().begin();
  EXPECT_EQ(id.size(), 36u);
  EXPECT_TRUE(client_->RewindSession(request).ok());
  EXPECT_EQ(seen.Get().size(), 2u) << "another call is another request";
  request.set_request_id(id);
  EXPECT_TRUE(client_->RewindSession(request).ok());
  EXPECT_EQ(seen.Get().size(), 2u) << "the caller's own id wins";
}

TEST_F(ClientTest, AWriteThatNeverGetsThroughHasAnUnknownOutcome) {
  server_.sessions.on_CreateSession = FailFirst<v1::CreateSessionRequest, v1::Session>(9, kGone);
  const absl::Status status = client_->CreateSession({}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(ErrorOf(status).outcome_unknown);
  EXPECT_EQ(calls_, 4);
}

TEST_F(ClientTest, MismatchAfterABreakSaysThatTheOutcomeIsUnknown) {
  server_.sessions.on_RewindSession = [&](auto&, const auto&, auto&) {
    return ++calls_ == 1 ? kGone
                         : FakeError(grpc::StatusCode::ABORTED, "VERSION_MISMATCH", "changed");
  };
  v1::RewindSessionRequest request;
  request.set_name("s");
  request.set_position_tokens(3);
  request.set_expected_version(5);
  const Error error = ErrorOf(client_->RewindSession(request).status());
  EXPECT_EQ(error.reason, "VERSION_MISMATCH");
  EXPECT_TRUE(error.outcome_unknown);
}

TEST_F(ClientTest, WriteRefusedUntouchedIsRepeatedAfterTheAdvisedDelay) {
  server_.sessions.on_CreateSession = FailFirst<v1::CreateSessionRequest, v1::Session>(
      1, FakeError(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "busy", "", "", "", 300));
  const absl::Time begin = absl::Now();
  EXPECT_TRUE(client_->CreateSession({}).ok());
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(300));
  EXPECT_EQ(calls_, 2);
}

TEST_F(ClientTest, ErrorsAreTyped) {
  server_.generation.on_Complete = [](auto&, const auto&, auto&) {
    return FakeError(grpc::StatusCode::INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE", "bad top_p", "limit",
                     "1", "sampling.top_p", 250);
  };
  const Error error = ErrorOf(client_->Complete({}, {.request_id = "r-1"}).status());
  EXPECT_EQ(error.code, absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error.message, "bad top_p");
  EXPECT_EQ(error.reason, "FIELD_OUT_OF_RANGE");
  ASSERT_EQ(error.fields.size(), 1u);
  EXPECT_EQ(error.fields[0].field, "sampling.top_p");
  EXPECT_EQ(error.fields[0].description, "must be in (0, 1]");
  EXPECT_EQ(error.metadata.at("limit"), "1");
  EXPECT_EQ(error.retry_delay, absl::Milliseconds(250));
  EXPECT_EQ(error.request_id, "r-1");
  EXPECT_FALSE(error.outcome_unknown);
}

TEST_F(ClientTest, GarbageInTheDetailsIsIgnored) {
  server_.sessions.on_GetSession = [](auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "gone", "\xff\xfenot a message");
  };
  const Error error = ErrorOf(client_->GetSession("s").status());
  EXPECT_EQ(error.code, absl::StatusCode::kNotFound);
  EXPECT_EQ(error.reason, "");
}

TEST_F(ClientTest, DeadlineOfTheCall) {
  server_.sessions.on_GetSession = [](auto& context, const auto&, auto&) {
    while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  };
  const absl::Time begin = absl::Now();
  auto session = client_->GetSession("s", {.timeout = absl::Milliseconds(200)});
  EXPECT_EQ(session.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
}

TEST_F(ClientTest, TranscriptsAreReadOfSessionsAndSnapshotsAndRetried) {
  test::Guarded<std::string> name;
  std::atomic<int> calls = 0;
  server_.sessions.on_ReadTranscript = [&](auto&, const auto& request, auto& response) {
    name.Set(request.name());
    if (++calls == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet");
    response.set_version(3);
    return grpc::Status::OK;
  };
  v1::ReadTranscriptRequest request;
  request.set_name("s");
  ASSERT_EQ(client_->ReadTranscript(request)->version(), 3);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(name.Get(), "tenants/default/sessions/s");
  request.set_name("s@v2");
  ASSERT_TRUE(client_->ReadTranscript(request).ok());
  EXPECT_EQ(name.Get(), "tenants/default/sessions/s/snapshots/v2");
  request.set_name("no such/name");
  EXPECT_EQ(client_->ReadTranscript(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ClientTest, RewindAcceptsASnapshotIdOfTheSession) {
  test::Guarded<std::string> snapshot;
  server_.sessions.on_RewindSession = [&](auto&, const auto& request, auto&) {
    snapshot.Set(request.snapshot());
    return grpc::Status::OK;
  };
  v1::RewindSessionRequest request;
  request.set_name("s");
  request.set_snapshot("before-rewind");
  ASSERT_TRUE(client_->RewindSession(request).ok());
  EXPECT_EQ(snapshot.Get(), "tenants/default/sessions/s/snapshots/before-rewind");
}

TEST_F(ClientTest, ARestartedServerIsFoundBeforeTheCall) {
  server_.sessions.on_RewindSession = [&](auto&, const auto&, auto&) {
    ++calls_;
    return grpc::Status::OK;
  };
  v1::RewindSessionRequest request;  // changes something, and no version guards it
  request.set_name("s");
  request.set_position_tokens(3);
  ASSERT_TRUE(client_->RewindSession(request).ok());
  for (int restarts = 1; restarts <= 3; ++restarts) {
    server_.Stop();
    absl::SleepFor(absl::Milliseconds(200));
    server_.Start();
    const absl::Status status = client_->RewindSession(request).status();
    EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(calls_, 4);
}

TEST_F(ClientTest, ACallWaitsForAServerThatIsAway) {
  server_.sessions.on_RewindSession = [](auto&, const auto&, auto&) { return grpc::Status::OK; };
  server_.Stop();
  std::thread starter([&] {
    absl::SleepFor(absl::Milliseconds(1500));
    server_.Start();
  });
  v1::RewindSessionRequest request;
  request.set_name("s");
  request.set_position_tokens(3);
  const absl::Status status = client_->RewindSession(request).status();
  starter.join();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ClientTest, AServerThatStaysAwayHasNotGotTheCall) {
  server_.Stop();
  v1::RewindSessionRequest request;
  request.set_name("s");
  request.set_position_tokens(3);
  const absl::Status status =
      client_->RewindSession(request, {.timeout = absl::Milliseconds(300)}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(ErrorOf(status).outcome_unknown);
  EXPECT_EQ(client_->AwaitServer(absl::Milliseconds(50)).code(), absl::StatusCode::kUnavailable);
  server_.Start();
  EXPECT_TRUE(client_->AwaitServer(absl::Seconds(10)).ok());
}

TEST(Connect, ABadServerIsAnInvalidArgument) {
  EXPECT_EQ(Client::Connect({.server = "ftp://example.org"}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Connect, WithoutAServerItIsUnavailable) {
  FakeServer server;
  server.Start();
  server.Stop();  // a port on which nobody listens now
  auto client =
      Client::Connect({.server = server.address(), .connect_timeout = absl::Milliseconds(200)});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(client.status().message().find(server.address()), absl::string_view::npos);
}

TEST(ServiceConfig, IsJsonThatRetriesReadsOnly) {
  for (bool health : {false, true}) {
    auto config = nlohmann::json::parse(ServiceConfigJson(health));
    ASSERT_EQ(config["methodConfig"].size(), 1u);
    EXPECT_EQ(config["methodConfig"][0]["retryPolicy"]["maxAttempts"], 4);
    EXPECT_EQ(config["methodConfig"][0]["retryPolicy"]["initialBackoff"], "0.1s");
    EXPECT_EQ(config["methodConfig"][0]["retryPolicy"]["maxBackoff"], "2s");
    for (const auto& name : config["methodConfig"][0]["name"]) {
      EXPECT_NE(name["method"], "Generate");
      EXPECT_NE(name["method"], "CreateSession");
      EXPECT_NE(name["method"], "RewindSession");
    }
    EXPECT_EQ(config.contains("healthCheckConfig"), health);
    EXPECT_TRUE(config.contains("retryThrottling"));
  }
  EXPECT_EQ(Backoff(2), absl::Milliseconds(100));
  EXPECT_EQ(Backoff(4), absl::Milliseconds(400));
  EXPECT_EQ(Backoff(50), absl::Seconds(2));
}

}  // namespace
}  // namespace mneme::client
