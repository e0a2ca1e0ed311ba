#include "server/rpc/models_service.h"

#include "server/rpc/unary_call.h"

namespace mneme::server {

grpc::ServerUnaryReactor* ModelsService::ListModels(grpc::CallbackServerContext* context,
                                                    const v1::ListModelsRequest* request,
                                                    v1::ListModelsResponse* response) {
  return StartUnary(env_, "ListModels", &ServerCore::ListModels, context, request, response);
}

grpc::ServerUnaryReactor* ModelsService::GetModel(grpc::CallbackServerContext* context,
                                                  const v1::GetModelRequest* request,
                                                  v1::Model* response) {
  return StartUnary(env_, "GetModel", &ServerCore::GetModel, context, request, response);
}

}  // namespace mneme::server
