// Status details, trailers, deadlines, health, reflection, limits and metrics, over a real channel.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "tests/server/rpc/rpc_test_base.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

grpc::ByteBuffer Bytes(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) text.append(slice.begin(), slice.end());
  return text;
}

// grpc.health.v1.Health/Check, by hand: Debian installs no header for it.
std::string Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::ByteBuffer request =
      Bytes("\x0a" + std::string(1, static_cast<char>(service.size())) + service);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) { done.set_value(status); });
  const grpc::Status status = done.get_future().get();
  if (!status.ok()) return "error " + std::to_string(status.error_code());
  const std::string bytes = Text(response);
  return bytes == "\x08\x01" ? "SERVING" : bytes == "\x08\x02" ? "NOT_SERVING" : "?";
}

using RpcServerTest = RpcTest;

TEST_F(RpcServerTest, ErrorsArriveWithCodeReasonFieldAndRequestId) {
  core_.get_session = [](CallContext&,
                         const v1::GetSessionRequest&) -> absl::StatusOr<v1::Session> {
    FieldErrors errors;
    errors.Add("name", "must be tenants/{tenant}/sessions/{session}");
    errors.Add("view", "must be set", reason::kFieldRequired);
    return errors.ToStatus();
  };
  StartServer();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "my-request.1");
  v1::Session session;
  const grpc::Status status = sessions_->GetSession(&context, {}, &session);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ReasonIn(status), "FIELD_INVALID");
  const auto bad = DetailOf<google::rpc::BadRequest>(status);
  ASSERT_EQ(bad.field_violations_size(), 2);
  EXPECT_EQ(bad.field_violations(0).field(), "name");
  EXPECT_EQ(bad.field_violations(1).field(), "view");
  EXPECT_EQ(Trailer(context, "x-request-id"), "my-request.1");
  EXPECT_NE(Trailer(context, "x-served-by"), "(absent)");
}

TEST_F(RpcServerTest, AnInternalErrorTellsNothing) {
  StartServer();
  grpc::ClientContext context;
  v1::Model model;
  const grpc::Status status = models_->GetModel(&context, {}, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(ReasonIn(status), "INTERNAL");
  EXPECT_EQ(status.error_message().find("secret"), std::string::npos);
}

TEST_F(RpcServerTest, EveryCallHasARequestIdOfItsOwn) {
  core_.get_session = [](CallContext& context, const v1::GetSessionRequest&) {
    v1::Session session;
    session.set_name(context.request_id);
    return session;
  };
  StartServer();
  std::string first;
  for (const char* unusable : {"", "has space", "{\"json\"}"}) {
    grpc::ClientContext context;
    if (*unusable != '\0') context.AddMetadata("x-request-id", unusable);
    v1::Session session;
    ASSERT_TRUE(sessions_->GetSession(&context, {}, &session).ok());
    const std::string seen = session.name();
    EXPECT_EQ(Trailer(context, "x-request-id"), seen);
    EXPECT_EQ(seen.size(), 32u);
    EXPECT_NE(seen, first);
    first = seen;
  }
}

TEST_F(RpcServerTest, DeadlineReachesTheCoreAndStopsIt) {
  std::atomic<bool> saw_deadline = false;
  std::promise<CallContext::Cancel> ended;
  core_.get_session = [&](CallContext& context, const v1::GetSessionRequest&) {
    saw_deadline = context.deadline < CallContext::Clock::now() + seconds(5);
    while (context.cancelled() == CallContext::Cancel::kNone) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    ended.set_value(context.cancelled());
    return absl::StatusOr<v1::Session>(absl::DeadlineExceededError("late"));
  };
  StartServer();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(200));
  v1::Session session;
  const grpc::Status status = sessions_->GetSession(&context, {}, &session);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
  // The client's timer began earlier, by as much as the call took to arrive: on a slow machine it
  // is first to end the call.
  EXPECT_THAT(future.get(),
              testing::AnyOf(CallContext::Cancel::kDeadline, CallContext::Cancel::kClient));
  EXPECT_TRUE(saw_deadline);
}

TEST_F(RpcServerTest, WithoutDeadlineThereIsNone) {
  std::atomic<bool> none = false;
  core_.get_session = [&](CallContext& context, const v1::GetSessionRequest&) {
    none = context.deadline == CallContext::Clock::time_point::max();
    return v1::Session();
  };
  StartServer();
  grpc::ClientContext context;
  v1::Session session;
  ASSERT_TRUE(sessions_->GetSession(&context, {}, &session).ok());
  EXPECT_TRUE(none);
}

TEST_F(RpcServerTest, LookupsGetThroughWhileEveryTurnThreadIsTaken) {
  config_.limits.max_running_streams = 1;
  config_.limits.max_queued_requests = 0;
  std::atomic<bool> release = false;
  core_.generate = [&](CallContext& context, const v1::GenerateRequest&, TurnSink&) {
    while (!release && context.cancelled() == CallContext::Cancel::kNone) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    return absl::OkStatus();
  };
  StartServer();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> streams;
  for (int i = 0; i < 20; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(generation_->Generate(contexts.back().get(), {}));
  }
  while (core_.generate_calls < 17) std::this_thread::sleep_for(milliseconds(1));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(20));
  v1::Session session;
  EXPECT_TRUE(sessions_->GetSession(&context, {}, &session).ok());
  release = true;
  int refused = 0;
  for (auto& stream : streams) {
    const grpc::Status status = stream->Finish();
    if (status.ok()) continue;
    ++refused;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(ReasonIn(status), "QUEUE_FULL");
    EXPECT_EQ(DetailOf<google::rpc::RetryInfo>(status).retry_delay().seconds(), 1);
  }
  EXPECT_EQ(refused, 3);
}

TEST_F(RpcServerTest, ARequestAboveTheSizeLimitIsRefused) {
  config_.limits.max_request_bytes = 64 << 10;
  StartServer();
  grpc::ClientContext context;
  v1::GetSessionRequest request;
  request.set_name(std::string(100 << 10, 'x'));
  v1::Session session;
  EXPECT_EQ(sessions_->GetSession(&context, request, &session).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(RpcServerTest, HealthKnowsEveryNameAndFollowsTheStore) {
  std::atomic<bool> store_up = true;
  core_.check_store = [&] { return store_up ? absl::OkStatus() : absl::UnavailableError("gone"); };
  StartServer({.probe_interval = milliseconds(10), .store_lost_after = milliseconds(100)});
  for (const char* name : {"", "mneme.v1.Sessions", "mneme.v1.Generation", "models/m"}) {
    EXPECT_EQ(Health(channel_, name), "SERVING") << name;
  }
  EXPECT_EQ(Health(channel_, "nothing"), "error 5");
  auto wait_for = [&](const char* name, const char* state) {
    for (int i = 0; i < 2000 && Health(channel_, name) != state; ++i) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    EXPECT_EQ(Health(channel_, name), state) << name;
  };
  store_up = false;
  wait_for("mneme.v1.Sessions", "NOT_SERVING");
  EXPECT_EQ(Health(channel_, ""), "SERVING");
  EXPECT_EQ(Health(channel_, "mneme.v1.Generation"), "SERVING");
  store_up = true;
  wait_for("mneme.v1.Sessions", "SERVING");
}

TEST_F(RpcServerTest, HealthFollowsTheDevices) {
  std::atomic<int> failed = 0;
  core_.models = {"models/a", "models/b"};
  core_.device_faults = [&] {
    std::vector<DeviceFault> faults;
    if (failed > 0) faults.push_back({"cuda:1", "cuda:1 fell", {"models/b"}});
    if (failed > 1) faults.push_back({"cuda:0", "cuda:0 fell too", {"models/a"}});
    return faults;
  };
  std::atomic<bool> store_up = true;
  core_.check_store = [&] { return store_up ? absl::OkStatus() : absl::UnavailableError("gone"); };
  StartServer({.probe_interval = milliseconds(10), .store_lost_after = milliseconds(100)});
  const std::vector<std::string> shared = {"", "mneme.v1.Sessions", "mneme.v1.Generation"};
  auto wait_for = [&](const std::string& name, const char* state) {
    for (int i = 0; i < 2000 && Health(channel_, name) != state; ++i) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    EXPECT_EQ(Health(channel_, name), state) << name;
  };
  EXPECT_EQ(Health(channel_, "models/b"), "SERVING");
  failed = 1;
  wait_for("models/b", "NOT_SERVING");
  // The other device serves its model.
  EXPECT_EQ(Health(channel_, "models/a"), "SERVING");
  for (const std::string& name : shared) EXPECT_EQ(Health(channel_, name), "SERVING") << name;
  failed = 2;
  wait_for("models/a", "NOT_SERVING");
  for (const std::string& name : shared) wait_for(name, "NOT_SERVING");
  // A store that comes back does not bring the devices with it.
  store_up = false;
  std::this_thread::sleep_for(milliseconds(200));
  store_up = true;
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(Health(channel_, "mneme.v1.Sessions"), "NOT_SERVING");
}

TEST_F(RpcServerTest, ReflectionListsTheServices) {
  StartServer();
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  auto next = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(next());
  call->Write(Bytes(std::string("\x3a\x00", 2)), nullptr);  // list_services: ""
  ASSERT_TRUE(next());
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  ASSERT_TRUE(next());
  const std::string text = Text(response);
  for (const char* name :
       {"mneme.v1.Sessions", "mneme.v1.Generation", "mneme.v1.Models", "grpc.health.v1.Health"}) {
    EXPECT_THAT(text, HasSubstr(name));
  }
  call->Write(Bytes("\x22\x15mneme.v1.Generation.x"), nullptr);  // an unknown symbol
  ASSERT_TRUE(next());
  call->Read(&response, nullptr);
  ASSERT_TRUE(next());
  call->Write(Bytes("\x22\x13mneme.v1.Generation"), nullptr);  // file_containing_symbol
  ASSERT_TRUE(next());
  call->Read(&response, nullptr);
  ASSERT_TRUE(next());
  EXPECT_THAT(Text(response), HasSubstr("GenerateRequest"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
}

TEST_F(RpcServerTest, ASecondServerOnThePortIsRefused) {
  StartServer();
  Config config = config_;
  config.listen.address = server_->address();
  FakeServerCore other;
  auto second = RpcServer::Start(config, other);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(server_->address()));
}

TEST_F(RpcServerTest, AStoreThatDoesNotAnswerStopsTheStart) {
  core_.check_store = [] { return absl::UnavailableError("disk on fire"); };
  auto server = RpcServer::Start(config_, core_);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kUnavailable);
}

// GET `path`; the whole response.

}  // namespace
}  // namespace mneme::server
