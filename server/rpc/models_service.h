// mneme.v1.Models over ServerCore.
#pragma once

#include "mneme/v1/models.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

class ModelsService final : public v1::Models::CallbackService {
 public:
  explicit ModelsService(RpcEnvironment& env) : env_(env) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext*, const v1::ListModelsRequest*,
                                       v1::ListModelsResponse*) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext*, const v1::GetModelRequest*,
                                     v1::Model*) override;

 private:
  RpcEnvironment& env_;
};

}  // namespace mneme::server
