// mneme.v1.Models over ServerCore.
#pragma once

#include "mneme/v1/models.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Every method takes bytes: message_bytes.h says why.
using RawModels = v1::Models::WithRawCallbackMethod_ListModels<
    v1::Models::WithRawCallbackMethod_GetModel<v1::Models::Service>>;

class ModelsService final : public RawModels {
 public:
  explicit ModelsService(RpcEnvironment& env) : env_(env) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                       grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                     grpc::ByteBuffer*) override;

 private:
  RpcEnvironment& env_;
};

}  // namespace mneme::server
