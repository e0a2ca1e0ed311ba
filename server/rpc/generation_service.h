// mneme.v1.Generation over ServerCore.
#pragma once

#include "mneme/v1/generation.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Every method takes bytes: message_bytes.h says why.
using RawGeneration =
    v1::Generation::WithRawCallbackMethod_Generate<v1::Generation::WithRawCallbackMethod_Complete<
        v1::Generation::WithRawCallbackMethod_ResumeGeneration<
            v1::Generation::WithRawCallbackMethod_GetGeneration<
                v1::Generation::WithRawCallbackMethod_CancelGeneration<
                    v1::Generation::WithRawCallbackMethod_Tokenize<
                        v1::Generation::WithRawCallbackMethod_Detokenize<
                            v1::Generation::WithRawCallbackMethod_Score<
                                v1::Generation::Service>>>>>>>>;

class GenerationService final : public RawGeneration {
 public:
  explicit GenerationService(RpcEnvironment& env) : env_(env) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext*,
                                                       const grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* Complete(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                     grpc::ByteBuffer*) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* ResumeGeneration(grpc::CallbackServerContext*,
                                                               const grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* GetGeneration(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* CancelGeneration(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                             grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                     grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                       grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                  grpc::ByteBuffer*) override;

 private:
  RpcEnvironment& env_;
};

}  // namespace mneme::server
