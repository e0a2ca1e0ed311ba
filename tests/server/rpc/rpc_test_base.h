// A real server on a free port around a FakeServerCore, and a real channel to it.
#pragma once

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "mneme/v1/generation.grpc.pb.h"
#include "mneme/v1/models.grpc.pb.h"
#include "mneme/v1/sessions.grpc.pb.h"
#include "server/rpc/server.h"
#include "tests/server/rpc/fake_server_core.h"

namespace mneme::server {

class RpcTest : public testing::Test {
 protected:
  RpcTest() {
    config_.listen.address = "127.0.0.1:0";
    config_.listen.metrics_address = "";
    config_.drain = {.pre_stop_delay_ms = 0, .timeout_ms = 5000};
  }

  // Change config_ and core_ before.
  void StartServer(
      HealthReporter::Options health = {}, AdminService::OnDrain on_drain = [](bool) {}) {
    auto server = RpcServer::Start(config_, core_, health, std::move(on_drain));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    sessions_ = v1::Sessions::NewStub(channel_);
    generation_ = v1::Generation::NewStub(channel_);
    models_ = v1::Models::NewStub(channel_);
  }

  // Of the details; empty messages if there are none.
  static google::rpc::Status DetailsOf(const grpc::Status& status) {
    google::rpc::Status details;
    EXPECT_TRUE(details.ParseFromString(status.error_details()));
    return details;
  }
  template <typename Detail>
  static Detail DetailOf(const grpc::Status& status) {
    Detail detail;
    const google::rpc::Status details = DetailsOf(status);
    for (const google::protobuf::Any& any : details.details()) {
      if (any.UnpackTo(&detail)) return detail;
    }
    ADD_FAILURE() << "no " << Detail::descriptor()->full_name() << " in " << details.DebugString();
    return detail;
  }
  static std::string ReasonIn(const grpc::Status& status) {
    return DetailOf<google::rpc::ErrorInfo>(status).reason();
  }
  static std::string Trailer(const grpc::ClientContext& context, const char* key) {
    auto found = context.GetServerTrailingMetadata().find(key);
    if (found == context.GetServerTrailingMetadata().end()) return "(absent)";
    return {found->second.data(), found->second.size()};
  }

  Config config_;
  FakeServerCore core_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Models::Stub> models_;
};

}  // namespace mneme::server
