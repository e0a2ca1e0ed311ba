#include "server/rpc/models_service.h"

#include "server/rpc/unary_call.h"

namespace mneme::server {

grpc::ServerUnaryReactor* ModelsService::ListModels(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return StartUnary<v1::ListModelsRequest>(env_, "ListModels", &ServerCore::ListModels, context,
                                           request, response);
}

grpc::ServerUnaryReactor* ModelsService::GetModel(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return StartUnary<v1::GetModelRequest>(env_, "GetModel", &ServerCore::GetModel, context, request,
                                         response);
}

}  // namespace mneme::server
