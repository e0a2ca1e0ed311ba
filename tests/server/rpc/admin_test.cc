// Admin over a real channel: who may, and that a drain begins once.
#include <gmock/gmock.h>

#include <vector>

#include "mneme/v1/admin.grpc.pb.h"
#include "server/rpc/admin_service.h"
#include "tests/server/rpc/keys_testing.h"
#include "tests/server/rpc/rpc_test_base.h"
#include "tests/server/rpc/served_core.h"
#include "tests/support/child_process.h"
#include "tests/support/guarded.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;

TEST(AdminPeers, OnThisMachine) {
  for (const char* local :
       {"unix:/run/mneme", "ipv4:127.0.0.1:41234", "ipv4:127.9.9.9:1", "ipv6:[::1]:41234",
        "ipv6:%5B::1%5D:41234", "ipv6:[::ffff:127.0.0.1]:1"}) {
    EXPECT_TRUE(IsOnThisMachine(local)) << local;
  }
  for (const char* remote : {"", "ipv4:10.127.0.1:1", "ipv4:12.7.0.1:1", "ipv6:[::12]:1",
                             "ipv6:[fe80::1]:1", "ipv6:[::ffff:10.0.0.1]:1", "dns:127.0.0.1"}) {
    EXPECT_FALSE(IsOnThisMachine(remote)) << remote;
  }
}

class AdminTest : public RpcTest {};

TEST_F(AdminTest, ADrainBeginsOnceAsItWasAsked) {
  for (const bool at_once : {false, true}) {
    core_.metrics().drain_phase.Set(0);
    test::Guarded<std::vector<bool>> asked;
    StartServer({}, [&](bool now) { asked.Update([&](auto& list) { list.push_back(now); }); });
    auto admin = v1::Admin::NewStub(channel_);
    v1::DrainServerRequest request;
    request.set_at_once(at_once);
    for (int i = 0; i < 3; ++i) {
      grpc::ClientContext context;
      v1::DrainServerResponse response;
      ASSERT_TRUE(admin->DrainServer(&context, request, &response).ok());
      EXPECT_EQ(response.drain_phase(), i < 2 ? 0 : 4);
      if (i == 1) core_.metrics().drain_phase.Set(4);
    }
    EXPECT_THAT(asked.Get(), ElementsAre(at_once));
  }
}

class ServedAdminTest : public ServedCoreTest {
 protected:
  template <typename Request, typename Response>
  grpc::Status As(const std::string& key,
                  grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&,
                                                          Response*),
                  Response* response) {
    auto admin = v1::Admin::NewStub(channel_);
    grpc::ClientContext context;
    if (!key.empty()) ShowKey(context, key);
    return (*admin.*method)(&context, {}, response);
  }
  test::TemporaryFolder folder_;
};

TEST_F(ServedAdminTest, WhatTheServerIsAndDoes) {
  config.replica.name = "replica-7";
  config.limits.max_input_tokens = 4321;
  Serve();
  v1::ServerInfo info;
  ASSERT_TRUE(As("", &v1::Admin::Stub::GetServerInfo, &info).ok());
  EXPECT_EQ(info.name(), "replica-7");
  EXPECT_NE(info.version(), "");
  EXPECT_THAT(info.device(), ::testing::StartsWith("cpu"));
  EXPECT_EQ(info.store(), "memory");
  EXPECT_FALSE(info.shared_store());
  ASSERT_EQ(info.models_size(), 1);
  EXPECT_EQ(info.models(0).name(), "models/tiny");
  EXPECT_NE(info.models(0).numerics_id(), "");
  EXPECT_EQ(info.limits().max_input_tokens(), 4321);
  EXPECT_EQ(info.limits().state_memory_bytes(), 64 << 20);
  EXPECT_EQ(info.session_file_format(), 1);
  EXPECT_NEAR(static_cast<double>(info.start_time().seconds()),
              static_cast<double>(absl::ToUnixSeconds(absl::Now())), 120);
  // Every limit is reported.
  const auto& limits = info.limits();
  for (int i = 0; i < limits.GetDescriptor()->field_count(); ++i) {
    const auto* field = limits.GetDescriptor()->field(i);
    const int64_t value = field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_INT64
                              ? limits.GetReflection()->GetInt64(limits, field)
                              : limits.GetReflection()->GetInt32(limits, field);
    EXPECT_GT(value, 0) << field->name();
  }

  v1::Loads loads;
  ASSERT_TRUE(As("", &v1::Admin::Stub::GetLoads, &loads).ok());
  EXPECT_EQ(loads.running_requests(), 0);
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto running = Run(Endless("s"));
  do {  // it has begun; a moment later it is in the batch
    ASSERT_TRUE(As("", &v1::Admin::Stub::GetLoads, &loads).ok());
    ASSERT_EQ(loads.running_requests(), 1);
  } while (loads.models(0).sequences() == 0);
  EXPECT_GT(loads.used_state_bytes(), 0);
  EXPECT_EQ(loads.state_memory_bytes(), (64 << 20) - info.limits().prefix_memory_bytes());
  EXPECT_EQ(loads.models(0).model(), "models/tiny");
  EXPECT_EQ(loads.models(0).sequences(), 1);
  EXPECT_EQ(loads.drain_phase(), 0);
  EXPECT_TRUE(running->Cancel(*generation_).ok());
}

TEST_F(ServedAdminTest, IsForAdmins) {
  config.auth.keys_file =
      WriteKeys(folder_.path() / "keys.yaml", "keys:\n" + KeyEntry("user", "acme", "user") +
                                                  KeyEntry("look", "acme", "reader") +
                                                  KeyEntry("root", "ops", "admin"));
  Serve();
  v1::Loads loads;
  EXPECT_EQ(As("", &v1::Admin::Stub::GetLoads, &loads).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  for (const char* key : {"user", "look"}) {
    EXPECT_EQ(As(key, &v1::Admin::Stub::GetLoads, &loads).error_code(),
              grpc::StatusCode::PERMISSION_DENIED);
    v1::DrainServerResponse drained;
    EXPECT_EQ(As(key, &v1::Admin::Stub::DrainServer, &drained).error_code(),
              grpc::StatusCode::PERMISSION_DENIED);
  }
  EXPECT_TRUE(As("root", &v1::Admin::Stub::GetLoads, &loads).ok());
}

}  // namespace
}  // namespace mneme::server
