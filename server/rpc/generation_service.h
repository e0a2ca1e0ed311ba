// mneme.v1.Generation over ServerCore.
#pragma once

#include "mneme/v1/generation.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

class GenerationService final : public v1::Generation::CallbackService {
 public:
  explicit GenerationService(RpcEnvironment& env) : env_(env) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext*,
                                                           const v1::GenerateRequest*) override;
  grpc::ServerUnaryReactor* Complete(grpc::CallbackServerContext*, const v1::GenerateRequest*,
                                     v1::CompleteResponse*) override;
  grpc::ServerUnaryReactor* CancelGeneration(grpc::CallbackServerContext*,
                                             const v1::CancelGenerationRequest*,
                                             v1::CancelGenerationResponse*) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext*, const v1::TokenizeRequest*,
                                     v1::TokenizeResponse*) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext*, const v1::DetokenizeRequest*,
                                       v1::DetokenizeResponse*) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext*, const v1::ScoreRequest*,
                                  v1::ScoreResponse*) override;

 private:
  RpcEnvironment& env_;
};

}  // namespace mneme::server
