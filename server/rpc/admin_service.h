// mneme.v1.Admin: for operators.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <utility>

#include "mneme/v1/admin.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Every method takes bytes: message_bytes.h says why.
using RawAdmin =
    v1::Admin::WithRawCallbackMethod_GetServerInfo<v1::Admin::WithRawCallbackMethod_GetLoads<
        v1::Admin::WithRawCallbackMethod_DrainServer<v1::Admin::Service>>>;

class AdminService final : public RawAdmin {
 public:
  // `on_drain` begins what a signal begins, and returns; at once, or after drain.pre_stop_delay.
  // Called once at most, from any thread.
  using OnDrain = std::function<void(bool at_once)>;
  AdminService(RpcEnvironment& env, OnDrain on_drain) : env_(env), on_drain_(std::move(on_drain)) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                     grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* DrainServer(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                        grpc::ByteBuffer*) override;

 private:
  RpcEnvironment& env_;
  const OnDrain on_drain_;
  std::atomic<bool> drained_ = false;
};

// Whether gRPC's name of a peer ("ipv4:127.0.0.1:41234") is of this machine.
bool IsOnThisMachine(const std::string& peer);

}  // namespace mneme::server
